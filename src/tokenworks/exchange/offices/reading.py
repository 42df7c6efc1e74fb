"""Reading the books: receipts, trial balance, cake, pages for exports, the receipts log."""

from __future__ import annotations

from typing import Any

import msgspec

from tokenworks.core.errors import BadRequest
from tokenworks.core.words import like
from tokenworks.exchange import report
from tokenworks.exchange.exports.sold import Credit, purchase_of, sold_of
from tokenworks.exchange.service import LedgerService
from tokenworks.exchange.words import DescribeSite, Grant, SiteFacts, decode_settlement

RECEIPTS_LISTED_MAX = 1_000
PAGE_ROWS_MAX = 5_000
BUNDLE_RECEIPTS_MAX = 1_000
FOR_EVER_NS = 1 << 62


def receipts(service: LedgerService, account: str | None = None, limit: int = 20) -> list[str]:
    """Ids of the latest receipts, newest first."""
    service.catch_up()
    limit = max(1, min(limit, RECEIPTS_LISTED_MAX))
    return [found for (found,) in service.store.rows("recent_receipts", account=account, limit=limit)]


def describe_site(service: LedgerService, facts: SiteFacts) -> dict[str, Any]:
    """Note a site's facts when they differ from the last."""
    if service.state.sites.get(facts.site) == facts:
        return {"site": facts.site, "status": "already_described"}
    service.submit(DescribeSite(facts=facts, at_ns=service.clock.now_ns()))
    return {"site": facts.site, "status": "described"}


def sold(
    service: LedgerService, account: str | None = None, since_ns: int = 0, until_ns: int = FOR_EVER_NS,
    after: str | None = None, limit: int = PAGE_ROWS_MAX,
) -> dict[str, Any]:  # fmt: skip
    """What was sold in a period, a page at a time; on the first page also packages, refunds and what is owed."""
    service.catch_up()
    state, first = service.state, after is None
    period = {"since_ns": since_ns, "until_ns": until_ns}
    limit = max(1, min(limit, PAGE_ROWS_MAX))
    rows = []
    found = service.store.rows("sold_page", after=after or "", account=account, limit=limit, **period)
    for _, doc, energy_mj, carbon_ug in found:
        settled = decode_settlement(doc)
        owner = state.accounts[settled.account]
        who = {"account_name": owner.name, "price_class": owner.price_class}
        rows.append(sold_of(settled, **who, energy_mj=energy_mj, carbon_ug=carbon_ug))
    page: dict[str, Any] = {"rows": rows, "next": found[-1][0] if len(rows) == limit else None}
    if first:
        page |= _beside(service, account, since_ns, until_ns)
    return page


def _beside(service: LedgerService, account: str | None, since_ns: int, until_ns: int) -> dict[str, Any]:
    """What an invoice needs beside requests."""
    state, store = service.state, service.store
    grants = [g for g in state.grants.values() if account in (None, g.account)]
    bought = [g for g in grants if since_ns <= g.created_ns < until_ns]
    ended = [g for g in grants if g.refund_nano and g.ended_ns is not None and since_ns <= g.ended_ns < until_ns]
    unit = store.currency()
    found: dict[str, Any] = {
        "grants": grants,
        "purchases": [purchase_of(g, unit, state.accounts[g.account].name) for g in bought],
        "credits": [_credit(g, unit, state.accounts[g.account].name) for g in ended],
    }
    if account is not None:
        owed = store.rows("owed_change", account=f"customer/{account}", since_ns=since_ns, until_ns=until_ns)
        found["owed_nano"] = int(owed[0][0])
    return found


def _credit(grant: Grant, currency: str, account_name: str) -> Credit:
    said = {"reason": f"refund of package {grant.package}", "nano": grant.refund_nano, "at_ns": grant.ended_ns or 0}
    return like(grant, Credit, account_name=account_name, currency=currency, **said)


def entries(
    service: LedgerService, account: str | None = None, since_ns: int = 0, until_ns: int = FOR_EVER_NS,
    after: int | None = None, limit: int = PAGE_ROWS_MAX,
) -> dict[str, Any]:  # fmt: skip
    """Lines of the books in the order in which the ledger took them, a page at a time."""
    service.catch_up()
    limit = max(1, min(limit, PAGE_ROWS_MAX))
    period = {"since_ns": since_ns, "until_ns": until_ns}
    found = service.store.rows("entry_page", seq=after or 0, limit=limit, **period)
    rows = [{"txn": str(t), "book": b, "account": a, "amount": int(n), "at_ns": at} for _, t, b, a, n, at in found]
    return {"rows": rows, "next": found[-1][0] if len(found) == limit else None}


def log_checkpoint(service: LedgerService) -> dict[str, Any]:
    """The log's latest checkpoint, signed now, and the key to check it with."""
    service.catch_up()
    service.checkpoint()
    note = service.store.rows("last_checkpoint")
    return {
        "checkpoint": note[0][0] if note else None,
        "verifier": service.log.key.verifier().text(),
        "size": service.log.size,
    }


def log_proof(service: LedgerService, old: int, new: int) -> list[str]:
    """The proof that the log of size ``new`` goes on from the one of size ``old``, as hexadecimal hashes."""
    service.catch_up()
    if not 0 <= old <= new <= service.log.size:
        raise BadRequest(f"the log has {service.log.size} signed leaves; a proof goes from a smaller size to a larger")
    return [node.hex() for node in service.log.proof(old, new)]


def receipt_export(service: LedgerService, receipts: list[str]) -> str:
    """Receipts of one account as a bundle that its owner can check offline."""
    service.catch_up()
    if not 0 < len(receipts) <= BUNDLE_RECEIPTS_MAX:
        raise BadRequest(f"a bundle has 1 to {BUNDLE_RECEIPTS_MAX} receipts")
    service.checkpoint()
    views = [report.receipt(service, each, None, operator=False) for each in receipts]
    accounts = {view["account"] for view in views}
    if len(accounts) != 1:
        raise BadRequest("a bundle is for one account", hint="export one bundle for each")
    return service.log.bundle(accounts.pop(), msgspec.to_builtins(views))
