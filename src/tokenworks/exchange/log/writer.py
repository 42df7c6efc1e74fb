"""The log's writer: the ledger calls it inside its transaction, for every settlement and every closed interval.

Nothing here commits. ``flush`` hands everything to the store's port; when the transaction is rolled back the writer is
thrown away and a new one reads its place from the store. Sign a checkpoint only after the commit is on disk.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import msgspec

from tokenworks.core.errors import DataDirError, NotFound
from tokenworks.core.files import create_private, read_private, write_private
from tokenworks.core.ids import Entropy, random_bytes
from tokenworks.core.words import Interval
from tokenworks.exchange.log import checkpoint as notes
from tokenworks.exchange.log import leaves
from tokenworks.exchange.log.bundle import Bundle, Proven, Shown
from tokenworks.exchange.log.checkpoint import Checkpoint, SigningKey, parse_and_verify, sign
from tokenworks.exchange.log.errors import LogForked, NotInCheckpoint
from tokenworks.exchange.log.merkle import Nodes, Tree, consistency_proof, inclusion_proof, leaf_hash, root_at
from tokenworks.exchange.log.plain import Object
from tokenworks.exchange.words import Settlement


class LogStore(Nodes, Protocol):
    """What the log keeps, in the ledger's database and in its transactions."""

    def size(self) -> int:
        """How many leaves there are."""

    def totals(self, account: str) -> leaves.Totals:
        """Where the account stands; ``Totals()`` for one without settlements."""

    def put_totals(self, totals: Mapping[str, leaves.Totals]) -> None:
        """Where these accounts stand now."""

    def put_leaves(self, rows: Sequence[leaves.LeafRow]) -> None:
        """Keep what leaves are made of; the leaves themselves can be made again, byte by byte."""

    def leaves_of(self, receipt: str) -> list[leaves.LeafRow]:
        """A receipt's leaves in the order of their position."""


class LogWriter:
    """Turns what the ledger applied into leaves. Raises NodeMissing when the store lost the tree's edge."""

    def __init__(self, log: leaves.Identity, store: LogStore) -> None:
        self._log, self._store = log, store
        self._tree = Tree.load(store, store.size())
        self._rows: list[leaves.LeafRow] = []
        self._hashes: list[bytes] = []
        self._totals: dict[str, leaves.Totals] = {}

    @property
    def size(self) -> int:
        """Leaves in the log, those not flushed included."""
        return self._tree.size + len(self._hashes)

    def settled(self, settlement: Settlement) -> int:
        """Add a settlement; returns its index in the log. It is the next of its account."""
        before = self._totals.get(settlement.account)
        if before is None:
            before = self._store.totals(settlement.account)
        after = self._totals[settlement.account] = before.after(settlement)
        row = leaves.Settled(self.size, settlement, after)
        self._add(row, leaves.settlement_leaf(self._log, settlement, after))
        return row.position

    def metered(self, interval: Interval) -> None:
        """Add the energy records of a closed interval."""
        for line in interval.requests:
            self._add(leaves.Metered(self.size, line, interval), leaves.energy_leaf(self._log, line, interval))

    def _add(self, row: leaves.LeafRow, leaf: leaves.Leaf) -> None:
        self._rows.append(row)
        self._hashes.append(leaf_hash(leaves.commitment(leaf)))

    def flush(self) -> None:
        """Put everything since the last flush into the store. Once per transaction, before it commits.

        What waits here is bounded by the batch of records that the ledger applies in one transaction.
        """
        self._store.put_leaves(self._rows)
        self._tree.extend(self._hashes)
        self._tree.flush(self._store)
        self._store.put_totals(self._totals)
        self._rows, self._hashes, self._totals = [], [], {}

    def checkpoint(self) -> Checkpoint:
        """What to sign. Only after the commit: a signed size whose leaves are lost is a log that lied."""
        if self._rows:
            raise ValueError("a checkpoint is made of committed leaves only")
        return Checkpoint(self._log.origin, self._tree.size, self._tree.root())


def refuse_fork(store: LogStore, last: str, key: SigningKey) -> Checkpoint:
    """Check at start that the log on disk still begins with the checkpoint that was signed last; returns that.

    Raises LogForked when it does not: a view built again in another order, or a backup that was too old, must not go on
    under the same name. Raises BadCheckpoint when the text is not one of this key.
    """
    signed = parse_and_verify(last, key.verifier())
    if store.size() < signed.size or root_at(store, signed.size) != signed.root:
        raise LogForked(
            f"the receipts log has {store.size()} leaves and does not begin with the {signed.size} that were signed",
            hint="restore ledger.db from a backup that is not older, or begin a new log under a new name",
        )
    return signed


