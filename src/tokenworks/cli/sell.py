"""``tokenworks package``, ``grant`` and ``entity``: what is on offer, who has it, and what is left of it."""

from __future__ import annotations

from tokenworks.cli import out
from tokenworks.cli.given import currency, duration_ns, from_now_ns, money_nano, names, tokens_ustu
from tokenworks.cli.out import Answer, command
from tokenworks.cli.reach import ask_ledger

DAY_NS = 86_400_000_000_000


@command
def package_list() -> Answer:
    """Packages on offer."""
    packages, unit = ask_ledger("packages"), currency()
    rows = (
        (p["code"], p["name"], out.stu(p["size_ustu"]), out.money(p["price_nano"], unit),
         f"{p['validity_ns'] // DAY_NS} d" if p["validity_ns"] else "for ever",
         ", ".join((*p["models"], *p["sites"])) or "any", p["priority"], "yes" if p["promotional"] else "")
        for p in packages
    )  # fmt: skip
    columns = ("package", "name", "size", "price", "valid", "for", "priority", "promotional")
    return Answer(packages, [out.table("", columns, rows, right=("size", "price", "priority"))])


@command
def package_define(
    code: str, /, *, size: str, price: str, validity: str | None = None, name: str | None = None,
    models: str | None = None, sites: str | None = None, priority: int = 100, promotional: out.Flag = False,
) -> Answer:  # fmt: skip
    """Put a package on offer, or change its terms for later sales. What was sold keeps the terms of its sale.

    Args:
        code: Its id: letters, digits, '-', '_' and '.'.
        size: Standard tokens, like "10 MSTU".
        price: Like "9.90 USD"; "0 USD" for a gift.
        validity: From the day it takes effect, like "30 d"; without it, for ever.
        name: What people call it.
        models: Only these models, separated by commas.
        sites: Only these sites, separated by commas.
        priority: Lower numbers are used up first.
        promotional: Among equals, used up before what was paid for.
    """
    package = {
        "code": code, "name": name or code, "size_ustu": tokens_ustu(size), "price_nano": money_nano(price),
        "validity_ns": None if validity is None else duration_ns(validity), "models": names(models),
        "sites": names(sites), "priority": priority, "promotional": promotional,
    }  # fmt: skip
    return out.told(ask_ledger("package_define", package=package), f"package {code!r}: {{status}}")


@command
def package_sell(
    account: str, package: str, /, *, budget: str | None = None, grant: str | None = None, from_in: str | None = None
) -> Answer:
    """Sell a package to an account. The same --grant id twice is one sale, so a retry is safe.

    Args:
        account: Who gets it.
        package: Which one.
        budget: A budget of the account: only requests of it and of those below it may use the package.
        grant: An id of your own for the sale.
        from_in: When it takes effect, like "7 d" from now; at once without it.
    """
    terms = {"grant": grant, "effective_ns": from_now_ns(from_in), "budget": budget}
    made = ask_ledger("grant_sell", account=account, package=package, **terms)
    return out.told(made, f"{package!r} for {account!r}: {{status}}, grant {{grant}}")


@command
def grant_list(account: str | None = None, /) -> Answer:
    """Grants in the order in which they are used up, with what is left."""
    grants = [grant for a in ask_ledger("accounts") if account in (None, a["id"]) for grant in a["grants"]]
    rows = (
        (g["id"], g["budget"] or g["account"], g["package"], out.stu(g["size_ustu"]), out.stu(g["left_ustu"]),
         (out.when(g["expires_ns"]) or "never")[:10], "ended" if g["ended_ns"] else "")
        for g in grants
    )  # fmt: skip
    columns = ("grant", "for", "package", "size", "left", "expires", "")
    return Answer(grants, [out.table("", columns, rows, right=("size", "left"))])


@command
def grant_refund(grant: str, /, *, amount: str | None = None, reason: str = "refund") -> Answer:
    """End a grant and give back the price of what was not used, or less.

    Args:
        grant: Its id.
        amount: Give back this much instead, like "2 USD".
        reason: For the books.
    """
    made = ask_ledger("grant_refund", grant=grant, refund_nano=money_nano(amount), reason=reason)
    return Answer(made, [f"grant {grant}: refunded {out.money(made['refund_nano'], currency())}"])


@command
def grant_upgrade(grant: str, package: str, /) -> Answer:
    """Change a grant to another package: the unused price is refunded, the new package sold."""
    made = ask_ledger("grant_upgrade", grant=grant, package=package)
    return out.told(made, f"grant {grant} upgraded to {package!r}: grant {{grant}}")


@command
def entity_set(entity: str, /, *, fee_permille: int = 0, own: out.Flag = False) -> Answer:
    """Note an owner of sites and the fee that the pool keeps from what its sites earn.

    Args:
        entity: Its name, as in a site's ``entity``.
        fee_permille: 0 to 1000.
        own: It is the operator itself: what it earns is revenue.
    """
    made = ask_ledger("entity_set", entity=entity, fee_permille=fee_permille, own=own)
    return out.told(made, f"entity {entity!r}: {{status}}")
