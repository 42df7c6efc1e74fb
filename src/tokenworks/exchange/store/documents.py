"""The ledger's words as rows: each a JSON document, with the columns beside it that queries need."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import msgspec

from tokenworks.core.words import CORRECTABLE
from tokenworks.exchange import clearing_words as clearing
from tokenworks.exchange import words
from tokenworks.exchange.clearing_words import Sums
from tokenworks.exchange.state import Leased, State, Tally
from tokenworks.exchange.store.database import Row, Values

BESIDE = ("carbon_ug", "market_ug", "water_ul", "idle_embodied_ug")
"""What intervals count beside the three books."""
_json = msgspec.json.Encoder()


class _Kind(NamedTuple):
    """Where documents of a kind are in the state, the query that reads them, and the statement that writes one."""

    into: str
    read: str
    write: str = ""
    key: str = "id"


_KINDS: dict[type[msgspec.Struct], _Kind] = {
    words.Account: _Kind("accounts", "all_accounts", "save_account"),
    words.Budget: _Kind("budgets", "all_budgets"),
    words.Key: _Kind("keys", "all_keys", "save_key"),
    words.PlaceHold: _Kind("holds", "all_holds", key="receipt"),
    words.SiteFacts: _Kind("sites", "all_sites", key="site"),
    words.Package: _Kind("packages", "all_packages", "save_package", "code"),
    words.Grant: _Kind("grants", "all_grants"),
    words.Entity: _Kind("entities", "all_entities", "save_entity", "name"),
    clearing.Statement: _Kind("statements", "all_statements", "save_statement"),
    clearing.Dispute: _Kind("disputes", "all_disputes", "save_dispute"),
    clearing.Netting: _Kind("nettings", "all_nettings", "save_netting"),
}


def doc(value: object) -> str:
    """A document column: JSON text."""
    return _json.encode(value).decode()


def load(rows: Callable[..., list[Row]]) -> State:
    """The ledger's state as its tables have it."""
    state = State()
    for word, kind in _KINDS.items():
        found = (msgspec.json.decode(text, type=word) for (text,) in rows(kind.read))
        getattr(state, kind.into).update({getattr(each, kind.key): each for each in found})
    for budget, spent_ustu, spent_nano, *window in rows("all_tallies"):
        state.tallies[budget] = Tally(spent_ustu, spent_nano, 0, 0, *window)
    for hold in state.holds.values():
        for node in state.path(hold.budget):
            state.tallies[node].held_ustu += hold.ustu
            state.tallies[node].held_nano += hold.nano
    state.interval_end_ns = dict(rows("interval_ends"))
    for site in state.interval_end_ns:
        last = rows("last_intervals", site=site, limit=CORRECTABLE)
        state.closed[site] = {start_ns: (end_ns, corrects) for start_ns, end_ns, corrects in reversed(last)}
    state.bills = {(site, what): nano for site, what, nano in rows("all_bills")}
    for writer, epoch, counter, *lease in rows("all_leases"):
        state.leases.setdefault((writer, epoch), {})[counter] = Leased(*lease)
    for entity, home, day_ns, *sums in rows("all_unstated"):
        state.unstated.setdefault((entity, home), {})[day_ns] = Sums(*sums)
    state.balances = {(book, account): amount for book, account, amount in rows("all_balances")}
    return state


def rows_of(state: State, command: words.AnyCommand) -> Iterator[tuple[str, Values]]:
    """The statements that write what a command changed, and their values, in this order.

    What is not here is written with the holds, the receipts, the figures and the rights.
    """
    match command:
        case words.OpenAccount(account=word) | words.AddKey(key=word):
            yield _row(word)
        case words.DefinePackage(package=word) | words.SetEntity(entity=word):
            yield _row(word)
        case words.RevokeKey(key=name):
            yield _row(state.keys[name])
        case words.DescribeSite(facts=facts, at_ns=at_ns):
            yield "save_site", {"name": facts.site, "since_ns": at_ns, "doc": doc(facts)}
        case words.CloseInterval(interval=interval):
            # The request lines have a table of their own; the document keeps the rest, so that it stays small.
            head = msgspec.structs.replace(interval, requests=())
            names = ("site", "start_ns", "corrects", "end_ns", "meter_mj", "bill_nano", *BESIDE)
            yield "save_interval", {name: getattr(head, name) for name in names} | {"doc": doc(head)}
        case words.BillPower(site=site, what=what, nano=nano):
            yield "save_bill", {"site": site, "what": what, "nano": nano}
        case clearing.IssueStatement(id=name):
            taken = {"id": name, "entity": command.entity, "home": command.home, "until_ns": command.until_ns}
            yield from (("mark_stated", taken), ("drop_unstated", taken))
            yield _row(state.statements[name])
        case clearing.OpenDispute(id=name) | clearing.AnswerDispute(id=name):
            yield _row(state.disputes[name])
        case clearing.NetStatements(id=name) | clearing.SettlePair(id=name):
            yield _row(state.nettings[name])
            if isinstance(command, clearing.NetStatements):
                yield from (_row(state.statements[each]) for each in command.statements)


def _row(word: msgspec.Struct) -> tuple[str, Values]:
    kind = _KINDS[type(word)]
    return kind.write, {"id": getattr(word, kind.key), "doc": doc(word)}


def budget_rows(state: State, name: str) -> Iterator[tuple[str, Values]]:
    """A budget with what it spent, and its present window."""
    tally, names = state.tallies[name], ("window_ns", "window_ustu", "window_nano", "carved_ustu", "carved_nano")
    spent = {"spent_ustu": tally.spent_ustu, "spent_nano": tally.spent_nano}
    yield "save_budget", {"id": name, "doc": doc(state.budgets[name]), **spent}
    yield "save_tally", {"budget": name, **{each: getattr(tally, each) for each in names}}


def grant_row(grant: words.Grant) -> Values:
    """A grant as it stands."""
    row: dict[str, Any] = {name: getattr(grant, name) for name in ("id", "account", "used_ustu", "ended_ns")}
    return row | {"doc": doc(grant)}
