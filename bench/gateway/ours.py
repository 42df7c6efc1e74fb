"""Tokenworks as a user starts it: ``tokenworks up`` with a grid file, four budgets in a path, a package, real books."""

from __future__ import annotations

import contextlib
import http.client
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
from bench.gateway.load import Outcome
from bench.gateway.processes import LEDGER_NICE, Cores, move, running, tail, wait_until
from bench.gateway.words import MODEL

from tokenworks.datadir import Keys, read_keys, read_run

PATH = ("org", "account", "project", "agent")
READY_S_MAX = 60
DRAIN_S_MAX = 900
_BIG = 1 << 60
GRID = """
name = "bench"

[exchange]
journal = "{journal}"
budget = "1 USD"

[[exchange.rate]]
model = "{model}"
input = 1
cached_input = 0.1
cache_write = 1
output = 4
reasoning = 4

[[exchange.price]]
model = "{model}"
input = "0.02 USD/Mtok"
output = "0.06 USD/Mtok"

[[replica]]
name = "mock"
model = "{model}"
url = "{url}/v1"
slots = 20000
context = 32768
"""


class Gateway:
    """A running grid with its books."""

    def __init__(self, process: subprocess.Popen[bytes], data: Path, port: int, keys: Keys) -> None:
        self.process, self.data, self.port, self._keys = process, data, port, keys
        self.headers: dict[str, str] = {}

    def ask(self, method: str, path: str, body: object = None) -> Any:
        """A question to the running gateway with the administrator's key. Raises OSError when it is not answered."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            headers = {"authorization": f"Bearer {self._keys.admin_key}"}
            connection.request(method, path, None if body is None else msgspec.json.encode(body), headers)
            response = connection.getresponse()
            said = response.read()
            if response.status != 200:
                raise OSError(f"{path}: {response.status} {said[:300]!r}")
            return msgspec.json.decode(said)
        finally:
            connection.close()

    def office(self, name: str, **params: object) -> Any:
        """One of the ledger's offices."""
        return self.ask("POST", f"/v1/admin/{name}", params)

    def open_books(self) -> None:
        """A path of four budgets with two limits each, a package that covers all, and a key at its end."""
        self.office("account_create", account=PATH[0], limit_nano=_BIG, limit_ustu=_BIG)
        for parent, name in pairwise(PATH):
            self.office("budget_set", budget=name, parent=parent, limit_nano=_BIG, limit_ustu=_BIG)
        terms = {"code": "p", "name": "p", "size_ustu": _BIG, "price_nano": 10**9, "validity_ns": None}
        self.office("package_define", package=terms)
        self.office("grant_sell", account=PATH[0], package="p", grant="grant-1")
        self.headers = {"authorization": f"Bearer {self.office('key_create', budget=PATH[-1])['key']}"}

    def ledger_pid(self) -> int:
        """The process that keeps the books."""
        pid: int = self.ask("GET", "/v1/status")["ledger"]["pid"]
        return pid

    def drained(self, since_ns: int, requests: int) -> tuple[dict[str, int], float]:
        """The books' sums since a time, when they hold so many requests; and the seconds until then.

        When they never do, the sums as they are after nothing was added for a while.
        """
        began, found, changed = time.monotonic(), {"receipts": -1}, time.monotonic()
        for _ in wait_until(DRAIN_S_MAX, 0.05):
            with contextlib.suppress(OSError):  # a busy ledger is asked again
                cake = self.office("cake", since_ns=since_ns)
                if cake["receipts"] != found["receipts"]:
                    found, changed = {name: cake[name] for name in ("receipts", "tokens", "ustu")}, time.monotonic()
            if found["receipts"] >= requests or time.monotonic() - changed > 20:
                break
        return found, time.monotonic() - began


def missing(books: Mapping[str, int], out: Outcome) -> str:
    """How the books differ from what the load generator received; empty when they do not."""
    received = {"receipts": out.completed, "tokens": out.prompt + out.completion, "ustu": out.ustu}
    wrong = [
        f"{name} {books.get(name)}, received {value}" for name, value in received.items() if books.get(name) != value
    ]
    if out.ustu_said != out.ustu:
        wrong.append(f"the answers' tokenworks objects add up to {out.ustu_said} millionths of STU, not {out.ustu}")
    return "; ".join(wrong)


@contextlib.contextmanager
def grid(
    work: Path,
    mock_url: str,
    cores: Cores,
    journal: str = "written",
    *,
    plain: bool = False,
) -> Iterator[Gateway]:
    """A grid on a data directory of its own.

    ``plain``: without the compiled request path that ``make fast`` left on PYTHONPATH.

    Raises OSError with the end of its log when it does not become ready.
    """
    work.mkdir()
    file, data, log = work / "grid.toml", work / "data", work / "tokenworks.log"
    file.write_text(GRID.format(journal=journal, model=MODEL, url=mock_url))
    program = [str(Path(sys.executable).with_name("tokenworks")), "up"]
    env = {"TOKENWORKS_DATA": str(data)} | ({"PYTHONPATH": ""} if plain else {})
    with running([*program, "--grid", str(file), "--port", "0"], cores.gateway, log, env) as process:
        gateway = _ready(process, data)
        if gateway is None:
            raise OSError(f"tokenworks did not become ready: {tail(log)}")
        move(gateway.ledger_pid(), cores.ledger, LEDGER_NICE)
        gateway.open_books()
        yield gateway


def _ready(process: subprocess.Popen[bytes], data: Path) -> Gateway | None:
    for _ in wait_until(READY_S_MAX):
        if process.poll() is not None:
            return None
        with contextlib.suppress(OSError, ValueError):
            run, keys = read_run(data), read_keys(data)
            if run is None or keys is None:
                continue
            gateway = Gateway(process, data, int(run.url.rpartition(":")[2]), keys)
            gateway.ask("GET", "/healthz")
            return gateway
    return None


def closed_books(data: Path) -> dict[str, Any]:
    """``tokenworks books`` on a stopped grid: the trial balance from the single lines up."""
    command = [str(Path(sys.executable).with_name("tokenworks")), "books", "--json"]
    done = subprocess.run(command, env={**os.environ, "TOKENWORKS_DATA": str(data)}, capture_output=True, timeout=1800)
    found: dict[str, Any] = msgspec.json.decode(done.stdout)
    return found
