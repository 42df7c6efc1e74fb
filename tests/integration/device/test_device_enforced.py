"""Slices of this machine's processor, with real children: what is booked is what they get."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tokenworks.device.slices import Limits, overrun
from tokenworks.device.tools import RUNAWAY_BYTES, enforce, took

MB = 1_000_000
# It waits for the word to begin, as the embedded engine does; each line is run, and its answer printed.
SERVANT = "import os, sys\nfor line in sys.stdin:\n    print(eval(line), flush=True)\n"


@contextmanager
def child(limits: Limits) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", SERVANT],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        enforce(process.pid, limits)
        yield process
    finally:
        process.kill()
        process.communicate()


def ask(process: subprocess.Popen[str], expression: str) -> str:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(expression + "\n")
    process.stdin.flush()
    return process.stdout.readline().strip()


def test_processors_hold_for_the_child_and_all_that_it_starts() -> None:
    """After a child that runs wherever it likes: it, its threads and its own children stay on the booked processor."""
    one = max(os.sched_getaffinity(0))
    with child(Limits(cpus=(one,))) as process:
        assert ask(process, "os.sched_getaffinity(0)") == f"{{{one}}}"
        thread = "__import__('threading').Thread(target=lambda: seen.append(os.sched_getaffinity(0)))"
        threads = f"(globals().setdefault('seen', []), t := {thread}, t.start(), t.join(), seen)[-1]"
        assert ask(process, threads) == f"[{{{one}}}]"
        grandchild = (
            "__import__('subprocess').check_output([sys.executable, '-c', 'import os; print(os.sched_getaffinity(0))'])"
        )
        assert f"{{{one}}}" in ask(process, grandchild)


def test_memory_over_booked_is_measured() -> None:
    """After memory that nobody counted: the moment a child uses more than was booked, its operator can read so."""
    limits = Limits(memory_bytes=150 * MB)
    with child(limits) as process:
        ask(process, "1")
        before = took(process.pid)
        assert before is not None
        assert overrun(limits, before) is None
        assert ask(process, "len(globals().setdefault('kept', bytearray(200_000_000)))") == "200000000"
        after = took(process.pid)
        assert after is not None
        assert 200 * MB < after.memory_bytes < 260 * MB
        assert "booked are 150,000,000" in (overrun(limits, after) or "")


def test_a_runaway_child_is_refused_memory_by_the_kernel() -> None:
    """After a machine that is out of memory within a second: far beyond the booked the kernel itself says no."""
    limits = Limits(memory_bytes=100 * MB)
    with child(limits) as process:
        assert process.stdin is not None
        assert process.stderr is not None
        process.stdin.write(f"len(bytearray({RUNAWAY_BYTES + 300 * MB}))\n")
        process.stdin.close()
        assert process.wait(20) == 1
        assert "MemoryError" in process.stderr.read()
        process.stdin = None


def test_without_limits_a_child_is_left_alone() -> None:
    """After limits for an engine whose slice nobody knows: it keeps what it inherited."""
    with child(Limits()) as process:
        assert ask(process, "sorted(os.sched_getaffinity(0))") == str(sorted(os.sched_getaffinity(0)))


def test_a_child_that_is_gone_cannot_be_held() -> None:
    """After a process that ended at once: the caller is told by the same error as for any that cannot be started."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    with pytest.raises(ProcessLookupError):
        enforce(process.pid, Limits(cpus=(0,)))
