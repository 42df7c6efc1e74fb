"""Engines and drivers in the grid file, and what becomes of them."""

from __future__ import annotations

import pytest

from tokenworks import gridfile
from tokenworks.compose import plan
from tokenworks.core.errors import GridFileError
from tokenworks.core.units import NS_PER_S
from tokenworks.engine.replica import ReplicaSpec

BASE = '[[replica]]\nmodel = "m"\n'


def spec(text: str) -> ReplicaSpec:
    [made] = plan(gridfile.parse(BASE + text, "g.toml")).replicas
    return made


def test_a_command_is_a_process_on_a_slice_of_its_own() -> None:
    """Its threads are pinned and its memory is limited like the embedded engine's."""
    long = "{" + '"a": 1, ' * 500 + "}"
    made = spec(f'engine = "vllm"\ncommand = ["vllm", "serve", "{{model}}", \'{long}\']\nsleep_after = "10 min"\n')
    assert (made.driver, made.engine, made.command) == ("process", "vllm", ("vllm", "serve", "{model}", long))
    assert made.sleep_after_ns == 600 * NS_PER_S
    assert made.slice
    assert made.limits.cpus
    assert made.limits.memory_bytes == 10**9


def test_ray_places_by_resources() -> None:
    """Fractions are kept in thousandths; it runs elsewhere, so no slice of this machine is booked."""
    made = spec('driver = "ray"\ncommand = ["x"]\nresources = { CPU = 2, npu = 0.5 }\ncluster = "10.0.0.1:6379"\n')
    assert made.resources_milli == {"CPU": 2000, "npu": 500}
    assert (made.cluster, made.slice, made.engine) == ("10.0.0.1:6379", "", "openai")


def test_clouds_know_what_they_can() -> None:
    """A provider without a URL is reached by the library; Anthropic answers Messages."""
    made = spec('engine = "any-llm"\nupstream_model = "mistral:small"\n')
    assert (made.driver, made.url, made.upstream_model) == ("external", None, "mistral:small")
    assert "messages" in spec('engine = "anthropic"\nurl = "https://a.example"\n').capabilities
    given = spec('url = "http://a.example"\ncapabilities = ["embeddings"]\n')
    assert (given.engine, given.capabilities) == ("openai", frozenset({"embeddings"}))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('command = ["x"]\ndriver = "embedded"', "command: belongs to a process or ray replica"),
        (f'command = ["{"x" * 4_097}"]', r"command[1]: must not be longer than 4096 characters"),
        ('command = ["x\\n"]', r"command[1]: must not have control characters"),
        ('engine = "vllm"', "engine: belongs to an external replica"),
        ('driver = "process"', "command: is missing"),
        ('driver = "ray"\ncommand = ["x"]', "resources: is missing"),
        ('command = ["x"]\nresources = { CPU = 1 }', "resources: belongs to a ray replica"),
        ('driver = "ray"\ncommand = ["x"]\nresources = { CPU = "many" }', "resources.CPU: must be a number"),
        ('driver = "ray"\ncommand = ["x"]\nresources = 3', "resources: must be a table"),
        ('url = "http://x"\nsleep_after = "0 s"', "sleep_after: must be more than 0"),
        ('engine = "any-llm"\nupstream_model = "mistral"', "upstream_model: must name provider and model"),
        ('engine = "any-llm"\nupstream_model = "a:b"\nurl = "unix:///x"', "url: is a unix address: any-llm"),
        ('command = ["x"]\nurl = "ftp://x"', "url: is not an http, https or unix address"),
        ('url = "http://x"\nengine = "vlm"', "'vlm' is not known here"),
    ],
)
def test_what_does_not_fit_is_told(text: str, says: str) -> None:
    """Each key names the driver that it belongs to."""
    with pytest.raises(GridFileError, match=r"g\.toml") as caught:
        gridfile.parse(BASE + text + "\n", "g.toml")
    assert says in str(caught.value)
