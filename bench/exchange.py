"""The exchange alone: holds and settlements in memory, settlements into both stores, recovery, proofs.

A hold and its settlement are measured as a gateway runs them, on a path of four budgets with two limits each and a
package that burns, up to and including the framed journal records; write() and the ledger's entries are not in it.
"""

from __future__ import annotations

import gc
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

from tests.support.postgres import postgres

from tokenworks.core.clock import WallClock
from tokenworks.core.ids import new_id
from tokenworks.core.words import Candidate, Decision, Delivery, Request, Usage
from tokenworks.datadir import prepare
from tokenworks.exchange.batch import Touched
from tokenworks.exchange.desk import Desk, Hold
from tokenworks.exchange.journal import START, Journal, journal_folder, read_from
from tokenworks.exchange.journal.disk import LiveDisk
from tokenworks.exchange.ledger import count, post, step
from tokenworks.exchange.log.merkle import inclusion_proof, verify_inclusion
from tokenworks.exchange.offices import people, sales
from tokenworks.exchange.prices import default_prices
from tokenworks.exchange.service import LedgerService
from tokenworks.exchange.state import State
from tokenworks.exchange.store.log_tables import LogTables
from tokenworks.exchange.words import Directory, Lease, Package, decode_command

MODEL = "smollm2-135m-instruct"
PATH = ("org", "account", "project", "agent")
HOLDS = 30_000
SETTLEMENTS = 40_000
RECOVERED = 1_000_000
_BIG = 1 << 60


class _Nowhere(LiveDisk):
    """A disk that takes everything at once, so the loop measures us and not the disk."""

    def write(self, fd: int, data: bytes) -> int:
        return len(data)


def _books(service: LedgerService, clock: WallClock) -> str:
    """A path of four with limits on every node, and a package that covers half of what is used."""
    people.account_create(service, "org", limit_nano=_BIG, limit_ustu=_BIG)
    for parent, name in pairwise(PATH):
        people.budget_set(service, name, parent=parent, limit_nano=_BIG, limit_ustu=_BIG)
    terms = Package(code="p", name="p", size_ustu=_BIG, price_nano=10**9, validity_ns=None)
    sales.package_define(service, terms)
    sales.grant_sell(service, "org", "p", "grant-1")
    return str(people.key_create(service, "agent")["key"])


def _leases(directory: Directory) -> list[Lease]:
    counters = [f"{kind}:{name}" for name in PATH for kind in "nu"]
    counters += [f"g:{grant.id}" for grant in directory.grants]
    return [Lease(counter=counter, window_ns=0, allowance=1 << 55) for counter in counters]


@contextmanager
def _service(store: str | None = None) -> Iterator[tuple[LedgerService, WallClock, Path, str]]:
    with tempfile.TemporaryDirectory(prefix="tokenworks-bench-") as folder:
        data, clock = Path(folder) / "data", WallClock()
        prepare(data)
        service = LedgerService(data, clock, store)
        try:
            yield service, clock, data, _books(service, clock)
        finally:
            service.close()


def _desk(service: LedgerService, clock: WallClock, journal: Journal) -> Desk:
    desk = Desk(default_prices("USD"), clock, journal)
    directory = service.directory()
    desk.learn(directory)
    desk.budgets.path("agent")
    desk.take(_leases(directory), clock.now_ns())
    return desk


def _request(receipt: str) -> Request:
    return Request(
        id=receipt, endpoint="chat", model=MODEL, body=b"", stream=True, show_usage=False, input_max=400,
        output_max=200, choices=1, needs=frozenset(), arrived_ns=1,
    )  # fmt: skip


DECISION = Decision(
    chosen=Candidate(
        replica="here-1", site="here", model=MODEL, terms_nano={"energy": 300, "device": 900}, total_nano=1200
    )
)
DELIVERY = Delivery(ending="complete", chunks=90, queued_ns=1, prefill_ns=1, decode_ns=1, ttft_ns=1, total_ns=1)
USAGE = Usage(input=120, cached_input=30, output=90)


def _pair(desk: Desk, key: str, receipt: str) -> Hold:
    identity = desk.identify(key)
    prices = desk.prices.at(1)
    worst = prices.worst(MODEL, 400, 200)
    hold = desk.hold(identity, receipt, worst, MODEL, ("here",), prices)
    desk.trim(hold, worst, "here")
    desk.settle(hold, _request(receipt), DECISION, USAGE, DELIVERY, None, None)
    return hold


