"""Things that die: engine, ledger, gateway, disk. Nothing acknowledged is lost or charged twice, errors are plain."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from pathlib import Path
from typing import Any

import openai
import pytest
from tests.support.grid_process import MODEL, GridProcess, wait_until

HELLO: Any = [{"role": "user", "content": "Tell me a long story about a waterworks."}]
pytestmark = pytest.mark.engine


def test_engine_killed_in_mid_stream(own_grid: GridProcess) -> None:
    """The stream ends with an error event, what was delivered is settled, and the engine comes back by itself."""
    own_grid.start().wait_ready()
    (engine,) = own_grid.children()["engine"]
    stream = own_grid.client().chat.completions.create(model=MODEL, messages=HELLO, max_tokens=1500, stream=True)
    receipt_id = stream.response.headers["x-tokenworks-receipt"]
    seen = 0

    def read() -> None:
        nonlocal seen
        for chunk in stream:
            seen += bool(chunk.choices and chunk.choices[0].delta.content)
            if seen == 5:
                os.kill(engine, signal.SIGKILL)

    with pytest.raises(openai.APIError) as caught:
        read()
    assert caught.value.code == "engine_failed"
    receipt = own_grid.ask("receipt", "show", receipt_id)
    assert receipt["lines"][-1]["ending"] == "engine_failed"
    assert receipt["usage"]["certainty"] == "counted"
    assert receipt["usage"]["output"] >= seen
    with pytest.raises(openai.APIStatusError) as down:
        own_grid.client(max_retries=0).chat.completions.create(model=MODEL, messages=HELLO, max_tokens=2)
    assert down.value.status_code == 503
    assert down.value.response.headers["retry-after"]
    assert own_grid.get("/healthz")[0] == 503
    wait_until(lambda: own_grid.get("/healthz")[0] == 200, 30, "the engine to be restarted")
    own_grid.client().chat.completions.create(model=MODEL, messages=HELLO, max_tokens=2)
    assert own_grid.ask("books")["closed"]


def test_ledger_killed_under_load(own_grid: GridProcess) -> None:
    """Requests go on while the ledger process restarts; afterwards every one of them is in the books once."""
    own_grid.start().wait_ready()
    (ledger,) = own_grid.children()["ledger"]
    done = []
    for number in range(12):
        if number == 4:
            os.kill(ledger, signal.SIGKILL)
        answer = own_grid.client().chat.completions.with_raw_response.create(model=MODEL, messages=HELLO, max_tokens=2)
        done.append(answer.headers["x-tokenworks-receipt"])
    wait_until(lambda: own_grid.get(f"/v1/receipts/{done[-1]}", own_grid.keys.key)[0] == 200, 15, "the ledger")
    report = own_grid.ask("books")
    assert report["closed"]
    assert report["receipts"] == len(done) == len(set(done))


def test_gateway_killed_under_load_loses_nothing_acknowledged(own_grid: GridProcess) -> None:
    """kill -9 in the middle of several streams, then start again: books close, acknowledged responses have receipts.

    Acknowledged means that the client saw the end of its answer. Holds of the others return; nothing is held.
    """
    own_grid.start().wait_ready()
    acknowledged: list[str] = []
    stop = threading.Event()

    def load(number: int) -> None:
        client = own_grid.client(max_retries=0)
        while not stop.is_set():
            try:
                stream = client.chat.completions.create(
                    model=MODEL, messages=HELLO, max_tokens=5 + 3 * number, stream=True
                )
                receipt_id = stream.response.headers["x-tokenworks-receipt"]
                for _ in stream:
                    pass
                acknowledged.append(receipt_id)
            except openai.APIError:
                return

    threads = [threading.Thread(target=load, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    wait_until(lambda: len(acknowledged) >= 8, 60, "some answers")
    assert own_grid.process is not None
    own_grid.process.send_signal(signal.SIGSTOP)  # so that no answer can end between the kill and the list
    time.sleep(0.3)
    stop.set()
    own_grid.kill()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    own_grid.start().wait_ready()
    report = own_grid.ask("books")
    assert report["closed"], report["checks"]
    assert report["open_holds"] == 0
    assert report["receipts"] >= len(acknowledged)
    for receipt_id in acknowledged:
        status, receipt = own_grid.get(f"/v1/receipts/{receipt_id}", own_grid.keys.key)
        assert status == 200
        assert receipt["lines"][-1]["ending"] == "complete"
    held = [budget["held_nano"] for account in own_grid.ask("account", "list") for budget in account["budgets"]]
    assert held == [0] * len(held)
    wait_until(
        lambda: own_grid.ask("books")["receipts_without_energy_record"] == 0,
        10,
        "energy of what the dead gateway settled",
    )
    assert own_grid.stop() == 0
    assert own_grid.ask("books")["closed"]


def test_books_at_rest(own_grid: GridProcess) -> None:
    """After Ctrl-C everything is settled, metered and closed, and the books can be read with no grid running."""
    own_grid.start().wait_ready()
    own_grid.client().chat.completions.create(model=MODEL, messages=HELLO, max_tokens=4)
    children = own_grid.children()
    assert own_grid.stop() == 0
    for pid in [*children["engine"], *children["ledger"]]:
        assert not Path(f"/proc/{pid}").exists()
    report = own_grid.ask("books")
    assert report["closed"]
    assert report["receipts"] == 1
    assert report["receipts_without_energy_record"] == 0
    assert own_grid.ask("receipt", "show")["status"] == "final"
    assert own_grid.cli("status").returncode == 5


def test_ctrl_c_lets_a_stream_end(own_grid: GridProcess) -> None:
    """A stream that is running when the grid is told to stop still comes to its end and is settled."""
    own_grid.start().wait_ready()
    client = openai.OpenAI(base_url=f"{own_grid.run.url}/v1", api_key=own_grid.keys.key)
    stream = client.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=60, stream=True)
    next(iter(stream))
    assert own_grid.process is not None
    own_grid.process.send_signal(signal.SIGINT)
    last = None
    for chunk in stream:
        last = chunk
    assert last is not None
    assert last.choices[0].finish_reason in ("length", "stop")
    client.close()
    assert own_grid.process.wait(30) == 0
    assert own_grid.ask("receipt", "show")["lines"][-1]["ending"] == "complete"


def test_port_taken(own_grid: GridProcess) -> None:
    """A taken port is one sentence with what to do, and a status that is not 0."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        done = own_grid.cli("up", "--port", port)
    assert done.returncode == 5
    assert f"port {port} on 127.0.0.1 is taken" in done.stderr
    assert "TOKENWORKS_PORT" in done.stderr
    assert "Traceback" not in done.stderr


