"""The receipts log as a customer uses it: exported, checked offline, forged, audited; and entities' statements."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.support.grid_process import MODEL, GridProcess, wait_until

HELLO: Any = [{"role": "user", "content": "Say hello."}]
pytestmark = pytest.mark.engine


def serve(grid: GridProcess, count: int) -> list[str]:
    """Some small requests; their receipts."""
    made = []
    for _ in range(count):
        answer = grid.client().chat.completions.create(model=MODEL, messages=HELLO, max_tokens=3)
        assert answer.model_extra is not None
        made.append(answer.model_extra["tokenworks"]["receipt"])
    return made


def is_final(grid: GridProcess, receipt: str) -> bool:
    shown = grid.get(f"/v1/receipts/{receipt}", grid.keys.key)[1]
    return isinstance(shown, dict) and shown.get("status") == "final"


def offline(tmp_path: Path, *arguments: str, data: bool = True) -> subprocess.CompletedProcess[str]:
    """The command line of a customer, who has no grid: a directory that is none, or none named at all."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("TOKENWORKS_")}
    home = tmp_path / "home"
    home.mkdir(exist_ok=True)
    env |= {"HOME": str(home), "XDG_DATA_HOME": str(home)}
    if data:
        env["TOKENWORKS_DATA"] = str(tmp_path / "nowhere")
    command = [sys.executable, "-m", "tokenworks.cli", *arguments]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert "Traceback" not in done.stderr, done.stderr
    assert not (tmp_path / "nowhere").exists()
    assert not any(home.iterdir())
    return done


def checkpoint(grid: GridProcess, file: Path) -> tuple[int, str]:
    """Keep the latest checkpoint in a file; its size and the verifier key."""
    done = grid.cli("log", "checkpoint")
    assert done.returncode == 0, done.stderr
    file.write_text(done.stdout)
    key = re.search(r"verifier key: (\S+)", done.stderr)
    assert key is not None
    return int(done.stdout.splitlines()[1]), key[1]


def another_key(key: str) -> str:
    """A well-formed key of another log's signer, from a grid that is not this one."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from tokenworks.exchange.log.checkpoint import SigningKey

    return SigningKey(key.split("+")[0], Ed25519PrivateKey.generate()).verifier().text()


@pytest.fixture(scope="module")
def exported(grid: GridProcess, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, list[str]]:
    """A bundle of the first account whose newest receipt is final, the log's key, and the ids of the requests."""
    folder = tmp_path_factory.mktemp("exported")
    made = serve(grid, 3)
    wait_until(lambda: all(is_final(grid, each) for each in made), 30, "the energy records to be final")
    _, key = checkpoint(grid, folder / "checkpoint")
    file = folder / "receipts.json"
    done = grid.cli("receipt", "export", "--account", "default", "--last", "3", "--out", str(file))
    assert done.returncode == 0, done.stderr
    assert str(file) in done.stderr
    assert done.stdout == ""
    return file, key, made


def test_exported_receipts_are_checked_offline(exported: tuple[Path, str, list[str]], tmp_path: Path) -> None:
    """The file alone is enough: with the key as text, with the key in a file, and with no grid anywhere."""
    file, key, made = exported
    published = tmp_path / "log.key"
    published.write_text(key + "\n")
    for given in (key, str(published)):
        for data in (True, False):
            done = offline(tmp_path, "receipt", "verify", str(file), "--key", given, "--json", data=data)
            assert done.returncode == 0, done.stdout + done.stderr
            verdict = json.loads(done.stdout)
            assert verdict["ok"] is True
            assert verdict["wrong"] == []
            assert not any("no final energy" in note for note in verdict["notes"])
    assert {each["view"]["id"] for each in json.loads(file.read_text())["receipts"]} == {*made}
    complete = offline(tmp_path, "receipt", "verify", str(file), "--key", key, "--complete")
    assert complete.returncode == 0
    assert "are all here" in complete.stdout + complete.stderr
    unsure = offline(tmp_path, "receipt", "verify", str(file), "--json")
    assert unsure.returncode == 0
    assert any("compare it with the published one" in note for note in json.loads(unsure.stdout)["notes"])


