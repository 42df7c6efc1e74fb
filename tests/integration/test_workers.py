"""Several gateway processes on one port: one budget, one set of books, whoever dies and whoever is told to leave."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from bench.gateway.words import MODEL
from tests.support.grid_process import GridProcess, wait_until

AFFORDS = 300
"""Requests that the first account's budget pays for, to the last nano."""
OUTPUT = 61
"""What the mock makes of request number 60, and what is asked for: the worst case is the case."""
GRID = """
[gateway]
workers = 2
[exchange]
budget = "{budget} USD"
[[exchange.price]]
model = "{model}"
input = "0 USD/Mtok"
output = "1 USD/Mtok"
[[replica]]
model = "{model}"
url = "{url}/v1"
slots = 64
"""


class Slow(BaseHTTPRequestHandler):
    """An engine that takes its time: sixty events, twenty a second."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.end_headers()
        for number in range(60):
            time.sleep(0.05)
            self._event({"choices": [{"index": 0, "delta": {"content": f" {number}"}}]})
        self._event({"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 60, "total_tokens": 65}})
        self.wfile.write(b"data: [DONE]\n\n")

    def _event(self, event: object) -> None:
        self.wfile.write(b"data: " + json.dumps(event).encode() + b"\n\n")

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):  # whoever asked is gone
            super().handle()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - its name there
        """Say nothing."""


@pytest.fixture
def slow_engine() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Slow) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


@pytest.fixture
def mock_engine() -> Iterator[str]:
    """The engine of the gateway's benchmark."""
    command = [sys.executable, "-m", "bench.gateway.mock"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        process.kill()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Any]:
    made: list[GridProcess] = []

    def start(url: str) -> GridProcess:
        file = tmp_path / "grid.toml"
        file.write_text(GRID.format(budget=f"{AFFORDS * OUTPUT / 1e6:.6f}", model=MODEL, url=url))
        made.append(GridProcess(tmp_path / "data", "--grid", str(file)).start().wait_ready())
        wait_until(lambda: all(pid(made[0], name) for name in ("gateway-1", "gateway-2")), 20, "both gateways")
        return made[0]

    yield start
    for grid in made:
        grid.stop()


def gateways(grid: GridProcess) -> dict[str, dict[str, Any]]:
    status, found = grid.get("/v1/status", grid.keys.admin_key)
    return {each["name"]: each for each in found["gateways"]} if status == 200 else {}


def pid(grid: GridProcess, name: str) -> int | None:
    """Of a gateway that answers: asked on new connections, which land on any of them."""
    for _ in range(40):
        status, found = grid.get("/v1/status", grid.keys.admin_key)
        if status == 200 and found["gateway"] == name:
            return int(found["pid"])
    return None


def ask(grid: GridProcess, stream: bool = False, once: str = "", output: int = OUTPUT) -> http.client.HTTPConnection:
    """One request on a connection of its own, so that any gateway may get it; ``once`` is its Idempotency-Key."""
    parts = urlsplit(grid.run.url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=30)
    message = {"role": "user", "content": f"#{60:012d}"}
    body = json.dumps({"model": MODEL, "messages": [message], "max_tokens": output, "stream": stream})
    headers = {"authorization": f"Bearer {grid.keys.key}"} | ({"idempotency-key": once} if once else {})
    try:
        connection.request("POST", "/v1/chat/completions", body, headers)
    except OSError:  # whoever got the connection died
        connection.close()
        raise
    return connection


def said(grid: GridProcess, once: str, **fields: Any) -> tuple[int, bytes, dict[str, str]]:
    """Status, body and headers."""
    with contextlib.closing(ask(grid, once=once, **fields)) as connection:
        response = connection.getresponse()
        return response.status, response.read(), {name.lower(): value for name, value in response.getheaders()}


def answer(grid: GridProcess) -> tuple[int, str | None]:
    """Status and receipt; 0 when nobody answers."""
    try:
        connection = ask(grid)
    except OSError:
        return 0, None
    try:
        response = connection.getresponse()
        response.read()
        return response.status, response.getheader("x-tokenworks-receipt")
    except (OSError, http.client.HTTPException):
        return 0, None
    finally:
        connection.close()


def spent_nano(grid: GridProcess) -> int:
    """Of the first account's budget, by the ledger; -1 when it was not told."""
    parts = urlsplit(grid.run.url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=30)
    try:
        connection.request("POST", "/v1/admin/accounts", "{}", {"authorization": f"Bearer {grid.keys.admin_key}"})
        accounts = json.loads(connection.getresponse().read())
        return int(next(each for each in accounts if each["id"] == "default")["budgets"][0]["spent_nano"])
    except (OSError, http.client.HTTPException, TypeError):
        return -1
    finally:
        connection.close()


