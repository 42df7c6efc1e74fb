"""Bundles: the file that a customer gets, and its verification without asking anybody.

A bundle has receipts of one account, as shown, with their leaves, inclusion proofs, the signed checkpoint that covers
them and the verifier key. What a verifier concludes is a ``Verdict`` in words; a bundle never fails halfway.
"""

from __future__ import annotations

import base64
import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from tokenworks.exchange.log import figures
from tokenworks.exchange.log.checkpoint import BadCheckpoint, BadVerifier, Checkpoint, Verifier, parse_and_verify
from tokenworks.exchange.log.errors import BadBundle
from tokenworks.exchange.log.merkle import HASH_BYTES, PROOF_MAX, leaf_hash, verify_consistency, verify_inclusion
from tokenworks.exchange.log.plain import Object, encode, flat, hashed, read, shaped, unhex

FORMAT = "tokenworks receipts 1"
BUNDLE_BYTES_MAX = 256 << 20
WRONG_MAX = 100
_ENTRY: dict[str, type] = {"index": int, "leaf": dict, "proof": list}


class Verdict(NamedTuple):
    """What was checked. ``wrong`` is empty when all of it holds; its first line is the first difference."""

    ok: bool
    checked: tuple[str, ...]
    wrong: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    """What a reader should know and is no fault."""
    unproven: tuple[str, ...] = ()
    """Figures that are shown and that no leaf states."""
    complete: bool = False
    """The bundle has every settlement of the account between its first and its last."""
    checkpoint: Checkpoint | None = None


class Proven(NamedTuple):
    """A leaf with its place in the log."""

    position: int
    leaf: Object
    proof: tuple[bytes, ...]

    def entry(self) -> Object:
        """As it stands in a bundle."""
        return {"index": self.position, "leaf": self.leaf, "proof": [each.hex() for each in self.proof]}


class Shown(NamedTuple):
    """A receipt as people read it, with the leaves that prove it."""

    view: Object
    settlement: Proven
    energy: tuple[Proven, ...] = ()

    def entry(self) -> Object:
        """As it stands in a bundle."""
        energy = [part.entry() for part in self.energy]
        return {"view": self.view, "settlement": self.settlement.entry(), "energy": energy}


class Bundle(NamedTuple):
    """Receipts of one account under one checkpoint."""

    account_salt: bytes
    checkpoint: str
    verifier: str
    receipts: tuple[Shown, ...]

    def text(self) -> str:
        """The file. Raises BadBundle when a view has what a bundle cannot hold, such as a fraction."""
        made = {
            "format": FORMAT,
            "verifier": self.verifier,
            "checkpoint": self.checkpoint,
            "account_salt": self.account_salt.hex(),
            "receipts": [each.entry() for each in self.receipts],
        }
        text = encode(made).decode()
        parse(text)  # a file that its reader would refuse is not handed out
        return text + "\n"


def _proven(entry: Any, kind: str) -> Proven:
    found = shaped(entry, f"an {kind} entry" if kind == "energy" else f"a {kind} entry", _ENTRY)
    proof = [unhex(each, HASH_BYTES) for each in found["proof"][: PROOF_MAX + 1]]
    hashes = tuple(each for each in proof if each is not None)
    if len(hashes) != len(found["proof"]):
        raise BadBundle(f"the proof of leaf {found['index']} is no list of hashes")
    leaf = figures.energy(found["leaf"]) if kind == "energy" else figures.settlement(found["leaf"])
    return Proven(found["index"], leaf, hashes)


