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
money    payable/entity/{name}   owed to an entity for what its sites served
money    loss/operator           delivered beyond a hold or a lease: the operator's, never the customer's
money    payable/power/{supply}  owed to a supply for energy
money    cost/energy/{part}      energy money by where the energy went (requests, idle, overhead, service)
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

import msgspec

from tokenworks.core.errors import LedgerRefused
from tokenworks.core.words import Interval
from tokenworks.exchange.calendar import window_start_ns
from tokenworks.exchange.grants import burn, end_grant, sell_grant
from tokenworks.exchange.limits import add_key, give_lease, set_budget
from tokenworks.exchange.state import BOOKS, LEDGER, Entry, Source, State, known, lines
from tokenworks.exchange.words import (
    AddKey,
    AnyCommand,
    CloseInterval,
    DefinePackage,
    DescribeSite,
    EndEpoch,
    EndGrant,
    Entity,
    ExtendHold,
    GiveLease,
    MarkRead,
    OpenAccount,
    PlaceHold,
    RevokeKey,
    SellGrant,
    SetBudget,
    SetEntity,
    Settle,
    Settlement,
    Void,
)


def apply(state: State, command: AnyCommand, source: Source = LEDGER) -> list[Entry]:
    """Change the state by one command and return its entries. Raises LedgerRefused and then changes nothing."""
    entries = _step(state, command, source)
    for book, account, amount, _ in entries:
        state.balances[book, account] = state.balances.get((book, account), 0) + amount
    return entries


def _step(state: State, command: AnyCommand, source: Source) -> list[Entry]:
    match command:
        case PlaceHold() | ExtendHold() if source in state.ended:
            pass  # nothing can be promised any more; what it settles will be the operator's loss
        case PlaceHold():
            _place_hold(state, command)
        case ExtendHold():
            _extend_hold(state, command)
        case Settle():
            return _settle(state, command.settlement, source)
        case Void():
            _release(state, command.receipt)
        case CloseInterval():
            return close_interval(state, command.interval)
        case OpenAccount(account=account):
            state.accounts[account.id] = account
        case SetBudget():
            set_budget(state, command.budget, command.at_ns)
        case AddKey():
            add_key(state, command.key)
        case RevokeKey():
            known(command.key, "key", state.keys)
            key = state.keys[command.key]
            if key.revoked_ns is None:
                state.keys[key.id] = msgspec.structs.replace(key, revoked_ns=command.at_ns)
        case DefinePackage(package=package):
            if package.size_ustu <= 0 or package.price_nano < 0:
                raise LedgerRefused("a package has a size above 0 and a price of 0 or more")
            state.packages[package.code] = package
        case SellGrant():
            return sell_grant(state, command.grant)
        case EndGrant():
            return end_grant(state, command)
        case SetEntity(entity=entity):
            if not 0 <= entity.fee_permille <= 1000:
                raise LedgerRefused("a fee is 0 to 1000 permille")
            state.entities[entity.name] = entity
        case DescribeSite(facts=facts):
            state.sites[facts.site] = facts
        case GiveLease():
            give_lease(state, command)
        case MarkRead():
            pass  # an order, not a change
        case EndEpoch():
            state.leases.pop((command.writer, command.epoch), None)
            state.ended.add((command.writer, command.epoch))
    return []


def _place_hold(state: State, command: PlaceHold) -> None:
    known(command.budget, "budget", state.budgets)
    if min([command.ustu, command.nano, *(part.ustu for part in command.parts)]) < 0:
        raise LedgerRefused("a hold cannot be negative")
    if sum(part.ustu for part in command.parts) > command.ustu:
        raise LedgerRefused("grants cannot hold more than the request")
    for part in command.parts:
        known(part.grant, "grant", state.grants)
        if state.grants[part.grant].account != state.budgets[command.budget].account:
            raise LedgerRefused(f"grant {part.grant!r} is of another account")
    old = state.holds.get(command.receipt)
    if old is not None:
        if old != command:
            raise LedgerRefused(f"{command.receipt} is held already with another amount")
        return
    state.holds[command.receipt] = command
    _hold(state, command.budget, command.ustu, command.nano)


def _hold(state: State, budget: str, ustu: int, nano: int) -> None:
    for node in state.path(budget):
        tally = state.tallies[node]
        tally.held_ustu += ustu
        tally.held_nano += nano


