"""What a table can hold, asked before the ledger takes a command: later the whole batch would fall with it."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import msgspec

from tokenworks.core.errors import LedgerRefused
from tokenworks.exchange.words import AnyCommand, BillPower, CloseInterval, PlaceHold, Settle

FIGURE_MAX = 2**63 - 1
"""A column of one row's figure has 64 bits, in both databases."""


def refuse_unstorable(command: AnyCommand) -> None:
    """Raises LedgerRefused for a figure beyond 64 bits, or a name with a zero byte (PostgreSQL's text has none)."""
    match command:
        case Settle(settlement=s):
            # What the books move is a difference of two figures, and what a row counts is a sum of the buckets.
            figures = (s.ustu, s.nano, s.loss_ustu, s.loss_nano, s.ustu - s.loss_ustu, s.nano - s.loss_nano, s.at_ns)
            site = s.decision.chosen.site if s.decision else "-"
            _check(s.receipt, f"{s.receipt}{s.account}{s.budget}{site}", (*figures, s.usage.total()))
        case PlaceHold():
            held = (command.ustu, command.nano, command.at_ns)
            _check(command.receipt, f"{command.receipt}{command.budget}", held)
        case CloseInterval(interval=interval):
            values = msgspec.structs.astuple(interval)
            _check(interval.site, interval.site + interval.supply, [v for v in values if isinstance(v, int)])
            for line in interval.requests:
                figures_of = [v for v in msgspec.structs.astuple(line) if isinstance(v, int)]
                _check(line.receipt, line.receipt, figures_of)
        case BillPower():  # what is booked of it may be a difference
            names = f"{command.site}{command.supply}{command.what}"
            _check(command.what, names, (2 * command.nano, command.at_ns))
        case _:
            parts = [*_parts(msgspec.to_builtins(command))]
            figures_of = [part for part in parts if isinstance(part, int)]
            _check(type(command).__name__, "".join(part for part in parts if isinstance(part, str)), (0, *figures_of))


def _check(what: str, names: str, figures: Collection[int]) -> None:
    if "\0" in names:
        raise LedgerRefused(f"a name in {what!r} has a zero byte")
    if min(figures) < -FIGURE_MAX or max(figures) > FIGURE_MAX:
        raise LedgerRefused(f"a figure of {what!r} is beyond 64 bits")


def _parts(value: object) -> Iterable[str | int]:
    if isinstance(value, str | int):
        yield value
    elif isinstance(value, dict | list | tuple):
        for inner in (*value, *value.values()) if isinstance(value, dict) else value:
            yield from _parts(inner)
