from __future__ import annotations

import base64
import contextlib
import hashlib
import random
import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from hypothesis import given
from hypothesis import strategies as st

from tokenworks.core.errors import DataDirError, TokenworksError
from tokenworks.exchange.log.checkpoint import (
    BadCheckpoint,
    BadVerifier,
    Checkpoint,
    NotSigned,
    SigningKey,
    load_key,
    new_key,
    parse_and_verify,
    parse_verifier,
    save_key,
    sign,
)
from tokenworks.exchange.log.leaves import load_secret, new_secret
from tokenworks.exchange.log.merkle import EMPTY_ROOT

NAME = "tokens.example.org/log"


def key(seed: int = 1, name: str = NAME) -> SigningKey:
    return new_key(name, random.Random(seed).randbytes)


HEAD = Checkpoint(NAME, 20_852_163, hashlib.sha256(b"root").digest())
NOTE = sign(HEAD, key())
VERIFIER = key().verifier().text()


# An independent reader of signed notes: Ed25519 by the formulas of RFC 8032 and no code of the product.

P = 2**255 - 19
ORDER = 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, -1, P) % P
Point = tuple[int, int]


def plus(a: Point, b: Point) -> Point:
    (x1, y1), (x2, y2) = a, b
    t = D * x1 * x2 * y1 * y2
    return (x1 * y2 + x2 * y1) * pow(1 + t, -1, P) % P, (y1 * y2 + x1 * x2) * pow(1 - t, -1, P) % P


def times(n: int, point: Point) -> Point:
    total = (0, 1)
    while n:
        total, point, n = plus(total, point) if n & 1 else total, plus(point, point), n >> 1
    return total


