"""Floor 1 and the attribution above it: signals of many zones over years, and an hour of a large site.

Four years of hourly prices of 18 zones are made up in the format of public price tables (gzip CSV, some gaps, some
negative) or taken from a folder of such files: ``make bench-power``, or ``make bench-power ARGS=FOLDER``.
"""

from __future__ import annotations

import gzip
import random
import sys
import tempfile
import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

from bench.results_file import merge

from tokenworks.power.signal import mean
from tokenworks.power.tables import HOUR_NS, load

ZONES, YEARS, SEED = 18, 4, 7
START = datetime(2021, 1, 1, tzinfo=UTC)


def measure() -> Mapping[str, float]:
    """All figures of ``bench/results/power.json`` that are taken here."""
    with tempfile.TemporaryDirectory(prefix="tokenworks-bench-") as folder:
        synthesise(Path(folder))
        return {"load_4y_18_zones_s": load_and_query(Path(folder))}


def synthesise(folder: Path) -> None:
    """One file per zone, the same on every machine."""
    hours = (datetime(START.year + YEARS, 1, 1, tzinfo=UTC) - START) // timedelta(hours=1)
    stamps = [(START + timedelta(hours=hour)).strftime("%Y-%m-%dT%H:%MZ") for hour in range(hours)]
    for zone in range(ZONES):
        chance = random.Random(SEED * 1_000 + zone)
        cells = ("" if chance.random() < 0.003 else f"{chance.gauss(80, 60):.2f}" for _ in stamps)
        text = "ts_utc,price_per_mwh\n" + "".join(f"{when},{cell}\n" for when, cell in zip(stamps, cells, strict=True))
        (folder / f"zone-{zone:02}.csv.gz").write_bytes(gzip.compress(text.encode(), compresslevel=6, mtime=0))


def load_and_query(folder: Path) -> float:
    """Seconds to read every zone, walk through its steps and ask for the mean of every month."""
    began = time.perf_counter()
    for path in sorted(folder.glob("*.csv.gz")):
        signal = load(path, "price_per_mwh")
        first, last = int(signal.starts[0]), int(signal.ends[-1])
        steps = signal.over(first, last)
        assert sum(step.value is None for step in steps) < len(steps) / 2
        for month in range(first, last, 730 * HOUR_NS):
            mean(signal, month, month + 730 * HOUR_NS)
    return round(time.perf_counter() - began, 2)


if __name__ == "__main__":
    found = {"load_4y_18_zones_s": load_and_query(Path(sys.argv[1]))} if sys.argv[1:] else measure()
    print(found)
    if not sys.argv[1:]:
        print(merge("power", found))
