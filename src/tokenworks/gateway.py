"""One gateway process: its link to the ledger, its journal and desk, and the front door on the grid's port.

A grid has one or several; all of them listen on the same port (SO_REUSEPORT), and lease from the same budgets.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import os
import resource
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import uvicorn

from tokenworks.agents.app import FrontDoor
from tokenworks.agents.lane import lane
from tokenworks.agents.life import House
from tokenworks.agents.metrics import Metrics
from tokenworks.agents.once import Once
from tokenworks.agents.overage import Overflow
from tokenworks.agents.siblings import Siblings
from tokenworks.brain.route import Offer
from tokenworks.compose import Plan, offer
from tokenworks.core.clock import WallClock
from tokenworks.core.errors import ExchangeDown, LedgerRefused, TokenworksError, Unreachable
from tokenworks.core.files import socket_address
from tokenworks.core.ids import Ids
from tokenworks.curtail import Order
from tokenworks.engine.record import Replica
from tokenworks.exchange.desk import Desk
from tokenworks.exchange.journal import Journal, journal_folder
from tokenworks.exchange.link import LedgerLink, Welcome
from tokenworks.exchange.wire import RemoteError
from tokenworks.exchange.words import Directory
from tokenworks.moments import Moment, show
from tokenworks.respond import post_event
from tokenworks.site.agent import SiteAgent

LEDGER_START_S = 15.0
BEAT_S = 1.0
GRACE_S = 10
BACKLOG = 2048
GATEWAY = "gateway-"
"""And a number from 1 on: how the gateway processes of a grid are named."""
GC_THRESHOLD = 10_000, 20, 20
"""A request leaves next to nothing behind for the collector; Python's own first threshold is 700."""


def listen(host: str, port: int, *, share: bool = False) -> socket.socket:
    """A gateway's socket. ``share``: a port that another process of this grid listens on.

    Raises Unreachable in one sentence when the port is taken or not ours to take.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    found = socket.socket(family, socket.SOCK_STREAM)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        if share:
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        found.bind((host, port))
        # Shared only from here on: the port was ours alone, so another grid's is not joined by mistake.
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        found.listen(BACKLOG)
    except OSError as error:
        found.close()
        if error.errno == errno.EADDRINUSE:
            raise Unreachable(f"port {port} on {host} is taken", hint="set TOKENWORKS_PORT to a free one") from None
        raise Unreachable(f"cannot listen on {host}:{port}: {error.strerror}", hint="set TOKENWORKS_HOST") from None
    found.setblocking(False)
    return found


@contextlib.contextmanager
def door(path: Path) -> Iterator[socket.socket]:
    """A gateway's socket for its siblings: only this user may open it."""
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as found, socket_address(path) as address:
        found.bind(address)
        path.chmod(0o600)
        found.listen(BACKLOG)
        found.setblocking(False)
        try:
            yield found
        finally:
            path.unlink(missing_ok=True)


async def background(stack: contextlib.AsyncExitStack, work: Coroutine[Any, Any, None]) -> None:
    """Run something until the stack is left."""
    task = asyncio.create_task(work)

    async def stop() -> None:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError, TokenworksError):
            await task

    stack.push_async_callback(stop)


