from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from tokenworks.core.errors import LedgerRefused
from tokenworks.core.words import Delivery, EnergyLine, Interval, Provenance, ServiceLine, Usage
from tokenworks.exchange.ledger import BOOKS, DEPTH_MAX, Entry, State, apply
from tokenworks.exchange.words import (
    Account,
    AddKey,
    AnyCommand,
    Budget,
    CloseInterval,
    DescribeSite,
    Key,
    OpenAccount,
    PlaceHold,
    RevokeKey,
    SetBudget,
    Settle,
    Settlement,
    SiteFacts,
    Void,
    decode_command,
    encode_command,
)


def opening(name: str, at_ns: int = 0) -> OpenAccount:
    return OpenAccount(account=Account(id=name, name=name, opened_ns=at_ns))


def budgeting(name: str, account: str, parent: str | None = None, limit: int | None = None) -> SetBudget:
    return SetBudget(
        budget=Budget(id=name, account=account, parent=parent, name=name, limit_ustu=limit, limit_nano=limit)
    )


def adding(name: str, account: str, budget: str) -> AddKey:
    return AddKey(key=Key(id=name, hash=name.encode(), account=account, budget=budget, role="user", made_ns=1))


def holding(receipt: str, budget: str, ustu: int, nano: int, at_ns: int = 0) -> PlaceHold:
    return PlaceHold(receipt=receipt, budget=budget, ustu=ustu, nano=nano, at_ns=at_ns)


def settling(
    receipt: str, budget: str, account: str, ustu: int, nano: int, loss_ustu: int = 0, loss_nano: int = 0
) -> Settle:
    return Settle(
        settlement=Settlement(
            receipt=receipt,
            account=account,
            budget=budget,
            key="k",
            endpoint="chat",
            model_asked="m",
            model_served="m",
            usage=Usage(input=1),
            ustu=ustu,
            nano=nano,
            loss_ustu=loss_ustu,
            loss_nano=loss_nano,
            rate_card="1",
            price_book="1",
            currency="USD",
            decision=None,
            delivery=Delivery(ending="complete", chunks=1),
            work=None,
            estimate=None,
            held_ustu=0,
            held_nano=0,
            hold_ns=0,
            arrived_ns=0,
            at_ns=1,
        )
    )


def closing(
    site: str, start_ns: int, end_ns: int, parts: tuple[int, int, int, int, int], *, priced: bool, error: int = 0
) -> CloseInterval:
    """``parts``: millijoules of a request, idle, a service, overhead and residual; money is a tenth each."""
    request, idle, service, overhead, residual = parts
    line = EnergyLine(
        receipt="r0",
        energy_mj=request,
        energy_nano=request * 10 if priced else None,
        overhead_mj=overhead,
        overhead_nano=overhead * 10 if priced else None,
        carbon_ug=None,
        slice_ns=1,
        device_nano=request * 3,
        ended=True,
    )
    work = ServiceLine(
        layer="brain", cpu_ns=1, energy_mj=service, energy_nano=service * 10 if priced else None, carbon_ug=None
    )
    return CloseInterval(
        interval=Interval(
            site=site,
            supply="grid",
            start_ns=start_ns,
            end_ns=end_ns,
            meter_mj=sum(parts) + error,
            meter=Provenance.MEASURED,
            scale_ppm=1_000_000,
            requests=(line,),
            services=(work,),
            idle_mj=idle,
            idle_nano=idle * 10 if priced else None,
            overhead_mj=overhead,
            overhead_nano=overhead * 10 if priced else None,
            residual_mj=residual,
            bill_nano=(request + idle + service + overhead) * 10 if priced else None,
            carbon_ug=None,
            idle_device_nano=idle * 3,
        )
    )