@pytest.mark.parametrize("figure", ["ustu", "price_nano", "energy_mj", "output", "model"])
def test_a_changed_figure_is_found(exported: tuple[Path, str, list[str]], tmp_path: Path, figure: str) -> None:
    """One figure of one receipt changed by a hand that has the file: named as wrong, status 1."""
    file, key, _ = exported
    bundle = json.loads(file.read_text())
    view = bundle["receipts"][1]["view"]
    if figure == "output":
        view["usage"]["output"] += 1
    elif figure == "model":
        view["model"]["served"] = "a-better-model"
    else:
        view[figure] += 1
    forged = tmp_path / "forged.json"
    forged.write_text(json.dumps(bundle))
    done = offline(tmp_path, "receipt", "verify", str(forged), "--key", key, "--json")
    assert done.returncode == 1
    verdict = json.loads(done.stdout)
    assert verdict["ok"] is False
    assert view["id"] in verdict["wrong"][0]
    shown = offline(tmp_path, "receipt", "verify", str(forged), "--key", key)
    assert shown.returncode == 1
    assert "WRONG" in shown.stdout + shown.stderr


def test_a_leaf_changed_with_its_figure_is_found(exported: tuple[Path, str, list[str]], tmp_path: Path) -> None:
    """A forger who changes the leaf with what is shown is found by the log's root."""
    file, key, _ = exported
    bundle = json.loads(file.read_text())
    bundle["receipts"][0]["view"]["ustu"] += 1
    bundle["receipts"][0]["settlement"]["leaf"]["ustu"] += 1
    forged = tmp_path / "forged.json"
    forged.write_text(json.dumps(bundle))
    done = offline(tmp_path, "receipt", "verify", str(forged), "--key", key, "--json")
    assert done.returncode == 1
    assert any("is not leaf" in line for line in json.loads(done.stdout)["wrong"])


def test_a_missing_receipt_is_a_fault_of_an_invoice(exported: tuple[Path, str, list[str]], tmp_path: Path) -> None:
    """Without its middle receipt a bundle holds, but is not complete."""
    file, key, _ = exported
    bundle = json.loads(file.read_text())
    bundle["receipts"].sort(key=lambda each: each["settlement"]["leaf"]["account_seq"])
    del bundle["receipts"][1]
    short = tmp_path / "short.json"
    short.write_text(json.dumps(bundle))
    assert offline(tmp_path, "receipt", "verify", str(short), "--key", key).returncode == 0
    assert offline(tmp_path, "receipt", "verify", str(short), "--key", key, "--complete").returncode == 1


