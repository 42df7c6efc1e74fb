from __future__ import annotations

import hashlib
import hmac
import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support import exchange as support
from tests.support.memory_log import MemoryLog

from tokenworks.cli.log import log_audit, receipt_verify
from tokenworks.core.errors import BadRequest, NotFound, TokenworksError
from tokenworks.core.words import (
    BUCKETS,
    Candidate,
    Decision,
    Delivery,
    EnergyLine,
    Interval,
    Provenance,
    Usage,
)
from tokenworks.exchange.log import plain
from tokenworks.exchange.log.bundle import Bundle, audit, parse, parse_proof, proof_text, verify_bundle
from tokenworks.exchange.log.checkpoint import BadVerifier, new_key, sign
from tokenworks.exchange.log.errors import BadBundle, LogForked, NotInCheckpoint
from tokenworks.exchange.log.leaves import Identity, Metered, Settled, Totals, canonical, energy_leaf, settlement_leaf
from tokenworks.exchange.log.merkle import consistency_proof
from tokenworks.exchange.log.stated import Stated, Used
from tokenworks.exchange.log.writer import LogWriter, export, refuse_fork
from tokenworks.exchange.receipt import receipt_view
from tokenworks.exchange.words import Settlement, SiteFacts

NAME = "tokens.example.org/log"
LOG = Identity(NAME, bytes(range(32)))
KEY = new_key(NAME, random.Random(1).randbytes)
VERIFIER = KEY.verifier().text()
SITE = SiteFacts(site="home", entity="Acme Power", place="Lyon", jurisdiction="FR", facts={})


def settled(n: int, account: str = "acme", *, decided: bool = True, **changes: Any) -> Settlement:
    chosen = Candidate(replica="r", site="home", model="served", terms_nano={}, total_nano=1)
    fields: dict[str, Any] = {
        "receipt": f"rcpt_{account}_{n}",
        "account": account,
        "budget": "team",
        "key": "k",
        "endpoint": "chat",
        "model_asked": "any",
        "model_served": "served",
        "usage": Usage(input=3, output=40 + n),
        "ustu": 2_500_000 + n,
        "nano": 130 + n,
        "loss_ustu": 500_000,
        "loss_nano": 30,
        "rate_card": "card-1",
        "price_book": "book-1",
        "currency": "USD",
        "decision": Decision(chosen=chosen) if decided else None,
        "delivery": Delivery(ending="complete", chunks=4),
        "work": None,
        "estimate": None,
        "held_ustu": 2_000_000,
        "held_nano": 100,
        "hold_ns": 7_000,
        "arrived_ns": 0,
        "at_ns": 1_763_696_760_123_000_000 + n * 1_000_000_000,
        "entity": "Acme Power",
    }
    return Settlement(**(fields | changes))


def interval(start_ns: int, *lines: EnergyLine, corrects: int = 0) -> Interval:
    figures = {"end_ns": start_ns + 60, "meter_mj": 0, "meter": Provenance.MEASURED, "corrects": corrects}
    return support.interval("home", start_ns, lines, **figures)


def line(receipt: str, mj: int, *, ended: bool, carbon: int | None = 7, water_ul: int | None = None) -> EnergyLine:
    return EnergyLine(
        receipt=receipt,
        energy_mj=mj,
        energy_nano=1,
        overhead_mj=mj // 2,
        overhead_nano=1,
        carbon_ug=carbon,
        slice_ns=mj * 1_700,
        device_nano=1,
        water_ul=water_ul,
        ended=ended,
    )


def view_of(settlement: Settlement, intervals: list[Interval]) -> dict[str, Any]:
    records = [Metered(0, each, i) for i in intervals for each in i.requests if each.receipt == settlement.receipt]
    view = receipt_view(settlement, records, SITE, operator=False)
    found: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(view))
    return found


