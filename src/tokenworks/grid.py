"""The one place where a running grid is composed: ledger process, first gateway, fleet, site agents, workers.

Start order: the port (so that a taken one is told at once), the ledger process, the first keys, site agents, replicas,
the other gateway processes if there are any, and the front door, which answers while replicas still load.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

import msgspec

from tokenworks import datadir
from tokenworks.channel import LAG_S
from tokenworks.children import Kept
from tokenworks.compose import Plan
from tokenworks.compose_meters import site_panel
from tokenworks.core.clock import WallClock
from tokenworks.core.errors import DataDirError, Unreachable
from tokenworks.core.files import write_private
from tokenworks.core.words import Interval
from tokenworks.engine.fleet import Fleet
from tokenworks.engine.pull import model_cache
from tokenworks.exchange.link import LedgerLink, Welcome
from tokenworks.exchange.words import CloseInterval
from tokenworks.gateway import GATEWAY, Gateway, background, listen
from tokenworks.guard import Guard
from tokenworks.moments import moments
from tokenworks.respond import Responder, Watch
from tokenworks.site.agent import SiteAgent
from tokenworks.site.words import Site
from tokenworks.workers import Workers

if TYPE_CHECKING:
    from tokenworks.gridfile.tables import OpenAdr as OpenAdrTable
    from tokenworks.gridfile.tables import Supply as SupplyTable
    from tokenworks.pricing import SitePricing

OPERATOR = "operator"
FIRST_ACCOUNT = "default"
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


class Grid:
    """A running grid, in its first process: what all gateways share is kept here."""

    def __init__(self, plan: Plan, data: Path, clock: WallClock, report: Report, host: str, port: int) -> None:
        self.plan, self.data, self.clock, self._report = plan, data, clock, report
        self.gateway = Gateway(plan, data, f"{GATEWAY}1", clock)
        command = ("tokenworks.exchange.server", str(data), plan.store or "", str(plan.journal_keep_bytes))
        self.ledger = Kept(clock, data / "logs" / "ledger.log", *command)
        self.fleet = Fleet(plan.replicas, clock, data / "logs", model_cache(), report=report)
        self.workers = Workers(self.gateway, self.ledger, host, port)
        self._pricings = self._pricing()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Everything but the listener, started in order and stopped in reverse."""
        async with contextlib.AsyncExitStack() as stack:
            self.plan.prices.at(self.clock.now_ns())  # a grid without a rate card does not start
            write_private(self.data / "prices.json", msgspec.json.encode(self.plan.prices))
            self._report("starting the ledger")
            await self.ledger.start()
            stack.push_async_callback(self.ledger.stop)
            gateway = self.gateway
            welcome = await gateway.join(stack)
            await background(stack, self.ledger.keep())
            await first_keys(self.data, self.plan, gateway.link)
            for facts in self.plan.facts:
                await gateway.link.call("describe_site", facts=msgspec.to_builtins(facts))
            gateway.open_house(self.fleet.replicas, sites := dict[str, SiteAgent]())
            for agent in self._agents(welcome):
                sites[agent.site.name] = agent
                await background(stack, agent.run())
            responder = Responder(sites, self.fleet.replicas, gateway.orders, self.clock, self.data)
            every_s = min(self.plan.intervals_s.values())
            guard = Guard(self.plan.devices, self.fleet.replicas, self.clock, every_s)
            self.workers.sites = lambda: [each | {"devices": guard.status(each["site"])} for each in responder.status()]
            await background(stack, guard.run())
            priced = {name: pricing.now for name, pricing in self._pricings.items()}
            responder.follow = lambda now_ns: gateway.meanwhile(moments(self.plan.sites, priced, now_ns))
            for name, pricing in self._pricings.items():
                responder.watches[name].shares = pricing.shares
                for event in pricing.power.events:
                    responder.watches[name].hear(event)
            for watch in responder.watches.values():
                watch.bill = gateway.desk.book
            for table in self.plan.powers:
                watch = responder.watches[table.name]
                if table.contract is not None:
                    watch.history.zone, watch.history.holidays = ZoneInfo(table.contract.zone), table.contract.holidays
                if table.openadr is not None:
                    await background(stack, self._openadr(table.openadr, table.supply, watch))
            await background(stack, responder.run())
            await self.fleet.start()
            stack.push_async_callback(self.fleet.stop)
            await self.workers.start(stack)
            yield

    async def _openadr(self, table: OpenAdrTable, feed: SupplyTable, watch: Watch) -> None:
        """Hear a utility's events. Shares of capacity, of which its programmes speak, are of the feed's."""
        from tokenworks.power.openadr import OpenAdr

        ven = OpenAdr(table.url, table.ven, feed.limit_mw or 0, self.clock, watch.hear)
        watch.openadr = lambda: ven.state
        try:
            await ven.run()
        except Unreachable as error:  # the extra is not installed
            why = f"not heard: {error}"
            watch.openadr = lambda: why

    def _pricing(self) -> dict[str, SitePricing]:
        """Of the sites of which the grid file says more than one plain supply; tables of signals need numpy."""
        powers = [table for table in self.plan.powers if table.powered]
        if not powers:
            return {}
        from tokenworks.pricing import SitePricing

        return {table.name: SitePricing(table, self.plan.currency, self.data) for table in powers}

    def _agents(self, welcome: Welcome) -> Iterator[SiteAgent]:
        tables = {table.name: table for table in self.plan.powers}
        for number, site in enumerate(self.plan.sites):
            interval_s = self.plan.intervals_s[site.name]
            panel = site_panel(self.clock, site, tables.get(site.name), interval_s, own=not number)
            agent = SiteAgent(
                site,
                self.clock,
                partial(self._book, site),
                interval_s,
                # The gateways run at the first site: their own processor time is that site's.
                services=dict if number else self._services,
                panel=panel,
                pricing=self._pricings.get(site.name),
                correct=partial(self._book, site),
                lag_s=LAG_S if self.plan.workers > 1 else 0,
            )
            slices = {load.slice for load in site.loads}
            owed = [work for work in welcome.unmetered if work.site == site.name and work.slice in slices]
            if owed:
                # The last grid died with an interval open: meter what it settled, up to its last sign of life.
                # The time since then is nobody's: the machine's energy was not observed, and is not invented.
                last_ns = max(work.end_ns for work in owed)
                agent.resume(max(welcome.interval_end_ns.get(site.name, 0), min(work.start_ns for work in owed)), owed)
                agent.close(last_ns + 1)
                agent.resume(self.clock.now_ns(), ())
            yield agent

    def _book(self, site: Site, interval: Interval) -> None:
        """An interval or its correction; before it, what is billed beside it, since that may be said twice."""
        pricing, desk = self._pricings.get(site.name), self.gateway.desk
        for bill in pricing.bills(site.name, site.supply.name) if pricing else ():
            desk.book(bill)
        desk.book(CloseInterval(interval=interval))

    def _services(self) -> dict[str, int]:
        total = self.workers.services
        total.update(self.gateway.services())
        taken = dict(total)
        total.clear()
        return taken


async def run(
    plan: Plan, data: Path, host: str, port: int, report: Report, ready: Callable[[str, float], None]
) -> None:
    """Run a grid until SIGINT or SIGTERM. ``ready(url, seconds)`` is called when the first replica can serve."""
    clock = WallClock()
    began_ns = clock.now_ns()
    with listen(host, port) as listener:
        port = listener.getsockname()[1]
        shown = f"[{host}]" if ":" in host else host
        url = f"http://{shown}:{port}"
        grid = Grid(plan, data, clock, report, host, port)
        async with grid.running():
            answering = asyncio.Event()

            async def tell() -> None:
                await answering.wait()
                run_file = datadir.Run(url=url, pid=os.getpid(), started_ns=clock.now_ns())
                write_private(data / "run.json", msgspec.json.encode(run_file))
                while not await grid.fleet.wait_ready(3600):
                    pass
                ready(url, (clock.now_ns() - began_ns) / 1e9)

            telling = asyncio.create_task(tell())
            try:
                await grid.gateway.serve(listener, grid.workers.others, answering, grid.workers.leave)
            finally:
                telling.cancel()
                (data / "run.json").unlink(missing_ok=True)
