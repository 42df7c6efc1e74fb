"""Clearing between the entities that own sites, a part of the ledger: statements, disputes, netting, payment.

Who sold to an account (its home) collects from it; whose site served earns. The pool stands between: what a request
earned is owed to the entity at once, less the fee (nobody takes a fee at its own home). A statement freezes the lines
of a pair (entity, home) up to a day; each line is in exactly one. A netting takes statements to the clearing accounts
and makes one figure of each pair of entities; when all figures are paid, the clearing accounts are zero. Nothing is
ever rewritten: an accepted dispute is an entry of its own, and a late line is in the next statement.

=========  =======================  ===================================================================
book       account                  meaning
=========  =======================  ===================================================================
both       clearing/{entity}        below 0: the pool owes it; above: it owes what its customers paid
both       home/{entity}            what customers of another home than the operator paid: theirs to collect
both       adjustments/{home}       taken back from entities by disputes, in favour of the home
both       settled/operator         what the operator paid and got for nettings
=========  =======================  ===================================================================
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import reduce

import msgspec

from tokenworks.core.errors import LedgerRefused
from tokenworks.core.units import NS_PER_S
from tokenworks.core.words import like
from tokenworks.exchange import clearing_words as words
from tokenworks.exchange.state import Entry, State, known, lines
from tokenworks.exchange.words import Settlement

DAY_NS = 86_400 * NS_PER_S


def home_of(state: State, account: str) -> str:
    """Who sold to an account; the operator for one that is not known."""
    found = state.accounts.get(account)
    return words.OPERATOR if found is None else found.home


def line_of(state: State, settled: Settlement, entries: Iterable[Entry]) -> tuple[str, str, words.Sums] | None:
    """The entity, the home and the figures of a settled request; None when it is all the operator's."""
    home, entity = home_of(state, settled.account), state.entities.get(settled.entity)
    name = words.OPERATOR if entity is None or entity.own else entity.name
    if home == name == words.OPERATOR:
        return None
    money = {entry.account: -entry.amount for entry in entries if entry.book == "money"}
    fee = money.get("revenue/fees", 0)
    net = money.get("revenue/tokens" if name == words.OPERATOR else f"payable/entity/{name}", 0)
    return name, home, words.Sums(1, settled.ustu, settled.loss_ustu, net + fee, settled.loss_nano, fee)


def note_served(state: State, settled: Settlement, entries: list[Entry]) -> list[Entry]:
    """Remember a line for the next statement; returns the entries as they came."""
    if line := line_of(state, settled, entries):
        entity, home, sums = line
        days = state.unstated.setdefault((entity, home), {})
        day_ns = settled.at_ns - settled.at_ns % DAY_NS
        days[day_ns] = days.get(day_ns, words.Sums()).plus(sums)
    return entries


def digest(entity: str, home: str, since_ns: int, until_ns: int, rows: Iterable[tuple[str | int, ...]]) -> str:
    """SHA-256 of the head and the lines in order of their receipts, each as one line of JSON.

    A line is [receipt, ustu, loss_ustu, nano, loss_nano, fee_nano].
    """
    head = ["tokenworks statement v1", entity, home, since_ns, until_ns]
    hashed = hashlib.sha256(msgspec.json.encode(head) + b"\n")
    for row in rows:
        hashed.update(msgspec.json.encode(row) + b"\n")
    return hashed.hexdigest()


def since_of(state: State, entity: str, home: str) -> int:
    """Where the next statement of a pair begins: where the last one ended."""
    ends = [s.until_ns for s in state.statements.values() if (s.entity, s.home) == (entity, home)]
    return max(ends, default=0)


def taken_back(state: State, statement: str, states: tuple[str, ...] = ("accepted",)) -> tuple[int, int]:
    """Micro-STU and nano of a statement's disputes in these states."""
    found = [d for d in state.disputes.values() if d.statement == statement and d.state in states]
    return sum(d.ustu for d in found), sum(d.nano for d in found)


