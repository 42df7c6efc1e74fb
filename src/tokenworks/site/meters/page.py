"""Pages of metrics (Prometheus text): DCGM, AMD, Ascend and node exporters, and documents, over plain HTTP."""

from __future__ import annotations

import asyncio
import http.client
import urllib.request
from collections.abc import Mapping

from prometheus_client.parser import text_string_to_metric_families

from tokenworks.core.clock import Clock
from tokenworks.core.errors import Unreachable
from tokenworks.site.meters.meter import Sample

BODY_BYTES_MAX = 4 << 20
TIMEOUT_S = 5.0
COUNTERS = {
    "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION": 1.0,
    "all_smi_energy_consumed_joules": 1e3,
    "amd_gpu_energy_consumed": 1e-3,
    "node_rapl_package_joules": 1e3,
}
"""Name of a metric, without ``_total``, which the parser adds -> millijoules in one of it."""
GAUGES = {"DCGM_FI_DEV_POWER_USAGE": 1e3, "npu_chip_info_power": 1e3, "amd_gpu_package_power": 1e3}
"""Name of a metric -> milliwatts in one of it."""
LABELS = ("UUID", "uuid", "gpu", "gpu_id", "id", "index", "package")
"""The first of these that a sample has is its channel."""


async def fetch(url: str, headers: Mapping[str, str] = {}) -> bytes:
    """GET, in a thread. Raises Unreachable; a longer answer than 4 MiB is none."""

    def ask() -> bytes:
        request = urllib.request.Request(url, headers=dict(headers))  # noqa: S310 - by the operator
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:  # noqa: S310
            return bytes(answer.read(BODY_BYTES_MAX + 1))

    try:
        found = await asyncio.to_thread(ask)
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise Unreachable(f"{url}: {error}") from error
    if len(found) > BODY_BYTES_MAX:
        raise Unreachable(f"{url}: an answer of more than {BODY_BYTES_MAX} bytes")
    return found


class Page:
    """One page; a channel is a device. Raises Unreachable for what is no page of metrics."""

    def __init__(self, clock: Clock, url: str) -> None:
        self._clock, self._url = clock, url

    async def read(self) -> dict[str, Sample]:
        """As ``Source`` says."""
        text, found = (await fetch(self._url)).decode(errors="replace"), dict[str, Sample]()
        at_ns = self._clock.now_ns()
        try:
            samples = [each for family in text_string_to_metric_families(text) for each in family.samples]
            for name, labels, value, *_ in samples:
                channel = next((labels[label] for label in LABELS if label in labels), name)
                before, counter = found.get(channel, Sample(at_ns)), name.removesuffix("_total")
                if counter in COUNTERS:
                    found[channel] = before._replace(mj=round(value * COUNTERS[counter]))
                elif name in GAUGES:
                    found[channel] = before._replace(mw=round(value * GAUGES[name]))
        except (ValueError, OverflowError) as error:
            raise Unreachable(f"{self._url} is no page of metrics: {error}") from error
        return found