class Model:
    """The oracle: plain dicts and lists, and sums over everything that ever happened instead of running figures."""

    def __init__(self) -> None:
        self.accounts: dict[str, int] = {}
        self.budgets: dict[str, tuple[str, str | None, int | None]] = {}
        self.keys: dict[str, list[Any]] = {}
        self.holds: dict[str, PlaceHold] = {}
        self.charges: list[tuple[str, int, int]] = []
        self.losses: list[tuple[int, int]] = []
        self.intervals: list[tuple[str, int, int]] = []

    def ancestors(self, budget: str) -> list[str]:
        parent = self.budgets[budget][1]
        return [budget] + (self.ancestors(parent) if parent else [])

    def accepts(self, command: AnyCommand) -> bool:
        match command:
            case OpenAccount(account=a):
                return self.accounts.setdefault(a.id, a.opened_ns) == a.opened_ns
            case SetBudget(budget=b):
                old = self.budgets.get(b.id, (b.account, b.parent, None))
                fits = b.account in self.accounts and old[:2] == (b.account, b.parent) and (b.limit_nano or 0) >= 0
                fits = fits and (b.parent is None or b.parent in self.budgets)
                if fits and b.parent is not None and len(self.ancestors(b.parent)) >= DEPTH_MAX:
                    return False
                if fits:
                    self.budgets[b.id] = (b.account, b.parent, b.limit_nano)
                return fits
            case AddKey(key=k):
                fits = k.budget in self.budgets and self.budgets[k.budget][0] == k.account
                return fits and self.keys.setdefault(k.id, [k.account, k.budget, None]) == [k.account, k.budget, None]
            case RevokeKey(key=name, at_ns=at_ns):
                if name in self.keys:
                    self.keys[name][2] = self.keys[name][2] or at_ns
                return name in self.keys
            case PlaceHold():
                fits = command.budget in self.budgets and min(command.ustu, command.nano) >= 0
                return fits and self.holds.setdefault(command.receipt, command) == command
            case Settle(settlement=s):
                hold, charged = self.holds.get(s.receipt), (s.ustu - s.loss_ustu, s.nano - s.loss_nano)
                if hold is None or charged[0] > hold.ustu or charged[1] > hold.nano:
                    return False
                self.charges.append((self.holds.pop(s.receipt).budget, *charged))
                self.losses.append((s.loss_ustu, s.loss_nano))
                return True
            case Void(receipt=receipt):
                return self.holds.pop(receipt, None) is not None
            case CloseInterval(interval=i):
                after = all(i.start_ns >= end for site, _, end in self.intervals if site == i.site)
                parts = i.idle_mj + i.overhead_mj + i.residual_mj + i.requests[0].energy_mj + i.services[0].energy_mj
                fits = after and i.start_ns < i.end_ns and parts == i.meter_mj
                self.intervals += [(i.site, i.meter_mj, i.end_ns)] if fits else []
                return fits
        return True


accounts = st.sampled_from("ab")
budgets = st.sampled_from([f"b{n}" for n in range(6)])
parents = st.none() | budgets
keys = st.sampled_from(["k0", "k1", "k2"])
receipts = st.sampled_from([f"r{n}" for n in range(8)])
amounts = st.integers(0, 50)
sites = st.sampled_from(["s", "t"])


