"""The command line as a user types it, against the running grid."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tests.support.grid_process import MODEL, GridProcess

from tokenworks.cli import app

pytestmark = pytest.mark.engine
LEAVES = [
    ["up"],
    ["chat"],
    ["status"],
    ["doctor"],
    ["books"],
    ["cake"],
    ["account", "list"],
    ["account", "create"],
    ["account", "set"],
    ["budget", "set"],
    ["budget", "close"],
    ["package", "list"],
    ["package", "define"],
    ["package", "sell"],
    ["grant", "list"],
    ["grant", "refund"],
    ["grant", "upgrade"],
    ["key", "list"],
    ["key", "create"],
    ["key", "revoke"],
    ["receipt", "show"],
    ["receipt", "list"],
    ["model", "list"],
    ["model", "pull"],
]


def test_chat_prints_the_answer_and_its_cost(grid: GridProcess) -> None:
    """The answer goes to stdout alone, cost and receipt to stderr, so that it can be piped."""
    done = grid.cli("chat", "Say hello.", "--max-tokens", "8")
    assert done.returncode == 0
    assert done.stdout.strip()
    for part in ("tokens", "STU", "USD", " J", "CO2e", "tokenworks receipt show rcpt_"):
        assert part in done.stderr
    shown = grid.cli("receipt", "show", done.stderr.split()[-1])
    assert shown.returncode == 0
    for word in ("7 agents", "1 power", "metered by engine", "modelled", "measured", "listed"):
        assert word in shown.stdout


def test_account_and_key_life(grid: GridProcess) -> None:
    """Open an account, give it a nested budget and a key, spend, revoke: each step tells what happened."""
    assert grid.ask("account", "create", "acme", "--limit", "5 USD", "--stu", "1 MSTU")["status"] == "opened"
    assert grid.ask("account", "create", "acme")["status"] == "already_opened"
    assert grid.ask("budget", "set", "acme-robots", "--parent", "acme", "--limit", "2 USD")["status"] == "made"
    made = grid.ask("key", "create", "acme-robots")
    assert made["account"] == "acme"
    answer = grid.client(made["key"]).chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": "hi"}], max_tokens=3
    )
    assert answer.choices
    accounts = {account["id"]: account for account in grid.ask("account", "list")}
    budgets = {budget["id"]: budget for budget in accounts["acme"]["budgets"]}
    assert budgets["acme"]["spent_nano"] == budgets["acme-robots"]["spent_nano"] > 0
    assert budgets["acme"]["limit_nano"] == 5_000_000_000
    assert grid.ask("key", "revoke", made["id"])["status"] == "revoked"
    assert grid.get("/v1/models", made["key"])[0] == 401
    assert [key["id"] for key in grid.ask("key", "list", "acme")] == [made["id"]]
    assert made["key"].split("-")[2] not in json.dumps(grid.ask("key", "list"))
    assert "acme" in grid.cli("account", "list").stdout


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["key", "create", "defualt"], ["'defualt'", "did you mean 'default'"]),
        (["account", "create", "bad name"], ["bad name", "letters"]),
        (["budget", "set", "default", "--limit", "5 EUR"], ["'5 EUR'", "USD"]),
        (["budget", "set", "default", "--stu", "5 MSTUX"], ["'MSTUX'", "MSTU"]),
        (["receipt", "show", "rcpt_nothing"], ["rcpt_nothing"]),
        (["up", "--grid", "nowhere.toml"], ["nowhere.toml"]),
        (["cake", "--last", "soon"], ["'soon'"]),
    ],
)
def test_wrong_words_are_named(grid: GridProcess, command: list[str], words: list[str]) -> None:
    """A mistake is one clear sentence on stderr and a status that is not 0."""
    done = grid.cli(*command)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr


def test_status_doctor_and_books_speak_json_and_people(grid: GridProcess) -> None:
    """Both faces of the commands that operators look at first."""
    assert grid.ask("status")["replicas"][0]["state"] == "ready"
    assert "here-1" in grid.cli("status").stdout
    assert {check["check"] for check in grid.ask("doctor")} >= {"python", "devices", "grid", "books"}
    assert "the books close" in grid.cli("books").stdout
    assert "million tokens" in grid.cli("cake").stdout


def test_books_exit_with_1_when_they_do_not_close(own_grid: GridProcess) -> None:
    """A tampered ledger is found, named and refused with status 1."""
    import apsw

    own_grid.start().wait_ready()
    own_grid.client().chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "hi"}], max_tokens=2)
    own_grid.stop()
    database = apsw.Connection(str(own_grid.data / "ledger.db"))
    database.execute("UPDATE entry SET amount = amount + 1 WHERE seq = 1")
    database.close()
    done = own_grid.cli("books", "--json")
    assert done.returncode == 1
    wrong = [check["check"] for check in json.loads(done.stdout)["checks"] if not check["ok"]]
    assert "balances equal the sum of their entries" in wrong
    assert "WRONG" in own_grid.cli("books").stdout


@pytest.mark.parametrize("leaf", LEAVES, ids=" ".join)
def test_every_command_has_help(leaf: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Each command explains itself and its parameters."""
    app([*leaf, "--help"], result_action="return_value")
    shown = capsys.readouterr().out
    assert "Usage" in shown
    assert leaf[-1] in shown


