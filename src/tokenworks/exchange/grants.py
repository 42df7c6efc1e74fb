"""Packages in the ledger: selling, burning, ending. Expiry is booked ahead, so no clock has to expire it."""

from __future__ import annotations

import msgspec

from tokenworks.core.errors import LeasedOut, LedgerRefused
from tokenworks.exchange.state import Entry, State, known, lines
from tokenworks.exchange.words import EndGrant, Grant, Settlement


def burn(state: State, settled: Settlement) -> tuple[int, list[Entry]]:
    """Use grants: their value is earned in proportion, and what was booked ahead as breakage is taken back."""
    total, entries = 0, []
    for burn in settled.burned:
        if not burn.ustu:
            continue
        grant = state.grants[burn.grant]
        after = msgspec.structs.replace(grant, used_ustu=grant.used_ustu + burn.ustu)
        value = _value(after) - _value(grant)
        total += value
        state.grants[grant.id] = after
        account = grant.account
        entries += lines(
            ("stu", f"stock/{account}", -burn.ustu), ("stu", "used", burn.ustu), ("money", f"deferred/{account}", value)
        )
        entries += _breakage(grant, -burn.ustu, -value)
    return total, entries


def _value(grant: Grant) -> int:
    """Money earned with what is used of a grant: cumulative, so that the whole grant earns its whole price."""
    return grant.price_nano * grant.used_ustu // grant.size_ustu


def _breakage(grant: Grant, ustu: int, nano: int) -> list[Entry]:
    """Lines on the day of expiry: what will be left then expires, and its money is earned."""
    if grant.expires_ns is None:
        return []
    return lines(
        ("stu", f"stock/{grant.account}", -ustu),
        ("stu", "expired", ustu),
        ("money", f"deferred/{grant.account}", nano),
        ("money", "revenue/breakage", -nano),
        at_ns=grant.expires_ns,
    )


def sell_grant(state: State, grant: Grant) -> list[Entry]:
    known(grant.account, "account", state.accounts)
    if grant.budget:
        known(grant.budget, "budget", state.budgets)
        if state.budgets[grant.budget].account != grant.account:
            raise LedgerRefused(f"budget {grant.budget!r} is of another account")
    if grant.id in state.grants:
        if msgspec.structs.replace(state.grants[grant.id], used_ustu=0, ended_ns=None, refund_nano=0) == grant:
            return []
        raise LedgerRefused(f"grant {grant.id!r} exists already")
    if grant.size_ustu <= 0 or grant.price_nano < 0 or grant.used_ustu or grant.ended_ns is not None:
        raise LedgerRefused("a grant has a size above 0, a price of 0 or more, and is not used yet")
    if grant.expires_ns is not None and grant.expires_ns <= grant.effective_ns:
        raise LedgerRefused("a grant cannot expire before it takes effect")
    state.grants[grant.id] = grant
    return lines(
        ("stu", f"stock/{grant.account}", grant.size_ustu),
        ("stu", "issued", -grant.size_ustu),
        ("money", f"customer/{grant.account}", grant.price_nano),
        ("money", f"deferred/{grant.account}", -grant.price_nano),
    ) + _breakage(grant, grant.size_ustu, grant.price_nano)


def end_grant(state: State, command: EndGrant) -> list[Entry]:
    known(command.grant, "grant", state.grants)
    grant = state.grants[command.grant]
    if grant.ended_ns is not None:
        raise LedgerRefused(f"grant {grant.id!r} has ended already")
    if grant.expires_ns is not None and command.at_ns >= grant.expires_ns:
        raise LedgerRefused(f"grant {grant.id!r} has expired")
    if any(part.grant == grant.id for hold in state.holds.values() for part in hold.parts):
        raise LeasedOut(f"grant {grant.id!r} is promised to requests in flight", hint="try again in a moment")
    if state.out(f"g:{grant.id}", 0):
        raise LeasedOut(f"grant {grant.id!r} is leased to gateways", hint="try again in a few seconds")
    left_ustu, left_nano = grant.size_ustu - grant.used_ustu, grant.price_nano - _value(grant)
    if not 0 <= command.refund_nano <= left_nano:
        raise LedgerRefused(f"at most {left_nano} nano of the price are left to refund")
    state.grants[grant.id] = msgspec.structs.replace(grant, ended_ns=command.at_ns, refund_nano=command.refund_nano)
    entries = lines(
        ("stu", f"stock/{grant.account}", -left_ustu),
        ("stu", "refunded", left_ustu),
        ("money", f"deferred/{grant.account}", left_nano),
        ("money", f"customer/{grant.account}", -command.refund_nano),
        ("money", "revenue/breakage", command.refund_nano - left_nano),
    )
    return entries + _breakage(grant, -left_ustu, -left_nano)
