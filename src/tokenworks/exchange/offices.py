"""What the ledger can be asked and told, by name: the same offices answer on the socket and inside a CLI process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from tokenworks.core.clock import Clock
from tokenworks.core.errors import BadRequest, LedgerRefused, NotFound, nearest
from tokenworks.core.ids import new_key
from tokenworks.exchange import report
from tokenworks.exchange.service import LedgerService
from tokenworks.exchange.words import (
    Account,
    AddKey,
    Budget,
    DescribeSite,
    Key,
    OpenAccount,
    RevokeKey,
    Role,
    SetBudget,
    SiteFacts,
)

RECEIPTS_LISTED_MAX = 1_000
NAME_CHARACTERS_MAX = 64
Office = Callable[..., Any]


def hello(service: LedgerService, writer: str, epoch: int | None = None) -> dict[str, Any]:
    """A gateway reports for work: its epoch, the directory, and what a restarted site agent has still to meter."""
    epoch = service.hello(writer, epoch)
    return {
        "epoch": epoch,
        "directory": service.directory(),
        "unmetered": service.unmetered(),
        "interval_end_ns": service.state.interval_end_ns,
    }


def _name(text: str, what: str) -> str:
    if not text or len(text) > NAME_CHARACTERS_MAX or not all(c.isalnum() or c in "-_." for c in text):
        raise BadRequest(f"{text!r} is not a name for {what}", hint="1 to 64 letters, digits, '-', '_' or '.'")
    return text


def accounts(service: LedgerService, clock: Clock) -> list[dict[str, Any]]:
    """All accounts with their root budgets."""
    service.catch_up()
    state = service.state
    listed = []
    for account in state.accounts.values():
        budgets = [
            {
                "id": b.id,
                "name": b.name,
                "parent": b.parent,
                "limit_nano": b.limit_nano,
                "limit_ustu": b.limit_ustu,
                "spent_nano": state.tallies[b.id].spent_nano,
                "spent_ustu": state.tallies[b.id].spent_ustu,
                "held_nano": state.tallies[b.id].held_nano,
                "held_ustu": state.tallies[b.id].held_ustu,
            }
            for b in state.budgets.values()
            if b.account == account.id
        ]
        listed.append({"id": account.id, "name": account.name, "opened_ns": account.opened_ns, "budgets": budgets})
    return listed


def account_create(
    service: LedgerService, clock: Clock, account: str, name: str | None, limit_nano: int | None, limit_ustu: int | None
) -> dict[str, Any]:
    """Open an account with a root budget of the same id."""
    _name(account, "an account")
    if account in service.state.budgets:
        return {"account": account, "status": "already_opened"}
    # The account is there without its budget when the disk was full between the two: then it is opened to the end.
    new = Account(id=account, name=name or account, opened_ns=clock.now_ns())
    service.submit(
        OpenAccount(account=service.state.accounts.get(account, new)),
        SetBudget(
            budget=Budget(
                id=account, account=account, parent=None, name="all", limit_nano=limit_nano, limit_ustu=limit_ustu
            )
        ),
    )
    return {"account": account, "status": "opened"}


def budget_set(
    service: LedgerService,
    clock: Clock,
    budget: str,
    parent: str | None = None,
    limit_nano: int | None = None,
    limit_ustu: int | None = None,
) -> dict[str, Any]:
    """Set the limits of a budget, or make a new one below a parent. A limit that is None binds nothing."""
    old = service.state.budgets.get(budget)
    if old is None:
        _name(budget, "a budget")
        if parent is None or parent not in service.state.budgets:
            near = nearest(parent or budget, service.state.budgets)
            raise NotFound(
                f"there is no budget {parent or budget!r}",
                hint=f"did you mean {near!r}?" if near else "create the account first",
            )
        account = service.state.budgets[parent].account
    else:
        if parent not in (None, old.parent):
            raise LedgerRefused(f"budget {budget!r} has another parent", hint="a budget cannot be moved")
        account, parent = old.account, old.parent
    made = Budget(
        id=budget,
        account=account,
        parent=parent,
        name=old.name if old else budget,
        limit_nano=limit_nano,
        limit_ustu=limit_ustu,
    )
    service.submit(SetBudget(budget=made))
    return {"budget": budget, "status": "changed" if old else "made"}


def keys(service: LedgerService, clock: Clock, account: str | None = None) -> list[dict[str, Any]]:
    """All keys, or one account's: never the secrets."""
    service.catch_up()
    return [
        {
            "id": k.id,
            "account": k.account,
            "budget": k.budget,
            "role": k.role,
            "made_ns": k.made_ns,
            "revoked_ns": k.revoked_ns,
        }
        for k in service.state.keys.values()
        if account in (None, k.account)
    ]


def key_create(service: LedgerService, clock: Clock, budget: str, role: Role = "user") -> dict[str, Any]:
    """A new key that spends from a budget. The key itself is in this answer and nowhere else."""
    found = service.state.budgets.get(budget)
    if found is None:
        near = nearest(budget, service.state.budgets)
        raise NotFound(f"there is no budget {budget!r}", hint=f"did you mean {near!r}?" if near else None)
    key_id, key, hashed = new_key()
    made = Key(id=key_id, hash=hashed, account=found.account, budget=budget, role=role, made_ns=clock.now_ns())
    service.submit(AddKey(key=made))
    return {"id": key_id, "key": key, "account": found.account, "budget": budget, "role": role}


def key_revoke(service: LedgerService, clock: Clock, key: str) -> dict[str, Any]:
    """The key stops working at every gateway at once."""
    found = service.state.keys.get(key)
    already = found is not None and found.revoked_ns is not None
    service.submit(RevokeKey(key=key, at_ns=clock.now_ns()))
    return {"id": key, "status": "already_revoked" if already else "revoked"}


def receipt(service: LedgerService, clock: Clock, receipt: str, account: str | None, operator: bool) -> dict[str, Any]:
    """One receipt."""
    return report.receipt(service, receipt, account, operator=operator)


def receipts(service: LedgerService, clock: Clock, account: str | None = None, limit: int = 20) -> list[str]:
    """Ids of the latest receipts, newest first."""
    service.catch_up()
    limit = max(1, min(limit, RECEIPTS_LISTED_MAX))
    return [found for (found,) in service.store.rows("recent_receipts", account=account, limit=limit)]


def books(service: LedgerService, clock: Clock) -> dict[str, Any]:
    """The trial balance."""
    return report.books(service)


def cake(service: LedgerService, clock: Clock, since_ns: int = 0) -> dict[str, Any]:
    """What the tokens of a period cost."""
    return report.cake(service, since_ns)


def describe_site(service: LedgerService, clock: Clock, facts: dict[str, Any]) -> dict[str, Any]:
    """Note a site's facts when they differ from the last."""
    new = msgspec.convert(facts, SiteFacts)
    if service.state.sites.get(new.site) == new:
        return {"site": new.site, "status": "already_described"}
    service.submit(DescribeSite(facts=new, at_ns=clock.now_ns()))
    return {"site": new.site, "status": "described"}


OFFICES: dict[str, Office] = {
    office.__name__: office
    for office in (
        accounts,
        account_create,
        budget_set,
        keys,
        key_create,
        key_revoke,
        receipt,
        receipts,
        books,
        cake,
        describe_site,
    )
}


def answer(service: LedgerService, clock: Clock, method: str, params: dict[str, Any]) -> Any:
    """Do what was asked. Raises BadRequest for an unknown method, TypeError for wrong parameters."""
    office = OFFICES.get(method)
    if office is None:
        raise BadRequest(f"the ledger has no office {method!r}")
    return office(service, clock, **params)
