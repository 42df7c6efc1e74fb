"""The drivers of engines on this machine: the embedded one (fetch the model, start llama.cpp in a child process), and
those that any command line starts (``vllm serve …``, ``llama-server …``).
"""

from __future__ import annotations

import asyncio
import secrets
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from tokenworks.core.clock import Clock
from tokenworks.core.files import write_private
from tokenworks.core.words import Word
from tokenworks.engine.adapter import Engine
from tokenworks.engine.adapters import CONNECTIONS_SPARE, adapter_for
from tokenworks.engine.child import Child
from tokenworks.engine.drivers import Driver, Held, Pace
from tokenworks.engine.lifeline import Orders
from tokenworks.engine.llamacpp_child import Settings
from tokenworks.engine.models import model_named
from tokenworks.engine.openai_compatible import CONTROL_CONNECTIONS_MAX
from tokenworks.engine.pull import Report, pull
from tokenworks.engine.record import Replica
from tokenworks.engine.replica import ReplicaSpec

HOST = "127.0.0.1"
EMBEDDED, LIFELINE = "tokenworks.engine.llamacpp_child", "tokenworks.engine.lifeline"


class Door(Word, frozen=True):
    """How this user's own tools reach an embedded engine, past the gateway and its books."""

    url: str
    api_key: str
    model: str
    threads: int


class EmbeddedDriver(Driver):
    """One child process of our own for each replica."""

    def __init__(self, clock: Clock, pace: Pace, log_dir: Path, cache: Path, report: Report) -> None:
        super().__init__(clock, pace)
        self._log_dir, self._cache, self._report = log_dir, cache, report
        self._pulling = asyncio.Lock()

    async def begin(self, replica: Replica) -> Held:
        spec = replica.spec
        model = model_named(spec.upstream_model or spec.model)
        async with self._pulling:  # replicas of one model need one download
            path = await asyncio.to_thread(pull, model, self._cache, self._report)
        settings = _settings(replica, path)

        def reach(port: int) -> Engine:
            url = f"http://{HOST}:{port}"
            door = Door(url=url, api_key=settings.api_key, model=model.name, threads=spec.threads)
            write_private(self._log_dir / f"{spec.name}.door", msgspec.json.encode(door))
            return adapter_for(replica, url, settings.api_key)

        child = await Child.start(EMBEDDED, settings, self._log_dir / f"{spec.name}.log", spec.limits)
        return await child.reached(reach, self._pace.stop_s)


def _settings(replica: Replica, model_path: Path) -> Settings:
    spec = replica.spec
    connections_max = spec.slots + replica.waiting_max + CONNECTIONS_SPARE
    return Settings(
        model_path=str(model_path),
        alias=spec.model,
        host=HOST,
        port=0,
        slots=spec.slots,
        context_tokens=spec.context_tokens,
        threads=spec.threads,
        http_threads=spec.gateways * (connections_max + 2 * CONTROL_CONNECTIONS_MAX),
        # Loopback is open to every user of this machine: a key of this process's own keeps them out.
        api_key=secrets.token_hex(16),
    )


def orders_of(spec: ReplicaSpec) -> Orders:
    """The command of a replica; its port is the URL's, when the grid file gives one."""
    port = urlsplit(spec.url).port if spec.url else None
    return Orders(command=spec.command, model=spec.upstream_model or spec.model, port=port)


class ProcessDriver(Driver):
    """One supervised command for each replica, with its devices in the environment."""

    def __init__(self, clock: Clock, pace: Pace, log_dir: Path) -> None:
        super().__init__(clock, pace)
        self._log_dir = log_dir

    async def begin(self, replica: Replica) -> Held:
        spec = replica.spec
        child = await Child.start(LIFELINE, orders_of(spec), self._log_dir / f"{spec.name}.log", spec.limits)
        reach = lambda port: adapter_for(replica, spec.url or f"http://{HOST}:{port}")  # noqa: E731
        return await child.reached(reach, self._pace.stop_s)
