"""The receipts log's ports in memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from tokenworks.exchange.log.leaves import LeafRow, Settled, Totals
from tokenworks.exchange.log.merkle import Run


class MemoryNodes:
    """Nodes in a dictionary."""

    def __init__(self) -> None:
        self.kept: dict[tuple[int, int], bytes] = {}

    def get(self, level: int, index: int) -> bytes | None:
        return self.kept.get((level, index))

    def put(self, runs: Iterable[Run]) -> None:
        for level, first, hashes in runs:
            self.kept.update({(level, first + n): hashed for n, hashed in enumerate(hashes)})


class MemoryLog(MemoryNodes):
    """A ``LogStore`` without transactions."""

    def __init__(self) -> None:
        super().__init__()
        self.leaves: list[LeafRow] = []
        self.accounts: dict[str, Totals] = {}

    def size(self) -> int:
        return len(self.leaves)

    def totals(self, account: str) -> Totals:
        return self.accounts.get(account, Totals())

    def put_totals(self, totals: Mapping[str, Totals]) -> None:
        self.accounts.update(totals)

    def put_leaves(self, rows: Sequence[LeafRow]) -> None:
        self.leaves.extend(rows)

    def leaves_of(self, receipt: str) -> list[LeafRow]:
        return [row for row in self.leaves if _told(row) == receipt]


def _told(row: LeafRow) -> str:
    return row.settlement.receipt if isinstance(row, Settled) else row.line.receipt
