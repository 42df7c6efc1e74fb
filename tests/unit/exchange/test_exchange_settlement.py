from __future__ import annotations

from itertools import pairwise

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenworks.core.errors import LedgerRefused, NotFound
from tokenworks.exchange.settlement import (
    MOVES,
    Line,
    Served,
    State,
    correct,
    dispute,
    line_shares,
    money_totals,
    move,
    net,
    statement,
    statements,
    stu_totals,
)
from tokenworks.exchange.words import Entity

ENTITIES = {
    "home": Entity(name="home", own=True),
    "north": Entity(name="north", fee_permille=55),
    "south": Entity(name="south", fee_permille=333),
    "dear": Entity(name="dear", fee_permille=1000),
}
names = st.sampled_from([*ENTITIES])
amounts = st.integers(0, 10**12)
served = st.lists(
    st.builds(
        Served,
        id=st.integers(0, 10**9).map(str),
        entity=names,
        home=names,
        ustu=amounts,
        nano=amounts,
        fee_nano=st.none() | st.integers(0, 10),
    ),
    max_size=40,
    unique_by=lambda row: row.id,
)


@given(served)
def test_what_customers_paid_is_what_entities_and_the_pool_got(rows: list[Served]) -> None:
    """I12: to the nano and the micro-STU, nothing is left over and nothing is made."""
    made = statements(rows, ENTITIES, 0, 10)
    money, stu = money_totals(made), stu_totals(made)
    assert money.paid == sum(row.nano for row in rows) == money.to_entities + money.fees + money.rounding
    assert stu.paid == sum(row.ustu for row in rows) == stu.to_entities + stu.fees + stu.rounding
    assert (money.rounding, stu.rounding) == (0, 0)
    for each in made:
        assert each.paid_nano == each.net_nano + each.fee_nano
        assert sum(line_shares(each)) == each.net_nano
        if all(line.fee_nano is None for line in each.lines):
            assert abs(1000 * each.fee_nano - each.fee_permille * each.paid_nano) < 1000


