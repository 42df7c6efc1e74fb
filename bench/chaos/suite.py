"""``make chaos-exchange``: the long chaos on both stores; figures go into ``bench/results/exchange.json``."""

from __future__ import annotations

import sys

from bench.chaos.run import chaos
from bench.results_file import merge
from tests.support.postgres import postgres

SUMMED = ("chaos_rounds", "lost", "doubled", "overspent", "held_at_end", "acknowledged")


def main() -> int:
    """Run, print, merge; status 1 when an audit failed."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    print(f"chaos: {rounds * 3 // 4} rounds, 3 gateways, SQLite", flush=True)
    on_sqlite = chaos(rounds * 3 // 4, 3, seed=1)
    with postgres() as url:
        print(f"chaos: {rounds - rounds * 3 // 4} rounds, 3 gateways, PostgreSQL", flush=True)
        on_postgres = chaos(rounds - rounds * 3 // 4, 3, url, seed=2)
    good = True
    for name, figures in (("sqlite", on_sqlite), ("postgresql", on_postgres)):
        print(name, figures)
        good = good and bool(figures["books_closed"]) and not any(figures[key] for key in SUMMED[1:5])
    path = merge("exchange", {key: on_sqlite[key] + on_postgres[key] for key in SUMMED})
    print(f"-> {path}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
