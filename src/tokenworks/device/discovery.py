"""The words of discovery, and this machine's processor, read from what Linux says about itself.

Everything is read through a port (a path in, its text or None out), so tests feed recorded machines.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from functools import cache
from importlib.resources import files
from pathlib import Path, PurePosixPath

import msgspec

from tokenworks.core.units import rate_of
from tokenworks.core.words import Provenance, Sourced, Word
from tokenworks.device.catalogue import Accelerator, catalogue

Read = Callable[[str], str | None]
Names = Callable[[str], list[str]]

CPU = "cpu"
FILE_CHARS_MAX, FOLDER_MAX = 4 << 20, 4_096
HOURS_PER_YEAR = 8_766
POWER_ERROR_PERMILLE = 500
"""Per-thread averages of a whole cloud fleet: one machine may be off by half."""
COST_ERROR_PERMILLE = 1_000
"""The price of one processor stands for a machine: board, memory and chassis may double it."""


class Device(Word, frozen=True):
    """One device of this machine, as far as this process may use it."""

    id: str
    catalogue_id: str | None
    """None: the catalogue has no row for this kind of machine, and nothing is known of its power."""
    name: str
    vendor: str
    kind: str
    """``CPU``, or an accelerator as its vendor calls it: "gpu", "npu", "mlu", "dcu", "xpu"."""
    threads: int
    """What compute is shared out in: hardware threads that this process may use; 1,000 for an accelerator."""
    memory_bytes: int
    idle_mw: Sourced | None
    max_mw: Sourced | None
    """Of the whole device, that is of the threads above."""
    cost_nano_per_hour: Sourced | None
    """Straight-line depreciation of the whole device; None: unknown, or its price is in another currency."""
    embodied_ug_per_hour: int | None = None
    uuid: str | None = None
    """Stays with the card when it moves; of an accelerator without one its place on the bus."""
    visible: dict[str, str] = {}
    """The environment that shows a process this accelerator alone."""
    memory_used_bytes: int | None = None
    """Measured: by all processes together."""
    busy_permille: int | None = None
    power_mw: Sourced | None = None
    """Measured now, by the device itself."""
    cores: int | None = None
    cache_bytes: int | None = None
    energy_counters: tuple[str, ...] = ()
    """Files with the energy of the processor in microjoules (RAPL) that this process may read."""


def read_text(path: str) -> str | None:
    """The live port: the text of a file, None when it is not there or may not be read."""
    try:
        with Path(path).open(encoding="utf-8", errors="replace") as file:
            return file.read(FILE_CHARS_MAX)
    except OSError:
        return None


def list_names(path: str) -> list[str]:
    """The live port: sorted names in a folder, empty when it is not there."""
    try:
        return sorted(entry.name for entry in Path(path).iterdir())[:FOLDER_MAX]
    except OSError:
        return []


def affinity() -> int:
    """Threads that the scheduler may give this process."""
    return len(os.sched_getaffinity(0))


def discover(
    read: Read = read_text,
    *,
    usable_threads: Callable[[], int] = affinity,
    currency: str = "USD",
    names: Names = list_names,
) -> list[Device]:
    """The processor of this machine. Empty when it does not say what it has. Accelerators: ``survey``.

    Power and cost are modelled: figures of the catalogue per thread times threads. List prices are in USD; for any
    other ``currency`` the cost is None, because nothing is converted silently.
    """
    cpuinfo, memory = read("/proc/cpuinfo"), _total_memory(read)
    if cpuinfo is None or memory is None:
        return []
    row_id, name, vendor = _identify(_first_fields(cpuinfo))
    row = catalogue().get(row_id or "")
    threads = min([max(1, usable_threads()), *_cpu_quotas(read)])
    found = Device(
        id="cpu0", catalogue_id=row.id if row else None, name=name, vendor=vendor, kind=CPU, threads=threads,
        memory_bytes=min([memory, *_memory_limits(read)]),
        idle_mw=_power(row, row.idle_mw_per_thread, threads) if row else None,
        max_mw=_power(row, row.max_mw_per_thread, threads) if row else None,
        cost_nano_per_hour=_cost(row, threads) if row and currency == "USD" else None, cores=_cores(cpuinfo),
        cache_bytes=_cache(read, names),
        energy_counters=tuple(path for path in _rapl(names) if read(path) is not None),
    )  # fmt: skip
    return [found]


def _cores(cpuinfo: str) -> int | None:
    """Distinct pairs of package and core, as x86-64 describes them; other architectures do not say."""
    pairs = re.findall(r"^physical id\s*:\s*(\d+)$.*?^core id\s*:\s*(\d+)$", cpuinfo, re.MULTILINE | re.DOTALL)
    return len(set(pairs)) or None


def _cache(read: Read, names: Names) -> int | None:
    folder = "/sys/devices/system/cpu/cpu0/cache"
    sizes = [read(f"{folder}/{name}/size") or "" for name in names(folder) if name.startswith("index")]
    return max((int(size[:-2]) * 1_024 for size in sizes if re.fullmatch(r"\d+K\n", size)), default=None)


def _rapl(names: Names) -> Iterator[str]:
    """Counters of whole packages: Linux, Documentation/power/powercap."""
    for name in names("/sys/class/powercap"):
        if re.fullmatch(r"intel-rapl:\d+", name):
            yield f"/sys/class/powercap/{name}/energy_uj"


def _first_fields(cpuinfo: str) -> dict[str, str]:
    """``key : value`` lines; the first value of each key, since all processors of a machine are described alike."""
    fields: dict[str, str] = {}
    for line in cpuinfo.splitlines():
        key, colon, value = line.partition(":")
        if colon:
            fields.setdefault(key.strip(), value.strip())
    return fields


@cache
def _named() -> dict[str, dict[str, str]]:
    """Makers and parts by the codes that stand for them."""
    table = files(__package__).joinpath("data", "processors.toml").read_bytes()
    return msgspec.toml.decode(table, type=dict[str, dict[str, str]])


def _identify(fields: dict[str, str]) -> tuple[str | None, str, str]:
    """Row of the catalogue, model name and vendor, from the x86-64 or the arm64 layout of /proc/cpuinfo."""
    if "vendor_id" in fields:
        vendor = _named()["x86"].get(fields["vendor_id"], fields["vendor_id"])
        return "cpu-generic-x86-64", fields.get("model name", f"{vendor} processor"), vendor
    if "CPU implementer" in fields:
        maker, part = fields["CPU implementer"].lower(), fields.get("CPU part", "").lower()
        vendor = _named()["arm"].get(maker, f"implementer {maker}")
        named = _named()["arm_parts"].get(f"{maker} {part}", f"part {part}" if part else "processor")
        return "cpu-generic-arm64", fields.get("model name", f"{vendor} {named}"), vendor
    return None, fields.get("model name", "unknown processor"), "unknown"


def _total_memory(read: Read) -> int | None:
    match = re.search(r"^MemTotal:\s+(\d+) kB", read("/proc/meminfo") or "", re.MULTILINE)
    return int(match[1]) * 1_024 if match else None


def _cgroup_files(read: Read, name: str) -> Iterator[str]:
    """The file of this process's cgroup (version 2) and of every one above it: the tightest limit holds."""
    match = re.search(r"^0::(/.*)$", read("/proc/self/cgroup") or "", re.MULTILINE)
    path = PurePosixPath(match[1].strip() if match else "/")
    if ".." in path.parts:  # the process lives outside its namespace's root; only that root can be seen
        path = PurePosixPath("/")
    for folder in (path, *path.parents):
        text = read(str(PurePosixPath("/sys/fs/cgroup") / folder.relative_to("/") / name))
        if text is not None:
            yield text


