"""An hour of a 4 MW site attributed at once: 1,500 devices, 5,000,000 requests, every server metered.

Closure is checked on what comes out: the sum of all places less the meter, in millijoules, for energy; money and carbon
are checked too. The works are columns when the clock starts, as a journal of columns would give them.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

import msgspec
import numpy as np
from bench.results_file import merge

from tokenworks.core.units import NS_PER_S
from tokenworks.core.words import Provenance, Sourced, Work
from tokenworks.power.supply import Supply
from tokenworks.site.agent import WORKS_MAX
from tokenworks.site.attribution import close_interval
from tokenworks.site.bulk import Columns, close_columns
from tokenworks.site.facility import Facility, Module
from tokenworks.site.words import ASSUMED_OVERHEAD, Readings, Site, SliceLoad

DEVICES, PER_SERVER, REQUESTS, SEED = 1_500, 8, 5_000_000, 7
HOUR_NS = 3_600 * NS_PER_S


def site() -> Site:
    """A 4 MW block of liquid-cooled 8-device servers."""

    def listed(value: int) -> Sourced:
        return Sourced(value=value, provenance=Provenance.LISTED)

    servers = [f"server-{n // PER_SERVER:03}" for n in range(DEVICES)]
    loads = [
        SliceLoad(
            slice=f"device-{n:04}", server=server, idle_mw=66_000, busy_mw=934_000, power=Provenance.LISTED,
            cost_nano_per_hour=2_000_000_000, stream_mw=500_000, prefill_nj=16_000_000, context_nj=4_000,
            embodied_ug_per_hour=30_000_000,
        )
        for n, server in enumerate(servers)
    ]  # fmt: skip
    return Site(
        name="block", entity="bench", jurisdiction=None, place=None, overhead=ASSUMED_OVERHEAD, loads=tuple(loads),
        supply=Supply(name="grid", price=listed(80_000_000), carbon=listed(480_000_000)),
        hosts_mw=dict.fromkeys(servers, 1_500_000),
        facility=Facility(modules=(Module(name="m", capacity_mw=4 * 10**9, it_mw=3_500_000_000, fixed_mw=20_000_000),)),
    )  # fmt: skip


def works() -> Columns:
    """Requests of some seconds, evenly over devices and the hour."""
    chance = np.random.default_rng(SEED)
    start = chance.integers(-20 * NS_PER_S, HOUR_NS, REQUESTS)
    first = start + chance.integers(1, NS_PER_S, REQUESTS)
    end = first + chance.exponential(10 * NS_PER_S, REQUESTS).astype(np.int64)
    taken = chance.integers(1, 8_000, REQUESTS)
    return Columns(
        [f"device-{n:04}" for n in range(DEVICES)], np.arange(REQUESTS), chance.integers(0, DEVICES, REQUESTS), start,
        first, end, taken, chance.integers(0, taken), chance.integers(1, 2_000, REQUESTS),
    )  # fmt: skip


def measure() -> Mapping[str, float]:
    """Seconds for the hour, and by how much the parts miss the meter."""
    block, columns = site(), works()
    servers = {load.server: 24_000_000_000 for load in block.loads}
    said = Readings(load=4_900_000_000_000, servers=servers, sink_mc=21_000)
    services = {"agents": HOUR_NS, "brain": HOUR_NS // 10}
    began = time.perf_counter()
    head, lines = close_columns(block, 0, HOUR_NS, columns, REQUESTS, services, said)
    took = time.perf_counter() - began
    serving = [msgspec.structs.asdict(line) for line in head.services]
    parts = int(lines["energy_mj"].sum()) + sum(line["energy_mj"] for line in serving)
    error = head.meter_mj - parts - head.idle_mj - head.overhead_mj - head.residual_mj
    money = int(lines["energy_nano"].sum()) + sum(line["energy_nano"] for line in serving)
    assert head.bill_nano == money + (head.idle_nano or 0) + (head.overhead_nano or 0)
    assert int(lines["device_nano"].sum()) + (head.idle_device_nano or 0) == DEVICES * 2_000_000_000
    figures = {"attribute_hour_4mw_s": round(took, 2), "closure_error_mj": abs(error)}
    return {**figures, "close_100k_works_s": closing(block)}


def closing(block: Site) -> float:
    """Seconds in which a site's agent closes a minute with as many works as it knows at most, line by line."""
    chance = np.random.default_rng(SEED)
    spans = np.sort(chance.integers(0, 60 * NS_PER_S, (WORKS_MAX, 2))).tolist()
    known = [
        Work(
            receipt=f"rcpt-{n:06}", replica="r", site="block", slice=f"device-{n % DEVICES:04}", start_ns=start,
            first_ns=None, end_ns=end + 1, input_tokens=500, output_tokens=200,
        )
        for n, (start, end) in enumerate(spans)
    ]  # fmt: skip
    began = time.perf_counter()
    interval = close_interval(block, 0, 60 * NS_PER_S, known, frozenset(), {}, Readings(load=80_000_000_000))
    assert len(interval.requests) == WORKS_MAX
    return round(time.perf_counter() - began, 2)


if __name__ == "__main__":
    found = measure()
    print(found)
    print(merge("power", found))
