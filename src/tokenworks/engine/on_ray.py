"""The driver that places engines on a Ray cluster: ``pip install 'tokenworks[ray]'``, on every node too.

Each replica is a placement group with a bundle for each of its nodes (fractions and resources of one's own are Ray's):
one node when all its cards fit on one, else as few as can hold equal shares. In each bundle an actor runs the engine's
command beside it. When an actor or its node dies, the replica has failed and is placed again on what is left.
Source: Ray documentation, "Placement Groups", "Resources", 2.60.
"""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from tokenworks.core.errors import EngineDown
from tokenworks.engine.adapter import Engine
from tokenworks.engine.adapters import adapter_for
from tokenworks.engine.drivers import Driver, Held
from tokenworks.engine.llamacpp_child import Ready
from tokenworks.engine.local import LIFELINE, orders_of
from tokenworks.engine.record import Replica

THREADS = 2
"""Calls of an actor that may wait at once: one for the end of its command, one for anything else."""


class OnNode:
    """Runs on the node: one command on a lifeline that ends with this actor."""

    _process: subprocess.Popen[bytes]

    def start(self, orders: bytes) -> int | None:
        """Where the engine was told to listen; None: it ended instead."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", LIFELINE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(orders + b"\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        return msgspec.json.decode(line, type=Ready).port if line else None

    def host(self) -> str:
        """This node's address."""
        return str(_ray().util.get_node_ip_address())

    def ended(self) -> int:
        """Its status, when it has ended."""
        return self._process.wait()


class _Placed(Held):
    """An engine on some nodes."""

    def __init__(self, ray: Any, actors: list[Any], group: Any, engine: Engine) -> None:
        self._ray, self._actors, self._group = ray, actors, group
        self.engine = engine

    async def ended(self) -> str:
        """See ``Held.ended``: the first of its commands, without which the others are nothing."""
        asked = [asyncio.ensure_future(actor.ended.remote()) for actor in self._actors]
        try:
            done, _ = await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
            return f"the engine's process ended with status {done.pop().result()}"
        except self._ray.exceptions.RayError as error:
            return f"its node or actor is gone: {type(error).__name__}"
        finally:
            for each in asked:
                each.cancel()

    async def stop(self, patience_s: float) -> None:
        """See ``Held.stop``. The actors' lifelines end their commands."""
        _release(self._ray, self._actors, self._group)


def _release(ray: Any, actors: list[Any], group: Any) -> None:
    with contextlib.suppress(Exception):  # the cluster itself may be gone
        for actor in actors:
            ray.kill(actor)
        ray.util.remove_placement_group(group)


def bundles(cards: int, milli: Mapping[str, int], nodes: Sequence[Mapping[str, float]]) -> list[dict[str, float]]:
    """Equal parts of ``cards`` times ``milli``, as few as nodes of these sizes can hold; all in one if none can."""
    for parts in (parts for parts in range(1, cards + 1) if cards % parts == 0):
        bundle = {name: amount * (cards // parts) / 1000 for name, amount in milli.items()}
        if sum(all(node.get(name, 0) >= amount for name, amount in bundle.items()) for node in nodes) >= parts:
            return [bundle] * parts
    return [{name: amount * cards / 1000 for name, amount in milli.items()}]


class RayDriver(Driver):
    """One placement group for each replica. Joins the cluster with the first, leaves it with the last."""

    _joining: asyncio.Lock | None = None
    _users = 0
    _joined = False

    async def run(self, replica: Replica) -> None:
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
        nodes = [node["Resources"] for node in await asyncio.to_thread(ray.nodes) if node["Alive"]]
        parts = bundles(spec.cards, spec.resources_milli, nodes)
        group = ray.util.placement_group(parts, strategy="STRICT_PACK" if len(parts) == 1 else "PACK")
        actors: list[Any] = []
        try:
            await _room(group, parts, self._pace.place_s)
            actors += [_actor(ray, group, index, bundle) for index, bundle in enumerate(parts)]
            head = await actors[0].host.remote()
            asked = []
            for rank, actor in enumerate(actors):
                names = {"head": head, "nodes": str(len(parts)), "rank": str(rank)}
                orders = msgspec.structs.replace(orders_of(spec), names=names)
                asked.append(actor.start.remote(msgspec.json.encode(orders)))
            ports = [await port for port in asked]
            if None in ports:
                ended = await actors[ports.index(None)].ended.remote()
                raise EngineDown(f"the engine's command ended at once (status {ended})")
            return _Placed(ray, actors, group, adapter_for(replica, f"http://{head}:{ports[0]}"))
        except ray.exceptions.RayError as error:
            _release(ray, actors, group)
            raise EngineDown(f"its node or actor is gone: {type(error).__name__}") from error
        except BaseException:
            _release(ray, actors, group)
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


def _actor(ray: Any, group: Any, index: int, bundle: dict[str, float]) -> Any:
    """The one that holds all of a bundle."""
    others = {name: amount for name, amount in bundle.items() if name not in ("CPU", "GPU", "memory")}
    strategy = ray.util.scheduling_strategies.PlacementGroupSchedulingStrategy(group, index)
    made = ray.remote(OnNode).options(
        num_cpus=bundle.get("CPU", 0), num_gpus=bundle.get("GPU", 0), memory=bundle.get("memory"),
        resources=others, scheduling_strategy=strategy, max_restarts=0, max_concurrency=THREADS,
    )  # fmt: skip
    return made.remote()


async def _room(group: Any, parts: list[dict[str, float]], seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await group.ready()
    except TimeoutError:
        on = f" and {len(parts) - 1} more" if len(parts) > 1 else ""
        raise EngineDown(f"no node has room for {parts[0]}{on}") from None


def _ray() -> Any:
    try:
        import ray
        import ray.util.scheduling_strategies
    except ImportError as error:
        raise EngineDown("Ray is not installed", hint="pip install 'tokenworks[ray]'") from error
    return ray
