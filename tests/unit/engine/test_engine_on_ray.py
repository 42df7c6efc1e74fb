"""How the Ray driver parts a replica's cards over nodes; the driver itself: tests/integration."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenworks.engine.on_ray import bundles

CARD = {"GPU": 1_000, "CPU": 500}


@pytest.mark.parametrize(
    ("cards", "nodes", "expected"),
    [
        (2, [2], [{"GPU": 2, "CPU": 1}]),
        (2, [1, 1], [{"GPU": 1, "CPU": 0.5}] * 2),
        (16, [8, 8, 4], [{"GPU": 8, "CPU": 4}] * 2),
        (6, [4, 4], [{"GPU": 3, "CPU": 1.5}] * 2),
        (4, [1, 1], [{"GPU": 4, "CPU": 2}]),
    ],
)
def test_as_few_nodes_as_can_hold_equal_parts(cards: int, nodes: list[int], expected: list[dict[str, float]]) -> None:
    """After tensor parallel over nodes: all on one when it fits; the last case fits nowhere and is asked for whole."""
    assert bundles(cards, CARD, [{"GPU": float(each), "CPU": 64.0} for each in nodes]) == expected


@given(st.integers(1, 16), st.lists(st.integers(0, 8), max_size=6))
def test_nothing_is_lost_and_every_part_has_a_node(cards: int, nodes: list[int]) -> None:
    """After parts that do not add up: they are equal, sum to all cards, and more than one means a node for each."""
    parts = bundles(cards, {"GPU": 1_000}, [{"GPU": float(each)} for each in nodes])
    assert sum(part["GPU"] for part in parts) == cards
    assert len({part["GPU"] for part in parts}) == 1
    if len(parts) > 1:
        assert sum(each >= parts[0]["GPU"] for each in nodes) >= len(parts)
        assert max(nodes) < cards
