"""A short version of ``make chaos-exchange``: real processes killed and paused under load, then audited."""

from __future__ import annotations

import pytest
from bench.chaos.run import chaos
from tests.support.postgres import postgres


@pytest.mark.parametrize("store", ["sqlite", "postgresql"])
def test_kills_and_pauses_lose_double_and_overspend_nothing(store: str) -> None:
    """Three gateways on one budget path and three packages: nothing is lost, and nothing stays held or leased."""
    if store == "sqlite":
        figures = chaos(rounds=6, gateways=3, seed=7)
    else:
        with postgres() as url:
            figures = chaos(rounds=5, gateways=3, store=url, seed=11)
    assert figures["acknowledged"] > 50
    assert figures["books_closed"] == 1, figures
    zero = ("lost", "doubled", "overspent", "held_at_end", "leased_at_end")
    assert {name: figures[name] for name in zero} == dict.fromkeys(zero, 0)
    assert figures["spent_nano"] <= figures["limit_nano"]
