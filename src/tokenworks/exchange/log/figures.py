"""What the leaves of a receipt say that its view must show, figure by figure.

Figures are named by their path in the view (``plain.flat``). What no leaf says is not proven, and is listed as such.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from tokenworks.core.clock import utc_text
from tokenworks.core.units import NS_PER_US, money_text, stu_text
from tokenworks.exchange.log.errors import BadBundle
from tokenworks.exchange.log.plain import Object, keyed_hash, shaped, text_hash

VERSION = 1
NS_MAX = 1 << 63
_HEAD: dict[str, type] = {"v": int, **dict.fromkeys(("kind", "log", "receipt", "salt"), str)}
_SETTLEMENT: dict[str, type] = {
    **_HEAD,
    **dict.fromkeys(("account", "model", "model_asked", "rate_card", "price_book", "currency"), str),
    **dict.fromkeys(("certainty", "entity"), str),
    **dict.fromkeys(("account_seq", "cum_ustu", "cum_nano", "ustu", "nano", "loss_ustu", "loss_nano", "at_ns"), int),
    "usage": dict,
}
_ENERGY: dict[str, type] = {
    **_HEAD,
    **dict.fromkeys(("site", "provenance"), str),
    **dict.fromkeys(("start_ns", "end_ns", "energy_mj", "overhead_mj", "slice_ns"), int),
    "ended": bool,
}
BESIDE = {
    "carbon_ug": ("carbon_ug", "lines.power.carbon_ug"),
    "market_ug": ("lines.power.market_ug",),
    "water_ul": ("lines.site.water_ul",),
    "embodied_ug": ("lines.device.embodied_ug",),
}
"""What an energy record may know, and where its sum is shown."""
_ENERGIES = ("energy_mj", "lines.power.energy_mj", "lines.site.overhead_mj", "lines.device.slice_us")
RECORD = ("site", "corrects", "energy_mj", "overhead_mj", "slice_ns", *BESIDE)
"""What a receipt shows of each record when one of them is a correction."""
UNMETERED = "unmetered"
"""The status of a receipt whose records gave it no time of a slice: its energy will never be known."""
# Groups of the view that the leaf states whole: a figure in them that the leaf does not have is as wrong as another.
_WHOLE = ("usage.", "model.", "records.")
_PLACE = ("ran_at.site", "ran_at.entity")


def _versioned(leaf: Any, what: str) -> None:
    if isinstance(leaf, dict) and leaf.get("v") != VERSION:
        raise BadBundle(f"{what} is of a version that this program does not know", hint="use a newer Tokenworks")


def settlement(leaf: Any) -> Object:
    """The leaf, if it has the form of a settlement's. Raises BadBundle."""
    _versioned(leaf, "the leaf of a settlement")
    found = shaped(leaf, "the leaf of a settlement", _SETTLEMENT, {"site": str})
    if found["kind"] != "settlement" or not 0 <= found["at_ns"] < NS_MAX:
        raise BadBundle("the leaf of a settlement is of another kind")
    shaped(found["usage"], "the usage in a leaf", {}, dict.fromkeys(found["usage"], int))
    return found


def energy(leaf: Any) -> Object:
    """The leaf, if it has the form of an energy record's. Raises BadBundle."""
    _versioned(leaf, "the leaf of an energy record")
    found = shaped(leaf, "the leaf of an energy record", _ENERGY, dict.fromkeys((*BESIDE, "corrects"), int))
    if found["kind"] != "energy" or not 0 <= found["start_ns"] <= found["end_ns"] < NS_MAX:
        raise BadBundle("the leaf of an energy record is of another kind")
    return found


def charged(leaf: Object) -> tuple[int, int]:
    """Standard tokens and money that the account was charged: the price less the operator's loss."""
    return leaf["ustu"] - leaf["loss_ustu"], leaf["nano"] - leaf["loss_nano"]


def _settled(leaf: Object) -> Object:
    ustu, nano = charged(leaf)
    shown: Object = {
        "at": utc_text(leaf["at_ns"]),
        "model.asked": leaf["model_asked"],
        "model.served": leaf["model"],
        "usage.certainty": leaf["certainty"],
        **{f"usage.{bucket}": count for bucket, count in leaf["usage"].items()},
        "stu": stu_text(ustu),
        "ustu": ustu,
        "price": money_text(nano, leaf["currency"]),
        "price_nano": nano,
        "currency": leaf["currency"],
        "lines.exchange.charged_ustu": ustu,
        "lines.exchange.charged_nano": nano,
        "lines.exchange.rate_card": leaf["rate_card"],
        "lines.exchange.price_book": leaf["price_book"],
    }
    if "site" in leaf:
        shown["ran_at.site"] = leaf["site"]
        if leaf["entity"]:
            shown["ran_at.entity"] = leaf["entity"]
    return shown


