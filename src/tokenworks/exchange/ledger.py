"""The ledger: ``apply(state, command) -> entries``, deterministic, with no clock, file, socket or randomness inside.

Double entry over three books. Every command's entries sum to zero in each book. Sign: what an account received is
positive, what it gave is negative, so a customer's balance is what it consumed, revenue and the meter are negative.

Accounts of the books (``{}`` stands for an id):

=======  ======================  ===================================================================
book     account                 meaning
=======  ======================  ===================================================================
money    customer/{account}      owed by a customer for tokens
money    revenue/tokens          earned with tokens
money    loss/operator           delivered beyond a hold: the operator's, never the customer's
money    payable/power/{supply}  owed to a supply for energy
money    cost/energy/{part}      energy money by where the energy went (requests, idle, overhead, service)
money    depreciation/{site}     wear of devices, by slice time
money    cost/device/{part}      the same by who used the time (requests, idle)
stu      customer/{account}      standard tokens consumed
stu      served/{site}           standard tokens made by a site
stu      loss/operator           as in money
energy   meter/{site}            what the meter counted (or its model)
energy   requests/{site} ...     idle, service, overhead, residual: where each millijoule went
=======  ======================  ===================================================================
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from tokenworks.core.errors import LedgerRefused, nearest
from tokenworks.core.words import Interval
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
    SiteFacts,
    Void,
)

DEPTH_MAX = 16
"""Longest budget path, root to leaf."""
BOOKS = ("money", "stu", "energy")


class Entry(NamedTuple):
    """One line of a book. The lines of one command sum to zero per book."""

    book: str
    account: str
    amount: int


@dataclass(slots=True)
class Tally:
    """What one budget has spent and holds, itself and everything below it."""

    spent_ustu: int = 0
    spent_nano: int = 0
    held_ustu: int = 0
    held_nano: int = 0


@dataclass(slots=True)
class State:
    """All that the ledger must remember to apply the next command. Bounded by accounts and open requests."""

    accounts: dict[str, Account] = field(default_factory=dict)
    budgets: dict[str, Budget] = field(default_factory=dict)
    tallies: dict[str, Tally] = field(default_factory=dict)
    keys: dict[str, Key] = field(default_factory=dict)
    holds: dict[str, PlaceHold] = field(default_factory=dict)
    sites: dict[str, SiteFacts] = field(default_factory=dict)
    interval_end_ns: dict[str, int] = field(default_factory=dict)
    balances: dict[tuple[str, str], int] = field(default_factory=dict)

    def path(self, budget: str) -> list[str]:
        """Ids from the leaf up to the root."""
        ids: list[str] = []
        node: str | None = budget
        while node is not None and len(ids) < DEPTH_MAX:
            ids.append(node)
            node = self.budgets[node].parent
        return ids


def apply(state: State, command: AnyCommand) -> list[Entry]:
    """Change the state by one command and return its entries. Raises LedgerRefused and then changes nothing."""
    entries: list[Entry] = []
    match command:
        case OpenAccount():
            entries = _open_account(state, command)
        case SetBudget():
            entries = _set_budget(state, command)
        case AddKey():
            entries = _add_key(state, command)
        case RevokeKey():
            entries = _revoke_key(state, command)
        case PlaceHold():
            entries = _place_hold(state, command)
        case Settle():
            entries = _settle(state, command)
        case Void():
            entries = _void(state, command)
        case CloseInterval():
            entries = _close_interval(state, command.interval)
        case DescribeSite():
            state.sites[command.facts.site] = command.facts
    for book, account, amount in entries:
        state.balances[book, account] = state.balances.get((book, account), 0) + amount
    return entries


def _known(word: str, what: str, known: dict[str, object]) -> None:
    if word not in known:
        near = nearest(word, known)
        raise LedgerRefused(f"there is no {what} {word!r}", hint=f"did you mean {near!r}?" if near else None)


def _open_account(state: State, command: OpenAccount) -> list[Entry]:
    account = command.account
    if state.accounts.get(account.id, account) != account:
        raise LedgerRefused(f"account {account.id!r} exists already", hint="choose another id")
    state.accounts[account.id] = account
    return []


def _set_budget(state: State, command: SetBudget) -> list[Entry]:
    budget = command.budget
    _known(budget.account, "account", dict(state.accounts))
    old = state.budgets.get(budget.id)
    if old is not None and (old.account, old.parent) != (budget.account, budget.parent):
        raise LedgerRefused(f"budget {budget.id!r} belongs elsewhere already", hint="only limits and name can change")
    if budget.parent is not None:
        _known(budget.parent, "budget", dict(state.budgets))
        if len(state.path(budget.parent)) >= DEPTH_MAX:
            raise LedgerRefused(f"budgets nest at most {DEPTH_MAX} deep")
    for limit in (budget.limit_nano, budget.limit_ustu):
        if limit is not None and limit < 0:
            raise LedgerRefused("a limit cannot be negative")
    state.budgets[budget.id] = budget
    state.tallies.setdefault(budget.id, Tally())
    return []


def _add_key(state: State, command: AddKey) -> list[Entry]:
    key = command.key
    _known(key.budget, "budget", dict(state.budgets))
    if state.budgets[key.budget].account != key.account:
        raise LedgerRefused(f"budget {key.budget!r} is not of account {key.account!r}")
    if state.keys.get(key.id, key) != key:
        raise LedgerRefused(f"key {key.id!r} exists already")
    state.keys[key.id] = key
    return []


def _revoke_key(state: State, command: RevokeKey) -> list[Entry]:
    _known(command.key, "key", dict(state.keys))
    key = state.keys[command.key]
    if key.revoked_ns is None:
        state.keys[key.id] = Key(
            id=key.id,
            hash=key.hash,
            account=key.account,
            budget=key.budget,
            role=key.role,
            made_ns=key.made_ns,
            revoked_ns=command.at_ns,
        )
    return []


def _place_hold(state: State, command: PlaceHold) -> list[Entry]:
    _known(command.budget, "budget", dict(state.budgets))
    if command.ustu < 0 or command.nano < 0:
        raise LedgerRefused("a hold cannot be negative")
    old = state.holds.get(command.receipt)
    if old is not None:
        if old != command:
            raise LedgerRefused(f"{command.receipt} is held already with another amount")
        return []
    state.holds[command.receipt] = command
    for node in state.path(command.budget):
        tally = state.tallies[node]
        tally.held_ustu += command.ustu
        tally.held_nano += command.nano
    return []


def _release(state: State, receipt: str) -> PlaceHold:
    hold = state.holds.pop(receipt, None)
    if hold is None:
        raise LedgerRefused(f"{receipt} has no open hold", hint="a hold is settled or voided once")
    for node in state.path(hold.budget):
        tally = state.tallies[node]
        tally.held_ustu -= hold.ustu
        tally.held_nano -= hold.nano
    return hold


def _settle(state: State, command: Settle) -> list[Entry]:
    settled = command.settlement
    hold = state.holds.get(settled.receipt)
    if hold is not None and (
        settled.ustu - settled.loss_ustu > hold.ustu or settled.nano - settled.loss_nano > hold.nano
    ):
        raise LedgerRefused(f"{settled.receipt} would charge more than was held")
    if hold is not None and (settled.account, settled.budget) != (state.budgets[hold.budget].account, hold.budget):
        raise LedgerRefused(f"{settled.receipt} was held on budget {hold.budget!r}", hint="who holds is who pays")
    charged_ustu = settled.ustu - settled.loss_ustu
    charged_nano = settled.nano - settled.loss_nano
    if min(charged_ustu, charged_nano, settled.loss_ustu, settled.loss_nano) < 0:
        raise LedgerRefused(f"{settled.receipt} would settle a negative amount")
    hold = _release(state, settled.receipt)
    for node in state.path(hold.budget):
        tally = state.tallies[node]
        tally.spent_ustu += charged_ustu
        tally.spent_nano += charged_nano
    site = settled.decision.chosen.site if settled.decision else "-"
    return _lines(
        ("stu", f"customer/{settled.account}", charged_ustu),
        ("stu", "loss/operator", settled.loss_ustu),
        ("stu", f"served/{site}", -settled.ustu),
        ("money", f"customer/{settled.account}", charged_nano),
        ("money", "loss/operator", settled.loss_nano),
        ("money", "revenue/tokens", -settled.nano),
    )


def _void(state: State, command: Void) -> list[Entry]:
    _release(state, command.receipt)
    return []


def _lines(*lines: tuple[str, str, int]) -> list[Entry]:
    return [Entry(*line) for line in lines if line[2]]


def _close_interval(state: State, interval: Interval) -> list[Entry]:
    site = interval.site
    if interval.start_ns < state.interval_end_ns.get(site, 0) or interval.end_ns <= interval.start_ns:
        raise LedgerRefused(f"an interval of site {site!r} starts before the last one ended")
    if len({line.receipt for line in interval.requests}) < len(interval.requests):
        raise LedgerRefused(f"an interval of site {site!r} has two lines of one receipt")
    requests = sum(line.energy_mj for line in interval.requests)
    services = sum(line.energy_mj for line in interval.services)
    entries = _lines(
        ("energy", f"requests/{site}", requests),
        ("energy", f"idle/{site}", interval.idle_mj),
        ("energy", f"service/{site}", services),
        ("energy", f"overhead/{site}", interval.overhead_mj),
        ("energy", f"residual/{site}", interval.residual_mj),
        ("energy", f"meter/{site}", -interval.meter_mj),
    )
    if interval.bill_nano is not None:
        entries += _lines(
            ("money", "cost/energy/requests", sum(line.energy_nano or 0 for line in interval.requests)),
            ("money", "cost/energy/idle", interval.idle_nano or 0),
            ("money", "cost/energy/service", sum(line.energy_nano or 0 for line in interval.services)),
            ("money", "cost/energy/overhead", interval.overhead_nano or 0),
            ("money", f"payable/power/{interval.supply}", -interval.bill_nano),
        )
    used = sum(line.device_nano or 0 for line in interval.requests)
    unused = interval.idle_device_nano or 0
    entries += _lines(
        ("money", "cost/device/requests", used),
        ("money", "cost/device/idle", unused),
        ("money", f"depreciation/{site}", -used - unused),
    )
    for book in BOOKS:
        if sum(entry.amount for entry in entries if entry.book == book):
            raise LedgerRefused(f"an interval of site {site!r} does not close in the {book} book")
    state.interval_end_ns[site] = interval.end_ns
    return entries
