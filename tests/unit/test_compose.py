"""From a grid file to the floors' words, on this machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from tokenworks import gridfile
from tokenworks.cli.price import price_sign
from tokenworks.compose import plan
from tokenworks.core.errors import GridFileError, NotAllowed, TokenworksError
from tokenworks.core.words import Provenance, Usage
from tokenworks.exchange.log.checkpoint import load_key

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
    now = made.prices.at(2**62)
    assert now.price("qwen3-8b", Usage(reasoning=1_000_000)).nano == 160_000_000
    assert now.price_book.startswith(f"2026-11+{made.name}-")
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


def test_other_lines_are_another_version() -> None:
    """A price that is edited in the grid file must not go by the name that receipts already cite."""

    def version(price: str) -> str:
        text = f'[[exchange.price]]\nmodel = "*"\ninput = "{price} USD/Mtok"\n'
        return plan(gridfile.parse(text, "test")).prices.at(2**62).price_book

    assert version("1") == version("1.0") != version("2")


PRICE_LIST = """
[[card]]
version = "1"
series = "acme"
effective = 2026-01-01T00:00:00Z
reference_class = "c"
line = [{ model = "*", input = "3", output = "5" }]
"""


def test_the_operators_own_price_list_lies_beside_the_grid_file(tmp_path: Path) -> None:
    """Its path is from the grid file; with price_keys nothing unsigned, forged or changed is taken."""
    (tmp_path / "prices.toml").write_text(PRICE_LIST)
    grid = tmp_path / "grid.toml"
    grid.write_text('[exchange]\nprice_file = "prices.toml"\n')
    assert plan(gridfile.load(grid)).prices.at(2**62).rates["*"]["output"] == 5_000_000
    key = tmp_path / "key.pem"
    assert price_sign(tmp_path / "prices.toml", key=key) == 0
    public = load_key(key, "prices").private.public_key().public_bytes_raw().hex()
    grid.write_text(f'[exchange]\nprice_file = "prices.toml"\nprice_keys = ["{public}"]\n')
    signed = plan(gridfile.load(grid)).prices
    assert {name: each.public_key for name, each in signed.signatures.items()} == {"rate_card:acme@1": public}
    (tmp_path / "prices.toml").write_text(PRICE_LIST.replace('"5"', '"6"'))
    with pytest.raises(NotAllowed, match="acme@1"):
        plan(gridfile.load(grid))
    grid.write_text(f'[exchange]\nprice_file = "prices.toml"\nprice_keys = ["{"0" * 64}"]\n')
    with pytest.raises(NotAllowed, match="no trusted key"):
        plan(gridfile.load(grid))


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ('price_file = "gone.toml"', "cannot read"),
        ('price_file = "grid.toml"', "no price list"),
        ('price_keys = ["ab"]', "no price_file"),
        ('price_file = "x"\nprice_keys = ["ab"]', "no public key"),
    ],
)
def test_a_price_list_that_cannot_be_used_is_told(tmp_path: Path, text: str, what: str) -> None:
    """One sentence that names the file or the key."""
    grid = tmp_path / "grid.toml"
    grid.write_text(f"[exchange]\n{text}\n")
    with pytest.raises(TokenworksError, match=what):
        plan(gridfile.load(grid))


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
