"""The ledger process: ``python -m tokenworks.exchange.server DATA [STORE [KEEP_BYTES]]``. It ends when its input does.

The gateway that starts it keeps the other end of that pipe, so a killed gateway leaves no ledger process behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenworks.core.clock import Clock, WallClock
from tokenworks.core.errors import BadRequest, DataDirError, TokenworksError
from tokenworks.core.files import socket_address
from tokenworks.core.units import NS_PER_S
from tokenworks.exchange import offices
from tokenworks.exchange.service import LedgerService
from tokenworks.exchange.wire import LINE_BYTES_MAX, Answer, Call, News, Refusal, pack, read_message

log = logging.getLogger(__name__)
POLL_S = 0.02
CHECKPOINT_NS = NS_PER_S
"""A second between checkpoints of a log that grows."""
PRUNE_NS = 60 * NS_PER_S
KEEP_BYTES = 256 * 10**6
"""How much of the journals is kept although the store has it for good."""
CONNECTIONS_MAX = 256


class LedgerServer:
    """Answers calls on ``DATA/ledger.sock`` and keeps the view close behind the journals."""

    def __init__(self, service: LedgerService, path: Path, clock: Clock, keep_bytes: int = KEEP_BYTES) -> None:
        self._service, self._path, self._clock, self._keep_bytes = service, path, clock, keep_bytes
        self._gateways: set[asyncio.StreamWriter] = set()
        self._told = 0
        self._signed_ns = self._pruned_ns = 0
        self._open = 0
        self.failed: BaseException | None = None

    async def serve(self, until: asyncio.Event) -> None:
        """Run until the event is set. Failing to keep the books ends the process: it restarts from the journals."""
        self._path.unlink(missing_ok=True)
        with socket_address(self._path) as address:
            server = await asyncio.start_unix_server(self._connected, address, limit=LINE_BYTES_MAX)
        self._path.chmod(0o600)
        tailing = asyncio.create_task(self._tail(until))
        try:
            await until.wait()
        finally:
            tailing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await tailing
            server.close()
            for writer in list(self._gateways):
                writer.close()
            self._path.unlink(missing_ok=True)
        if self.failed is not None:
            raise self.failed
        self._service.catch_up()

    async def _tail(self, until: asyncio.Event) -> None:
        while True:
            try:
                behind = self._service.advance()
                self._service.reclaim()
                if self._clock.now_ns() - self._signed_ns > CHECKPOINT_NS:
                    self._signed_ns = self._clock.now_ns()
                    self._service.checkpoint()
                self._prune()
                self._tell()
            except Exception as error:
                self.failed = error
                until.set()
                return
            await self._clock.sleep(0 if behind else POLL_S)

    def _prune(self) -> None:
        if self._clock.now_ns() - self._pruned_ns > PRUNE_NS:
            self._pruned_ns = self._clock.now_ns()
            try:
                self._service.prune(self._keep_bytes)
            except (DataDirError, OSError) as error:
                log.warning("journals stay as they are: %s", error)  # the books do not depend on it

    def _tell(self) -> None:
        if self._told == self._service.directory_version:
            return
        self._told = self._service.directory_version
        news = pack(News(self._service.directory()))
        for writer in self._gateways:
            writer.write(news)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open += 1
        try:
            if self._open > CONNECTIONS_MAX:
                return
            while (message := await read_message(reader)) is not None:
                if isinstance(message, Call):
                    writer.write(pack(self._answer(message, writer)))
                    await writer.drain()
                    self._tell()
        except (TokenworksError, ConnectionError):
            pass  # the other side is gone or speaks another language: it has been told what could be told
        finally:
            self._open -= 1
            self._gateways.discard(writer)
            writer.close()

    def _answer(self, call: Call, writer: asyncio.StreamWriter) -> Answer | Refusal:
        try:
            if call.method == "hello":
                result: Any = offices.hello(self._service, **call.params)
                self._tell()  # hello may have returned a dead gateway's holds: the others hear of it now
                self._gateways.add(writer)
            else:
                result = offices.answer(self._service, call.method, call.params)
        except TokenworksError as error:
            return Refusal(call.number, error.code, error.message, error.hint, error.param)
        except TypeError as error:
            return Refusal(call.number, BadRequest.code, f"wrong parameters for {call.method}: {error}", None)
        except Exception:
            # One question must not end the link of all gateways; what went wrong is in the log, not in the answer.
            log.exception("office %s failed", call.method)
            return Refusal(call.number, TokenworksError.code, f"the ledger could not answer {call.method}", None)
        return Answer(call.number, result)


async def _main(data: Path, store: str | None = None, keep_bytes: str = str(KEEP_BYTES)) -> None:
    until = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        # Ctrl-C reaches the whole foreground group; the gateway drains first and then closes our input.
        loop.add_signal_handler(number, (lambda: None) if number == signal.SIGINT else until.set)
    _watch_parent(loop, until.set)
    clock = WallClock()
    service = LedgerService(data, clock, store or None)
    try:
        await LedgerServer(service, data / "ledger.sock", clock, int(keep_bytes)).serve(until)
    finally:
        service.close()


def _watch_parent(loop: asyncio.AbstractEventLoop, ended: Callable[[], None]) -> None:
    """Call ``ended`` when standard input does."""

    def readable() -> None:
        if not os.read(0, 4096):
            loop.remove_reader(0)
            ended()

    try:
        loop.add_reader(0, readable)
    except PermissionError:
        raise TokenworksError("standard input must be a pipe from the process that starts the ledger") from None


def main() -> int:
    """Run the ledger process; one sentence and status 1 when it cannot."""
    try:
        asyncio.run(_main(Path(sys.argv[1]), *sys.argv[2:]))
    except TokenworksError as error:
        sys.stderr.write(f"ledger: {error}\n")
        return error.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main())