def parse(text: str | bytes) -> Bundle:
    """Read a bundle's form; nothing is verified. Raises BadBundle."""
    if len(text) > BUNDLE_BYTES_MAX:
        raise BadBundle("the bundle is too long", hint="export fewer receipts at a time")
    top: dict[str, type] = dict.fromkeys(("format", "verifier", "checkpoint", "account_salt"), str)
    found = shaped(read(text), "a bundle", top | {"receipts": list})
    salt = unhex(found["account_salt"], HASH_BYTES)
    if found["format"] != FORMAT or salt is None or not found["receipts"]:
        raise BadBundle(f"the file is not a bundle in the format {FORMAT!r}")
    receipts = []
    for each in found["receipts"]:
        part = shaped(each, "a receipt of the bundle", {"view": dict, "settlement": dict, "energy": list})
        energy = tuple(_proven(entry, "energy") for entry in part["energy"])
        receipts.append(Shown(part["view"], _proven(part["settlement"], "settlement"), energy))
    return Bundle(salt, found["checkpoint"], found["verifier"], tuple(receipts))


def _not_in_log(shown: Shown, checkpoint: Checkpoint) -> Iterator[str]:
    for kind, part in (("settlement", shown.settlement), *(("energy record", e) for e in shown.energy)):
        if part.leaf["log"] != checkpoint.origin:
            yield f"its {kind} is a leaf of the log {part.leaf['log']!r}, not of {checkpoint.origin!r}"
        leaf = leaf_hash(hashed(part.leaf))
        if not verify_inclusion(leaf, part.position, checkpoint.size, part.proof, checkpoint.root):
            yield f"its {kind} is not leaf {part.position} of the log under this checkpoint"


def _wrong_energy(shown: Shown) -> Iterator[str]:
    places = [(e.leaf["site"], e.leaf["start_ns"], e.leaf.get("corrects")) for e in shown.energy]
    if len(set(places)) != len(places):
        yield "an interval of its energy stands twice"
    if any(e.leaf["receipt"] != shown.settlement.leaf["receipt"] for e in shown.energy):
        yield "an energy record is of another receipt"


def _wrong_order(ordered: Sequence[Proven]) -> Iterator[str]:
    """What is wrong with the account's settlements together; they come in the order of account_seq."""
    if len({part.leaf["account"] for part in ordered}) > 1:
        yield "the bundle mixes accounts"
    if len({part.leaf["currency"] for part in ordered}) > 1:
        yield "the bundle mixes currencies"
    yield from figures.chain([part.leaf for part in ordered])
    for before, after in itertools.pairwise(ordered):
        if after.position <= before.position:
            yield f"settlement {after.leaf['account_seq']} of the account stands in the log before the one it follows"


def verify_bundle(text: str | bytes, verifier: str | None = None, *, require_complete: bool = False) -> Verdict:
    """Check a bundle offline: signature, inclusion, figures, running totals.

    ``verifier`` is the log's published key; without it the bundle's own key is used, and a note says what that is
    worth. ``require_complete`` makes a gap in the account's settlements a fault. Raises BadBundle for text that is no
    bundle and BadVerifier for a given key that is none; everything else is in the verdict.
    """
    bundle = parse(text)
    try:
        checkpoint = parse_and_verify(bundle.checkpoint, bundle.verifier)
    except (BadCheckpoint, BadVerifier) as error:
        return Verdict(False, (), (f"the bundle's own key: {error.message}",))
    if verifier is not None:
        try:
            parse_and_verify(bundle.checkpoint, verifier)
        except BadCheckpoint as error:
            return Verdict(False, (), (f"the key that was given: {error.message}",))
    checked = [f"the checkpoint of {checkpoint.size} leaves is signed by {checkpoint.origin}"]
    wrong, notes = list[str](), list[str]()

    def check(found: Iterator[str], words: str) -> None:
        faults = list(itertools.islice(found, WRONG_MAX))
        wrong.extend(faults)
        if not faults:
            checked.append(words)

    receipts = [
        (f"receipt {str(shown.view.get('id'))[:64]!r}", shown, flat(shown.view), [part.leaf for part in shown.energy])
        for shown in bundle.receipts
    ]
    check(
        (f"{name}: {fault}" for name, shown, *_ in receipts for fault in _not_in_log(shown, checkpoint)),
        f"{sum(1 + len(energy) for *_, energy in receipts)} leaves of {len(receipts)} receipts are in the log under it",
    )
    salt = bundle.account_salt
    check(
        (
            f"{name}: {fault}"
            for name, shown, view, energy in receipts
            for fault in (*_wrong_energy(shown), *figures.differences(view, shown.settlement.leaf, energy, salt))
        ),
        "the figures shown are those of the leaves",
    )
    ordered = sorted((shown.settlement for shown in bundle.receipts), key=lambda part: part.leaf["account_seq"])
    check(_wrong_order(ordered), "the account's running totals follow from the charges")
    whole, said = _span([part.leaf for part in ordered])
    if not whole:
        (wrong if require_complete else notes).append(said)
    elif not wrong:
        checked.append(said)
    if verifier is None:
        notes.append(f"checked with the key in the bundle itself, {bundle.verifier}: compare it with the published one")
    if waiting := sum(not any(leaf["ended"] for leaf in energy) for *_, energy in receipts):
        notes.append(f"{waiting} of the receipts have no final energy record in the log yet")
    unproven = {
        path for _, shown, view, energy in receipts for path in figures.unproven(view, shown.settlement.leaf, energy)
    }
    return Verdict(
        ok=not wrong, checked=tuple(checked), wrong=tuple(wrong[:WRONG_MAX]), notes=tuple(notes),
        unproven=tuple(sorted(unproven)), complete=whole and not wrong, checkpoint=checkpoint,
    )  # fmt: skip