def test_data_directory_of_a_newer_version(own_grid: GridProcess) -> None:
    """A newer format is refused in one sentence, and not a byte of it is touched."""
    own_grid.data.mkdir()
    (own_grid.data / "version").write_text("99\n")
    done = own_grid.cli("up")
    assert done.returncode == 1
    assert "has format '99'" in done.stderr
    assert "Traceback" not in done.stderr
    assert [path.name for path in own_grid.data.iterdir()] == ["version"]
    assert (own_grid.data / "version").read_text() == "99\n"


def test_second_grid_on_the_same_data(own_grid: GridProcess) -> None:
    """Two grids never share a data directory; the second says which process has it."""
    own_grid.start().wait_ready()
    done = own_grid.cli("up", "--port", "0")
    assert done.returncode == 1
    assert own_grid.process is not None
    assert str(own_grid.process.pid) in done.stderr
    assert own_grid.get("/healthz")[0] == 200


def test_disk_full(tmp_path: Path) -> None:
    """When the disk takes no more, requests get a clear 503 and nothing is damaged; with room again all is well.

    A file-size limit stands in for the full disk: the journal's write() fails in the same place.
    """
    limited = GridProcess(tmp_path / "data")
    limited.start().wait_ready()
    assert limited.process is not None
    import resource

    limited.client().chat.completions.create(model=MODEL, messages=HELLO, max_tokens=2)
    journal = limited.ask("status")["journal"]["offset"]
    resource.prlimit(limited.process.pid, resource.RLIMIT_FSIZE, (journal + 100, resource.RLIM_INFINITY))
    with pytest.raises(openai.APIStatusError) as caught:
        limited.client(max_retries=0).chat.completions.create(model=MODEL, messages=HELLO, max_tokens=2)
    assert caught.value.status_code == 503
    assert caught.value.code == "exchange_unavailable"
    assert "disk" in str(caught.value.response.json()["error"]["hint"])
    assert limited.ask("books")["closed"]
    resource.prlimit(limited.process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    limited.client().chat.completions.create(model=MODEL, messages=HELLO, max_tokens=2)
    assert limited.stop() == 0
    report = limited.ask("books")
    assert report["closed"]
    assert report["receipts"] == 2
    assert report["open_holds"] == 0


def test_disk_full_at_the_start(tmp_path: Path) -> None:
    """A data directory that cannot be written is one sentence and a status that is not 0."""
    done = GridProcess(Path("/proc/tokenworks-data")).env
    process = GridProcess(tmp_path / "data")
    process.env = {**done, "TOKENWORKS_DATA": "/proc/tokenworks-data"}
    refused = process.cli("up")
    assert refused.returncode == 1
    assert "cannot use the data directory" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_durable_grid(tmp_path: Path) -> None:
    """With the journal policy ``durable`` each answer waits for the disk; books close as ever."""
    file = tmp_path / "grid.toml"
    file.write_text('[exchange]\njournal = "durable"\n')
    durable = GridProcess(tmp_path / "data", "--grid", str(file))
    durable.start().wait_ready()
    options: Any = {"model": MODEL, "messages": HELLO, "max_tokens": 3}
    assert durable.client().chat.completions.create(**options).choices
    assert list(durable.client().chat.completions.create(stream=True, **options))
    assert durable.stop() == 0
    report = durable.ask("books")
    assert report["closed"]
    assert report["receipts"] == 2
