"""Runs one engine's command for as long as its parent lives: ``python -m tokenworks.engine.lifeline``.

One JSON line on stdin holds the orders, one on stdout, ``{"port": N}``, says where the engine was told to listen. After
that stdin is only a lifeline: at its end, even by kill -9 of the parent, the command and all that it has started are
asked to leave, and killed if they do not. Whatever the engine prints goes to stderr, which is its log.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from typing import BinaryIO

import msgspec

from tokenworks.core.words import Word
from tokenworks.engine.llamacpp_child import SETTINGS_BYTES_MAX, Ready

GRACE_S = 2.5
"""How long an engine may take to leave."""
PR_SET_PDEATHSIG = 1
EXIT_NOT_STARTED = 127
"""As a shell says it."""


class Orders(Word, frozen=True):
    """What to run. ``{port}``, ``{model}`` and ``names`` are filled in here; without a port a free one is taken."""

    command: tuple[str, ...]
    model: str
    port: int | None = None
    names: dict[str, str] = {}


def free_port() -> int:
    """A port that nobody listens on at this moment, on any address."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


def _follow() -> None:
    """In the command, before it runs: it is told when this process ends, even by SIGKILL (prctl(2), PDEATHSIG)."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _watch(lifeline: BinaryIO, child: subprocess.Popen[bytes]) -> None:
    while lifeline.read(4096):
        pass
    os.killpg(0, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(GRACE_S)
    os.killpg(0, signal.SIGKILL)  # whoever is left, and ourselves


def main() -> int:
    """Read the orders, run the command, end with its status."""
    lifeline = sys.stdin.buffer
    orders = msgspec.json.decode(lifeline.readline(SETTINGS_BYTES_MAX), type=Orders)
    port = orders.port or free_port()
    names = orders.names | {"port": str(port), "model": orders.model}
    command = [re.sub(r"{(\w+)}", lambda name: names.get(name[1], name[0]), word) for word in orders.command]
    signal.signal(signal.SIGTERM, lambda *_: None)  # it is for the others of our group; a handler is not inherited
    try:
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=sys.stderr, preexec_fn=_follow)  # noqa: PLW1509
    except OSError as error:
        sys.stderr.write(f"{command[0]} cannot be started: {error.strerror}\n")
        return EXIT_NOT_STARTED
    os.write(1, msgspec.json.encode(Ready(port=port)) + b"\n")
    threading.Thread(target=_watch, args=(lifeline, child), name="lifeline", daemon=True).start()
    return child.wait()


if __name__ == "__main__":
    status = main()
    sys.stderr.flush()
    # The watching thread holds stdin, over which an ordinary exit would stumble.
    os._exit(status if status >= 0 else 128 - status)
