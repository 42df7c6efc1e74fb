from __future__ import annotations

import copy
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from tests.support.exchange import budgeting, energy_line, holding, interval, opening, settlement

from tokenworks.core.errors import LedgerRefused
from tokenworks.core.words import CORRECTABLE, Interval, ServiceLine
from tokenworks.exchange.ledger import apply, as_booked
from tokenworks.exchange.state import BOOKS, DEPTH_MAX, LEDGER, Entry, Source, State
from tokenworks.exchange.words import (
    AddKey,
    AnyCommand,
    BillPower,
    Budget,
    Burn,
    CloseInterval,
    DefinePackage,
    EndEpoch,
    EndGrant,
    Entity,
    ExtendHold,
    GiveLease,
    Grant,
    Key,
    Lease,
    MarkRead,
    Package,
    PlaceHold,
    RevokeKey,
    SellGrant,
    SetBudget,
    SetEntity,
    Settle,
    Void,
    Window,
    decode_command,
    encode_command,
)


def adding(name: str, account: str, budget: str) -> AddKey:
    return AddKey(key=Key(id=name, hash=name.encode(), account=account, budget=budget, role="user", made_ns=1))


def settling(
    receipt: str, budget: str, account: str, ustu: int, nano: int, loss_ustu: int = 0, loss_nano: int = 0
) -> Settle:
    figures = {"ustu": ustu, "nano": nano, "loss_ustu": loss_ustu, "loss_nano": loss_nano}
    return Settle(settlement=settlement(receipt, account=account, budget=budget, **figures))


def closing(
    site: str, start_ns: int, end_ns: int, parts: tuple[int, int, int, int, int], *, priced: bool, error: int = 0
) -> CloseInterval:
    """``parts``: millijoules of a request, idle, a service, overhead and residual; money is a tenth each."""
    request, idle, service, overhead, residual = parts
    bill: dict[str, Any] = {}
    line = energy_line("r0", request, overhead_mj=overhead, device_nano=request * 3)
    served = ServiceLine(layer="brain", cpu_ns=1, energy_mj=service, energy_nano=None, carbon_ug=None)
    if priced:
        line = msgspec.structs.replace(line, energy_nano=request * 10, overhead_nano=overhead * 10)
        served = msgspec.structs.replace(served, energy_nano=service * 10)
        bill = {"bill_nano": (sum(parts) - residual) * 10, "idle_nano": idle * 10, "overhead_nano": overhead * 10}
    figures = {"idle_mj": idle, "overhead_mj": overhead, "residual_mj": residual, "idle_device_nano": idle * 3}
    meter: dict[str, Any] = {"end_ns": end_ns, "meter_mj": sum(parts) + error, "services": (served,)}
    return CloseInterval(interval=interval(site, start_ns, (line,), **meter, **figures, **bill))


DAY_NS = 86_400 * 10**9
START_NS = 19_780 * DAY_NS
"""Two days before the end of a February with 29 days."""
FAR_NS = START_NS + 10_000 * DAY_NS


