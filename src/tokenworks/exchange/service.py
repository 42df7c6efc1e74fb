"""The ledger's service: tails every journal, applies it to the state and to the store, answers questions.

Exactly one process runs it on a data directory (a file lock). What it applies and how far it read commit together, so
it can die at any instant and go on where it was.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from itertools import islice
from pathlib import Path

from tokenworks.core.clock import Clock
from tokenworks.core.errors import LedgerRefused
from tokenworks.core.turns import TURN, in_turns
from tokenworks.core.units import NS_PER_S
from tokenworks.exchange import words
from tokenworks.exchange.batch import Batch, Decoded, decoded, receipts_of, uncollected
from tokenworks.exchange.budget import burn_order
from tokenworks.exchange.calendar import window_start_ns
from tokenworks.exchange.desk import LEASE_S
from tokenworks.exchange.journal import START, Journal, Position, read_from
from tokenworks.exchange.journals import ALL, Journals, lacks
from tokenworks.exchange.ledger import apply
from tokenworks.exchange.log.writer import LogKeeper
from tokenworks.exchange.state import CLOSED, ENDED, LIVE, Source
from tokenworks.exchange.store import open_store
from tokenworks.exchange.store.fits import refuse_unstorable
from tokenworks.exchange.store.log_tables import LogTables

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
        self._data, self.clock = data, clock
        self.journals = Journals(data)
        self._log: LogKeeper | None = None
        with ExitStack() as undo:
            undo.callback(self.journals.close)
            self.store = open_store(store or data / "ledger.db")
            undo.callback(self.store.close)
            self._load()
            undo.pop_all()
        self._journal: Journal | None = None
        self._epoch = 0
        self.directory_version = 0
        self._heard_ns: dict[Source, int] = {}
        self._steps: list[words.ReadTo] = []
        """In which order the gateways' journals were read since the last mark."""
        self._replaying = False

    def _load(self) -> None:
        self.store.reopen()
        self.state = self.store.load()
        self._sources = self.store.sources()
        self.journals.refuse_gap(WRITER, self._sources)
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
                values = {"size": self.log.size, "at_ns": self.clock.now_ns(), "note": note}
                self.store.write("save_checkpoint", [values])

    def close(self) -> None:
        """Release the store and the lock."""
        if self._journal is not None:
            self._journal.close()
        self.store.close()
        self.journals.close()

    # --- tailing -----------------------------------------------------------------------------------------------------

    def _found(self) -> list[Source]:
        """Journals on disk that may have more to tell, the ledger's own first: it orders the others."""
        found = [source for source in self.journals.there() if not self._over(source)]
        return sorted(found, key=lambda source: source[0] != WRITER)

    def _over(self, source: Source) -> bool:
        """Its writer is gone and all of it is in the store."""
        closed = self._sources.get(source, (START, LIVE))[1] == CLOSED
        return closed or (source[0] == WRITER and source[1] < self._epoch and source not in self.journals.damaged)

    def catch_up(self) -> int:
        """Apply everything the journals have; returns the number of records."""
        if self.store.lost:
            self._load()
        return sum(self._catch_up(source) for source in self._found())

    def advance(self) -> bool:
        """Apply a batch of each journal at most; returns whether there may be more. So much is done in a moment."""
        if self.store.lost:
            self._load()
        applied = [self._catch_up(source, once=True) for source in self._found()]
        return max(applied, default=0) >= BATCH_RECORDS_MAX

    def _catch_up(self, source: Source, until: tuple[int, int] | None = None, *, once: bool = False) -> int:
        applied = 0
        with uncollected():
            for batch in self._batches(source):
                if until is not None:
                    batch = [record for record in batch if record[1][:2] <= until]  # noqa: PLW2901
                for part in self._in_order(batch) if source[0] == WRITER else [batch] if batch else []:
                    self._apply_batch(part, source)
                    applied += len(part)
                if once or not batch or (until is not None and batch[-1][1][:2] >= until):
                    break
        return applied

    def _batches(self, source: Source) -> Iterator[list[Record]]:
        """All that a journal has beyond what is applied, until there is no more."""
        folder = self.journals.folder(source)
        while batch := list(islice(records := read_from(folder, self._position(source)), BATCH_RECORDS_MAX)):
            while batch:  # what was read at once is used up before more is read
                yield batch
                batch = list(islice(records, BATCH_RECORDS_MAX))

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
                if place in self._unread(payload):
                    raise lacks((place.writer, place.epoch))
        if start < len(batch):
            yield batch[start:]

    def _unread(self, payload: bytes) -> list[words.ReadTo]:
        command = decoded(payload) if b"MarkRead" in payload[:32] else None
        places = command.places if isinstance(command, words.MarkRead) else ()
        return [p for p in places if self._position((p.writer, p.epoch))[:2] < (p.segment, p.offset)]

    def _position(self, source: Source) -> Position:
        return self._sources.get(source, (START, LIVE))[0]

    def _apply_batch(self, batch: list[Record], source: Source) -> None:
        commands = [decoded(payload) for turn in in_turns(batch, 8 * TURN) for payload, _ in turn]
        try:
            self._take(batch, commands, source, None)
        except LedgerRefused:
            # Most likely a receipt comes again, which hardly ever happens: only then each is looked for beforehand.
            self._take(batch, commands, source, self.store.settled_among(receipts_of(commands)))
        if source[0] != WRITER and not self._replaying:
            self._note_step(source, batch[-1][1])

    def _take(
        self, records: list[Record], commands: list[Decoded], source: Source, settled_before: set[str] | None
    ) -> None:
        """One transaction. Raises LedgerRefused when it cannot be as it stands, and then nothing has happened."""
        standing = self._sources.get(source, (START, LIVE))[1]
        try:
            with self.store.transaction():
                batch = Batch(self.state, self.store, self.log.writer, source, self._txn, settled_before)
                for turn in in_turns([*zip(commands, records, strict=True)]):
                    for found, (payload, _) in turn:
                        batch.take(found, payload)
                batch.write()
                for name, over in batch.touched.ended.items():
                    self.store.save_position(*name, self._position(name), over)
                self.store.save_position(*source, records[-1][1], standing)
        except BaseException:
            self._load()  # the transaction was rolled back; so is the state
            raise
        self._txn = batch.txn
        self._sources |= {name: (self._position(name), over) for name, over in batch.touched.ended.items()}
        self._sources[source] = (records[-1][1], standing)

    def _note_step(self, source: Source, position: Position) -> None:
        step = words.ReadTo(writer=source[0], epoch=source[1], segment=position[0], offset=position[1])
        if self._steps and (self._steps[-1].writer, self._steps[-1].epoch) == source:
            self._steps[-1] = step
        else:
            self._steps.append(step)
        if len(self._steps) >= STEPS_MAX:
            self._append()

    # --- commands ----------------------------------------------------------------------------------------------------

    def submit(self, *commands: words.AnyCommand) -> None:
        """Check commands, write them to the ledger's own journal, apply them. Raises LedgerRefused: none happened."""
        self.catch_up()
        rehearsal = self.store.load()  # on a copy, so that a refusal leaves neither a record nor a change
        for command in commands:
            if isinstance(command, words.PlaceHold | words.Settle):
                raise LedgerRefused("holds and settlements come from a gateway's journal")
            refuse_unstorable(command)
            apply(rehearsal, command)
        self._append(*commands)
        self.directory_version += 1

    def _append(self, *commands: words.AnyCommand) -> None:
        """Write commands that are known to be good, behind a mark of how far the others were read."""
        if self._journal is None:
            for source in [name for name in self._found() if name[0] == WRITER]:
                self._catch_up(source)
                self.journals.make_safe(source, self._position(source).segment, dead=True)
            self._epoch = self.journals.next_epoch(WRITER, self._sources)
            self._journal = Journal(self.journals.folder((WRITER, self._epoch)), WRITER, self._epoch)
        if self._steps:
            self._journal.append(words.encode_command(words.MarkRead(places=tuple(self._steps))))
            self._steps.clear()
        for command in commands:
            self._journal.append(words.encode_command(command))
        for source in [name for name in self._found() if name[0] == WRITER]:
            self._catch_up(source)

    # --- gateways ----------------------------------------------------------------------------------------------------

    def hello(self, writer: str, epoch: int | None, lives_since: int | None = None) -> int:
        """A gateway starts (epoch None) or comes back to a restarted ledger with the epoch it has.

        A start ends the writer's older epochs: their journals are read to the end, what they held and did not settle
        returns, and the new epoch begins. The process may be one that has lived since an older epoch; then what is in
        flight there can still settle. Raises LedgerRefused for a dead epoch: that gateway must start anew.
        """
        if writer == WRITER or not writer or not all(c.isalnum() or c in "-_" for c in writer):
            raise LedgerRefused(f"{writer!r} is not a name for a gateway", hint="letters, digits, '-' or '_'")
        self.catch_up()
        if epoch is not None:
            if self._sources.get((writer, epoch), (START, CLOSED))[1] != LIVE:
                raise LedgerRefused(f"epoch {epoch} of {writer} has ended", hint="restart this gateway")
            self._heard_ns[writer, epoch] = self.clock.now_ns()
            return epoch
        for name, (_, standing) in sorted(self._sources.items()):
            over = CLOSED if lives_since is None or name[1] < lives_since else ENDED
            if name[0] == writer and standing < over:
                self.end_epoch(name, "its gateway started anew", over)
        new = self.journals.next_epoch(writer, self._sources)
        with self.store.transaction():
            self.store.save_position(writer, new, START, LIVE)
        self._sources[writer, new] = (START, LIVE)
        self._heard_ns[writer, new] = self.clock.now_ns()
        return new

    def end_epoch(self, source: Source, reason: str, standing: int) -> None:
        """Take the leases of an epoch back, and void what it holds. A damaged journal is not closed: it may be mended.

        What a killed process had written and not synced is made safe first, so that no power cut takes a final word.
        """
        if not self.journals.make_safe(source, self._position(source).segment, dead=standing == CLOSED):
            standing = ENDED
        now_ns, open_holds = self.clock.now_ns(), self.store.holds_of(*source)
        voids = [words.Void(receipt=receipt, reason=reason, at_ns=now_ns) for receipt in open_holds]
        end = words.EndEpoch(writer=source[0], epoch=source[1], reason=reason, at_ns=now_ns, closed=standing == CLOSED)
        self._append(*voids, end)

    def reclaim(self) -> None:
        """End the epochs of gateways that have been silent for longer than their leases hold, and a bound."""
        now_ns = self.clock.now_ns()
        for source, (_, standing) in list(self._sources.items()):
            if standing == LIVE and source[0] != WRITER:
                heard_ns = self._heard_ns.setdefault(source, now_ns)
                if now_ns - heard_ns > (LEASE_S + BOUND_S) * NS_PER_S:
                    self.catch_up()
                    self.end_epoch(source, "its gateway fell silent", ENDED)

    def lease(
        self, writer: str, epoch: int, wanted: Mapping[str, int], returned: Mapping[str, int]
    ) -> list[words.Lease]:
        """Give a gateway more of some counters and take back what it returns; the answer is its new allowances.

        It gets what a request needs, or a share of what is left when that is more. Raises LedgerRefused for an epoch
        that has ended: the gateway must say hello again.
        """
        self.advance()  # what is not applied yet is out on leases: it makes nothing free
        source, now_ns = (writer, epoch), self.clock.now_ns()
        if self._sources.get(source, (START, CLOSED))[1] != LIVE:
            raise LedgerRefused(f"epoch {epoch} of {writer} has ended", hint="say hello again")
        self._heard_ns[source] = now_ns
        has = self.state.leases.get(source, {})
        changed: list[words.Lease] = []
        for counter, allowance in returned.items():
            old = has.get(counter)
            if old is not None and old.used <= allowance < old.allowance:
                changed.append(words.Lease(counter=counter, window_ns=old.window_ns, allowance=allowance))
        for counter, need in wanted.items():
            window_ns = self._window_of(counter, now_ns)
            free = None if window_ns is None else self.state.free(counter, now_ns)
            if window_ns is None or free is None:
                continue
            old = has.get(counter)
            before = old.allowance if old is not None and old.window_ns == window_ns else 0
            more = max(0, min(free, max(need, free // SHARE)))
            if more or old is not None:
                changed.append(words.Lease(counter=counter, window_ns=window_ns, allowance=before + more))
        if any(c.counter not in has or not has[c.counter].says(c) for c in changed):
            self._append(words.GiveLease(writer=writer, epoch=epoch, leases=tuple(changed), at_ns=now_ns))
        # Only what the books now say was given: had the ledger refused, nothing was.
        given = self.state.leases.get(source, {})
        return [c for c in changed if c.counter in wanted and c.counter in given and given[c.counter].says(c)]

    def _window_of(self, counter: str, now_ns: int) -> int | None:
        kind, _, name = counter.partition(":")
        if kind == "g":
            return 0 if name in self.state.grants else None
        budget: words.Budget | None = self.state.budgets.get(name)
        return None if budget is None else window_start_ns(budget.window, now_ns)

    def prune(self, keep_bytes: int) -> int:
        """Let the oldest segments go that the store has for good, beyond so many bytes; returns how many went."""
        there = self.journals.there()
        booked = {each: ALL if self._over(each) else self._position(each).segment for each in there}
        return self.journals.prune(booked, keep_bytes)

    # --- answers -----------------------------------------------------------------------------------------------------

    def directory(self) -> words.Directory:
        """What a gateway must know."""
        now_ns = self.clock.now_ns()
        grants = [
            grant
            for grant in self.state.grants.values()
            if grant.ended_ns is None and (grant.expires_ns is None or grant.expires_ns > now_ns)
        ]
        return words.Directory(
            accounts=tuple(self.state.accounts.values()),
            budgets=tuple(self.state.budgets.values()),
            keys=tuple(self.state.keys.values()),
            grants=tuple(burn_order(grants)),
        )