def spend_all(grid: GridProcess) -> list[str]:
    """Eight clients ask until the budget is spent, and a while longer; the receipts of who was answered."""
    served: list[str] = []
    over = threading.Event()

    def client() -> None:
        while not over.is_set():
            status, receipt = answer(grid)
            if status == 200:
                assert receipt is not None
                served.append(receipt)
            else:
                over.wait(0.05)

    threads = [threading.Thread(target=client) for _ in range(8)]
    for thread in threads:
        thread.start()
    try:
        wait_until(lambda: spent_nano(grid) >= AFFORDS * OUTPUT * 1000, 60, "the budget to be spent")
        over.wait(0.5)
    finally:
        over.set()
        for thread in threads:
            thread.join()
    return served


def closed(grid: GridProcess) -> dict[str, Any]:
    """The books, which close, with nothing held and the budget spent to its last nano."""
    report: dict[str, Any] = grid.ask("books")
    assert report["closed"], report["checks"]
    assert report["open_holds"] == 0
    (budget,) = next(a["budgets"] for a in grid.ask("account", "list") if a["id"] == "default")
    assert (budget["spent_nano"], budget["held_nano"]) == (AFFORDS * OUTPUT * 1000, 0)
    assert report["receipts"] == AFFORDS
    return report


def test_two_gateways_spend_one_budget_to_the_last_nano(start: Any, mock_engine: str) -> None:
    """Never more than it affords, and all of it; both serve, and any of them shows both."""
    grid = start(mock_engine)
    assert grid.cli("account", "set", "default", "--no-clamp").returncode == 0
    served = spend_all(grid)
    assert len(served) == len(set(served)) == AFFORDS
    closed(grid)
    found = gateways(grid)
    assert all(each["requests"] > AFFORDS // 8 for each in found.values())
    assert sum(each["requests"] for each in found.values()) == AFFORDS
    shown = grid.cli("status").stdout
    assert all(str(each["pid"]) in shown for each in found.values())
    assert grid.get(f"/v1/receipts/{served[0]}", grid.keys.key)[0] == 200


def test_a_gateway_killed_under_load(start: Any, mock_engine: str) -> None:
    """The other serves on, it comes back, and what it had leased and held is spent by whoever is asked."""
    grid = start(mock_engine)
    assert grid.cli("account", "set", "default", "--no-clamp").returncode == 0
    (worker,) = grid.children()["gateway"]

    def kill() -> None:
        wait_until(lambda: (gateways(grid).get("gateway-2") or {"requests": 0})["requests"] > 10, 20, "some requests")
        os.kill(worker, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    served = spend_all(grid)
    killer.join()
    assert set(served) <= set(grid.ask("receipt", "list", "--limit", "1000"))
    assert len(served) >= AFFORDS - 8  # those that were settled and whose answers died with it
    closed(grid)
    wait_until(lambda: pid(grid, "gateway-2") not in (None, worker), 20, "it to come back")
    assert gateways(grid)["gateway-2"]["restarts"] == 1


@pytest.mark.parametrize("who", ["gateway-2", "all"])
def test_who_leaves_lets_its_streams_end(start: Any, slow_engine: str, who: str) -> None:
    """SIGTERM to one gateway or to the grid cuts no stream; one that left alone is started again."""
    grid = start(slow_engine)
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(contextlib.closing(ask(grid, stream=True))) for _ in range(12)]
        running = [client.getresponse() for client in clients]
        wait_until(lambda: all(each["open_holds"] for each in gateways(grid).values()), 5, "streams at both")
        assert grid.process is not None
        (worker,) = grid.children()["gateway"]
        os.kill(worker if who == "gateway-2" else grid.process.pid, signal.SIGTERM)
        assert all(response.read().endswith(b"data: [DONE]\n\n") for response in running)
    receipts = [response.headers["x-tokenworks-receipt"] for response in running]
    if who == "all":
        assert grid.process.wait(20) == 0
        assert not Path(f"/proc/{worker}").exists()
        grid.start().wait_ready()
    else:
        wait_until(lambda: pid(grid, who) not in (None, worker), 20, "it to come back")
    shown = [grid.get(f"/v1/receipts/{receipt}", grid.keys.admin_key)[1] for receipt in receipts]
    assert {each["lines"][-1]["ending"] for each in shown} == {"complete"}
    report = grid.ask("books")
    assert report["closed"]
    assert (report["receipts"], report["open_holds"]) == (len(receipts), 0)


def test_gateways_follow_the_first(start: Any, mock_engine: str) -> None:
    """kill -9 of the first process ends all others at once, and the next start finds the books whole."""
    grid = start(mock_engine)
    assert all(answer(grid)[0] == 200 for _ in range(12))
    grid.kill()
    grid.start().wait_ready()
    wait_until(lambda: pid(grid, "gateway-2") is not None, 20, "both gateways")
    report = grid.ask("books")
    assert report["closed"]
    assert (report["receipts"], report["open_holds"]) == (12, 0)


@pytest.mark.parametrize("stream", [False, True])
def test_an_idempotency_key_is_known_to_all_gateways(start: Any, mock_engine: str, stream: bool) -> None:
    """Whoever is asked, and however many at once: one call of the engine, one bill, and the same answer to the byte."""
    grid = start(mock_engine)
    keys = [f"key-{number}" for number in range(8)]
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda key: said(grid, key, stream=stream), keys * 12))
    assert {status for status, _, _ in answers} == {200}
    for number in range(len(keys)):
        mine = answers[number :: len(keys)]
        assert len({(body, headers["x-tokenworks-receipt"], headers["content-type"]) for _, body, headers in mine}) == 1
        assert sum("idempotent-replayed" not in headers for _, _, headers in mine) == 1
    status, body, _ = said(grid, keys[0], stream=stream, output=5)
    assert (status, json.loads(body)["error"]["code"]) == (422, "idempotency_key_reused")
    report = grid.ask("books")
    assert (report["closed"], report["receipts"], report["open_holds"]) == (True, len(keys), 0)
    wait_until(lambda: {each["requests"] for each in gateways(grid).values()} == {4}, 2, "both to own some keys")
    assert {path.stat().st_mode & 0o777 for path in grid.data.glob("gateway-*.sock")} == {0o600}


