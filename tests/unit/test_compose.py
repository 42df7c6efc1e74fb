"""From a grid file to the floors' words, on this machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from tokenworks import gridfile
from tokenworks.compose import plan
from tokenworks.core.errors import GridFileError, TokenworksError
from tokenworks.core.words import Provenance, Usage

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def test_no_file_is_this_machine() -> None:
    """Without a file there is one site with one embedded replica on a slice of the discovered processor."""
    made = plan(gridfile.default_grid())
    [site], [replica] = made.sites, made.replicas
    assert replica.slice == site.loads[0].slice
    device = made.devices["here"][0]
    assert replica.threads == max(1, device.threads - 1)
    assert device.idle_mw is not None
    assert site.base_idle_mw + site.loads[0].idle_mw == device.idle_mw.value
    assert site.supply.price is not None
    assert site.supply.price.provenance is Provenance.LISTED


def test_the_default_written_out_gives_the_same_plan() -> None:
    """examples/one-machine.toml is what happens without a file."""
    written, assumed = plan(gridfile.load(EXAMPLES / "one-machine.toml")), plan(gridfile.default_grid())
    assert written.sites == assumed.sites
    assert written.replicas == assumed.replicas
    assert written.prices == assumed.prices


def test_existing_server_example(monkeypatch: pytest.MonkeyPatch) -> None:
    """The upstream's key comes from the environment; an engine elsewhere has no slice here; prices are the file's."""
    grid = gridfile.load(EXAMPLES / "existing-server.toml")
    monkeypatch.delenv("UPSTREAM_API_KEY", raising=False)
    with pytest.raises(GridFileError, match="UPSTREAM_API_KEY"):
        plan(grid)
    monkeypatch.setenv("UPSTREAM_API_KEY", "secret-word")
    made = plan(grid)
    big = next(replica for replica in made.replicas if replica.name == "big")
    assert big.slice == ""
    assert big.api_key == "secret-word"
    assert "secret-word" not in repr(made)
    assert made.prices.price("qwen3-8b", Usage(reasoning=1_000_000)).nano == 160_000_000
    assert made.scales.carbon_nano_per_kg == 50_000_000
    assert made.sites[0].overhead.value == 300


def test_a_file_overrides_what_was_discovered() -> None:
    """Power, cost and threads of a device in the file replace the catalogue's, and are listed, not modelled."""
    made = plan(
        gridfile.parse(
            '[[site]]\nname="s"\n[[site.device]]\nid="box"\nthreads=2\nmemory="4 GB"\nidle="10 W"\nmax="30 W"\n'
            'cost="0.02 USD/h"\n[[replica]]\nmodel="smollm2-135m-instruct"\nthreads=1\n',
            "test",
        )
    )
    [load] = made.sites[0].loads
    assert (load.idle_mw, load.busy_mw, load.cost_nano_per_hour) == (5_000, 10_000, 10_000_000)
    assert made.facts[0].facts["device_cost"].provenance is Provenance.LISTED


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ('[[replica]]\nmodel = "smollm2"\n', "smollm2-135m-instruct"),
        ('[[replica]]\nmodel = "smollm2-135m-instruct"\nthreads = 9999\n', "9,999 threads"),
        (
            '[[site]]\nname="s"\n[[site.device]]\nid="d"\ncatalogue="cpu-generic-x86"\n'
            '[[replica]]\nmodel="smollm2-135m-instruct"\n',
            "cpu-generic-x86-64",
        ),
    ],
)
def test_what_cannot_be_placed_is_told(text: str, word: str) -> None:
    """An unknown model, too many threads and an unknown catalogue row each name what is there."""
    with pytest.raises(TokenworksError) as caught:
        plan(gridfile.parse(text, "test"))
    assert word in str(caught.value)