@given(served)
def test_a_fee_that_the_ledger_booked_stands(rows: list[Served]) -> None:
    """A statement is what the ledger owes: the sum of the fees of its lines, not a fee of the sum."""
    booked = [msgspec.structs.replace(row, fee_nano=row.nano * 55 // 1000, entity="north", home="home") for row in rows]
    for each in statements(booked, ENTITIES, 0, 10):
        assert each.fee_nano == sum(row.nano * 55 // 1000 for row in booked)
        assert line_shares(each) == [line.nano - (line.fee_nano or 0) for line in each.lines]


@given(served)
def test_netting_keeps_what_everybody_is_owed(rows: list[Served]) -> None:
    """One figure per pair, and each entity's balance over all pairs is what it was before."""
    made = statements(rows, ENTITIES, 0, 10)
    figures = net(made)
    assert len({frozenset((each.debtor, each.creditor)) for each in figures}) == len(figures)
    assert all(each.nano > 0 or (each.nano == 0 and each.ustu > 0) for each in figures)
    for name in ENTITIES:
        for unit in ("nano", "ustu"):
            gross = sum(getattr(each, f"net_{unit}") * ((each.entity == name) - (each.home == name)) for each in made)
            netted = sum(getattr(each, unit) * ((each.creditor == name) - (each.debtor == name)) for each in figures)
            assert netted == gross


@given(served)
def test_both_sides_compute_the_same_digest(rows: list[Served]) -> None:
    """The order in which a side kept its records does not matter, one nano of difference does."""
    shuffled = sorted(rows, key=lambda row: row.id[::-1])
    made = statements(rows, ENTITIES, 0, 10)
    assert made == statements(shuffled + shuffled, ENTITIES, 0, 10)
    if rows:
        other = [msgspec.structs.replace(rows[0], nano=rows[0].nano + 1), *rows[1:]]
        assert {each.digest for each in made} != {each.digest for each in statements(other, ENTITIES, 0, 10)}
        assert {each.digest for each in made}.isdisjoint(each.digest for each in statements(rows, ENTITIES, 0, 11))


def test_nobody_pays_a_fee_for_its_own_customers() -> None:
    """At home the whole amount stays, and it is no part of any netting."""
    rows = [
        Served(id="1", entity="north", home="north", ustu=7, nano=1000),
        Served(id="2", entity="home", home="home", ustu=7, nano=1000),
    ]
    made = statements(rows, ENTITIES, 0, 10)
    assert [each.fee_nano for each in made] == [0, 0]
    assert net(made) == ()


def test_what_cannot_be_stated_is_refused() -> None:
    """An unknown entity, one receipt with two amounts, a line of somebody else, a fee above the whole."""
    row = Served(id="1", entity="north", home="home", ustu=1, nano=1)
    with pytest.raises(NotFound, match="north"):
        statements([msgspec.structs.replace(row, entity="nort")], ENTITIES, 0, 1)
    with pytest.raises(LedgerRefused):
        statements([row, msgspec.structs.replace(row, nano=2)], ENTITIES, 0, 1)
    with pytest.raises(LedgerRefused):
        statement(ENTITIES["south"], "home", 0, 1, [Line(id="1", entity="north", home="home", ustu=1, nano=1)])
    with pytest.raises(LedgerRefused):
        statement(Entity(name="x", fee_permille=1001), "home", 0, 1, [])


STEPS: tuple[State, ...] = ("open", "accepted", "rejected", "corrected")
steps = st.lists(st.tuples(st.sampled_from(["1", "2", "3", "c"]), st.sampled_from(STEPS)), max_size=20)


@given(steps)
def test_a_line_never_disappears(moves: list[tuple[str, State]]) -> None:
    """Whatever is tried, lines stay as stated, steps follow the machine, and money is due or withheld."""
    lines = [Line(id=str(i), entity="north", home="home", ustu=i, nano=100 * i) for i in (1, 2, 3)]
    made = statement(ENTITIES["north"], "home", 0, 10, lines)
    now = dispute(made, 0)
    for at, (name, to) in enumerate(moves):
        try:
            if to == "corrected":
                now = correct(now, name, "c", 5, 50, "wrong count", at)
            else:
                now = move(now, name, to, "because", at)
        except (LedgerRefused, NotFound):
            continue
    assert {line.id: line for line in lines}.items() <= now.lines.items()
    assert now.due_nano() + now.withheld_nano() == sum(line.nano for line in now.lines.values())
    for history in now.moves.values():
        states = [step.state for step in history]
        assert states[0] == "open"
        assert all(after in MOVES[before] for before, after in pairwise(states))


def test_a_correction_is_a_new_line_with_the_difference() -> None:
    """The wrong line stays; both together are the right amount, and the new line can be disputed itself."""
    wrong = Line(id="1", entity="north", home="home", ustu=10, nano=1000)
    now = dispute(statement(ENTITIES["north"], "home", 0, 10, [wrong]), 0)
    with pytest.raises(LedgerRefused):
        correct(now, "1", "1c", 8, 800, "too many", 1)
    now = move(now, "1", "rejected", "too many", 1)
    assert (now.due_nano(), now.withheld_nano()) == (0, 1000)
    with pytest.raises(LedgerRefused):
        correct(now, "1", "1", 8, 800, "too many", 2)
    now = correct(now, "1", "1c", 8, 800, "too many", 2)
    assert now == correct(now, "1", "1c", 8, 800, "too many", 2)
    assert now.lines["1c"] == Line(id="1c", entity="north", home="home", ustu=-2, nano=-200, corrects="1")
    assert (now.state("1"), now.state("1c"), now.due_nano()) == ("corrected", "open", 800)
    now = move(now, "1c", "accepted", "agreed", 3)
    assert now is move(now, "1c", "accepted", "agreed", 4)
    with pytest.raises(LedgerRefused):
        move(now, "1c", "rejected", "no", 5)
    again = statement(ENTITIES["north"], "home", 10, 20, [now.lines["1c"]])
    assert again.net_nano + again.fee_nano == -200


def test_two_lines_of_one_id_cannot_be_disputed() -> None:
    """A dispute names a line by its id."""
    line = Line(id="1", entity="north", home="home", ustu=1, nano=1)
    with pytest.raises(LedgerRefused):
        dispute(statement(ENTITIES["north"], "home", 0, 10, [line, line]), 0)
