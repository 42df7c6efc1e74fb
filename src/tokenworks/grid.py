"""The one place where a running grid is composed: ledger process, journal, desk, fleet, site agents, front door.

Start order: the port (so that a taken one is told at once), the ledger process, the first keys, the journal
of a new epoch, site agents, replicas, and the front door, which answers while replicas still load.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import resource
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import uvicorn

from tokenworks import datadir
from tokenworks.agents.app import FrontDoor
from tokenworks.agents.life import House
from tokenworks.agents.metrics import Metrics
from tokenworks.compose import Plan, offer
from tokenworks.core.clock import Clock, WallClock
from tokenworks.core.errors import DataDirError, ExchangeDown, LedgerRefused, TokenworksError, Unreachable
from tokenworks.core.ids import new_id
from tokenworks.engine.fleet import Fleet
from tokenworks.engine.pull import model_cache
from tokenworks.exchange.desk import Desk
from tokenworks.exchange.journal import Journal, journal_folder
from tokenworks.exchange.link import LedgerLink, Welcome
from tokenworks.exchange.wire import RemoteError
from tokenworks.exchange.words import Directory
from tokenworks.site.agent import SiteAgent

GATEWAY = "gateway-1"
OPERATOR = "operator"
FIRST_ACCOUNT = "default"
LEDGER_START_S = 15.0
LEDGER_PAUSE_S_MAX = 5.0
BEAT_S = 1.0
GRACE_S = 10
BACKLOG = 2048
Report = Callable[[str], None]


def check_currency(data: Path, plan: Plan) -> None:
    """Raises DataDirError when the books of this directory are in another currency than the grid."""
    keys = datadir.read_keys(data)
    if keys is not None and keys.currency != plan.currency:
        raise DataDirError(
            f"the books in {data} are in {keys.currency}, the grid file says {plan.currency}",
            hint="set TOKENWORKS_DATA to another directory for another currency",
        )


async def first_keys(data: Path, plan: Plan, link: LedgerLink) -> datadir.Keys:
    """The administrator's key and one account with a budget and a key, made once."""
    keys = datadir.read_keys(data)
    if keys is not None:
        return keys
    no_limit: dict[str, Any] = {"limit_nano": None, "limit_ustu": None}
    await link.call("account_create", account=OPERATOR, name="the operator", **no_limit)
    limit = no_limit | {"limit_nano": plan.budget_nano}
    await link.call("account_create", account=FIRST_ACCOUNT, name="the first account", **limit)
    admin = await link.call("key_create", budget=OPERATOR, role="admin")
    user = await link.call("key_create", budget=FIRST_ACCOUNT)
    keys = datadir.Keys(admin_key=admin["key"], account=FIRST_ACCOUNT, key=user["key"], currency=plan.currency)
    datadir.save_keys(data, keys)
    return keys


def listen(host: str, port: int) -> socket.socket:
    """The gateway's socket. Raises Unreachable in one sentence when the port is taken or not ours to take."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    found = socket.socket(family, socket.SOCK_STREAM)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((host, port))
        found.listen(BACKLOG)
    except OSError as error:
        found.close()
        if error.errno == errno.EADDRINUSE:
            raise Unreachable(f"port {port} on {host} is taken", hint="set TOKENWORKS_PORT to a free one") from None
        raise Unreachable(f"cannot listen on {host}:{port}: {error.strerror}", hint="set TOKENWORKS_HOST") from None
    found.setblocking(False)
    return found


class LedgerProcess:
    """The ledger's child process, started again with growing pauses whenever it ends."""

    def __init__(self, data: Path, clock: Clock, store: str | None = None) -> None:
        self._data, self._clock = data, clock
        self._arguments = [str(data), *([store] if store else [])]
        self._process: asyncio.subprocess.Process | None = None
        self.restarts = 0

    async def start(self) -> None:
        """Start it. Its standard input is its lifeline: it ends when this process does, however that ends."""
        with (self._data / "logs" / "ledger.log").open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "tokenworks.exchange.server", *self._arguments,
                stdin=asyncio.subprocess.PIPE, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    @property
    def pid(self) -> int | None:
        """Its process id."""
        return self._process.pid if self._process else None

    async def keep(self) -> None:
        """Start it again when it ends, until cancelled."""
        pause_s = 0.1
        while self._process is not None:
            began = self._clock.now_ns()
            await self._process.wait()
            if self._clock.now_ns() - began > 60e9:
                pause_s = 0.1
            await self._clock.sleep(pause_s)
            pause_s = min(2 * pause_s, LEDGER_PAUSE_S_MAX)
            self.restarts += 1
            await self.start()

    async def stop(self) -> None:
        """Close its lifeline and wait; it has read all journals by then."""
        if self._process is None or self._process.stdin is None:
            return
        self._process.stdin.close()
        try:
            await asyncio.wait_for(self._process.wait(), 10)
        except TimeoutError:
            self._process.kill()
            await self._process.wait()


