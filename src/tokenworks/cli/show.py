"""``tokenworks receipt``, ``books`` and ``cake``: reading the books."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated, Any

from cyclopts import Parameter
from rich.console import Console

from tokenworks.cli import out
from tokenworks.cli.talk import Json
from tokenworks.core.clock import WallClock
from tokenworks.core.errors import BadRequest
from tokenworks.core.units import MICRO, MJ_PER_KWH, parse
from tokenworks.datadir import currency_of, data_directory
from tokenworks.exchange.ask import ask

_HIDDEN = {"layer", "provenance", "basis"}


def receipt_show(receipt: str | None = None, /, *, owner: bool = False, as_json: Json = False) -> int:
    """One receipt, layer by layer, as the operator sees it.

    Parameters
    ----------
    receipt:
        Its id, from the header x-tokenworks-receipt; the latest without it.
    owner:
        Show what the owner of the account sees instead.
    """
    data = data_directory()
    if receipt is None:
        latest = ask(data, "receipts", limit=1)
        if not latest:
            raise BadRequest("there is no receipt yet", hint='make one: tokenworks chat "hello"')
        receipt = latest[0]
    found = ask(data, "receipt", receipt=receipt, account=None, operator=not owner)
    if as_json:
        out.put_json(found)
    else:
        _print_receipt(out.console(), found)
    return 0


def receipt_list(*, account: str | None = None, limit: int = 20, as_json: Json = False) -> int:
    """The latest receipts, newest first.

    Parameters
    ----------
    account:
        Only this account's.
    limit:
        How many.
    """
    found = ask(data_directory(), "receipts", account=account, limit=limit)
    if as_json:
        out.put_json(found)
    else:
        for receipt in found:
            out.console().print(receipt)
    return 0


def _print_receipt(console: Console, found: dict[str, Any]) -> None:
    usage = dict(found["usage"])
    certainty = usage.pop("certainty")
    tokens = " + ".join(f"{count} {bucket.replace('_', ' ')}" for bucket, count in usage.items()) or "nothing"
    console.print(f"[bold]receipt {found['id']}[/bold]  {found['at']}  account {found['account']}")
    console.print(f"model {found['model']['served']}: {tokens} ({certainty})")
    totals = [
        found["stu"],
        found["price"],
        out.energy(found.get("energy_mj")),
        out.carbon(found.get("carbon_ug")),
    ]
    status = f"energy {found['status']}" if "status" in found else "energy unknown"
    console.print(" · ".join(total for total in totals if total) + f"   ({status})\n")
    rows: list[tuple[str, str, str]] = []
    sources: list[str] = []
    for floor, line in reversed(list(enumerate(found["lines"], 8 - len(found["lines"])))):
        facts = [(name, value) for name, value in line.items() if name not in _HIDDEN]
        short = [_fact(name, value, found["currency"]) for name, value in facts if not _sourced(value)]
        rows.append((f"{floor} {line['layer']}", " · ".join(short), line["provenance"]))
        sources += [_source(name, value, found["currency"]) for name, value in facts if _sourced(value)]
        if "basis" in line:
            sources.append(f"energy: {line['provenance']}, {line['basis']}")
    console.print(out.table("", ("layer", "", "provenance"), rows))
    console.print("\n" + "\n".join(sources))


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


def books(*, as_json: Json = False) -> int:
    """Trial balance of money, standard tokens and energy; exit status 1 when one of them does not close."""
    data = data_directory()
    report = ask(data, "books")
    if as_json:
        out.put_json(report)
        return 0 if report["closed"] else 1
    console, currency = out.console(), currency_of(data)
    for name, book in report["books"].items():
        rows = [(account, _balance(name, amount, currency)) for account, amount in book["accounts"].items()]
        rows.append(("sum", _balance(name, book["sum"], currency)))
        console.print(
            out.table(
                f"[bold]{name}[/bold]  {book['entries']} entries", ("account", "balance"), rows, right=("balance",)
            )
        )
        console.print("")
    for check in report["checks"]:
        console.print(f"{'[green]ok[/green]  ' if check['ok'] else '[red]WRONG[/red]'} {check['check']}")
        for wrong in check.get("wrong", ()):
            console.print(f"      {wrong}")
    console.print(
        f"\n{report['receipts']} receipts, {report['open_holds']} open holds, {report['intervals']} closed intervals, "
        f"{report['receipts_without_energy_record']} receipts await their energy record"
    )
    console.print("[green]the books close[/green]" if report["closed"] else "[red]the books do not close[/red]")
    return 0 if report["closed"] else 1


def _balance(book: str, amount: int, currency: str) -> str | None:
    if book == "energy":
        return f"{amount:,} mJ"
    return out.money(amount, currency) if book == "money" else out.stu(amount)


def cake(*, last: Annotated[str | None, Parameter(name="--last")] = None, as_json: Json = False) -> int:
    """What a million tokens cost, layer by layer, from the intervals closed so far.

    Parameters
    ----------
    last:
        Only this much of the past, like "1 h" or "7 d"; everything without it.
    """
    data = data_directory()
    since_ns = 0 if last is None else WallClock().now_ns() - parse(re.sub(r"(\d)([a-z])", r"\1 \2", last), "time")
    found = ask(data, "cake", since_ns=since_ns)
    currency = currency_of(data)
    found |= _per_million(found)
    if as_json:
        out.put_json(found | {"currency": currency})
        return 0
    console = out.console()
    tokens = found["tokens"]
    if not tokens or not found["meter_mj"]:
        console.print("no tokens have been metered yet: make some, and wait for an interval to close (60 s)")
        return 0
    console.print(
        f"[bold]A million tokens[/bold], from {tokens:,} tokens ({found['output_tokens']:,} output) "
        f"in {found['receipts']:,} requests over {found['span_ns'] / 3.6e12:,.2f} h; "
        f"energy {', '.join(found['meter'])}\n"
    )
    total = found["total_nano"]
    rows = []
    numbered = {"power": 1, "site": 2, "device": 3, "engine": 4, "exchange": 5, "brain": 6, "agents": 7}
    for layer, part in found["layers"].items():
        nano = part["nano"]
        share = f"{100 * nano / total:.1f} %" if nano is not None and total else None
        label = f"{numbered[layer]} {layer}" if layer in numbered else "  idle (nobody's)"
        million = 1_000_000
        per = [None if value is None else value * million // tokens for value in (nano, part["mj"], part["ug"])]
        rows.append((label, _money6(per[0], currency), share, out.energy(per[1]), out.carbon(per[2])))
    sums = [found["total_nano_per_mtok"], found["meter_mj_per_mtok"], found["carbon_ug_per_mtok"]]
    rows.append(("  total", _money6(sums[0], currency), "100 %", out.energy(sums[1]), out.carbon(sums[2])))
    columns = ("layer", "money", "share", "energy", "carbon")
    console.print(out.table("", columns, rows, right=columns[1:]))
    console.print(f"\nsold for     {_money6(found['revenue_nano_per_mtok'], currency)} a million tokens")
    console.print(f"tokens/kWh   {found['tokens_per_kwh']:,.0f}")
    if found["earned_over_paid_per_kwh"] is not None:
        console.print(
            f"a kWh        earned {_money6(found['earned_nano_per_kwh'], currency)}, "
            f"was paid {_money6(found['paid_nano_per_kwh'], currency)}: {found['earned_over_paid_per_kwh']:.2f} x"
        )
    console.print("a dash is unknown, not zero; idle is capacity that nobody used and is not hidden in the layers")
    return 0


def _money6(nano: int | None, currency: str) -> str | None:
    return None if nano is None else f"{nano / 1e9:,.6f} {currency}"


def _per_million(found: dict[str, Any]) -> dict[str, Any]:
    """The headline figures, from whole sums."""
    tokens, meter_mj, bill = found["tokens"], found["meter_mj"], found["bill_nano"]
    known = [part["nano"] for part in found["layers"].values() if part["nano"] is not None]
    total = sum(known)

    def per_mtok(value: int | None) -> int | None:
        return None if value is None or not tokens else value * 1_000_000 // tokens

    earned = found["revenue_nano"] * MJ_PER_KWH // meter_mj if meter_mj else None
    paid = bill * MJ_PER_KWH // meter_mj if meter_mj and bill is not None else None
    return {
        "total_nano": total,
        "total_nano_per_mtok": per_mtok(total),
        "meter_mj_per_mtok": per_mtok(meter_mj),
        "carbon_ug_per_mtok": per_mtok(found["carbon_ug"]),
        "revenue_nano_per_mtok": per_mtok(found["revenue_nano"]),
        "stu": found["ustu"] / MICRO,
        "tokens_per_kwh": tokens * MJ_PER_KWH / meter_mj if meter_mj else None,
        "earned_nano_per_kwh": earned,
        "paid_nano_per_kwh": paid,
        "earned_over_paid_per_kwh": earned / paid if earned is not None and paid else None,
    }