def test_another_key_and_what_is_no_bundle_are_refused(exported: tuple[Path, str, list[str]], tmp_path: Path) -> None:
    """A key of somebody else is refused with 1; text that is no key or no bundle is one sentence and not 0."""
    file, key, _ = exported
    done = offline(tmp_path, "receipt", "verify", str(file), "--key", another_key(key), "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout)["ok"] is False
    for name, text in (("empty", ""), ("array", "[]"), ("deep", "[" * 9_000), ("cut", file.read_text()[:500])):
        broken = tmp_path / name
        broken.write_text(text)
        assert offline(tmp_path, "receipt", "verify", str(broken), "--key", key).returncode != 0, name
    assert offline(tmp_path, "receipt", "verify", str(file), "--key", "a+b+c").returncode != 0
    assert offline(tmp_path, "receipt", "verify", str(tmp_path / "missing"), "--key", key).returncode != 0


def test_the_log_goes_on_from_what_was_kept(grid: GridProcess, tmp_path: Path) -> None:
    """Two checkpoints with requests between and their proof are audited offline; any change of the proof is refused."""
    old_file, new_file, proof = tmp_path / "old", tmp_path / "new", tmp_path / "proof"
    serve(grid, 1)
    old, key = checkpoint(grid, old_file)
    serve(grid, 2)
    new, same = checkpoint(grid, new_file)
    assert same == key
    assert new > old > 0
    done = grid.cli("log", "proof", str(old), str(new))
    assert done.returncode == 0, done.stderr
    proof.write_text(done.stdout)

    def audit(*arguments: str) -> int:
        return offline(tmp_path, "log", "audit", *arguments).returncode

    both = (str(old_file), str(new_file), "--key", key)
    assert audit(*both, "--proof", str(proof)) == 0
    assert audit(str(old_file), str(old_file), "--key", key) == 0, "the same checkpoint needs no proof"
    assert audit(*both) == 1, "two sizes need a proof"
    assert audit(str(new_file), str(old_file), "--key", key, "--proof", str(proof)) == 1
    assert audit(str(old_file), str(new_file), "--key", another_key(key), "--proof", str(proof)) == 1
    lines = proof.read_text().splitlines(keepends=True)
    assert lines
    flipped = ("B" if lines[0][0] == "A" else "A") + lines[0][1:]
    for tampered in ([flipped, *lines[1:]], lines[:-1], [*lines, lines[0]]):
        proof.write_text("".join(tampered))
        assert audit(*both, "--proof", str(proof)) == 1, tampered
    proof.write_text("".join(lines))
    text = new_file.read_text().splitlines(keepends=True)
    new_file.write_text("".join([text[0], f"{new + 1}\n", *text[2:]]))
    assert audit(*both, "--proof", str(proof)) == 1, "a size that was not signed"
    assert grid.cli("log", "proof", str(new), str(old)).returncode == 2


def test_an_entity_gets_what_its_site_earned_less_the_fee(tmp_path: Path) -> None:
    """paid == net + fee exactly, the net is what the books owe solar-coop; no statement is made of a running month."""
    file = tmp_path / "grid.toml"
    file.write_text(
        '[[site]]\nname = "roof"\nentity = "solar-coop"\n[site.supply]\ninterval = "1 s"\n'
        f'[[replica]]\nmodel = "{MODEL}"\n'
    )
    grid = GridProcess(tmp_path / "data", "--grid", str(file)).start().wait_ready()
    try:
        assert grid.ask("entity", "set", "solar-coop", "--fee-permille", "100")["status"] == "set"
        assert grid.ask("entity", "set", "solar-coop", "--fee-permille", "100")["status"] == "already_so"
        made = serve(grid, 5)
        (open_,) = grid.ask("statement", "list")["unstated"]
        receipts = [grid.ask("receipt", "show", each) for each in made]
        books = grid.ask("books")
        money = books["books"]["money"]["accounts"]
        assert (open_["entity"], open_["home"], open_["lines"]) == ("solar-coop", "operator", 5)
        assert open_["nano"] == sum(receipt["price_nano"] for receipt in receipts) > 0
        assert open_["ustu"] == sum(receipt["ustu"] for receipt in receipts)
        assert open_["nano"] - open_["fee_nano"] == -money["payable/entity/solar-coop"]
        assert abs(open_["fee_nano"] * 10 - open_["nano"]) <= 10 * len(made), "a nano a line at most"
        assert open_["fee_nano"] > 0
        assert sum(money.values()) == 0
        assert books["closed"] is True, [check for check in books["checks"] if not check["ok"]]
        assert "solar-coop" in grid.cli("statement", "list").stdout
        assert grid.ask("statement", "issue") == [], "this month is not over"
        assert grid.cli("statement", "net").returncode == 0
        assert grid.cli("entity", "set", "solar-coop", "--fee-permille", "1001").returncode != 0
    finally:
        assert grid.stop() == 0
    assert grid.ask("statement", "list")["unstated"] == [open_], "the books alone say the same"