def hold_settle() -> dict[str, float]:
    """Microseconds for one request's hold and settlement, journal records encoded."""
    with _service() as (service, clock, data, key):
        journal = Journal(journal_folder(data, "g0", 1), "g0", 1, disk=_Nowhere(), committer=False)
        desk = _desk(service, clock, journal)
        receipts = [new_id("rcpt", clock.now_ns()) for _ in range(HOLDS)]
        took = []
        gc.collect()
        for receipt in receipts:
            began = time.perf_counter_ns()
            _pair(desk, key, receipt)
            took.append(time.perf_counter_ns() - began)
        took = sorted(took[HOLDS // 10 :])
        return {
            "hold_settle_us_p50": round(statistics.median(took) / 1000, 2),
            "hold_settle_us_p99": round(took[len(took) * 99 // 100] / 1000, 2),
        }


def _write_journals(
    service: LedgerService, clock: WallClock, data: Path, key: str, names: list[str], count: int
) -> None:
    epochs = {name: service.hello(name, None) for name in names}
    wanted = {lease.counter: 1 << 50 for lease in _leases(service.directory())}
    for name, epoch in epochs.items():
        service.lease(name, epoch, wanted, {})
    for name, epoch in epochs.items():
        journal = Journal(journal_folder(data, name, epoch), name, epoch)
        desk = _desk(service, clock, journal)
        for _ in range(count // len(names)):
            _pair(desk, key, new_id("rcpt", clock.now_ns()))
        journal.close()


def settlements_per_s(gateways: int, store: str | None = None) -> float:
    """Settlements (each with its hold) a second from the journals into the store, committed and synced."""
    with _service(store) as (service, clock, data, key):
        _write_journals(service, clock, data, key, [f"g{n}" for n in range(gateways)], SETTLEMENTS)
        began = time.perf_counter()
        applied = service.catch_up()
        took = time.perf_counter() - began
        assert applied >= 2 * (SETTLEMENTS // gateways) * gateways, applied
        assert service.store.rows("counts")[0][0] == SETTLEMENTS // gateways * gateways
        return SETTLEMENTS / took


def recovery_s() -> float:
    """Seconds to read a million records of a journal, check their chain, decode them and apply them to a state."""
    with _service() as (service, clock, data, key):
        _write_journals(service, clock, data, key, ["g0"], RECOVERED // 2)
        state: State = service.store.load()
        folder, position, records = journal_folder(data, "g0", 1), START, 0
        began = time.perf_counter()
        touched = Touched()
        while True:
            before = records
            for payload, after in read_from(folder, position):
                command = decode_command(payload)
                touched.add(command, step(state, command, ("g0", 1)), ("g0", 1))
                records, position = records + 1, after
            if records == before:
                break
        count(state)
        post(state, touched.sums)
        took = time.perf_counter() - began
        assert records == RECOVERED, records
        return took


def proofs() -> dict[str, float]:
    """Microseconds for an inclusion proof out of the store and for checking it, in a log of as many settlements."""
    with _service() as (service, clock, data, key):
        _write_journals(service, clock, data, key, ["g0"], SETTLEMENTS)
        service.catch_up()
        tables, checkpoint = LogTables(service.store), service.log.writer.checkpoint()
        made, checked = [], []
        for position in range(0, checkpoint.size, checkpoint.size // 500):
            leaf = tables.get(0, position)
            assert leaf is not None
            began = time.perf_counter_ns()
            proof = inclusion_proof(tables, position, checkpoint.size)
            middle = time.perf_counter_ns()
            assert verify_inclusion(leaf, position, checkpoint.size, proof, checkpoint.root)
            made.append(middle - began)
            checked.append(time.perf_counter_ns() - middle)
        return {
            "inclusion_proof_us": round(statistics.median(made) / 1000, 1),
            "verify_inclusion_us": round(statistics.median(checked) / 1000, 1),
        }


def measure() -> dict[str, float]:
    """All figures of the exchange."""
    figures: dict[str, float] = dict(hold_settle())
    figures["settlements_per_s_sqlite"] = round(settlements_per_s(1))
    with postgres(fsync=True) as url:
        figures["settlements_per_s_postgres_3_gateways"] = round(settlements_per_s(3, url))
    figures["recovery_s_1m"] = round(recovery_s(), 2)
    return figures | proofs()
