"""``make bench-calibrate``: calibrate the embedded engine; how far its predictions are off at 1, 4 and 16 streams.

Loads that judge are kept out of the fit (``tokenworks.engine.calibrate``). Each figure is the median over ROUNDS whole
calibrations: the machine may be busy with other things for one of them.
"""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from statistics import median

import msgspec
from bench.results_file import merge

from tokenworks.core.clock import WallClock
from tokenworks.engine.calibrate import Probe, calibrate
from tokenworks.engine.fleet import Fleet
from tokenworks.engine.local import Door
from tokenworks.engine.openai_compatible import OpenAICompatible
from tokenworks.engine.perf.calibrated import Calibration, Target
from tokenworks.engine.pull import model_cache
from tokenworks.engine.replica import ReplicaSpec

MODEL, STREAMS, ROUNDS = "smollm2-135m-instruct", 16, 3
SLOTS, CONTEXT = 4, 2_048
"""As ``tokenworks up`` starts it without a grid file: of 16 streams, 12 wait."""


async def calibrations(logs: Path) -> list[Calibration]:
    """Of one engine, on one thread, so that the client has the other processor."""
    spec = ReplicaSpec(name="one", model=MODEL, site="here", slice="", slots=SLOTS, context_tokens=CONTEXT)
    fleet, clock = Fleet([spec], WallClock(), logs, model_cache()), WallClock()
    await fleet.start()
    try:
        if not await fleet.wait_ready(600):
            raise SystemExit(f"the engine does not start {fleet.replicas[spec.name].why}")
        door = msgspec.json.decode((logs / "one.door").read_bytes(), type=Door)
        engine = OpenAICompatible(door.url, api_key=door.api_key)
        try:
            return [
                await calibrate(Probe(engine, clock, MODEL), Target(model=MODEL), print, streams=STREAMS)
                for _ in range(ROUNDS)
            ]
        finally:
            await engine.close()
    finally:
        await fleet.stop()


def main() -> None:
    """Measure and merge into ``bench/results/perf.json``."""
    with tempfile.TemporaryDirectory() as folder:
        found = asyncio.run(calibrations(Path(folder)))
    figures: dict[str, float] = {}
    for checks in zip(*(made.checks for made in found), strict=True):
        streams = len(checks[0].users)
        for made in checks:
            off = ", ".join(f"{name} {made.error(name):+.1%}" for name in ("tokens_s", "tpot_s", "ttft_s"))
            print(f"  {streams:2} streams: {made.measured.tokens_s:.1f} tokens/s, predicted: {off}")
        figures[f"calibrated.tokens_s_c{streams}"] = median(made.measured.tokens_s for made in checks)
        figures[f"calibrated.tokens_err_c{streams}"] = median(abs(made.error("tokens_s")) for made in checks)
        figures[f"calibrated.ttft_err_c{streams}"] = median(abs(made.error("ttft_s")) for made in checks)
    figures["calibrated_embedded_err"] = max(value for name, value in figures.items() if "tokens_err" in name)
    figures = {name: round(value, 4) for name, value in figures.items()}
    print(f"  calibrated_embedded_err {figures['calibrated_embedded_err']:.1%} -> {merge('perf', figures)}")


if __name__ == "__main__":
    main()
