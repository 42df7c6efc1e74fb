"""RAPL: energy counters of processor packages, as Linux shows them (``/sys/class/powercap``), in microjoules."""

from __future__ import annotations

from pathlib import Path

from tokenworks.core.clock import Clock
from tokenworks.site.meters.meter import Meter, Sample, Wire
from tokenworks.site.words import Site

POWERCAP = Path("/sys/class/powercap")


class Rapl:
    """All packages with their memory (a ``psys`` domain counts them again and is left out) as channel ``machine``.

    Each wraps at a maximum of its own, so the sum is kept here.
    """

    def __init__(self, clock: Clock, root: Path = POWERCAP) -> None:
        self._clock = clock
        packages = [p for p in sorted(root.glob("intel-rapl:[0-9]*")) if (p / "energy_uj").is_file()]
        kinds = {p: (p / "name").read_text().strip() for p in packages if (p / "name").is_file()}
        self._domains = [p for p in packages if kinds.get(p, "").startswith(("package", "dram"))]
        self._last: dict[Path, int] = {}
        self._uj = 0

    async def read(self) -> dict[str, Sample]:
        """As ``Source`` says."""
        for domain in self._domains:
            now = int((domain / "energy_uj").read_text())
            step = now - self._last.get(domain, now)
            if step < 0:
                step += int((domain / "max_energy_range_uj").read_text())
            self._uj, self._last[domain] = self._uj + step, now
        return {"machine": Sample(self._clock.now_ns(), mj=self._uj // 1_000)} if self._domains else {}

    def readable(self) -> bool:
        """Whether there is a package, and this process may read it (newer kernels ask for root)."""
        try:
            return bool(self._domains and [(domain / "energy_uj").read_text() for domain in self._domains])
        except OSError:
            return False


def machine_wires(clock: Clock, site: Site, root: Path = POWERCAP) -> list[Wire]:
    """RAPL as the meter of the site's own machine where there is one, else nothing: then all is modelled.

    More than twice what the model of the machine says at most is not believed.
    """
    source = Rapl(clock, root)
    most = site.base_idle_mw + sum(load.idle_mw + load.busy_mw for load in site.loads if not load.server)
    meter = Meter(2 * most, min_mw=1)
    return [Wire(source, "machine", "servers", "", meter)] if source.readable() else []
