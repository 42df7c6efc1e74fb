"""Single calls to the ledger, for the CLI: to the running process, or to the books themselves when none runs."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import msgspec

from tokenworks.core.clock import WallClock
from tokenworks.core.errors import DataDirError
from tokenworks.exchange import offices
from tokenworks.exchange.service import LedgerService
from tokenworks.exchange.wire import Answer, Call, Refusal, RemoteError, pack, read_message_blocking, socket_address

TIMEOUT_S = 60


def ask(data: Path, method: str, **params: Any) -> Any:
    """One call from the CLI: to the running ledger process, or, when no grid runs here, to the books themselves.

    Raises RemoteError or another TokenworksError when it is refused, DataDirError without a usable data directory.
    """
    if not (data / "version").exists():
        raise DataDirError(f"there is no grid in {data}", hint="start one: tokenworks up")
    try:
        return _ask_socket(data / "ledger.sock", method, params)
    except (FileNotFoundError, ConnectionRefusedError):
        clock = WallClock()
        service = LedgerService(data, clock)
        try:
            return msgspec.to_builtins(offices.answer(service, clock, method, params), builtin_types=(bytes,))
        finally:
            service.close()


def _ask_socket(path: Path, method: str, params: dict[str, Any]) -> Any:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection, socket_address(path) as address:
        connection.settimeout(TIMEOUT_S)
        connection.connect(address)
        connection.sendall(pack(Call(1, method, params)))
        while True:
            message = read_message_blocking(connection)
            if isinstance(message, Answer):
                return message.result
            if isinstance(message, Refusal):
                raise RemoteError(message)