class LedgerMachine(RuleBasedStateMachine):
    """Any commands, also wrong ones, against the oracle."""

    def __init__(self) -> None:
        super().__init__()
        self.state, self.model = State(), Model()
        self.accepted: list[bytes] = []
        self.entries: list[Entry] = []
        for command in (opening("a"), budgeting("b0", "a", None, 100), budgeting("b1", "a", "b0", 50)):
            self.give(command)

    def give(self, command: AnyCommand) -> bool:
        before = copy.deepcopy(self.state)
        expected = self.model.accepts(command)
        if not expected:
            with pytest.raises(LedgerRefused):
                apply(self.state, command)
            assert self.state == before, "a refused command changed the state"
            return False
        entries = apply(self.state, command)
        for book in BOOKS:
            assert sum(entry.amount for entry in entries if entry.book == book) == 0
        assert all(entry.amount for entry in entries)
        self.entries += entries
        self.accepted.append(encode_command(command))
        return True

    @rule(account=accounts, at_ns=st.integers(0, 1))
    def open_account(self, account: str, at_ns: int) -> None:
        self.give(opening(account, at_ns))

    @rule(name=budgets, account=accounts, parent=parents, limit=st.none() | st.integers(-1, 100))
    def set_budget(self, name: str, account: str, parent: str | None, limit: int | None) -> None:
        self.give(budgeting(name, account, parent, limit))

    @rule(name=keys, account=accounts, budget=budgets)
    def add_key(self, name: str, account: str, budget: str) -> None:
        self.give(adding(name, account, budget))

    @rule(name=keys, at_ns=st.integers(1, 9))
    def revoke_key(self, name: str, at_ns: int) -> None:
        self.give(RevokeKey(key=name, at_ns=at_ns))

    @rule(receipt=receipts, budget=budgets, ustu=st.integers(-1, 50), nano=amounts, at_ns=st.integers(0, 1))
    def hold(self, receipt: str, budget: str, ustu: int, nano: int, at_ns: int) -> None:
        self.give(holding(receipt, budget, ustu, nano, at_ns))

    @rule(receipt=receipts, ustu=amounts, nano=amounts, over=st.booleans())
    def settle(self, receipt: str, ustu: int, nano: int, over: bool) -> None:
        hold = self.state.holds.get(receipt)
        budget = hold.budget if hold else "b0"
        loss_ustu = max(0, ustu - hold.ustu) if hold and over else 0
        loss_nano = max(0, nano - hold.nano) if hold and over else 0
        account = self.state.budgets[budget].account
        settled = self.give(settling(receipt, budget, account, ustu, nano, loss_ustu, loss_nano))
        if settled:
            assert not self.give(settling(receipt, budget, account, 0, 0)), "a hold resolved twice"

    @rule(receipt=receipts)
    def void(self, receipt: str) -> None:
        if self.give(Void(receipt=receipt, reason="", at_ns=1)):
            assert not self.give(Void(receipt=receipt, reason="", at_ns=2)), "a hold resolved twice"

    @rule(
        site=sites,
        start_ns=st.integers(0, 20),
        length_ns=st.integers(-1, 5),
        parts=st.tuples(amounts, amounts, amounts, amounts, st.integers(-9, 9)),
        priced=st.booleans(),
        error=st.sampled_from([0, 0, 0, 1]),
    )
    def close(
        self, site: str, start_ns: int, length_ns: int, parts: tuple[int, int, int, int, int], priced: bool, error: int
    ) -> None:
        self.give(closing(site, start_ns, start_ns + length_ns, parts, priced=priced, error=error))

    @rule(site=sites, entity=st.sampled_from("ef"))
    def describe(self, site: str, entity: str) -> None:
        self.give(
            DescribeSite(
                facts=SiteFacts(site=site, entity=entity, place=None, jurisdiction=None, facts={}), at_ns=len(entity)
            )
        )
        assert self.state.sites[site].entity == entity

    @invariant()
    def tallies_are_the_models(self) -> None:
        expected = {name: [0, 0, 0, 0] for name in self.model.budgets}
        for budget, ustu, nano in self.model.charges:
            for node in self.model.ancestors(budget):
                expected[node][0] += ustu
                expected[node][1] += nano
        for hold in self.model.holds.values():
            for node in self.model.ancestors(hold.budget):
                expected[node][2] += hold.ustu
                expected[node][3] += hold.nano
        found = {n: [t.spent_ustu, t.spent_nano, t.held_ustu, t.held_nano] for n, t in self.state.tallies.items()}
        assert found == expected
        assert self.state.holds == self.model.holds
        assert {k.id: [k.account, k.budget, k.revoked_ns] for k in self.state.keys.values()} == self.model.keys

    @invariant()
    def balances_are_their_entries_and_close(self) -> None:
        balances: dict[tuple[str, str], int] = {}
        for book, account, amount in self.entries:
            balances[book, account] = balances.get((book, account), 0) + amount
        assert self.state.balances == balances
        for book in BOOKS:
            assert sum(amount for (b, _), amount in balances.items() if b == book) == 0
        owed = sum(amount for (b, account), amount in balances.items() if b == "money" and "customer/" in account)
        assert owed == sum(nano for _, _, nano in self.model.charges)
        assert balances.get(("stu", "loss/operator"), 0) == sum(ustu for ustu, _ in self.model.losses)
        for site in "st":
            metered = sum(mj for s, mj, _ in self.model.intervals if s == site)
            assert balances.get(("energy", f"meter/{site}"), 0) == -metered

    def teardown(self) -> None:
        replayed = State()
        for record in self.accepted:
            apply(replayed, decode_command(record))
        assert replayed == self.state, "the journal does not lead to the same state"


def test_the_ledger_is_the_oracle_after_every_command() -> None:
    """After any commands its figures are the oracle's, its books close, and a refusal changes nothing."""
    run_state_machine_as_test(LedgerMachine, settings=settings(max_examples=60, stateful_step_count=40, deadline=None))


def tree(depth: int = 1) -> State:
    """An account ``a`` whose budgets ``b0`` > ``b1`` > ... nest."""
    state = State()
    apply(state, opening("a"))
    for n in range(depth):
        apply(state, budgeting(f"b{n}", "a", f"b{n - 1}" if n else None))
    return state


def refused(state: State, command: AnyCommand) -> LedgerRefused:
    """The refusal of a command, which must not have changed anything."""
    before = copy.deepcopy(state)
    with pytest.raises(LedgerRefused) as caught:
        apply(state, command)
    assert state == before
    return caught.value


