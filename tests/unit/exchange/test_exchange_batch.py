"""Many commands in one transaction: the same as one by one, also when a receipt comes again."""

from __future__ import annotations

import copy
import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support import exchange as support
from tests.support.exchange import opening

from tokenworks.core.clock import ManualClock
from tokenworks.core.errors import LedgerRefused
from tokenworks.exchange import offices, report
from tokenworks.exchange import service as module
from tokenworks.exchange.batch import Touched, uncollected
from tokenworks.exchange.journal import Journal, journal_folder
from tokenworks.exchange.ledger import apply, count, post, step
from tokenworks.exchange.log.errors import LogForked
from tokenworks.exchange.service import LedgerService
from tokenworks.exchange.settlement import DAY_NS
from tokenworks.exchange.state import ENDED, State
from tokenworks.exchange.words import (
    AnyCommand,
    Budget,
    ExtendHold,
    GiveLease,
    Lease,
    PlaceHold,
    SetBudget,
    Settle,
    Void,
    encode_command,
)

CLOCK = ManualClock()
SOURCES = (("g", 1), ("h", 1))
WINDOWS = (("acme", "none"), ("team", "month"), ("one", "day"))


def holding(receipt: str, at_ns: int = 1, nano: int = 1_000) -> PlaceHold:
    return PlaceHold(receipt=receipt, budget="team", ustu=100, nano=nano, at_ns=at_ns)


def settling(receipt: str, nano: int = 700, budget: str = "team") -> Settle:
    return Settle(settlement=support.settlement(receipt, account="acme", budget=budget, ustu=60, nano=nano, at_ns=20))


def budget_of(name: str, parent: str | None, **terms: Any) -> Budget:
    return Budget(id=name, account="acme", parent=parent, name=name, **terms)


def tree() -> State:
    """Three budgets, each with a window of its own, and leases of both gateways on their first day."""
    state, parent = State(), None
    apply(state, opening("acme"))
    for name, window in WINDOWS:
        limits = {"limit_ustu": 10**9, "limit_nano": 10**9}
        apply(state, SetBudget(budget=budget_of(name, parent, window=window, **limits)))
        parent = name
    counters = [f"{kind}:{name}" for name, _ in WINDOWS for kind in "nu"]
    leases = tuple(Lease(counter=counter, window_ns=0, allowance=10**6) for counter in counters)
    for writer, epoch in SOURCES:
        apply(state, GiveLease(writer=writer, epoch=epoch, leases=leases, at_ns=1))
    return state


steps = st.tuples(
    st.sampled_from(("hold", "settle", "extend", "void", "budget")),
    st.integers(0, 5),
    st.integers(0, 40),
    st.integers(0, 5),
    st.sampled_from(SOURCES),
)


def command_of(kind: str, number: int, day: int, amount: int) -> AnyCommand:
    receipt, budget = f"r{number}", ("team", "one")[number % 2]
    if kind == "hold":
        return PlaceHold(receipt=receipt, budget=budget, ustu=amount, nano=amount * 10, at_ns=day * DAY_NS + 7)
    if kind == "settle":
        settled = support.settlement(receipt, account="acme", budget=budget, ustu=amount, nano=amount * 9)
        return Settle(settlement=settled)
    if kind == "extend":
        return ExtendHold(receipt=receipt, ustu=amount, nano=amount)
    if kind == "void":
        return Void(receipt=receipt, reason="", at_ns=1)
    return SetBudget(budget=budget_of("acme", None, limit_ustu=10**9, limit_nano=10**9 + amount), at_ns=1)


@given(st.lists(steps, max_size=40))
def test_counted_together_is_counted_one_by_one(script: list[tuple[str, int, int, int, tuple[str, int]]]) -> None:
    """Whatever days and gateways holds are of, and whatever comes between: equal tallies, windows, leases, balances."""
    one_by_one = tree()
    together, touched = copy.deepcopy(one_by_one), Touched()
    for kind, number, day, amount, source in script:
        command = command_of(kind, number, day, amount)
        try:
            entries = apply(one_by_one, command, source)
        except LedgerRefused as error:
            with pytest.raises(LedgerRefused, match=f"^{error.message}"):
                step(together, command, source)
            continue
        assert step(together, command, source) == entries
        touched.add(command, entries, source)
    count(together)
    post(together, touched.sums)
    assert together == one_by_one


