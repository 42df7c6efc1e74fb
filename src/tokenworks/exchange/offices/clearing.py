"""Statements between the entities of the pool, their disputes, netting and payment."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from tokenworks.core.clock import utc_text
from tokenworks.core.errors import BadRequest, find
from tokenworks.core.ids import check_name, new_id
from tokenworks.exchange import clearing_words as words
from tokenworks.exchange.calendar import window_start_ns
from tokenworks.exchange.service import LedgerService
from tokenworks.exchange.settlement import digest, since_of, taken_back

PAGE_ROWS_MAX = 5_000


def statements(service: LedgerService) -> dict[str, Any]:
    """Statements with what is due of them, what no statement has yet, disputes and nettings."""
    service.catch_up()
    state = service.state
    open_: list[dict[str, Any]] = []
    for (entity, home), days in sorted(state.unstated.items()):
        sums = words.Sums()
        for more in days.values():
            sums = sums.plus(more)
        open_.append({"entity": entity, "home": home, "since_ns": since_of(state, entity, home), **sums._asdict()})
    return {
        "statements": [_due(service, each) for each in state.statements.values()],
        "unstated": open_,
        "disputes": list(state.disputes.values()),
        "nettings": list(state.nettings.values()),
    }


def _due(service: LedgerService, of: words.Statement) -> dict[str, Any]:
    ustu, nano = taken_back(service.state, of.id)
    disputed = any(taken_back(service.state, of.id, ("open",)))
    due = {"due_ustu": of.net_ustu - ustu, "due_nano": of.net_nano - nano, "disputed": disputed}
    return {**msgspec.structs.asdict(of), **due}


def statement(service: LedgerService, statement: str, after: str = "", limit: int = PAGE_ROWS_MAX) -> dict[str, Any]:
    """One statement, its disputes, and its lines a page at a time."""
    of = find(statement, service.state.statements, "statement")
    page = {"id": of.id, "entity": of.entity, "home": of.home, "until_ns": of.until_ns, "after": after}
    rows = service.store.rows("served_page", **page, limit=max(1, min(limit, PAGE_ROWS_MAX)))
    disputes = [each for each in service.state.disputes.values() if each.statement == of.id]
    return {**_due(service, of), "disputes": disputes, "rows": rows, "next": rows[-1][0] if rows else None}


def _unstated(service: LedgerService, pair: dict[str, Any]) -> Iterator[tuple[Any, ...]]:
    after = ""
    while rows := service.store.rows("served_page", id="", **pair, after=after, limit=PAGE_ROWS_MAX):
        yield from rows
        after = rows[-1][0]


def statement_issue(service: LedgerService, until_ns: int | None = None) -> list[dict[str, Any]]:
    """State what was served before a day in UTC, without one before this month: a statement for each pair of entities.

    What is stated already is not stated again, so a retry is safe.
    """
    service.catch_up()
    now_ns, issued = service.clock.now_ns(), []
    until_ns = window_start_ns("month", now_ns) if until_ns is None else until_ns
    if until_ns != window_start_ns("day", until_ns) or not 0 < until_ns <= now_ns:
        raise BadRequest("a statement ends with a whole day in UTC that is over", param="until_ns")
    for (entity, home), days in sorted(service.state.unstated.items()):
        since_ns = since_of(service.state, entity, home)
        if min(days) >= until_ns or since_ns >= until_ns:
            continue
        pair = {"entity": entity, "home": home, "until_ns": until_ns}
        hashed = digest(entity, home, since_ns, until_ns, _unstated(service, pair))
        count = sum(sums.lines for day_ns, sums in days.items() if day_ns < until_ns)
        name = f"{entity}.{home}.{utc_text(until_ns)[:10]}"
        made = words.IssueStatement(
            id=name, entity=entity, home=home, until_ns=until_ns, lines=count, digest=hashed, at_ns=now_ns
        )
        service.submit(made)
        issued.append(_due(service, service.state.statements[name]))
    return issued


def statement_dispute(
    service: LedgerService, statement: str, reason: str, nano: int = 0, ustu: int = 0, dispute: str | None = None
) -> dict[str, Any]:
    """Refuse a part of a statement. The same ``dispute`` id twice is one dispute."""
    now_ns = service.clock.now_ns()
    name = check_name(dispute or new_id("dspt", now_ns), "a dispute")
    service.submit(words.OpenDispute(id=name, statement=statement, ustu=ustu, nano=nano, reason=reason, at_ns=now_ns))
    return {"dispute": name, "status": service.state.disputes[name].state}


def dispute_answer(service: LedgerService, dispute: str, accepted: bool, answer: str = "") -> dict[str, Any]:
    """Accept a dispute, and its part is taken back; or reject it, and the whole stays due."""
    service.submit(words.AnswerDispute(id=dispute, accepted=accepted, answer=answer, at_ns=service.clock.now_ns()))
    return {"dispute": dispute, "status": service.state.disputes[dispute].state}


def statements_net(service: LedgerService, netting: str | None = None) -> words.Netting | None:
    """Set off all statements without an open dispute: one figure for each pair of entities. None: there are none."""
    service.catch_up()
    state, now_ns = service.state, service.clock.now_ns()
    name = check_name(netting or new_id("netg", now_ns), "a netting")
    if name in state.nettings:
        return state.nettings[name]
    free = [
        s.id for s in state.statements.values() if s.netting is None and not any(taken_back(state, s.id, ("open",)))
    ]
    if not free:
        return None
    service.submit(words.NetStatements(id=name, statements=tuple(free), at_ns=now_ns))
    return service.state.nettings[name]


def pair_settle(service: LedgerService, netting: str, debtor: str, creditor: str, reference: str) -> dict[str, Any]:
    """Note that one pair's figure was paid; the same reference again changes nothing."""
    now_ns = service.clock.now_ns()
    service.submit(words.SettlePair(id=netting, debtor=debtor, creditor=creditor, reference=reference, at_ns=now_ns))
    return {"netting": netting, "debtor": debtor, "creditor": creditor, "status": "settled"}
