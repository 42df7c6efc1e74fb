"""Words of the clearing between entities: statements, disputes, nettings, and the commands that make them."""

from __future__ import annotations

from typing import Literal, NamedTuple

from tokenworks.core.words import Word
from tokenworks.exchange.command import Command

OPERATOR = "operator"
"""The pool's operator, as a home of accounts and as the owner of sites, whatever its entities are called."""
DisputeState = Literal["open", "accepted", "rejected"]


class Sums(NamedTuple):
    """Lines of one entity and home, summed. ``nano`` and ``ustu`` are earned: paid by customers, and the losses."""

    lines: int = 0
    ustu: int = 0
    loss_ustu: int = 0
    nano: int = 0
    loss_nano: int = 0
    fee_nano: int = 0

    def plus(self, more: Sums) -> Sums:
        return Sums(*(a + b for a, b in zip(self, more, strict=True)))


class Statement(Word, frozen=True):
    """What one entity's sites served for customers of one home, up to a day: figures that stay as they were issued.

    ``paid + loss == net + fee`` in both units, exactly: paid by the home's customers, losses borne by the operator.
    """

    id: str
    entity: str
    home: str
    since_ns: int
    until_ns: int
    """Exclusive. A line that came to light after the statement of its day was issued is in the next one."""
    issued_ns: int
    lines: int
    digest: str
    """SHA-256 over head and lines, in hexadecimal: both sides compute it from their own records."""
    paid_ustu: int
    loss_ustu: int
    fee_ustu: int
    net_ustu: int
    paid_nano: int
    loss_nano: int
    fee_nano: int
    net_nano: int
    netting: str | None = None


class Dispute(Word, frozen=True):
    """What a home will not pay of a statement. Accepted, it is booked as an adjustment beside the statement."""

    id: str
    statement: str
    ustu: int
    nano: int
    reason: str
    opened_ns: int
    state: DisputeState = "open"
    answer: str = ""
    answered_ns: int | None = None


class Pair(Word, frozen=True):
    """One figure of a pair: ``debtor`` owes ``creditor``. ``ustu`` below 0: in tokens it is the other way round."""

    debtor: str
    creditor: str
    nano: int
    ustu: int
    settled_ns: int | None = None
    reference: str = ""


class Netting(Word, frozen=True):
    """Statements set off against each other: one figure for each pair of entities."""

    id: str
    at_ns: int
    statements: tuple[str, ...]
    pairs: tuple[Pair, ...]


class ClearingCommand(Command, frozen=True):
    """What happens between entities. Each has an id, and the same id again with the same content changes nothing."""

    id: str
    at_ns: int


class IssueStatement(ClearingCommand, frozen=True):
    """Freeze what is not stated yet and was served before ``until_ns``. ``lines`` and ``digest`` are of these lines."""

    entity: str
    home: str
    until_ns: int
    lines: int
    digest: str


class OpenDispute(ClearingCommand, frozen=True):
    """The home of a statement refuses a part of it."""

    statement: str
    ustu: int
    nano: int
    reason: str


class AnswerDispute(ClearingCommand, frozen=True):
    """The entity accepts (the part is taken back by an entry of its own) or rejects (the whole stays due)."""

    accepted: bool
    answer: str


class NetStatements(ClearingCommand, frozen=True):
    """Set statements off against each other."""

    statements: tuple[str, ...]


class SettlePair(ClearingCommand, frozen=True):
    """One pair's figure of netting ``id`` was paid."""

    debtor: str
    creditor: str
    reference: str
