"""The other gateway processes of a grid, as the first one keeps them: it shows them its replicas and hears their works.

A worker that dies leaves works behind. Those that it had settled are in the books and get their energy, whether it had
told of them or not; those that it had only begun are nobody's.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from asyncio.subprocess import PIPE, Process
from collections import Counter
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any

import msgspec

from tokenworks.channel import BUFFER_BYTES_MAX, TICK_S, Brief, Heard, Told, line
from tokenworks.children import Kept
from tokenworks.core.errors import ExchangeDown, TokenworksError
from tokenworks.core.words import Work
from tokenworks.engine.mirror import ReplicaNow, Use, now_of, used
from tokenworks.exchange.wire import RemoteError
from tokenworks.gateway import GATEWAY, GRACE_S, Gateway, background

SPARE_S = 5
"""How much longer than the grace time a worker may take to leave before it is killed."""
RETRY_S = 0.5


class Worker(Kept):
    """One of them."""

    def __init__(self, crew: Workers, brief: Brief) -> None:
        log = crew.first.data / "logs" / f"{brief.name}.log"
        super().__init__(crew.first.clock, log, "tokenworks.worker", stdout=PIPE)
        self.name, self._crew, self._brief = brief.name, crew, brief
        self.uses: dict[str, Use] = {}
        self.requests = self.open_holds = self.waiting = 0
        self.open: dict[tuple[str, str], Work] = {}
        """Works that run, by receipt and replica."""
        self._shown: dict[str, ReplicaNow] = {}
        self._told: Told | None = None

    async def start(self) -> Process:
        process = await super().start()
        self._shown, self._told = {}, None
        self._say(line(self._brief))
        return process

    async def attend(self, process: Process) -> None:
        """See ``Kept.attend``: hear it out, and settle what it leaves behind."""
        assert process.stdout is not None
        while said := await process.stdout.readline():
            with contextlib.suppress(msgspec.DecodeError):  # its last line, cut when it died
                self._crew.hear(self, msgspec.json.decode(said, type=Heard))
        await process.wait()
        self.uses, self.open_holds, self.waiting = {}, 0, 0
        self._crew.count()
        if self.open or process.returncode:
            await self._crew.bury(self)

    def _say(self, data: bytes) -> bool:
        pipe = self._process.stdin if self._process else None
        if pipe is None or pipe.is_closing() or pipe.transport.get_write_buffer_size() > BUFFER_BYTES_MAX:
            return False
        pipe.write(data)
        return True

    def tell(self, replicas: dict[str, ReplicaNow], told: Told) -> None:
        """Say what has changed. What it cannot take now is said later."""
        changed = tuple(now for name, now in replicas.items() if self._shown.get(name) != now)
        if (changed or told != self._told) and self._say(line(msgspec.structs.replace(told, replicas=changed))):
            self._shown, self._told = replicas, told

    def leave(self) -> None:
        """Tell it to let its requests end and to end itself; it is not started again."""
        self._ending = True
        self._say(line(Told(leave=True)))


class Workers:
    """All of them. ``services`` is their processor time [ns] by floor that no interval has taken yet."""

    def __init__(self, first: Gateway, ledger: Kept, host: str, port: int) -> None:
        self.first, self._ledger = first, ledger
        self.services: Counter[str] = Counter()
        self._adopted: set[tuple[str, str]] = set()
        """Works of the worker that died last which the ledger told of, in case they come by pipe as well."""
        plan = msgspec.structs.replace(first.plan, powers=())  # whose books are kept here
        self._all = [
            Worker(self, Brief(
                name=f"{GATEWAY}{number}", host=host, port=port, data=str(first.data),
                anchor_ns=first.clock.anchor_ns, plan=plan,
            )) for number in range(2, first.plan.workers + 1)
        ]  # fmt: skip
        self._keeping: list[asyncio.Task[None]] = []
        self.sites: Callable[[], list[dict[str, Any]]] = list
        """For status: of every site."""

    async def start(self, stack: AsyncExitStack) -> None:
        """Start them; they leave with the stack."""
        for worker in self._all:
            await worker.start()
            self._keeping.append(asyncio.create_task(worker.keep(), name=worker.name))
        stack.push_async_callback(self._stop)
        if self._all:
            await background(stack, self._tell())

    async def _stop(self) -> None:
        self.leave()
        if self._keeping:
            await asyncio.wait(self._keeping, timeout=GRACE_S + SPARE_S)
        for worker, keeping in zip(self._all, self._keeping, strict=True):
            await worker.stop(0)
            keeping.cancel()

    def leave(self) -> None:
        """Let them end."""
        for worker in self._all:
            worker.leave()

    async def _tell(self) -> None:
        while True:
            replicas = self.first.house.replicas
            told = Told(others=self.others(), orders=self.first.orders, moments=self.first.moments)
            for worker in self._all:
                theirs = {name: use.running for name, use in worker.uses.items()}
                worker.tell({name: now_of(each, theirs.get(name, 0)) for name, each in replicas.items()}, told)
            await self.first.clock.sleep(TICK_S)

    def hear(self, worker: Worker, heard: Heard) -> None:
        """What a worker said. Works go to the site that they ran at."""
        for step in heard.steps:
            site, work = self.first.house.sites[step.work.site], step.work
            if step.to == "begun":
                worker.open[step.key] = work
                with contextlib.suppress(TokenworksError):  # too many at once: it is known by its end
                    site.begin(work.receipt, work.replica, work.slice, work.start_ns)
                continue
            worker.open.pop(step.key, None)
            if step.to == "forgotten" or step.key in self._adopted:
                site.forget(work.receipt, work.replica, work.slice)
            else:
                site.end(work)
        worker.uses, worker.requests, worker.open_holds = heard.uses, heard.requests, heard.open_holds
        worker.waiting = heard.waiting
        self.services.update(heard.services)
        self.count(heard.uses)

    def count(self, news: dict[str, Use] | None = None) -> None:
        """Add up what all have at each replica."""
        for name, replica in self.first.house.replicas.items():
            elsewhere = sum(worker.uses[name].running for worker in self._all if name in worker.uses)
            used(replica, (news or {}).get(name) or Use(running=0, served=0), elsewhere)

    async def bury(self, worker: Worker) -> None:
        """It died: its settled works are ended as the books have them, the others are forgotten."""
        await self.first.clock.sleep(2 * TICK_S)  # so that what the others have on the way is known
        sites, found = self.first.house.sites, await self._unmetered()
        known = {receipt for site in sites.values() for receipt in site.receipts()}
        known -= {receipt for receipt, _ in worker.open}
        self._adopted = set()
        for work in found:
            if work.receipt not in known and work.site in sites:
                worker.open.pop((work.receipt, work.replica), None)
                self._adopted.add((work.receipt, work.replica))
                sites[work.site].end(work)
        for gone in worker.open.values():
            sites[gone.site].forget(gone.receipt, gone.replica, gone.slice)
        worker.open.clear()

    async def _unmetered(self) -> tuple[Work, ...]:
        """Settled works that no interval has, by the ledger; asked again when one was closed meanwhile."""
        sites = self.first.house.sites.values()
        while True:
            cuts = [site.last_ns for site in sites]
            try:
                found = await self.first.link.unmetered()
            except (ExchangeDown, RemoteError):
                await self.first.clock.sleep(RETRY_S)
                continue
            if cuts == [site.last_ns for site in sites]:
                return found

    def others(self) -> dict[str, Any]:
        """For status: the ledger process, and all gateway processes with the requests that they settled."""
        first = self.first
        mine = (first.name, os.getpid(), 0, first.metrics.requests, first.desk.open_holds, first.waiting)
        theirs = [(w.name, w.pid, w.restarts, w.requests, w.open_holds, w.waiting) for w in self._all]
        names = ("name", "pid", "restarts", "requests", "open_holds", "waiting")
        return {
            "ledger": {"pid": self._ledger.pid, "restarts": self._ledger.restarts},
            "gateways": [dict(zip(names, each, strict=True)) for each in (mine, *theirs)],
            "sites": self.sites(),
        }