def _cpu_quotas(read: Read) -> Iterator[int]:
    for text in _cgroup_files(read, "cpu.max"):
        quota, _, period = text.strip().partition(" ")
        if quota.isdecimal() and period.isdecimal() and int(period):
            yield max(1, int(quota) // int(period))


def _memory_limits(read: Read) -> Iterator[int]:
    for text in _cgroup_files(read, "memory.max"):
        if text.strip().isdecimal():
            yield int(text)


def _power(row: Accelerator, mw_per_thread: int | None, threads: int) -> Sourced | None:
    if mw_per_thread is None:
        return None
    return Sourced(
        value=mw_per_thread * threads,
        provenance=Provenance.MODELLED,
        source=f"{threads} threads of {row.id}; {row.source}",
        error_permille=POWER_ERROR_PERMILLE,
    )


def _cost(row: Accelerator, threads: int) -> Sourced | None:
    if row.capital_nano_usd_per_thread is None or not row.life_years:
        return None
    return Sourced(
        value=rate_of(threads, row.capital_nano_usd_per_thread, row.life_years * HOURS_PER_YEAR),
        provenance=Provenance.MODELLED,
        source=f"{threads} threads of {row.id}, straight line over {row.life_years} years; {row.capital_source}",
        error_permille=COST_ERROR_PERMILLE,
    )
