"""The receipts log's place in the ledger's database: it is written in the ledger's transactions, with what it logs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from tokenworks.exchange.log.leaves import Totals
from tokenworks.exchange.log.merkle import Node
from tokenworks.exchange.log.writer import LeafRow
from tokenworks.exchange.store.base import Store


class LogTables:
    """The port ``log.writer.LogStore`` over a store."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._known: dict[str, Totals] = {}
        """Totals of accounts, so that a batch does not ask the database for each of them."""

    def get(self, level: int, index: int) -> bytes | None:
        """The hash of a complete subtree."""
        rows = self._store.rows("log_node", level=level, place=index)
        return bytes(rows[0][0]) if rows else None

    def put(self, nodes: Iterable[Node]) -> None:
        """Keep complete subtrees."""
        self._store.write("save_node", [node._asdict() for node in nodes])

    def size(self) -> int:
        """How many leaves there are."""
        return int(self._store.rows("log_size")[0][0])

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
        """Keep leaves."""
        self._store.write("save_leaf", [row._asdict() for row in rows])

    def leaves_of(self, receipt: str) -> list[LeafRow]:
        """A receipt's leaves in the order of their position."""
        return [LeafRow(p, r, kind, bytes(doc)) for p, r, kind, doc in self._store.rows("leaves_of", receipt=receipt)]
