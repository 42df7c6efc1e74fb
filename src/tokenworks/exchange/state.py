"""What the ledger remembers, and the words of its lines. Changed only by ``ledger.apply``."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from tokenworks.core.errors import LedgerRefused, did_you_mean
from tokenworks.exchange.calendar import window_start_ns
from tokenworks.exchange.clearing_words import Dispute, Netting, Statement, Sums
from tokenworks.exchange.words import Account, Budget, Entity, Grant, Key, Lease, Package, PlaceHold, SiteFacts, Window

DEPTH_MAX = 16
"""Longest budget path, root to leaf."""
BOOKS = ("money", "stu", "energy")
Source = tuple[str, int]
"""Whose journal a command came from: writer and epoch."""
LEDGER: Source = ("ledger", 0)
LIVE, ENDED, CLOSED = 0, 1, 2
"""Of an epoch: it spends; its leases are back and what it settles is a loss; its journal is read for good."""


class Entry(NamedTuple):
    """One line of a book; ``at_ns`` 0 is the moment of the command, breakage stands on the day of expiry."""

    book: str
    account: str
    amount: int
    at_ns: int = 0


@dataclass(slots=True)
class Tally:
    """What one budget has spent and holds, itself and below: in all, and in its present window."""

    spent_ustu: int = 0
    spent_nano: int = 0
    held_ustu: int = 0
    held_nano: int = 0
    window_ns: int = 0
    window_ustu: int = 0
    window_nano: int = 0
    carved_ustu: int = 0
    carved_nano: int = 0
    """Limits that were cut out of this one for children."""

    def roll(self, window_ns: int) -> bool:
        """Go into a later window; returns whether ``window_ns`` is the present one."""
        if window_ns > self.window_ns:
            self.window_ns, self.window_ustu, self.window_nano = window_ns, 0, 0
        return window_ns == self.window_ns


@dataclass(slots=True)
class Leased:
    """One counter's lease as the ledger knows it."""

    window_ns: int
    allowance: int
    used: int = 0

    def says(self, lease: Lease) -> bool:
        """Whether it is that lease: the same allowance in the same window."""
        return (self.window_ns, self.allowance) == (lease.window_ns, lease.allowance)


class Way(NamedTuple):
    """What a hold on one budget touches, ready at hand: it is asked for with every request."""

    tallies: tuple[Tally, ...]
    """Of the whole path."""
    limited: tuple[tuple[Tally, Window, str, str], ...]
    """Of the part whose limits it touches: tally, window, and the names of its counters of money and of tokens."""


@dataclass(slots=True)
class State:
    """All that the ledger must remember to apply the next command. Bounded by accounts, grants and open requests."""

    accounts: dict[str, Account] = field(default_factory=dict)
    budgets: dict[str, Budget] = field(default_factory=dict)
    tallies: dict[str, Tally] = field(default_factory=dict)
    keys: dict[str, Key] = field(default_factory=dict)
    packages: dict[str, Package] = field(default_factory=dict)
    grants: dict[str, Grant] = field(default_factory=dict)
    entities: dict[str, Entity] = field(default_factory=dict)
    holds: dict[str, PlaceHold] = field(default_factory=dict)
    sites: dict[str, SiteFacts] = field(default_factory=dict)
    interval_end_ns: dict[str, int] = field(default_factory=dict)
    closed: dict[str, dict[int, tuple[int, int]]] = field(default_factory=dict)
    """The last intervals of each site, by their start: their end, and how often they were corrected."""
    bills: dict[tuple[str, str], int] = field(default_factory=dict)
    """What supplies charged beside intervals, by site and what it was for: one a month, charge and event."""
    leases: dict[Source, dict[str, Leased]] = field(default_factory=dict)
    ended: set[Source] = field(default_factory=set)
    """Epochs that may no longer charge anybody."""
    balances: dict[tuple[str, str], int] = field(default_factory=dict)
    unstated: dict[tuple[str, str], dict[int, Sums]] = field(default_factory=dict)
    """What no statement has yet: (entity, home) -> day in UTC -> sums of its lines."""
    statements: dict[str, Statement] = field(default_factory=dict)
    disputes: dict[str, Dispute] = field(default_factory=dict)
    nettings: dict[str, Netting] = field(default_factory=dict)
    paths: dict[str, list[str]] = field(default_factory=dict, compare=False, repr=False)
    """Found by ``path``; one for each budget that was asked for."""
    due: dict[tuple[Source, str, int], list[int]] = field(default_factory=dict, compare=False, repr=False)
    """What requests did and is not counted yet, by gateway, budget and day of the hold: micro-STU and nano held more,
    both as charged, how many settled. ``ledger.count`` brings it to tallies and leases."""
    ways: dict[str, Way] = field(default_factory=dict, compare=False, repr=False)
    """Found by ``way``; forgotten whenever a budget is set."""

    def path(self, budget: str) -> list[str]:
        """Ids from the leaf up to the root. Budgets never move, so a path is found once."""
        found = self.paths.get(budget)
        if found is not None:
            return found
        ids: list[str] = []
        node: str | None = budget
        while node is not None and len(ids) < DEPTH_MAX:
            ids.append(node)
            node = self.budgets[node].parent
        self.paths[budget] = ids
        return ids

    def limited_path(self, budget: str) -> list[str]:
        """The part of the path whose limits a hold touches: a carved budget has its own, and stops there."""
        ids: list[str] = []
        for node in self.path(budget):
            ids.append(node)
            if self.budgets[node].carved:
                break
        return ids

    def way(self, budget: str) -> Way:
        """The tallies and the counters from the leaf up to the root."""
        found = self.ways.get(budget)
        if found is None:
            tallies = tuple([self.tallies[node] for node in self.path(budget)])
            limited = [(self.tallies[n], self.budgets[n].window, f"n:{n}", f"u:{n}") for n in self.limited_path(budget)]
            found = self.ways[budget] = Way(tallies, tuple(limited))
        return found

    def free(self, counter: str, at_ns: int) -> int | None:
        """What could still be leased of a counter: its limit less what is spent and what is out. None: no limit."""
        kind, _, name = counter.partition(":")
        if kind == "g":
            grant = self.grants[name]
            over = grant.ended_ns is not None or (grant.expires_ns is not None and at_ns >= grant.expires_ns)
            return 0 if over else grant.size_ustu - grant.used_ustu - self.out(counter, 0)
        budget, tally = self.budgets[name], self.tallies[name]
        limit = budget.limit_nano if kind == "n" else budget.limit_ustu
        if limit is None:
            return None
        if budget.closed_ns is not None and at_ns >= budget.closed_ns:
            return 0
        window_ns, spent = window_start_ns(budget.window, at_ns), 0
        if tally.window_ns == window_ns:
            spent = tally.window_nano if kind == "n" else tally.window_ustu
        carved = tally.carved_nano if kind == "n" else tally.carved_ustu
        return limit - spent - carved - self.out(counter, window_ns)

    def out(self, counter: str, window_ns: int) -> int:
        found = (leases[counter] for leases in self.leases.values() if counter in leases)
        return sum(lease.allowance - lease.used for lease in found if lease.window_ns == window_ns)


def lines(*lines: tuple[str, str, int], at_ns: int = 0) -> list[Entry]:
    make = tuple.__new__  # an Entry, at a third of the time
    return [make(Entry, (book, account, amount, at_ns)) for book, account, amount in lines if amount]


def known(word: str, what: str, known: Iterable[str]) -> None:
    names = known if isinstance(known, dict) else list(known)
    if word not in names:
        raise LedgerRefused(f"there is no {what} {word!r}", hint=did_you_mean(word, names))
