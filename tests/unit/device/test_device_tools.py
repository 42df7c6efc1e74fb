from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.support.machines import CPU

from tokenworks.device.discovery import discover, list_names, read_text
from tokenworks.device.survey import Ports, survey
from tokenworks.device.tools import OUTPUT_BYTES_MAX, SAID_CHARS_MAX, Ran, run_tool, took


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of tools before all others."""
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return tmp_path


def tool(folder: Path, name: str, script: str) -> str:
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)
    return name


def test_a_tool_that_works(path: Path) -> None:
    """After the common case: its output, and no trouble."""
    assert run_tool([tool(path, "x-smi", 'echo "$1 $LC_ALL"'), "-q"]) == Ran("-q C\n")


def test_a_tool_that_is_not_there() -> None:
    """After a machine without that vendor."""
    assert run_tool(["no-such-smi"]) == Ran("", "no-such-smi is not installed", absent=True)


def test_a_tool_that_hangs_is_killed_with_its_children(path: Path) -> None:
    """After a driver that never answers: the time is bounded, and nothing is left running."""
    name = tool(path, "x-smi", f"sleep 60 & echo $! > {path}/pid; wait")
    begin = time.monotonic()
    assert run_tool([name], seconds_max=0.3).trouble == "x-smi did not end within 0.3 s"
    assert time.monotonic() - begin < 3
    child = int((path / "pid").read_text())
    for _ in range(100):  # killed is not yet gone
        if not Path(f"/proc/{child}/stat").exists() or ") Z " in Path(f"/proc/{child}/stat").read_text():
            break
        time.sleep(0.02)
    else:
        pytest.fail("the tool's own child is still running")


@pytest.mark.parametrize("script", ["yes", "trap '' XFSZ; yes; exit 0"])
def test_a_tool_that_prints_without_end_is_stopped(path: Path, script: str) -> None:
    """After a full disk or a full memory: the kernel stops it at the bound, even if it ignores the signal."""
    ran = run_tool([tool(path, "x-smi", script)])
    assert ran == Ran("", f"x-smi printed more than {OUTPUT_BYTES_MAX >> 20} MiB")


def test_a_tool_that_fails_is_quoted_briefly(path: Path) -> None:
    """After its own words: the last line of what it says, bounded; what it printed before is kept."""
    ran = run_tool([tool(path, "x-smi", "echo card; echo no >&2; echo driver mismatch >&2; exit 9")])
    assert ran == Ran("card\n", "x-smi ended with status 9: driver mismatch")
    long = run_tool([tool(path, "y-smi", "head -c 5000 /dev/zero | tr '\\0' x; exit 1")])
    assert len(long.trouble or "") < SAID_CHARS_MAX + 50
    assert run_tool([tool(path, "z-smi", "exit 3")]).trouble == "z-smi ended with status 3: and said nothing"


def test_a_tool_that_cannot_be_started(path: Path) -> None:
    """After a file that is no program."""
    (path / "x-smi").write_bytes(b"\x7fELF garbage")
    (path / "x-smi").chmod(0o755)
    assert (run_tool(["x-smi"]).trouble or "").startswith("x-smi ended with status 12")


def test_nvml_without_a_driver_says_nothing() -> None:
    """After the real library on a machine without an NVIDIA driver: it ends well and shows no device."""
    assert run_tool(["python", "-m", "tokenworks.device.nvml"]) == Ran("")


def test_this_machine_is_surveyed() -> None:
    """After the real thing: this machine has its processor, and nothing hangs."""
    found = survey()
    assert found.devices[0].kind == "cpu"
    assert found.devices[0].threads >= 1


def test_several_hanging_tools_cost_the_time_of_one(path: Path) -> None:
    """After one timeout behind another: all vendors are asked at once."""
    for name in ("nvidia-smi", "npu-smi", "cnmon"):
        tool(path, name, "sleep 60")
    ports = Ports(CPU.get, lambda _: [], lambda argv: run_tool(argv, seconds_max=0.3))
    begin = time.monotonic()
    troubles = [finding.what for finding in survey(ports).findings if "did not end" in finding.what]
    assert len(troubles) == 3
    assert time.monotonic() - begin < 2


def test_a_child_is_measured_by_its_kernel() -> None:
    """After memory and processor time of a real process, and of one that is gone."""
    code = "b = bytearray(64 << 20)\nsum(range(3_000_000))\nprint(flush=True)\ninput()"
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.readline()
    found = took(child.pid)
    assert found is not None
    assert 64 << 20 <= found.memory_bytes < 200 << 20
    assert 0 < found.cpu_ns < 60_000_000_000
    child.communicate(b"\n")
    assert took(child.pid) is None


def test_caches_cores_and_energy_counters() -> None:
    """After what else a processor says: distinct cores, the last cache, and only counters that may be read."""
    cpuinfo = "".join(
        f"processor\t: {n}\nvendor_id\t: GenuineIntel\nphysical id\t: {n % 2}\ncore id\t\t: {n // 4}\n\n"
        for n in range(8)
    )
    cache, rapl = "/sys/devices/system/cpu/cpu0/cache", "/sys/class/powercap"
    files = {
        **CPU, "/proc/cpuinfo": cpuinfo,
        f"{cache}/index0/size": "32K\n", f"{cache}/index3/size": "491520K\n", f"{cache}/uevent/size": "9999999K\n",
        f"{rapl}/intel-rapl:0/energy_uj": "262143328850\n",
    }  # fmt: skip
    folders = {
        cache: ["index0", "index3", "uevent"],
        rapl: ["intel-rapl", "intel-rapl:0", "intel-rapl:0:0", "intel-rapl:1"],
    }
    [device] = discover(files.get, names=lambda folder: folders.get(folder, []), usable_threads=lambda: 8)
    assert (device.cores, device.cache_bytes) == (4, 480 << 20)
    assert device.energy_counters == (f"{rapl}/intel-rapl:0/energy_uj",)  # package 1 is there but may not be read
    [silent] = discover(CPU.get, names=lambda _: [])
    assert (silent.cores, silent.cache_bytes, silent.energy_counters) == (None, None, ())


def test_live_ports_do_not_raise(tmp_path: Path) -> None:
    """After files and folders that are not there."""
    assert read_text(str(tmp_path / "no")) is None
    assert read_text(str(tmp_path)) is None
    assert list_names(str(tmp_path / "no")) == []
    (tmp_path / "b").touch()
    (tmp_path / "a").touch()
    assert list_names(str(tmp_path)) == ["a", "b"]
