"""A worker: ``python -m tokenworks.worker``, a gateway process beside the first one, which starts it.

It serves the same front door on the same port, from budgets that it leases itself into a journal of its own. Replicas
and sites stay with the first process; ``channel`` says what the two tell each other. When its standard input ends
without a farewell the first process is dead, and so is the worker at once: its journal has all that was acknowledged.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
from pathlib import Path
from typing import Any

import msgspec
import uvloop

from tokenworks.channel import BUFFER_BYTES_MAX, STEPS_MAX, TICK_S, Brief, Heard, Step, Told, line
from tokenworks.core.clock import Clock, WallClock
from tokenworks.core.errors import EngineDown, TokenworksError
from tokenworks.core.files import locked
from tokenworks.core.words import Interval, Work
from tokenworks.device.tools import LINE_BYTES_MAX
from tokenworks.engine.mirror import Mirror
from tokenworks.gateway import Gateway, background, listen
from tokenworks.site.agent import SiteAgent
from tokenworks.site.words import Site

log = logging.getLogger(__name__)
OUTBOX_MAX = 100_000
"""Steps that wait to be told of; with more, the first process is not listening, and no request is accepted."""
FLUSH_S = 2.0
"""How long the last words of a worker that leaves may take."""


class Outpost(SiteAgent):
    """A site of which another process keeps the books: it estimates from its own works, and passes them on."""

    def __init__(self, site: Site, clock: Clock, outbox: list[Step]) -> None:
        super().__init__(site, clock, _nowhere)
        self._outbox = outbox

    def begin(self, receipt: str, replica: str, slice: str, start_ns: int) -> None:  # noqa: A002 - as in SiteAgent
        """See ``SiteAgent.begin``. Raises EngineDown too when nobody takes what is passed on."""
        if len(self._outbox) >= OUTBOX_MAX:
            raise EngineDown(f"the books of site {self.site.name} are not kept at the moment")
        super().begin(receipt, replica, slice, start_ns)
        self._outbox.append(Step(to="begun", work=self._work(receipt, replica, slice, start_ns)))

    def end(self, work: Work) -> None:
        super().forget(work.receipt, work.replica, work.slice)
        self._outbox.append(Step(to="ended", work=work))

    def forget(self, receipt: str, replica: str, slice: str) -> None:  # noqa: A002 - as in SiteAgent
        super().forget(receipt, replica, slice)
        self._outbox.append(Step(to="forgotten", work=self._work(receipt, replica, slice, 0)))


def _nowhere(_: Interval) -> None:
    raise AssertionError("an outpost closes no interval")


class Post:
    """A worker's end of the channel."""

    def __init__(self, gateway: Gateway, mirror: Mirror, outbox: list[Step]) -> None:
        self._gateway, self._mirror, self._outbox = gateway, mirror, outbox
        self.others: dict[str, Any] = {}
        """What was last told of the grid's other processes."""

    async def listen(self, reader: asyncio.StreamReader) -> None:
        """Take what is told; at the end of the first process this one ends too, at once."""
        try:
            while said := await reader.readline():
                told = msgspec.json.decode(said, type=Told)
                if not told.leave:
                    self.others = told.others
                    self._gateway.orders.clear()
                    self._gateway.orders.update(told.orders)
                    self._gateway.meanwhile(told.moments)
                    for now in told.replicas:
                        await self._mirror.show(now)
                elif not self._gateway.leave():
                    break  # it does not serve yet
        except Exception:
            log.exception("the line to the first gateway process broke")
        os._exit(1)

    async def speak(self, pipe: asyncio.WriteTransport) -> None:
        """Tell what has happened, a few times a second."""
        while True:
            self.say(pipe)
            await self._gateway.clock.sleep(TICK_S)

    def say(self, pipe: asyncio.WriteTransport) -> None:
        """Tell all there is, unless the pipe is full: then it waits here."""
        gateway, outbox, more = self._gateway, self._outbox, True
        while more and pipe.get_write_buffer_size() < BUFFER_BYTES_MAX:
            heard = Heard(
                uses=self._mirror.uses(), requests=gateway.metrics.requests, open_holds=gateway.desk.open_holds,
                waiting=gateway.waiting, services=gateway.services(), steps=tuple(outbox[:STEPS_MAX]),
            )  # fmt: skip
            pipe.write(line(heard))
            del outbox[:STEPS_MAX]
            more = bool(outbox)


async def _run(brief: Brief, reader: asyncio.StreamReader, pipe: asyncio.WriteTransport) -> None:
    clock, data, outbox = WallClock(brief.anchor_ns), Path(brief.data), list[Step]()
    # Only one process at a time writes a gateway's journals, whatever became of an earlier grid.
    with locked(data / f"{brief.name}.lock", f"another process is {brief.name} of this data directory"):
        async with contextlib.AsyncExitStack() as stack:
            gateway, mirror = Gateway(brief.plan, data, brief.name, clock), Mirror(brief.plan.replicas, clock)
            post = Post(gateway, mirror, outbox)
            await background(stack, post.listen(reader))
            await gateway.join(stack)
            stack.push_async_callback(mirror.close)
            gateway.open_house(mirror.replicas, {site.name: Outpost(site, clock, outbox) for site in brief.plan.sites})
            await mirror.seen.wait()
            with listen(brief.host, brief.port, share=True) as listener:
                await background(stack, post.speak(pipe))
                await gateway.serve(listener, lambda: post.others, asyncio.Event())
            post.say(pipe)
            async with asyncio.timeout(FLUSH_S):
                while pipe.get_write_buffer_size():
                    await clock.sleep(TICK_S / 10)


async def _main() -> None:
    loop, reader = asyncio.get_running_loop(), asyncio.StreamReader(limit=LINE_BYTES_MAX)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    pipe, _ = await loop.connect_write_pipe(asyncio.BaseProtocol, sys.stdout)
    if said := await reader.readline():
        await _run(msgspec.json.decode(said, type=Brief), reader, pipe)


def main() -> int:
    """Run a worker; one sentence and its status when it cannot."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    try:
        uvloop.run(_main())
    except TokenworksError as error:
        sys.stderr.write(f"gateway: {error}\n")
        return error.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main())
