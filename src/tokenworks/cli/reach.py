"""How the CLI reaches a grid: its ledger, and HTTP with address and key from the data directory."""

from __future__ import annotations

import http.client
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import msgspec

from tokenworks.core.errors import DataDirError, TokenworksError, Unreachable
from tokenworks.datadir import data_directory, read_keys, read_run

HOST_DEFAULT = "127.0.0.1"
PORT_DEFAULT = 8080
TIMEOUT_S = 600
BODY_BYTES_MAX = 64 << 20


def configured_host() -> str:
    """``TOKENWORKS_HOST``."""
    return os.environ.get("TOKENWORKS_HOST") or HOST_DEFAULT


def configured_port() -> int:
    """``TOKENWORKS_PORT``. Raises DataDirError when it is not a port."""
    text = os.environ.get("TOKENWORKS_PORT") or str(PORT_DEFAULT)
    if not text.isdigit() or int(text) > 65535:
        raise DataDirError(f"TOKENWORKS_PORT is {text!r}, which is no port", hint="a number from 0 to 65535")
    return int(text)


def grid_url() -> str:
    """Where the grid of this data directory listens."""
    run = read_run(data_directory())
    return run.url if run else f"http://{configured_host()}:{configured_port()}"


def grid_key(*, admin: bool = False) -> str:
    """The key of the first start. Raises DataDirError when there was none."""
    keys = read_keys(data_directory())
    if keys is None:
        raise DataDirError(f"there is no grid in {data_directory()}", hint="start one: tokenworks up")
    return keys.admin_key if admin else keys.key


@contextmanager
def request(method: str, path: str, key: str, body: object = None) -> Iterator[http.client.HTTPResponse]:
    """One HTTP request to the grid. Raises Unreachable, or the error that the grid answered with."""
    url = grid_url()
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or HOST_DEFAULT, parts.port, timeout=TIMEOUT_S)
    headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
    try:
        try:
            connection.request(method, path, msgspec.json.encode(body) if body is not None else None, headers)
            response = connection.getresponse()
        except OSError as error:
            raise Unreachable(f"no grid answers at {url} ({error})", hint="start one: tokenworks up") from None
        if response.status >= 400:
            raise _told(response)
        yield response
    finally:
        connection.close()


def _told(response: http.client.HTTPResponse) -> TokenworksError:
    try:
        error: dict[str, Any] = msgspec.json.decode(response.read(BODY_BYTES_MAX))["error"]
    except (msgspec.DecodeError, KeyError, TypeError):
        return Unreachable(
            f"the answer was HTTP {response.status}, not a grid's", hint="is another program on that port?"
        )
    return TokenworksError(f"{error['message']} [{error['code']}]", hint=error.get("hint"))


def ask_ledger(method: str, **params: Any) -> Any:
    """What the ledger of this grid answers, running or at rest. Raises as ``ask``."""
    from tokenworks.exchange.ask import ask  # not for commands that only speak HTTP: it brings the store along

    return ask(data_directory(), method, **params)


def get(path: str, key: str) -> Any:
    """GET a JSON document."""
    with request("GET", path, key) as response:
        return msgspec.json.decode(response.read(BODY_BYTES_MAX))