def _extend_hold(state: State, command: ExtendHold) -> None:
    hold = state.holds.get(command.receipt)
    if hold is None:
        raise LedgerRefused(f"{command.receipt} has no open hold")
    if min([command.ustu, command.nano, *(part.ustu for part in command.parts)]) < 0:
        raise LedgerRefused("a hold cannot shrink")
    state.holds[command.receipt] = msgspec.structs.replace(
        hold, ustu=hold.ustu + command.ustu, nano=hold.nano + command.nano, parts=hold.parts + command.parts
    )
    _hold(state, hold.budget, command.ustu, command.nano)


def _release(state: State, receipt: str) -> PlaceHold:
    hold = state.holds.pop(receipt, None)
    if hold is None:
        raise LedgerRefused(f"{receipt} has no open hold", hint="a hold is settled or voided once")
    _hold(state, hold.budget, -hold.ustu, -hold.nano)
    return hold


def as_booked(state: State, settled: Settlement, source: Source) -> Settlement:
    """A settlement of an epoch that had ended comes too late: the customer owes nothing, all is the operator's loss."""
    if source not in state.ended or settled.receipt in state.holds:
        return settled
    return msgspec.structs.replace(
        settled, loss_ustu=settled.ustu, loss_nano=settled.list_nano, nano=settled.list_nano, burned=()
    )


def _settle(state: State, settled: Settlement, source: Source) -> list[Entry]:
    charged_ustu, charged_nano = settled.ustu - settled.loss_ustu, settled.nano - settled.loss_nano
    burned = sum(part.ustu for part in settled.burned)
    amounts = [charged_ustu, charged_nano, settled.loss_ustu, settled.loss_nano, charged_ustu - burned]
    if min(amounts + [part.ustu for part in settled.burned]) < 0:
        raise LedgerRefused(f"{settled.receipt} would settle a negative amount")
    if settled.receipt in state.holds or source not in state.ended:
        _settle_hold(state, settled, source, charged_ustu, charged_nano)
    elif charged_ustu or charged_nano:
        raise LedgerRefused(f"{settled.receipt} comes too late to charge anybody")
    entity = state.entities.get(settled.entity, Entity(name=settled.entity or "own", own=True))
    recognised, entries = burn(state, settled)
    earned = settled.nano + recognised
    fee = 0 if entity.own else earned * entity.fee_permille // 1000
    return entries + lines(
        ("stu", f"customer/{settled.account}", charged_ustu),
        ("stu", "loss/operator", settled.loss_ustu),
        ("stu", f"served/{entity.name}", -settled.ustu),
        ("money", f"customer/{settled.account}", charged_nano),
        ("money", "loss/operator", settled.loss_nano),
        ("money", "revenue/fees", -fee),
        ("money", "revenue/tokens" if entity.own else f"payable/entity/{entity.name}", fee - earned),
    )


def _settle_hold(state: State, settled: Settlement, source: Source, charged_ustu: int, charged_nano: int) -> None:
    """Check a settlement against its hold, then count it on the budget path and on the leases of its gateway."""
    hold = state.holds.get(settled.receipt)
    if hold is not None:
        if charged_ustu > hold.ustu or charged_nano > hold.nano:
            raise LedgerRefused(f"{settled.receipt} would charge more than was held")
        if (settled.account, settled.budget) != (state.budgets[hold.budget].account, hold.budget):
            raise LedgerRefused(f"{settled.receipt} was held on budget {hold.budget!r}", hint="who holds is who pays")
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
    hold = _release(state, settled.receipt)
    leases = state.leases.get(source, {})
    for part in settled.burned:
        if (lease := leases.get(f"g:{part.grant}")) is not None:
            lease.used += part.ustu
    for node in state.path(hold.budget):
        tally = state.tallies[node]
        tally.spent_ustu += charged_ustu
        tally.spent_nano += charged_nano
    for node in state.limited_path(hold.budget):
        # A hold counts in the window in which it was placed; a window that is over is over.
        window_ns = window_start_ns(state.budgets[node].window, hold.at_ns)
        if state.tallies[node].roll(window_ns):
            state.tallies[node].window_ustu += charged_ustu
            state.tallies[node].window_nano += charged_nano
        for counter, charged in ((f"n:{node}", charged_nano), (f"u:{node}", charged_ustu)):
            if (lease := leases.get(counter)) is not None and lease.window_ns == window_ns:
                lease.used += charged


def close_interval(state: State, interval: Interval) -> list[Entry]:
    site = interval.site
    if interval.start_ns < state.interval_end_ns.get(site, 0) or interval.end_ns <= interval.start_ns:
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
    state.interval_end_ns[site] = interval.end_ns
    return entries
