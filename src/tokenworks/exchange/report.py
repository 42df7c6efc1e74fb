"""Reports over the books: one receipt, the trial balance of the three books, and the cake."""

from __future__ import annotations

from functools import reduce
from typing import Any

import msgspec

from tokenworks.core.errors import NotFound
from tokenworks.core.words import LAYERS, Interval
from tokenworks.exchange.clearing_words import Sums
from tokenworks.exchange.receipt import EnergySum, View, receipt_view
from tokenworks.exchange.service import LedgerService
from tokenworks.exchange.settlement import taken_back
from tokenworks.exchange.state import BOOKS
from tokenworks.exchange.words import Settlement, SiteFacts, decode_settlement

CAKE_INTERVALS_MAX = 1_000_000


def receipt(service: LedgerService, receipt_id: str, account: str | None, *, operator: bool) -> View:
    """One receipt; ``account`` limits it to that account's own. Raises NotFound, also for another account's receipt."""
    service.catch_up()
    rows = service.store.rows("receipt", id=receipt_id)
    settled = decode_settlement(rows[0][0]) if rows else None
    if settled is None or (account is not None and settled.account != account):
        raise NotFound(f"there is no receipt {receipt_id!r}", hint="ids look like rcpt_01hf7yat00h2e795gyc8ww9hgv")
    site = None
    if settled.decision is not None:
        facts = service.store.rows("site_facts", name=settled.decision.chosen.site, at_ns=settled.at_ns)
        site = msgspec.json.decode(facts[0][0], type=SiteFacts) if facts else None
    intervals = [
        msgspec.json.decode(doc, type=Interval) for (doc,) in service.store.rows("receipt_intervals", id=receipt_id)
    ]
    return receipt_view(settled, _energy(service, settled), intervals, site, operator=operator)


def _energy(service: LedgerService, settled: Settlement) -> EnergySum | None:
    *sums, ended, count = service.store.rows("receipt_energy", id=settled.receipt)[0]
    if count and ended:
        return EnergySum._make([*sums, True])
    line = settled.estimate
    if line is None:
        return None
    return EnergySum(
        line.energy_mj,
        line.energy_nano,
        line.overhead_mj,
        line.overhead_nano,
        line.carbon_ug,
        line.slice_ns,
        line.device_nano,
        final=False,
    )


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
        _check("held on budgets equals the open holds", _wrong_holds(service)),
        _check("no record was left out", store.rows("anomalies")),
        _check("no ended journal is damaged", list(service.journals.damaged.values())),
    ]
    receipts, holds, intervals, unmetered = store.rows("counts")[0]
    report["checks"] = checks
    report["receipts"], report["open_holds"], report["intervals"] = receipts, holds, intervals
    report["receipts_without_energy_record"] = unmetered
    report["loss_account_nano"] = state.balances.get(("money", "loss/operator"), 0)
    report["closed"] = all(check["ok"] for check in checks)
    return report


def _check(what: str, wrong: list[Any]) -> View:
    return {"check": what, "ok": not wrong, **({"wrong": wrong[:20]} if wrong else {})}


def _wrong_customers(service: LedgerService) -> list[Any]:
    balances = service.state.balances
    found = {account: (int(ustu), int(nano)) for account, ustu, nano, *_ in service.store.rows("receipt_sums")}
    wrong = []
    for account in service.state.accounts:
        bought = sum(g.price_nano - g.refund_nano for g in service.state.grants.values() if g.account == account)
        owed_nano = balances.get(("money", f"customer/{account}"), 0) - bought
        owed = (balances.get(("stu", f"customer/{account}"), 0), owed_nano)
        if owed != found.get(account, (0, 0)):
            wrong.append({"account": account, "owed": owed, "receipts": found.get(account, (0, 0))})
    return wrong


class _Spent:
    """What the receipts say one by one, read once: how much of each budget and grant, and which are not as booked."""

    def __init__(self, service: LedgerService) -> None:
        self.budgets: dict[str, tuple[int, int]] = {}
        self.grants: dict[str, int] = {}
        self.wrong: list[Any] = []
        for (*booked, _), said in service.store.receipts():
            if said is None or booked != _booked(said):
                self.wrong.append(booked[0])
            if said is not None:
                self._add(said)

    def _add(self, said: Settlement) -> None:
        ustu, nano = self.budgets.get(said.budget, (0, 0))
        self.budgets[said.budget] = ustu + said.ustu - said.loss_ustu, nano + said.nano - said.loss_nano
        for burn in said.burned:
            self.grants[burn.grant] = self.grants.get(burn.grant, 0) + burn.ustu


def _booked(said: Settlement) -> list[Any]:
    return [said.receipt, said.account, said.ustu, said.nano, said.loss_ustu, said.loss_nano]


def _wrong_budgets(service: LedgerService, by_leaf: dict[str, tuple[int, int]]) -> list[Any]:
    state = service.state
    spent: dict[str, tuple[int, int]] = {}
    for budget, (ustu, nano) in by_leaf.items():
        for node in state.path(budget):
            before = spent.get(node, (0, 0))
            spent[node] = (before[0] + ustu, before[1] + nano)
    return [
        {"budget": name, "tally": (tally.spent_ustu, tally.spent_nano), "receipts": spent.get(name, (0, 0))}
        for name, tally in state.tallies.items()
        if (tally.spent_ustu, tally.spent_nano) != spent.get(name, (0, 0))
    ]


