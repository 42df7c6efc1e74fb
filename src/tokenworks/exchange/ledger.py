"""The ledger: ``apply(state, command, source) -> entries``, deterministic: no clock, file, socket or randomness inside.

Double entry over three books. Every command's entries sum to zero in each book. Sign: what an account received is
positive, what it gave is negative, so a customer's balance is what it owes, revenue and the meter are negative.

=======  ======================  ===================================================================
book     account                 meaning
=======  ======================  ===================================================================
money    customer/{account}      owed by a customer: for tokens beyond packages, and for packages
money    deferred/{account}      sold packages that are not used yet: a debt in tokens
money    revenue/tokens          earned by the operator's own sites
money    revenue/fees            the pool's fee on what other entities' sites earned
money    revenue/breakage        value of what expired unused, booked ahead at the sale for the day of expiry
money    payable/entity/{name}   owed to an entity for what its sites served; see ``settlement`` for what follows
money    loss/operator           delivered beyond a hold or a lease: the operator's, never the customer's
money    payable/power/{supply}  owed to a supply for energy
money    cost/energy/{part}      energy money by where the energy went (requests, idle, overhead, service), and
                                 what comes beside it (demand, events)
money    depreciation/{site}     wear of devices, by slice time
money    cost/device/{part}      the same by who used the time (requests, idle)
stu      customer/{account}      standard tokens consumed
stu      served/{entity}         standard tokens made by an entity's sites
stu      loss/operator           as in money
stu      stock/{account}         bought and not used; issued, used, expired, refunded are its other sides
energy   meter/{site}            what the meter counted (or its model)
energy   requests/{site} ...     idle, service, overhead, residual: where each millijoule went
=======  ======================  ===================================================================
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from tokenworks.core.errors import LedgerRefused
from tokenworks.core.words import CORRECTABLE, Interval
from tokenworks.exchange import words
from tokenworks.exchange.calendar import window_start_ns
from tokenworks.exchange.clearing_words import OPERATOR, ClearingCommand
from tokenworks.exchange.grants import burn, end_grant, sell_grant
from tokenworks.exchange.limits import add_key, give_lease, open_account, set_budget
from tokenworks.exchange.settlement import DAY_NS, clear, home_of, note_served
from tokenworks.exchange.state import BOOKS, LEDGER, Entry, Leased, Source, State, known, lines


def apply(state: State, command: words.AnyCommand, source: Source = LEDGER) -> list[Entry]:
    """Change the state by one command and return its entries. Raises LedgerRefused and then changes nothing."""
    entries = step(state, command, source)
    count(state)
    sums: dict[tuple[str, str], int] = {}
    for book, account, amount, _ in entries:
        sums[book, account] = sums.get((book, account), 0) + amount
    post(state, sums)
    return entries


def step(state: State, command: words.AnyCommand, source: Source) -> list[Entry]:
    """``apply`` for one of many commands: at their end the caller must ``count``, and ``post`` the sums of entries."""
    if isinstance(command, words.Settle):
        return _settle(state, command.settlement, source)
    if isinstance(command, words.PlaceHold):
        if source not in state.ended:  # otherwise what it settles will be the operator's loss
            _place_hold(state, command, source)
        return []
    if isinstance(command, words.ExtendHold):
        if source not in state.ended:
            _extend_hold(state, command)
        return []
    count(state)
    return _step(state, command)


def count(state: State) -> None:
    """Bring what requests held and were charged to the tallies of their paths and to the leases of their gateways."""
    for (source, budget, day), (held_ustu, held_nano, ustu, nano, settled) in sorted(state.due.items(), key=_by_day):
        way, leases = state.way(budget), state.leases.get(source, {})
        for tally in way.tallies:
            tally.held_ustu += held_ustu
            tally.held_nano += held_nano
            tally.spent_ustu += ustu
            tally.spent_nano += nano
        for tally, window, money, tokens in way.limited if settled else ():
            # A hold counts in the window in which it was placed; a window that is over is over.
            window_ns = window_start_ns(window, day * DAY_NS)
            if tally.roll(window_ns):
                tally.window_ustu += ustu
                tally.window_nano += nano
            for counter, charged in ((money, nano), (tokens, ustu)):
                if (lease := leases.get(counter)) is not None and lease.window_ns == window_ns:
                    lease.used += charged
    state.due.clear()


def _by_day(due: tuple[tuple[Source, str, int], list[int]]) -> int:
    return due[0][2]


def post(state: State, sums: Mapping[tuple[str, str], int]) -> None:
    """Add what was booked to the balances; no command reads them."""
    for key, amount in sums.items():
        state.balances[key] = state.balances.get(key, 0) + amount


def _step(state: State, command: words.AnyCommand) -> list[Entry]:
    match command:
        case words.Void():
            _release(state, command.receipt)
        case words.CloseInterval():
            return close_interval(state, command.interval)
        case words.BillPower(site=site, what=what):
            more = command.nano - state.bills.get((site, what), 0)
            state.bills[site, what] = command.nano
            part = ("money", f"cost/energy/{command.part}", more)
            return lines(part, ("money", f"payable/power/{command.supply}", -more))
        case words.OpenAccount(account=account):
            open_account(state, account)
        case words.SetBudget():
            set_budget(state, command.budget, command.at_ns)
            state.ways.clear()
        case words.AddKey():
            add_key(state, command.key)
        case words.RevokeKey():
            known(command.key, "key", state.keys)
            key = state.keys[command.key]
            if key.revoked_ns is None:
                state.keys[key.id] = msgspec.structs.replace(key, revoked_ns=command.at_ns)
        case words.DefinePackage(package=package):
            if package.size_ustu <= 0 or package.price_nano < 0:
                raise LedgerRefused("a package has a size above 0 and a price of 0 or more")
            state.packages[package.code] = package
        case words.SellGrant():
            return sell_grant(state, command.grant)
        case words.EndGrant():
            return end_grant(state, command)
        case words.SetEntity(entity=entity):
            if not 0 <= entity.fee_permille <= 1000:
                raise LedgerRefused("a fee is 0 to 1000 permille")
            if entity.name == OPERATOR and not entity.own:
                raise LedgerRefused(f"{OPERATOR!r} is the pool's operator itself")
            state.entities[entity.name] = entity
        case words.DescribeSite(facts=facts):
            state.sites[facts.site] = facts
        case ClearingCommand():
            return clear(state, command)
        case words.GiveLease():
            give_lease(state, command)
        case words.MarkRead():
            pass  # an order, not a change
        case words.EndEpoch():
            state.leases.pop((command.writer, command.epoch), None)
            state.ended.add((command.writer, command.epoch))
    return []


def _place_hold(state: State, command: words.PlaceHold, source: Source) -> None:
    known(command.budget, "budget", state.budgets)
    parts = [part.ustu for part in command.parts]
    if min(command.ustu, command.nano, *parts) < 0:
        raise LedgerRefused("a hold cannot be negative")
    if sum(parts) > command.ustu:
        raise LedgerRefused("grants cannot hold more than the request")
    for part in command.parts:
        known(part.grant, "grant", state.grants)
        grant = state.grants[part.grant]
        if grant.account != state.budgets[command.budget].account:
            raise LedgerRefused(f"grant {part.grant!r} is of another account")
        if grant.budget and grant.budget not in state.path(command.budget):
            raise LedgerRefused(f"grant {part.grant!r} is of another budget")
    old = state.holds.get(command.receipt)
    if old is not None:
        if old != command:
            raise LedgerRefused(f"{command.receipt} is held already with another amount")
        return
    state.holds[command.receipt] = command
    _due(state, source, command, command.ustu, command.nano)


def _due(state: State, source: Source, hold: words.PlaceHold, ustu: int, nano: int) -> list[int]:
    """Hold so much more, to be counted."""
    key = source, hold.budget, hold.at_ns // DAY_NS
    due = state.due.get(key)
    if due is None:
        due = state.due[key] = [0, 0, 0, 0, 0]
    due[0] += ustu
    due[1] += nano
    return due


def _extend_hold(state: State, command: words.ExtendHold) -> None:
    hold = state.holds.get(command.receipt)
    if hold is None:
        raise LedgerRefused(f"{command.receipt} has no open hold")
    if min([command.ustu, command.nano, *(part.ustu for part in command.parts)]) < 0:
        raise LedgerRefused("a hold cannot shrink")
    state.holds[command.receipt] = msgspec.structs.replace(
        hold, ustu=hold.ustu + command.ustu, nano=hold.nano + command.nano, parts=hold.parts + command.parts
    )
    _due(state, LEDGER, hold, command.ustu, command.nano)


def _held(state: State, receipt: str) -> words.PlaceHold:
    hold = state.holds.get(receipt)
    if hold is None:
        raise LedgerRefused(f"{receipt} has no open hold", hint="a hold is settled or voided once")
    return hold


def _release(state: State, receipt: str) -> None:
    hold = _held(state, receipt)
    del state.holds[receipt]
    _due(state, LEDGER, hold, -hold.ustu, -hold.nano)


def as_booked(state: State, settled: words.Settlement, source: Source) -> words.Settlement:
    """A settlement of an epoch that had ended comes too late: the customer owes nothing, all is the operator's loss."""
    if source not in state.ended or settled.receipt in state.holds:
        return settled
    return msgspec.structs.replace(
        settled, loss_ustu=settled.ustu, loss_nano=settled.list_nano, nano=settled.list_nano, burned=()
    )


