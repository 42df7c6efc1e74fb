"""One results file per measurement that several make targets share: each adds its figures, none drops another's.

``bench/results/<name>.json`` is flat and sorted; a key ends in the unit of its number (``test_s``, ``ttft_ms_p50``)
and may begin with the name of what was measured and a dot (``direct.rps_c32``).
From a shell: ``python -m bench.results_file first_token test_s=12.5``.
"""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results"


def merge(name: str, figures: Mapping[str, float | int | str]) -> Path:
    """Add figures to ``bench/results/<name>.json`` and return its path; the file is replaced in one step.

    ``machine`` and ``commit`` are those of the latest writer. Raises ValueError for a name or key that is not
    lower_case, a key that is written here (``machine``, ``commit``), or a number that JSON cannot hold.
    """
    for word in (name, *figures):
        if not re.fullmatch(r"[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)?", word) or word in ("machine", "commit"):
            raise ValueError(f"{word!r} cannot name a result")
    if wrong := [key for key, value in figures.items() if isinstance(value, float) and not math.isfinite(value)]:
        raise ValueError(f"not finite: {', '.join(wrong)}")
    path = RESULTS / f"{name}.json"
    before = json.loads(path.read_text()) if path.exists() else {}
    merged = {**before, **figures, "machine": machine(), "commit": commit()}
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=f".{name}.", delete=False) as file:
        json.dump(merged, file, indent=2, sort_keys=True, ensure_ascii=False)
        file.write("\n")
    Path(file.name).chmod(0o644)
    Path(file.name).replace(path)
    return path


def machine() -> str:
    """What the figures were taken on: processor, cores this process may use, memory. Never the host's name."""
    cpu = re.search(r"^model name\s*:\s*(.+)$", _text("/proc/cpuinfo"), re.MULTILINE)
    memory = re.search(r"^MemTotal:\s*(\d+) kB$", _text("/proc/meminfo"), re.MULTILINE)
    parts = [cpu[1].strip() if cpu else os.uname().machine, f"{len(os.sched_getaffinity(0))} cores"]
    if memory:
        parts.append(f"{int(memory[1]) / (1 << 20):.0f} GiB")
    return ", ".join(parts)


def commit() -> str:
    """The short commit, with ``-dirty`` when anything but the results themselves differs from it; else ``none``."""
    head = _git("rev-parse", "--short", "HEAD")
    if not head:
        return "none"
    return head + ("-dirty" if _git("status", "--porcelain", "--", ".", ":(exclude)bench/results") else "")


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):  # figures may be taken from an unpacked archive
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _text(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""


if __name__ == "__main__":
    pairs = (argument.partition("=") for argument in sys.argv[2:])
    print(merge(sys.argv[1], {key: float(value) for key, _, value in pairs}))