def test_help_loads_no_command() -> None:
    """``--help`` stays fast because it imports neither the gateway nor any library that only commands need."""
    code = (
        "import sys, tokenworks.cli as c\n"
        "c.app(['--help'], result_action='return_value')\n"
        "heavy = {'uvicorn', 'starlette', 'apsw', 'httptools', 'uvloop', 'prometheus_client'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=60)


def test_gateway_never_imports_analytics(grid: GridProcess) -> None:
    """No pyarrow, duckdb, ray, numba or pandas is mapped into the running gateway, and it stays small."""
    assert grid.process is not None
    maps = Path(f"/proc/{grid.process.pid}/maps").read_text()
    for library in ("pyarrow", "duckdb", "ray/_raylet", "numba", "pandas", "numpy", "apsw"):
        assert f"site-packages/{library}" not in maps
    assert grid.ask("status")["rss_mb"] < 300


def test_keys_and_data_are_private(grid: GridProcess) -> None:
    """Only the owner can read the data directory, the keys, the ledger's socket and the journal."""
    for path in (grid.data, grid.data / "keys.json", grid.data / "ledger.sock", *grid.data.glob("journal/*/*/*.twj")):
        assert path.stat().st_mode & 0o077 == 0, path
    secret = grid.keys.key.encode()
    for path in grid.data.rglob("*"):
        if path.is_file() and path.name != "keys.json":
            assert secret not in path.read_bytes(), path


def test_prompts_stay_out_of_data_and_logs(grid: GridProcess) -> None:
    """What people ask is nowhere on the disk: not in the journal, the ledger or the engine's log."""
    grid.client().chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": "xylophone-marmalade-4711"}], max_tokens=2
    )
    for path in (*grid.data.rglob("*"), grid.log):
        if path.is_file():
            assert b"marmalade" not in path.read_bytes(), path


def test_grid_in_front_of_a_grid(grid: GridProcess, tmp_path: Path) -> None:
    """Any OpenAI-compatible server can be a replica: here another grid, with its own key, books and receipts.

    Nothing is known of the upstream's energy, so the receipt has no power, site or device line instead of zeros.
    """
    file = tmp_path / "front.toml"
    file.write_text(
        '[[site]]\nname = "cloud"\n'
        f'[[replica]]\nmodel = "small"\nurl = "{grid.run.url}"\nupstream_model = "{MODEL}"\n'
        'api_key_env = "UPSTREAM_KEY"\n'
    )
    front = GridProcess(tmp_path / "front", "--grid", str(file), env={"UPSTREAM_KEY": grid.keys.key})
    front.start().wait_ready()
    chunks = list(
        front.client().chat.completions.create(
            model="small",
            messages=[{"role": "user", "content": "hi"}],
            max_tokens=4,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert chunks[-1].usage is not None
    cost = (chunks[-1].model_extra or {})["tokenworks"]
    assert "energy_mj" not in cost
    receipt = front.ask("receipt", "show", cost["receipt"])
    assert [line["layer"] for line in receipt["lines"]] == ["engine", "exchange", "brain", "agents"]
    assert front.ask("books")["closed"]
    assert front.stop() == 0
