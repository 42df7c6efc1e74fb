"""Budgets and leases in the ledger: limits set and carved, rights given to gateways and taken back."""

from __future__ import annotations

from tokenworks.core.errors import LeasedOut, LedgerRefused
from tokenworks.exchange.calendar import window_start_ns
from tokenworks.exchange.clearing_words import OPERATOR
from tokenworks.exchange.state import DEPTH_MAX, Leased, State, Tally, known
from tokenworks.exchange.words import Account, Budget, GiveLease, Key


def open_account(state: State, account: Account) -> None:
    if account.home != state.accounts.get(account.id, account).home:
        raise LedgerRefused(f"account {account.id!r} has another home", hint="an account cannot be moved")
    if account.home != OPERATOR:
        known(account.home, "entity", state.entities)
        if state.entities[account.home].own:
            raise LedgerRefused(f"{account.home!r} is the operator itself", hint="leave the home out")
    state.accounts[account.id] = account


def set_budget(state: State, budget: Budget, at_ns: int) -> None:
    known(budget.account, "account", state.accounts)
    old = state.budgets.get(budget.id)
    if old is not None and (old.account, old.parent, old.carved) != (budget.account, budget.parent, budget.carved):
        raise LedgerRefused(f"budget {budget.id!r} belongs elsewhere already", hint="only limits and name can change")
    if budget.parent is not None:
        known(budget.parent, "budget", state.budgets)
        if len(state.path(budget.parent)) >= DEPTH_MAX:
            raise LedgerRefused(f"budgets nest at most {DEPTH_MAX} deep")
        if state.budgets[budget.parent].account != budget.account:
            raise LedgerRefused(f"budget {budget.parent!r} is of another account")
    if min(budget.limit_nano or 0, budget.limit_ustu or 0) < 0:
        raise LedgerRefused("a limit cannot be negative")
    if budget.carved:
        _carve(state, budget, old, at_ns)
    if old is not None and old.window != budget.window:
        _change_window(state, old, budget, at_ns)
    state.budgets[budget.id] = budget
    state.tallies.setdefault(budget.id, Tally())


def _change_window(state: State, old: Budget, new: Budget, at_ns: int) -> None:
    """Another window for a limit. What was spent counts on: all of it without a window, else what the old one had."""
    window_ns, tally = window_start_ns(old.window, at_ns), state.tallies[old.id]
    # A hold of an earlier window would settle in the new one, for which nobody leased it.
    if tally.held_nano or tally.held_ustu or any(state.out(f"{kind}:{old.id}", window_ns) for kind in "nu"):
        hint = "try again in a few seconds, when no request is in flight"
        raise LeasedOut(f"budget {old.id!r} is leased to gateways, so its window cannot change now", hint=hint)
    tally.roll(window_ns)
    tally.window_ns = window_start_ns(new.window, at_ns)
    if new.window == "none":
        tally.window_ustu, tally.window_nano = tally.spent_ustu, tally.spent_nano


def _carve(state: State, budget: Budget, old: Budget | None, at_ns: int) -> None:
    """Cut a child's limit out of its parent's. Closing it returns what it did not spend."""
    if budget.parent is None or budget.window != "none":
        raise LedgerRefused("a carved budget has a parent and no window")
    tally = state.tallies.get(budget.id, Tally())
    above = state.limited_path(budget.parent)
    for kind, limit in (("n", budget.limit_nano), ("u", budget.limit_ustu)):
        if limit is None and any(state.free(f"{kind}:{node}", at_ns) is not None for node in above):
            raise LedgerRefused("a carved budget must have each limit that one above it has")
    out_nano, out_ustu = (state.out(f"{kind}:{budget.id}", 0) for kind in "nu")
    closed = budget.closed_ns is not None
    new_nano = tally.spent_nano if closed else budget.limit_nano or 0
    new_ustu = tally.spent_ustu if closed else budget.limit_ustu or 0
    was_closed = old is not None and old.closed_ns is not None
    old_nano = 0 if old is None else tally.spent_nano if was_closed else old.limit_nano or 0
    old_ustu = 0 if old is None else tally.spent_ustu if was_closed else old.limit_ustu or 0
    if new_nano < tally.spent_nano + out_nano or new_ustu < tally.spent_ustu + out_ustu:
        if new_nano >= tally.spent_nano and new_ustu >= tally.spent_ustu:
            hint = "try again in a few seconds, when no request is in flight"
            raise LeasedOut(f"budget {budget.id!r} has not spent that, but leased it to gateways", hint=hint)
        raise LedgerRefused(f"budget {budget.id!r} has spent more than that already")
    more = {"n": new_nano - old_nano, "u": new_ustu - old_ustu}
    for node in above:
        for kind, amount in more.items():
            free = state.free(f"{kind}:{node}", at_ns)
            if free is not None and amount > max(0, free):
                raise LedgerRefused(f"budget {node!r} has not that much left to carve from")
    for node in above:
        state.tallies[node].carved_nano += more["n"]
        state.tallies[node].carved_ustu += more["u"]


def add_key(state: State, key: Key) -> None:
    known(key.budget, "budget", state.budgets)
    if state.budgets[key.budget].account != key.account:
        raise LedgerRefused(f"budget {key.budget!r} is not of account {key.account!r}")
    if state.keys.get(key.id, key) != key:
        raise LedgerRefused(f"key {key.id!r} exists already")
    state.keys[key.id] = key


def give_lease(state: State, command: GiveLease) -> None:
    source = (command.writer, command.epoch)
    if source in state.ended:
        raise LedgerRefused(f"epoch {command.epoch} of {command.writer} has ended")
    leases = state.leases.get(source, {})
    for lease in command.leases:
        kind, _, name = lease.counter.partition(":")
        known(name, "counter", state.grants if kind == "g" else state.budgets if kind in ("n", "u") else ())
        old = leases.get(lease.counter)
        out = old.allowance - old.used if old is not None and old.window_ns == lease.window_ns else 0
        used = old.used if old is not None and old.window_ns == lease.window_ns else 0
        free = state.free(lease.counter, command.at_ns)
        more = lease.allowance - used - out
        if lease.allowance < used or (free is not None and more > max(0, free)):
            raise LedgerRefused(f"{lease.counter} has not that much left to lease")
        window = "none" if kind == "g" else state.budgets[name].window
        if more > 0 and lease.window_ns != window_start_ns(window, command.at_ns):
            raise LedgerRefused(f"{lease.counter} is in another window now")
    leases = state.leases.setdefault(source, {})
    for lease in command.leases:
        old = leases.get(lease.counter)
        if old is not None and old.window_ns == lease.window_ns:
            old.allowance = lease.allowance
        else:
            leases[lease.counter] = Leased(lease.window_ns, lease.allowance)
