"""``tokenworks price``: prices as a page, and price lists signed and checked as files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from tokenworks import datadir
from tokenworks.cli import main
from tokenworks.exchange.price_file import load_price_list

LIST = """
[[card]]
version = "1"
series = "acme"
effective = 2026-01-01T00:00:00Z
reference_class = "c"
line = [{ model = "*", input = "3", output = "5", reasoning = "6" }, { model = "m", input = "0.5", output = "1" }]
[[book]]
version = "1"
series = "acme"
effective = 2026-01-01T00:00:00Z
currency = "USD"
kind = "own"
source = "us"
line = [
  { model = "*", input = "1.25", output = "2" },
  { model = "m", input = "0.75", output = "1", price_class = "business", tier = "batch" },
]
[[book]]
version = "2"
series = "acme"
effective = 2027-01-01T00:00:00Z
currency = "USD"
kind = "own"
source = "us"
line = [{ model = "*", input = "9", output = "9" }]
[[book]]
version = "1"
series = "cloud"
effective = 2026-01-01T00:00:00Z
currency = "EUR"
kind = "list"
source = "a cloud's page"
line = [{ model = "m", input = "4", output = "8" }]
"""


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TOKENWORKS_DATA", str(tmp_path / "data"))
    (tmp_path / "prices.toml").write_text(LIST)
    return tmp_path / "prices.toml"


def run(*words: str) -> int:
    """The exit status of a command line."""
    try:
        return main(["price", *words])
    except SystemExit as done:
        return int(done.code or 0)


def ask(capsys: pytest.CaptureFixture[str], *words: str, status: int = 0) -> dict[str, Any]:
    assert run(*words, "--json") == status
    found: dict[str, Any] = msgspec.json.decode(capsys.readouterr().out)
    return found


def test_show_has_every_bucket_class_and_list_price(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Own rates and prices by class and tier, others' beside in their own currency, and when it changes."""
    page = ask(capsys, "show", "m", "--file", str(file), "--at", "2026-06-01")
    assert (page["prices_of"], page["at"]) == (str(file), "2026-06-01T00:00:00.000Z")
    assert page["next_change"] == "2027-01-01T00:00:00.000Z"
    (model,) = page["models"]
    assert (model["ustu_per_token"]["input"], model["ustu_per_token"]["reasoning"]) == (500_000, 1_000_000)
    columns = {column["of"]: column for column in model["nano_per_mtok"]}
    assert [*columns] == ["standard", "business/batch", "cloud"], "own prices first"
    assert columns["standard"]["line"]["input"] == 1_250_000_000
    assert columns["business/batch"]["line"]["input"] == 750_000_000
    assert (columns["cloud"]["currency"], columns["cloud"]["line"]["output"]) == ("EUR", 8_000_000_000)
    later = ask(capsys, "show", "--file", str(file), "--at", "2027-01-01T00:00")
    assert [each["model"] for each in later["models"]] == ["*", "m"]
    assert later["price_book"] == "2"
    assert later["models"][0]["nano_per_mtok"][0]["line"]["output"] == 9_000_000_000


def test_show_says_whose_prices_they_are(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What ships, before there is a grid; then the grid's, running or not."""
    assert ask(capsys, "show")["prices_of"] == "what ships; no grid has told its own"
    datadir.prepare(tmp_path / "data")
    (tmp_path / "data" / "prices.json").write_bytes(msgspec.json.encode(load_price_list(file, "USD")))
    assert ask(capsys, "show")["prices_of"] == "the grid when it last ran"
    monkeypatch.setattr("tokenworks.cli.price.read_run", lambda data: True)
    assert ask(capsys, "show")["prices_of"] == "the running grid"
    assert run("show") == 0
    text = capsys.readouterr().out
    assert text.splitlines()[2:4] == ["rate_card    1", "price_book   1"]
    assert "cache_write" not in text, "it costs as input, like most"
    assert "reasoning" in text, "it has a rate of its own"
    assert "cloud" in text


def test_sign_and_verify(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A key is made once and kept; one changed figure is one wrong card, and a comment is none."""
    names = ["rate_card:acme@1", "price_book:acme/USD@1", "price_book:acme/USD@2", "price_book:cloud/EUR@1"]
    assert ask(capsys, "verify", str(file), status=1) == {"ok": False, "signed_by": dict.fromkeys(names)}
    key = tmp_path / "key.pem"
    made = ask(capsys, "sign", str(file), "--key", str(key))
    assert made["signed"] == names
    assert key.stat().st_mode & 0o077 == 0
    assert ask(capsys, "sign", str(file), "--key", str(key)) == made
    public = made["public_key"]
    file.write_text("# a comment\n" + LIST)
    assert ask(capsys, "verify", str(file), "--key", public)["signed_by"] == dict.fromkeys(names, public)
    assert ask(capsys, "show", "--file", str(file))["signed_by"] == dict.fromkeys(names, public)
    file.write_text(LIST.replace('"1.25"', '"1.26"'))
    wrong = ask(capsys, "verify", str(file), status=1)
    assert wrong["signed_by"] == dict.fromkeys(names, public) | {names[1]: None}
    assert ask(capsys, "verify", str(file), "--key", "0" * 64, status=1)["signed_by"] == dict.fromkeys(names)
    assert run("verify", str(file)) == 1
    assert "WRONG  price_book:acme/USD@1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (("show", "--at", "soon"), 2, "no instant"),
        (("show", "--at", "1999-01-01"), 3, "no rate card"),
        (("show", "--file", "gone"), 2, "cannot read gone"),
        (("sign", "gone", "--key", "k"), 2, "cannot read gone"),
        (("verify", "SIG"), 2, "or its signatures"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(
    file: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], status: int, said: str
) -> None:
    """With the exit status that its kind has."""
    file.with_name("prices.toml.sig").write_text("no JSON")
    assert run(*(str(file) if word == "SIG" else word for word in words)) == status
    assert said in capsys.readouterr().err
