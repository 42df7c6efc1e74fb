"""The log's writer: the ledger calls it inside its transaction, for every settlement and every closed interval.

Nothing here commits. ``flush`` hands everything to the store's port; when the transaction is rolled back the writer is
thrown away and a new one reads its place from the store. Sign a checkpoint only after the commit is on disk.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from tokenworks.core.errors import DataDirError, NotFound
from tokenworks.core.words import Interval
from tokenworks.exchange.log.bundle import Bundle, Proven, Shown
from tokenworks.exchange.log.checkpoint import Checkpoint, SigningKey, parse_and_verify, sign
from tokenworks.exchange.log.leaves import (
    Identity,
    Leaf,
    LeafRow,
    Metered,
    Settled,
    Totals,
    account_salt,
    canonical,
    commitment,
    energy_leaf,
    settlement_leaf,
)
from tokenworks.exchange.log.merkle import Nodes, Tree, inclusion_proof, leaf_hash, root_at
from tokenworks.exchange.log.plain import Object
from tokenworks.exchange.words import Settlement


class NotInCheckpoint(NotFound):
    """The receipt is not in a signed checkpoint of the log yet."""

    code = "not_in_checkpoint"


class LogForked(DataDirError):
    """The receipts log on disk is not the one that was signed."""

    code = "log_forked"


class LogStore(Nodes, Protocol):
    """What the log keeps, in the ledger's database and in its transactions."""

    def size(self) -> int:
        """How many leaves there are."""
        ...

    def totals(self, account: str) -> Totals:
        """Where the account stands; ``Totals()`` for one without settlements."""
        ...

    def put_totals(self, totals: Mapping[str, Totals]) -> None:
        """Where these accounts stand now."""
        ...

    def put_leaves(self, rows: Sequence[LeafRow]) -> None:
        """Keep what leaves are made of; the leaves themselves can be made again, byte by byte."""
        ...

    def leaves_of(self, receipt: str) -> list[LeafRow]:
        """A receipt's leaves in the order of their position."""
        ...


class LogWriter:
    """Turns what the ledger applied into leaves. Raises NodeMissing when the store lost the tree's edge."""

    def __init__(self, log: Identity, store: LogStore) -> None:
        self._log, self._store = log, store
        self._tree = Tree.load(store, store.size())
        self._rows: list[LeafRow] = []
        self._hashes: list[bytes] = []
        self._totals: dict[str, Totals] = {}

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
        row = Settled(self.size, settlement, after)
        self._add(row, settlement_leaf(self._log, settlement, after))
        return row.position

    def metered(self, interval: Interval) -> None:
        """Add the energy records of a closed interval."""
        for line in interval.requests:
            self._add(Metered(self.size, line, interval), energy_leaf(self._log, line, interval))

    def _add(self, row: LeafRow, leaf: Leaf) -> None:
        self._rows.append(row)
        self._hashes.append(leaf_hash(commitment(canonical(leaf))))

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
    log: Identity, store: LogStore, account: str, views: Sequence[Object], key: SigningKey, checkpoint: Checkpoint
) -> str:
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
            if isinstance(row, Settled):
                settled.append(_proven(store, row.position, settlement_leaf(log, *row[1:]), checkpoint))
            else:
                metered.append(_proven(store, row.position, energy_leaf(log, *row[1:]), checkpoint))
        if len(settled) != 1:
            raise NotInCheckpoint(hint="its energy is there, its settlement is not: try again in a second")
        receipts.append(Shown(dict(view), settled[0], tuple(metered)))
    salt = account_salt(log.secret, account)
    return Bundle(salt, sign(checkpoint, key), key.verifier().text(), tuple(receipts)).text()


def _proven(store: LogStore, position: int, leaf: Leaf, checkpoint: Checkpoint) -> Proven:
    """A leaf that was made again, with its proof. Raises LogForked when it is not the one that was made first."""
    if store.get(0, position) != leaf_hash(commitment(canonical(leaf))):
        raise LogForked(f"leaf {position} of the receipts log is not what the store says was booked")
    return Proven(position, leaf, tuple(inclusion_proof(store, position, checkpoint.size)))
