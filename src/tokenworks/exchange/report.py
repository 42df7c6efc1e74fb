"""Reports over the books: one receipt, the trial balance of the three books, and the cake."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import reduce
from typing import Any

import msgspec

from tokenworks.core.errors import NotFound
from tokenworks.core.words import LAYERS, Interval
from tokenworks.exchange.clearing_words import Sums
from tokenworks.exchange.receipt import View, receipt_view
from tokenworks.exchange.service import LedgerService
from tokenworks.exchange.settlement import taken_back
from tokenworks.exchange.state import BOOKS, State
from tokenworks.exchange.store.documents import BESIDE
from tokenworks.exchange.words import SiteFacts, decode_settlement

CAKE_INTERVALS_MAX = 1_000_000


def receipt(service: LedgerService, receipt: str, account: str | None, *, operator: bool) -> View:
    """One receipt; ``account`` limits it to that account's own. Raises NotFound, also for another account's receipt."""
    service.catch_up()
    rows = service.store.rows("receipt", id=receipt)
    settled = decode_settlement(rows[0][0]) if rows else None
    if settled is None or (account is not None and settled.account != account):
        raise NotFound(f"there is no receipt {receipt!r}", hint="ids look like rcpt_01hf7yat00h2e795gyc8ww9hgv")
    site = None
    if settled.decision is not None:
        facts = service.store.rows("site_facts", name=settled.decision.chosen.site, at_ns=settled.at_ns)
        site = msgspec.json.decode(facts[0][0], type=SiteFacts) if facts else None
    return receipt_view(settled, service.store.energy_of(receipt), site, operator=operator)


def books(service: LedgerService) -> View:
    """The trial balance: every check recomputes from the single lines what the balances and budgets claim."""
    service.catch_up()
    store, state, spent = service.store, service.state, _Spent(service)
    sums = {book: (int(total), int(count)) for book, total, count in store.rows("book_sums")}
    report: View = {"books": {}, "checks": []}
    for book in BOOKS:
        total, count = sums.get(book, (0, 0))
        accounts = {a: amount for b, a, amount in store.rows("balances") if b == book}
        report["books"][book] = {"entries": count, "sum": total, "accounts": accounts}
    checks = [
        _check(f"the {book} book sums to zero", [] if sums.get(book, (0, 0))[0] == 0 else [sums[book][0]])
        for book in BOOKS
    ]
    checks += [
        _check("every transaction sums to zero in each book", store.rows("wrong_transactions")),
        _check("balances equal the sum of their entries", store.rows("wrong_balances")),
        _check("receipts say what was booked", spent.wrong),
        _check("receipts equal what customers owe", _wrong_customers(service)),
        _check("budgets equal what their receipts spent", _wrong_budgets(service, spent.budgets)),
        _check("grants equal what their receipts burned", _wrong_grants(service, spent.grants)),
        _check("no budget and no grant is overspent", _overspent(service)),
        _check("statements equal their lines, and entities are owed them", _wrong_statements(service)),
        _check("receipts' energy equals the energy of requests", _wrong_energy(service)),
        _check("peaks and grid events are billed as booked", _wrong_bills(service)),
        _check("held on budgets equals the open holds", _wrong_holds(service)),
        _check("no record was left out", store.rows("anomalies")),
        _check("no ended journal is damaged", list(service.journals.damaged.values())),
    ]
    receipts, holds, intervals, unmetered, corrections = store.rows("counts")[0]
    report["checks"], report["corrections"] = checks, corrections
    report["beside"] = dict(zip((*BESIDE, "embodied_ug"), store.rows("beside")[0], strict=True))
    report["receipts"], report["open_holds"], report["intervals"] = receipts, holds, intervals
    report["receipts_without_energy_record"] = unmetered
    report["power_bills"] = [{"site": s, "what": w, "nano": nano} for (s, w), nano in sorted(state.bills.items())]
    report["loss_account_nano"] = state.balances.get(("money", "loss/operator"), 0)
    report["closed"] = all(check["ok"] for check in checks)
    return report


def _check(what: str, wrong: list[Any]) -> View:
    return {"check": what, "ok": not wrong, **({"wrong": wrong[:20]} if wrong else {})}


def _differing(
    what: str, names: tuple[str, str], one: Mapping[str, Any], other: Mapping[str, Any], none: Any
) -> list[Any]:
    """Where two ways to the same figure end apart; what the other does not have is ``none``."""
    pairs = ((name, figure, other.get(name, none)) for name, figure in one.items())
    return [{what: name, names[0]: figure, names[1]: its} for name, figure, its in pairs if figure != its]


def _along_paths(state: State, amounts: Iterable[tuple[str, int, int]]) -> dict[str, tuple[int, int]]:
    """Amounts of budgets, in tokens and money, added up for each budget and all above it."""
    sums: dict[str, tuple[int, int]] = {}
    for budget, ustu, nano in amounts:
        for node in state.path(budget):
            before = sums.get(node, (0, 0))
            sums[node] = (before[0] + ustu, before[1] + nano)
    return sums


def _wrong_customers(service: LedgerService) -> list[Any]:
    state, owed = service.state, {}
    found = {account: (int(ustu), int(nano)) for account, ustu, nano, *_ in service.store.rows("receipt_sums")}
    for account in state.accounts:
        bought = sum(g.price_nano - g.refund_nano for g in state.grants.values() if g.account == account)
        ustu, nano = (state.balances.get((book, f"customer/{account}"), 0) for book in ("stu", "money"))
        owed[account] = (ustu, nano - bought)
    return _differing("account", ("owed", "receipts"), owed, found, (0, 0))


class _Spent:
    """What the receipts say one by one, read once: how much of each budget and grant, and which are not as booked."""

    def __init__(self, service: LedgerService) -> None:
        self.budgets: dict[str, tuple[int, int]] = {}
        self.grants: dict[str, int] = {}
        self.wrong: list[Any] = []
        for (*booked, _), said in service.store.receipts():
            if said is None:
                self.wrong.append(booked[0])
                continue
            if booked != [said.receipt, said.account, said.ustu, said.nano, said.loss_ustu, said.loss_nano]:
                self.wrong.append(booked[0])
            ustu, nano = self.budgets.get(said.budget, (0, 0))
            self.budgets[said.budget] = ustu + said.ustu - said.loss_ustu, nano + said.nano - said.loss_nano
            for burn in said.burned:
                self.grants[burn.grant] = self.grants.get(burn.grant, 0) + burn.ustu


def _wrong_budgets(service: LedgerService, by_leaf: dict[str, tuple[int, int]]) -> list[Any]:
    spent = _along_paths(service.state, ((budget, *amounts) for budget, amounts in by_leaf.items()))
    tallies = {name: (tally.spent_ustu, tally.spent_nano) for name, tally in service.state.tallies.items()}
    return _differing("budget", ("tally", "receipts"), tallies, spent, (0, 0))


def _wrong_grants(service: LedgerService, burned: dict[str, int]) -> list[Any]:
    used = {name: grant.used_ustu for name, grant in service.state.grants.items()}
    return _differing("grant", ("used_ustu", "receipts"), used, burned, 0)


def _overspent(service: LedgerService) -> list[Any]:
    """A limit may be lowered below what is spent already; nothing else brings spending above it."""
    state = service.state
    over: list[Any] = [name for name, grant in state.grants.items() if grant.used_ustu > grant.size_ustu]
    counters = {counter for leases in state.leases.values() for counter in leases}
    return over + [counter for counter in counters if state.out(counter, 0) < 0]


def _wrong_statements(service: LedgerService) -> list[Any]:
    """Each line is in one statement or in none yet; both make what is owed to an entity, less what was taken back."""
    state = service.state
    lines = {(name, entity, home): Sums(*sums) for name, entity, home, *sums in service.store.rows("served_sums")}
    said = {
        (s.id, s.entity, s.home): (s.lines, s.paid_ustu + s.loss_ustu, s.paid_nano + s.loss_nano, s.fee_nano)
        for s in state.statements.values()
    }
    for (entity, home), days in state.unstated.items():
        sums = reduce(Sums.plus, days.values())
        said["", entity, home] = (sums.lines, sums.ustu, sums.nano, sums.fee_nano)
    found = {key: (sums.lines, sums.ustu, sums.nano, sums.fee_nano) for key, sums in lines.items()}
    owed: dict[str, int] = {}
    for (name, entity, _), (_, _, nano, fee_nano) in found.items():
        if name == "" or state.statements[name].netting is None:
            taken = taken_back(state, name)[1]
            owed[entity] = owed.get(entity, 0) + nano - fee_nano - taken
    books = {
        a.removeprefix("payable/entity/"): -n for (_, a), n in state.balances.items() if a.startswith("payable/ent")
    }
    wrong = [
        {"line": key, "lines": found.get(key), "stated": said.get(key)}
        for key in {*found, *said}
        if found.get(key) != said.get(key)
    ]
    return wrong + _differing("entity", ("owed", "lines"), books, owed, 0)


def _wrong_energy(service: LedgerService) -> list[Any]:
    state, found = service.state, dict[str, int](service.store.rows("energy_line_sums"))
    booked = {site: state.balances.get(("energy", f"requests/{site}"), 0) for site in state.interval_end_ns}
    return _differing("site", ("book", "lines"), booked, found, 0)


def _wrong_bills(service: LedgerService) -> list[Any]:
    booked = sum(service.state.balances.get(("money", f"cost/energy/{part}"), 0) for part in ("demand", "events"))
    billed = sum(service.state.bills.values())
    return [] if booked == billed else [{"booked": booked, "billed": billed}]


def _wrong_holds(service: LedgerService) -> list[Any]:
    state = service.state
    held = _along_paths(state, ((hold.budget, hold.ustu, hold.nano) for hold in state.holds.values()))
    tallies = {name: (tally.held_ustu, tally.held_nano) for name, tally in state.tallies.items()}
    return _differing("budget", ("tally", "holds"), tallies, held, (0, 0))


def cake(service: LedgerService, since_ns: int = 0) -> View:
    """What the tokens of a period cost, layer by layer, from closed intervals only, so that sums are whole.

    A layer's joules are those spent there: the requests' own energy stands at power, the facility's at site, idle power
    at idle, the gateway's own processor time at exchange, brain and agents. Money None: unknown, not zero.
    """
    service.catch_up()
    count, tokens, output, ustu, nano, loss, metered = service.store.rows("cake_receipts", since_ns=since_ns)[0]
    lines = service.store.rows("cake_lines", since_ns=since_ns)[0]
    energy_mj, energy_nano, slice_ns, device_nano, embodied_ug = lines
    docs = service.store.rows("cake_intervals", since_ns=since_ns, limit=CAKE_INTERVALS_MAX)
    intervals = [msgspec.json.decode(doc, type=Interval) for (doc,) in docs]
    meter_mj = sum(i.meter_mj for i in intervals)
    latest = {(i.site, i.start_ns): i for i in intervals}.values()  # as they were corrected last

    def known(name: str) -> int | None:
        figures = [figure for i in intervals if (figure := getattr(i, name)) is not None]
        return sum(figures) if figures else None

    bill_nano, carbon_ug = known("bill_nano"), known("carbon_ug")
    idle = [nano for nano in (known("idle_nano"), known("idle_device_nano")) if nano is not None]

    def grams_part(mj: int) -> int | None:
        return carbon_ug * mj // meter_mj if carbon_ug is not None and meter_mj else None

    layers: dict[str, View] = {
        "power": {"mj": energy_mj or 0, "nano": energy_nano},
        "site": {"mj": sum(i.overhead_mj for i in intervals), "nano": known("overhead_nano")},
        "device": {"mj": 0, "nano": device_nano},
        "engine": {"mj": 0, "nano": 0},
    }
    for layer in LAYERS[4:]:
        mine = [s for i in intervals for s in i.services if s.layer == layer]
        layers[layer] = {
            "mj": sum(s.energy_mj for s in mine),
            "nano": sum(s.energy_nano or 0 for s in mine) if bill_nano is not None else None,
        }
    layers["idle"] = {"mj": sum(i.idle_mj + i.residual_mj for i in intervals), "nano": sum(idle) if idle else None}
    for part in layers.values():
        part["ug"] = grams_part(part["mj"])
    return {
        "since_ns": since_ns, "receipts": count, "receipts_metered": metered or 0, "tokens": tokens or 0,
        "output_tokens": output or 0, "ustu": ustu or 0, "revenue_nano": (nano or 0) - (loss or 0),
        "meter_mj": meter_mj, "bill_nano": bill_nano, "carbon_ug": carbon_ug, "market_ug": known("market_ug"),
        "water_ul": known("water_ul"), "embodied_ug": embodied_ug, "idle_embodied_ug": known("idle_embodied_ug"),
        "slice_ns": slice_ns or 0, "layers": layers, "meter": sorted({i.meter.value for i in latest}),
        "span_ns": sum(i.end_ns - i.start_ns for i in latest),
    }  # fmt: skip
