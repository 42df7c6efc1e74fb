"""Calibrations in a data directory, and what a grid takes from them."""

from __future__ import annotations

import logging
from pathlib import Path

import msgspec
import pytest

from tokenworks import gridfile
from tokenworks.calibrations import applied, embedded_engine, read_all, save
from tokenworks.cli import main
from tokenworks.compose import Plan, plan
from tokenworks.core.clock import ManualClock
from tokenworks.core.errors import DataDirError
from tokenworks.core.words import Provenance
from tokenworks.engine.perf.calibrated import Asked, Calibration, Check, Figures, Speed, Target
from tokenworks.engine.perf.iteration import Batch
from tokenworks.engine.record import Replica

EXTERNAL = """
[[replica]]
name = "far"
model = "m"
driver = "external"
url = "http://127.0.0.1:9/v1/"
"""


def calibration(target: Target, made: str = "2026-11-21T00:00:00.000Z") -> Calibration:
    figures = Figures(tokens_s=40.0, tpot_s=0.02, ttft_s=0.5)
    told = msgspec.structs.replace(figures, tokens_s=42.0)
    check = Check(
        users=[[Asked(prompt=10, cached=0, output=5)]], measured=figures, predicted=told,
        batch=Batch(sequences=1, context=12),
    )  # fmt: skip
    return Calibration(
        target=target, made=made, streams=16, seats=4, measurements=9, fit_error=0.01, checks=(check,),
        speed=Speed(
            iteration_s=0.01, sequence_s=0.01, context_s=0.0, prompt_s=0.005, attention_s=0.0, request_s=0.001
        ),
    )  # fmt: skip


def embedded(grid: Plan, **other: object) -> Target:
    spec, device = grid.replicas[0], grid.devices["here"][0]
    target = Target(model=spec.model, engine=embedded_engine(), device=device.name, threads=spec.threads)
    return msgspec.structs.replace(target, **other)


def test_it_is_kept_whole_and_read_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One file for each target, the last one wins; a broken one is told and does not stop a grid."""
    first = calibration(Target(model="m", url="http://e:1"))
    again = msgspec.structs.replace(first, made="2026-11-22T00:00:00.000Z")
    path = save(tmp_path, first)
    assert save(tmp_path, again) == path == tmp_path / "calibrations" / "m-http-e-1.json"
    (tmp_path / "calibrations" / "broken.json").write_text("{")
    with caplog.at_level(logging.WARNING):
        assert read_all(tmp_path) == [again]
    assert "broken.json" in caplog.text
    assert again.provenance is Provenance.MEASURED
    with pytest.raises(DataDirError, match="cannot write"):
        save(tmp_path, first, path / "below-a-file.json")


def test_a_replica_starts_with_what_was_measured_on_it() -> None:
    """Model, processor, threads and engine version must be the same; the newest one counts; receipts cite it."""
    grid = plan(gridfile.default_grid())
    found = applied(grid, [calibration(embedded(grid)), calibration(embedded(grid), "2026-01-01")])
    replica = Replica(found.replicas[0], ManualClock())
    assert replica.decode_tps == pytest.approx(50.0)
    assert replica.prefill_tps == pytest.approx(256 / (0.01 + 256 * 0.005))
    fact = found.facts[0].facts[f"decode_milli_tps:{found.replicas[0].name}"]
    assert (fact.value, fact.provenance, fact.error_permille) == (50_000, Provenance.MEASURED, 50)
    assert fact.source == f"calibrated 2026-11-21 on {embedded_engine()}, 5% off on loads kept out of the fit"
    [load], spec = found.sites[0].loads, found.replicas[0]
    assert load.context_nj == 0
    assert load.prefill_nj == load.busy_mw * 5_000  # 5 ms of a prompt token at full power
    once_s, prompts_s = 0.01 + 0.01 * spec.slots, 0.005 * spec.slots  # as many prompt tokens as sequences
    assert load.stream_mw == round(load.busy_mw * once_s / (once_s + prompts_s))
    others: list[dict[str, object]] = [
        {"model": "m"}, {"engine": "xllamacpp 0"}, {"device": "another"}, {"threads": 99}, {"url": "http://e:1"},
    ]  # fmt: skip
    for other in others:
        assert applied(grid, [calibration(embedded(grid, **other))]) == grid


def test_an_external_replica_is_known_by_its_address() -> None:
    """With or without /v1."""
    grid = plan(gridfile.parse(EXTERNAL, "test"))
    found = applied(grid, [calibration(Target(model="m", url="http://127.0.0.1:9"))])
    assert found.replicas[0].decode_tps == pytest.approx(50.0)
    assert applied(grid, [calibration(Target(model="m", url="http://127.0.0.1:8"))]) == grid


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        ([], 5, "no grid runs here"),
        (["http://127.0.0.1:1"], 5, "Cannot connect"),
        (["nowhere"], 2, "not an http"),
        (["http://127.0.0.1:1", "--device", "b2000"], 3, "b200"),
    ],
)
def test_the_command_tells_what_is_wrong(
    arguments: list[str], status: int, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """One sentence, and nothing is written."""
    monkeypatch.setenv("TOKENWORKS_DATA", str(tmp_path))
    assert main(["calibrate", *arguments]) == status
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
