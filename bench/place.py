"""``make bench-place``: 200 replicas onto 1,000 unlike devices, the best of five runs."""

from __future__ import annotations

import random
import time

from bench.results_file import merge

from tokenworks.core.words import Demand
from tokenworks.device.catalogue import catalogue
from tokenworks.device.placement import Spot, place

MODELS = ("nvidia-h100-sxm", "nvidia-l40s", "amd-mi300x", "ascend-910b2", "metax-c500", "nvidia-a100-sxm-80g")


def fleet(devices: int) -> list[Spot]:
    """Machines of eight cards, one model each."""
    rows = [catalogue()[id_] for id_ in MODELS]
    made = []
    for i in range(devices):
        row = rows[i // 8 % len(rows)]
        made.append(
            Spot(
                id=f"d{i}", node=f"n{i // 8}", model=row.id, backend=row.backend or "", memory_mb=row.memory_mb or 0,
                gflops=row.bf16_dense_gflops, link=None if row.id == "nvidia-l40s" else "link",
            )
        )  # fmt: skip
    return made


def wishes(replicas: int, seed: int = 1) -> list[Demand]:
    """Shares, whole cards, and groups of two to eight."""
    pick = random.Random(seed)
    made = []
    for i in range(replicas):
        count = pick.choice((1, 1, 1, 2, 4, 8))
        share = 1_000 if count > 1 else pick.choice((125, 250, 500, 1_000))
        made.append(
            Demand(
                name=f"r{i}", count=count, share_permille=share, memory_mb=pick.randrange(4, 60) * share,
                gflops=pick.choice((0, 0, 50_000)), near="link" if count > 1 else "any",
                backends=pick.choice((frozenset(), frozenset({"cuda"}), frozenset({"cuda", "rocm"}))),
            )
        )  # fmt: skip
    return made


def main() -> None:
    """Measure and merge into ``bench/results/perf.json``."""
    spots, demands = fleet(1_000), wishes(200)
    found, seconds = place(spots, demands), []
    for _ in range(5):
        begin = time.perf_counter()
        place(spots, demands)
        seconds.append(time.perf_counter() - begin)
    print(f"placed {len(found.placed)} of {len(demands)}; fragmentation {found.fragmentation_permille} permille")
    print(f"place_1000x200_s {min(seconds):.3f} -> {merge('perf', {'place_1000x200_s': round(min(seconds), 4)})}")


if __name__ == "__main__":
    main()
