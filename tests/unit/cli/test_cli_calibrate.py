"""``tokenworks calibrate`` on a scripted engine: tables, JSON, and the file that it leaves."""

from __future__ import annotations

import asyncio
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from tests.support.scripted_engine import Engine, serving

from tokenworks.calibrations import embedded_engine, read_all
from tokenworks.cli import main
from tokenworks.datadir import Run
from tokenworks.device.discovery import discover
from tokenworks.engine import calibrate as module
from tokenworks.engine.local import Door
from tokenworks.engine.perf.calibrated import Target


@pytest.fixture
def url() -> Iterator[str]:
    """An engine in a thread of its own."""
    said: list[str] = []
    ready, over = threading.Event(), threading.Event()

    async def serve() -> None:
        engine = Engine(0.001, 4)
        running = asyncio.create_task(engine.run())
        async with serving(engine) as at:
            said.append(at)
            ready.set()
            await asyncio.to_thread(over.wait)
        running.cancel()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    assert ready.wait(5)
    yield said[0]
    over.set()
    thread.join()


def test_it_shows_and_keeps_what_it_measured(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The table and the JSON hold the same; with a device there are limits beside what was measured."""
    monkeypatch.setenv("TOKENWORKS_DATA", str(tmp_path))
    monkeypatch.setattr(module, "CHECK_OUTPUT", 8)
    model = "meta-llama/Llama-3.1-8B-Instruct"
    asked = ["calibrate", url + "/v1", "--model", model, "--streams", "2"]
    with pytest.raises(SystemExit, match=r"^0$"):
        main([*asked, "--device", "h100-sxm", "--json"])
    shown = capsys.readouterr()
    found = json.loads(shown.out)
    assert found["target"] == {
        "model": model, "url": url, "engine": None, "device": "nvidia-h100-sxm", "threads": None,
    }  # fmt: skip
    parts = {part["name"]: part for part in found["checks"][-1]["parts"]}
    assert parts["weights"]["limit_s"] == pytest.approx(2 * 7.5e9 / 3.35e12, rel=0.05)
    assert "off on loads kept out of the fit" in shown.err
    kept = read_all(tmp_path)
    assert [each.target.url for each in kept] == [url]
    with pytest.raises(SystemExit, match=r"^0$"):
        main([*asked, "--out", str(tmp_path / "mine.json")])
    shown = capsys.readouterr()
    assert "weights, per layer" in shown.out
    assert (tmp_path / "mine.json").exists()


def test_without_a_url_it_is_the_embedded_engine_of_the_running_grid(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Found through its door, with the limits of this processor measured; another model is refused."""
    monkeypatch.setenv("TOKENWORKS_DATA", str(tmp_path))
    monkeypatch.setattr(module, "CHECK_OUTPUT", 8)
    (tmp_path / "logs").mkdir()
    (tmp_path / "run.json").write_bytes(msgspec.json.encode(Run(url=url, pid=os.getpid(), started_ns=0)))
    door = Door(url=url, api_key="k", model="smollm2-135m-instruct", threads=1)
    (tmp_path / "logs" / "one.door").write_bytes(msgspec.json.encode(door))
    assert main(["calibrate", "--model", "another"]) == 3
    with pytest.raises(SystemExit, match=r"^0$"):
        main(["calibrate", "--streams", "2"])
    assert "per-layer overhead" in capsys.readouterr().out
    (kept,) = read_all(tmp_path)
    assert kept.target == Target(
        model=door.model, engine=embedded_engine(), device=discover()[0].name, threads=1, url=None
    )
    weights = next(part for part in kept.checks[0].parts if part.name == "weights")
    assert weights.limit_s is not None
    assert 98_362_432 / 1e12 < weights.limit_s < 98_362_432 / 1e9, "between 1 GB/s and 1 TB/s"