class Grid:
    """A running grid of one gateway."""

    def __init__(self, plan: Plan, data: Path, clock: Clock, report: Report) -> None:
        self.plan, self.data, self.clock, self._report = plan, data, clock, report
        self.ledger = LedgerProcess(data, clock, plan.store)
        self.metrics = Metrics()
        self.fleet = Fleet(plan.replicas, clock, data / "logs", model_cache(), report=report)
        self._sites = {site.name: site for site in plan.sites}
        self._cpu_before_ns = time.process_time_ns()
        self._desk: Desk | None = None
        self._directory: Directory | None = None
        self._started_ns = clock.now_ns()
        self.link = LedgerLink(data, GATEWAY, clock, self._learn)

    def _learn(self, directory: Directory) -> None:
        self._directory = directory
        if self._desk is not None:
            self._desk.learn(directory)

    def _offers(self) -> list[Any]:
        return [offer(replica, self._sites[replica.spec.site]) for replica in self.fleet.replicas.values()]

    def _services(self, house: House, desk: Desk) -> dict[str, int]:
        """Processor time of the gateway's floors since last asked: measured as a whole, split by their own clocks."""
        now_ns = time.process_time_ns()
        total_ns, self._cpu_before_ns = now_ns - self._cpu_before_ns, now_ns
        exchange_ns, desk.busy_ns = min(desk.busy_ns, total_ns), 0
        brain_ns, house.brain_ns = min(house.brain_ns, total_ns - exchange_ns), 0
        return {"exchange": exchange_ns, "brain": brain_ns, "agents": total_ns - exchange_ns - brain_ns}

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[FrontDoor]:
        """Everything but the listener, started in order and stopped in reverse."""
        async with contextlib.AsyncExitStack() as stack:
            self._report("starting the ledger")
            await self.ledger.start()
            stack.push_async_callback(self.ledger.stop)
            welcome = await self.link.start(LEDGER_START_S)
            stack.push_async_callback(self.link.close)
            await first_keys(self.data, self.plan, self.link)
            for facts in self.plan.facts:
                await self.link.call("describe_site", facts=msgspec.to_builtins(facts))
            journal = self._journal(welcome.epoch)
            stack.callback(journal.close)
            desk = self._desk = Desk(self.plan.prices, self.clock, journal, self.link.lease)
            desk.learn(self._directory or welcome.directory)
            desk.take((), self.clock.now_ns())
            house = self._house(desk, welcome)
            for keeping in (self.ledger.keep(), self.link.keep(), self._beat(desk)):
                await _background(stack, keeping)
            for agent in house.sites.values():
                await _background(stack, agent.run())
            await self.fleet.start()
            stack.push_async_callback(self.fleet.stop)
            yield FrontDoor(house, self.link.call, lambda: self.status(desk, journal), lambda: journal.position.offset)

    def _journal(self, epoch: int) -> Journal:
        return Journal(journal_folder(self.data, GATEWAY, epoch), GATEWAY, epoch, self.plan.journal)

    async def _beat(self, desk: Desk) -> None:
        """Keep this gateway's leases alive; when its epoch was ended (it was silent too long), begin a new one."""
        while True:
            await self.clock.sleep(BEAT_S)
            try:
                await desk.beat()
            except LedgerRefused:
                welcome = await self.link.restart()
                desk.rejoin(self._journal(welcome.epoch), welcome.directory)
                desk.take((), self.clock.now_ns())
            except (ExchangeDown, RemoteError):
                pass  # the ledger restarts; until its leases run out this gateway goes on

    def _house(self, desk: Desk, welcome: Welcome) -> House:
        sites: dict[str, SiteAgent] = {}
        house = House(
            desk=desk,
            replicas=self.fleet.replicas,
            sites=sites,
            offers=self._offers,
            scales=self.plan.scales,
            clock=self.clock,
            metrics=self.metrics,
            new_receipt=lambda: new_id("rcpt", self.clock.now_ns()),
        )
        for number, site in enumerate(self.plan.sites):
            # The gateway runs at the first site: its own processor time is that site's.
            services = (lambda: self._services(house, desk)) if number == 0 else dict
            agent = SiteAgent(
                site, self.clock, desk.close_interval, self.plan.intervals_s[site.name], services=services
            )
            slices = {load.slice for load in site.loads}
            owed = [work for work in welcome.unmetered if work.site == site.name and work.slice in slices]
            if owed:
                # The last gateway died with an interval open: meter what it settled, up to its last sign of life.
                # The time since then is nobody's: the machine's energy was not observed, and is not invented.
                last_ns = max(work.end_ns for work in owed)
                agent.resume(max(welcome.interval_end_ns.get(site.name, 0), min(work.start_ns for work in owed)), owed)
                agent.close(last_ns + 1)
                agent.resume(self.clock.now_ns(), ())
            sites[site.name] = agent
        return house

    def status(self, desk: Desk, journal: Journal) -> dict[str, Any]:
        """What an operator wants to see first."""
        now_ns = self.clock.now_ns()
        return {
            "grid": self.plan.name,
            "uptime_s": (now_ns - self._started_ns) // 1_000_000_000,
            "rss_mb": round(_rss_bytes() / 1e6, 1),
            "ledger": {"up": self.link.up, "pid": self.ledger.pid, "restarts": self.ledger.restarts},
            "open_holds": desk.open_holds,
            "journal": journal.position._asdict(),
            "replicas": [
                {
                    "name": name,
                    "model": replica.spec.model,
                    "site": replica.spec.site,
                    "slice": replica.spec.slice or None,
                    "state": replica.life.state.value,
                    "why": replica.why or None,
                    "running": replica.running,
                    "slots": replica.spec.slots,
                    "restarts": replica.restarts,
                    "prefill_tokens_per_s": replica.prefill_tps,
                    "decode_tokens_per_s": replica.decode_tps,
                }
                for name, replica in self.fleet.replicas.items()
            ],
        }


