"""``tokenworks account``, ``budget`` and ``key``: orders to the ledger, running or at rest."""

from __future__ import annotations

from typing import Annotated, Literal

from cyclopts import Parameter

from tokenworks.cli import out
from tokenworks.cli.given import from_now_ns, money_nano, names, tokens_ustu
from tokenworks.cli.out import Answer, command
from tokenworks.cli.reach import ask_ledger
from tokenworks.core.errors import BadRequest
from tokenworks.exchange.words import Overage, Window

Limit = Annotated[str | None, Parameter(name="--limit")]
StuLimit = Annotated[str | None, Parameter(name="--stu")]


def _limits(limit: str | None, stu: str | None) -> dict[str, int | None]:
    """``--limit "25 USD"`` and ``--stu "10 MSTU"`` as integers."""
    nano, ustu = money_nano(limit), tokens_ustu(stu)
    if min(nano or 0, ustu or 0) < 0:
        raise BadRequest("a limit cannot be negative")
    return {"limit_nano": nano, "limit_ustu": ustu}


@command
def account_list() -> Answer:
    """All accounts with what they spent, and what is held for requests in flight."""
    accounts = ask_ledger("accounts")
    rows = (
        (account["id"], b["id"], *(out.money(b[f"{sum_}_nano"], "") for sum_ in ("limit", "spent", "held")),
         out.stu(b["limit_ustu"]), out.stu(b["spent_ustu"]))
        for account in accounts for b in account["budgets"]
    )  # fmt: skip
    columns = ("account", "budget", "limit", "spent", "held", "STU limit", "STU spent")
    return Answer(accounts, [out.table("", columns, rows, right=columns[2:])])


@command
def account_create(
    account: str, /, *, name: str | None = None, limit: Limit = None, stu: StuLimit = None, window: Window = "none",
    overage: Overage = "payg", cheaper: str | None = None, clamp: bool = True, home: str = "operator",
) -> Answer:  # fmt: skip
    """Open an account with a budget of the same name.

    Args:
        account: Its id: letters, digits, '-', '_' and '.'.
        name: What people call it.
        limit: The most it may spend in money, like "25 USD"; none without it.
        stu: The same in standard tokens, like "10 MSTU".
        window: Whether the limit starts anew each day or month (UTC).
        overage: When packages do not cover it: pay as it goes, block, wait for a slow lane, or take a cheaper model.
        cheaper: Models that may stand in by the rule "cheaper", separated by commas; any without it.
        clamp: Cut max_tokens to what is affordable; --no-clamp refuses instead.
        home: The entity that sells to it and collects from it.
    """
    terms = {"window": window, "overage": overage, "clamp": clamp, "home": home, "cheaper": names(cheaper)}
    made = ask_ledger("account_create", account=account, name=name, **_limits(limit, stu), **terms)
    return out.told(made, f"account {account!r}: {{status}}. Next: tokenworks key create {account}")


@command
def account_set(
    account: str, /, *, overage: Overage | None = None, cheaper: str | None = None, clamp: bool | None = None
) -> Answer:
    """Change an account's terms.

    Args:
        account: Its id.
        overage: When packages do not cover it: pay as it goes, block, wait for a slow lane, or take a cheaper model.
        cheaper: Models that may stand in by the rule "cheaper", separated by commas; any without it.
        clamp: Cut max_tokens to what is affordable; --no-clamp refuses instead.
    """
    models = None if cheaper is None else names(cheaper)
    made = ask_ledger("account_set", account=account, overage=overage, clamp=clamp, cheaper=models)
    return out.told(made, f"account {account!r}: {{status}}")


@command
def budget_set(
    budget: str, /, *, parent: str | None = None, limit: Limit = None, stu: StuLimit = None,
    window: Window | None = None, carved: out.Flag = False, expires_in: str | None = None,
) -> Answer:  # fmt: skip
    """Set the limits of a budget, or make a new one below a parent. A limit not given is none.

    Args:
        budget: The budget; an account's own has the account's id.
        parent: For a new budget: the one above it.
        limit: The most it may spend in money, like "25 USD".
        stu: The same in standard tokens, like "10 MSTU".
        window: Whether the limit starts anew each day or month (UTC).
        carved: Cut the limit out of the parent's now, so that it is there whatever others spend.
        expires_in: A mandate for a time, like "2 h": after it the budget refuses.
    """
    terms = {"window": window, "carved": carved, "expires_ns": from_now_ns(expires_in)}
    made = ask_ledger("budget_set", budget=budget, parent=parent, **_limits(limit, stu), **terms)
    return out.told(made, f"budget {budget!r}: {{status}}")


@command
def budget_close(budget: str, /) -> Answer:
    """Close a budget: it takes no new requests, those in flight may end, what was carved for it returns."""
    return out.told(ask_ledger("budget_close", budget=budget), f"budget {budget!r}: {{status}}")


@command
def key_list(account: str | None = None, /) -> Answer:
    """All keys, or those of one account. Secrets are stored nowhere and cannot be shown."""
    keys, columns = ask_ledger("keys", account=account), ("key", "account", "budget", "role", "made", "revoked")
    rows = [
        (k["id"], k["account"], k["budget"], k["role"], out.when(k["made_ns"]), out.when(k["revoked_ns"])) for k in keys
    ]
    return Answer(keys, [out.table("", columns, rows)])


@command
def key_create(budget: str, /, *, role: Literal["user", "admin"] = "user", as_json: out.Json = False) -> Answer:
    """A new key that spends from a budget. It is shown now and never again.

    Args:
        budget: An account's id, or a budget below one.
        role: "admin" sees the operator's views of receipts and the status.
    """
    made = ask_ledger("key_create", budget=budget, role=role)
    if not as_json:
        out.note(f"key {made['id']} of budget {budget!r}; it is not stored and cannot be shown again")
    return out.told(made, "{key}")


@command
def key_revoke(key: str, /) -> Answer:
    """Make a key stop working at once.

    Args:
        key: Its id, the middle part of the key.
    """
    return out.told(ask_ledger("key_revoke", key=key), f"key {key}: {{status}}")