def _settle(state: State, settled: words.Settlement, source: Source) -> list[Entry]:
    charged_ustu, charged_nano = settled.ustu - settled.loss_ustu, settled.nano - settled.loss_nano
    burned = [part.ustu for part in settled.burned]
    left = charged_ustu - sum(burned)
    if min(charged_ustu, charged_nano, settled.loss_ustu, settled.loss_nano, left, *burned) < 0:
        raise LedgerRefused(f"{settled.receipt} would settle a negative amount")
    if settled.receipt in state.holds or source not in state.ended:
        _settle_hold(state, settled, source, charged_ustu, charged_nano)
    elif charged_ustu or charged_nano:
        raise LedgerRefused(f"{settled.receipt} comes too late to charge anybody")
    entity = state.entities.get(settled.entity) or words.Entity(name=settled.entity or "own", own=True)
    recognised, entries = burn(state, settled)
    earned, home, customer = settled.nano + recognised, home_of(state, settled.account), f"customer/{settled.account}"
    fee = 0 if entity.own or entity.name == home else earned * entity.fee_permille // 1000
    entries += lines(
        ("stu", customer, charged_ustu),
        ("stu", "loss/operator", settled.loss_ustu),
        ("stu", f"served/{entity.name}", -settled.ustu),
        ("money", customer, charged_nano),
        ("money", "loss/operator", settled.loss_nano),
        ("money", "revenue/fees", -fee),
        ("money", "revenue/tokens" if entity.own else f"payable/entity/{entity.name}", fee - earned),
    )
    return entries if entity.own and home == OPERATOR else note_served(state, settled, entries)