class Gateway:
    """What every gateway process has, whoever keeps its replicas and its sites."""

    house: House
    desk: Desk

    def __init__(self, plan: Plan, data: Path, name: str, clock: WallClock) -> None:
        self.plan, self.data, self.name, self.clock = plan, data, name, clock
        self.metrics = Metrics()
        self._journals: list[Journal] = []
        self._directory: Directory | None = None
        self._started_ns = clock.now_ns()
        self._cpu_before_ns = time.process_time_ns()
        self._server: _Server | None = None
        self.orders: dict[str, Order] = {}
        """By site: what it does about a limit on its power."""
        self.moments: dict[str, Moment] = {}
        """By site, where anything of it changes."""
        self._offers: dict[str, list[Offer]] = {}
        self.link = LedgerLink(data, name, clock, self._learn)

    def _learn(self, directory: Directory) -> None:
        self._directory = directory
        if self._journals:
            self.desk.learn(directory)

    async def join(self, stack: contextlib.AsyncExitStack) -> Welcome:
        """Say hello to the ledger; open the journal of a new epoch and the desk, and keep them up."""
        welcome = await self.link.start(LEDGER_START_S)
        stack.push_async_callback(self.link.close)
        stack.callback(self._close)
        self.desk = Desk(self.plan.prices, self.clock, self._journal(welcome.epoch), self.link.lease)
        self.desk.learn(self._directory or welcome.directory)
        self.desk.take((), self.clock.now_ns())
        for keeping in (self.link.keep(), self._beat()):
            await background(stack, keeping)
        return welcome

    def _close(self) -> None:
        for journal in self._journals:
            journal.close()

    def _journal(self, epoch: int) -> Journal:
        made = Journal(journal_folder(self.data, self.name, epoch), self.name, epoch, self.plan.journal)
        self._journals.append(made)
        return made

    async def _beat(self) -> None:
        """Keep this gateway's leases alive; when its epoch was ended (it was silent too long), begin a new one."""
        while True:
            await self.clock.sleep(BEAT_S)
            try:
                await self.desk.beat()
            except LedgerRefused:
                welcome = await self.link.restart()
                self.desk.rejoin(self._journal(welcome.epoch), welcome.directory)
                self.desk.take((), self.clock.now_ns())
            except (ExchangeDown, RemoteError):
                pass  # the ledger restarts; until its leases run out this gateway goes on

    def open_house(self, replicas: Mapping[str, Replica], sites: Mapping[str, SiteAgent]) -> None:
        """What the front door needs."""
        offers = self._offers
        places = {site.name: site for site in self.plan.sites}
        for replica in replicas.values():
            offers.setdefault(replica.spec.model, []).append(offer(replica, places[replica.spec.site]))
        overflow = Overflow(self.desk, offers, self.clock)
        overflow.orders = self.orders
        self.house = House(
            desk=self.desk,
            replicas=replicas,
            sites=sites,
            offers=offers,
            scales=self.plan.scales,
            clock=self.clock,
            metrics=self.metrics,
            overflow=overflow,
            new_receipt=partial(Ids().make, "rcpt"),
        )
        show(self.moments, offers, sites)

    def meanwhile(self, now: Mapping[str, Moment]) -> None:
        """What is so at sites now; from the next request on it counts."""
        if changed := {name: moment for name, moment in now.items() if self.moments.get(name) != moment}:
            self.moments.update(changed)
            if self._offers:
                show(changed, self._offers, self.house.sites)

    @property
    def waiting(self) -> int:
        """Requests held back: in the slow lane, or while the grid asks for less power."""
        return self.house.overflow.waiting

    def services(self) -> dict[str, int]:
        """Processor time of the gateway's floors since last asked: measured as a whole, split by their own clocks."""
        now_ns = time.process_time_ns()
        total_ns, self._cpu_before_ns = now_ns - self._cpu_before_ns, now_ns
        exchange_ns, self.desk.busy_ns = min(self.desk.busy_ns, total_ns), 0
        brain_ns, self.house.brain_ns = min(self.house.brain_ns, total_ns - exchange_ns), 0
        return {"exchange": exchange_ns, "brain": brain_ns, "agents": total_ns - exchange_ns - brain_ns}

    async def serve(
        self, listener: socket.socket, others: Callable[[], dict[str, Any]], answering: asyncio.Event,
        leaving: Callable[[], None] = lambda: None,
    ) -> None:  # fmt: skip
        """Answer until SIGINT, SIGTERM or ``leave``, then let what runs end within the grace time.

        ``others`` is for the status: what is known of the grid's other processes. ``leaving`` is called when the end
        begins.
        """
        async with self._beside() as (siblings, doors):
            config = self._config(Once(self.clock, siblings), lambda: self._status(others()))
            # What is here by now stays: the collector need not look through it again and again while requests wait.
            gc.collect()
            gc.freeze()
            gc.set_threshold(*GC_THRESHOLD)
            self._server = _Server(config, answering, leaving)
            await self._server.serve(sockets=[listener, *doors])

    @contextlib.asynccontextmanager
    async def _beside(self) -> AsyncIterator[tuple[Siblings | None, list[socket.socket]]]:
        """The way to the other gateway processes of the port, and theirs to this one; nothing when there are none."""
        if self.plan.workers == 1:
            yield None, []
            return
        paths = [self.data / f"{GATEWAY}{number}.sock" for number in range(1, self.plan.workers + 1)]
        own = int(self.name.removeprefix(GATEWAY)) - 1
        siblings = Siblings(paths, own)
        with door(paths[own]) as found:
            try:
                yield siblings, [found]
            finally:
                await siblings.close()

    def _config(self, once: Once, status: Callable[[], dict[str, Any]]) -> uvicorn.Config:
        return uvicorn.Config(
            FrontDoor(self.house, self.link.call, status, self._journal_bytes, self._post_event),
            http=lane(self.house, once),  # type: ignore[arg-type]  # called like the class that uvicorn expects
            proxy_headers=False,
            loop="uvloop",
            ws="none",
            lifespan="off",
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=GRACE_S,
        )

    def leave(self) -> bool:
        """End as after SIGTERM. False: it does not serve yet."""
        if self._server is None:
            return False
        self._server.should_exit = True
        return True

    def _post_event(self, site: str | None, body: bytes) -> dict[str, Any]:
        return post_event(self.data, list(self.house.sites), site, body, self.clock.now_ns())

    def _journal_bytes(self) -> int:
        return self._journals[-1].position.offset

    def _status(self, others: dict[str, Any]) -> dict[str, Any]:
        """What an operator wants to see first: this process, and what it knows of the others."""
        return {
            "grid": self.plan.name,
            "gateway": self.name,
            "pid": os.getpid(),
            "uptime_s": (self.clock.now_ns() - self._started_ns) // 1_000_000_000,
            "rss_mb": round(_rss_bytes() / 1e6, 1),
            **others,
            "ledger": {"up": self.link.up, **others["ledger"]},
            "open_holds": self.desk.open_holds,
            "deferred": self.house.overflow.deferred,
            "journal": self._journals[-1].position._asdict(),
            "replicas": [_replica(name, replica) for name, replica in self.house.replicas.items()],
        }


