"""The driver for engines that any command line starts: ``vllm serve …``, ``llama-server …``."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

from tokenworks.core.clock import Clock
from tokenworks.engine.adapters import adapter_for
from tokenworks.engine.child import Child
from tokenworks.engine.drivers import Driver, Held, Pace
from tokenworks.engine.embedded import HOST
from tokenworks.engine.lifeline import Orders
from tokenworks.engine.record import Replica
from tokenworks.engine.replica import ReplicaSpec

MODULE = "tokenworks.engine.lifeline"


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
        """See ``Driver.begin``."""
        spec = replica.spec
        child = await Child.start(MODULE, orders_of(spec), self._log_dir / f"{spec.name}.log", spec.limits)
        reach = lambda port: adapter_for(replica, spec.url or f"http://{HOST}:{port}")  # noqa: E731
        return await child.reached(reach, self._pace.stop_s)