def _settle_hold(state: State, settled: words.Settlement, source: Source, charged_ustu: int, charged_nano: int) -> None:
    """Check a settlement against its hold, then note it for the budget path and the leases of its gateway."""
    hold = _held(state, settled.receipt)
    if charged_ustu > hold.ustu or charged_nano > hold.nano:
        raise LedgerRefused(f"{settled.receipt} would charge more than was held")
    if settled.budget != hold.budget or settled.account != state.budgets[hold.budget].account:
        raise LedgerRefused(f"{settled.receipt} was held on budget {hold.budget!r}", hint="who holds is who pays")
    if settled.burned:
        _burn_hold(state, settled, hold, state.leases.get(source, {}))
    del state.holds[settled.receipt]
    due = _due(state, source, hold, -hold.ustu, -hold.nano)
    due[2] += charged_ustu
    due[3] += charged_nano
    due[4] += 1


def _burn_hold(state: State, settled: words.Settlement, hold: words.PlaceHold, leases: dict[str, Leased]) -> None:
    """What grants pay was promised of them, and they have it; count it on their leases."""
    promised: dict[str, int] = {}
    for part in hold.parts:
        promised[part.grant] = promised.get(part.grant, 0) + part.ustu
    burned: dict[str, int] = {}
    for part in settled.burned:
        burned[part.grant] = burned.get(part.grant, 0) + part.ustu
        grant = state.grants.get(part.grant)
        left = 0 if grant is None else grant.size_ustu - grant.used_ustu
        if burned[part.grant] > min(promised.get(part.grant, 0), left):
            raise LedgerRefused(f"{settled.receipt} would burn more of a grant than was held")
    for name, ustu in burned.items():
        if (lease := leases.get(f"g:{name}")) is not None:
            lease.used += ustu


def close_interval(state: State, interval: Interval) -> list[Entry]:
    site, closed = interval.site, state.closed.get(interval.site, {})
    if interval.corrects:
        if closed.get(interval.start_ns) != (interval.end_ns, interval.corrects - 1):
            raise LedgerRefused(f"a correction of site {site!r} is not the next one of an interval that it can correct")
    elif interval.start_ns < state.interval_end_ns.get(site, 0) or interval.end_ns <= interval.start_ns:
        raise LedgerRefused(f"an interval of site {site!r} starts before the last one ended")
    if len({line.receipt for line in interval.requests}) < len(interval.requests):
        raise LedgerRefused(f"an interval of site {site!r} has two lines of one receipt")
    requests = sum(line.energy_mj for line in interval.requests)
    services = sum(line.energy_mj for line in interval.services)
    entries = lines(
        ("energy", f"requests/{site}", requests),
        ("energy", f"idle/{site}", interval.idle_mj),
        ("energy", f"service/{site}", services),
        ("energy", f"overhead/{site}", interval.overhead_mj),
        ("energy", f"residual/{site}", interval.residual_mj),
        ("energy", f"meter/{site}", -interval.meter_mj),
    )
    if interval.bill_nano is not None:
        entries += lines(
            ("money", "cost/energy/requests", sum(line.energy_nano or 0 for line in interval.requests)),
            ("money", "cost/energy/idle", interval.idle_nano or 0),
            ("money", "cost/energy/service", sum(line.energy_nano or 0 for line in interval.services)),
            ("money", "cost/energy/overhead", interval.overhead_nano or 0),
            ("money", f"payable/power/{interval.supply}", -interval.bill_nano),
        )
    used = sum(line.device_nano or 0 for line in interval.requests)
    unused = interval.idle_device_nano or 0
    entries += lines(
        ("money", "cost/device/requests", used),
        ("money", "cost/device/idle", unused),
        ("money", f"depreciation/{site}", -used - unused),
    )
    for book in BOOKS:
        if sum(entry.amount for entry in entries if entry.book == book):
            raise LedgerRefused(f"an interval of site {site!r} does not close in the {book} book")
    state.interval_end_ns[site] = max(interval.end_ns, state.interval_end_ns.get(site, 0))
    closed = state.closed.setdefault(site, {})
    closed[interval.start_ns] = interval.end_ns, interval.corrects
    if len(closed) > CORRECTABLE:
        del closed[next(iter(closed))]  # the oldest
    return entries
