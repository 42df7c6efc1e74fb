"""A batch of journal records on its way into the store: decoding it, and remembering what it touched."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import msgspec

from tokenworks.core.errors import LedgerRefused
from tokenworks.exchange import words
from tokenworks.exchange.command import Command
from tokenworks.exchange.ledger import as_booked, count, post, step
from tokenworks.exchange.log.writer import LogWriter
from tokenworks.exchange.settlement import DAY_NS, line_of
from tokenworks.exchange.state import CLOSED, ENDED, Entry, Source, State
from tokenworks.exchange.store import Store
from tokenworks.exchange.store.fits import refuse_unstorable

Decoded = words.AnyCommand | msgspec.DecodeError
"""A record of a journal: a command, or why it is none."""


class Touched:
    """What a batch changed beside its own rows: each is written once at its end."""

    def __init__(self, settled: Iterable[str] = ()) -> None:
        self.settled = set(settled)
        """Receipts that are settled, as far as is known."""
        self.placed: set[str] = set()
        """Receipts for which something was held."""
        self.sums: dict[tuple[str, str], int] = {}
        """By book and account, what is to be added to the balances."""
        self.leaves: set[str] = set()
        """Budgets that changed, and with them all above them."""
        self.grants: set[str] = set()
        self.epochs: set[Source] = set()
        self.ended: dict[Source, int] = {}
        """Epochs that ended, and their standing since."""

    def budgets(self, state: State) -> set[str]:
        """All budgets that changed."""
        return {node for leaf in self.leaves for node in state.path(leaf)}

    def add(self, command: Command, entries: list[Entry], source: Source) -> None:
        """Note what one command changed."""
        if isinstance(command, words.PlaceHold):
            self.placed.add(command.receipt)
            return
        sums = self.sums
        for book, account, amount, _ in entries:
            key = book, account
            sums[key] = sums.get(key, 0) + amount
        match command:
            case words.Settle(settlement=settled):
                self.settled.add(settled.receipt)
                self.epochs.add(source)
                self.leaves.add(settled.budget)
                for burn in settled.burned:
                    self.grants.add(burn.grant)
            case words.ExtendHold(receipt=receipt):
                self.placed.add(receipt)
            case words.SetBudget(budget=budget):
                self.leaves.add(budget.id)
            case words.GiveLease() | words.EndEpoch():
                self.epochs.add((command.writer, command.epoch))
                if isinstance(command, words.EndEpoch):
                    self.ended[command.writer, command.epoch] = CLOSED if command.closed else ENDED
            case _:
                self.grants.update(_grants_of(command))


class Batch:
    """Commands of one journal in one transaction of the store: applied one by one, written together at the end."""

    def __init__(
        self, state: State, store: Store, log: LogWriter, source: Source, txn: int, settled: set[str] | None
    ) -> None:
        self._state, self._store, self._log, self._source = state, store, log, source
        self._looked = settled is not None
        self.touched = Touched(settled or ())
        self.txn = txn
        """Number of the last command that made entries."""

    def take(self, found: Decoded, payload: bytes) -> None:
        """Apply one record, or keep it as an anomaly."""
        try:
            if isinstance(found, msgspec.DecodeError):
                raise found
            refuse_unstorable(found)
            command = self._as_booked(found)
            entries = step(self._state, command, self._source)
        except (msgspec.DecodeError, LedgerRefused) as error:
            self._store.save_anomaly(*self._source, str(error), payload)
            return
        self.touched.add(command, entries, self._source)
        if isinstance(command, words.Settle):
            self._log.settled(command.settlement)
            if served := served_rows(self._state, command.settlement, entries):
                self._store.write("save_served", served)
                self._store.write("save_unstated", served)
        elif not isinstance(command, words.PlaceHold):
            self._store.save_command(self._state, command)
            if isinstance(command, words.CloseInterval):
                self._log.metered(command.interval)
        if entries:
            self.txn += 1
            self._store.save_entries(self.txn, entries, moment_of(command))

    def _as_booked(self, command: words.AnyCommand) -> words.AnyCommand:
        """A receipt is written once (the state forgets settled ones, the store does not); late ones charge nobody."""
        if isinstance(command, words.Settle):
            if self._source not in self._state.ended:
                return command  # once it is settled it has no hold any more
            receipt = command.settlement.receipt
            if receipt in self.touched.settled:
                raise LedgerRefused(f"{receipt} was settled already", hint="a hold is settled or voided once")
            return words.Settle(settlement=as_booked(self._state, command.settlement, self._source))
        if isinstance(command, words.PlaceHold) and command.receipt in self.touched.settled:
            raise LedgerRefused(f"{command.receipt} was settled already", hint="a receipt's id is used once")
        return command

    def write(self) -> None:
        """Write what all of them changed. Raises LedgerRefused when a receipt was there already."""
        state, store, touched = self._state, self._store, self.touched
        count(state)
        post(state, touched.sums)
        store.save_holds(state, touched.placed, *self._source)
        store.save_figures(state, touched.sums, touched.budgets(state))
        store.save_rights(state, touched.grants, touched.epochs)
        self._log.flush()
        # Of what was settled, the table itself says that it is there already; this asks for what was only held.
        if not self._looked and store.settled_among(touched.placed - touched.settled):
            raise LedgerRefused("a receipt's id is used once")


@contextmanager
def uncollected() -> Iterator[None]:
    """No search for cycles meanwhile: a batch makes very many values without any, and each would be looked at often."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def decoded(payload: bytes) -> Decoded:
    """The command, or why it is none."""
    try:
        return words.decode_command(payload)
    except msgspec.DecodeError as error:
        return error


def receipts_of(commands: list[Decoded]) -> list[str]:
    """Receipts that a batch settles or holds."""
    held = [c.receipt for c in commands if isinstance(c, words.PlaceHold)]
    return held + [c.settlement.receipt for c in commands if isinstance(c, words.Settle)]


def _grants_of(command: Command) -> list[str]:
    grant = getattr(command, "grant", None)
    return [] if grant is None else [grant if isinstance(grant, str) else grant.id]


def moment_of(command: words.AnyCommand) -> int:
    """When the lines of a command are dated, in nanoseconds since 1970."""
    if isinstance(command, words.Settle):
        return command.settlement.at_ns
    interval = getattr(command, "interval", None)
    grant = getattr(command, "grant", None)
    at_ns = getattr(interval, "end_ns", 0) or getattr(grant, "created_ns", 0)
    return int(getattr(command, "at_ns", 0) or at_ns)


def served_rows(state: State, settled: words.Settlement, entries: list[Entry]) -> list[dict[str, object]]:
    """A line for the statement of a pair of entities; what is all the operator's needs none."""
    found = line_of(state, settled, entries)
    if found is None:
        return []
    entity, home, sums = found
    at = {"at_ns": settled.at_ns, "day_ns": settled.at_ns - settled.at_ns % DAY_NS}
    return [{"receipt": settled.receipt, "entity": entity, "home": home, **at, **sums._asdict()}]