def _wrong_grants(service: LedgerService, burned: dict[str, int]) -> list[Any]:
    return [
        {"grant": name, "used_ustu": grant.used_ustu, "receipts": burned.get(name, 0)}
        for name, grant in service.state.grants.items()
        if grant.used_ustu != burned.get(name, 0)
    ]


def _overspent(service: LedgerService) -> list[Any]:
    """A limit may be lowered below what is spent already; nothing else brings spending above it."""
    state = service.state
    over: list[Any] = [name for name, grant in state.grants.items() if grant.used_ustu > grant.size_ustu]
    return over + [name for name, out in ((c, state.out(c, 0)) for c in _counters(service)) if out < 0]


def _counters(service: LedgerService) -> set[str]:
    return {counter for leases in service.state.leases.values() for counter in leases}


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
    return wrong + [{"entity": e, "owed": n, "lines": owed.get(e, 0)} for e, n in books.items() if n != owed.get(e, 0)]


def _wrong_energy(service: LedgerService) -> list[Any]:
    found: dict[str, int] = dict(service.store.rows("energy_line_sums"))
    return [
        {
            "site": site,
            "lines": found.get(site, 0),
            "book": service.state.balances.get(("energy", f"requests/{site}"), 0),
        }
        for site in service.state.interval_end_ns
        if found.get(site, 0) != service.state.balances.get(("energy", f"requests/{site}"), 0)
    ]


def _wrong_holds(service: LedgerService) -> list[Any]:
    held: dict[str, tuple[int, int]] = {}
    for hold in service.state.holds.values():
        for node in service.state.path(hold.budget):
            before = held.get(node, (0, 0))
            held[node] = (before[0] + hold.ustu, before[1] + hold.nano)
    return [
        {"budget": name, "tally": (tally.held_ustu, tally.held_nano), "holds": held.get(name, (0, 0))}
        for name, tally in service.state.tallies.items()
        if (tally.held_ustu, tally.held_nano) != held.get(name, (0, 0))
    ]


def cake(service: LedgerService, since_ns: int) -> View:
    """What the tokens of a period cost, layer by layer, from closed intervals only, so that sums are whole.

    A layer's joules are those spent there: the requests' own energy stands at power, the facility's at site, idle power
    at idle, the gateway's own processor time at exchange, brain and agents. Money None: unknown, not zero.
    """
    service.catch_up()
    count, tokens, output, ustu, nano, loss, metered = service.store.rows("cake_receipts", since_ns=since_ns)[0]
    lines = service.store.rows("cake_lines", since_ns=since_ns)[0]
    energy_mj, energy_nano, _, _, _, slice_ns, device_nano = lines
    docs = service.store.rows("cake_intervals", since_ns=since_ns, limit=CAKE_INTERVALS_MAX)
    intervals = [msgspec.json.decode(doc, type=Interval) for (doc,) in docs]
    meter_mj = sum(i.meter_mj for i in intervals)
    bill_nano = sum(i.bill_nano for i in intervals if i.bill_nano is not None)
    carbon_ug = sum(i.carbon_ug for i in intervals if i.carbon_ug is not None)
    known_bill = any(i.bill_nano is not None for i in intervals)
    known_carbon = any(i.carbon_ug is not None for i in intervals)

    def grams_part(mj: int) -> int | None:
        return carbon_ug * mj // meter_mj if known_carbon and meter_mj else None

    layers: dict[str, View] = {
        "power": {"mj": energy_mj or 0, "nano": energy_nano},
        "site": {
            "mj": sum(i.overhead_mj for i in intervals),
            "nano": sum(i.overhead_nano or 0 for i in intervals) if known_bill else None,
        },
        "device": {"mj": 0, "nano": device_nano},
        "engine": {"mj": 0, "nano": 0},
    }
    for layer in LAYERS[4:]:
        mine = [s for i in intervals for s in i.services if s.layer == layer]
        layers[layer] = {
            "mj": sum(s.energy_mj for s in mine),
            "nano": sum(s.energy_nano or 0 for s in mine) if known_bill else None,
        }
    idle_device = [i.idle_device_nano for i in intervals if i.idle_device_nano is not None]
    idle_energy = sum(i.idle_nano or 0 for i in intervals) if known_bill else None
    layers["idle"] = {
        "mj": sum(i.idle_mj + i.residual_mj for i in intervals),
        "nano": None if idle_energy is None and not idle_device else (idle_energy or 0) + sum(idle_device),
    }
    for part in layers.values():
        part["ug"] = grams_part(part["mj"])
    return {
        "since_ns": since_ns,
        "receipts": count,
        "receipts_metered": metered or 0,
        "tokens": tokens or 0,
        "output_tokens": output or 0,
        "ustu": ustu or 0,
        "revenue_nano": (nano or 0) - (loss or 0),
        "meter_mj": meter_mj,
        "bill_nano": bill_nano if known_bill else None,
        "carbon_ug": carbon_ug if known_carbon else None,
        "slice_ns": slice_ns or 0,
        "layers": layers,
        "meter": sorted({i.meter.value for i in intervals}),
        "span_ns": sum(i.end_ns - i.start_ns for i in intervals),
    }