class Grid:
    """Three receipts of acme and one of another account in a log of some more leaves."""

    def __init__(self) -> None:
        self.store = MemoryLog()
        writer = LogWriter(LOG, self.store)
        for n in range(5):
            writer.settled(settled(n, "other"))
        writer.flush()
        self.old = sign(writer.checkpoint(), KEY)
        self.settled = [settled(n) for n in range(3)]
        self.intervals = [
            interval(0, line("rcpt_acme_0", 1_001, ended=False), line("rcpt_acme_1", 500, ended=True, carbon=None)),
            interval(60, line("rcpt_acme_0", 77, ended=True)),
            interval(0, line("rcpt_acme_0", -300, ended=False, water_ul=8), corrects=1),
        ]
        writer.settled(self.settled[0])
        writer.metered(self.intervals[0])
        writer.settled(self.settled[1])
        writer.flush()
        for later in self.intervals[1:]:
            writer.metered(later)
        writer.settled(self.settled[2])
        writer.flush()
        self.head = writer.checkpoint()

    def views(self) -> list[dict[str, Any]]:
        return [
            view_of(each, [i for i in self.intervals if any(r.receipt == each.receipt for r in i.requests)])
            for each in self.settled
        ]

    def bundle(self, which: tuple[int, ...] = (0, 1, 2)) -> str:
        views = self.views()
        return export(LOG, self.store, "acme", [views[n] for n in which], KEY, self.head)


GRID = Grid()
TEXT = GRID.bundle()


def view_at(bundle: dict[str, Any], which: int = 0) -> Any:
    return bundle["receipts"][which]["view"]


def changed(change: Callable[[dict[str, Any]], object], text: str = TEXT) -> str:
    found = json.loads(text)
    change(found)
    return json.dumps(found)


def test_leaf_bytes() -> None:
    """A settlement's leaf is these bytes: sorted, no spaces, integers and text only; its commitment is in the tree."""
    leaf = settlement_leaf(LOG, settled(0), Totals(1, 2_000_000, 100))
    doc = canonical(leaf)
    salt = hashlib.blake2b(b"rcpt_acme_0", key=LOG.secret, digest_size=16, person=b"settlement").hexdigest()
    account = hmac.new(hmac.digest(LOG.secret, b"account\0acme", "sha256"), b"acme", "sha256").hexdigest()
    receipt = hashlib.sha256(b"rcpt_acme_0").hexdigest()
    assert doc.decode() == (
        f'{{"account":"{account}","account_seq":1,"at_ns":1763696760123000000,"certainty":"exact","cum_nano":100,'
        f'"cum_ustu":2000000,"currency":"USD","entity":"Acme Power","kind":"settlement","log":"{NAME}","loss_nano":30,'
        f'"loss_ustu":500000,"model":"served","model_asked":"any","nano":130,"price_book":"book-1","rate_card":"card-1",'
        f'"receipt":"{receipt}","salt":"{salt}","site":"home","usage":{{"input":3,"output":40}},"ustu":2500000,"v":1}}'
    )
    tree_leaf = hashlib.sha256(b"\0" + hashlib.sha256(doc).digest()).digest()
    assert GRID.store.get(0, 5) == tree_leaf


@given(st.lists(st.integers(0, 9), min_size=len(BUCKETS), max_size=len(BUCKETS)))
def test_a_leaf_states_each_bucket_in_canonical_order(counts: list[int]) -> None:
    """Whatever was used; and the types whose order saves the sorting are the sorted ones."""
    usage = Usage(**dict(zip(BUCKETS, counts, strict=True)))  # type: ignore[arg-type]  # the buckets are integers
    doc = canonical(settlement_leaf(LOG, msgspec.structs.replace(settled(0), usage=usage), Totals()))
    assert json.loads(doc)["usage"] == dict(usage.counts())
    assert doc == plain.encode(json.loads(doc))
    for kind in (Stated, Used):
        assert list(kind.__struct_fields__) == sorted(kind.__struct_fields__)


TREES = st.recursive(
    st.integers(-(1 << 63), (1 << 63) - 1) | st.text() | st.booleans(),
    lambda below: st.dictionaries(st.text(st.characters(max_codepoint=126)), below),
)


@given(TREES)
def test_both_encoders_agree(value: Any) -> None:
    """The ledger's fast encoder and the verifier's plain one write the same bytes, and reading gives the value back."""
    assert canonical(value) == plain.encode(value)
    assert plain.read(canonical(value)) == value


def test_salts_differ_and_hide() -> None:
    """Every leaf has its own salt, and no leaf names an account or a receipt."""
    rows = GRID.store.leaves
    made = [settlement_leaf(LOG, *r[1:]) if isinstance(r, Settled) else energy_leaf(LOG, *r[1:]) for r in rows]
    docs = [canonical(leaf) for leaf in made]
    assert len({json.loads(doc)["salt"] for doc in docs}) == len(docs)
    assert not any(b"acme" in doc or b"rcpt_" in doc for doc in docs)
    assert json.loads(docs[0])["account"] != json.loads(docs[5])["account"]


