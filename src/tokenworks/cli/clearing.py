"""``tokenworks statement``: what entities owe each other, their disputes, netting and payment."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Annotated, Any

from cyclopts import Parameter
from rich.console import RenderableType

from tokenworks.cli import out
from tokenworks.cli.given import currency, day_ns, money_nano, tokens_ustu
from tokenworks.cli.out import Answer, command
from tokenworks.cli.reach import ask_ledger
from tokenworks.core.clock import utc_text


@command
def statement_list() -> Answer:
    """Statements with what is due, what no statement has yet, disputes, and what pairs of entities owe each other."""
    found = ask_ledger("statements")
    return Answer(found, _clearing(found, currency()))


def _clearing(found: dict[str, Any], unit: str) -> Iterator[RenderableType]:
    yield from _statements(found["statements"])
    for each in found["unstated"]:
        net = out.money(each["nano"] - each["fee_nano"], unit)
        yield f"not stated yet: {each['entity']} for {each['home']}, {each['lines']} requests, {net}"
    for each in found["disputes"]:
        amounts = f"{out.money(each['nano'], unit)}, {out.stu(each['ustu'])}"
        yield f"dispute {each['id']} of {each['statement']}: {each['state']}, {amounts}: {each['reason']}"
    for each in found["nettings"]:
        yield from _netting(each, unit)


def _statements(found: Iterable[dict[str, Any]]) -> Iterator[RenderableType]:
    rows, unit = [], currency()
    for of in found:
        money = (out.money(of[f"{figure}_nano"], unit) for figure in ("paid", "fee", "net", "due"))
        state = "disputed" if of["disputed"] else of["netting"] or "open"
        until = utc_text(of["until_ns"])[:10]
        rows.append((of["id"], until, of["lines"], *money, out.stu(of["due_ustu"]), state))
    columns = ("statement", "until", "requests", "paid", "fee", "net", "due", "STU due", "")
    if rows:
        yield out.table("", columns, rows, right=columns[2:8])


def _netting(netting: dict[str, Any], unit: str) -> Iterator[RenderableType]:
    for pair in netting["pairs"]:
        paid = "open" if pair["settled_ns"] is None else f"settled, {pair['reference']}"
        amounts = f"{out.money(pair['nano'], unit)} and {out.stu(pair['ustu'])}"
        yield f"netting {netting['id']}: {pair['debtor']} owes {pair['creditor']} {amounts}: {paid}"


@command
def statement_show(statement: str, /, *, as_json: out.Json = False) -> Answer:
    """One statement with its disputes; with --json also every line, from which both sides compute the digest."""
    found = ask_ledger("statement", statement=statement)
    while as_json and (after := found.pop("next")) is not None:
        more = ask_ledger("statement", statement=statement, after=after)
        found |= {"rows": found["rows"] + more["rows"], "next": more["next"]}
    disputes = [f"dispute {d['id']}: {d['state']}, {d['reason']} {d['answer']}" for d in found["disputes"]]
    return Answer(found, [*_statements([found]), f"digest {found['digest']}", *disputes])


@command
def statement_issue(*, until: str | None = None) -> Answer:
    """State what was served before a day, a statement for each pair of entities; again, it states nothing twice.

    Args:
        until: First day or month after the period, like 2026-12-01 or 2026-12; this month without it.
    """
    issued = ask_ledger("statement_issue", until_ns=None if until is None else day_ns(until))
    nothing = "there is nothing to state: no site of one entity served customers of another"
    return Answer(issued, _statements(issued) if issued else [nothing])


@command
def statement_dispute(
    statement: str, /, *, reason: str, amount: str | None = None, stu: str | None = None,
    dispute: Annotated[str | None, Parameter(name="--id")] = None,
) -> Answer:  # fmt: skip
    """Refuse a part of what a statement says is due.

    Args:
        statement: Its id.
        reason: Why.
        amount: How much money, like "0.20 USD".
        stu: How many standard tokens, like "3 kSTU".
        dispute: An id of your own, so that a retry is safe.
    """
    part = {"nano": money_nano(amount) or 0, "ustu": tokens_ustu(stu) or 0, "dispute": dispute}
    made = ask_ledger("statement_dispute", statement=statement, reason=reason, **part)
    return out.told(made, "dispute {dispute}: {status}")


@command
def statement_answer(
    dispute: str, /, *, accept: Annotated[bool, Parameter(negative="--reject")], answer: str = ""
) -> Answer:
    """Accept a dispute (its part is taken back by an entry of its own), or reject it (the whole stays due).

    Args:
        dispute: Its id.
        accept: Or --reject.
        answer: Why.
    """
    made = ask_ledger("dispute_answer", dispute=dispute, accepted=accept, answer=answer)
    return out.told(made, "{dispute}: {status}")


@command
def statement_net(netting: str | None = None, /) -> Answer:
    """Set off all statements without an open dispute: one figure for each pair of entities. An own id makes it safe."""
    made = ask_ledger("statements_net", netting=netting)
    return Answer(made, ["there is no statement to net"] if made is None else _netting(made, currency()))


@command
def statement_settle(netting: str, debtor: str, creditor: str, /, *, reference: str) -> Answer:
    """Note that what one entity owes another in a netting was paid.

    Args:
        netting: Its id.
        debtor: Who paid.
        creditor: Who was paid.
        reference: Of the payment; the same again changes nothing.
    """
    pair = {"debtor": debtor, "creditor": creditor, "reference": reference}
    return out.told(ask_ledger("pair_settle", netting=netting, **pair), "{debtor} and {creditor}: {status}")
