from __future__ import annotations

import hashlib
import re

from hypothesis import given
from hypothesis import strategies as st

from tokenworks.core.ids import key_hash, key_id_of, new_id, new_key, same_hash

MS = 1_000_000


@given(st.integers(0, 2**47), st.integers(1, 2**47 - 1), st.binary(min_size=10, max_size=10))
def test_ids_sort_by_the_time_they_were_made(at_ms: int, later_ms: int, noise: bytes) -> None:
    """A later millisecond sorts behind an earlier one, whatever the random bits are."""
    early = new_id("rcpt", at_ms * MS, lambda count: b"\xff" * count)
    late = new_id("rcpt", (at_ms + later_ms) * MS, lambda count: noise)
    assert early < late
    assert re.fullmatch(r"rcpt_[0-9a-hjkmnp-tv-z]{26}", late)


def test_ids_of_one_instant_differ() -> None:
    """Eighty random bits keep ids of the same nanosecond apart."""
    assert len({new_id("x", 0) for _ in range(1_000)}) == 1_000


def test_an_id_is_replayed_from_the_same_entropy() -> None:
    """Randomness comes through one port, so that a run can be replayed."""
    assert new_id("x", 5 * MS, bytes) == "x_" + "0" * 9 + "5" + "0" * 16
    assert new_key(bytes) == new_key(bytes)


@given(st.binary(min_size=20, max_size=20))
def test_a_key_has_one_shape_and_carries_its_id(noise: bytes) -> None:
    """``tw-`` and the id of 8 characters and the secret of 32; what is stored is its SHA-256."""
    key_id, key, hashed = new_key(lambda count: noise[:count])
    assert re.fullmatch(r"tw-[0-9a-hjkmnp-tv-z]{8}-[0-9a-hjkmnp-tv-z]{32}", key)
    assert key_id_of(key) == key_id
    assert hashed == key_hash(key) == hashlib.sha256(key.encode()).digest()
    assert key.encode() not in hashed


def test_what_has_not_the_shape_of_a_key_has_no_id() -> None:
    """Other vendors' keys, cut keys and long ones are turned away before any look-up."""
    for wrong in ("", "tw", "tw-a", "sk-a-b", "tw-a-b-c", "tw-a-" + "b" * 64):
        assert key_id_of(wrong) is None


def test_hashes_compare_by_value() -> None:
    """Equal bytes are the same hash, one different bit is another."""
    hashed = key_hash("tw-a-b")
    assert same_hash(hashed, bytes(bytearray(hashed)))
    assert not same_hash(hashed, hashed[:-1] + bytes([hashed[-1] ^ 1]))
    assert not same_hash(hashed, b"")
