from __future__ import annotations

import copy
import hashlib
import json
from typing import Any

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from tests.support.exchange import budgeting, holding, opening, settlement

from tokenworks.core.errors import LedgerRefused
from tokenworks.exchange.clearing_words import (
    OPERATOR,
    AnswerDispute,
    IssueStatement,
    NetStatements,
    OpenDispute,
    SettlePair,
)
from tokenworks.exchange.ledger import apply
from tokenworks.exchange.settlement import DAY_NS, digest
from tokenworks.exchange.state import BOOKS, State
from tokenworks.exchange.words import (
    AnyCommand,
    Burn,
    Entity,
    Grant,
    SellGrant,
    SetEntity,
    Settle,
    decode_command,
    encode_command,
)

FEES = {"north": 55, "south": 333, "dear": 1000}
HOMES = {"a": OPERATOR, "n": "north", "s": "south"}
Pair = tuple[str, str]
units = ("ustu", "nano")


class Line(msgspec.Struct):
    """The oracle's line: what was earned, lost and kept, in (micro-STU, nano)."""

    pair: Pair
    day_ns: int
    earned: tuple[int, int]
    lost: tuple[int, int]
    fee_nano: int
    statement: str | None = None


class Clearing(RuleBasedStateMachine):
    """Requests of three homes at four entities, days late, through statements, disputes, nettings and payments."""

    def __init__(self) -> None:
        super().__init__()
        self.state, self.now_ns, self.count = State(), 20_000 * DAY_NS, 0
        self.journal: list[bytes] = []
        self.lines: list[Line] = []
        self.frozen: dict[str, dict[str, Any]] = {}
        self.taken: dict[str, tuple[int, int]] = {}
        """What accepted disputes took back, by statement."""

    @initialize()
    def begin(self) -> None:
        for entity in (Entity(name="own", own=True), *(Entity(name=n, fee_permille=fee) for n, fee in FEES.items())):
            self.give(SetEntity(entity=entity))
        for name, home in HOMES.items():
            self.give(opening(name, home=home))
            self.give(budgeting(name, name))
            terms: dict[str, Any] = {"created_ns": 1, "effective_ns": 1, "expires_ns": None}
            self.give(SellGrant(grant=Grant(f"g{name}", name, "p", size_ustu=10**6, price_nano=10**6 // 3, **terms)))

    def give(self, command: AnyCommand) -> None:
        entries = apply(self.state, command)
        for book in BOOKS:
            assert sum(entry.amount for entry in entries if entry.book == book) == 0
        self.journal.append(encode_command(command))

    def refuse(self, command: AnyCommand) -> None:
        before = copy.deepcopy(self.state)
        with pytest.raises(LedgerRefused):
            apply(self.state, command)
        assert self.state == before

    def again(self, command: AnyCommand) -> None:
        """The same id with the same content changes nothing."""
        before = copy.deepcopy(self.state)
        assert apply(self.state, command) == []
        assert self.state == before

    def id(self, kind: str) -> str:
        self.count += 1
        return f"{kind}{self.count}"

    @rule(
        account=st.sampled_from([*HOMES]),
        entity=st.sampled_from(["own", "", *FEES]),
        amounts=st.tuples(st.integers(0, 9_999), st.integers(0, 9_999), st.integers(0, 999), st.integers(0, 99)),
        late=st.integers(0, 5),
    )
    def serve(self, account: str, entity: str, amounts: tuple[int, int, int, int], late: int) -> None:
        """A request: some of it from a package, some for money, some beyond its hold; perhaps told days late."""
        ustu, nano, burned, lost = amounts
        receipt, grant = self.id("r"), f"g{account}"
        before = self.state.grants[grant]
        hold = msgspec.structs.replace(
            holding(receipt, account, ustu + burned, nano, self.now_ns), parts=(Burn(grant, burned),)
        )
        self.give(hold)
        settled = settlement(
            receipt,
            account=account,
            budget=account,
            entity=entity,
            ustu=ustu + burned + lost,
            loss_ustu=lost,
            nano=nano + lost,
            loss_nano=lost,
            burned=(Burn(grant, burned),),
            at_ns=self.now_ns - late * DAY_NS,
        )
        self.give(Settle(settlement=settled))
        used = before.used_ustu + burned
        value = before.price_nano * used // before.size_ustu - before.price_nano * before.used_ustu // before.size_ustu
        pair = (entity if entity in FEES else OPERATOR, HOMES[account])
        earned = nano + lost + value
        fee = 0 if pair[0] in (OPERATOR, pair[1]) else earned * FEES[pair[0]] // 1000
        self.lines.append(Line(pair, settled.at_ns // DAY_NS * DAY_NS, (settled.ustu, earned), (lost, lost), fee))

    @rule(days=st.integers(1, 20))
    def wait(self, days: int) -> None:
        self.now_ns += days * DAY_NS

    @rule(number=st.integers(0, 20), back=st.integers(0, 6))
    def issue(self, number: int, back: int) -> None:
        pairs = sorted(self.state.unstated)
        if pairs:
            self.state_pair(*pairs[number % len(pairs)], self.now_ns - back * DAY_NS)

    def state_pair(self, entity: str, home: str, until_ns: int) -> None:
        mine = [x for x in self.lines if x.pair == (entity, home) and not x.statement and x.day_ns < until_ns]
        new = IssueStatement(
            id=self.id("st"),
            entity=entity,
            home=home,
            until_ns=until_ns,
            lines=len(mine),
            digest="d",
            at_ns=self.now_ns,
        )
        ended = max(
            (s.until_ns for s in self.state.statements.values() if (s.entity, s.home) == (entity, home)), default=0
        )
        replace = msgspec.structs.replace
        for wrong in (
            replace(new, lines=len(mine) + 1),
            replace(new, until_ns=until_ns + 1),
            replace(new, until_ns=self.now_ns + DAY_NS),
        ):
            self.refuse(wrong)
        if not mine or ended >= until_ns:
            self.refuse(new)
            return
        self.give(new)
        self.again(new)
        self.refuse(replace(new, digest="e"))
        for line in mine:
            line.statement = new.id
        made = self.state.statements[new.id]
        self.frozen[new.id] = msgspec.to_builtins(made)
        assert (made.since_ns, made.lines) == (ended, len(mine))
        assert made.paid_nano == sum(x.earned[1] - x.lost[1] for x in mine)
        assert made.paid_ustu == sum(x.earned[0] - x.lost[0] for x in mine)
        assert made.fee_nano == sum(x.fee_nano for x in mine)

    @rule(number=st.integers(0, 20), parts=st.tuples(st.integers(0, 1_050), st.integers(0, 1_050)))
    def dispute(self, number: int, parts: tuple[int, int]) -> None:
        """Some permille of what is left; above 1000 it is too much."""
        if not self.state.statements:
            return
        of = [*self.state.statements.values()][-1 - number % len(self.state.statements)]
        known = [d for d in self.state.disputes.values() if d.statement == of.id and d.state != "rejected"]
        left = [getattr(of, f"net_{unit}") - sum(getattr(d, unit) for d in known) for unit in units]
        ustu, nano = (have * part // 1_000 for have, part in zip(left, parts, strict=True))
        new = OpenDispute(id=self.id("d"), statement=of.id, ustu=ustu, nano=nano, reason="lost", at_ns=self.now_ns)
        if of.netting or not ustu + nano or ustu > left[0] or nano > left[1]:
            self.refuse(new)
            return
        self.give(new)
        self.again(new)
        self.refuse(msgspec.structs.replace(new, reason="late"))

    @rule(number=st.integers(0, 20), accepted=st.booleans())
    def answer(self, number: int, accepted: bool) -> None:
        self.refuse(AnswerDispute(id="none", accepted=accepted, answer="", at_ns=self.now_ns))
        disputes = [*self.state.disputes.values()]
        if not disputes:
            return
        of = disputes[number % len(disputes)]
        new = AnswerDispute(id=of.id, accepted=accepted, answer="so", at_ns=self.now_ns)
        if of.state == "open":
            self.give(new)
            if accepted:
                before = self.taken.get(of.statement, (0, 0))
                self.taken[of.statement] = (before[0] + of.ustu, before[1] + of.nano)
            self.refuse(msgspec.structs.replace(new, accepted=not accepted))
        if (of.state == "accepted") == accepted or of.state == "open":
            self.again(new)

    @rule()
    def net(self) -> None:
        disputed = {d.statement for d in self.state.disputes.values() if d.state == "open"}
        free = tuple(s.id for s in self.state.statements.values() if s.netting is None and s.id not in disputed)
        new = NetStatements(id=self.id("n"), statements=free, at_ns=self.now_ns)
        self.refuse(msgspec.structs.replace(new, statements=("nothing",)))
        self.refuse(msgspec.structs.replace(new, statements=free * 2))
        for name in disputed:
            self.refuse(msgspec.structs.replace(new, statements=(name,)))
        if not free:
            self.refuse(new)
            return
        self.give(new)
        self.again(new)
        self.refuse(msgspec.structs.replace(new, id="other"))
        self.refuse(msgspec.structs.replace(new, statements=free[:-1]))
        made = self.state.nettings[new.id]
        names = [frozenset((pair.debtor, pair.creditor)) for pair in made.pairs]
        assert len(names) == len(set(names)), "one figure for each pair"
        assert all(pair.nano > 0 or (pair.nano == 0 and pair.ustu > 0) for pair in made.pairs)

    @rule(number=st.integers(0, 99))
    def pay(self, number: int) -> None:
        open_ = [(n.id, p) for n in self.state.nettings.values() for p in n.pairs if p.settled_ns is None]
        if not open_:
            return
        name, pair = open_[number % len(open_)]
        new = SettlePair(id=name, debtor=pair.debtor, creditor=pair.creditor, reference="wire", at_ns=self.now_ns)
        self.refuse(msgspec.structs.replace(new, creditor=new.debtor))
        self.give(new)
        self.again(new)
        self.refuse(msgspec.structs.replace(new, reference="other"))

    @invariant()
    def what_customers_paid_is_what_entities_and_the_pool_got(self) -> None:
        """I12, in both units, whatever was stated, disputed, netted and paid so far."""
        balance = self.state.balances
        for unit, book, fees in ((0, "stu", "served"), (1, "money", "revenue/fees")):
            # Every account of the book by its first words, but for stocks of packages, which have books of their own.
            sums: dict[str, int] = {}
            for (b, account), amount in balance.items():
                if b == book:
                    sums[account.split("/")[0]] = sums.get(account.split("/")[0], 0) + amount
            earned = sum(line.earned[unit] for line in self.lines)
            got = sum(sums.get(n, 0) for n in ("payable", "served", "clearing", "adjustments", "home", "settled"))
            if book == "money":
                assert -got - sums.get("revenue", 0) == earned
                assert -balance.get((book, fees), 0) == sum(line.fee_nano for line in self.lines)
            else:
                assert -got == earned

    @invariant()
    def what_was_issued_stays(self) -> None:
        """Figures are frozen; every line is in one statement or in none yet; payables are what is not netted."""
        for name, figures in self.frozen.items():
            made = msgspec.to_builtins(self.state.statements[name])
            assert made | {"netting": None} == figures
        owed = dict.fromkeys(FEES, 0)
        open_: dict[Pair, int] = {}
        for line in self.lines:
            netted = line.statement is not None and self.state.statements[line.statement].netting is not None
            if line.pair[0] != OPERATOR and not netted:
                owed[line.pair[0]] += line.earned[1] - line.fee_nano
            if line.statement is None and line.pair != (OPERATOR, OPERATOR):
                open_[line.pair] = open_.get(line.pair, 0) + 1
        for name, (_, nano) in self.taken.items():
            made_of = self.state.statements[name]
            if made_of.netting is None and made_of.entity != OPERATOR:
                owed[made_of.entity] -= nano
        assert {name: -self.state.balances.get(("money", f"payable/entity/{name}"), 0) for name in FEES} == owed
        found = {pair: sum(s.lines for s in days.values()) for pair, days in self.state.unstated.items()}
        assert found == open_

    def teardown(self) -> None:
        """Everything stated, answered, netted and paid: nobody owes anybody, and each has what its lines say."""
        self.now_ns += 10 * DAY_NS
        for pair in sorted(self.state.unstated):
            self.state_pair(*pair, self.now_ns)
        for number in range(len(self.state.disputes)):
            self.answer(number, True)
        if any(each.netting is None for each in self.state.statements.values()):
            self.net()
        pairs = [pair for each in self.state.nettings.values() for pair in each.pairs]
        while any(p.settled_ns is None for n in self.state.nettings.values() for p in n.pairs):
            self.pay(0)
        for (_, account), amount in self.state.balances.items():
            assert not (account.startswith(("clearing/", "payable/")) and amount), account
        for unit, name in enumerate(units):
            for entity in (OPERATOR, *FEES):
                paid = sum(getattr(p, name) * ((p.creditor == entity) - (p.debtor == entity)) for p in pairs)
                assert paid == self.due(entity, unit), (entity, name)
        replayed = State()
        for record in self.journal:
            apply(replayed, decode_command(record))
        assert replayed == self.state

    def due(self, entity: str, unit: int) -> int:
        """What an entity is to get in all, from its lines: earned less fees and less what its customers paid it."""
        total = 0
        for made in self.state.statements.values():
            off = self.taken.get(made.id, (0, 0))[unit]
            net, fee, loss, paid = (getattr(made, f"{what}_{units[unit]}") for what in ("net", "fee", "loss", "paid"))
            total += (net - off) * (made.entity == entity) - (paid - off) * (made.home == entity != OPERATOR)
            if entity == OPERATOR:
                total += (fee - loss) if made.home != OPERATOR else -(net - off)
        return total


def test_entities_get_what_their_sites_earned() -> None:
    """After any commands, and when everything is paid."""
    run_state_machine_as_test(Clearing, settings=settings(max_examples=60, stateful_step_count=40, deadline=None))


def test_both_sides_compute_the_same_digest() -> None:
    """It is of the head and of each figure."""
    rows: list[tuple[str | int, ...]] = [("r1", 5, 0, 700, 0, 7), ("r2", 6, 1, 800, 2, 8)]
    made = digest("north", OPERATOR, 0, DAY_NS, rows)
    text = [["tokenworks statement v1", "north", OPERATOR, 0, DAY_NS], *rows]
    said = "".join(json.dumps(each, separators=(",", ":")) + "\n" for each in text)
    assert made == hashlib.sha256(said.encode()).hexdigest()
    for other in (rows[:1], rows[::-1], [rows[0], (*rows[1][:5], 9)]):
        assert digest("north", OPERATOR, 0, DAY_NS, other) != made
    assert digest("north", "south", 0, DAY_NS, rows) != made


def test_an_account_has_one_home() -> None:
    """An entity that is known and not the operator itself, and always the same."""
    state = State()
    apply(state, SetEntity(entity=Entity(name="own", own=True)))
    apply(state, SetEntity(entity=Entity(name="north")))
    for wrong in (opening("a", home="nort"), opening("a", home="own")):
        with pytest.raises(LedgerRefused):
            apply(state, wrong)
    apply(state, opening("a", home="north"))
    with pytest.raises(LedgerRefused, match="another home"):
        apply(state, opening("a"))
    with pytest.raises(LedgerRefused):
        apply(state, SetEntity(entity=Entity(name=OPERATOR, fee_permille=1)))
