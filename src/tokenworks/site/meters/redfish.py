"""Redfish (DMTF DSP2046): energy and power of chassis and processors."""

from __future__ import annotations

import base64
from typing import Any

import msgspec

from tokenworks.core.clock import Clock
from tokenworks.core.errors import Unreachable
from tokenworks.core.units import MJ_PER_KWH
from tokenworks.site.meters.meter import Sample
from tokenworks.site.meters.page import fetch

MW_PER_W = 1_000


class Redfish:
    """A BMC. A channel is the path of an ``EnvironmentMetrics``, of which ``paths`` lists those to ask for."""

    def __init__(self, clock: Clock, url: str, user: str = "", password: str = "") -> None:
        self._clock, self._url, self.paths = clock, url.rstrip("/"), list[str]()
        word = base64.b64encode(f"{user}:{password}".encode()).decode()
        self._headers = {"Authorization": f"Basic {word}"} if user else {}

    async def read(self) -> dict[str, Sample]:
        """As ``Source`` says; what a device does not say is not in its sample."""
        found = {}
        for path in self.paths:
            try:
                document: Any = msgspec.json.decode(await fetch(self._url + path, self._headers))
                kwh, watts = (document.get(key, {}).get("Reading") for key in ("EnergykWh", "PowerWatts"))
                mj = None if kwh is None else round(float(kwh) * MJ_PER_KWH)
                mw = None if watts is None else round(float(watts) * MW_PER_W)
            except (msgspec.DecodeError, TypeError, AttributeError, ValueError, OverflowError) as error:
                raise Unreachable(f"{self._url}{path}: not as DMTF shapes it: {error!r}") from error
            found[path] = Sample(self._clock.now_ns(), mj, mw)
        return found
