"""What a table can hold, asked before the ledger takes a command: later the whole batch would fall with it."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import msgspec

from tokenworks.core.errors import LedgerRefused
from tokenworks.exchange.words import AnyCommand, CloseInterval, PlaceHold, Settle

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
        case _:
            texts = _strings(msgspec.to_builtins(command))
            _check(type(command).__name__, "".join(texts), (0,))


def _check(what: str, names: str, figures: Collection[int]) -> None:
    if "\0" in names:
        raise LedgerRefused(f"a name in {what!r} has a zero byte")
    if min(figures) < -FIGURE_MAX or max(figures) > FIGURE_MAX:
        raise LedgerRefused(f"a figure of {what!r} is beyond 64 bits")


def _strings(value: object) -> Iterable[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _strings(key)
            yield from _strings(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _strings(inner)
