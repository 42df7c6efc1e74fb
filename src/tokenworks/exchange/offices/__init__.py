"""What the ledger can be asked and told, by name: the same offices answer on the socket and inside a CLI process.

They check what comes from outside, make ids and times, and leave every decision to the ledger.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from typing import Any, Literal, get_args, get_origin, get_type_hints

import msgspec

from tokenworks.core.errors import BadRequest, did_you_mean
from tokenworks.exchange import report
from tokenworks.exchange.offices import clearing, outside, people, reading, sales
from tokenworks.exchange.service import LedgerService

Office = Callable[..., Any]


def hello(
    service: LedgerService, writer: str, epoch: int | None = None, lives_since: int | None = None
) -> dict[str, Any]:
    """A gateway reports for work: its epoch, the directory, and what a restarted site agent has still to meter."""
    epoch = service.hello(writer, epoch, lives_since)
    return {
        "epoch": epoch,
        "directory": service.directory(),
        "unmetered": service.store.unmetered(),
        "interval_end_ns": service.state.interval_end_ns,
    }


OFFICES: dict[str, Office] = {
    office.__name__: office
    for office in (
        LedgerService.lease,
        *(people.accounts, people.account_create, people.account_set, people.budget_set, people.budget_close),
        *(people.keys, people.key_create, people.key_revoke),
        *(sales.packages, sales.package_define, sales.grant_sell, sales.grant_refund, sales.grant_upgrade),
        *(sales.entity_set, clearing.statements, clearing.statement, clearing.statement_issue),
        *(clearing.statement_dispute, clearing.dispute_answer, clearing.statements_net, clearing.pair_settle),
        *(report.receipt, reading.receipts, report.books, report.cake, reading.sold, reading.entries),
        *(reading.log_checkpoint, reading.log_proof, reading.receipt_export, reading.describe_site),
        *(outside.organization_usage, outside.organization_costs),
    )
}
INSIDE = ("lease", "describe_site")
"""What gateways tell the ledger; not for administrators."""


def describe(service: LedgerService) -> dict[str, Any]:
    """All offices for administrators, as OpenAPI."""
    return outside.openapi({name: office for name, office in OFFICES.items() if name not in (*INSIDE, "describe")})


OFFICES["describe"] = describe


def answer(service: LedgerService, method: str, params: dict[str, Any]) -> Any:
    """Do what was asked. Raises BadRequest for an unknown method or parameter, and for one of another type."""
    office = OFFICES.get(method)
    if office is None:
        raise BadRequest(f"the ledger has no office {method!r}")
    return office(service, **_checked(office, method, params))


def _checked(office: Office, method: str, params: dict[str, Any]) -> dict[str, Any]:
    """The parameters as the office's types, under its names: what is wrong must not come into a journal."""
    known, hints = _parameters(office)
    for name in params:
        if name not in known:
            hint = did_you_mean(name, known, f"it takes: {', '.join(known) or 'nothing'}")
            raise BadRequest(f"{method} has no parameter {name!r}", hint=hint, param=name)
    for name, required in known.items():
        if required and name not in params:
            raise BadRequest(f"{method} needs {name}", param=name)
    made = {}
    for name, value in params.items():
        try:
            made[name] = msgspec.convert(value, hints[name])
        except msgspec.ValidationError as error:
            raise BadRequest(f"{name} is wrong: {error}", hint=_choices(hints[name]), param=name) from None
    return made


def _choices(hint: Any) -> str | None:
    words = [word for kind in (hint, *get_args(hint)) if get_origin(kind) is Literal for word in get_args(kind)]
    return f"one of: {', '.join(words)}" if words else None


@cache
def _parameters(office: Office) -> tuple[dict[str, bool], dict[str, Any]]:
    """Name -> is required, and name -> type, of what comes after the service."""
    parameters = list(inspect.signature(office).parameters.values())[1:]
    return {each.name: each.default is each.empty for each in parameters}, get_type_hints(office)
