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


def ask_ledger(method: str, **params: Any) -> Any:
    """What the ledger of this grid answers."""
    return ask(data_directory(), method, **params)


def duration_ns(text: str) -> int:
    """``"30 d"`` or ``"30d"`` as nanoseconds."""
    return parse(re.sub(r"(\d)([a-z])", r"\1 \2", text), "time")


def names(text: str | None) -> list[str]:
    """``"a, b"`` as a list; nothing is an empty one."""
    return [] if text is None else [name.strip() for name in text.split(",") if name.strip()]


def package_list(*, as_json: Json = False) -> int:
    """Packages on offer."""
    packages = ask_ledger("packages")
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
    """
    package = {
        "code": code,
        "name": name or code,
        "size_ustu": parse(size, "stu"),
        "price_nano": parse_money(price, currency_of(data_directory())),
        "validity_ns": None if validity is None else duration_ns(validity),
        "models": names(models),
        "sites": names(sites),
        "priority": priority,
        "promotional": promotional,
    }
    return tell(ask_ledger("package_define", package=package), as_json, f"package {code!r}: {{status}}")


def package_sell(
    account: str,
    package: str,
    /,
    *,
    budget: str | None = None,
    grant: str | None = None,
    from_in: str | None = None,
    as_json: Json = False,
) -> int:
    """Sell a package to an account. The same --grant id twice is one sale, so a retry is safe.

    Parameters
    ----------
    account:
        Who gets it.
    package:
        Which one.
    budget:
        A budget of the account: only requests of it and of those below it may use the package.
    grant:
        An id of your own for the sale.
    from_in:
        When it takes effect, like "7 d" from now; at once without it.
    """
    starts_ns = None if from_in is None else WallClock().now_ns() + duration_ns(from_in)
    terms = {"grant": grant, "effective_ns": starts_ns, "budget": budget}
    made = ask_ledger("grant_sell", account=account, package=package, **terms)
    return tell(made, as_json, f"{package!r} for {account!r}: {{status}}, grant {{grant}}")


def grant_list(account: str | None = None, /, *, as_json: Json = False) -> int:
    """Grants in the order in which they are used up, with what is left."""
    accounts = [a for a in ask_ledger("accounts") if account in (None, a["id"])]
    grants = [grant for a in accounts for grant in a["grants"]]
    if as_json:
        out.put_json(grants)
        return 0
    rows = [
        (
            g["id"],
            g["budget"] or g["account"],
            g["package"],
            out.stu(g["size_ustu"]),
            out.stu(g["left_ustu"]),
            utc_text(g["expires_ns"])[:10] if g["expires_ns"] else "never",
            "ended" if g["ended_ns"] else "",
        )
        for g in grants
    ]
    columns = ("grant", "for", "package", "size", "left", "expires", "")
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
    """
    currency = currency_of(data_directory())
    nano = None if amount is None else parse_money(amount, currency)
    made = ask_ledger("grant_refund", grant=grant, refund_nano=nano, reason=reason)
    return tell(made, as_json, f"grant {grant}: refunded {out.money(made['refund_nano'], currency)}")


def grant_upgrade(grant: str, package: str, /, *, as_json: Json = False) -> int:
    """Change a grant to another package: the unused price is refunded, the new package sold."""
    made = ask_ledger("grant_upgrade", grant=grant, package=package)
    return tell(made, as_json, f"grant {grant} upgraded to {package!r}: grant {{grant}}")


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
    """
    made = ask_ledger("entity_set", entity=entity, fee_permille=fee_permille, own=own)
    return tell(made, as_json, f"entity {entity!r}: {{status}}")


def tell(made: dict[str, Any], as_json: bool, text: str) -> int:
    """Print an answer as JSON, or as words that name its fields."""
    if as_json:
        out.put_json(made)
    else:
        out.console().print(text.format(**made))
    return 0
