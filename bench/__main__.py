"""``make bench``: run all benchmarks, or those named, and merge their figures into ``bench/results/NAME.json``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping

from bench import attribution, exchange, first_token, power
from bench.results_file import merge

Figures = Mapping[str, float | int | str]
BENCHMARKS: dict[str, Callable[[], Figures]] = {
    "first_token": first_token.measure,
    "exchange": exchange.measure,
    "power": lambda: {**power.measure(), **attribution.measure()},
}


def main() -> int:
    """Run them and print what was written where."""
    names = sys.argv[1:] or list(BENCHMARKS)
    unknown = [name for name in names if name not in BENCHMARKS]
    if unknown:
        print(f"no benchmark {unknown[0]!r}; there is: {', '.join(BENCHMARKS)}", file=sys.stderr)
        return 2
    for name in names:
        print(f"bench: {name}", flush=True)
        figures = BENCHMARKS[name]()
        path = merge(name, figures)
        for key, value in figures.items():
            print(f"  {key:24} {value}")
        print(f"  -> {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
