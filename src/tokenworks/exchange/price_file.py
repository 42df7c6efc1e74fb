"""Price lists as files: TOML that people write, and beside it ``FILE.sig`` with the signatures of its cards and books.

A signature is over a card's canonical form, so comments and layout of the TOML may change; a figure may not.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from tokenworks.core.errors import BadQuantity, BadRequest, NotAllowed
from tokenworks.exchange.cards import Card, Signature, read_cards, verify_card
from tokenworks.exchange.prices import PriceList


def signatures_path(path: Path) -> Path:
    """Where the signatures of a price list are."""
    return path.with_name(path.name + ".sig")


def load_price_list(path: Path, currency: str, trusted: Sequence[str] = ()) -> PriceList:
    """A price list with its signatures.

    Raises BadRequest when a file cannot be read, BadQuantity for what is no price list or cannot be booked, NotAllowed
    when there are ``trusted`` public keys and none of them signed a card or book.
    """
    beside = signatures_path(path)
    try:
        signatures = msgspec.json.decode(beside.read_bytes(), type=dict[str, Signature]) if beside.exists() else {}
        cards, books = read_cards(path.read_text("utf-8"))
        found = PriceList(currency=currency, cards=cards, books=books, signatures=signatures)
    except BadQuantity as error:
        raise BadQuantity(f"{path}: {error.message}", hint=error.hint) from None
    except (OSError, UnicodeDecodeError, msgspec.DecodeError) as error:
        raise BadRequest(f"cannot read {path} or its signatures: {error}") from None
    for card in found.every_card() if trusted else ():
        if signer(found, card, trusted) is None:
            raise NotAllowed(f"{path}: no trusted key signed {card.name}", hint="tokenworks price verify shows more")
    return found


def signer(prices: PriceList, card: Card, keys: Sequence[str]) -> str | None:
    """Which of these public keys signed the card; with no key to check against, the one that came with it."""
    signature = prices.signatures.get(card.name)
    found = keys or ([signature.public_key] if signature else [])
    return next((key for key in found if verify_card(card, signature, key)), None)
