"""The driver that places engines on a Ray cluster: ``pip install 'tokenworks[ray]'``, on every node too.

Each replica is a placement group of one bundle (fractions and resources of one's own are Ray's), and in it an actor
that runs the engine's command beside it. When the actor or its node dies, the replica has failed and is placed again
on whatever is left. Source: Ray documentation, "Placement Groups", "Resources", 2.60.
"""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
from typing import Any

import msgspec

from tokenworks.core.errors import EngineDown
from tokenworks.device.slices import Took
from tokenworks.engine.adapter import Engine
from tokenworks.engine.adapters import adapter_for
from tokenworks.engine.drivers import Driver, Held
from tokenworks.engine.llamacpp_child import Ready
from tokenworks.engine.process import MODULE, orders_of
from tokenworks.engine.record import Replica

THREADS = 2
"""Calls of an actor that may wait at once: one for the end of its command, one for anything else."""


class OnNode:
    """Runs on the node: one command on a lifeline that ends with this actor."""

    def __init__(self, orders: bytes) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", MODULE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
        )
        assert self._process.stdin is not None
        self._process.stdin.write(orders + b"\n")
        self._process.stdin.flush()

    def port(self) -> int | None:
        """Where the engine was told to listen; None: it ended instead."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        return msgspec.json.decode(line, type=Ready).port if line else None

    def host(self) -> str:
        """This node's address."""
        return str(_ray().util.get_node_ip_address())

    def ended(self) -> int:
        """Its status, when it has ended."""
        return self._process.wait()


class _Placed:
    """An engine on some node."""

    def __init__(self, ray: Any, actor: Any, group: Any, engine: Engine) -> None:
        self._ray, self._actor, self._group = ray, actor, group
        self.engine = engine

    async def ended(self) -> str:
        """See ``Held.ended``."""
        try:
            return f"the engine's process ended with status {await self._actor.ended.remote()}"
        except self._ray.exceptions.RayError as error:
            return f"its node or actor is gone: {type(error).__name__}"

    def look(self) -> Took | None:
        """See ``Held.look``: it is not on this machine."""
        return None

    async def stop(self, patience_s: float) -> None:
        """See ``Held.stop``. The actor's lifeline ends its command."""
        _release(self._ray, self._actor, self._group)


def _release(ray: Any, actor: Any, group: Any) -> None:
    with contextlib.suppress(Exception):  # the cluster itself may be gone
        if actor is not None:
            ray.kill(actor)
        ray.util.remove_placement_group(group)


class RayDriver(Driver):
    """One placement group for each replica. Joins the cluster with the first, leaves it with the last."""

    _joining: asyncio.Lock | None = None
    _users = 0
    _joined = False

    async def run(self, replica: Replica) -> None:
        """See ``Driver.run``."""
        self._users += 1
        try:
            await super().run(replica)
        finally:
            self._users -= 1
            if self._joined and not self._users:
                self._joined = False
                await asyncio.shield(asyncio.to_thread(_ray().shutdown))

    async def begin(self, replica: Replica) -> Held:
        """See ``Driver.begin``. Raises EngineDown when no node has room for it."""
        spec, ray = replica.spec, _ray()
        await self._join(ray, spec.cluster)
        bundle = {name: amount / 1000 for name, amount in spec.resources_milli.items()}
        group, actor = ray.util.placement_group([bundle], strategy="PACK"), None
        try:
            await _room(group, bundle, self._pace.place_s)
            others = {name: amount for name, amount in bundle.items() if name not in ("CPU", "GPU", "memory")}
            strategy = ray.util.scheduling_strategies.PlacementGroupSchedulingStrategy(placement_group=group)
            remote = ray.remote(OnNode).options(
                num_cpus=bundle.get("CPU", 0), num_gpus=bundle.get("GPU", 0), memory=bundle.get("memory"),
                resources=others, scheduling_strategy=strategy, max_restarts=0, max_concurrency=THREADS,
            )  # fmt: skip
            actor = remote.remote(msgspec.json.encode(orders_of(spec)))
            host, port = await actor.host.remote(), await actor.port.remote()
            if port is None:
                raise EngineDown(f"the engine's command ended at once (status {await actor.ended.remote()})")
            return _Placed(ray, actor, group, adapter_for(replica, f"http://{host}:{port}"))
        except ray.exceptions.RayError as error:
            _release(ray, actor, group)
            raise EngineDown(f"its node or actor is gone: {type(error).__name__}") from error
        except BaseException:
            _release(ray, actor, group)
            raise

    async def _join(self, ray: Any, address: str) -> None:
        """Join the cluster, once. Raises EngineDown when there is none."""
        self._joining = self._joining or asyncio.Lock()
        async with self._joining:
            if ray.is_initialized():
                return
            try:
                await asyncio.to_thread(ray.init, address=address, log_to_driver=False, logging_level="ERROR")
            except (ConnectionError, ValueError, RuntimeError) as error:
                raise EngineDown(f"no Ray cluster at {address!r}: {error}", hint="ray start --head") from error
            self._joined = True


async def _room(group: Any, bundle: dict[str, float], seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await group.ready()
    except TimeoutError:
        raise EngineDown(f"no node has room for {bundle}") from None


def _ray() -> Any:
    try:
        import ray
        import ray.util.scheduling_strategies
    except ImportError as error:
        raise EngineDown("Ray is not installed", hint="pip install 'tokenworks[ray]'") from error
    return ray