def _replica(name: str, replica: Replica) -> dict[str, Any]:
    return {
        "name": name,
        "model": replica.spec.model,
        "site": replica.spec.site,
        "slice": replica.spec.slice or None,
        "state": replica.life.state.value,
        "why": replica.why or None,
        "running": replica.running,
        "slots": replica.spec.slots,
        "restarts": replica.restarts,
        "memory_booked_bytes": replica.spec.limits.memory_bytes,
        "memory_measured_bytes": replica.took and replica.took.memory_bytes,
        "wake_s": replica.wake_ns and replica.wake_ns / 1e9,
        "engine_load": msgspec.to_builtins(replica.load),
        "prefill_tokens_per_s": replica.prefill_tps,
        "decode_tokens_per_s": replica.decode_tps,
    }


def _rss_bytes() -> int:
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * resource.getpagesize()
    except (OSError, ValueError, IndexError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class _Server(uvicorn.Server):
    """uvicorn's server on a socket that is bound already, telling when it answers and when it begins to end."""

    def __init__(self, config: uvicorn.Config, answering: asyncio.Event, leaving: Callable[[], None]) -> None:
        super().__init__(config)
        self._answering, self._leaving = answering, leaving

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """As uvicorn's, which raises the signal again at the end: what stands around the server would not be closed."""
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, self.handle_exit, number, None)
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._answering.set()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._leaving()
        await super().shutdown(sockets)
