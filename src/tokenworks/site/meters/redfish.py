"""Redfish (DMTF DSP2046): energy and power of chassis and processors, and their power limits."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import msgspec

from tokenworks.core.clock import Clock
from tokenworks.core.errors import BadRequest, Unreachable
from tokenworks.site.meters.meter import Sample
from tokenworks.site.meters.page import fetch

MJ_PER_KWH, MW_PER_W = 3_600_000_000, 1_000
MEMBERS_MAX = 256


class Redfish:
    """A BMC. A channel is the path of an ``EnvironmentMetrics``; none given: those of all chassis."""

    def __init__(self, clock: Clock, url: str, paths: Sequence[str] = (), user: str = "", password: str = "") -> None:
        self._clock, self._url, self._paths = clock, url.rstrip("/"), list(paths)
        word = base64.b64encode(f"{user}:{password}".encode()).decode()
        self._headers = {"Content-Type": "application/json"} | ({"Authorization": f"Basic {word}"} if user else {})

    async def _get(self, path: str) -> Any:
        try:
            return msgspec.json.decode(await fetch(self._url + path, None, self._headers))
        except msgspec.DecodeError as error:
            raise Unreachable(f"{self._url}{path}: no Redfish: {error}") from error

    async def read(self) -> dict[str, Sample]:
        """As ``Source`` says; what a device does not say is not in its sample."""
        try:
            return await self._read()
        except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
            raise Unreachable(f"{self._url}: not as DMTF shapes it: {error!r}") from error

    async def _read(self) -> dict[str, Sample]:
        if not self._paths:
            members = (await self._get("/redfish/v1/Chassis")).get("Members", [])[:MEMBERS_MAX]
            documents = [await self._get(member["@odata.id"]) for member in members]
            self._paths = [d["EnvironmentMetrics"]["@odata.id"] for d in documents if "EnvironmentMetrics" in d]
        found = {}
        for path in self._paths:
            document = await self._get(path)
            kwh, watts = (document.get(key, {}).get("Reading") for key in ("EnergykWh", "PowerWatts"))
            mj = None if kwh is None else round(float(kwh) * MJ_PER_KWH)
            found[path] = Sample(self._clock.now_ns(), mj, None if watts is None else round(float(watts) * MW_PER_W))
        return found

    async def limit(self, path: str, limit_mw: int) -> int:
        """Set a power limit and read back what is in force [mW]. Raises BadRequest for one that is not allowed."""
        bounds = (await self._get(path)).get("PowerLimitWatts") or {}
        low, high = (bounds.get(f"Allowable{end}", bounds.get("SetPoint")) for end in ("Min", "Max"))
        if low is None or high is None or not low * MW_PER_W <= limit_mw <= high * MW_PER_W:
            raise BadRequest(f"{path} takes no limit of {limit_mw / MW_PER_W:g} W", hint=f"allowed: {low} to {high} W")
        body = msgspec.json.encode({"PowerLimitWatts": {"SetPoint": limit_mw / MW_PER_W}})
        await fetch(self._url + path, body, self._headers)
        return round(float((await self._get(path))["PowerLimitWatts"]["SetPoint"]) * MW_PER_W)
