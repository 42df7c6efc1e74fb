"""Rows of the clearing between entities: what is not stated yet, statements, disputes, nettings."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import msgspec

from tokenworks.exchange.clearing_words import (
    AnswerDispute,
    ClearingCommand,
    Dispute,
    IssueStatement,
    NetStatements,
    Netting,
    OpenDispute,
    SettlePair,
    Statement,
    Sums,
)
from tokenworks.exchange.state import State
from tokenworks.exchange.store.database import Row, Values
from tokenworks.exchange.store.rights import doc


def load_clearing(state: State, rows: Callable[[str], list[Row]]) -> None:
    """Read what these tables have into the state."""
    for entity, home, day_ns, *sums in rows("all_unstated"):
        state.unstated.setdefault((entity, home), {})[day_ns] = Sums(*sums)
    for kind, text in rows("all_clearing"):
        if kind == "statement":
            statement = msgspec.json.decode(text, type=Statement)
            state.statements[statement.id] = statement
        elif kind == "dispute":
            dispute = msgspec.json.decode(text, type=Dispute)
            state.disputes[dispute.id] = dispute
        else:
            netting = msgspec.json.decode(text, type=Netting)
            state.nettings[netting.id] = netting


def clearing_rows(state: State, command: ClearingCommand) -> Iterator[tuple[str, Values]]:
    """The statements that write what a command changed, and their values, in this order."""
    match command:
        case IssueStatement(id=name):
            taken = {"id": name, "entity": command.entity, "home": command.home, "until_ns": command.until_ns}
            yield "mark_stated", taken
            yield "drop_unstated", taken
            yield _doc("statement", state.statements[name])
        case OpenDispute(id=name) | AnswerDispute(id=name):
            yield _doc("dispute", state.disputes[name])
        case NetStatements(id=name) | SettlePair(id=name):
            yield _doc("netting", state.nettings[name])
            if isinstance(command, NetStatements):
                yield from (_doc("statement", state.statements[each]) for each in command.statements)


def _doc(kind: str, made: Statement | Dispute | Netting) -> tuple[str, Values]:
    return "save_clearing", {"kind": kind, "id": made.id, "doc": doc(made)}