def test_an_honest_bundle() -> None:
    """What was exported verifies, in words, with the published key and with its own."""
    verdict = verify_bundle(TEXT, VERIFIER)
    assert verdict.ok, verdict.wrong
    assert verdict.complete
    assert verdict.checkpoint == GRID.head
    assert verdict.checked == (
        f"the checkpoint of {GRID.head.size} leaves is signed by {NAME}",
        "7 leaves of 3 receipts are in the log under it",
        "the figures shown are those of the leaves",
        "the account's running totals follow from the charges",
        "settlements 1 to 3 of the account are all here and sum to 6000003 uSTU and 303 nano-USD",
    )
    assert verdict.notes == ("1 of the receipts have no final energy record in the log yet",)
    assert "budget" in verdict.unproven
    assert not {"ustu", "price_nano", "usage.output", "energy_mj", "ran_at.site"} & set(verdict.unproven)
    own = verify_bundle(TEXT.encode())
    assert own.ok
    assert "the key in the bundle itself" in own.notes[0]


def test_gaps() -> None:
    """A missing receipt between two others is named, and is a fault when completeness is wanted."""
    text = GRID.bundle((0, 2))
    verdict = verify_bundle(text, VERIFIER)
    assert (verdict.ok, verdict.complete) == (True, False)
    assert verdict.notes[0] == "the bundle has not all settlements 1 to 3 of the account: 2 missing"
    strict = verify_bundle(text, VERIFIER, require_complete=True)
    assert (strict.ok, strict.wrong) == (False, verdict.notes[:1])
    assert verify_bundle(GRID.bundle((1,)), VERIFIER, require_complete=True).ok


def test_a_log_that_miscounts_is_caught() -> None:
    """Signed, included and shown as stated, but the running totals do not add up: its own leaves convict the log."""

    class Cheating(MemoryLog):
        def totals(self, account: str) -> Totals:
            found = super().totals(account)
            return found._replace(nano=found.nano + 1) if found.seq == 1 else found

    store = Cheating()
    writer = LogWriter(LOG, store)
    for n in range(3):
        writer.settled(GRID.settled[n])
        writer.flush()
    views = [view_of(each, []) for each in GRID.settled]
    verdict = verify_bundle(export(LOG, store, "acme", views, KEY, writer.checkpoint()), VERIFIER)
    assert verdict.wrong == ("the running totals of settlement 2 are not those before it plus its charge",)


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("ustu", 1, "ustu is 1, the leaf says 2000000"),
        ("ustu", True, "ustu is True"),
        ("price", "0.00 USD", "price is '0.00 USD', the leaf says '0.0000001 USD'"),
        ("price_nano", None, "price_nano is None"),
        ("at", "2025-11-21T03:46:00.124Z", "at is"),
        ("id", "rcpt_acme_1", "the leaf is of another"),
        ("account", "other", "the leaf is of another"),
        ("currency", "EUR", "currency is 'EUR'"),
        ("status", "provisional", "status is 'provisional', the leaf says 'final'"),
        ("energy_mj", 5, "energy_mj is 5, the leaf says 1166"),
        ("carbon_ug", 13, "carbon_ug is 13, the leaf says 21"),
        ("usage.output", 39, "usage.output is 39"),
        ("usage.image", 1, "the leaf has no such figure"),
        ("model.served", "cheap", "model.served is 'cheap'"),
        ("ran_at.site", "sea", "ran_at.site is 'sea'"),
        ("ran_at.entity", "Other Power", "ran_at.entity is 'Other Power'"),
    ],
)
def test_a_wrong_figure_is_named(path: str, value: Any, words: str) -> None:
    """Any figure that is not the leaf's is the first difference of the verdict."""

    def change(found: dict[str, Any]) -> None:
        at = found["receipts"][0]["view"]
        *groups, name = path.split(".")
        for group in groups:
            at = at[group]
        at[name] = value

    verdict = verify_bundle(changed(change), VERIFIER)
    assert not verdict.ok
    assert words in verdict.wrong[0]
    assert "the figures shown are those of the leaves" not in verdict.checked


