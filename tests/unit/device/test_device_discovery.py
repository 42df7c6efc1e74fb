from __future__ import annotations

import os

import pytest

from tokenworks.core.words import Provenance
from tokenworks.device.discovery import Device, discover

X86 = """processor\t: 0
vendor_id\t: GenuineIntel
cpu family\t: 6
model\t\t: 167
model name\t: Intel(R) Xeon(R) Processor
stepping\t: 1
cpu MHz\t\t: 2600.000
flags\t\t: fpu vme de avx512f amx_bf16

processor\t: 1
vendor_id\t: GenuineIntel
model name\t: Intel(R) Xeon(R) Processor
"""
ARM = """processor\t: 0
BogoMIPS\t: 243.75
Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x3
CPU part\t: 0xd0c
CPU revision\t: 1
"""
MEMORY = "MemTotal:       24684084 kB\nMemFree:        24548456 kB\n"
MEMORY_BYTES = 24_684_084 * 1_024


def machine(cpuinfo: str, threads: int = 8, currency: str = "USD", **limits: str) -> Device:
    """The one device of a recorded machine; ``limits`` are files of its only control group, by their first name."""
    recorded = {"/proc/cpuinfo": cpuinfo, "/proc/meminfo": MEMORY, "/proc/self/cgroup": "0::/\n"}
    recorded |= {f"/sys/fs/cgroup/{name}.max": text for name, text in limits.items()}
    [device] = discover(recorded.get, usable_threads=lambda: threads, currency=currency)
    return device


def test_recorded_x86_machine() -> None:
    """After the x86-64 layout of /proc/cpuinfo, and power and cost that follow the threads."""
    device = machine(X86, threads=2)
    assert (device.name, device.vendor, device.kind) == ("Intel(R) Xeon(R) Processor", "Intel", "cpu")
    assert (device.catalogue_id, device.threads, device.memory_bytes) == ("cpu-generic-x86-64", 2, MEMORY_BYTES)
    assert device.idle_mw is not None
    assert device.max_mw is not None
    assert device.cost_nano_per_hour is not None
    assert (device.idle_mw.value, device.max_mw.value) == (1_480, 7_000)
    assert device.cost_nano_per_hour.value == 2_343_904  # 2 x 61.64 USD over 6 x 8,766 h
    for figure in (device.idle_mw, device.max_mw, device.cost_nano_per_hour):
        assert figure.provenance is Provenance.MODELLED
        assert figure.error_permille is not None
        assert figure.error_permille >= 500
        assert figure.source


def test_recorded_arm_machine() -> None:
    """After the arm64 layout, which names its maker and model by number; its cost is unknown and stays so."""
    device = machine(ARM, threads=4)
    assert (device.catalogue_id, device.name, device.vendor) == ("cpu-generic-arm64", "Arm Neoverse N1", "Arm")
    assert device.max_mw is not None
    assert device.max_mw.value == 14_000
    assert device.cost_nano_per_hour is None


def test_unknown_processor_has_unknown_power() -> None:
    """After a guess dressed as knowledge: a processor outside the catalogue has no power figures."""
    device = machine("processor\t: 0\nisa\t: rv64imafdc\n")
    assert device.catalogue_id is None
    assert device.idle_mw is device.max_mw is device.cost_nano_per_hour is None


def test_list_prices_are_not_converted() -> None:
    """After silent conversion: the catalogue's dollars are no yuan."""
    assert machine(X86, currency="CNY").cost_nano_per_hour is None


@pytest.mark.parametrize(
    ("quota", "threads"), [("200000 100000", 2), ("50000 100000", 1), ("max 100000", 8), ("1600000 100000", 8)]
)
def test_cpu_quota_of_the_container(quota: str, threads: int) -> None:
    """After promising threads that the container may not use: whole threads within cpu.max, at least one."""
    assert machine(X86, cpu=quota + "\n").threads == threads


def test_tightest_limit_of_nested_cgroups_holds() -> None:
    """After reading only the innermost group: a limit of any group above binds as well."""
    recorded = {
        "/proc/cpuinfo": X86,
        "/proc/meminfo": MEMORY,
        "/proc/self/cgroup": "1:name=systemd:/x\n0::/pod/box\n",
        "/sys/fs/cgroup/pod/box/cpu.max": "max 100000\n",
        "/sys/fs/cgroup/pod/cpu.max": "300000 100000\n",
        "/sys/fs/cgroup/pod/box/memory.max": "8589934592\n",
        "/sys/fs/cgroup/pod/memory.max": "4294967296\n",
        "/sys/fs/cgroup/memory.max": "max\n",
    }
    [device] = discover(recorded.get, usable_threads=lambda: 8)
    assert (device.threads, device.memory_bytes) == (3, 4 << 30)


def test_machine_that_says_nothing_has_no_devices() -> None:
    """After invented hardware: without cpuinfo or meminfo nothing is discovered."""
    assert discover(lambda path: None, usable_threads=lambda: 8) == []
    assert discover({"/proc/cpuinfo": X86}.get, usable_threads=lambda: 8) == []


def test_this_machine() -> None:
    """After the real thing: this machine's processor is found within what the scheduler and the kernel report."""
    [device] = discover()
    assert 1 <= device.threads <= len(os.sched_getaffinity(0))
    assert 0 < device.memory_bytes <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if os.uname().machine in {"x86_64", "aarch64"}:
        assert device.idle_mw is not None
        assert device.max_mw is not None
        assert 0 < device.idle_mw.value < device.max_mw.value
