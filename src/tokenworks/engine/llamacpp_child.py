"""The embedded engine's process: ``python -m tokenworks.engine.llamacpp_child``.

llama.cpp's own HTTP server runs inside this interpreter (package xllamacpp), in a process of its own so that a native
crash cannot take the gateway down. One JSON line on stdin holds the settings (so no key stands on a command line). One
JSON line on stdout, ``{"port": 12345}``, says that the server is there. After that stdin is only a lifeline: its end
means that the parent is gone, even by kill -9, and the process exits at once, so no orphan is ever left.
"""

from __future__ import annotations

import fcntl
import os
import select
import sys
import threading
from typing import BinaryIO

import msgspec

from tokenworks.core.words import Word

CACHE_RAM_MIB = 128
"""Host memory for prompts that left their slot; llama.cpp's own default is 8192."""
ERRORS_ONLY = 1
"""llama.cpp's verbosity at which it logs errors and nothing about requests that went well."""
SETTINGS_BYTES_MAX = 65_536


class Settings(Word, frozen=True):
    """What the parent asks for."""

    model_path: str
    alias: str
    """The model's name in answers."""
    host: str
    port: int
    """0: any free one; the system picks it while binding, so there is no race."""
    slots: int
    """Requests worked on at the same time; more wait inside llama.cpp."""
    context_tokens: int
    """Per slot: prompt and answer together."""
    threads: int
    http_threads: int
    """One is taken by each open connection, waiting or not; health checks need some left over."""
    api_key: str


class Ready(Word, frozen=True):
    """What the child says once, when the server is there."""

    port: int


def _hold(lifeline: BinaryIO) -> None:
    """Ask the kernel for SIGIO, which ends a process that does not handle it, when the lifeline ends.

    The watching thread is not enough: loading a model holds Python's global lock, for minutes with a large one.
    """
    fcntl.fcntl(lifeline, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC)
    poll = select.poll()
    poll.register(lifeline, 0)
    if poll.poll(0):  # it ended before the kernel was asked
        os._exit(0)


def _watch(lifeline: BinaryIO) -> None:
    while lifeline.read(4096):
        pass
    os._exit(0)


def _serve(settings: Settings) -> tuple[object, int]:
    """Start the server; returns it (it lives as long as it is referenced) and its port."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = settings.model_path
    params.model_alias = {settings.alias}
    params.hostnames = [settings.host]
    params.port = settings.port
    params.api_keys = [settings.api_key]
    params.n_parallel = settings.slots
    params.n_ctx = settings.slots * settings.context_tokens
    params.kv_unified = False  # each slot has its own share: a long neighbour cannot take it
    params.cpuparams.n_threads = settings.threads
    params.cpuparams_batch.n_threads = settings.threads
    params.n_threads_http = settings.http_threads
    params.cache_ram_mib = CACHE_RAM_MIB
    params.endpoint_metrics = params.endpoint_slots = params.endpoint_props = True
    params.ui = False
    params.verbosity = ERRORS_ONLY
    server = xllamacpp.Server(params)
    return server, int(str(server.listening_address).rsplit(":", 1)[1])


def main() -> None:
    """Read the settings, serve until the lifeline ends."""
    lifeline = sys.stdin.buffer
    settings = msgspec.json.decode(lifeline.readline(SETTINGS_BYTES_MAX), type=Settings)
    # Native code may print to descriptor 1. Keep the real one aside and send the rest to the log.
    answer = os.dup(1)
    os.dup2(2, 1)
    watcher = threading.Thread(target=_watch, args=(lifeline,), name="lifeline", daemon=True)
    watcher.start()  # it sees an end that came before the next line
    _hold(lifeline)
    server, port = _serve(settings)
    os.write(answer, msgspec.json.encode(Ready(port=port)) + b"\n")
    os.close(answer)
    watcher.join()
    del server


if __name__ == "__main__":
    main()
