"""What this machine's processor can do at most: ``python -m tokenworks.engine.perf.here``, two numbers as JSON.

A process of its own, because a BLAS reads how many threads it may use when it is loaded. In 32 bits: the best that
plain vector units do; matrix units for 8 and 16 bits, where there are any, would be faster.
"""

from __future__ import annotations

import os
import subprocess
import sys

import msgspec
import numpy as np

from tokenworks.core.clock import WallClock
from tokenworks.core.errors import TokenworksError
from tokenworks.core.words import Word

VECTOR = 16 << 20
"""Numbers in each of two vectors: 128 MB read together, about what a small model's weights are."""
SIDE = 1024
ROUNDS = 7
BLAS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")


class Roof(Word, frozen=True):
    """Measured limits."""

    bandwidth_gb_s: float
    tflops: float


def measure() -> Roof:
    """The best of a few rounds of one dot product and one product of matrices."""
    clock, one = WallClock(), np.ones(VECTOR, np.float32)
    other, square = np.ones(VECTOR, np.float32), np.ones((SIDE, SIDE), np.float32)
    best = [float("inf"), float("inf")]
    for _ in range(ROUNDS):
        for n, (left, right) in enumerate(((one, other), (square, square))):
            begin = clock.now_ns()
            np.dot(left, right)
            best[n] = min(best[n], (clock.now_ns() - begin) / 1e9)
    return Roof(bandwidth_gb_s=8 * VECTOR / best[0] / 1e9, tflops=2 * SIDE**3 / best[1] / 1e12)


def roof(threads: int) -> Roof:
    """As ``measure``, with so many threads. Raises TokenworksError when that process fails."""
    environment = {**os.environ, **dict.fromkeys(BLAS, str(threads))}
    done = subprocess.run(
        [sys.executable, "-m", __name__], env=environment, capture_output=True, timeout=60, check=False
    )
    if done.returncode:
        raise TokenworksError(f"the processor's limits could not be measured (exit status {done.returncode})")
    return msgspec.json.decode(done.stdout, type=Roof)


if __name__ == "__main__":
    sys.stdout.write(msgspec.json.encode(measure()).decode() + "\n")