def _rss_bytes() -> int:
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * resource.getpagesize()
    except (OSError, ValueError, IndexError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


async def _background(stack: contextlib.AsyncExitStack, work: Any) -> None:
    task = asyncio.create_task(work)

    async def stop() -> None:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError, TokenworksError):
            await task

    stack.push_async_callback(stop)


class _Server(uvicorn.Server):
    """uvicorn's server on a socket that is bound already, telling when it answers."""

    def __init__(self, config: uvicorn.Config, answering: asyncio.Event) -> None:
        super().__init__(config)
        self._answering = answering

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._answering.set()


async def run(
    plan: Plan, data: Path, host: str, port: int, report: Report, ready: Callable[[str, float], None]
) -> None:
    """Run a grid until SIGINT or SIGTERM. ``ready(url, seconds)`` is called when the first replica can serve."""
    clock = WallClock()
    began_ns = clock.now_ns()
    with listen(host, port) as listener:
        shown = f"[{host}]" if ":" in host else host
        url = f"http://{shown}:{listener.getsockname()[1]}"
        grid = Grid(plan, data, clock, report)
        async with grid.running() as door:
            answering = asyncio.Event()
            config = uvicorn.Config(
                door,
                http="httptools",
                loop="uvloop",
                ws="none",
                lifespan="off",
                log_level="warning",
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=GRACE_S,
            )
            server = _Server(config, answering)

            async def tell() -> None:
                await answering.wait()
                run_file = datadir.Run(url=url, pid=os.getpid(), started_ns=clock.now_ns())
                datadir.write_private(data / "run.json", msgspec.json.encode(run_file))
                while not await grid.fleet.wait_ready(3600):
                    pass
                ready(url, (clock.now_ns() - began_ns) / 1e9)

            telling = asyncio.create_task(tell())
            try:
                await server.serve(sockets=[listener])
            finally:
                telling.cancel()
                (data / "run.json").unlink(missing_ok=True)
