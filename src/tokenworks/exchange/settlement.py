"""Settlement between the entities that own sites: statements, fees, netting and disputes. Pure functions.

The entity where an account is at home (the operator that sold to it) owes the entity whose site served. A statement
lists every request of a period, hashes the lines, and splits what customers paid into the entity's part and the pool's
fee: ``paid == to entities + fees + rounding`` holds to the nano and the micro-STU, and largest remainder makes rounding
0. Where the ledger booked a fee with the request, that fee stands, so that the statement is what the ledger owes.
A line is never removed or edited: it changes state, and a correction is a new line that names the one it corrects.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

import msgspec

from tokenworks.core.errors import LedgerRefused, NotFound, nearest
from tokenworks.core.units import split
from tokenworks.core.words import Word
from tokenworks.exchange.words import Entity

State = Literal["open", "accepted", "rejected", "corrected"]
MOVES: dict[State, tuple[State, ...]] = {
    "open": ("accepted", "rejected"),
    "rejected": ("accepted", "corrected"),
    "accepted": (),
    "corrected": (),
}
"""A dispute ends accepted (as it stands) or corrected (by a new line, which starts open)."""
PERMILLE = 1_000


class Served(Word, frozen=True):
    """What one request of a customer of ``home`` paid for the work of ``entity``'s site."""

    id: str
    """The receipt."""
    entity: str
    home: str
    ustu: int
    nano: int
    """Money earned with it: beyond packages, and what packages' tokens were sold for."""
    fee_nano: int | None = None
    """The fee that the ledger booked; None: by largest remainder over the statement's sum."""


class Line(Word, frozen=True):
    """A line of a statement. ``corrects`` names another line; the amounts are then the difference to it."""

    id: str
    entity: str
    home: str
    ustu: int
    nano: int
    fee_nano: int | None = None
    corrects: str | None = None


class Move(NamedTuple):
    """One step of a line's life."""

    state: State
    reason: str
    at_ns: int


class Statement(Word, frozen=True):
    """What one entity's sites did for one home in a period. ``paid = net + fee`` in both units, exactly."""

    entity: str
    home: str
    since_ns: int
    until_ns: int
    fee_permille: int
    paid_nano: int
    paid_ustu: int
    fee_nano: int
    fee_ustu: int
    net_nano: int
    net_ustu: int
    lines: tuple[Line, ...]
    digest: str
    """SHA-256 over head and lines in order, in hexadecimal: both sides compute it from their own records."""


class Totals(NamedTuple):
    """``paid == to_entities + fees + rounding``, in one unit."""

    paid: int
    to_entities: int
    fees: int
    rounding: int


class Net(NamedTuple):
    """One figure per pair: ``debtor`` owes ``creditor``. Money and STU net apart and may point in both directions."""

    debtor: str
    creditor: str
    nano: int
    ustu: int
    """Negative: the creditor of the money is the debtor of the tokens."""


def statements(
    rows: Iterable[Served], entities: Mapping[str, Entity], since_ns: int, until_ns: int
) -> tuple[Statement, ...]:
    """One statement per (entity, home) that had lines, in order of their names; lines in order of their ids.

    Raises NotFound for an entity that is not known, LedgerRefused when a receipt comes twice with other content.
    """
    grouped: dict[tuple[str, str], dict[str, Line]] = {}
    for row in rows:
        for name in (row.entity, row.home):
            if name not in entities:
                near = nearest(name, entities)
                raise NotFound(f"there is no entity {name!r}", hint=f"did you mean {near!r}?" if near else None)
        line = Line(id=row.id, entity=row.entity, home=row.home, ustu=row.ustu, nano=row.nano, fee_nano=row.fee_nano)
        if grouped.setdefault((row.entity, row.home), {}).setdefault(row.id, line) != line:
            raise LedgerRefused(f"receipt {row.id} is stated twice with other amounts", hint="correct it by a new line")
    return tuple(
        statement(entities[entity], home, since_ns, until_ns, [lines[name] for name in sorted(lines)])
        for (entity, home), lines in sorted(grouped.items())
    )


def statement(entity: Entity, home: str, since_ns: int, until_ns: int, lines: Sequence[Line]) -> Statement:
    """The statement of these lines, corrections among them. Raises LedgerRefused for a line of somebody else."""
    if any((line.entity, line.home) != (entity.name, home) for line in lines):
        raise LedgerRefused(f"a line is not of {entity.name} for {home}")
    if not 0 <= entity.fee_permille <= PERMILLE:
        raise LedgerRefused(f"a fee of {entity.fee_permille} permille is not from 0 to {PERMILLE}")
    # What an entity earns at home stays with it: nobody takes a fee of its own customers.
    fee = 0 if entity.own or entity.name == home else entity.fee_permille
    paid_nano, paid_ustu = sum(line.nano for line in lines), sum(line.ustu for line in lines)
    booked = [line.fee_nano for line in lines if line.fee_nano is not None]
    open_nano = sum(line.nano for line in lines if line.fee_nano is None)
    fee_nano = sum(booked) + split(open_nano, [PERMILLE - fee, fee])[1]
    net_ustu, fee_ustu = split(paid_ustu, [PERMILLE - fee, fee])
    return Statement(
        entity=entity.name,
        home=home,
        since_ns=since_ns,
        until_ns=until_ns,
        fee_permille=fee,
        paid_nano=paid_nano,
        paid_ustu=paid_ustu,
        fee_nano=fee_nano,
        fee_ustu=fee_ustu,
        net_nano=paid_nano - fee_nano,
        net_ustu=net_ustu,
        lines=tuple(lines),
        digest=digest(entity.name, home, since_ns, until_ns, lines),
    )