def point_of(data: bytes) -> Point:
    y = int.from_bytes(data, "little") & (1 << 255) - 1
    square = (y * y - 1) * pow(D * y * y + 1, -1, P) % P
    x = pow(square, (P + 3) // 8, P)
    if x * x % P != square:
        x = x * pow(2, (P - 1) // 4, P) % P
    assert x * x % P == square
    return (x if x & 1 == data[31] >> 7 else -x % P), y


def second_opinion(note: str, verifier: str) -> tuple[str, str, bytes]:
    name, hashed, encoded = verifier.split("+", 2)
    public = base64.b64decode(encoded)[1:]
    text, signatures = note[: note.rindex("\n\n") + 1], note[note.rindex("\n\n") + 2 :]
    for line in signatures.splitlines():
        dash, signer, value = line.split(" ")
        raw = base64.b64decode(value)
        if (dash, signer, raw[:4].hex()) == ("\u2014", name, hashed):
            r, s = raw[4:36], int.from_bytes(raw[36:], "little")
            h = int.from_bytes(hashlib.sha512(r + public + text.encode()).digest(), "little") % ORDER
            base = point_of((4 * pow(5, -1, P) % P).to_bytes(32, "little"))
            assert len(raw) == 68
            assert s < ORDER
            assert times(s, base) == plus(point_of(r), times(h, point_of(public)))
            origin, size, root = text.splitlines()
            return origin, size, base64.b64decode(root)
    raise AssertionError("no signature of that key")


def test_a_second_implementation_reads_our_checkpoints() -> None:
    """What we sign is a signed note to a reader that shares no code with us; nothing else signs it."""
    assert second_opinion(NOTE, VERIFIER) == (NAME, "20852163", HEAD.root)
    public = key().verifier().public
    assert hashlib.sha256(NAME.encode() + b"\n\x01" + public).digest()[:4] == key().verifier().key_id
    with pytest.raises(AssertionError):
        second_opinion(NOTE.replace("20852163", "20852164"), VERIFIER)


def test_we_read_what_others_signed() -> None:
    """Verifier keys and a note that the makers of the format published are good to us, though the note is no log's."""
    peter = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
    golang = "sum.golang.org+033de0ae+Ac4zctda0e5eza+HJyk9SxEdh+s3Ux18htTTAD8OuAn8"
    assert [parse_verifier(text).text() for text in (peter, golang)] == [peter, golang]
    note = (
        "If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n\n"
        "\u2014 PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKv"
        "qfqdngotpRZb6KE6RyyBwJnAM=\n"
    )
    with pytest.raises(BadCheckpoint, match="three lines") as found:
        parse_and_verify(note, peter)
    assert not isinstance(found.value, NotSigned)
    with pytest.raises(NotSigned):
        parse_and_verify(note.replace("answer", "anzwer"), peter)


def test_form() -> None:
    """A checkpoint is three lines, a blank one and a signature; it reads back as it was."""
    lines = NOTE.split("\n")
    assert lines[:2] == [NAME, "20852163"]
    assert base64.b64decode(lines[2]) == HEAD.root
    assert lines[3] == ""
    assert lines[4].startswith(f"\u2014 {NAME} ")
    assert lines[5:] == [""]
    assert parse_and_verify(NOTE, VERIFIER) == parse_and_verify(NOTE.encode(), key().verifier()) == HEAD
    more = HEAD._replace(extensions=("witnessed by nobody",))
    assert parse_and_verify(sign(more, key()), VERIFIER) == more
    empty = Checkpoint(NAME, 0, EMPTY_ROOT)
    assert parse_and_verify(sign(empty, key()), VERIFIER) == empty


def test_every_bit_counts() -> None:
    """A checkpoint, or a verifier key, with any one bit changed is refused."""
    data = NOTE.encode()
    for place in range(len(data)):
        for bit in range(8):
            with pytest.raises(BadCheckpoint):
                parse_and_verify(data[:place] + bytes((data[place] ^ 1 << bit,)) + data[place + 1 :], VERIFIER)
    for place in range(len(VERIFIER)):
        for bit in range(7):
            changed = VERIFIER[:place] + chr(ord(VERIFIER[place]) ^ 1 << bit) + VERIFIER[place + 1 :]
            with pytest.raises((BadVerifier, NotSigned)):
                parse_and_verify(NOTE, changed)


def test_another_key_or_name_is_refused() -> None:
    """Neither another key of the same name nor the same key of another name has signed it."""
    for other in (key(2), key(1, "tokens.example.org/other")):
        with pytest.raises(NotSigned):
            parse_and_verify(NOTE, other.verifier())
    forged = NOTE.replace(base64.b64encode(key().verifier().key_id).decode()[:5], "AAAAA")
    with pytest.raises(NotSigned):
        parse_and_verify(forged, VERIFIER)
    with pytest.raises(BadCheckpoint, match="name of its log"):
        sign(HEAD, key(1, "tokens.example.org/other"))


def test_a_key_speaks_only_for_the_log_of_its_name() -> None:
    """A note of another log is refused though the right key signed it."""
    body = HEAD._replace(origin="elsewhere").body()
    raw = key().verifier().key_id + key().private.sign(body.encode())
    note = f"{body}\n\u2014 {NAME} {base64.b64encode(raw).decode()}\n"
    with pytest.raises(NotSigned, match="elsewhere"):
        parse_and_verify(note, VERIFIER)


def test_rotation_and_witnesses() -> None:
    """Signed by old and new key, a checkpoint satisfies holders of either; a stranger's line changes nothing."""
    both = sign(HEAD, key(1)) + sign(HEAD, key(2)).rpartition("\n\n")[2]
    assert parse_and_verify(both, key(1).verifier()) == parse_and_verify(both, key(2).verifier()) == HEAD
    stranger = f"\u2014 witness.example {base64.b64encode(bytes(100)).decode()}\n"
    assert parse_and_verify(NOTE + stranger * 16, VERIFIER) == HEAD
    with pytest.raises(BadCheckpoint):
        parse_and_verify(NOTE + stranger * 64, VERIFIER)
    bad = base64.b64encode(key().verifier().key_id + bytes(64)).decode()
    with pytest.raises(NotSigned):  # one good signature does not excuse a bad one of the same key
        parse_and_verify(f"{NOTE}\u2014 {NAME} {bad}\n", VERIFIER)


@pytest.mark.parametrize(
    "body",
    [
        "",
        "\n",
        f"{NAME}\n",
        f"{NAME}\n01\n{'A' * 43}=\n",
        f"{NAME}\n-1\n{'A' * 43}=\n",
        f"{NAME}\n\u0661\n{'A' * 43}=\n",
        f"{NAME}\n{1 << 63}\n{'A' * 43}=\n",
        f"{NAME}\n{'9' * 5000}\n{'A' * 43}=\n",
        f"{NAME}\n1\n{'A' * 42}B=\n",
        f"{NAME}\n1\n{'A' * 44}\n",
        f"{NAME}\n0\n{'A' * 43}=\n",
        f"{NAME}\n1\n{'A' * 43}=\n\nmore\n",
        f"{NAME}\n1\n{'A' * 43}=\t\n",
    ],
)
def test_signed_nonsense_is_still_nonsense(body: str) -> None:
    """A body of a wrong form is refused even with a good signature."""
    raw = key().verifier().key_id + key().private.sign(body.encode())
    with pytest.raises(BadCheckpoint):
        parse_and_verify(f"{body}\n\u2014 {NAME} {base64.b64encode(raw).decode()}\n", VERIFIER)


@pytest.mark.parametrize("name", ["", "a b", "a+b", "a\tb", "a\u2003b", "a\nb", "\ud800", "a\x00"])
def test_names_that_cannot_sign(name: str) -> None:
    """A name that would break the line it stands on is refused before a key is made."""
    with pytest.raises(BadVerifier):
        key(1, name)


@pytest.mark.parametrize(
    "change", [{"size": -1}, {"size": 1 << 63}, {"root": b"short"}, {"extensions": ("",)}, {"extensions": ("a\nb",)}]
)
def test_nothing_is_signed_that_does_not_read_back(change: dict[str, object]) -> None:
    """The signer refuses a checkpoint that its own reader would refuse or misread."""
    with pytest.raises(BadCheckpoint):
        sign(Checkpoint(**(HEAD._asdict() | change)), key())


@given(st.text() | st.binary() | st.builds(lambda a, b: NOTE[:a] + b + NOTE[a:], st.integers(0, 300), st.text()))
def test_reading_survives_anything(text: str | bytes) -> None:
    """Whatever is read as a checkpoint or a key, the outcome is a value or one of our errors."""
    with contextlib.suppress(TokenworksError):
        assert parse_and_verify(text, VERIFIER) == HEAD
    if isinstance(text, str):
        with pytest.raises(BadVerifier):
            parse_verifier(text)


def test_key_files(tmp_path: Path) -> None:
    """A key and a secret are kept for their owner alone, come back as they were, and are never overwritten."""
    path, secret = tmp_path / "log.key", tmp_path / "log.secret"
    save_key(path, key())
    made = new_secret(secret, random.Random(5).randbytes)
    assert [stat.S_IMODE(each.stat().st_mode) for each in (path, secret)] == [0o600, 0o600]
    assert load_key(path, NAME).verifier() == key().verifier()
    assert load_secret(secret) == made
    assert sorted(each.name for each in tmp_path.iterdir()) == ["log.key", "log.secret"]
    before = path.read_bytes()
    with pytest.raises(DataDirError, match="already"):
        save_key(path, key(2))
    assert path.read_bytes() == before
    path.chmod(0o640)
    with pytest.raises(DataDirError, match="others can read"):
        load_key(path, NAME)


def test_key_files_that_are_none(tmp_path: Path) -> None:
    """A missing, torn or foreign key file is one sentence, not a trace."""
    elliptic = generate_private_key(SECP256R1()).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    for n, content in enumerate((b"", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", elliptic)):
        path = tmp_path / str(n)
        path.touch(0o600)
        path.write_bytes(content)
        with pytest.raises(DataDirError):
            load_key(path, NAME)
        with pytest.raises(DataDirError):
            load_secret(path)
    with pytest.raises(DataDirError, match="cannot read"):
        load_key(tmp_path / "none", NAME)
    with pytest.raises(DataDirError, match="cannot write"):
        save_key(tmp_path / "no" / "folder", key())