@pytest.fixture
def service(tmp_path: Path) -> Iterator[LedgerService]:
    made = LedgerService(tmp_path, CLOCK)
    offices.answer(made, "account_create", {"account": "acme", "limit_nano": 10**9})
    offices.answer(made, "budget_set", {"budget": "team", "parent": "acme"})
    yield made
    made.close()


def gateway(service: LedgerService, folder: Path) -> Journal:
    epoch = service.hello("g", None)
    return Journal(journal_folder(folder, "g", epoch), "g", epoch)


def say(journal: Journal, *commands: AnyCommand) -> None:
    for command in commands:
        journal.append(encode_command(command))


def reasons(service: LedgerService) -> list[str]:
    return [reason for *_, reason in service.store.rows("anomalies")]


def test_a_receipt_that_comes_again_counts_once(service: LedgerService, tmp_path: Path) -> None:
    """In the same batch and in a later one, with what else was in it booked; nothing of the second is."""
    journal = gateway(service, tmp_path)
    say(journal, holding("a"), settling("a"), holding("a"), settling("a"), holding("b"), settling("b"))
    service.catch_up()
    say(journal, holding("c"), settling("c"), holding("b"), settling("b", 900), holding("d"))
    service.catch_up()
    say(journal, holding("d", nano=9), holding("a", nano=5), settling("d"))
    service.catch_up()
    found = report.books(service)
    assert (found["receipts"], found["open_holds"]) == (4, 0)
    assert [check["check"] for check in found["checks"] if not check["ok"]] == ["no record was left out"]
    assert service.state.tallies["acme"].spent_nano == 4 * 700
    again, none = "was settled already (a receipt's id is used once)", "has no open hold"
    expected = (again, none, again, none, "held already", again)
    assert [word for word, told in zip(expected, reasons(service), strict=True) if word not in told] == []
    journal.close()


def test_a_late_settlement_that_comes_again_is_one_loss(service: LedgerService, tmp_path: Path) -> None:
    """An ended epoch has no holds, so there only the store knows what was settled."""
    journal = gateway(service, tmp_path)
    service.end_epoch(("g", 1), "test", ENDED)
    say(journal, settling("late"))
    service.catch_up()
    say(journal, settling("late"), settling("other"), settling("other"))
    service.catch_up()
    assert service.store.rows("counts")[0][0] == 2
    assert (len(reasons(service)), all("was settled already" in each for each in reasons(service))) == (2, True)
    journal.close()


def test_one_step_is_one_batch(service: LedgerService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So the ledger answers calls between batches, however much has come together."""
    monkeypatch.setattr(module, "BATCH_RECORDS_MAX", 4)
    journal = gateway(service, tmp_path)
    for number in range(5):
        say(journal, holding(f"r{number}"), settling(f"r{number}"))
    seen = [(service.advance(), service.store.rows("counts")[0][0]) for _ in range(4)]
    assert seen == [(True, 2), (True, 4), (False, 5), (False, 5)]
    journal.close()


def test_a_receipt_that_was_changed_is_not_exported(service: LedgerService, tmp_path: Path) -> None:
    """Leaves are made again from receipts; one that is not what went into the tree is told, not proven."""
    journal = gateway(service, tmp_path)
    say(journal, holding("a"), settling("a"))
    assert "a" in offices.answer(service, "receipt_export", {"receipts": ["a"]})
    changed = encode_command(settling("a", 699).settlement)
    service.store._db.rows("UPDATE receipt SET doc = :doc WHERE id = 'a'", {"doc": changed})
    with pytest.raises(LogForked, match="leaf 0"):
        offices.answer(service, "receipt_export", {"receipts": ["a"]})
    journal.close()


def test_the_collector_rests_and_comes_back() -> None:
    """Also after an error, and it stays off for whoever had it off."""
    with pytest.raises(KeyError), uncollected():
        assert_off()
    assert gc.isenabled()


def assert_off() -> None:
    assert not gc.isenabled()
    with uncollected():
        pass
    assert not gc.isenabled()
    raise KeyError
