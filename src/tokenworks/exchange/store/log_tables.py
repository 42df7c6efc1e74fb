"""The receipts log's place in the ledger's database: it is written in the ledger's transactions, with what it logs.

Of the tree, the leaves' hashes are kept, and of the subtrees above them those of every eighth level, 256 to a tile; the
hashes between are made again from a tile when a proof needs them. Leaves are made again from the receipts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from tokenworks.exchange.log.leaves import LeafRow, Metered, Settled, Totals
from tokenworks.exchange.log.merkle import HASH_BYTES, Run, node_hash
from tokenworks.exchange.store.base import Store
from tokenworks.exchange.words import decode_settlement

TILE_LEVELS = 8
TILE = 1 << TILE_LEVELS


class LogTables:
    """The port ``log.writer.LogStore`` over a store. Made anew after a transaction was rolled back."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._known: dict[str, Totals] = {}
        """Totals of accounts, so that a batch does not ask the database for each of them."""
        self._growing: dict[int, tuple[int, bytes]] = {}
        """By level, the last tile and its place: the one that the next hashes go to."""

    def get(self, level: int, index: int) -> bytes | None:
        """The hash of a complete subtree."""
        deep, above = divmod(level, TILE_LEVELS)
        place, first = divmod(index << above, TILE)
        tile = self._tile(deep, place)[first * HASH_BYTES : (first + (1 << above)) * HASH_BYTES]
        hashes = [tile[at : at + HASH_BYTES] for at in range(0, len(tile), HASH_BYTES)]
        if len(hashes) < 1 << above:
            return None
        while len(hashes) > 1:
            hashes = [node_hash(left, right) for left, right in zip(hashes[::2], hashes[1::2], strict=True)]
        return hashes[0]

    def _tile(self, level: int, place: int) -> bytes:
        rows = self._store.rows("log_tile", level=level, place=place)
        return bytes(rows[0][0]) if rows else b""

    def put(self, runs: Iterable[Run]) -> None:
        """Keep complete subtrees."""
        for level, index, hashes in runs:
            deep, above = divmod(level, TILE_LEVELS)
            if above:
                continue
            place, first = divmod(index, TILE)
            known, before = self._growing.get(deep, (-1, b""))
            if known != place:
                before = self._tile(deep, place) if first else b""
            data = before[: first * HASH_BYTES] + b"".join(hashes)
            tiles = [data[at : at + TILE * HASH_BYTES] for at in range(0, len(data), TILE * HASH_BYTES)]
            rows = [{"level": deep, "place": place + n, "hashes": tile} for n, tile in enumerate(tiles)]
            self._store.write("save_tile", rows)
            self._growing[deep] = place + len(tiles) - 1, tiles[-1]

    def size(self) -> int:
        """How many leaves there are."""
        rows = self._store.rows("last_tile")
        return int(rows[0][0]) * TILE + len(rows[0][1]) // HASH_BYTES if rows else 0

    def totals(self, account: str) -> Totals:
        """Where the account stands."""
        if account not in self._known:
            rows = self._store.rows("log_account", account=account)
            self._known[account] = Totals(*rows[0]) if rows else Totals()
        return self._known[account]

    def put_totals(self, totals: Mapping[str, Totals]) -> None:
        """Where these accounts stand now."""
        self._known.update(totals)
        self._store.write("save_log_account", [{"account": a, **t._asdict()} for a, t in sorted(totals.items())])

    def put_leaves(self, rows: Sequence[LeafRow]) -> None:
        """Keep receipts and their energy, with their leaves' places."""
        self._store.save_receipts([row for row in rows if isinstance(row, Settled)])
        self._store.save_energy([row for row in rows if isinstance(row, Metered)])

    def leaves_of(self, receipt: str) -> list[LeafRow]:
        """What a receipt's leaves are made of, in the order of their position."""
        found: list[LeafRow] = [
            Settled(position, decode_settlement(data), Totals(*totals))
            for position, *totals, data in self._store.rows("settled_leaf", receipt=receipt)
        ]
        return sorted([*found, *self._store.energy_of(receipt)], key=lambda row: row.position)
