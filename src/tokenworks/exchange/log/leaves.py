"""The two kinds of leaves: what a settlement charged and where its running totals stand, and what an interval metered.

A leaf is canonical JSON: keys sorted, no spaces, UTF-8, no number but integers, absent means unknown. The tree holds
only SHA-256 of it. Each leaf has a salt of its own, so that nobody can guess a leaf and find it in the tree; the salts
come from the log's secret, so that the same receipts make the same log again.
"""

from __future__ import annotations

import hashlib
import hmac
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from tokenworks.core.errors import DataDirError
from tokenworks.core.files import create_private, read_private
from tokenworks.core.ids import Entropy
from tokenworks.core.words import EnergyLine, Interval
from tokenworks.exchange.log.figures import BESIDE
from tokenworks.exchange.log.plain import keyed_hash, text_hash
from tokenworks.exchange.log.stated import Stated, Used
from tokenworks.exchange.words import Settlement

VERSION = 1
SALT_BYTES = 16
SECRET_BYTES = 32
ACCOUNTS_REMEMBERED = 65_536

canonical = msgspec.json.Encoder(order="deterministic").encode
"""The bytes of a leaf."""
Leaf = Stated | dict[str, Any]


class Identity(NamedTuple):
    """Whose leaves they are: the log's name, and the secret that salts and pseudonyms come from."""

    origin: str
    secret: bytes


class Totals(NamedTuple):
    """Where an account stands after its latest settlement, in what it was charged: prices less the operator's loss."""

    seq: int = 0
    ustu: int = 0
    nano: int = 0

    def after(self, settled: Settlement) -> Totals:
        """With one settlement more."""
        return Totals(
            self.seq + 1, self.ustu + settled.ustu - settled.loss_ustu, self.nano + settled.nano - settled.loss_nano
        )


class Settled(NamedTuple):
    """A settlement's place in the log, and the account's totals after it: all that its leaf is made of."""

    position: int
    settlement: Settlement
    totals: Totals


class Metered(NamedTuple):
    """The same of one request's part of one interval."""

    position: int
    line: EnergyLine
    interval: Interval


LeafRow = Settled | Metered


def new_secret(path: Path, entropy: Entropy) -> bytes:
    """Make and keep the secret of a new log. Raises DataDirError, also when there is one."""
    secret = entropy(SECRET_BYTES)
    create_private(path, secret)
    return secret


def load_secret(path: Path) -> bytes:
    """Raises DataDirError."""
    secret = read_private(path)
    if len(secret) != SECRET_BYTES:
        raise DataDirError(
            f"{path} is not the secret of a log", hint="restore it: without it no leaf can be made again"
        )
    return secret


def _salt(secret: bytes, use: bytes, *parts: str) -> str:
    """A salt of its own for each leaf; a zero byte cannot be in an id, so no two leaves have the same."""
    text = "\0".join(parts).encode()
    return hashlib.blake2b(text, key=secret, digest_size=SALT_BYTES, person=use).hexdigest()


@lru_cache(maxsize=ACCOUNTS_REMEMBERED)
def account_salt(secret: bytes, account: str) -> bytes:
    """The key of an account's pseudonym. Its owner gets it with a bundle; it tells nothing about other accounts."""
    return hmac.digest(secret, f"account\0{account}".encode(), "sha256")


@lru_cache(maxsize=ACCOUNTS_REMEMBERED)
def _pseudonym(secret: bytes, account: str) -> str:
    """How leaves name an account."""
    return keyed_hash(account, account_salt(secret, account))


def commitment(leaf: Leaf) -> bytes:
    """What the tree holds of a leaf: the content of its entry, which ``merkle.leaf_hash`` then hashes."""
    return hashlib.sha256(canonical(leaf)).digest()


def settlement_leaf(log: Identity, settled: Settlement, totals: Totals) -> Stated:
    """The leaf of a settlement; ``totals`` are the account's after it."""
    s, u = settled, settled.usage
    return Stated(  # in their order: with their names it takes eight times as long, 1 µs
        _pseudonym(log.secret, s.account), totals.seq, s.at_ns, u.certainty, totals.nano, totals.ustu,
        s.currency, s.entity, "settlement", log.origin, s.loss_nano, s.loss_ustu,
        s.model_served, s.model_asked, s.nano, s.price_book, s.rate_card,
        text_hash(s.receipt), _salt(log.secret, b"settlement", s.receipt),
        msgspec.UNSET if s.decision is None else s.decision.chosen.site,
        Used(u.audio, u.cache_write, u.cached_input, u.image, u.input, u.output, u.reasoning, u.video),
        s.ustu, VERSION,
    )  # fmt: skip


def energy_leaf(log: Identity, line: EnergyLine, interval: Interval) -> dict[str, Any]:
    """The leaf of one request's part of one interval, or of a correction of it."""
    leaf: dict[str, Any] = {
        "v": VERSION, "kind": "energy", "log": log.origin, "receipt": text_hash(line.receipt), "site": interval.site,
        "start_ns": interval.start_ns, "end_ns": interval.end_ns, "energy_mj": line.energy_mj,
        "overhead_mj": line.overhead_mj, "slice_ns": line.slice_ns, "provenance": interval.meter.value,
        "ended": line.ended,
    }  # fmt: skip
    leaf |= {name: figure for name in BESIDE if (figure := getattr(line, name)) is not None}
    place = [line.receipt, interval.site, str(interval.start_ns)]
    if interval.corrects:
        leaf["corrects"] = interval.corrects
        place.append(str(interval.corrects))
    return leaf | {"salt": _salt(log.secret, b"energy", *place)}
