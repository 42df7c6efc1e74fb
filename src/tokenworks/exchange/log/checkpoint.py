"""Checkpoints: who keeps the log, how many leaves it has and their root, signed with Ed25519.

The formats are those of https://c2sp.org/tlog-checkpoint and https://c2sp.org/signed-note. A verifier key is one line
of text, ``name+keyid+base64(0x01 || public key)``; the key's name is the log's origin.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from pathlib import Path
from typing import NamedTuple

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from tokenworks.core.errors import BadRequest, DataDirError
from tokenworks.core.files import create_private, read_private
from tokenworks.core.ids import Entropy
from tokenworks.exchange.log.merkle import EMPTY_ROOT, HASH_BYTES

CHECKPOINT_BYTES_MAX = 65_536
SIGNATURES_MAX = 64
SIZE_MAX = (1 << 63) - 1
_ED25519 = b"\x01"
_SIZE = re.compile(r"0|[1-9][0-9]{0,18}")
_MARK = "\N{EM DASH} "


class BadCheckpoint(BadRequest):
    """The text is not a checkpoint."""

    code = "bad_checkpoint"


class NotSigned(BadCheckpoint):
    """The checkpoint is not signed by the key that should have signed it."""

    code = "checkpoint_not_signed"


class BadVerifier(BadRequest):
    """The text is not a verifier key."""

    code = "bad_verifier_key"


class Checkpoint(NamedTuple):
    """What a log commits to: everything up to ``size``, by one hash."""

    origin: str
    size: int
    root: bytes
    extensions: tuple[str, ...] = ()
    """Lines that others may add; none of ours do."""

    def body(self) -> str:
        """The text that is signed."""
        root = base64.b64encode(self.root).decode()
        return "".join(f"{line}\n" for line in (self.origin, self.size, root, *self.extensions))


class Verifier(NamedTuple):
    """A public key and the name it signs under. Its text is what the operator publishes."""

    name: str
    key_id: bytes
    public: bytes

    def text(self) -> str:
        """One line, as other C2SP tools read it."""
        return f"{self.name}+{self.key_id.hex()}+{base64.b64encode(_ED25519 + self.public).decode()}"


class SigningKey(NamedTuple):
    """The log's private key and its name, which is the log's origin."""

    name: str
    private: Ed25519PrivateKey

    def verifier(self) -> Verifier:
        """What checks its signatures."""
        public = self.private.public_key().public_bytes_raw()
        return Verifier(self.name, key_id(self.name, public), public)


def key_id(name: str, public: bytes) -> bytes:
    """Four bytes that tell keys of one name apart; they prove nothing."""
    return hashlib.sha256(name.encode() + b"\n" + _ED25519 + public).digest()[:4]


def is_name(name: str) -> bool:
    """Whether it can name a key: no spaces, no plus, no control characters."""
    return bool(name) and not any(c.isspace() or c == "+" or c < " " or c == "\x7f" for c in name) and _is_utf8(name)


def _is_utf8(text: str) -> bool:
    return not any("\ud800" <= c <= "\udfff" for c in text)


def new_key(name: str, entropy: Entropy) -> SigningKey:
    """A fresh key. Raises BadVerifier for a name that cannot stand on a signature line."""
    if not is_name(name):
        raise BadVerifier(
            f"{name!r} cannot name a log", hint="write it like tokens.example.org/log, without spaces or +"
        )
    return SigningKey(name, Ed25519PrivateKey.from_private_bytes(entropy(32)))


def save_key(path: Path, key: SigningKey) -> None:
    """Keep the private key as PEM (PKCS #8), readable by its owner only. Raises DataDirError, also if one is there."""
    pem = key.private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    create_private(path, pem)


def load_key(path: Path, name: str) -> SigningKey:
    """The key of the log of that name. Raises DataDirError: unreadable, readable by others, or no Ed25519 key."""
    pem = read_private(path)
    try:
        private = serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise DataDirError(f"{path} holds no private key") from error
    if not isinstance(private, Ed25519PrivateKey) or not is_name(name):
        raise DataDirError(f"{path} is no Ed25519 key for {name!r}")
    return SigningKey(name, private)


def sign(checkpoint: Checkpoint, key: SigningKey) -> str:
    """The signed checkpoint. Raises BadCheckpoint for a bad field.

    The caller answers for the promise that a signature makes: the leaves are on disk, and every checkpoint signed
    before is a beginning of this one.
    """
    if key.name != checkpoint.origin:
        raise BadCheckpoint("a checkpoint is signed by a key that bears the name of its log")
    body = checkpoint.body()
    if _parse_body(body) != checkpoint:
        raise BadCheckpoint("a field of the checkpoint cannot be written")
    signature = key.verifier().key_id + key.private.sign(body.encode())
    return f"{body}\n{_MARK}{key.name} {base64.b64encode(signature).decode()}\n"


def _base64(text: str) -> bytes | None:
    """Strict: one text per value, so that no bit of it can change unseen."""
    try:
        found = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None
    return found if base64.b64encode(found).decode() == text else None


def parse_verifier(text: str) -> Verifier:
    """Read ``name+keyid+key``. Raises BadVerifier."""
    name, _, rest = text.strip().partition("+")
    hashed, _, encoded = rest.partition("+")
    key = _base64(encoded)
    if not is_name(name) or key is None or len(key) != 33 or key[:1] != _ED25519:
        raise BadVerifier(hint="it is one line like tokens.example.org/log+1a2b3c4d+AR...")
    public = key[1:]
    if hashed != key_id(name, public).hex():
        raise BadVerifier("the verifier key's id does not fit its name and key", hint="copy the whole line again")
    return Verifier(name, bytes.fromhex(hashed), public)


def _parse_body(body: str) -> Checkpoint:
    origin, *rest = body.removesuffix("\n").split("\n")
    if len(rest) < 2:
        raise BadCheckpoint("a checkpoint has three lines: the log's name, its size and its root")
    size, encoded, *extensions = rest
    root = _base64(encoded)
    if not origin or not all(extensions):
        raise BadCheckpoint("a checkpoint has no empty lines")
    if not _SIZE.fullmatch(size) or int(size) > SIZE_MAX:
        raise BadCheckpoint("the checkpoint's size is not a number of leaves")
    if root is None or len(root) != HASH_BYTES or (size == "0" and root != EMPTY_ROOT):
        raise BadCheckpoint("the checkpoint's root is not the root of a tree of that size")
    return Checkpoint(origin, int(size), root, tuple(extensions))


def _signatures(block: str) -> list[tuple[str, bytes]]:
    lines = block.split("\n")
    if lines.pop() or not 0 < len(lines) <= SIGNATURES_MAX:
        raise BadCheckpoint("a checkpoint ends with a blank line and its signatures, each on a line")
    found = []
    for line in lines:
        name, _, encoded = line.removeprefix(_MARK).partition(" ")
        signature = _base64(encoded)
        if not line.startswith(_MARK) or not is_name(name) or signature is None or len(signature) <= 4:
            raise BadCheckpoint("a signature line of the checkpoint cannot be read")
        found.append((name, signature))
    return found


def parse_and_verify(text: str | bytes, verifier: str | Verifier) -> Checkpoint:
    """Read a checkpoint and check that this key signed it for the log of the key's name.

    Signatures of keys that are not the verifier's are passed over, as the format wants: witnesses may add theirs.
    Raises BadVerifier, BadCheckpoint for text of another form, NotSigned when the key's signature is missing or wrong.
    """
    key = parse_verifier(verifier) if isinstance(verifier, str) else verifier
    if len(text) > CHECKPOINT_BYTES_MAX:
        raise BadCheckpoint("the text is too long for a checkpoint")
    try:
        note = text.decode() if isinstance(text, bytes) else text
    except UnicodeDecodeError:
        raise BadCheckpoint("the checkpoint is not UTF-8") from None
    if not _is_utf8(note) or any(c < " " and c != "\n" for c in note):
        raise BadCheckpoint("the checkpoint has characters that no checkpoint has")
    body, blank, block = note.rpartition("\n\n")
    if not blank:
        raise BadCheckpoint("a checkpoint ends with a blank line and its signatures, each on a line")
    mine = [s for name, s in _signatures(block) if name == key.name and s[:4] == key.key_id]
    if not mine:
        raise NotSigned(f"the checkpoint is not signed by {key.name} with the key {key.key_id.hex()}")
    public, signed = Ed25519PublicKey.from_public_bytes(key.public), f"{body}\n".encode()
    for signature in mine:
        try:
            public.verify(signature[4:], signed)
        except InvalidSignature:
            raise NotSigned(f"the signature of {key.name} does not fit the checkpoint: it was changed") from None
    found = _parse_body(f"{body}\n")
    if found.origin != key.name:
        raise NotSigned(f"the checkpoint is of the log {found.origin}, the key of {key.name}")
    return found