class Model:
    """The oracle: plain dicts and lists, and sums over everything that ever happened instead of running figures."""

    def __init__(self) -> None:
        self.budgets: dict[str, Budget] = {}
        self.holds: dict[str, tuple[Source, PlaceHold]] = {}
        self.charges: list[tuple[str, int, int, int]] = []
        self.counted: dict[str, list[tuple[int, int, int]]] = {}
        """What counts against each budget: window, micro-STU, nano."""
        self.keys: dict[str, Key] = {}
        self.grants: dict[str, Grant] = {}
        self.burns: list[tuple[str, int, int]] = []
        self.leases: dict[tuple[Source, str], tuple[int, int]] = {}
        self.spent: list[tuple[Source, str, int, int]] = []
        """What a source charged to a counter of a window."""
        self.lost = [0, 0]
        self.earned: list[tuple[int, int]] = []

    def path(self, budget: str) -> list[str]:
        parent = self.budgets[budget].parent
        return [budget, *(self.path(parent) if parent else [])]

    def limited(self, budget: str) -> list[str]:
        parent = None if self.budgets[budget].carved else self.budgets[budget].parent
        return [budget, *(self.limited(parent) if parent else [])]

    def window(self, budget: str, at_ns: int) -> int:
        day = datetime.fromtimestamp(at_ns // DAY_NS * 86_400, tz=UTC)
        kind = self.budgets[budget].window
        start = day if kind == "day" else day.replace(day=1)
        return 0 if kind == "none" else int(start.timestamp()) * 10**9

    def counters(self, budget: str, at_ns: int) -> list[tuple[str, int]]:
        """The counters that a hold on a budget touches, and their windows."""
        nodes = [self.budgets[name] for name in self.limited(budget)]
        kinds = [(kind, n.id) for n in nodes for kind, limit in (("n", n.limit_nano), ("u", n.limit_ustu)) if limit]
        return [(f"{kind}:{name}", self.window(name, at_ns)) for kind, name in kinds]

    def out(self, counter: str, window_ns: int) -> int:
        mine = [
            (s, c, w, allowance) for (s, c), (w, allowance) in self.leases.items() if (c, w) == (counter, window_ns)
        ]
        return sum(allowance - self.used(s, c, w) for s, c, w, allowance in mine)

    def used(self, source: Source, counter: str, window_ns: int) -> int:
        return sum(amount for s, c, w, amount in self.spent if (s, c, w) == (source, counter, window_ns))

    def left(self, source: Source, counter: str, window_ns: int) -> int:
        """What an honest gateway may still hold."""
        leased_ns, allowance = self.leases.get((source, counter), (window_ns, 0))
        if leased_ns != window_ns:
            return 0
        held = 0
        for owner, hold in self.holds.values():
            if owner == source and (counter, window_ns) in self.counters(hold.budget, hold.at_ns):
                held += hold.nano if counter[0] == "n" else hold.ustu
            held += sum(part.ustu for part in hold.parts if owner == source and f"g:{part.grant}" == counter)
        return allowance - self.used(source, counter, window_ns) - held

    def spent_in(self, counter: str, window_ns: int) -> int:
        inside = [(ustu, nano) for at, ustu, nano in self.counted.get(counter[2:], ()) if at == window_ns]
        return sum(nano if counter[0] == "n" else ustu for ustu, nano in inside)

    def charge(self, budget: str, ustu: int, nano: int, held_ns: int) -> None:
        self.charges.append((budget, ustu, nano, held_ns))
        for node in self.limited(budget):
            self.counted.setdefault(node, []).append((self.window(node, held_ns), ustu, nano))

    def limit(self, counter: str) -> int:
        budget = self.budgets[counter[2:]]
        return (budget.limit_nano if counter[0] == "n" else budget.limit_ustu) or 0

    def spent_ever(self, counter: str) -> int:
        return sum(nano if counter[0] == "n" else ustu for _, ustu, nano in self.counted.get(counter[2:], ()))

    def carved(self, counter: str) -> int:
        """What was cut out of a budget: limits, and of closed ones what they had spent."""
        kind, name = counter[0], counter[2:]
        children = [
            f"{kind}:{c.id}" for c in self.budgets.values() if c.carved and name in self.limited(c.parent or "")
        ]
        closed = [c for c in children if self.budgets[c[2:]].closed_ns is not None]
        return sum(self.spent_ever(c) if c in closed else self.limit(c) for c in children)

    def free(self, counter: str, at_ns: int) -> int:
        if counter[0] == "g":
            grant = self.grants[counter[2:]]
            over = grant.ended_ns is not None or (grant.expires_ns or FAR_NS) <= at_ns
            return 0 if over else grant.size_ustu - self.burned(grant.id, FAR_NS) - self.out(counter, 0)
        window_ns = self.window(counter[2:], at_ns)
        if self.budgets[counter[2:]].closed_ns is not None:
            return 0
        used = self.carved(counter) + self.spent_in(counter, window_ns) + self.out(counter, window_ns)
        return self.limit(counter) - used

    def has_limit(self, counter: str) -> bool:
        budget = self.budgets[counter[2:]]
        return (budget.limit_nano if counter[0] == "n" else budget.limit_ustu) is not None

    def burned(self, grant: str, at_ns: int) -> int:
        return sum(ustu for name, ustu, burned_ns in self.burns if name == grant and burned_ns <= at_ns)

    def value(self) -> int:
        """What was earned with all grants by using them."""
        return sum(g.price_nano * self.burned(g.id, FAR_NS) // g.size_ustu for g in self.grants.values())

    def stock(self, account: str, at_ns: int) -> tuple[int, int]:
        """Tokens bought and not used, and their deferred money, as of a date. A hold may end after its grant did."""
        total = [0, 0]
        for grant in self.grants.values():
            used, ever = self.burned(grant.id, at_ns), self.burned(grant.id, FAR_NS)
            value, worth = (grant.price_nano * ustu // grant.size_ustu for ustu in (used, ever))
            over = min(grant.ended_ns or FAR_NS, grant.expires_ns or FAR_NS) <= at_ns
            if grant.account == account and grant.created_ns <= at_ns:
                total[0] += ever - used if over else grant.size_ustu - used
                total[1] += worth - value if over else grant.price_nano - value
        return total[0], total[1]


permille = st.integers(0, 1_000)
numbers = st.integers(0, 99)
windows = st.sampled_from(["none", "day", "month"])


class LedgerMachine(RuleBasedStateMachine):
    """Two honest gateways, an operator and a calendar against the oracle; wrong commands in between."""

    def __init__(self) -> None:
        super().__init__()
        self.state, self.model = State(), Model()
        self.now_ns, self.receipts, self.epochs = START_NS, 0, [1, 1]
        self.journal: list[tuple[bytes, Source]] = []
        self.entries: list[Entry] = []
        self.open: list[str] = []
        self.lowered: set[str] = set()
        """Whose limit was lowered, or counts what another window had: they may be beyond it already."""

    @initialize(window=st.sampled_from(["none", "day", "month"]), other=st.sampled_from(["none", "day", "month"]))
    def begin(self, window: Window, other: Window) -> None:
        for name in "ab":
            self.give(opening(name))
        for entity in (Entity(name="own", own=True), Entity(name="e", fee_permille=137)):
            self.give(SetEntity(entity=entity))
        self.set_budget(Budget("a", "a", None, "", limit_ustu=300, limit_nano=250, window=window))
        self.set_budget(Budget("a1", "a", "a", "", limit_ustu=None, limit_nano=120, window=other))
        self.set_budget(Budget("a2", "a", "a", "", limit_ustu=70, limit_nano=60, carved=True))
        self.set_budget(Budget("a3", "a", "a2", "", limit_ustu=40, limit_nano=None))
        self.set_budget(Budget("b", "b", None, "", limit_ustu=None, limit_nano=None, window=other))
        self.set_budget(Budget("b1", "b", "b", "", limit_ustu=100, limit_nano=None, window=window))

    def give(self, command: AnyCommand, source: Source = LEDGER) -> None:
        entries = apply(self.state, command, source)
        for book in BOOKS:
            assert sum(entry.amount for entry in entries if entry.book == book) == 0  # I1
        assert all(entry.amount for entry in entries)
        self.entries += [entry._replace(at_ns=entry.at_ns or self.now_ns) for entry in entries]
        self.journal.append((encode_command(command), source))

    def refuse(self, command: AnyCommand, source: Source = LEDGER) -> None:
        before = copy.deepcopy(self.state)
        with pytest.raises(LedgerRefused):
            apply(self.state, command, source)
        assert self.state == before, "a refused command changed the state"

    def source(self, gateway: int) -> Source:
        return (f"g{gateway}", self.epochs[gateway])

    def set_budget(self, budget: Budget) -> None:
        self.give(SetBudget(budget=budget, at_ns=self.now_ns))
        self.model.budgets[budget.id] = budget

    @rule(quarters=st.integers(1, 60))
    def wait(self, quarters: int) -> None:
        self.now_ns += quarters * DAY_NS // 4

    def node(self, number: int) -> str:
        return [*self.model.budgets][number % len(self.model.budgets)]

    @rule(number=numbers, more=st.integers(-40, 50))
    def change_limit(self, number: int, more: int) -> None:
        """Also of a carved one: as far as its parents still have it, and not below what it has spent or leased out."""
        old, model = self.model.budgets[self.node(number)], self.model
        if old.closed_ns is not None:
            return
        limits = [None if limit is None else max(1, limit + more) for limit in (old.limit_ustu, old.limit_nano)]
        new = msgspec.structs.replace(old, limit_ustu=limits[0], limit_nano=limits[1])
        mores = {k: after - model.limit(f"{k}:{old.id}") for k, after in zip("un", limits, strict=True) if after}
        gone = {k: model.spent_ever(f"{k}:{old.id}") + model.out(f"{k}:{old.id}", 0) for k in mores}
        if old.carved and (
            any((limits[0] if k == "u" else limits[1] or 0) < used for k, used in gone.items())  # type: ignore[operator]
            or not all(self.carves(old.parent or "", k, amount) for k, amount in mores.items())
        ):
            self.refuse(SetBudget(budget=new, at_ns=self.now_ns))
            return
        self.set_budget(new)
        if more < 0:
            self.lowered.add(old.id)

    def carves(self, parent: str, kind: str, more: int) -> bool:
        above = [f"{kind}:{node}" for node in self.model.limited(parent)]
        return all(more <= max(0, self.model.free(c, self.now_ns)) for c in above if self.model.has_limit(c))

    @rule(number=numbers, window=windows)
    def change_window(self, number: int, window: Window) -> None:
        """What was spent counts on; refused while something is held or leased out."""
        old, model = self.model.budgets[self.node(number)], self.model
        new = msgspec.structs.replace(old, window=window)
        if old.closed_ns is not None or window == old.window:
            return
        held = any((hold.ustu or hold.nano) and old.id in model.path(hold.budget) for _, hold in model.holds.values())
        now_ns = model.window(old.id, self.now_ns)
        if old.carved or held or any(model.out(f"{kind}:{old.id}", now_ns) for kind in "nu"):
            self.refuse(SetBudget(budget=new, at_ns=self.now_ns))
            return
        counted = [row for row in model.counted.get(old.id, []) if row[0] == now_ns]
        if window == "none":
            mine = [charge for charge in model.charges if old.id in model.path(charge[0])]
            counted = [(0, ustu, nano) for _, ustu, nano, _ in mine]
        self.set_budget(new)
        model.counted[old.id] = [(model.window(old.id, self.now_ns), ustu, nano) for _, ustu, nano in counted]
        self.lowered.add(old.id)

    @rule(
        number=numbers, limits=st.tuples(st.integers(1, 80), st.integers(1, 80)), carved=st.booleans(), window=windows
    )
    def grow(self, number: int, limits: tuple[int, int], carved: bool, window: Window) -> None:
        """A new budget below any other, perhaps carved: an agent's mandate."""
        parent, model = self.model.budgets[self.node(number)], self.model
        if len(model.budgets) >= 12:
            return
        new = Budget(
            f"c{len(model.budgets)}",
            parent.account,
            parent.id,
            "",
            limit_ustu=limits[0],
            limit_nano=limits[1],
            window="none" if carved else window,
            carved=carved,
            expires_ns=self.now_ns + DAY_NS,
        )
        fits = all(self.carves(parent.id, kind, more) for kind, more in zip("un", limits, strict=True))
        if carved and not fits:
            self.refuse(SetBudget(budget=new, at_ns=self.now_ns))
        else:
            self.set_budget(new)
        self.refuse(SetBudget(budget=msgspec.structs.replace(new, id="c", parent="nothing"), at_ns=self.now_ns))

    @rule(number=numbers)
    def close(self, number: int) -> None:
        """A carved one gives back what it did not spend, once nothing of it is leased out."""
        old, model = self.model.budgets[self.node(number)], self.model
        if old.closed_ns is not None or number % 3:
            return
        new = msgspec.structs.replace(old, closed_ns=self.now_ns)
        if old.carved and any(model.out(f"{kind}:{old.id}", 0) for kind in "nu"):
            self.refuse(SetBudget(budget=new, at_ns=self.now_ns))
        else:
            self.set_budget(new)

    @rule(number=numbers, revoke=st.booleans())
    def key(self, number: int, revoke: bool) -> None:
        """Keys are added once, and revoked at the first instant."""
        name, model = f"k{number % 4}", self.model
        budget = model.budgets[self.node(number)]
        if revoke and name in model.keys:
            self.give(RevokeKey(key=name, at_ns=self.now_ns))
            if model.keys[name].revoked_ns is None:
                model.keys[name] = msgspec.structs.replace(model.keys[name], revoked_ns=self.now_ns)
        elif name in model.keys:
            self.refuse(adding(name, "b" if budget.account == "a" else "a", budget.id))
        else:
            self.give(adding(name, budget.account, budget.id))
            model.keys[name] = Key(name, name.encode(), budget.account, budget.id, role="user", made_ns=1)
        assert self.state.keys == model.keys

    @rule(size=st.integers(1, 99), price=st.integers(0, 99))
    def change_package(self, size: int, price: int) -> None:
        """New terms are for later sales: what was sold stays as it was."""
        before = copy.deepcopy(self.state.grants)
        self.give(DefinePackage(package=Package("p", "p", size_ustu=size, price_nano=price, validity_ns=None)))
        assert self.state.grants == before

    @rule(account=st.sampled_from("ab"), size=st.integers(1, 60), price=st.integers(0, 99), days=st.integers(0, 40))
    def sell(self, account: str, size: int, price: int, days: int) -> None:
        grant = Grant(
            id=f"p{len(self.model.grants)}",
            account=account,
            package="p",
            size_ustu=size,
            price_nano=price,
            created_ns=self.now_ns,
            effective_ns=self.now_ns,
            expires_ns=self.now_ns + days * DAY_NS if days else None,
        )
        self.give(SellGrant(grant=grant))
        self.model.grants[grant.id] = grant
        assert apply(self.state, SellGrant(grant=grant)) == []
        self.refuse(SellGrant(grant=msgspec.structs.replace(grant, size_ustu=size + 1)))

    @rule(number=st.integers(0, 9), refund=permille)
    def refund(self, number: int, refund: int) -> None:
        if not self.model.grants:
            return
        grant = self.model.grants[f"p{number % len(self.model.grants)}"]
        left = grant.price_nano - grant.price_nano * self.model.burned(grant.id, FAR_NS) // grant.size_ustu
        over = grant.ended_ns is not None or (grant.expires_ns or FAR_NS) <= self.now_ns
        promised = any(part.grant == grant.id for _, hold in self.model.holds.values() for part in hold.parts)
        self.refuse(EndGrant(grant=grant.id, refund_nano=left + 1, reason="", at_ns=self.now_ns))
        command = EndGrant(grant=grant.id, refund_nano=left * refund // 1_000, reason="", at_ns=self.now_ns)
        if over or promised or self.model.out(f"g:{grant.id}", 0):
            self.refuse(command)
            return
        self.give(command)
        self.model.grants[grant.id] = msgspec.structs.replace(grant, ended_ns=self.now_ns)

    @rule(gateway=st.integers(0, 1), number=st.integers(0, 99), share=permille, greedy=st.booleans())
    def lease(self, gateway: int, number: int, share: int, greedy: bool) -> None:
        """A gateway gets some of what is free, or gives back what it does not hold; more than is free is refused."""
        source, model = self.source(gateway), self.model
        known = {c: w for leaf in model.budgets for c, w in model.counters(leaf, self.now_ns)}
        known |= {f"g:{name}": 0 for name in model.grants}
        counter = list(known)[number % len(known)]
        window_ns, free = known[counter], model.free(counter, self.now_ns)
        leased_ns, allowance = model.leases.get((source, counter), (window_ns, 0))
        before = allowance if leased_ns == window_ns else 0
        self.give(GiveLease(writer=source[0], epoch=source[1], leases=(), at_ns=self.now_ns))
        if greedy:
            lease = Lease(counter=counter, window_ns=window_ns, allowance=before + max(0, free) + 1)
            self.refuse(GiveLease(writer=source[0], epoch=source[1], leases=(lease,), at_ns=self.now_ns))
        self.change(source, counter, window_ns, free * share // 1_000 if share < 800 else -1_000)

    def change(self, source: Source, counter: str, window_ns: int, more: int) -> None:
        leased_ns, allowance = self.model.leases.get((source, counter), (window_ns, 0))
        before = allowance if leased_ns == window_ns else 0
        if leased_ns != window_ns:  # a new lease: what was spent of an older one in a window like it does not count
            self.model.spent = [row for row in self.model.spent if row[:3] != (source, counter, window_ns)]
        after = before + max(more, -max(0, self.model.left(source, counter, window_ns)))
        lease = Lease(counter=counter, window_ns=window_ns, allowance=after)
        self.give(GiveLease(writer=source[0], epoch=source[1], leases=(lease,), at_ns=self.now_ns))
        self.model.leases[source, counter] = (window_ns, after)

    @rule(
        gateway=st.integers(0, 1),
        leaf=numbers,
        ustu=st.integers(0, 60),
        nano=st.integers(0, 60),
        number=st.integers(0, 3),
    )
    def hold(self, gateway: int, leaf: int, ustu: int, nano: int, number: int) -> None:
        """As much as its leases allow, grants first; mostly it asks for what it lacks before."""
        source, model = self.source(gateway), self.model
        name = self.node(leaf)
        grants = [(f"g:{g.id}", 0) for g in model.grants.values() if g.account == model.budgets[name].account]
        for counter, window_ns in [*model.counters(name, self.now_ns), *grants]:
            short = (nano if counter[0] == "n" else ustu) - model.left(source, counter, window_ns)
            if short > 0 and number % 4:
                self.change(source, counter, window_ns, min(short, model.free(counter, self.now_ns)))
        ustu, nano, parts = self.fits(source, name, self.now_ns, ustu, nano)
        self.receipts += 1
        command = PlaceHold(
            receipt=f"r{self.receipts}", budget=name, ustu=ustu, nano=nano, at_ns=self.now_ns, parts=parts
        )
        self.give(command, source)
        model.holds[command.receipt] = (source, command)
        self.open.append(command.receipt)
        self.give(command, source)
        self.refuse(msgspec.structs.replace(command, ustu=ustu + 1), source)

    def fits(self, source: Source, leaf: str, at_ns: int, ustu: int, nano: int) -> tuple[int, int, tuple[Burn, ...]]:
        for counter, window_ns in self.model.counters(leaf, at_ns):
            left = self.model.left(source, counter, window_ns)
            nano, ustu = (min(nano, left), ustu) if counter[0] == "n" else (nano, min(ustu, left))
        parts, rest = [], ustu
        for grant in self.model.grants.values():
            left = min(rest, self.model.left(source, f"g:{grant.id}", 0))
            alive = grant.ended_ns is None and (grant.expires_ns or FAR_NS) > self.now_ns
            if alive and left > 0 and grant.account == self.model.budgets[leaf].account:
                parts.append(Burn(grant=grant.id, ustu=left))
                rest -= left
        return ustu, nano, tuple(parts)

    @rule(number=st.integers(0, 99), ustu=st.integers(0, 30), nano=st.integers(0, 30))
    def extend(self, number: int, ustu: int, nano: int) -> None:
        if not self.open:
            return
        receipt = self.open[number % len(self.open)]
        source, hold = self.model.holds[receipt]
        ustu, nano, parts = self.fits(source, hold.budget, hold.at_ns, ustu, nano)
        self.give(ExtendHold(receipt=receipt, ustu=ustu, nano=nano, parts=parts), source)
        longer = msgspec.structs.replace(hold, ustu=hold.ustu + ustu, nano=hold.nano + nano, parts=hold.parts + parts)
        self.model.holds[receipt] = (source, longer)

    @rule(
        number=st.integers(0, 99),
        ustu=permille,
        nano=permille,
        loss=st.integers(0, 9),
        entity=st.sampled_from(["", "own", "e", "new"]),
    )
    def settle(self, number: int, ustu: int, nano: int, loss: int, entity: str) -> None:
        if not self.open:
            return
        receipt = self.open.pop(number % len(self.open))
        source, hold = self.model.holds.pop(receipt)
        account, model = self.model.budgets[hold.budget].account, self.model
        charged, paid, burned = hold.ustu * ustu // 1_000, hold.nano * nano // 1_000, []
        rest = charged
        for part in hold.parts:
            if take := min(rest, part.ustu):
                burned.append(Burn(grant=part.grant, ustu=take))
                rest -= take
        true = settling(receipt, hold.budget, account, charged + loss, paid + loss, loss, loss).settlement
        true = msgspec.structs.replace(true, entity=entity, burned=tuple(burned), at_ns=self.now_ns)
        replace = msgspec.structs.replace
        self.refuse(Settle(settlement=replace(true, ustu=hold.ustu + loss + 1)), source)
        self.refuse(Settle(settlement=replace(true, nano=hold.nano + loss + 1)), source)
        before = model.value()
        self.give(Settle(settlement=true), source)
        self.refuse(Settle(settlement=true), source)
        self.refuse(Void(receipt=receipt, reason="", at_ns=self.now_ns))  # I4
        for counter, window_ns in model.counters(hold.budget, hold.at_ns):
            model.spent.append((source, counter, window_ns, paid if counter[0] == "n" else charged))
        for burn in burned:
            model.burns.append((burn.grant, burn.ustu, self.now_ns))
            model.spent.append((source, f"g:{burn.grant}", 0, burn.ustu))
        model.charge(hold.budget, charged, paid, hold.at_ns)
        model.lost = [lost + loss for lost in model.lost]
        if entity == "e":
            model.earned.append((paid + loss, model.value() - before))

    @rule(
        gateway=st.integers(0, 1),
        leaf=numbers,
        asked=st.integers(1, 50),
        used=permille,
        nano=st.integers(0, 50),
        entity=st.sampled_from(["own", "e"]),
    )
    def serve(self, gateway: int, leaf: int, asked: int, used: int, nano: int, entity: str) -> None:
        """A whole request, and the tokens that a client left open before."""
        self.hold(gateway, leaf, asked, nano, 1)
        self.extend(len(self.open) - 1, asked // 2, nano // 2)
        self.settle(len(self.open) - 1, used, used, 0, entity)
        self.settle(asked, 1_000, 1_000, nano, entity)

    @rule(number=st.integers(0, 99))
    def void(self, number: int) -> None:
        if self.open:
            receipt = self.open.pop(number % len(self.open))
            self.model.holds.pop(receipt)
            self.give(Void(receipt=receipt, reason="", at_ns=self.now_ns))
            self.refuse(Void(receipt=receipt, reason="", at_ns=self.now_ns))

    @rule(gateway=st.integers(0, 1), late=st.integers(0, 20))
    def end_epoch(self, gateway: int, late: int) -> None:
        """A gateway is declared dead: its holds are void. What it says afterwards charges nobody."""
        source, model = self.source(gateway), self.model
        dead = [receipt for receipt in self.open if model.holds[receipt][0] == source]
        for receipt in dead:
            self.give(Void(receipt=receipt, reason="", at_ns=self.now_ns))
            self.open.remove(receipt)
        self.give(EndEpoch(writer=source[0], epoch=source[1], reason="", at_ns=self.now_ns))
        self.epochs[gateway] += 1
        model.leases = {key: lease for key, lease in model.leases.items() if key[0] != source}
        self.refuse(GiveLease(writer=source[0], epoch=source[1], leases=(), at_ns=self.now_ns))
        self.give(holding("too-late", "a", late, late, self.now_ns), source)
        assert "too-late" not in self.state.holds
        for receipt in dead:
            hold = model.holds.pop(receipt)[1]
            account = model.budgets[hold.budget].account
            told = settling(receipt, hold.budget, account, late, late).settlement
            told = msgspec.structs.replace(told, list_nano=late, burned=hold.parts[:1])
            if late:
                self.refuse(Settle(settlement=told), source)
            self.give(Settle(settlement=as_booked(self.state, told, source)), source)
            model.lost = [lost + late for lost in model.lost]

    @rule(number=st.integers(0, 99))
    def wrong(self, number: int) -> None:
        """Commands that are never right."""
        unlike = Grant("px", "a", "p", 1, 0, created_ns=1, effective_ns=1, expires_ns=None)
        replace = msgspec.structs.replace
        wrongs: list[AnyCommand] = [
            holding("w", "nowhere", 1, 1),
            holding("w", "a", -1, 1),
            replace(holding("w", "a", 1, 1), parts=(Burn("nothing", 1),)),
            replace(holding("w", "a", 1, 1), parts=(Burn("p0", 2),)),
            ExtendHold(receipt="nothing", ustu=1, nano=1),
            settling("nothing", "a", "a", 1, 1),
            settling("nothing", "a", "a", 1, 1, 2, 0),
            budgeting("a1", "a", "b"),
            budgeting("a1", "b", "a"),
            budgeting("a4", "a", "b1"),
            SetBudget(budget=Budget("a1", "a", "a", "", limit_ustu=None, limit_nano=120, carved=True)),
            SetBudget(budget=Budget("a4", "a", None, "", limit_ustu=1, limit_nano=1, carved=True)),
            SetBudget(budget=Budget("a4", "a", "a", "", limit_ustu=1, limit_nano=10**9, carved=True)),
            budgeting("a", "a", None, -1),
            SellGrant(grant=replace(unlike, size_ustu=0)),
            SellGrant(grant=replace(unlike, price_nano=-1)),
            SellGrant(grant=replace(unlike, used_ustu=1)),
            SellGrant(grant=replace(unlike, expires_ns=1)),
            SellGrant(grant=replace(unlike, account="c")),
            EndGrant(grant="px", refund_nano=0, reason="", at_ns=1),
            SetEntity(entity=Entity(name="e", fee_permille=1001)),
            DefinePackage(package=Package("p", "p", size_ustu=0, price_nano=0, validity_ns=None)),
            RevokeKey(key="k", at_ns=1),
            adding("k", "a", "b"),
        ]
        self.refuse(wrongs[number % len(wrongs)])
        self.give(MarkRead(places=()))

    def balance(self, book: str, prefix: str, as_of_ns: int = FAR_NS) -> int:
        mine = (e for e in self.entries if e.book == book and e.account.startswith(prefix) and e.at_ns <= as_of_ns)
        return sum(entry.amount for entry in mine)

    @invariant()
    def tallies_are_the_models(self) -> None:
        """I3: every node has what was spent and is held below it."""
        expected = {name: [0, 0, 0, 0] for name in self.model.budgets}
        for budget, ustu, nano, _ in self.model.charges:
            for node in self.model.path(budget):
                expected[node][0] += ustu
                expected[node][1] += nano
        for _, hold in self.model.holds.values():
            for node in self.model.path(hold.budget):
                expected[node][2] += hold.ustu
                expected[node][3] += hold.nano
        found = {n: [t.spent_ustu, t.spent_nano, t.held_ustu, t.held_nano] for n, t in self.state.tallies.items()}
        assert found == expected
        assert self.state.holds == {receipt: hold for receipt, (_, hold) in self.model.holds.items()}

    @invariant()
    def no_limit_is_overspent(self) -> None:
        """I2: spent in the window and leased out together stay within each limit, also of windows that are over."""
        model = self.model
        counters = {f"g:{name}" for name in model.grants} | {
            c for b in model.budgets for c, _ in model.counters(b, self.now_ns)
        }
        for counter in counters:
            free = self.state.free(counter, self.now_ns)
            assert free == model.free(counter, self.now_ns), counter
            assert free >= 0 or counter[2:] in self.lowered, counter
        for counter in counters:
            if counter[0] != "g" and counter[2:] not in self.lowered:
                counted = {window_ns for window_ns, _, _ in model.counted.get(counter[2:], ())}
                assert all(model.spent_in(counter, window_ns) <= model.limit(counter) for window_ns in counted)

    @invariant()
    def packages_are_whole_as_of_any_date(self) -> None:
        """I10: used, left, expired and refunded are the whole of what was sold, today, on each expiry, and for ever."""
        dates = {START_NS, self.now_ns, FAR_NS - 1, *(g.expires_ns for g in self.model.grants.values() if g.expires_ns)}
        for at_ns in dates:
            sides = [self.balance("stu", name, at_ns) for name in ("used", "expired", "refunded", "issued")]
            stock = [self.model.stock(account, at_ns) for account in "ab"]
            for account, (left, deferred) in zip("ab", stock, strict=True):
                assert self.balance("stu", f"stock/{account}", at_ns) == left
                assert self.balance("money", f"deferred/{account}", at_ns) == -deferred
            assert sum(sides) + sum(left for left, _ in stock) == 0
            assert sides[0] == sum(self.model.burned(name, at_ns) for name in self.model.grants)
        for grant in self.model.grants.values():
            assert self.state.grants[grant.id].used_ustu == self.model.burned(grant.id, FAR_NS) <= grant.size_ustu

    @invariant()
    def balances_are_their_entries_and_close(self) -> None:
        """I1, I12, I13: entries make the balances; who served gets what was earned less a fee, rounded down."""
        balances: dict[tuple[str, str], int] = {}
        for book, account, amount, _ in self.entries:
            balances[book, account] = balances.get((book, account), 0) + amount
        assert self.state.balances == balances
        for book in BOOKS:
            assert sum(amount for (b, _), amount in balances.items() if b == book) == 0
        owed = sum(amount for (b, account), amount in balances.items() if b == "stu" and "customer/" in account)
        assert owed == sum(ustu for _, ustu, _, _ in self.model.charges)
        losses = [balances.get((book, "loss/operator"), 0) for book in ("stu", "money")]
        assert losses == self.model.lost
        fee, paid = (-balances.get(("money", name), 0) for name in ("revenue/fees", "payable/entity/e"))
        earned = sum(money + grants for money, grants in self.model.earned)
        assert fee + paid == earned
        assert 0 <= earned * 137 - fee * 1_000 < 1_000 * max(1, len(self.model.earned))

    def teardown(self) -> None:
        """I6."""
        replayed = State()
        for record, source in self.journal:
            apply(replayed, decode_command(record), source)
        assert replayed == self.state, "the journal does not lead to the same state"


def test_the_ledger_is_the_oracle_after_every_command() -> None:
    """After any commands its figures are the oracle's, its books close, and a refusal changes nothing."""
    run_state_machine_as_test(LedgerMachine, settings=settings(max_examples=100, stateful_step_count=40, deadline=None))


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
        Entry("stu", "served/own", -12),
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


def test_a_correction_is_booked_once_and_in_order() -> None:
    """The next number of a time that can still be corrected, with differences that close; the entries add up."""
    state, replaced = State(), msgspec.structs.replace
    for start_ns in range(0, 10 * CORRECTABLE, 10):
        apply(state, closing("s", start_ns, start_ns + 10, (5, 4, 3, 2, 1), priced=True))
    first = closing("s", 0, 10, (7, -4, -3, 0, 0), priced=True).interval
    before = dict(state.balances)
    for wrong in (
        {"corrects": 2},
        {"corrects": -1},
        {"corrects": 1, "end_ns": 9},
        {"corrects": 1, "start_ns": 1},
        {"corrects": 1, "site": "t"},
        {"corrects": 1, "meter_mj": 1},
        {},
    ):
        refused(state, CloseInterval(interval=replaced(first, **wrong)))
    correction = CloseInterval(interval=replaced(first, corrects=1))
    apply(state, correction)
    moved = {key: amount - before.get(key, 0) for key, amount in state.balances.items() if amount != before.get(key)}
    assert moved == {
        ("energy", "requests/s"): 7, ("energy", "idle/s"): -4, ("energy", "service/s"): -3,
        ("money", "cost/energy/requests"): 70, ("money", "cost/energy/idle"): -40,
        ("money", "cost/energy/service"): -30, ("money", "cost/device/requests"): 21,
        ("money", "cost/device/idle"): -12, ("money", "depreciation/s"): -9,
    }  # fmt: skip
    refused(state, correction)
    apply(state, CloseInterval(interval=replaced(first, corrects=2)))
    assert state.interval_end_ns == {"s": 10 * CORRECTABLE}
    apply(state, closing("s", 10 * CORRECTABLE, 10 * CORRECTABLE + 10, (5, 4, 3, 2, 1), priced=True))
    assert "correct" in refused(state, CloseInterval(interval=replaced(first, corrects=3))).message
    assert len(state.closed["s"]) == CORRECTABLE


def test_a_bill_is_booked_once_whatever_is_said() -> None:
    """The sums of what was said last are in the books: said again there is no entry, said otherwise the difference."""
    state = State()

    def said(what: str, nano: int, site: str = "s") -> list[tuple[str, int]]:
        part: Any = "events" if what.startswith("event") else "demand"
        bill = BillPower(site=site, supply="grid", part=part, what=what, nano=nano, at_ns=5)
        return [(entry.account, entry.amount) for entry in apply(state, bill)]

    assert said("peak", 30) == [("cost/energy/demand", 30), ("payable/power/grid", -30)]
    assert said("peak", 30) == []
    assert said("peak", 45) == [("cost/energy/demand", 15), ("payable/power/grid", -15)]
    assert said("event e", -20) == [("cost/energy/events", -20), ("payable/power/grid", 20)]
    assert said("event e", 0) == [("cost/energy/events", 20), ("payable/power/grid", -20)]
    assert said("peak", 1, site="t") == [("cost/energy/demand", 1), ("payable/power/grid", -1)]
    assert state.bills == {("s", "peak"): 45, ("s", "event e"): 0, ("t", "peak"): 1}
    assert state.balances["money", "payable/power/grid"] == -46


def test_a_key_is_revoked_once_and_stays_so() -> None:
    """The first instant counts, and the same key cannot be added again."""
    state = tree()
    apply(state, adding("k", "a", "b0"))
    apply(state, RevokeKey(key="k", at_ns=5))
    apply(state, RevokeKey(key="k", at_ns=6))
    assert state.keys["k"].revoked_ns == 5
    refused(state, adding("k", "a", "b0"))
