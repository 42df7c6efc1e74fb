"""A gateway's lasting link to the ledger process."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from tokenworks.core.clock import Clock
from tokenworks.core.errors import ExchangeDown, LedgerRefused, Unreachable
from tokenworks.core.files import socket_address
from tokenworks.core.steps import in_task
from tokenworks.core.words import Work
from tokenworks.exchange import wire
from tokenworks.exchange.words import Directory, Lease

CALL_TIMEOUT_S = 10.0
RETRY_S = 0.1


class Welcome(msgspec.Struct, frozen=True):
    """What the ledger tells a gateway that reports for work."""

    epoch: int
    directory: Directory
    unmetered: tuple[Work, ...]
    interval_end_ns: dict[str, int]


class LedgerLink:
    """A gateway's link: hello, a fresh directory, calls, and coming back after the ledger restarts."""

    def __init__(self, data: Path, writer: str, clock: Clock, learn: Callable[[Directory], None]) -> None:
        self._path, self._writer_name, self._clock, self._learn = data / "ledger.sock", writer, clock, learn
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._stream: asyncio.StreamWriter | None = None
        self._reading: asyncio.Task[None] | None = None
        self._epoch: int | None = None
        self._first_epoch: int | None = None

    @property
    def up(self) -> bool:
        """The ledger can be asked now. Holds and settlements do not need it: they go to the journal."""
        return self._stream is not None

    async def start(self, timeout_s: float) -> Welcome:
        """Connect and say hello. Raises Unreachable when no ledger answers in time, RemoteError when it refuses."""
        deadline = self._clock.now_ns() + round(timeout_s * 1e9)
        while True:
            try:
                welcome = await self._connect()
                self._epoch = self._first_epoch = welcome.epoch
                return welcome
            except (OSError, ExchangeDown):
                if self._clock.now_ns() > deadline:
                    raise Unreachable(
                        "the ledger process does not answer", hint="see logs/ledger.log in the data directory"
                    ) from None
                await self._clock.sleep(0.02)

    async def _connect(self) -> Welcome:
        with socket_address(self._path) as address:
            reader, self._stream = await asyncio.open_unix_connection(address, limit=wire.LINE_BYTES_MAX)
        self._reading = asyncio.create_task(self._read(reader, self._stream))
        welcome = await self._hello(epoch=self._epoch)
        self._learn(welcome.directory)
        return welcome

    async def _read(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while (message := await wire.read_message(reader)) is not None:
                if isinstance(message, wire.News):
                    self._learn(message.directory)
                elif isinstance(message, wire.Answer | wire.Refusal) and (
                    waiting := self._waiting.pop(message.number, None)
                ):
                    if waiting.done():
                        continue
                    if isinstance(message, wire.Answer):
                        waiting.set_result(message.result)
                    else:
                        waiting.set_exception(wire.RemoteError(message))
        finally:
            writer.close()
            self._stream = None
            for waiting in self._waiting.values():
                if not waiting.done():
                    waiting.set_exception(ExchangeDown("the ledger process stopped"))
            self._waiting.clear()

    async def keep(self) -> None:
        """Come back whenever the link breaks, until cancelled."""
        while True:
            if self._reading is not None:
                await asyncio.wait([self._reading])
            with contextlib.suppress(OSError, ExchangeDown, Unreachable):
                await self._connect()
                continue
            self._reading = None
            await self._clock.sleep(RETRY_S)

    async def call(self, method: str, /, **params: Any) -> Any:
        """Ask the ledger. Raises ExchangeDown when it is away or silent, RemoteError when it refuses."""
        if self._stream is None:
            raise ExchangeDown("the ledger process is restarting")
        await in_task()
        number = next(self._numbers)
        waiting: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting[number] = waiting
        try:
            self._stream.write(wire.pack(wire.Call(number, method, params)))
            async with asyncio.timeout(CALL_TIMEOUT_S):  # wait_for of Python 3.11 can swallow a cancellation
                return await waiting
        except TimeoutError:
            raise ExchangeDown("the ledger process does not answer") from None
        finally:
            self._waiting.pop(number, None)

    async def _hello(self, **params: Any) -> Welcome:
        return msgspec.convert(await self.call("hello", writer=self._writer_name, **params), Welcome)

    async def lease(self, wanted: dict[str, int], returned: dict[str, int]) -> list[Lease]:
        """Ask for more of some counters and return sums of others. Raises LedgerRefused when this epoch has ended."""
        try:
            raw = await self.call(
                "lease", writer=self._writer_name, epoch=self._epoch, wanted=wanted, returned=returned
            )
        except wire.RemoteError as error:
            if error.code == LedgerRefused.code:
                raise LedgerRefused(error.message, hint=error.hint) from error
            raise
        return msgspec.convert(raw, list[Lease])

    async def restart(self) -> Welcome:
        """Begin a new epoch on the same link, after the old one was ended: what is in flight there may still settle.

        Raises as ``call``.
        """
        welcome = await self._hello(epoch=None, lives_since=self._first_epoch)
        self._epoch = welcome.epoch
        return welcome

    async def unmetered(self) -> tuple[Work, ...]:
        """Settled works that no closed interval has, as of now. Raises as ``call``."""
        return (await self._hello(epoch=self._epoch)).unmetered

    async def close(self) -> None:
        """Hang up."""
        if self._reading is not None:
            self._reading.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._reading
