"""A gateway without an engine: it holds, extends and settles as fast as it can, and says what was acknowledged.

``python -m bench.chaos.gateway DATA NAME KEY SEED``. Lines on standard output: ``A receipt ustu nano`` after a
settlement was acknowledged (its journal record is written). It ends with its standard input.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import sys
from pathlib import Path

from bench.chaos import short_leases

from tokenworks.core.clock import WallClock
from tokenworks.core.errors import BudgetSpent, ExchangeDown, LedgerRefused, Unreachable
from tokenworks.core.ids import new_id
from tokenworks.core.words import Amount, Candidate, Decision, Delivery, Request, Usage
from tokenworks.exchange.budget import Shortage
from tokenworks.exchange.desk import Desk, Hold, Identity
from tokenworks.exchange.journal import Journal, journal_folder
from tokenworks.exchange.link import LedgerLink
from tokenworks.exchange.prices import default_prices
from tokenworks.exchange.wire import RemoteError

MODEL = "smollm2-135m-instruct"
WORKERS = 16


async def main(data: Path, name: str, key: str, seed: int) -> None:
    """Run until standard input ends."""
    clock, chance = WallClock(), random.Random(seed)
    desk: Desk | None = None
    link = LedgerLink(data, name, clock, lambda directory: desk.learn(directory) if desk else None)
    welcome = await link.start(30)
    desk = Desk(
        default_prices("USD"),
        clock,
        Journal(journal_folder(data, name, welcome.epoch), name, welcome.epoch),
        link.lease,
    )
    desk.learn(welcome.directory)
    desk.take((), clock.now_ns())
    tasks = [asyncio.create_task(link.keep()), asyncio.create_task(beat(desk, link, data, name, clock))]
    tasks += [asyncio.create_task(work(desk, clock, key, random.Random(chance.random()))) for _ in range(WORKERS)]
    ended = asyncio.Event()
    asyncio.get_running_loop().add_reader(0, ended.set)  # nothing is ever written there: readable means closed
    await ended.wait()
    asyncio.get_running_loop().remove_reader(0)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks, timeout=10)
    await link.close()


async def beat(desk: Desk, link: LedgerLink, data: Path, name: str, clock: WallClock) -> None:
    """The gateway's heartbeat, as ``grid.py`` does it."""
    while True:
        await clock.sleep(0.1)
        try:
            await desk.beat()
        except LedgerRefused:
            with contextlib.suppress(ExchangeDown, RemoteError):
                welcome = await link.restart()
                desk.rejoin(Journal(journal_folder(data, name, welcome.epoch), name, welcome.epoch), welcome.directory)
                desk.take((), clock.now_ns())
        except (ExchangeDown, RemoteError, Unreachable):
            pass


async def work(desk: Desk, clock: WallClock, key: str, chance: random.Random) -> None:
    """One client after the other."""
    while True:
        try:
            await request(desk, clock, key, chance)
        except (BudgetSpent, ExchangeDown, RemoteError, LedgerRefused):
            await asyncio.sleep(0.01)


async def request(desk: Desk, clock: WallClock, key: str, chance: random.Random) -> None:
    """Hold, perhaps extend, settle within or beyond the hold, or give up before the engine."""
    identity = desk.identify(key)
    receipt = new_id("rcpt", clock.now_ns())
    worst = desk.prices.at(clock.now_ns()).worst(MODEL, chance.randrange(1, 400), chance.randrange(1, 400))
    hold = await promised(desk, identity, receipt, worst)
    try:
        desk.trim(hold, Amount(ustu=worst.ustu - worst.ustu // 5, nano=worst.nano - worst.nano // 5))
        await asyncio.sleep(chance.random() * 0.01)
        if chance.random() < 0.2:
            with contextlib.suppress(BudgetSpent):
                desk.extend(hold, hold.prices.worst(MODEL, 0, chance.randrange(1, 100)))
        usage = Usage(
            input=chance.randrange(0, 300), output=chance.randrange(0, 350), cached_input=chance.randrange(0, 50)
        )
        chosen = Candidate(replica="r", site="s", model=MODEL, terms_nano={}, total_nano=0)
        asked = Request(
            id=receipt, endpoint="chat", model=MODEL, body=b"", stream=False, show_usage=False, input_max=1,
            output_max=None, choices=1, needs=frozenset(), arrived_ns=clock.now_ns(),
        )  # fmt: skip
        settled = desk.settle(
            hold, asked, Decision(chosen=chosen), usage, Delivery(ending="complete", chunks=1), None, None
        )
        sys.stdout.write(f"A {receipt} {settled.ustu} {settled.nano}\n")
        sys.stdout.flush()
    finally:
        if hold.open and not hold.written:
            desk.release(hold)


async def promised(desk: Desk, identity: Identity, receipt: str, worst: Amount) -> Hold:
    """A hold, after asking for leases when they are short."""
    try:
        return desk.hold(identity, receipt, worst, MODEL)
    except Shortage as shortage:
        if not await desk.refill(shortage):
            raise
    return desk.hold(identity, receipt, worst, MODEL)


if __name__ == "__main__":
    short_leases()
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])))
