"""Packages, grants and the entities that share the pool."""

from __future__ import annotations

from typing import Any

import msgspec

from tokenworks.core.errors import LedgerRefused, find
from tokenworks.core.ids import check_name, new_id
from tokenworks.core.words import like
from tokenworks.exchange.service import LedgerService
from tokenworks.exchange.words import DefinePackage, EndGrant, Entity, Grant, Package, SellGrant, SetEntity


def packages(service: LedgerService) -> list[dict[str, Any]]:
    """Packages on offer."""
    service.catch_up()
    return [msgspec.structs.asdict(package) for package in service.state.packages.values()]


def package_define(service: LedgerService, package: Package) -> dict[str, Any]:
    """Put a package on offer, or change its terms for later sales."""
    code, known = check_name(package.code, "a package"), service.state.packages.get(package.code)
    if known != package:
        service.submit(DefinePackage(package=package))
    return {"package": code, "status": "already_defined" if known == package else "changed" if known else "defined"}


def grant_sell(
    service: LedgerService, account: str, package: str, grant: str | None = None, effective_ns: int | None = None,
    budget: str | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Sell a package to an account, or to one of its budgets. The same ``grant`` id twice is one sale."""
    terms = find(package, service.state.packages, "package")
    find(account, service.state.accounts, "account")
    if budget is not None and find(budget, service.state.budgets, "budget").closed_ns is not None:
        raise LedgerRefused(f"budget {budget!r} is closed", hint="sell it to another")
    now_ns = service.clock.now_ns()
    name = grant or new_id("grnt", now_ns)
    if name in service.state.grants:
        return {"grant": name, "status": "already_sold"}
    starts_ns = effective_ns or now_ns
    expires_ns = None if terms.validity_ns is None else starts_ns + terms.validity_ns
    at = {"created_ns": now_ns, "effective_ns": starts_ns, "expires_ns": expires_ns}
    to = {"account": account, "budget": budget or ""}
    sold = like(terms, Grant, id=check_name(name, "a grant"), package=package, **to, **at)
    service.submit(SellGrant(grant=sold))
    return {"grant": name, "status": "sold", "expires_ns": sold.expires_ns}


def grant_refund(
    service: LedgerService, grant: str, refund_nano: int | None = None, reason: str = "refund"
) -> dict[str, Any]:
    """End a grant and give money back: without an amount, the price of what was not used."""
    old = find(grant, service.state.grants, "grant")
    left_nano = old.price_nano - old.price_nano * old.used_ustu // old.size_ustu
    amount = left_nano if refund_nano is None else refund_nano
    service.submit(EndGrant(grant=grant, refund_nano=amount, reason=reason, at_ns=service.clock.now_ns()))
    return {"grant": grant, "status": "refunded", "refund_nano": amount}


def grant_upgrade(service: LedgerService, grant: str, package: str) -> dict[str, Any]:
    """Change to another package: what is left of the old one is refunded whole, the new one is sold at its price."""
    old = find(grant, service.state.grants, "grant")
    find(package, service.state.packages, "package")
    refunded = grant_refund(service, grant, reason=f"upgrade to {package}")
    sold = grant_sell(service, old.account, package, budget=old.budget or None)
    return {"grant": sold["grant"], "status": "upgraded", "from": grant, "refund_nano": refunded["refund_nano"]}


def entity_set(service: LedgerService, entity: str, fee_permille: int = 0, own: bool = False) -> dict[str, Any]:
    """Note an owner of sites and the fee kept from what they earn."""
    new = Entity(name=check_name(entity, "an entity"), fee_permille=fee_permille, own=own)
    if service.state.entities.get(entity) == new:
        return {"entity": entity, "status": "already_so"}
    service.submit(SetEntity(entity=new))
    return {"entity": entity, "status": "set"}