def export(
    log: leaves.Identity, store: LogStore, account: str, views: Sequence[Object], key: SigningKey,
    checkpoint: Checkpoint,
) -> str:  # fmt: skip
    """The bundle of these receipts of one account, by their owner's views, under a checkpoint that covers all of it.

    Raises NotInCheckpoint for a receipt with a leaf beyond it, or with none: sign again, then export.
    """
    receipts = []
    for view in views:
        rows = store.leaves_of(view["id"])
        if not rows or view["account"] != account:
            raise NotFound(f"the receipts log has no {view['id']!r} of {account!r}")
        if rows[-1].position >= checkpoint.size:
            raise NotInCheckpoint(hint="try again in a second")
        settled, metered = [], []
        for row in rows:
            if isinstance(row, leaves.Settled):
                settled.append(_proven(store, row.position, leaves.settlement_leaf(log, *row[1:]), checkpoint))
            else:
                metered.append(_proven(store, row.position, leaves.energy_leaf(log, *row[1:]), checkpoint))
        if len(settled) != 1:
            raise NotInCheckpoint(hint="its energy is there, its settlement is not: try again in a second")
        receipts.append(Shown(dict(view), settled[0], tuple(metered)))
    salt = leaves.account_salt(log.secret, account)
    return Bundle(salt, sign(checkpoint, key), key.verifier().text(), tuple(receipts)).text()


def _proven(store: LogStore, position: int, leaf: leaves.Leaf, checkpoint: Checkpoint) -> Proven:
    """A leaf that was made again, with its proof. Raises LogForked when it is not the one that was made first."""
    if store.get(0, position) != leaf_hash(leaves.commitment(leaf)):
        raise LogForked(f"leaf {position} of the receipts log is not what the store says was booked")
    return Proven(position, msgspec.to_builtins(leaf), tuple(inclusion_proof(store, position, checkpoint.size)))


class LogKeeper:
    """The log of one data directory: its name, secret and signing key, and the checkpoints it signs.

    Made once, readable only by the owner. The last checkpoint also lies beside the database, so that a database that
    was replaced by an older or another one is noticed and does not go on under the same name. Raises DataDirError, or
    LogForked when the log is not what was signed.
    """

    def __init__(self, data: Path, tables: LogStore, entropy: Entropy = random_bytes) -> None:
        self._data = data
        name_file, secret_file, key_file = data / "log.name", data / "log.secret", data / "log.key"
        if not name_file.exists():
            if tables.size():
                raise DataDirError(f"{name_file} is missing but the log has leaves", hint="restore log.* from a backup")
            for left in (secret_file, key_file):  # of a first start that was cut short: nothing was signed with them
                left.unlink(missing_ok=True)
            name = f"tokenworks.local/{entropy(6).hex()}"
            leaves.new_secret(secret_file, entropy)
            notes.save_key(key_file, notes.new_key(name, entropy))
            create_private(name_file, name.encode())
        name = read_private(name_file).decode()
        self.key: SigningKey = notes.load_key(key_file, name)
        self._identity = leaves.Identity(name, leaves.load_secret(secret_file))
        self.size = -1
        """Leaves under the last checkpoint."""
        self.reload(tables)
        write_private(data / "log.pub", f"{self.key.verifier().text()}\n".encode())

    def reload(self, tables: LogStore) -> None:
        """Begin again from what is committed."""
        last = self._data / "log.checkpoint"
        if last.exists():
            self.size = refuse_fork(tables, last.read_text(), self.key).size
        self._tables = tables
        self.writer = LogWriter(self._identity, tables)

    def checkpoint(self) -> str | None:
        """Sign what is committed; None when it is signed already."""
        if self.writer.size == self.size:
            return None
        note = sign(self.writer.checkpoint(), self.key)
        write_private(self._data / "log.checkpoint", note.encode())
        self.size = self.writer.size
        return note

    def proof(self, old: int, new: int) -> list[bytes]:
        """The consistency proof between two sizes."""
        return list(consistency_proof(self._tables, old, new))

    def bundle(self, account: str, views: Sequence[Object]) -> str:
        """What a customer takes away and checks offline."""
        return export(self._identity, self._tables, account, views, self.key, self.writer.checkpoint())