def _span(leaves: list[Object]) -> tuple[bool, str]:
    """Whether the settlements from the first to the last are all here, and what to say of it."""
    first, last = leaves[0], leaves[-1]
    span = f"settlements {first['account_seq']} to {last['account_seq']} of the account"
    if missing := figures.gaps(leaves):
        return False, f"the bundle has not all {span}: {', '.join(missing[:10])} missing"
    charge = figures.charged(first)
    ustu, nano = last["cum_ustu"] - first["cum_ustu"] + charge[0], last["cum_nano"] - first["cum_nano"] + charge[1]
    return True, f"{span} are all here and sum to {ustu} uSTU and {nano} nano-{first['currency']}"


def proof_text(proof: Sequence[bytes]) -> str:
    """A consistency proof as a file: one hash a line in base64."""
    return "".join(base64.b64encode(each).decode() + "\n" for each in proof)


def parse_proof(text: str) -> tuple[bytes, ...]:
    """Read such a file. Raises BadBundle."""
    lines = text.split("\n")
    found = []
    try:
        for line in lines[:-1] if not lines[-1] else lines:
            found.append(base64.b64decode(line, validate=True))
            if len(found[-1]) != HASH_BYTES or base64.b64encode(found[-1]).decode() != line or len(found) > PROOF_MAX:
                raise ValueError
    except ValueError:
        raise BadBundle("the consistency proof is not a list of hashes, one a line in base64") from None
    return tuple(found)


def audit(old: str | bytes, new: str | bytes, proof: Sequence[bytes], verifier: str | Verifier) -> Verdict:
    """Whether the log of one checkpoint goes on from another's. Raises BadVerifier; all else is in the verdict."""
    found = []
    for which, text in (("old", old), ("new", new)):
        try:
            found.append(parse_and_verify(text, verifier))
        except BadCheckpoint as error:
            return Verdict(False, (), (f"the {which} checkpoint: {error.message}",))
    before, after = found
    checked = (f"both checkpoints are signed by {after.origin}",)
    if after.size < before.size:
        wrong = f"the new checkpoint has {after.size} leaves, fewer than the {before.size} of the old one"
    elif after.size == before.size and after.root != before.root:
        wrong = f"two signed checkpoints of {after.size} leaves have different roots: the log shows two histories"
    elif not verify_consistency(before.size, before.root, after.size, after.root, proof):
        wrong = f"the proof does not show that {after.size} leaves begin with the {before.size} of the old checkpoint"
    else:
        words = f"the log went from {before.size} to {after.size} leaves and changed none of the first {before.size}"
        return Verdict(True, (*checked, words), complete=True, checkpoint=after)
    return Verdict(False, checked, (wrong,), checkpoint=after)
