"""``tokenworks receipt``, ``books`` and ``cake``: reading the books."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from rich.console import RenderableType

from tokenworks.cli import out
from tokenworks.cli.given import currency, duration_ns
from tokenworks.cli.out import Answer, command
from tokenworks.cli.reach import ask_ledger
from tokenworks.core.clock import WallClock
from tokenworks.core.errors import BadRequest
from tokenworks.core.units import MICRO, MJ_PER_KWH
from tokenworks.core.words import LAYERS

_HIDDEN = {"layer", "provenance", "basis"}


@command
def receipt_show(receipt: str | None = None, /, *, owner: bool = False) -> Answer:
    """One receipt, layer by layer, as the operator sees it.

    Args:
        receipt: Its id, from the header x-tokenworks-receipt; the latest without it.
        owner: Show what the owner of the account sees instead.
    """
    if receipt is None:
        receipt = next(iter(ask_ledger("receipts", limit=1)), None)
    if receipt is None:
        raise BadRequest("there is no receipt yet", hint='make one: tokenworks chat "hello"')
    found = ask_ledger("receipt", receipt=receipt, account=None, operator=not owner)
    return Answer(found, _receipt(found))


@command
def receipt_list(*, account: str | None = None, limit: int = 20) -> Answer:
    """The latest receipts, newest first.

    Args:
        account: Only this account's.
        limit: How many.
    """
    found = ask_ledger("receipts", account=account, limit=limit)
    return Answer(found, found)


def _receipt(found: dict[str, Any]) -> Iterator[RenderableType]:
    usage, unit = dict(found["usage"]), found["currency"]
    certainty = usage.pop("certainty")
    tokens = " + ".join(f"{count} {bucket.replace('_', ' ')}" for bucket, count in usage.items()) or "nothing"
    yield f"[bold]receipt {found['id']}[/bold]  {found['at']}  account {found['account']}"
    yield f"model {found['model']['served']}: {tokens} ({certainty})"
    energy = out.energy(found.get("energy_mj")), out.carbon(found.get("carbon_ug"))
    status = f"energy {found['status']}" if "status" in found else "energy unknown"
    yield " · ".join(total for total in (found["stu"], found["price"], *energy) if total) + f"   ({status})\n"
    rows: list[tuple[str, str, str]] = []
    sources: list[str] = []
    for floor, line in reversed(list(enumerate(found["lines"], 8 - len(found["lines"])))):
        facts = [(name, value) for name, value in line.items() if name not in _HIDDEN]
        short = [_fact(name, value, unit) for name, value in facts if not _sourced(value)]
        rows.append((f"{floor} {line['layer']}", " · ".join(short), line["provenance"]))
        sources += [_source(name, value, unit) for name, value in facts if _sourced(value)]
        if "basis" in line:
            sources.append(f"energy: {line['provenance']}, {line['basis']}")
    yield out.table("", ("layer", "", "provenance"), rows)
    for each in found.get("records", ()):
        kind = f"correction {each['corrects']}" if "corrects" in each else "first record"
        yield f"{kind} of {each['start']}: {out.energy(each['energy_mj'] + each['overhead_mj'])}, {each['provenance']}"
    yield "\n" + "\n".join(sources)


def _sourced(value: Any) -> bool:
    return isinstance(value, dict) and "provenance" in value


def _source(name: str, value: dict[str, Any], currency: str) -> str:
    """A figure that somebody else stated: what, how much, who says so."""
    unit, number = next((k, v) for k, v in value.items() if k not in ("provenance", "source", "error_permille"))
    return f"{name}: {_rate(unit, number, currency)}, {value['provenance']}, {value.get('source', 'unknown source')}"


def _fact(name: str, value: Any, currency: str) -> str:
    """One figure of a line, with its unit for people."""
    if isinstance(value, dict):
        if name == "chosen":
            terms = " + ".join(f"{term} {out.money(nano, currency)}" for term, nano in value["terms_nano"].items())
            return f"chose {value['replica']} at {terms}"
        return f"{name.removesuffix('_permille')} " + ", ".join(f"{k} {v}" for k, v in value.items())
    if isinstance(value, list) and name == "burned":
        return " · ".join(f"burned {out.stu(part['ustu'])} of {part['grant']}" for part in value)
    if isinstance(value, list):
        return " · ".join(f"next best {each['replica']} at {out.money(each['total_nano'], currency)}" for each in value)
    label, _, unit = name.rpartition("_")
    shown: dict[str, Callable[[int], str | None]] = {
        "mj": out.energy,
        "ug": out.carbon,
        "ul": out.water,
        "nano": lambda nano: out.money(nano, currency),
        "ustu": out.stu,
        "us": lambda us: f"{us:,} us" if us < 10_000 else f"{us / 1000:,.1f} ms",
    }
    return f"{label.replace('_', ' ')} {shown[unit](value)}" if unit in shown else f"{name.replace('_', ' ')} {value}"


def _rate(name: str, value: Any, currency: str) -> str | None:
    rates: dict[str, Callable[[int], str]] = {
        "nano_per_kwh": lambda v: f"{out.money(v, currency)}/kWh",
        "ug_per_kwh": lambda v: f"{v / 1e6:g} g CO2e/kWh",
        "nano_per_hour": lambda v: f"{out.money(v, currency)}/h for the device",
        "decode_milli_tps": lambda v: f"{v / 1_000:,.1f} tokens/s of a lone request",
        "permille": lambda v: f"+{v / 10:g} % of IT energy",
    }
    return rates[name](value) if name in rates else None


@command
def books() -> Answer:
    """Trial balance of money, standard tokens and energy; exit status 1 when one of them does not close."""
    report = ask_ledger("books")
    return Answer(report, _books(report, currency()), 0 if report["closed"] else 1)


def _books(report: dict[str, Any], unit: str) -> Iterator[RenderableType]:
    show: dict[str, Callable[[int], str | None]] = {
        "energy": lambda mj: f"{mj:,} mJ", "money": lambda nano: out.money(nano, unit), "stu": out.stu,
    }  # fmt: skip
    for name, book in report["books"].items():
        rows = [(of, show[name](amount)) for of, amount in (*book["accounts"].items(), ("sum", book["sum"]))]
        title = f"[bold]{name}[/bold]  {book['entries']} entries"
        yield out.table(title, ("account", "balance"), rows, right=("balance",))
        yield ""
    for check in report["checks"]:
        yield f"{'[green]ok[/green]  ' if check['ok'] else '[red]WRONG[/red]'} {check['check']}"
        yield from (f"      {wrong}" for wrong in check.get("wrong", ()))
    yield (
        f"\n{report['receipts']} receipts, {report['open_holds']} open holds, {report['intervals']} closed intervals, "
        f"{report['corrections']} corrections, "
        f"{report['receipts_without_energy_record']} receipts await their energy record"
    )
    show |= {"ug": out.carbon, "ul": out.water}
    beside = [f"{name} {show[name[-2:]](value)}" for name, value in report["beside"].items() if value is not None]
    yield "beside the books: " + (", ".join(beside) or "nothing known")
    yield "[green]the books close[/green]" if report["closed"] else "[red]the books do not close[/red]"


@command
def cake(*, last: str | None = None) -> Answer:
    """What a million tokens cost, layer by layer, from the intervals closed so far.

    Args:
        last: Only this much of the past, like "1 h" or "7 d"; everything without it.
    """
    since_ns = 0 if last is None else WallClock().now_ns() - duration_ns(last)
    found = ask_ledger("cake", since_ns=since_ns)
    found |= _per_million(found) | {"currency": currency()}
    if found["tokens"] and found["meter_mj"]:
        return Answer(found, _cake(found))
    return Answer(found, ["no tokens have been metered yet: make some, and wait for an interval to close (60 s)"])


def _cake(found: dict[str, Any]) -> Iterator[RenderableType]:
    tokens, total = found["tokens"], found["total_nano"]

    def money(nano: int | None) -> str | None:
        return None if nano is None else f"{nano / 1e9:,.6f} {found['currency']}"

    yield (
        f"[bold]A million tokens[/bold], from {tokens:,} tokens ({found['output_tokens']:,} output) "
        f"in {found['receipts']:,} requests over {found['span_ns'] / 3.6e12:,.2f} h; "
        f"energy {', '.join(found['meter'])}\n"
    )
    rows = []
    for layer, part in found["layers"].items():
        nano = part["nano"]
        share = f"{100 * nano / total:.1f} %" if nano is not None and total else None
        label = f"{LAYERS.index(layer) + 1} {layer}" if layer in LAYERS else "  idle (nobody's)"
        per = [None if value is None else value * 1_000_000 // tokens for value in (nano, part["mj"], part["ug"])]
        rows.append((label, money(per[0]), share, out.energy(per[1]), out.carbon(per[2])))
    sums = [found["total_nano_per_mtok"], found["meter_mj_per_mtok"], found["carbon_ug_per_mtok"]]
    rows.append(("  total", money(sums[0]), "100 %", out.energy(sums[1]), out.carbon(sums[2])))
    columns = ("layer", "money", "share", "energy", "carbon")
    yield out.table("", columns, rows, right=columns[1:])
    beside = (("by contract", "market_ug", out.carbon), ("hardware", "embodied_ug", out.carbon))
    for label, name, text in (*beside, ("unused", "idle_embodied_ug", out.carbon), ("water", "water_ul", out.water)):
        if found[name] is not None:
            yield f"{label:<12} {text(found[name] * 1_000_000 // tokens)} a million tokens"
    yield f"\nsold for     {money(found['revenue_nano_per_mtok'])} a million tokens"
    yield f"tokens/kWh   {found['tokens_per_kwh']:,.0f}"
    if found["earned_over_paid_per_kwh"] is not None:
        earned, paid = money(found["earned_nano_per_kwh"]), money(found["paid_nano_per_kwh"])
        yield f"a kWh        earned {earned}, was paid {paid}: {found['earned_over_paid_per_kwh']:.2f} x"
    yield "a dash is unknown, not zero; idle is capacity that nobody used and is not hidden in the layers"


def _per_million(found: dict[str, Any]) -> dict[str, Any]:
    """The headline figures, from whole sums."""
    tokens, meter_mj, bill = found["tokens"], found["meter_mj"], found["bill_nano"]
    total = sum(part["nano"] for part in found["layers"].values() if part["nano"] is not None)

    def per_mtok(value: int | None) -> int | None:
        return None if value is None or not tokens else value * 1_000_000 // tokens

    earned = found["revenue_nano"] * MJ_PER_KWH // meter_mj if meter_mj else None
    paid = bill * MJ_PER_KWH // meter_mj if meter_mj and bill is not None else None
    return {
        "total_nano": total, "total_nano_per_mtok": per_mtok(total), "meter_mj_per_mtok": per_mtok(meter_mj),
        "carbon_ug_per_mtok": per_mtok(found["carbon_ug"]), "revenue_nano_per_mtok": per_mtok(found["revenue_nano"]),
        "stu": found["ustu"] / MICRO, "tokens_per_kwh": tokens * MJ_PER_KWH / meter_mj if meter_mj else None,
        "earned_nano_per_kwh": earned, "paid_nano_per_kwh": paid,
        "earned_over_paid_per_kwh": earned / paid if earned is not None and paid else None,
    }  # fmt: skip