def clear(state: State, command: words.ClearingCommand) -> list[Entry]:
    """Apply what happens between entities. Raises LedgerRefused."""
    match command:
        case words.IssueStatement():
            _issue(state, command)
        case words.OpenDispute():
            _dispute(state, command)
        case words.AnswerDispute():
            return _answer(state, command)
        case words.NetStatements():
            return _net(state, command)
        case words.SettlePair():
            return _settle_pair(state, command)
    return []


def _issue(state: State, new: words.IssueStatement) -> None:
    old = state.statements.get(new.id)
    if old is not None:
        if (old.entity, old.home, old.until_ns, old.digest) != (new.entity, new.home, new.until_ns, new.digest):
            raise LedgerRefused(f"statement {new.id!r} exists already")
        return
    since_ns = since_of(state, new.entity, new.home)
    if new.until_ns % DAY_NS or not since_ns < new.until_ns <= new.at_ns:
        raise LedgerRefused("a statement is of whole days in UTC that are over, and begins where the last one ended")
    days = state.unstated.get((new.entity, new.home), {})
    closed = [day_ns for day_ns in days if day_ns < new.until_ns]
    sums = reduce(words.Sums.plus, (days[day_ns] for day_ns in closed), words.Sums())
    if not sums.lines or sums.lines != new.lines:
        hint = "lines came in meanwhile: try again" if sums.lines else None
        raise LedgerRefused(f"there are {sums.lines} lines to state, not {new.lines}", hint=hint)
    fee_permille = 0 if new.entity in (words.OPERATOR, new.home) else state.entities[new.entity].fee_permille
    figures: dict[str, int] = {}
    for unit, earned, loss, fee in (
        ("ustu", sums.ustu, sums.loss_ustu, sums.ustu * fee_permille // 1000),
        ("nano", sums.nano, sums.loss_nano, sums.fee_nano),
    ):
        of = {"paid": earned - loss, "loss": loss, "fee": fee, "net": earned - fee}
        figures |= {f"{name}_{unit}": figure for name, figure in of.items()}
    for day_ns in closed:
        del days[day_ns]
    if not days:
        del state.unstated[new.entity, new.home]
    state.statements[new.id] = like(new, words.Statement, since_ns=since_ns, issued_ns=new.at_ns, **figures)


def _dispute(state: State, new: words.OpenDispute) -> None:
    known(new.statement, "statement", state.statements)
    old, of = state.disputes.get(new.id), state.statements[new.statement]
    if old is not None:
        if (old.statement, old.ustu, old.nano, old.reason) != (new.statement, new.ustu, new.nano, new.reason):
            raise LedgerRefused(f"dispute {new.id!r} exists already")
        return
    if of.netting is not None:
        raise LedgerRefused(f"statement {of.id!r} is netted already", hint="dispute the next one")
    ustu, nano = taken_back(state, of.id, ("open", "accepted"))
    if min(new.ustu, new.nano) < 0 or not new.ustu + new.nano or new.ustu > of.net_ustu - ustu:
        raise LedgerRefused(f"statement {of.id!r} has {of.net_ustu - ustu} micro-STU left to dispute")
    if new.nano > of.net_nano - nano:
        raise LedgerRefused(f"statement {of.id!r} has {of.net_nano - nano} nano left to dispute")
    state.disputes[new.id] = words.Dispute(
        id=new.id, statement=of.id, ustu=new.ustu, nano=new.nano, reason=new.reason, opened_ns=new.at_ns
    )


def _answer(state: State, new: words.AnswerDispute) -> list[Entry]:
    known(new.id, "dispute", state.disputes)
    old = state.disputes[new.id]
    to = "accepted" if new.accepted else "rejected"
    if old.state != "open":
        if (old.state, old.answer) != (to, new.answer):
            raise LedgerRefused(f"dispute {old.id!r} is {old.state}", hint="an answer is given once")
        return []
    state.disputes[old.id] = msgspec.structs.replace(old, state=to, answer=new.answer, answered_ns=new.at_ns)
    if not new.accepted:
        return []
    of = state.statements[old.statement]
    return lines(
        ("money", "revenue/tokens" if of.entity == words.OPERATOR else f"payable/entity/{of.entity}", old.nano),
        ("money", f"adjustments/{of.home}", -old.nano),
        ("stu", f"served/{of.entity}", old.ustu),
        ("stu", f"adjustments/{of.home}", -old.ustu),
    )


def _net(state: State, new: words.NetStatements) -> list[Entry]:
    old = state.nettings.get(new.id)
    if old is not None:
        if old.statements != new.statements:
            raise LedgerRefused(f"netting {new.id!r} exists already")
        return []
    for name in new.statements:
        known(name, "statement", state.statements)
        if state.statements[name].netting is not None:
            raise LedgerRefused(f"statement {name!r} is netted already")
        if any(taken_back(state, name, ("open",))):
            raise LedgerRefused(f"statement {name!r} has an open dispute", hint="answer it first")
    if not new.statements or len(set(new.statements)) < len(new.statements):
        raise LedgerRefused("a netting is of one statement or more, each once")
    owed: dict[tuple[str, str], list[int]] = {}
    entries: list[Entry] = []
    for name in new.statements:
        of = state.statements[name]
        state.statements[name] = msgspec.structs.replace(of, netting=new.id)
        for unit, off in enumerate(taken_back(state, name)):
            book, suffix = (("stu", "ustu"), ("money", "nano"))[unit]
            paid, loss, fee, net = (getattr(of, f"{figure}_{suffix}") for figure in ("paid", "loss", "fee", "net"))
            _owe(owed, of.home, of.entity, unit, net - off)
            if of.entity != words.OPERATOR:
                payable = f"payable/entity/{of.entity}" if book == "money" else f"served/{of.entity}"
                entries += lines((book, payable, net - off), (book, f"clearing/{of.entity}", off - net))
            if of.home != words.OPERATOR:
                _owe(owed, of.home, words.OPERATOR, unit, fee - loss)
                theirs = (book, f"home/{of.home}", -paid), (book, f"adjustments/{of.home}", off)
                entries += lines(*theirs, (book, f"clearing/{of.home}", paid - off))
    pairs = tuple(_pair(*names, *figures) for names, figures in sorted(owed.items()) if any(figures))
    state.nettings[new.id] = words.Netting(id=new.id, at_ns=new.at_ns, statements=new.statements, pairs=pairs)
    return entries


def _owe(owed: dict[tuple[str, str], list[int]], debtor: str, creditor: str, unit: int, amount: int) -> None:
    if debtor != creditor:
        first, second = sorted((debtor, creditor))
        owed.setdefault((first, second), [0, 0])[unit] += amount if debtor == first else -amount


def _pair(first: str, second: str, ustu: int, nano: int) -> words.Pair:
    """Who owes money is the debtor; without money, who owes tokens."""
    if nano < 0 or (nano == 0 and ustu < 0):
        return words.Pair(debtor=second, creditor=first, nano=-nano, ustu=-ustu)
    return words.Pair(debtor=first, creditor=second, nano=nano, ustu=ustu)


def _settle_pair(state: State, new: words.SettlePair) -> list[Entry]:
    known(new.id, "netting", state.nettings)
    of = state.nettings[new.id]
    places = [i for i, p in enumerate(of.pairs) if (p.debtor, p.creditor) == (new.debtor, new.creditor)]
    if not places:
        raise LedgerRefused(f"in netting {new.id!r}, {new.debtor!r} does not owe {new.creditor!r}")
    pair = of.pairs[places[0]]
    if pair.settled_ns is not None:
        if pair.reference != new.reference:
            raise LedgerRefused(f"that pair is settled already, by {pair.reference!r}")
        return []
    done = msgspec.structs.replace(pair, settled_ns=new.at_ns, reference=new.reference)
    pairs = tuple(done if i == places[0] else p for i, p in enumerate(of.pairs))
    state.nettings[of.id] = msgspec.structs.replace(of, pairs=pairs)
    debtor, creditor = (
        "settled/operator" if name == words.OPERATOR else f"clearing/{name}" for name in (pair.debtor, pair.creditor)
    )
    both = (("money", pair.nano), ("stu", pair.ustu))
    return [e for book, amount in both for e in lines((book, debtor, -amount), (book, creditor, amount))]
