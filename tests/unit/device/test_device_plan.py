from __future__ import annotations

import os

import pytest

from tokenworks import gridfile
from tokenworks.compose import plan

TWO_SITES = """
[[site]]
name = "a"
[[site]]
name = "b"
[[replica]]
site = "a"
model = "smollm2-135m-instruct"
threads = 1
memory = "700 MB"
[[replica]]
site = "b"
model = "smollm2-135m-instruct"
name = "second"
threads = 1
[[replica]]
site = "b"
model = "other"
driver = "external"
url = "http://127.0.0.1:9"
"""


def test_engines_of_one_machine_get_processors_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """After two sites that both begin with the first processor, and limits for an engine that is not ours."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {4, 5, 6})
    first, second, external = (replica.limits for replica in plan(gridfile.parse(TWO_SITES, "test")).replicas)
    assert (first.cpus, first.memory_bytes) == ((4,), 700_000_000)
    assert (second.cpus, second.memory_bytes) == ((5,), 1_000_000_000)
    assert (external.cpus, external.memory_bytes, external.env) == ((), None, {})
