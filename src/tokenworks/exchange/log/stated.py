"""What a settlement's leaf states, as types: their members stand in the order of canonical JSON, so none is sorted."""

from __future__ import annotations

import msgspec


class Used(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """Native tokens by bucket, those that are none left out."""

    audio: int = 0
    cache_write: int = 0
    cached_input: int = 0
    image: int = 0
    input: int = 0
    output: int = 0
    reasoning: int = 0
    video: int = 0


class Stated(msgspec.Struct, frozen=True, gc=False):
    """One settlement. Account and receipt are pseudonyms; ``cum_…`` are the account's totals after it."""

    account: str
    account_seq: int
    at_ns: int
    certainty: str
    cum_nano: int
    cum_ustu: int
    currency: str
    entity: str
    kind: str
    log: str
    loss_nano: int
    loss_ustu: int
    model: str
    model_asked: str
    nano: int
    price_book: str
    rate_card: str
    receipt: str
    salt: str
    site: str | msgspec.UnsetType
    usage: Used
    ustu: int
    v: int
