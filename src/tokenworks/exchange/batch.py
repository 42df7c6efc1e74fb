"""A batch of journal records on its way into the store: decoding it, and remembering what it touched."""

from __future__ import annotations

import msgspec

from tokenworks.exchange.state import CLOSED, ENDED, Entry, Source, State
from tokenworks.exchange.words import (
    AnyCommand,
    Command,
    EndEpoch,
    GiveLease,
    PlaceHold,
    SetBudget,
    Settle,
    Settlement,
    decode_command,
)


class Touched:
    """What a batch changed beside its own rows: each is written once at its end."""

    def __init__(self) -> None:
        self.balances: set[tuple[str, str]] = set()
        self.budgets: set[str] = set()
        self.grants: set[str] = set()
        self.epochs: set[Source] = set()
        self.ended: dict[Source, int] = {}
        """Epochs that ended, and their standing since."""

    def add(self, state: State, command: Command, entries: list[Entry], source: Source) -> None:
        """Note what one command changed."""
        self.balances.update((entry.book, entry.account) for entry in entries)
        match command:
            case SetBudget(budget=budget):
                self.budgets.update(state.path(budget.id))
            case Settle(settlement=settled):
                self.epochs.add(source)
                self.budgets.update(state.path(settled.budget))
                self.grants.update(burn.grant for burn in settled.burned)
            case GiveLease() | EndEpoch():
                self.epochs.add((command.writer, command.epoch))
                if isinstance(command, EndEpoch):
                    self.ended[command.writer, command.epoch] = CLOSED if command.closed else ENDED
            case _:
                self.grants.update(_grants_of(command))


def decoded(payload: bytes) -> AnyCommand | msgspec.DecodeError:
    """The command, or why it is none."""
    try:
        return decode_command(payload)
    except msgspec.DecodeError as error:
        return error


def receipts_of(commands: list[AnyCommand | msgspec.DecodeError]) -> list[str]:
    """Receipts that a batch settles or holds."""
    held = [c.receipt for c in commands if isinstance(c, PlaceHold)]
    return held + [c.settlement.receipt for c in commands if isinstance(c, Settle)]


def _grants_of(command: Command) -> list[str]:
    grant = getattr(command, "grant", None)
    return [] if grant is None else [grant if isinstance(grant, str) else grant.id]


def moment_of(command: AnyCommand) -> int:
    """When the lines of a command are dated, in nanoseconds since 1970."""
    settlement, interval = getattr(command, "settlement", None), getattr(command, "interval", None)
    grant = getattr(command, "grant", None)
    at_ns = getattr(settlement, "at_ns", 0) or getattr(interval, "end_ns", 0) or getattr(grant, "created_ns", 0)
    return int(getattr(command, "at_ns", 0) or at_ns)


def served_rows(state: State, settled: Settlement, entries: list[Entry]) -> list[dict[str, object]]:
    """A line for the statement of the entity whose site served it; the operator's own sites need none."""
    entity = state.entities.get(settled.entity)
    if entity is None or entity.own:
        return []
    fee_nano = -sum(entry.amount for entry in entries if entry.account == "revenue/fees")
    paid_nano = -sum(entry.amount for entry in entries if entry.account.startswith("payable/entity/"))
    row = {"receipt": settled.receipt, "entity": entity.name, "at_ns": settled.at_ns, "ustu": settled.ustu}
    return [{**row, "nano": paid_nano + fee_nano, "fee_nano": fee_nano}]
