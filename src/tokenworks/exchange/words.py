"""The exchange's own words, and the closed union of commands that its journal and its ledger speak."""

from __future__ import annotations

from typing import Literal

import msgspec

from tokenworks.core.words import Decision, Delivery, EnergyLine, Interval, Sourced, Usage, Word, Work
from tokenworks.exchange.clearing_words import (
    OPERATOR,
    AnswerDispute,
    IssueStatement,
    NetStatements,
    OpenDispute,
    SettlePair,
)
from tokenworks.exchange.command import Command

Role = Literal["admin", "user"]


Window = Literal["none", "day", "month"]
"""How long a limit counts before it starts anew, in UTC."""
Overage = Literal["block", "payg", "slow", "cheaper"]
"""What happens when an account's packages are used up."""


class Account(Word, frozen=True):
    """Somebody who spends tokens and is billed for them."""

    id: str
    name: str
    opened_ns: int
    price_class: str = "standard"
    """Which column of the price book holds."""
    overage: Overage = "payg"
    """When packages do not cover the most that a request can cost: block refuses, payg bills money at the price book,
    slow does so after a wait for a slot that nobody wants, cheaper does so for a cheaper model."""
    cheaper: tuple[str, ...] = ()
    """Models that may stand in by the rule ``cheaper``; empty: any that is served here."""
    clamp: bool = True
    """Cut max_tokens to what is affordable; False: refuse with 402 instead."""
    home: str = OPERATOR
    """The entity that sold to it and collects from it."""


class Budget(Word, frozen=True):
    """A node of the budget tree: it limits itself and everything below it. None: no limit of that kind."""

    id: str
    account: str
    parent: str | None
    name: str
    limit_ustu: int | None
    limit_nano: int | None
    window: Window = "none"
    carved: bool = False
    """Its limit was cut out of its parent's: the parent counts the limit as used, not the spending."""
    expires_ns: int | None = None
    """A mandate: a budget handed to an agent for a time."""
    closed_ns: int | None = None


class Package(Word, frozen=True):
    """What can be bought: standard tokens with a validity, as telecoms sell data."""

    code: str
    name: str
    size_ustu: int
    price_nano: int
    validity_ns: int | None
    """From the moment a grant takes effect; None: for ever."""
    models: tuple[str, ...] = ()
    """Only these; empty: any."""
    sites: tuple[str, ...] = ()
    priority: int = 100
    """Lower burns first."""
    promotional: bool = False


class Grant(Word, frozen=True):
    """A package that an account has: its terms are fixed at the sale."""

    id: str
    account: str
    package: str
    size_ustu: int
    price_nano: int
    created_ns: int
    effective_ns: int
    expires_ns: int | None
    budget: str = ""
    """Only requests of this budget and those below it may use it; empty: all of the account."""
    models: tuple[str, ...] = ()
    sites: tuple[str, ...] = ()
    priority: int = 100
    promotional: bool = False
    used_ustu: int = 0
    """As of the moment it was told."""
    ended_ns: int | None = None
    """Refunded or upgraded: nothing is left of it."""
    refund_nano: int = 0


class Burn(Word, frozen=True):
    """How much of one grant a request used."""

    grant: str
    ustu: int


class Entity(Word, frozen=True):
    """An owner of sites. What its sites earned is paid to it, less the fee of the pool's operator."""

    name: str
    fee_permille: int = 0
    own: bool = False
    """The operator itself: what it earns is revenue, not a debt."""


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
    grants: tuple[Grant, ...] = ()
    """In burn order, without those that ended."""


class Settlement(Word, frozen=True, array_like=True, gc=False):
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
    """The price in money of what no grant covered; ``loss_nano`` of it is the operator's loss."""
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
    list_nano: int = 0
    """The whole usage at the price book, whoever pays it."""
    burned: tuple[Burn, ...] = ()
    """What grants covered, in burn order; their sum is part of ``ustu``."""
    entity: str = ""
    """Who owns the site that served it."""
    lane: str = ""
    """``slow`` when it waited for a slot that nobody wanted, by the account's overage rule."""


class SiteFacts(Word, frozen=True):
    """What is known of a site's figures, with their provenance; a receipt cites the facts of its time."""

    site: str
    entity: str
    place: str | None
    jurisdiction: str | None
    facts: dict[str, Sourced]
    mix_permille: dict[str, int] = {}


class OpenAccount(Command, frozen=True):
    """A new account, or new terms for one that exists."""

    account: Account


class SetBudget(Command, frozen=True):
    """A new budget, or new limits for one that exists."""

    budget: Budget
    at_ns: int = 0


