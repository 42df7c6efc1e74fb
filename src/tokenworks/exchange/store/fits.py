"""What a table can hold, asked before the ledger takes a command: later the whole batch would fall with it."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import msgspec

from tokenworks.core.errors import LedgerRefused
from tokenworks.core.units import FIGURE_MAX
from tokenworks.exchange.words import AnyCommand, CloseInterval, PlaceHold, Settle


def refuse_unstorable(command: AnyCommand) -> None:
    """Raises LedgerRefused for a figure beyond FIGURE_MAX, or a name with a zero byte (PostgreSQL's text has none)."""
    match command:
        case Settle(settlement=s):
            site = s.decision.chosen.site if s.decision else "-"
            figures = (s.ustu, s.nano, s.loss_ustu, s.loss_nano, s.at_ns, s.usage.total())
            _check(s.receipt, f"{s.receipt}{s.account}{s.budget}{site}", figures)
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
            parts = [*_parts(msgspec.to_builtins(command))]
            figures_of = [part for part in parts if isinstance(part, int)]
            _check(type(command).__name__, "".join(part for part in parts if isinstance(part, str)), (0, *figures_of))


def _check(what: str, names: str, figures: Collection[int]) -> None:
    if "\0" in names:
        raise LedgerRefused(f"a name in {what!r} has a zero byte")
    for figure in figures:
        if not -FIGURE_MAX <= figure <= FIGURE_MAX:
            raise LedgerRefused(f"a figure of {what!r} is larger than the books can count")


def _parts(value: object) -> Iterable[str | int]:
    if isinstance(value, str | int):
        yield value
    elif isinstance(value, dict | list | tuple):
        for inner in (*value, *value.values()) if isinstance(value, dict) else value:
            yield from _parts(inner)
