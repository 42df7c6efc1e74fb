"""``tokenworks statement``: what entities owe each other, their disputes, netting and payment."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any

from cyclopts import Parameter

from tokenworks.cli import out
from tokenworks.cli.export import day_ns
from tokenworks.cli.sell import ask_ledger, tell
from tokenworks.cli.talk import Json
from tokenworks.core.clock import utc_text
from tokenworks.core.units import parse, parse_money
from tokenworks.datadir import currency_of, data_directory


def statement_list(*, as_json: Json = False) -> int:
    """Statements with what is due, what no statement has yet, disputes, and what pairs of entities owe each other."""
    found = ask_ledger("statements")
    if as_json:
        out.put_json(found)
        return 0
    currency = currency_of(data_directory())
    _table(_statement(each, currency) for each in found["statements"])
    for each in found["unstated"]:
        net = out.money(each["nano"] - each["fee_nano"], currency)
        out.console().print(f"not stated yet: {each['entity']} for {each['home']}, {each['lines']} requests, {net}")
    for each in found["disputes"]:
        amounts = f"{out.money(each['nano'], currency)}, {out.stu(each['ustu'])}"
        out.console().print(
            f"dispute {each['id']} of {each['statement']}: {each['state']}, {amounts}: {each['reason']}"
        )
    for each in found["nettings"]:
        _print_netting(each, currency)
    return 0


def _table(rows: Iterable[tuple[Any, ...]]) -> None:
    columns = ("statement", "until", "requests", "paid", "fee", "net", "due", "STU due", "")
    if found := list(rows):
        out.console().print(out.table("", columns, found, right=columns[2:8]))


def _statement(of: dict[str, Any], currency: str) -> tuple[Any, ...]:
    money = (out.money(of[f"{figure}_nano"], currency) for figure in ("paid", "fee", "net", "due"))
    state = "disputed" if of["disputed"] else of["netting"] or "open"
    return (of["id"], utc_text(of["until_ns"])[:10], of["lines"], *money, out.stu(of["due_ustu"]), state)


def _print_netting(netting: dict[str, Any], currency: str) -> None:
    for pair in netting["pairs"]:
        paid = "open" if pair["settled_ns"] is None else f"settled, {pair['reference']}"
        amounts = f"{out.money(pair['nano'], currency)} and {out.stu(pair['ustu'])}"
        out.console().print(f"netting {netting['id']}: {pair['debtor']} owes {pair['creditor']} {amounts}: {paid}")


def statement_show(statement: str, /, *, as_json: Json = False) -> int:
    """One statement with its disputes; with --json also every line, from which both sides compute the digest."""
    found = ask_ledger("statement", statement=statement)
    if as_json:
        while (after := found.pop("next")) is not None:
            more = ask_ledger("statement", statement=statement, after=after)
            found |= {"rows": found["rows"] + more["rows"], "next": more["next"]}
        out.put_json(found)
        return 0
    _table([_statement(found, currency_of(data_directory()))])
    out.console().print(f"digest {found['digest']}")
    for each in found["disputes"]:
        out.console().print(f"dispute {each['id']}: {each['state']}, {each['reason']} {each['answer']}")
    return 0


def statement_issue(*, until: str | None = None, as_json: Json = False) -> int:
    """State what was served before a day, a statement for each pair of entities; again, it states nothing twice.

    Parameters
    ----------
    until:
        First day or month after the period, like 2026-12-01 or 2026-12; this month without it.
    """
    issued = ask_ledger("statement_issue", until_ns=None if until is None else day_ns(until))
    if as_json:
        out.put_json(issued)
    elif issued:
        _table(_statement(each, currency_of(data_directory())) for each in issued)
    else:
        out.console().print("there is nothing to state: no site of one entity served customers of another")
    return 0


def statement_dispute(
    statement: str,
    /,
    *,
    reason: str,
    amount: str | None = None,
    stu: str | None = None,
    dispute: Annotated[str | None, Parameter(name="--id")] = None,
    as_json: Json = False,
) -> int:
    """Refuse a part of what a statement says is due.

    Parameters
    ----------
    statement:
        Its id.
    reason:
        Why.
    amount:
        How much money, like "0.20 USD".
    stu:
        How many standard tokens, like "3 kSTU".
    dispute:
        An id of your own, so that a retry is safe.
    """
    nano = 0 if amount is None else parse_money(amount, currency_of(data_directory()))
    ustu = 0 if stu is None else parse(stu, "stu")
    made = ask_ledger("statement_dispute", statement=statement, reason=reason, nano=nano, ustu=ustu, dispute=dispute)
    return tell(made, as_json, "dispute {dispute}: {status}")


def statement_answer(
    dispute: str,
    /,
    *,
    accept: Annotated[bool, Parameter(negative="--reject")],
    answer: str = "",
    as_json: Json = False,
) -> int:
    """Accept a dispute (its part is taken back by an entry of its own), or reject it (the whole stays due).

    Parameters
    ----------
    dispute:
        Its id.
    accept:
        Or --reject.
    answer:
        Why.
    """
    return tell(
        ask_ledger("dispute_answer", dispute=dispute, accepted=accept, answer=answer), as_json, "{dispute}: {status}"
    )


def statement_net(netting: str | None = None, /, *, as_json: Json = False) -> int:
    """Set off all statements without an open dispute: one figure for each pair of entities. An own id makes it safe."""
    made = ask_ledger("statements_net", netting=netting)
    if as_json:
        out.put_json(made)
    elif made is None:
        out.console().print("there is no statement to net")
    else:
        _print_netting(made, currency_of(data_directory()))
    return 0


def statement_settle(netting: str, debtor: str, creditor: str, /, *, reference: str, as_json: Json = False) -> int:
    """Note that what one entity owes another in a netting was paid.

    Parameters
    ----------
    netting:
        Its id.
    debtor:
        Who paid.
    creditor:
        Who was paid.
    reference:
        Of the payment; the same again changes nothing.
    """
    pair = {"debtor": debtor, "creditor": creditor, "reference": reference}
    return tell(ask_ledger("pair_settle", netting=netting, **pair), as_json, "{debtor} and {creditor}: {status}")
