"""Budgets and packages in a gateway's memory: holds on a whole path in one step, inside rights that the ledger leased.

A counter is one limit of one budget, or one grant. Its allowance is what this gateway may spend of it in all; the
ledger has taken that from the counter already, so any number of gateways cannot overspend it together. Every method is
synchronous and touches no file or socket: on one event loop it is atomic. The invariant, for every counter at every
moment: used + held <= allowance.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from tokenworks.core.errors import BudgetSpent
from tokenworks.core.units import money_text, stu_text
from tokenworks.core.words import Amount
from tokenworks.exchange.calendar import window_end_ns, window_start_ns
from tokenworks.exchange.words import Budget, Burn, Grant, Lease, Window


class Counter:
    """One leased limit: of money (nano) or of standard tokens (ustu)."""

    __slots__ = ("allowance", "dry_ns", "ends_ns", "held", "id", "left", "money", "used_at_beat", "window", "window_ns")

    def __init__(self, id: str, window: Window = "none") -> None:  # noqa: A002 - the counter's own name
        self.id = id
        self.money = id.startswith("n:")
        self.window: Window = window
        self.window_ns = 0
        self.ends_ns: int | None = 0 if window != "none" else None
        """When the window is over and nothing of the lease is left."""
        self.allowance = 0
        self.held = 0
        self.left = 0
        """What may still be held: the allowance without what is used or held."""
        self.used_at_beat = -1
        self.dry_ns = 0
        """Until when it is not worth asking the ledger for more: it had none."""

    @property
    def used(self) -> int:
        """What was spent of the allowance."""
        return self.allowance - self.left - self.held

    def roll(self, now_ns: int) -> None:
        """Into the present window: what was leased for the old one is void. Holds placed before count no more."""
        if self.ends_ns is not None and now_ns >= self.ends_ns:
            self.window_ns, self.ends_ns = window_start_ns(self.window, now_ns), window_end_ns(self.window, now_ns)
            self.allowance = self.left = self.held = 0

    def take(self, lease: Lease) -> None:
        """A new allowance; one for another window is of no use any more."""
        if lease.window_ns == self.window_ns:
            self.allow(lease.allowance)

    def allow(self, allowance: int) -> None:
        """Another allowance, at least what is used and held of it already."""
        taken = self.allowance - self.left
        self.allowance = max(allowance, taken)
        self.left = self.allowance - taken


class Shortage(BudgetSpent):
    """The leases of this gateway do not cover the request; the ledger may have more."""

    def __init__(self, counters: Sequence[tuple[Counter, int]], message: str, hint: str) -> None:
        super().__init__(message, hint=hint)
        self.counters = counters
        """What is short, and how much is needed of it."""


class Path:
    """A leaf budget's way to the root: its counters, the grants of its account, and until when it may be used."""

    __slots__ = ("blocks", "budgets", "counters", "expires_ns", "grants", "money", "stu", "windowed")

    def __init__(
        self, budgets: tuple[Budget, ...], counters: tuple[Counter, ...], grants: list[Purse], blocks: bool
    ) -> None:
        self.budgets, self.counters, self.grants, self.blocks = budgets, counters, grants, blocks
        self.money = [counter for counter in counters if counter.money]
        self.stu = [counter for counter in counters if not counter.money]
        self.windowed = any(counter.window != "none" for counter in counters)
        ends = [e for b in budgets for e in (b.expires_ns, b.closed_ns) if e is not None]
        self.expires_ns = min(ends) if ends else None


class Purse:
    """One grant and its counter."""

    __slots__ = ("counter", "grant")

    def __init__(self, grant: Grant, counter: Counter) -> None:
        self.grant, self.counter = grant, counter

    def fits(self, model: str, sites: Collection[str], now_ns: int) -> bool:
        """May it pay for this model now, at one of these sites?"""
        grant = self.grant
        if now_ns < grant.effective_ns or (grant.expires_ns is not None and now_ns >= grant.expires_ns):
            return False
        return (not grant.models or model in grant.models) and (
            not grant.sites or any(site in grant.sites for site in sites)
        )


class Promise:
    """What one request holds: amounts on its path, and parts of grants in burn order."""

    __slots__ = ("nano", "parts", "path", "ustu", "windows")

    def __init__(self, path: Path) -> None:
        self.path = path
        self.ustu = self.nano = 0
        self.parts: list[tuple[Purse, int]] = []
        self.windows: tuple[int, ...] = ()
        """Of the counters when it was first held: a counter that has rolled since does not know it any more."""


