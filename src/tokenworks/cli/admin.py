"""``tokenworks account`` and ``tokenworks key``: orders to the ledger, running or at rest."""

from __future__ import annotations

from typing import Annotated, Literal

from cyclopts import Parameter

from tokenworks.cli import out
from tokenworks.cli.sell import ask_ledger, duration_ns, names, tell
from tokenworks.cli.talk import Json
from tokenworks.core.clock import WallClock, utc_text
from tokenworks.core.errors import BadRequest
from tokenworks.core.units import parse, parse_money
from tokenworks.datadir import currency_of, data_directory
from tokenworks.exchange.words import Overage, Window

Limit = Annotated[str | None, Parameter(name="--limit")]
StuLimit = Annotated[str | None, Parameter(name="--stu")]


def _limits(limit: str | None, stu: str | None) -> dict[str, int | None]:
    """``--limit "25 USD"`` and ``--stu "10 MSTU"`` as integers."""
    nano = None if limit is None else parse_money(limit, currency_of(data_directory()))
    ustu = None if stu is None else parse(stu, "stu")
    if (nano is not None and nano < 0) or (ustu is not None and ustu < 0):
        raise BadRequest("a limit cannot be negative")
    return {"limit_nano": nano, "limit_ustu": ustu}


def account_list(*, as_json: Json = False) -> int:
    """All accounts with what they spent, and what is held for requests in flight."""
    accounts = ask_ledger("accounts")
    if as_json:
        out.put_json(accounts)
        return 0
    rows = [
        (
            account["id"],
            budget["id"],
            _nano(budget["limit_nano"]),
            _nano(budget["spent_nano"]),
            _nano(budget["held_nano"]),
            out.stu(budget["limit_ustu"]),
            out.stu(budget["spent_ustu"]),
        )
        for account in accounts
        for budget in account["budgets"]
    ]
    columns = ("account", "budget", "limit", "spent", "held", "STU limit", "STU spent")
    out.console().print(out.table("", columns, rows, right=columns[2:]))
    return 0


def _nano(nano: int | None) -> str | None:
    text = out.money(nano, "")
    return None if text is None else text.strip()


def account_create(
    account: str,
    /,
    *,
    name: str | None = None,
    limit: Limit = None,
    stu: StuLimit = None,
    window: Window = "none",
    overage: Overage = "payg",
    cheaper: str | None = None,
    clamp: bool = True,
    home: str = "operator",
    as_json: Json = False,
) -> int:
    """Open an account with a budget of the same name.

    Parameters
    ----------
    account:
        Its id: letters, digits, '-', '_' and '.'.
    name:
        What people call it.
    limit:
        The most it may spend in money, like "25 USD"; none without it.
    stu:
        The same in standard tokens, like "10 MSTU".
    window:
        Whether the limit starts anew each day or month (UTC).
    overage:
        When packages do not cover a request: pay as it goes, block, wait for a slow lane, or take a cheaper model.
    cheaper:
        Models that may stand in by the rule "cheaper", separated by commas; any without it.
    clamp:
        Cut max_tokens to what is affordable; --no-clamp refuses instead.
    home:
        The entity that sells to it and collects from it.
    """
    terms = {"window": window, "overage": overage, "clamp": clamp, "home": home}
    made = ask_ledger(
        "account_create", account=account, name=name, cheaper=names(cheaper), **_limits(limit, stu), **terms
    )
    return tell(made, as_json, f"account {account!r}: {{status}}. Next: tokenworks key create {account}")


def account_set(
    account: str,
    /,
    *,
    overage: Overage | None = None,
    cheaper: str | None = None,
    clamp: bool | None = None,
    as_json: Json = False,
) -> int:
    """Change an account's terms.

    Parameters
    ----------
    account:
        Its id.
    overage:
        When packages do not cover a request: pay as it goes, block, wait for a slow lane, or take a cheaper model.
    cheaper:
        Models that may stand in by the rule "cheaper", separated by commas; any without it.
    clamp:
        Cut max_tokens to what is affordable; --no-clamp refuses instead.
    """
    models = None if cheaper is None else names(cheaper)
    made = ask_ledger("account_set", account=account, overage=overage, clamp=clamp, cheaper=models)
    return tell(made, as_json, f"account {account!r}: {{status}}")


def budget_set(
    budget: str,
    /,
    *,
    parent: str | None = None,
    limit: Limit = None,
    stu: StuLimit = None,
    window: Window | None = None,
    carved: Annotated[bool, Parameter(negative="")] = False,
    expires_in: str | None = None,
    as_json: Json = False,
) -> int:
    """Set the limits of a budget, or make a new one below a parent. A limit not given is none.

    Parameters
    ----------
    budget:
        The budget; an account's own has the account's id.
    parent:
        For a new budget: the one above it.
    limit:
        The most it may spend in money, like "25 USD".
    stu:
        The same in standard tokens, like "10 MSTU".
    window:
        Whether the limit starts anew each day or month (UTC).
    carved:
        Cut the limit out of the parent's now, so that it is there whatever others spend.
    expires_in:
        A mandate for a time, like "2 h": after it the budget refuses.
    """
    expires_ns = None if expires_in is None else WallClock().now_ns() + duration_ns(expires_in)
    terms = {"window": window, "carved": carved, "expires_ns": expires_ns}
    made = ask_ledger("budget_set", budget=budget, parent=parent, **_limits(limit, stu), **terms)
    return tell(made, as_json, f"budget {budget!r}: {{status}}")


def budget_close(budget: str, /, *, as_json: Json = False) -> int:
    """Close a budget: it takes no new requests, those in flight may end, what was carved for it returns."""
    made = ask_ledger("budget_close", budget=budget)
    return tell(made, as_json, f"budget {budget!r}: {{status}}")


def key_list(account: str | None = None, /, *, as_json: Json = False) -> int:
    """All keys, or those of one account. Secrets are stored nowhere and cannot be shown."""
    keys = ask_ledger("keys", account=account)
    if as_json:
        out.put_json(keys)
        return 0
    rows = [
        (
            key["id"],
            key["account"],
            key["budget"],
            key["role"],
            utc_text(key["made_ns"]),
            utc_text(key["revoked_ns"]) if key["revoked_ns"] else None,
        )
        for key in keys
    ]
    out.console().print(out.table("", ("key", "account", "budget", "role", "made", "revoked"), rows))
    return 0


def key_create(budget: str, /, *, role: Literal["user", "admin"] = "user", as_json: Json = False) -> int:
    """A new key that spends from a budget. It is shown now and never again.

    Parameters
    ----------
    budget:
        An account's id, or a budget below one.
    role:
        "admin" sees the operator's views of receipts and the status.
    """
    made = ask_ledger("key_create", budget=budget, role=role)
    if as_json:
        out.put_json(made)
    else:
        out.console().print(made["key"])
        out.note(f"key {made['id']} of budget {budget!r}; it is not stored and cannot be shown again")
    return 0


def key_revoke(key: str, /, *, as_json: Json = False) -> int:
    """Make a key stop working at once.

    Parameters
    ----------
    key:
        Its id, the middle part of the key.
    """
    made = ask_ledger("key_revoke", key=key)
    return tell(made, as_json, f"key {key}: {{status}}")
