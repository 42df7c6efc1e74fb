"""What tests of the exchange build again and again: accounts, budgets, holds, settlements, works, energy lines."""

from __future__ import annotations

from typing import Any

from tokenworks.core.words import Delivery, EnergyLine, Interval, Provenance, Usage, Work
from tokenworks.exchange.words import Account, Budget, OpenAccount, PlaceHold, SetBudget, Settlement


def opening(name: str, at_ns: int = 0, **terms: Any) -> OpenAccount:
    return OpenAccount(account=Account(id=name, name=name, opened_ns=at_ns, **terms))


def budgeting(name: str, account: str, parent: str | None = None, limit: int | None = None) -> SetBudget:
    return SetBudget(
        budget=Budget(id=name, account=account, parent=parent, name=name, limit_ustu=limit, limit_nano=limit)
    )


def holding(receipt: str, budget: str, ustu: int, nano: int, at_ns: int = 0) -> PlaceHold:
    return PlaceHold(receipt=receipt, budget=budget, ustu=ustu, nano=nano, at_ns=at_ns)


def settlement(receipt: str, **changes: Any) -> Settlement:
    """Nothing used and nothing owed, but for what is said."""
    values: dict[str, Any] = {
        **dict.fromkeys(("key", "endpoint", "model_asked", "model_served", "rate_card", "price_book"), "x"),
        **dict.fromkeys(("ustu", "nano", "loss_ustu", "loss_nano", "held_ustu", "held_nano", "hold_ns"), 0),
        **dict.fromkeys(("decision", "work", "estimate")),
        "account": "a",
        "budget": "a",
        "usage": Usage(input=1),
        "currency": "USD",
        "delivery": Delivery(ending="complete", chunks=1),
        "arrived_ns": 0,
        "at_ns": 1,
    }
    return Settlement(receipt=receipt, **values | changes)


def work(receipt: str, **changes: Any) -> Work:
    at: dict[str, Any] = {"replica": "r", "site": "home", "slice": "a", "start_ns": 1, "first_ns": None, "end_ns": 2}
    return Work(receipt=receipt, **at | {"input_tokens": 3, "output_tokens": 4} | changes)


def energy_line(receipt: str, energy_mj: int = 10, **changes: Any) -> EnergyLine:
    """Millijoules whose money and carbon are not known."""
    figures: dict[str, Any] = dict.fromkeys(("energy_nano", "overhead_nano", "carbon_ug", "device_nano"))
    return EnergyLine(
        receipt=receipt, energy_mj=energy_mj, **figures | {"overhead_mj": 1, "slice_ns": 1, "ended": True} | changes
    )


def interval(site: str, start_ns: int, lines: tuple[EnergyLine, ...] = (), **changes: Any) -> Interval:
    """Ten nanoseconds of a site, its lines' joules and nothing else; money and carbon are not known."""
    figures: dict[str, Any] = {
        **dict.fromkeys(("idle_mj", "overhead_mj", "residual_mj"), 0),
        **dict.fromkeys(("idle_nano", "overhead_nano", "bill_nano", "carbon_ug", "idle_device_nano")),
        "end_ns": start_ns + 10,
        "supply": "grid",
        "meter_mj": sum(line.energy_mj for line in lines),
        "meter": Provenance.MODELLED,
        "scale_ppm": 1_000_000,
        "services": (),
    }
    return Interval(site=site, start_ns=start_ns, requests=lines, **figures | changes)