def digest(entity: str, home: str, since_ns: int, until_ns: int, lines: Iterable[Line]) -> str:
    """SHA-256 of the statement's head and its lines, each as one line of JSON with sorted keys."""
    head: list[str | int] = ["tokenworks statement v1", entity, home, since_ns, until_ns]
    hashed = hashlib.sha256(msgspec.json.encode(head) + b"\n")
    for line in lines:
        hashed.update(msgspec.json.encode(line, order="sorted") + b"\n")
    return hashed.hexdigest()


def money_totals(made: Iterable[Statement]) -> Totals:
    """The money of all statements; ``rounding`` is what the split left over, which largest remainder makes 0."""
    return _totals([(each.paid_nano, each.net_nano, each.fee_nano) for each in made])


def stu_totals(made: Iterable[Statement]) -> Totals:
    """The same in micro-STU."""
    return _totals([(each.paid_ustu, each.net_ustu, each.fee_ustu) for each in made])


def _totals(sums: list[tuple[int, int, int]]) -> Totals:
    paid, net, fees = (sum(each[i] for each in sums) for i in range(3))
    return Totals(paid, net, fees, paid - net - fees)


def line_shares(made: Statement) -> list[int]:
    """The entity's net money by line, exact, for its own books: ``sum(line_shares(s)) == s.net_nano``."""
    keep = PERMILLE - made.fee_permille
    shares = [
        line.nano * keep // PERMILLE if line.fee_nano is None else line.nano - line.fee_nano for line in made.lines
    ]
    open_lines = [i for i, line in enumerate(made.lines) if line.fee_nano is None]
    # Each share without a booked fee was rounded down: what is left is less than one nano for each of them.
    for i in open_lines[: made.net_nano - sum(shares)]:
        shares[i] += 1
    return shares


def net(made: Iterable[Statement]) -> tuple[Net, ...]:
    """One figure for each pair of entities: what home owes for service, less what it earned by serving the other."""
    pairs: dict[tuple[str, str], list[int]] = {}
    for each in made:
        if each.entity != each.home:
            first, second = sorted((each.home, each.entity))
            sign = 1 if each.home == first else -1
            owed = pairs.setdefault((first, second), [0, 0])
            owed[0] += sign * each.net_nano
            owed[1] += sign * each.net_ustu
    found = []
    for (first, second), (nano, ustu) in sorted(pairs.items()):
        if nano < 0 or (nano == 0 and ustu < 0):
            found.append(Net(second, first, -nano, -ustu))
        elif nano or ustu:
            found.append(Net(first, second, nano, ustu))
    return tuple(found)


class Dispute(Word, frozen=True):
    """The lives of the lines of a statement: every line is here, and every step it took."""

    lines: dict[str, Line]
    moves: dict[str, tuple[Move, ...]]

    def state(self, line: str) -> State:
        """Raises NotFound."""
        if line not in self.moves:
            raise NotFound(f"there is no line {line!r} in this statement")
        return self.moves[line][-1].state

    def due_nano(self) -> int:
        """What is undisputed: all lines but the rejected ones; a corrected line counts with its correction."""
        return sum(line.nano for name, line in self.lines.items() if self.state(name) != "rejected")

    def withheld_nano(self) -> int:
        """What waits for an answer."""
        return sum(line.nano for name, line in self.lines.items() if self.state(name) == "rejected")


def dispute(made: Statement, at_ns: int) -> Dispute:
    """The dispute of a statement as it was sent: every line open. Raises LedgerRefused for two lines of one id."""
    lines = {line.id: line for line in made.lines}
    if len(lines) < len(made.lines):
        raise LedgerRefused("two lines of a statement have one id")
    return Dispute(lines=lines, moves={name: (Move("open", "stated", at_ns),) for name in lines})


def move(of: Dispute, line: str, to: State, reason: str, at_ns: int) -> Dispute:
    """Accept or reject a line. The same step again changes nothing. Raises NotFound, LedgerRefused for another step."""
    now = of.state(line)
    if now == to:
        return of
    if to == "corrected" or to not in MOVES[now]:
        raise LedgerRefused(
            f"line {line} is {now} and cannot become {to}",
            hint="a rejected line is accepted, or corrected by a new one",
        )
    return Dispute(lines=of.lines, moves={**of.moves, line: (*of.moves[line], Move(to, reason, at_ns))})


def correct(of: Dispute, line: str, by: str, ustu: int, nano: int, reason: str, at_ns: int) -> Dispute:
    """Put right a rejected line: it stays, and a new open line ``by`` holds the difference to the right amounts.

    Raises NotFound, or LedgerRefused when the line is not rejected or ``by`` is taken by something else.
    """
    now, wrong = of.state(line), of.lines.get(line)
    assert wrong is not None
    made = Line(
        id=by, entity=wrong.entity, home=wrong.home, ustu=ustu - wrong.ustu, nano=nano - wrong.nano, corrects=line
    )
    if now == "corrected" and of.lines.get(by) == made:
        return of
    if "corrected" not in MOVES[now]:
        raise LedgerRefused(f"line {line} is {now} and cannot be corrected", hint="only a rejected line is corrected")
    if by in of.lines:
        raise LedgerRefused(f"there is a line {by} already", hint="a correction has an id of its own")
    steps = {line: (*of.moves[line], Move("corrected", reason, at_ns)), by: (Move("open", f"corrects {line}", at_ns),)}
    return Dispute(lines={**of.lines, by: made}, moves={**of.moves, **steps})
