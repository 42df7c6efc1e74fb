"""``tokenworks package`` and ``tokenworks grant``: what is on offer, who has it, and what is left of it."""

from __future__ import annotations

import re
from typing import Annotated, Any

from cyclopts import Parameter

from tokenworks.cli import out
from tokenworks.cli.talk import Json
from tokenworks.core.clock import WallClock, utc_text
from tokenworks.core.units import parse, parse_money
from tokenworks.datadir import currency_of, data_directory
from tokenworks.exchange.ask import ask


def _ask(method: str, **params: Any) -> Any:
    return ask(data_directory(), method, **params)


def duration_ns(text: str) -> int:
    """``"30 d"`` or ``"30d"`` as nanoseconds."""
    return parse(re.sub(r"(\d)([a-z])", r"\1 \2", text), "time")


def _names(text: str | None) -> list[str]:
    return [] if text is None else [name.strip() for name in text.split(",") if name.strip()]


def package_list(*, as_json: Json = False) -> int:
    """Packages on offer."""
    packages = _ask("packages")
    if as_json:
        out.put_json(packages)
        return 0
    currency = currency_of(data_directory())
    rows = [
        (
            p["code"],
            p["name"],
            out.stu(p["size_ustu"]),
            out.money(p["price_nano"], currency),
            f"{p['validity_ns'] // 86_400_000_000_000} d" if p["validity_ns"] else "for ever",
            ", ".join((*p["models"], *p["sites"])) or "any",
            p["priority"],
            "yes" if p["promotional"] else "",
        )
        for p in packages
    ]
    columns = ("package", "name", "size", "price", "valid", "for", "priority", "promotional")
    out.console().print(out.table("", columns, rows, right=("size", "price", "priority")))
    return 0


def package_define(
    code: str,
    /,
    *,
    size: str,
    price: str,
    validity: str | None = None,
    name: str | None = None,
    models: str | None = None,
    sites: str | None = None,
    priority: int = 100,
    promotional: Annotated[bool, Parameter(negative="")] = False,
    as_json: Json = False,
) -> int:
    """Put a package on offer, or change its terms for later sales. What was sold keeps the terms of its sale.

    Parameters
    ----------
    code:
        Its id: letters, digits, '-', '_' and '.'.
    size:
        Standard tokens, like "10 MSTU".
    price:
        Like "9.90 USD"; "0 USD" for a gift.
    validity:
        From the day it takes effect, like "30 d"; without it, for ever.
    name:
        What people call it.
    models:
        Only these models, separated by commas.
    sites:
        Only these sites, separated by commas.
    priority:
        Lower numbers are used up first.
    promotional:
        Among equals, used up before what was paid for.
    as_json:
        Print JSON.
    """
    package = {
        "code": code,
        "name": name or code,
        "size_ustu": parse(size, "stu"),
        "price_nano": parse_money(price, currency_of(data_directory())),
        "validity_ns": None if validity is None else duration_ns(validity),
        "models": _names(models),
        "sites": _names(sites),
        "priority": priority,
        "promotional": promotional,
    }
    _tell(_ask("package_define", package=package), as_json, f"package {code!r}: {{status}}")
    return 0


def package_sell(
    account: str, package: str, /, *, grant: str | None = None, from_in: str | None = None, as_json: Json = False
) -> int:
    """Sell a package to an account. The same --grant id twice is one sale, so a retry is safe.

    Parameters
    ----------
    account:
        Who gets it.
    package:
        Which one.
    grant:
        An id of your own for the sale.
    from_in:
        When it takes effect, like "7 d" from now; at once without it.
    as_json:
        Print JSON.
    """
    starts_ns = None if from_in is None else WallClock().now_ns() + duration_ns(from_in)
    made = _ask("grant_sell", account=account, package=package, grant=grant, effective_ns=starts_ns)
    _tell(made, as_json, f"{package!r} for {account!r}: {{status}}, grant {{grant}}")
    return 0


def grant_list(account: str | None = None, /, *, as_json: Json = False) -> int:
    """Grants in the order in which they are used up, with what is left."""
    accounts = [a for a in _ask("accounts") if account in (None, a["id"])]
    grants = [grant for a in accounts for grant in a["grants"]]
    if as_json:
        out.put_json(grants)
        return 0
    rows = [
        (
            g["id"],
            g["account"],
            g["package"],
            out.stu(g["size_ustu"]),
            out.stu(g["left_ustu"]),
            utc_text(g["expires_ns"])[:10] if g["expires_ns"] else "never",
            "ended" if g["ended_ns"] else "",
        )
        for g in grants
    ]
    columns = ("grant", "account", "package", "size", "left", "expires", "")
    out.console().print(out.table("", columns, rows, right=("size", "left")))
    return 0


def grant_refund(grant: str, /, *, amount: str | None = None, reason: str = "refund", as_json: Json = False) -> int:
    """End a grant and give back the price of what was not used, or less.

    Parameters
    ----------
    grant:
        Its id.
    amount:
        Give back this much instead, like "2 USD".
    reason:
        For the books.
    as_json:
        Print JSON.
    """
    currency = currency_of(data_directory())
    nano = None if amount is None else parse_money(amount, currency)
    made = _ask("grant_refund", grant=grant, refund_nano=nano, reason=reason)
    _tell(made, as_json, f"grant {grant}: refunded {out.money(made['refund_nano'], currency)}")
    return 0


def grant_upgrade(grant: str, package: str, /, *, as_json: Json = False) -> int:
    """Change a grant to another package: the unused price is refunded, the new package sold."""
    made = _ask("grant_upgrade", grant=grant, package=package)
    _tell(made, as_json, f"grant {grant} upgraded to {package!r}: grant {{grant}}")
    return 0


def entity_set(
    entity: str,
    /,
    *,
    fee_permille: int = 0,
    own: Annotated[bool, Parameter(negative="")] = False,
    as_json: Json = False,
) -> int:
    """Note an owner of sites and the fee that the pool keeps from what its sites earn.

    Parameters
    ----------
    entity:
        Its name, as in a site's ``entity``.
    fee_permille:
        0 to 1000.
    own:
        It is the operator itself: what it earns is revenue.
    as_json:
        Print JSON.
    """
    made = _ask("entity_set", entity=entity, fee_permille=fee_permille, own=own)
    _tell(made, as_json, f"entity {entity!r}: {{status}}")
    return 0


def statement(*, last: str | None = None, as_json: Json = False) -> int:
    """What the pool owes each entity for what its sites served.

    Parameters
    ----------
    last:
        Only this much of the past, like "30 d"; everything without it.
    as_json:
        Print JSON, with every line.
    """
    since_ns = 0 if last is None else WallClock().now_ns() - duration_ns(last)
    found = _ask("statement", since_ns=since_ns)
    if as_json:
        out.put_json(found)
        return 0
    currency = currency_of(data_directory())
    for each in found:
        out.console().print(
            f"[bold]{each['entity']}[/bold]: {len(each['lines'])} requests, digest {each['digest'][:16]}"
        )
        for name, value in each.items():
            if name.endswith("_nano"):
                out.console().print(f"  {name.removesuffix('_nano'):10} {out.money(value, currency)}")
            elif name.endswith("_ustu"):
                out.console().print(f"  {name.removesuffix('_ustu'):10} {out.stu(value)}")
    if not found:
        out.console().print("no site of another entity has served anything yet")
    return 0


def _tell(made: dict[str, Any], as_json: bool, text: str) -> None:
    if as_json:
        out.put_json(made)
    else:
        out.console().print(text.format(**made))
