"""Single calls to the ledger, for the CLI: to the running process, or to the books themselves when none runs."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from typing import Any

import msgspec

from tokenworks.core.clock import WallClock
from tokenworks.core.errors import DataDirError, LeasedOut, TokenworksError, Unreachable
from tokenworks.core.files import socket_address
from tokenworks.core.units import NS_PER_S
from tokenworks.exchange import offices
from tokenworks.exchange.service import LedgerService
from tokenworks.exchange.wire import Answer, Call, Refusal, RemoteError, pack, unpack

TIMEOUT_S = 60
PATIENCE_NS = 6 * NS_PER_S
"""Gateways return idle leases every second; a request in flight may keep its own for longer."""


def ask(data: Path, method: str, **params: Any) -> Any:
    """One call, made again for a few seconds while gateways hold rights that it needs back. Raises as ``ask_once``."""
    clock = WallClock()
    until_ns = clock.now_ns() + PATIENCE_NS
    while True:
        try:
            return ask_once(data, method, **params)
        except TokenworksError as error:
            if error.code != LeasedOut.code or clock.now_ns() > until_ns:
                raise
            asyncio.run(clock.sleep(1))


def ask_once(data: Path, method: str, **params: Any) -> Any:
    """One call from the CLI: to the running ledger process, or, when no grid runs here, to the books themselves.

    Raises RemoteError or another TokenworksError when it is refused, DataDirError without a usable data directory.
    """
    if not (data / "version").exists():
        raise DataDirError(f"there is no grid in {data}", hint="start one: tokenworks up")
    try:
        return _ask_socket(data / "ledger.sock", method, params)
    except (FileNotFoundError, ConnectionRefusedError):
        clock = WallClock()
        elsewhere = data / "store"
        service = LedgerService(data, clock, elsewhere.read_text() if elsewhere.exists() else None)
        try:
            return msgspec.to_builtins(offices.answer(service, method, params))
        finally:
            service.close()


def _ask_socket(path: Path, method: str, params: dict[str, Any]) -> Any:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection, socket_address(path) as address:
        connection.settimeout(TIMEOUT_S)
        connection.connect(address)
        connection.sendall(pack(Call(1, method, params)))
        with connection.makefile("rb") as lines:
            for message in map(unpack, lines):
                if isinstance(message, Answer):
                    return message.result
                if isinstance(message, Refusal):
                    raise RemoteError(message)
    raise Unreachable("the ledger closed the connection")
