"""Where a server is: ``http://host:port/path``, ``https://…``, or ``unix:///run/engine.sock`` on the same machine."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit


class Server(NamedTuple):
    """What a Pool connects to."""

    host: str = ""
    port: int = 0
    tls: ssl.SSLContext | None = None
    socket: Path | None = None
    """A Unix socket, in place of host and port."""

    def __str__(self) -> str:
        return f"unix://{self.socket}" if self.socket else f"{self.host}:{self.port}"

    @property
    def authority(self) -> str:
        """The Host header's value."""
        if self.socket is not None:
            return "localhost"  # what servers behind such a socket expect: it names no host
        name = f"[{self.host}]" if ":" in self.host else self.host
        return f"{name}:{self.port}"


def sound(url: str) -> bool:
    """Whether it is one of the three forms, without user, password, query or fragment."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return False
    if not url.isprintable() or parts.username is not None or parts.query or parts.fragment:
        return False
    if parts.scheme == "unix":
        return not parts.netloc and parts.path.startswith("/") and not parts.path.endswith("/")
    return parts.scheme in ("http", "https") and bool(parts.hostname) and port != 0


def server_of(url: str) -> tuple[Server, str]:
    """The server of a URL, and the path on it before ``/v1``, which people write and leave out.

    Raises ValueError when it is none.
    """
    if not sound(url):
        raise ValueError("its url is not an http, https or unix address")  # which may hold a password
    parts = urlsplit(url)
    if parts.scheme == "unix":
        return Server(socket=Path(parts.path)), ""
    secure = parts.scheme == "https"
    tls = ssl.create_default_context() if secure else None
    server = Server(parts.hostname or "", parts.port or (443 if secure else 80), tls)
    return server, parts.path.rstrip("/").removesuffix("/v1")