def test_budgets_nest_sixteen_deep_and_no_deeper() -> None:
    """The longest path is whole from leaf to root, and a longer one is refused rather than cut."""
    state = tree(DEPTH_MAX)
    assert state.path(f"b{DEPTH_MAX - 1}") == [f"b{n}" for n in reversed(range(DEPTH_MAX))]
    apply(state, holding("r", f"b{DEPTH_MAX - 1}", 3, 4))
    assert {(tally.held_ustu, tally.held_nano) for tally in state.tallies.values()} == {(3, 4)}
    assert str(DEPTH_MAX) in refused(state, budgeting("deeper", "a", f"b{DEPTH_MAX - 1}")).message


def test_a_refusal_names_the_nearest_thing() -> None:
    """A misspelt id is answered with the one that was probably meant."""
    state = tree()
    apply(state, opening("acme"))
    assert refused(state, budgeting("x", "acne")).hint == "did you mean 'acme'?"
    assert refused(state, RevokeKey(key="zzzz", at_ns=1)).hint is None


def test_the_same_hold_again_is_the_same_hold_and_another_amount_is_refused() -> None:
    """Same id, same effect: a repeated record changes nothing."""
    state = tree()
    apply(state, holding("r", "b0", 3, 4))
    before = copy.deepcopy(state)
    assert apply(state, holding("r", "b0", 3, 4)) == []
    assert state == before
    refused(state, holding("r", "b0", 3, 5))


def test_a_settlement_above_its_hold_needs_a_loss() -> None:
    """What exceeds the hold is the operator's, line by line, and the customer owes the hold at most."""
    state = tree()
    apply(state, holding("r", "b0", 10, 100))
    refused(state, settling("r", "b0", "a", 11, 100))
    refused(state, settling("r", "b0", "a", 10, 101))
    refused(state, settling("r", "b0", "a", -1, 0))
    entries = apply(state, settling("r", "b0", "a", 12, 130, loss_ustu=2, loss_nano=30))
    assert set(entries) == {
        Entry("stu", "customer/a", 10),
        Entry("stu", "loss/operator", 2),
        Entry("stu", "served/-", -12),
        Entry("money", "customer/a", 100),
        Entry("money", "loss/operator", 30),
        Entry("money", "revenue/tokens", -130),
    }


def test_a_loss_above_the_price_cannot_pay_a_customer() -> None:
    """A loss larger than what was delivered would make the charge negative and refill a budget: refuse it."""
    state = tree()
    apply(state, holding("r", "b0", 10, 10))
    refused(state, settling("r", "b0", "a", 1, 1, loss_ustu=5))
    refused(state, settling("r", "b0", "a", 1, 1, loss_nano=5))


def test_a_settlement_charges_who_held() -> None:
    """The account and the budget of a settlement are those of its hold; otherwise budgets and customers drift apart."""
    state = tree(2)
    apply(state, opening("other"))
    apply(state, holding("r", "b1", 10, 10))
    refused(state, settling("r", "b0", "a", 1, 1))
    refused(state, settling("r", "nowhere", "a", 1, 1))
    refused(state, settling("r", "b1", "other", 1, 1))


def test_an_interval_that_does_not_close_is_refused() -> None:
    """One millijoule or one nano that has no place is enough, and so is an overlap with the interval before."""
    state = State()
    apply(state, closing("s", 0, 10, (5, 4, 3, 2, 1), priced=True))
    assert "energy" in refused(state, closing("s", 10, 20, (5, 4, 3, 2, 1), priced=True, error=1)).message
    refused(state, closing("s", 9, 20, (5, 4, 3, 2, 1), priced=True))
    refused(state, closing("s", 10, 10, (5, 4, 3, 2, 1), priced=True))
    wrong = closing("s", 10, 20, (5, 4, 3, 2, 0), priced=True).interval
    fields = {name: getattr(wrong, name) for name in wrong.__struct_fields__} | {"bill_nano": 141}
    assert "money" in refused(state, CloseInterval(interval=Interval(**fields))).message
    apply(state, closing("t", 0, 10, (1, 0, 0, 0, 0), priced=False))
    assert state.interval_end_ns == {"s": 10, "t": 10}


def test_a_key_is_revoked_once_and_stays_so() -> None:
    """The first instant counts, and the same key cannot be added again."""
    state = tree()
    apply(state, adding("k", "a", "b0"))
    apply(state, RevokeKey(key="k", at_ns=5))
    apply(state, RevokeKey(key="k", at_ns=6))
    assert state.keys["k"].revoked_ns == 5
    refused(state, adding("k", "a", "b0"))