def test_a_client_that_leaves_is_heard_by_the_gateway_of_its_key(start: Any, slow_engine: str) -> None:
    """Its stream ends at whoever serves it, and is charged for what was delivered; those that stay get it whole."""
    grid = start(slow_engine)
    running = [ask(grid, stream=True, once=f"leaves-{number}") for number in range(8)]
    heard = [connection.getresponse() for connection in running]
    assert all(response.readline() for response in heard)
    for connection, response in zip(running, heard, strict=True):
        response.close()
        connection.close()
    wait_until(lambda: not sum(each["open_holds"] for each in gateways(grid).values()), 2, "the streams to end")
    wait_until(lambda: grid.ask("books")["receipts"] == len(heard), 5, "them to be booked")
    shown = [grid.get(f"/v1/receipts/{r.headers['x-tokenworks-receipt']}", grid.keys.admin_key)[1] for r in heard]
    assert {each["lines"][-1]["ending"] for each in shown} == {"client_gone"}


def test_a_key_whose_gateway_is_dead_waits_for_it(start: Any, slow_engine: str) -> None:
    """Streams that it served are cut, for whoever they were passed on; new ones are told when to come again."""
    grid = start(slow_engine)
    keys = [f"dies-{number}" for number in range(32)]
    running = [ask(grid, stream=True, once=key) for key in keys]
    heard = [connection.getresponse() for connection in running]
    assert all(response.readline() for response in heard)
    (worker,) = grid.children()["gateway"]
    os.kill(worker, signal.SIGKILL)
    statuses, whole = list[int](), list[bool]()
    with ThreadPoolExecutor(len(keys)) as pool:
        for asked in [pool.submit(said, grid, key + "-new", stream=True) for key in keys]:
            with contextlib.suppress(OSError, http.client.HTTPException):  # a connection that it had not accepted yet
                status, body, headers = asked.result()
                statuses.append(status)
                if status == 503:
                    assert "Idempotency-Key" in json.loads(body)["error"]["message"]
                    assert headers["retry-after"]
    for connection, response in zip(running, heard, strict=True):
        with contextlib.closing(connection), contextlib.closing(response):
            try:
                whole.append(response.read().endswith(b"data: [DONE]\n\n"))
            except (OSError, http.client.HTTPException):
                whole.append(False)
    assert 0 < sum(whole) < len(keys), "some were its own, some were not"
    assert {503} <= {*statuses} <= {200, 503}
    wait_until(lambda: pid(grid, "gateway-2") not in (None, worker), 20, "it to come back")
    with ThreadPoolExecutor(len(keys)) as pool:
        assert {status for status, _, _ in pool.map(lambda key: said(grid, key + "-again", stream=True), keys)} == {200}
    report = grid.ask("books")
    assert (report["closed"], report["open_holds"]) == (True, 0)