class AddKey(Command, frozen=True):
    """A new key for a budget."""

    key: Key


class RevokeKey(Command, frozen=True):
    """The key stops working."""

    key: str
    at_ns: int


class DefinePackage(Command, frozen=True):
    """A package on offer, or new terms for later sales; what was sold keeps the terms of its sale."""

    package: Package


class SellGrant(Command, frozen=True):
    """An account gets a package: its price is owed or paid, its tokens are a debt until used or expired."""

    grant: Grant


class EndGrant(Command, frozen=True):
    """A grant ends early: what is left of it is refunded for ``refund_nano``, the rest of its value is breakage."""

    grant: str
    refund_nano: int
    reason: str
    at_ns: int


class SetEntity(Command, frozen=True):
    """An owner of sites, and the fee that the pool keeps from what they earn."""

    entity: Entity


class PlaceHold(Command, frozen=True):
    """The most that a request may cost, promised on the whole budget path before an engine is called.

    ``parts`` are the promises of grants in burn order; they are part of ``ustu``.
    """

    receipt: str
    budget: str
    ustu: int
    nano: int
    at_ns: int
    parts: tuple[Burn, ...] = ()


class ExtendHold(Command, frozen=True):
    """More of the same for a long stream."""

    receipt: str
    ustu: int
    nano: int
    parts: tuple[Burn, ...] = ()


class Settle(Command, frozen=True):
    """The true cost of a request; the rest of its hold returns."""

    settlement: Settlement


class Void(Command, frozen=True):
    """A hold returns whole: its gateway died before it settled, and nothing was acknowledged."""

    receipt: str
    reason: str
    at_ns: int


class CloseInterval(Command, frozen=True):
    """The energy records of one interval of one site."""

    interval: Interval


class BillPower(Command, frozen=True):
    """What a supply charges a site beside its intervals, all so far: a month's peak, or an event that is over. Said
    again with another sum, the difference is booked."""

    site: str
    supply: str
    part: Literal["demand", "events"]
    what: str
    """Names it, once at its site."""
    nano: int
    """Negative: the supply pays."""
    at_ns: int


class DescribeSite(Command, frozen=True):
    """New facts about a site."""

    facts: SiteFacts
    at_ns: int


class Lease(Word, frozen=True):
    """What a gateway's epoch may spend of one counter in all, in the window that starts at ``window_ns``.

    Counters: ``n:`` and a budget's id for its money, ``u:`` for its standard tokens, ``g:`` and a grant's id.
    """

    counter: str
    window_ns: int
    allowance: int


class GiveLease(Command, frozen=True):
    """Leases of one gateway's epoch: new sums, larger or smaller than before."""

    writer: str
    epoch: int
    leases: tuple[Lease, ...]
    at_ns: int


class ReadTo(Word, frozen=True):
    """A place in another journal."""

    writer: str
    epoch: int
    segment: int
    offset: int


class MarkRead(Command, frozen=True):
    """How far the ledger had read the gateways' journals before the commands that follow: one order of everything.

    With these marks the ledger's own journal tells the order of all journals, so that a view built again is the same.
    """

    places: tuple[ReadTo, ...]


class EndEpoch(Command, frozen=True):
    """A gateway's epoch is over: its leases return, and what it may still settle is the operator's loss."""

    writer: str
    epoch: int
    reason: str
    at_ns: int
    closed: bool = False
    """Its process is gone as well: its journal has nothing more to tell."""


AnyCommand = (
    OpenAccount
    | SetBudget
    | AddKey
    | RevokeKey
    | DefinePackage
    | SellGrant
    | EndGrant
    | SetEntity
    | PlaceHold
    | ExtendHold
    | Settle
    | Void
    | CloseInterval
    | BillPower
    | DescribeSite
    | GiveLease
    | MarkRead
    | EndEpoch
    | IssueStatement
    | OpenDispute
    | AnswerDispute
    | NetStatements
    | SettlePair
)

encode_command = encode_settlement = msgspec.msgpack.Encoder().encode
_decoder: msgspec.msgpack.Decoder[AnyCommand] = msgspec.msgpack.Decoder(AnyCommand)
_settlement_decoder = msgspec.msgpack.Decoder(Settlement)


def decode_command(data: bytes | memoryview) -> AnyCommand:
    """Raises msgspec.DecodeError or ValidationError for bytes that are no command."""
    return _decoder.decode(data)


def decode_settlement(data: bytes) -> Settlement:
    """Raises msgspec.DecodeError or ValidationError for bytes that are no settlement."""
    return _settlement_decoder.decode(data)
