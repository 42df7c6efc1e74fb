"""The ledger's service: tails every journal, applies it to the state and to the store, answers questions.

Exactly one process runs it on a data directory (a file lock). What it applies and how far it read commit together, so
it can die at any instant and go on where it was.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

import msgspec

from tokenworks.core.clock import Clock
from tokenworks.core.errors import DataDirError, LedgerRefused
from tokenworks.core.words import Work
from tokenworks.exchange.journal import START, Journal, Position, journal_folder, read_from
from tokenworks.exchange.ledger import Entry, apply
from tokenworks.exchange.store.sqlite import SqliteStore
from tokenworks.exchange.words import (
    AnyCommand,
    Directory,
    PlaceHold,
    SetBudget,
    Settle,
    Void,
    decode_command,
    encode_command,
)

BATCH_RECORDS_MAX = 2_000
WRITER = "ledger"


class LedgerService:
    """The one reader of all journals and the one writer of the store.

    Raises DataDirError when another process runs it, or when the store cannot be used.
    """

    def __init__(self, data: Path, clock: Clock) -> None:
        self._data, self._clock = data, clock
        try:
            self._lock = os.open(data / "ledger.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise DataDirError(f"cannot use {data}: {error.strerror}") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._lock)
            raise DataDirError("another process keeps the books of this data directory") from None
        try:
            self.store = SqliteStore(data / "ledger.db")
        except DataDirError:
            os.close(self._lock)
            raise
        self._load()
        self._journal: Journal | None = None
        self.directory_version = 0

    def _load(self) -> None:
        self.state = self.store.load()
        self._sources = self.store.sources()
        self._txn = int(self.store.rows("last_txn")[0][0])

    def close(self) -> None:
        """Release the store and the lock."""
        if self._journal is not None:
            self._journal.close()
        self.store.close()
        os.close(self._lock)

    # --- tailing -----------------------------------------------------------------------------------------------------

    def _found(self) -> Iterable[tuple[str, int]]:
        """Journals on disk that may have more to tell, the ledger's own first: accounts come before their requests."""
        root = self._data / "journal"
        folders = [f for writer in root.iterdir() if writer.is_dir() for f in writer.iterdir()] if root.is_dir() else []
        names = [(folder.parent.name, int(folder.name)) for folder in folders if folder.name.isdigit()]
        for name in sorted(names, key=lambda name: (name[0] != WRITER, name)):
            if not self._sources.get(name, (START, False))[1]:
                yield name

    def catch_up(self) -> int:
        """Apply everything the journals have; returns the number of records."""
        return sum(self._catch_up(writer, epoch) for writer, epoch in list(self._found()))

    def _catch_up(self, writer: str, epoch: int) -> int:
        applied = 0
        position = self._sources.get((writer, epoch), (START, False))[0]
        folder = self._folder(writer, epoch)
        while batch := list(islice(read_from(folder, position), BATCH_RECORDS_MAX)):
            if writer == WRITER:
                applied, batch = applied + self._read_voided(batch[0][0]), self._until_void(batch)
            self._apply_batch(batch, writer, epoch)
            position = batch[-1][1]
            applied += len(batch)
        return applied

    def _unknown_void(self, payload: bytes) -> Void | None:
        """A void of a hold that is in a journal not read yet: only when the view is built again from the journals."""
        with contextlib.suppress(msgspec.DecodeError):
            command = decode_command(payload)
            if isinstance(command, Void) and command.receipt not in self.state.holds:
                return command
        return None

    def _read_voided(self, payload: bytes) -> int:
        void = self._unknown_void(payload)
        return self._catch_up(void.writer, void.epoch) if void and void.writer not in ("", WRITER) else 0

    def _until_void(self, batch: list[tuple[bytes, Position]]) -> list[tuple[bytes, Position]]:
        later = (n for n, (payload, _) in enumerate(batch) if n and self._unknown_void(payload))
        return batch[: next(later, len(batch))]

    def _folder(self, writer: str, epoch: int) -> Path:
        return journal_folder(self._data, writer, epoch)

    def _apply_batch(self, batch: list[tuple[bytes, Position]], writer: str, epoch: int) -> None:
        try:
            with self.store.transaction():
                balances: set[tuple[str, str]] = set()
                budgets: set[str] = set()
                for payload, _ in batch:
                    try:
                        command = decode_command(payload)
                        self._refuse_settled(command)
                        entries = apply(self.state, command)
                    except (msgspec.DecodeError, LedgerRefused) as error:
                        self.store.save_anomaly(writer, epoch, str(error), payload)
                        continue
                    self._save(command, entries, writer, epoch)
                    balances.update((entry.book, entry.account) for entry in entries)
                    budgets.update(self._budgets_of(command))
                self.store.save_figures(self.state, balances, budgets)
                self.store.save_position(writer, epoch, batch[-1][1])
        except BaseException:
            self._load()  # the transaction was rolled back; so is the state
            raise
        self._sources[writer, epoch] = (batch[-1][1], False)

    def _refuse_settled(self, command: AnyCommand) -> None:
        """A receipt is written once. The state forgets settled ones; the store does not."""
        if isinstance(command, PlaceHold) and self.store.rows("is_receipt", id=command.receipt):
            raise LedgerRefused(f"{command.receipt} was settled already", hint="a receipt's id is used once")

    def _save(self, command: AnyCommand, entries: list[Entry], writer: str, epoch: int) -> None:
        self.store.save_command(self.state, command, writer, epoch)
        if entries:
            self._txn += 1
            self.store.save_entries(self._txn, entries, self._at_ns(command))

    def _budgets_of(self, command: AnyCommand) -> list[str]:
        if isinstance(command, SetBudget):
            return [command.budget.id]
        return self.state.path(command.settlement.budget) if isinstance(command, Settle) else []

    @staticmethod
    def _at_ns(command: AnyCommand) -> int:
        if isinstance(command, Settle):
            return command.settlement.at_ns
        return int(getattr(command, "at_ns", 0)) or int(getattr(getattr(command, "interval", None), "end_ns", 0))

    # --- commands ----------------------------------------------------------------------------------------------------

    def submit(self, *commands: AnyCommand) -> None:
        """Check commands, write them to the ledger's own journal, apply them. Raises LedgerRefused: none happened."""
        self.catch_up()
        rehearsal = self.store.load()  # on a copy, so that a refusal leaves neither a record nor a change
        for command in commands:
            if isinstance(command, PlaceHold | Settle):
                raise LedgerRefused("holds and settlements come from a gateway's journal")
            apply(rehearsal, command)
        if self._journal is None:
            epoch = self._next_epoch(WRITER)
            self._journal = Journal(self._folder(WRITER, epoch), WRITER, epoch)
        for command in commands:
            self._journal.append(encode_command(command))
        self.catch_up()
        self.directory_version += 1

    def _next_epoch(self, writer: str) -> int:
        folders = self._data / "journal" / writer
        on_disk = [int(f.name) for f in folders.iterdir() if f.name.isdigit()] if folders.is_dir() else []
        return max([0, *on_disk, *(e for w, e in self._sources if w == writer)]) + 1

    def hello(self, writer: str, epoch: int | None) -> int:
        """A gateway starts (epoch None) or comes back to a restarted ledger with the epoch it has.

        A start ends the writer's older epochs: their journals are read to the end, what they held and did not settle
        returns, and the new epoch begins. Raises LedgerRefused for a dead epoch: that gateway must start anew.
        """
        if writer == WRITER or not writer or not all(c.isalnum() or c in "-_" for c in writer):
            raise LedgerRefused(f"{writer!r} is not a name for a gateway", hint="letters, digits, '-' or '_'")
        self.catch_up()
        if epoch is not None:
            if self._sources.get((writer, epoch), (START, True))[1]:
                raise LedgerRefused(f"epoch {epoch} of {writer} has ended", hint="restart this gateway")
            return epoch
        for name, (position, dead) in sorted(self._sources.items()):
            if name[0] == writer and not dead:
                now_ns, open_holds = self._clock.now_ns(), self.store.holds_of(*name)
                if open_holds:
                    why = "its gateway ended"
                    self.submit(
                        *(Void(receipt=r, reason=why, at_ns=now_ns, writer=name[0], epoch=name[1]) for r in open_holds)
                    )
                with self.store.transaction():
                    self.store.save_position(*name, position, dead=True)
                self._sources[name] = (position, True)
        new = self._next_epoch(writer)
        with self.store.transaction():
            self.store.save_position(writer, new)
        self._sources[writer, new] = (START, False)
        return new

    # --- answers -----------------------------------------------------------------------------------------------------

    def directory(self) -> Directory:
        """What a gateway must know, with spending and holds as of now."""
        budgets = []
        for name, budget in self.state.budgets.items():
            tally = self.state.tallies[name]
            budgets.append(
                msgspec.structs.replace(
                    budget,
                    spent_ustu=tally.spent_ustu,
                    spent_nano=tally.spent_nano,
                    held_ustu=tally.held_ustu,
                    held_nano=tally.held_nano,
                )
            )
        return Directory(
            accounts=tuple(self.state.accounts.values()), budgets=tuple(budgets), keys=tuple(self.state.keys.values())
        )

    def unmetered(self) -> list[Work]:
        """Work that was settled and that no closed interval has taken: a restarted site agent meters it."""
        return self.store.unmetered()