def energy_of(found: dict[str, Any], n: int) -> list[Any]:
    entries: list[Any] = found["receipts"][n]["energy"]
    return entries


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda b: energy_of(b, 0).pop(1), "no leaf has the energy record of the request's end"),
        (lambda b: energy_of(b, 0).pop(0), "energy_mj is 1166, the leaf says -335"),
        (lambda b: energy_of(b, 0).pop(), "energy_mj is 1166, the leaf says 1616"),
        (lambda b: energy_of(b, 0).append(energy_of(b, 0)[2]), "stands twice"),
        (lambda b: energy_of(b, 0)[2]["leaf"].update(corrects=2), "is not leaf 10 of the log"),
        (lambda b: view_at(b)["records"][2].update(energy_mj=-3), "records.2.energy_mj is -3, the leaf says -300"),
        (lambda b: view_at(b)["records"].append({"energy_mj": 1}), "records.3.energy_mj is 1, the leaf has no such"),
        (lambda b: view_at(b).pop("records"), "records.0.site is 'absent', the leaf says 'home'"),
        (lambda b: view_at(b)["lines"][1].update(water_ul=9), "lines.site.water_ul is 9, the leaf says 8"),
        (lambda b: view_at(b)["lines"][2].update(embodied_ug=9), "lines.device.embodied_ug is 9, the leaves do not"),
        (lambda b: energy_of(b, 0).append(energy_of(b, 0)[0]), "stands twice"),
        (lambda b: energy_of(b, 2).append(energy_of(b, 1)[0]), "of another receipt"),
        (lambda b: b["receipts"].append(b["receipts"][0]), "stands twice, or has no number"),
        (lambda b: b["receipts"][1]["view"].update(carbon_ug=3), "carbon_ug is 3, the leaves do not know it"),
        (lambda b: b["receipts"][2]["view"].update(status="final"), "no leaf has the energy record"),
        (lambda b: b["receipts"][0]["settlement"].update(position=4), None),
        (lambda b: b["receipts"][0]["settlement"].update(index=4), "is not leaf 4 of the log"),
        (lambda b: b["receipts"][0]["settlement"]["proof"].pop(), "is not leaf 5 of the log"),
        (lambda b: b["receipts"][0]["settlement"]["leaf"].update(nano=1), "is not leaf 5 of the log"),
        (lambda b: b["receipts"][0]["settlement"]["leaf"].update(v=2), None),
        (lambda b: b["receipts"][0]["settlement"]["leaf"].update(extra=2), None),
        (lambda b: b["receipts"][0]["view"].update({"": {"ustu": 1}}), None),
        (lambda b: b["receipts"][0]["view"]["lines"].append({"layer": "power", "energy_mj": 1}), None),
        (lambda b: b.update(receipts=[]), None),
        (lambda b: b.update(format="tokenworks receipts 2"), None),
        (lambda b: b.update(account_salt="00" * 32), "account is 'acme', and the leaf is of another"),
    ],
)
def test_other_changes_are_refused(change: Callable[[dict[str, Any]], object], words: str | None) -> None:
    """Leaves taken away, added, swapped or edited: a verdict that says so, or no bundle at all."""
    text = changed(change)
    if words is None:
        with pytest.raises(BadBundle):
            verify_bundle(text, VERIFIER)
    else:
        verdict = verify_bundle(text, VERIFIER)
        assert not verdict.ok
        assert any(words in wrong for wrong in verdict.wrong), verdict.wrong


def test_bits_of_a_bundle() -> None:
    """Two bits of every byte, changed one at a time: refused, unless the figure is one that is named as unproven."""
    data = GRID.bundle((0,)).encode()
    figures, unproven = plain.flat(parse(data).receipts[0].view), set(verify_bundle(data, VERIFIER).unproven)
    passed = 0
    for place in range(len(data)):
        for bit in (place % 8, (place * 3 + 5) % 8):
            wrong = data[:place] + bytes((data[place] ^ 1 << bit,)) + data[place + 1 :]
            try:
                verdict = verify_bundle(wrong, VERIFIER)
            except TokenworksError:
                continue
            if verdict.ok:
                passed += 1
                now = plain.flat(parse(wrong).receipts[0].view)
                different = {path for path in figures.keys() | now.keys() if figures.get(path) != now.get(path)}
                assert different
                assert different <= unproven | set(verdict.unproven), different
    assert passed < len(data) // 4