def _metered(leaves: list[Object]) -> Object:
    """The final energy of a receipt: the sums over its intervals and their corrections."""
    if not sum(e["slice_ns"] for e in leaves):
        return {"status": UNMETERED}
    energy_mj, overhead_mj = sum(e["energy_mj"] for e in leaves), sum(e["overhead_mj"] for e in leaves)
    shown: Object = {
        "status": "final",
        "energy_mj": energy_mj + overhead_mj,
        "lines.power.energy_mj": energy_mj,
        "lines.power.provenance": min(leaves, key=_first)["provenance"],
        "lines.site.overhead_mj": overhead_mj,
        "lines.device.slice_us": sum(e["slice_ns"] for e in leaves) // NS_PER_US,
    }
    for name, paths in BESIDE.items():
        if known := [e[name] for e in leaves if name in e]:
            shown |= dict.fromkeys(paths, sum(known))
    if any("corrects" in e for e in leaves):
        for at, leaf in enumerate(leaves):
            said = {name: leaf[name] for name in RECORD if name in leaf} | {"provenance": leaf["provenance"]}
            said |= {"start": utc_text(leaf["start_ns"]), "end": utc_text(leaf["end_ns"])}
            shown |= {f"records.{at}.{name}": figure for name, figure in said.items()}
    return shown


def _first(leaf: Object) -> tuple[int, str, int]:
    """The receipt's first interval, as it was corrected last."""
    return leaf["start_ns"], leaf["site"], -leaf.get("corrects", 0)


def expected(leaf: Object, energies: list[Object]) -> Object:
    """What the view of a receipt must show, by path. Its energy only once the record of its end is in the log."""
    return _settled(leaf) | (_metered(energies) if any(e["ended"] for e in energies) else {})


def _same(shown: Any, stated: Any) -> bool:
    return type(shown) is type(stated) and bool(shown == stated)


def differences(view: Object, leaf: Object, energies: list[Object], account_salt: bytes) -> Iterator[str]:
    """Each figure of a flat view that is not what the leaves say, in words. Ids are compared by their hash."""
    for path, stated, hashed in (
        ("id", leaf["receipt"], text_hash),
        ("account", leaf["account"], lambda text: keyed_hash(text, account_salt)),
    ):
        shown = view.get(path)
        if not isinstance(shown, str) or hashed(shown) != stated:
            yield f"{path} is {shown!r}, and the leaf is of another"
    states = expected(leaf, energies)
    for path, stated in states.items():
        if not _same(view.get(path), stated):
            yield f"{path} is {view.get(path, 'absent')!r}, the leaf says {stated!r}"
    for path, shown in view.items():
        if path not in states and (path.startswith(_WHOLE) or ("site" not in leaf and path in _PLACE)):
            yield f"{path} is {shown!r}, the leaf has no such figure"
    if "status" not in states and view.get("status") in ("final", UNMETERED):
        yield f"status is {view['status']!r}, and no leaf has the energy record of the request's end"
    for path in itertools.chain(_ENERGIES, *BESIDE.values()) if "status" in states else ():
        if path in view and path not in states:
            yield f"{path} is {view[path]!r}, the leaves do not know it"


def unproven(view: Object, leaf: Object, energies: list[Object]) -> list[str]:
    """What a flat view shows and no leaf says."""
    proven = expected(leaf, energies).keys() | {"id", "account"}
    return [path for path in view if path not in proven]


def chain(leaves: list[Object]) -> Iterator[str]:
    """What is wrong with the running totals of one account's settlements, which are in the order of account_seq.

    The totals are the account's own sum: each must be the one before plus what the settlement charged.
    """
    seq, ustu, nano = 0, 0, 0
    for n, leaf in enumerate(leaves):
        charge = charged(leaf)
        if leaf["account_seq"] < 1 or (n and leaf["account_seq"] == seq):
            yield f"settlement {leaf['account_seq']} of the account stands twice, or has no number"
        elif leaf["account_seq"] == seq + 1 and (leaf["cum_ustu"], leaf["cum_nano"]) != (
            ustu + charge[0],
            nano + charge[1],
        ):
            yield f"the running totals of settlement {leaf['account_seq']} are not those before it plus its charge"
        seq, ustu, nano = leaf["account_seq"], leaf["cum_ustu"], leaf["cum_nano"]


def gaps(leaves: list[Object]) -> list[str]:
    """Settlements of the account that are missing between the first and the last."""
    seqs = [leaf["account_seq"] for leaf in leaves]
    return [
        f"{before + 1}" if after == before + 2 else f"{before + 1} to {after - 1}"
        for before, after in itertools.pairwise(seqs)
        if after > before + 1
    ]
