"""The ledger's service: tails every journal, applies it to the state and to the store, answers questions.

Exactly one process runs it on a data directory (a file lock). What it applies and how far it read commit together, so
it can die at any instant and go on where it was.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path

import msgspec

from tokenworks.core.clock import Clock
from tokenworks.core.errors import DataDirError, LedgerRefused
from tokenworks.core.units import NS_PER_S
from tokenworks.core.words import Work
from tokenworks.exchange.batch import Touched, decoded, moment_of, receipts_of, served_rows
from tokenworks.exchange.budget import burn_order
from tokenworks.exchange.calendar import window_start_ns
from tokenworks.exchange.desk import LEASE_S
from tokenworks.exchange.journal import START, Journal, Position, journal_folder, read_from
from tokenworks.exchange.ledger import apply, as_booked
from tokenworks.exchange.log.keeper import LogKeeper
from tokenworks.exchange.state import CLOSED, ENDED, LIVE, Entry, Source
from tokenworks.exchange.store import open_store
from tokenworks.exchange.store.fits import refuse_unstorable
from tokenworks.exchange.store.log_tables import LogTables
from tokenworks.exchange.words import (
    AnyCommand,
    Budget,
    CloseInterval,
    Directory,
    EndEpoch,
    GiveLease,
    Lease,
    MarkRead,
    PlaceHold,
    ReadTo,
    Settle,
    Void,
    decode_command,
    encode_command,
)

BATCH_RECORDS_MAX = 2_000
STEPS_MAX = 1_000
WRITER = "ledger"
SHARE = 8
"""A lease is at most this part of what is left, unless a single request needs more: little is ever stranded."""
BOUND_S = 5
"""How much longer than a lease's validity the ledger waits before it takes a silent gateway's leases back."""


Record = tuple[bytes, Position]


class LedgerService:
    """The one reader of all journals and the one writer of the store.

    Raises DataDirError when another process runs it, or when the store cannot be used.
    """

    def __init__(self, data: Path, clock: Clock, store: str | None = None) -> None:
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
            self.store = open_store(store or data / "ledger.db")
        except BaseException:
            os.close(self._lock)
            raise
        self._log: LogKeeper | None = None
        try:
            self._load()
        except BaseException:
            self.store.close()
            os.close(self._lock)
            raise
        self._journal: Journal | None = None
        self.directory_version = 0
        self._heard_ns: dict[Source, int] = {}
        self._steps: list[ReadTo] = []
        """In which order the gateways' journals were read since the last mark."""
        self._replaying = False

    def _load(self) -> None:
        self.store.reopen()
        self.state = self.store.load()
        self._sources = self.store.sources()
        self._txn = int(self.store.rows("last_txn")[0][0])
        if self._log is None:
            self._log = LogKeeper(self._data, LogTables(self.store))
        else:
            self._log.reload(LogTables(self.store))

    @property
    def log(self) -> LogKeeper:
        """The receipts log."""
        assert self._log is not None
        return self._log

    def checkpoint(self) -> None:
        """Sign the log as committed, when it has grown, and keep the note."""
        if self._steps:
            self._append()  # the order of what is signed must be known, or a view built again would be another log
        note = self.log.checkpoint()
        if note is not None:
            with self.store.transaction():
                values = {"size": self.log.size, "at_ns": self._clock.now_ns(), "note": note}
                self.store.write("save_checkpoint", [values])

    def close(self) -> None:
        """Release the store and the lock."""
        if self._journal is not None:
            self._journal.close()
        self.store.close()
        os.close(self._lock)

    # --- tailing -----------------------------------------------------------------------------------------------------

    def _found(self) -> Iterable[Source]:
        """Journals on disk that may have more to tell, the ledger's own first: it orders the others."""
        root = self._data / "journal"
        folders = [f for writer in root.iterdir() if writer.is_dir() for f in writer.iterdir()] if root.is_dir() else []
        names = [(folder.parent.name, int(folder.name)) for folder in folders if folder.name.isdigit()]
        for name in sorted(names, key=lambda name: (name[0] != WRITER, name)):
            if self._sources.get(name, (START, LIVE))[1] != CLOSED:
                yield name

    def catch_up(self) -> int:
        """Apply everything the journals have; returns the number of records."""
        if self.store.lost:
            self._load()
        return sum(self._catch_up(source) for source in list(self._found()))

    def _catch_up(self, source: Source, until: tuple[int, int] | None = None) -> int:
        applied = 0
        position = self._sources.get(source, (START, LIVE))[0]
        folder = journal_folder(self._data, *source)
        while batch := list(islice(read_from(folder, position), BATCH_RECORDS_MAX)):
            if until is not None:
                batch = [record for record in batch if record[1][:2] <= until]
            for part in self._in_order(batch) if source[0] == WRITER else [batch] if batch else []:
                self._apply_batch(part, source)
                applied += len(part)
            if not batch or (until is not None and batch[-1][1][:2] >= until):
                break
            position = batch[-1][1]
        return applied

    def _in_order(self, batch: list[Record]) -> Iterator[list[Record]]:
        """Cut the ledger's records where they had been preceded by others; read those first.

        Live, they were read long ago and nothing is cut. It matters when the view is built again from the journals.
        """
        start = 0
        for number, (payload, _) in enumerate(batch):
            for place in self._unread(payload):
                if number > start:
                    yield batch[start:number]
                    start = number
                self._replaying = True
                self._catch_up((place.writer, place.epoch), (place.segment, place.offset))
                self._replaying = False
        if start < len(batch):
            yield batch[start:]

    def _unread(self, payload: bytes) -> list[ReadTo]:
        if b"MarkRead" not in payload[:32]:
            return []
        try:
            command = decode_command(payload)
        except msgspec.DecodeError:
            return []
        places = command.places if isinstance(command, MarkRead) else ()
        return [p for p in places if self._position((p.writer, p.epoch))[:2] < (p.segment, p.offset)]

    def _position(self, source: Source) -> Position:
        return self._sources.get(source, (START, LIVE))[0]

    def _apply_batch(self, batch: list[Record], source: Source) -> None:
        standing = self._sources.get(source, (START, LIVE))[1]
        try:
            with self.store.transaction():
                touched = Touched()
                commands = [decoded(payload) for payload, _ in batch]
                settled = self.store.settled_among(receipts_of(commands))
                for found, (payload, _) in zip(commands, batch, strict=True):
                    try:
                        if isinstance(found, msgspec.DecodeError):
                            raise found
                        refuse_unstorable(found)
                        command = self._as_booked(found, source, settled)
                        entries = apply(self.state, command, source)
                    except (msgspec.DecodeError, LedgerRefused) as error:
                        self.store.save_anomaly(*source, str(error), payload)
                        continue
                    self._save(command, entries, source)
                    touched.add(self.state, command, entries, source)
                self.store.save_figures(self.state, touched.balances, touched.budgets)
                self.store.save_rights(self.state, touched.grants, touched.epochs)
                for name, over in touched.ended.items():
                    self.store.save_position(*name, self._position(name), over)
                self.log.writer.flush()
                self.store.save_position(*source, batch[-1][1], standing)
        except BaseException:
            self._load()  # the transaction was rolled back; so is the state
            raise
        self._sources |= {name: (self._position(name), over) for name, over in touched.ended.items()}
        self._sources[source] = (batch[-1][1], standing)
        if source[0] != WRITER and not self._replaying:
            self._note_step(source, batch[-1][1])

    def _note_step(self, source: Source, position: Position) -> None:
        step = ReadTo(writer=source[0], epoch=source[1], segment=position[0], offset=position[1])
        if self._steps and (self._steps[-1].writer, self._steps[-1].epoch) == source:
            self._steps[-1] = step
        else:
            self._steps.append(step)
        if len(self._steps) >= STEPS_MAX:
            self._append()

    def _as_booked(self, command: AnyCommand, source: Source, settled: set[str]) -> AnyCommand:
        """A receipt is written once (the state forgets settled ones, the store does not); late ones charge nobody."""
        if isinstance(command, PlaceHold) and command.receipt in settled:
            raise LedgerRefused(f"{command.receipt} was settled already", hint="a receipt's id is used once")
        if isinstance(command, Settle):
            receipt = command.settlement.receipt
            if receipt in settled:
                raise LedgerRefused(f"{receipt} was settled already", hint="a hold is settled or voided once")
            booked = Settle(settlement=as_booked(self.state, command.settlement, source))
            settled.add(receipt)
            return booked
        return command

    def _save(self, command: AnyCommand, entries: list[Entry], source: Source) -> None:
        self.store.save_command(self.state, command, *source)
        if isinstance(command, Settle):
            self.log.writer.settled(command.settlement)
            self.store.write("save_served", served_rows(self.state, command.settlement, entries))
        elif isinstance(command, CloseInterval):
            self.log.writer.metered(command.interval)
        if entries:
            self._txn += 1
            self.store.save_entries(self._txn, entries, moment_of(command))

    # --- commands ----------------------------------------------------------------------------------------------------

    def submit(self, *commands: AnyCommand) -> None:
        """Check commands, write them to the ledger's own journal, apply them. Raises LedgerRefused: none happened."""
        self.catch_up()
        rehearsal = self.store.load()  # on a copy, so that a refusal leaves neither a record nor a change
        for command in commands:
            if isinstance(command, PlaceHold | Settle):
                raise LedgerRefused("holds and settlements come from a gateway's journal")
            apply(rehearsal, command)
        self._append(*commands)
        self.directory_version += 1

    def _append(self, *commands: AnyCommand) -> None:
        """Write commands that are known to be good, behind a mark of how far the others were read."""
        if self._journal is None:
            epoch = self._next_epoch(WRITER)
            self._journal = Journal(journal_folder(self._data, WRITER, epoch), WRITER, epoch)
        if self._steps:
            self._journal.append(encode_command(MarkRead(places=tuple(self._steps))))
            self._steps.clear()
        for command in commands:
            self._journal.append(encode_command(command))
        for source in [name for name in self._found() if name[0] == WRITER]:
            self._catch_up(source)

    def _next_epoch(self, writer: str) -> int:
        folders = self._data / "journal" / writer
        on_disk = [int(f.name) for f in folders.iterdir() if f.name.isdigit()] if folders.is_dir() else []
        return max([0, *on_disk, *(e for w, e in self._sources if w == writer)]) + 1

    # --- gateways ----------------------------------------------------------------------------------------------------

    def hello(self, writer: str, epoch: int | None) -> int:
        """A gateway starts (epoch None) or comes back to a restarted ledger with the epoch it has.

        A start ends the writer's older epochs: their journals are read to the end, what they held and did not settle
        returns, and the new epoch begins. Raises LedgerRefused for a dead epoch: that gateway must start anew.
        """
        if writer == WRITER or not writer or not all(c.isalnum() or c in "-_" for c in writer):
            raise LedgerRefused(f"{writer!r} is not a name for a gateway", hint="letters, digits, '-' or '_'")
        self.catch_up()
        if epoch is not None:
            if self._sources.get((writer, epoch), (START, CLOSED))[1] != LIVE:
                raise LedgerRefused(f"epoch {epoch} of {writer} has ended", hint="restart this gateway")
            self._heard_ns[writer, epoch] = self._clock.now_ns()
            return epoch
        for name, (_, standing) in sorted(self._sources.items()):
            if name[0] == writer and standing != CLOSED:
                self.end_epoch(name, "its gateway started anew", CLOSED)
        new = self._next_epoch(writer)
        with self.store.transaction():
            self.store.save_position(writer, new, START, LIVE)
        self._sources[writer, new] = (START, LIVE)
        self._heard_ns[writer, new] = self._clock.now_ns()
        return new

    def end_epoch(self, source: Source, reason: str, standing: int) -> None:
        """Take the leases of an epoch back, and void what it holds."""
        now_ns, open_holds = self._clock.now_ns(), self.store.holds_of(*source)
        voids = [Void(receipt=receipt, reason=reason, at_ns=now_ns) for receipt in open_holds]
        end = EndEpoch(writer=source[0], epoch=source[1], reason=reason, at_ns=now_ns, closed=standing == CLOSED)
        self._append(*voids, end)

    def reclaim(self) -> None:
        """End the epochs of gateways that have been silent for longer than their leases hold, and a bound."""
        now_ns = self._clock.now_ns()
        for source, (_, standing) in list(self._sources.items()):
            if standing == LIVE and source[0] != WRITER:
                heard_ns = self._heard_ns.setdefault(source, now_ns)
                if now_ns - heard_ns > (LEASE_S + BOUND_S) * NS_PER_S:
                    self.catch_up()
                    self.end_epoch(source, "its gateway fell silent", ENDED)

    def lease(self, writer: str, epoch: int, wanted: Mapping[str, int], returned: Mapping[str, int]) -> list[Lease]:
        """Give a gateway more of some counters and take back what it returns; the answer is its new allowances.

        It gets what a request needs, or a share of what is left when that is more. Raises LedgerRefused for an epoch
        that has ended: the gateway must say hello again.
        """
        self.catch_up()
        source, now_ns = (writer, epoch), self._clock.now_ns()
        if self._sources.get(source, (START, CLOSED))[1] != LIVE:
            raise LedgerRefused(f"epoch {epoch} of {writer} has ended", hint="say hello again")
        self._heard_ns[source] = now_ns
        has = self.state.leases.get(source, {})
        changed: list[Lease] = []
        for counter, allowance in returned.items():
            old = has.get(counter)
            if old is not None and old.used <= allowance < old.allowance:
                changed.append(Lease(counter=counter, window_ns=old.window_ns, allowance=allowance))
        for counter, need in wanted.items():
            window_ns = self._window_of(counter, now_ns)
            free = None if window_ns is None else self.state.free(counter, now_ns)
            if window_ns is None or free is None:
                continue
            old = has.get(counter)
            before = old.allowance if old is not None and old.window_ns == window_ns else 0
            more = max(0, min(free, max(need, free // SHARE)))
            if more or old is not None:
                changed.append(Lease(counter=counter, window_ns=window_ns, allowance=before + more))
        if any(c.counter not in has or not has[c.counter].says(c) for c in changed):
            self._append(GiveLease(writer=writer, epoch=epoch, leases=tuple(changed), at_ns=now_ns))
        # Only what the books now say was given: had the ledger refused, nothing was.
        given = self.state.leases.get(source, {})
        return [c for c in changed if c.counter in wanted and c.counter in given and given[c.counter].says(c)]

    def _window_of(self, counter: str, now_ns: int) -> int | None:
        kind, _, name = counter.partition(":")
        if kind == "g":
            return 0 if name in self.state.grants else None
        budget: Budget | None = self.state.budgets.get(name)
        return None if budget is None else window_start_ns(budget.window, now_ns)

    # --- answers -----------------------------------------------------------------------------------------------------

    def directory(self) -> Directory:
        """What a gateway must know."""
        now_ns = self._clock.now_ns()
        grants = [
            grant
            for grant in self.state.grants.values()
            if grant.ended_ns is None and (grant.expires_ns is None or grant.expires_ns > now_ns)
        ]
        return Directory(
            accounts=tuple(self.state.accounts.values()),
            budgets=tuple(self.state.budgets.values()),
            keys=tuple(self.state.keys.values()),
            grants=tuple(burn_order(grants)),
        )

    def unmetered(self) -> list[Work]:
        """Work that was settled and that no closed interval has taken: a restarted site agent meters it."""
        return self.store.unmetered()
