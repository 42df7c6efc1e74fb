"""Accounts, budgets and keys."""

from __future__ import annotations

from typing import Any

import msgspec

from tokenworks.core.errors import LedgerRefused, find
from tokenworks.core.ids import check_name, new_key
from tokenworks.exchange import words
from tokenworks.exchange.budget import burn_order
from tokenworks.exchange.clearing_words import OPERATOR
from tokenworks.exchange.service import LedgerService


def accounts(service: LedgerService) -> list[dict[str, Any]]:
    """All accounts with their budgets and grants."""
    service.catch_up()
    state = service.state
    return [
        {
            **msgspec.structs.asdict(account),
            "budgets": [_budget(service, b) for b in state.budgets.values() if b.account == account.id],
            "grants": [
                {**msgspec.structs.asdict(grant), "left_ustu": grant.size_ustu - grant.used_ustu}
                for grant in burn_order(g for g in state.grants.values() if g.account == account.id)
            ],
        }
        for account in state.accounts.values()
    ]


def _budget(service: LedgerService, budget: words.Budget) -> dict[str, Any]:
    tally = service.state.tallies[budget.id]
    windowed = budget.window != "none"
    return {
        **msgspec.structs.asdict(budget),
        **{name: getattr(tally, name) for name in ("spent_nano", "spent_ustu", "held_nano", "held_ustu")},
        **({"window_spent_nano": tally.window_nano, "window_spent_ustu": tally.window_ustu} if windowed else {}),
    }


def account_create(
    service: LedgerService, account: str, name: str | None = None, limit_nano: int | None = None,
    limit_ustu: int | None = None, window: words.Window = "none", overage: words.Overage = "payg", clamp: bool = True,
    price_class: str = "standard", cheaper: list[str] | None = None, home: str = OPERATOR,
) -> dict[str, Any]:  # fmt: skip
    """Open an account with a root budget of the same id. ``home`` is the entity that sells to it."""
    check_name(account, "an account")
    if account in service.state.budgets:
        return {"account": account, "status": "already_opened"}
    # The account is there without its budget when the disk was full between the two: then it is opened to the end.
    new = words.Account(
        id=account, name=name or account, opened_ns=service.clock.now_ns(), overage=overage, clamp=clamp,
        price_class=price_class, cheaper=tuple(cheaper or ()), home=home,
    )  # fmt: skip
    root = words.Budget(
        id=account, account=account, parent=None, name="all", limit_nano=limit_nano, limit_ustu=limit_ustu,
        window=window,
    )  # fmt: skip
    service.submit(
        words.OpenAccount(account=service.state.accounts.get(account, new)),
        words.SetBudget(budget=root, at_ns=service.clock.now_ns()),
    )
    return {"account": account, "status": "opened"}


def account_set(
    service: LedgerService, account: str, overage: words.Overage | None = None, clamp: bool | None = None,
    price_class: str | None = None, cheaper: list[str] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Change an account's terms."""
    old = find(account, service.state.accounts, "account")
    models = None if cheaper is None else tuple(cheaper)
    changes = {"overage": overage, "clamp": clamp, "price_class": price_class, "cheaper": models}
    new = msgspec.structs.replace(old, **{name: value for name, value in changes.items() if value is not None})
    service.submit(words.OpenAccount(account=new))
    return {"account": account, "status": "changed" if new != old else "already_so"}


def budget_set(
    service: LedgerService, budget: str, parent: str | None = None, limit_nano: int | None = None,
    limit_ustu: int | None = None, window: words.Window | None = None, carved: bool = False,
    expires_ns: int | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Set the limits of a budget, or make a new one below a parent. A limit that is None binds nothing."""
    old = service.state.budgets.get(budget)
    window = window or (old.window if old else "none")
    if old is not None and old.closed_ns is not None:
        raise LedgerRefused(f"budget {budget!r} is closed", hint="make another one")
    if old is None:
        check_name(budget, "a budget")
        account = find(parent or budget, service.state.budgets, "budget").account
    else:
        if parent not in (None, old.parent):
            raise LedgerRefused(f"budget {budget!r} has another parent", hint="a budget cannot be moved")
        account, parent = old.account, old.parent
    made = words.Budget(
        id=budget, account=account, parent=parent, name=old.name if old else budget, limit_nano=limit_nano,
        limit_ustu=limit_ustu, window=window, carved=old.carved if old else carved, expires_ns=expires_ns,
    )  # fmt: skip
    service.submit(words.SetBudget(budget=made, at_ns=service.clock.now_ns()))
    return {"budget": budget, "status": "changed" if old else "made"}


def budget_close(service: LedgerService, budget: str) -> dict[str, Any]:
    """Close a budget: it refuses new holds, what is in flight may still settle, a carved rest returns to its parent."""
    old = find(budget, service.state.budgets, "budget")
    if old.closed_ns is not None:
        return {"budget": budget, "status": "already_closed"}
    now_ns = service.clock.now_ns()
    service.submit(words.SetBudget(budget=msgspec.structs.replace(old, closed_ns=now_ns), at_ns=now_ns))
    return {"budget": budget, "status": "closed"}


def keys(service: LedgerService, account: str | None = None) -> list[dict[str, Any]]:
    """All keys, or one account's: never the secrets."""
    service.catch_up()
    shown = ("id", "account", "budget", "role", "made_ns", "revoked_ns")
    found = (key for key in service.state.keys.values() if account in (None, key.account))
    return [{name: getattr(key, name) for name in shown} for key in found]


def key_create(service: LedgerService, budget: str, role: words.Role = "user") -> dict[str, Any]:
    """A new key that spends from a budget. The key itself is in this answer and nowhere else."""
    found = find(budget, service.state.budgets, "budget")
    key_id, key, hashed = new_key()
    made = words.Key(
        id=key_id, hash=hashed, account=found.account, budget=budget, role=role, made_ns=service.clock.now_ns()
    )
    service.submit(words.AddKey(key=made))
    return {"id": key_id, "key": key, "account": found.account, "budget": budget, "role": role}


def key_revoke(service: LedgerService, key: str) -> dict[str, Any]:
    """The key stops working at every gateway at once."""
    found = service.state.keys.get(key)
    already = found is not None and found.revoked_ns is not None
    service.submit(words.RevokeKey(key=key, at_ns=service.clock.now_ns()))
    return {"id": key, "status": "already_revoked" if already else "revoked"}