def test_keys() -> None:
    """A bundle is not believed with another key, and a key that is none is an error of its own."""
    other = new_key(NAME, random.Random(2).randbytes)
    assert "the key that was given" in verify_bundle(TEXT, other.verifier().text()).wrong[0]
    forged = changed(lambda b: b.update(verifier=other.verifier().text()))
    assert "the bundle's own key" in verify_bundle(forged, VERIFIER).wrong[0]
    resigned = changed(lambda b: b.update(verifier=other.verifier().text(), checkpoint=sign(GRID.head, other)))
    assert verify_bundle(resigned).ok, "it fits together"
    assert not verify_bundle(resigned, VERIFIER).ok
    with pytest.raises(BadVerifier):
        verify_bundle(TEXT, "nonsense")


JSONISH = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda below: st.lists(below, max_size=3) | st.dictionaries(st.text(), below, max_size=3),
    max_leaves=8,
)


def spots(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at, *(spot for name, each in pairs for spot in spots(each, (*at, name)))]


SPOTS = spots(json.loads(TEXT))[1:]


@settings(max_examples=400)
@given(st.sampled_from(SPOTS), JSONISH)
def test_any_value_anywhere(spot: tuple[Any, ...], value: Any) -> None:
    """Whatever stands wherever in a bundle, the outcome is a verdict or one of our errors."""
    found = json.loads(TEXT)
    at = found
    for name in spot[:-1]:
        at = at[name]
    at[spot[-1]] = value
    try:
        verdict = verify_bundle(json.dumps(found), VERIFIER)
    except TokenworksError:
        return
    for words in (*verdict.wrong, *verdict.notes, *verdict.unproven, *verdict.checked):
        assert words.isprintable()


@given(st.text() | st.binary() | JSONISH.map(json.dumps))
def test_reading_survives_anything(text: str | bytes) -> None:
    """Noise is no bundle and no proof, and never anything but our error."""
    with pytest.raises(BadBundle):
        verify_bundle(text)
    if isinstance(text, str) and text:
        with pytest.raises(BadBundle):
            parse_proof(text + "x")


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"a":' * 5_000, "1" * 5_000, "1.5", "NaN", '{"a":1,"a":2}', '"\\ud800"', "", "null"]
)
def test_hostile_json(text: str) -> None:
    """Deep nesting, huge numbers, fractions, doubled names: refused quickly."""
    with pytest.raises(BadBundle):
        parse(text)


def test_audit() -> None:
    """A log that grew is told from one that was rewritten, shrank, or shows two histories."""
    proof = consistency_proof(GRID.store, 5, GRID.head.size)
    new = sign(GRID.head, KEY)
    good = audit(GRID.old, new, parse_proof(proof_text(proof)), VERIFIER)
    assert good.ok
    assert good.checked[1] == f"the log went from 5 to {GRID.head.size} leaves and changed none of the first 5"
    assert audit(new, new, (), VERIFIER).ok
    assert "does not show" in audit(GRID.old, new, proof[:-1], VERIFIER).wrong[0]
    assert "fewer" in audit(new, GRID.old, proof, VERIFIER).wrong[0]
    forked = sign(GRID.head._replace(root=bytes(32)), KEY)
    assert "two histories" in audit(new, forked, (), VERIFIER).wrong[0]
    assert "the old checkpoint" in audit("x", new, (), VERIFIER).wrong[0]
    assert "the new checkpoint" in audit(GRID.old, new[:-9], (), VERIFIER).wrong[0]


def test_rollback_and_restart() -> None:
    """A writer thrown away before its flush leaves no trace; the next one makes the same log as if nothing had been."""
    store = MemoryLog()
    first = LogWriter(LOG, store)
    first.settled(settled(0))
    first.flush()
    first.settled(settled(1))
    with pytest.raises(ValueError, match="committed"):
        first.checkpoint()
    second = LogWriter(LOG, store)
    assert second.settled(settled(1)) == 1
    second.settled(settled(2))
    second.flush()
    straight = LogWriter(LOG, MemoryLog())
    for n in range(3):
        straight.settled(settled(n))
    straight.flush()
    assert second.checkpoint() == straight.checkpoint()
    assert store.accounts == {"acme": Totals(3, 6_000_003, 303)}


