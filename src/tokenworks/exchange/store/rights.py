"""Rows of what limits and pays for requests: grants, windows, leases."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from tokenworks.exchange.state import Leased, Source, State, Tally
from tokenworks.exchange.store.database import Row, Values
from tokenworks.exchange.words import Entity, Grant, Package

_json = msgspec.json.Encoder()


def doc(value: object) -> str:
    """A document column: JSON text."""
    return _json.encode(value).decode()


def load_rights(state: State, rows: Callable[[str], list[Row]]) -> None:
    """Read what these tables have into the state; its budgets are there already."""
    for (text,) in rows("all_packages"):
        package = msgspec.json.decode(text, type=Package)
        state.packages[package.code] = package
    for (text,) in rows("all_grants"):
        grant = msgspec.json.decode(text, type=Grant)
        state.grants[grant.id] = grant
    for (text,) in rows("all_entities"):
        entity = msgspec.json.decode(text, type=Entity)
        state.entities[entity.name] = entity
    for budget, *figures in rows("all_tallies"):
        tally = state.tallies[budget]
        tally.window_ns, tally.window_ustu, tally.window_nano, tally.carved_ustu, tally.carved_nano = figures
    for writer, epoch, counter, window_ns, allowance, used in rows("all_leases"):
        state.leases.setdefault((writer, epoch), {})[counter] = Leased(window_ns, allowance, used)


def grant_row(grant: Grant) -> Values:
    """A grant as it stands."""
    row = {"id": grant.id, "account": grant.account, "used_ustu": grant.used_ustu, "ended_ns": grant.ended_ns}
    return {**row, "doc": doc(grant)}


def tally_row(budget: str, tally: Tally) -> Values:
    """A budget's present window."""
    return {
        "budget": budget,
        "window_ns": tally.window_ns,
        "window_ustu": tally.window_ustu,
        "window_nano": tally.window_nano,
        "carved_ustu": tally.carved_ustu,
        "carved_nano": tally.carved_nano,
    }


def lease_row(source: Source, counter: str, lease: Leased) -> Values:
    """One leased counter."""
    row = {"writer": source[0], "epoch": source[1], "counter": counter, "window_ns": lease.window_ns}
    return {**row, "allowance": lease.allowance, "used": lease.used}