def burns(parts: Iterable[tuple[Purse, int]]) -> tuple[Burn, ...]:
    """Parts of grants as the journal writes them."""
    return tuple([Burn(grant=purse.grant.id, ustu=ustu) for purse, ustu in parts])


def burn_order(grants: Iterable[Grant]) -> list[Grant]:
    """Priority, earliest expiry, promotional first, earliest effective, earliest created; the id makes it total."""
    never = 1 << 63
    return sorted(
        grants,
        key=lambda g: (
            g.priority,
            never if g.expires_ns is None else g.expires_ns,
            not g.promotional,
            g.effective_ns,
            g.created_ns,
            g.id,
        ),
    )


def check_time(path: Path, now_ns: int) -> None:
    """Raises BudgetSpent for a mandate that has expired or was closed."""
    if path.expires_ns is not None and now_ns >= path.expires_ns:
        raise BudgetSpent(f"the mandate {path.budgets[0].id!r} is over", hint="ask whoever gave it for a new one")


def hold(
    promise: Promise, amount: Amount, model: str, sites: Collection[str], now_ns: int, currency: str
) -> Sequence[tuple[Purse, int]]:
    """Add an amount to a promise: on every counter of the path and from grants in burn order, or nowhere.

    Grants cover standard tokens first; money is held for the rest only. Returns the parts of grants that it took.
    Raises Shortage when this gateway's leases do not cover it, BudgetSpent when a package-only account has none.
    """
    path, ustu, nano = promise.path, amount.ustu, amount.nano
    parts: list[tuple[Purse, int]] = []
    if path.grants or path.blocks:
        left = _from_grants(path, parts, ustu, model, sites, now_ns)
        nano = nano if left == ustu else -(-nano * left // ustu)
    money: Sequence[Counter] = path.money
    stu: Sequence[Counter] = path.stu
    if path.windowed:
        money, stu = _in_window(promise, now_ns)
    for counter in stu:
        if counter.left < ustu:
            raise _shortage(path, (*money, *stu), nano, ustu, currency)
    for counter in money:
        if counter.left < nano:
            raise _shortage(path, (*money, *stu), nano, ustu, currency)
    if path.windowed and not (promise.ustu or promise.nano):
        promise.windows = tuple([counter.window_ns for counter in path.counters])
    for counter in stu:
        counter.left -= ustu
        counter.held += ustu
    for counter in money:
        counter.left -= nano
        counter.held += nano
    for purse, part in parts:
        purse.counter.left -= part
        purse.counter.held += part
    promise.parts += parts
    promise.ustu += ustu
    promise.nano += nano
    return parts


def _from_grants(
    path: Path, parts: list[tuple[Purse, int]], ustu: int, model: str, sites: Collection[str], now_ns: int
) -> int:
    """Find what grants cover of standard tokens, in burn order; returns what they do not. Raises as ``hold``."""
    left = ustu
    for purse in path.grants:
        if not left:
            break
        if purse.fits(model, sites, now_ns) and (part := min(left, max(0, purse.counter.left))):
            parts.append((purse, part))
            left -= part
    if left:
        # What was paid for is used first: money is only for what no grant has left, here or at the ledger.
        asking = [p.counter for p in path.grants if p.counter.dry_ns <= now_ns and p.fits(model, sites, now_ns)]
        wet = [(counter, left + max(0, counter.left)) for counter in asking]
        if wet or path.blocks:
            what = f"the packages of {path.budgets[-1].account!r} lack {stu_text(left)} for this request"
            hint = "buy another package; this account does not pay as it goes"
            raise Shortage(wet, what, hint) if wet else BudgetSpent(what, hint=hint)
    return left


def _in_window(promise: Promise, now_ns: int) -> tuple[list[Counter], list[Counter]]:
    """The counters of money and of standard tokens on which an amount counts now."""
    path = promise.path
    if promise.ustu or promise.nano:
        # A window that ended meanwhile is over: the request goes on counting only where it began.
        pairs = zip(path.counters, promise.windows, strict=True)
        counters = [counter for counter, window_ns in pairs if counter.window_ns == window_ns]
        return [c for c in counters if c.money], [c for c in counters if not c.money]
    for counter in path.counters:
        counter.roll(now_ns)
    return path.money, path.stu


def _shortage(path: Path, counters: Sequence[Counter], nano: int, ustu: int, currency: str) -> Shortage:
    needs = [(counter, nano if counter.money else ustu) for counter in path.counters if counter in counters]
    short = [(counter, need) for counter, need in needs if counter.left < need]
    counter, need = short[0]
    text = (lambda value: money_text(value, currency)) if counter.money else stu_text
    return Shortage(
        short,
        f"budget {counter.id[2:]!r} has {text(max(0, counter.left))} left, this request may cost up to {text(need)}",
        "ask for fewer tokens (max_tokens), or have the budget raised: tokenworks budget set",
    )


def settle(promise: Promise, ustu: int, nano: int, burned: Sequence[tuple[Purse, int]]) -> None:
    """Turn a promise into spending and return the rest. Raises ValueError when more would be charged than held."""
    held_ustu, held_nano, path = promise.ustu, promise.nano, promise.path
    if ustu > held_ustu or nano > held_nano:
        raise ValueError("more would be charged than was held")
    money: Sequence[Counter] = path.money
    stu: Sequence[Counter] = path.stu
    if path.windowed:
        pairs = zip(path.counters, promise.windows, strict=bool(promise.windows))
        counters = [counter for counter, window_ns in pairs if counter.window_ns == window_ns]
        money, stu = [c for c in counters if c.money], [c for c in counters if not c.money]
    if held_ustu:
        rest = held_ustu - ustu
        for counter in stu:
            counter.held -= held_ustu
            counter.left += rest
    if held_nano:
        rest = held_nano - nano
        for counter in money:
            counter.held -= held_nano
            counter.left += rest
    for purse, part in promise.parts:
        purse.counter.held -= part
        purse.counter.left += part
    for purse, part in burned:
        purse.counter.left -= part
    promise.ustu = promise.nano = 0
    promise.parts = []


def burn(promise: Promise, ustu: int) -> list[tuple[Purse, int]]:
    """Which of the promised parts an amount uses, in burn order."""
    burned: list[tuple[Purse, int]] = []
    for purse, part in promise.parts:
        used = min(part, ustu)
        if not used:
            break
        burned.append((purse, used))
        ustu -= used
    return burned


class BudgetTree:
    """All budgets and grants that this gateway may spend from."""

    def __init__(self) -> None:
        self._budgets: dict[str, Budget] = {}
        self._blocks: set[str] = set()
        self._grants: dict[str, list[Grant]] = {}
        self._paths: dict[str, Path] = {}
        self.counters: dict[str, Counter] = {}

    def learn(self, budgets: Iterable[Budget], grants: Iterable[Grant], blocking: Iterable[str]) -> None:
        """Take budgets, grants and the accounts that live on packages only. Leases of known counters are kept."""
        self._budgets = {budget.id: budget for budget in budgets}
        self._blocks = set(blocking)
        self._grants = {}
        for grant in burn_order(grants):
            self._grants.setdefault(grant.account, []).append(grant)
        self._paths.clear()

    def _counter(self, name: str, window: Window = "none") -> Counter:
        found = self.counters.get(name)
        if found is None or found.window != window:
            found = self.counters[name] = Counter(name, window)
        return found

    def path(self, leaf: str) -> Path:
        """The way from a leaf to its root. Raises KeyError for an unknown leaf."""
        path = self._paths.get(leaf)
        if path is None:
            nodes = [self._budgets[leaf]]
            while (parent := nodes[-1].parent) is not None:
                nodes.append(self._budgets[parent])
            counters: list[Counter] = []
            for node in nodes:
                if node.limit_nano is not None:
                    counters.append(self._counter(f"n:{node.id}", node.window))
                if node.limit_ustu is not None:
                    counters.append(self._counter(f"u:{node.id}", node.window))
                if node.carved:
                    break
            account = nodes[0].account
            ids = {"", *(node.id for node in nodes)}
            grants = [grant for grant in self._grants.get(account, ()) if grant.budget in ids]
            purses = [Purse(grant, self._counter(f"g:{grant.id}")) for grant in grants]
            path = self._paths[leaf] = Path(tuple(nodes), tuple(counters), purses, account in self._blocks)
        return path