def test_a_fork_is_noticed_at_start() -> None:
    """A log that does not begin with what was signed last is not gone on with."""
    assert refuse_fork(GRID.store, GRID.old, KEY).size == 5
    store = MemoryLog()
    writer = LogWriter(LOG, store)
    for n in (1, 0, 2, 3):
        writer.settled(settled(n, "other"))
    writer.flush()
    with pytest.raises(LogForked):
        refuse_fork(store, GRID.old, KEY)
    writer.settled(settled(4, "other"))
    writer.flush()
    with pytest.raises(LogForked):
        refuse_fork(store, GRID.old, KEY)


def test_export_refuses_what_it_cannot_prove() -> None:
    """Unknown receipts, another account's, and those beyond the checkpoint are errors, not bundles that fail later."""
    views = GRID.views()
    with pytest.raises(NotInCheckpoint):
        export(LOG, GRID.store, "acme", views, KEY, GRID.head._replace(size=6))
    with pytest.raises(NotFound):
        export(LOG, GRID.store, "other", views, KEY, GRID.head)
    with pytest.raises(NotFound):
        export(LOG, GRID.store, "acme", [views[0] | {"id": "rcpt_none"}], KEY, GRID.head)
    with pytest.raises(BadBundle):
        export(LOG, GRID.store, "acme", [views[0] | {"share": 1.5}], KEY, GRID.head)
    store = MemoryLog()
    writer = LogWriter(LOG, store)
    writer.metered(GRID.intervals[1])
    writer.flush()
    with pytest.raises(NotInCheckpoint, match="settlement"):
        export(LOG, store, "acme", views[:1], KEY, writer.checkpoint())


def test_a_request_that_no_site_served() -> None:
    """Without a decision there is no site in the leaf, and none may be shown."""
    store = MemoryLog()
    writer = LogWriter(LOG, store)
    lone = settled(0, decided=False)
    writer.settled(lone)
    writer.flush()
    text = export(LOG, store, "acme", [view_of(lone, [])], KEY, writer.checkpoint())
    assert verify_bundle(text, VERIFIER).ok
    shown = changed(lambda b: b["receipts"][0]["view"].update(ran_at={"site": "home"}), text)
    assert "no such figure" in verify_bundle(shown, VERIFIER).wrong[0]


def test_the_verifier_needs_no_store() -> None:
    """Checking a bundle imports neither the database nor the ledger, nor the JSON library that wrote the leaves."""
    heavy = "{'apsw', 'msgspec', 'psycopg', 'tokenworks.exchange.service', 'tokenworks.exchange.words'}"
    code = f"import sys, tokenworks.exchange.log.bundle; sys.exit(repr({heavy} & sys.modules.keys()))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.stderr.strip() == "set()"


def test_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The commands answer by words and by status: 0 when all holds, 1 when something is wrong."""
    good, bad, key, old, new, proof = (tmp_path / n for n in ("good", "bad", "key", "old", "new", "proof"))
    good.write_text(TEXT)
    bad.write_text(changed(lambda b: b["receipts"][0]["view"].update(ustu=1)))
    key.write_text(VERIFIER + "\n")
    old.write_text(GRID.old)
    new.write_text(sign(GRID.head, KEY))
    proof.write_text(proof_text(consistency_proof(GRID.store, 5, GRID.head.size)))
    assert receipt_verify(good, key=str(key), complete=True) == 0
    assert "the receipts are as the log has them" in capsys.readouterr().out
    assert receipt_verify(bad, key=VERIFIER) == 1
    assert "WRONG  receipt 'rcpt_acme_0': ustu is 1, the leaf says 2000000" in capsys.readouterr().out
    assert receipt_verify(good, as_json=True) == 0
    assert json.loads(capsys.readouterr().out)["checkpoint"]["size"] == GRID.head.size
    assert log_audit(old, new, key=VERIFIER, proof=proof) == 0
    assert log_audit(old, new, key=VERIFIER) == 1
    assert "do not rely on this" in capsys.readouterr().out
    with pytest.raises(BadRequest, match="cannot read"):
        receipt_verify(tmp_path / "none")
    proof.write_bytes(b"\xff")
    with pytest.raises(BadRequest, match="UTF-8"):
        log_audit(old, new, key=VERIFIER, proof=proof)


def test_a_bundle_is_read_as_it_was_made() -> None:
    """The text of a parsed bundle is the text."""
    assert isinstance(parse(TEXT), Bundle)
    assert parse(TEXT).text() == TEXT
