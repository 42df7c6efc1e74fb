"""The exchange's own words, and the closed union of commands that its journal and its ledger speak."""

from __future__ import annotations

from typing import Literal

import msgspec

from tokenworks.core.words import Decision, Delivery, EnergyLine, Interval, Sourced, Usage, Word, Work

Role = Literal["admin", "user"]


class Account(Word, frozen=True):
    """Somebody who spends tokens and is billed for them."""

    id: str
    name: str
    opened_ns: int


class Budget(Word, frozen=True):
    """A node of the budget tree: it limits itself and everything below it. None: no limit of that kind.

    ``spent`` and ``held`` are as of the moment the directory was sent; a gateway counts on from there.
    """

    id: str
    account: str
    parent: str | None
    name: str
    limit_ustu: int | None
    limit_nano: int | None
    spent_ustu: int = 0
    spent_nano: int = 0
    held_ustu: int = 0
    held_nano: int = 0


class Key(Word, frozen=True):
    """An API key as stored: never the key itself. ``budget`` is the leaf of the path that it spends from."""

    id: str
    hash: bytes
    account: str
    budget: str
    role: Role
    made_ns: int
    revoked_ns: int | None = None


class Directory(Word, frozen=True):
    """Everything that a gateway needs in memory so that a request never asks the store."""

    accounts: tuple[Account, ...]
    budgets: tuple[Budget, ...]
    keys: tuple[Key, ...]


class Settlement(Word, frozen=True):
    """The first record of a receipt, written once: what was used, what it cost and who served it."""

    receipt: str
    account: str
    budget: str
    key: str
    endpoint: str
    model_asked: str
    model_served: str
    usage: Usage
    ustu: int
    """The price in standard tokens. What of it exceeded the hold is ``loss_ustu``, the operator's loss."""
    nano: int
    loss_ustu: int
    loss_nano: int
    rate_card: str
    price_book: str
    currency: str
    decision: Decision | None
    delivery: Delivery
    work: Work | None
    estimate: EnergyLine | None
    """Energy as modelled at settlement; replaced by the energy record when the interval closes."""
    held_ustu: int
    held_nano: int
    hold_ns: int
    """Time spent in the exchange for this request."""
    arrived_ns: int
    at_ns: int


class SiteFacts(Word, frozen=True):
    """What is known of a site's figures, with their provenance; a receipt cites the facts of its time."""

    site: str
    entity: str
    place: str | None
    jurisdiction: str | None
    facts: dict[str, Sourced]
    mix_permille: dict[str, int] = {}


class Command(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Base of all commands: the only way in which the ledger's state changes."""


class OpenAccount(Command, frozen=True):
    """A new account; the same id with other content is refused."""

    account: Account


class SetBudget(Command, frozen=True):
    """A new budget, or new limits for one that exists."""

    budget: Budget


class AddKey(Command, frozen=True):
    """A new key for a budget."""

    key: Key


class RevokeKey(Command, frozen=True):
    """The key stops working."""

    key: str
    at_ns: int


class PlaceHold(Command, frozen=True):
    """The most that a request may cost, promised on the whole budget path before an engine is called."""

    receipt: str
    budget: str
    ustu: int
    nano: int
    at_ns: int


class Settle(Command, frozen=True):
    """The true cost of a request; the rest of its hold returns."""

    settlement: Settlement


class Void(Command, frozen=True):
    """A hold returns whole: its gateway died before it settled, and nothing was acknowledged."""

    receipt: str
    reason: str
    at_ns: int
    writer: str = ""
    """Whose journal has the hold; it is read to its end before the void is applied."""
    epoch: int = 0


class CloseInterval(Command, frozen=True):
    """The energy records of one interval of one site."""

    interval: Interval


class DescribeSite(Command, frozen=True):
    """New facts about a site."""

    facts: SiteFacts
    at_ns: int


AnyCommand = OpenAccount | SetBudget | AddKey | RevokeKey | PlaceHold | Settle | Void | CloseInterval | DescribeSite

encode_command = msgspec.msgpack.Encoder().encode
_decoder: msgspec.msgpack.Decoder[AnyCommand] = msgspec.msgpack.Decoder(AnyCommand)


def decode_command(data: bytes | memoryview) -> AnyCommand:
    """Raises msgspec.DecodeError or ValidationError for bytes that are no command."""
    return _decoder.decode(data)
