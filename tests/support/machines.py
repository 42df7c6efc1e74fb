"""Machines that are not there: what their files say and what their vendors' tools print."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from tokenworks.device.survey import Ports
from tokenworks.device.tools import Ran

OUTPUTS = Path(__file__).resolve().parents[1] / "fixtures" / "device"
CPU = {
    "/proc/cpuinfo": "vendor_id\t: GenuineIntel\nmodel name\t: Xeon\n",
    "/proc/meminfo": "MemTotal:       24684084 kB\n",
}


def output(name: str) -> str:
    return (OUTPUTS / name).read_text()


def machine(
    tools: Mapping[str, str | Ran], bus: Sequence[tuple[str, str]] = (), files: Mapping[str, str] = CPU
) -> Ports:
    """``tools``: what a command whose words begin so prints; ``bus``: vendor and class of each PCI device."""
    said = dict(files)
    for place, (vendor, sort) in enumerate(bus):
        said |= {
            f"/sys/bus/pci/devices/{place}/vendor": f"{vendor}\n",
            f"/sys/bus/pci/devices/{place}/class": f"{sort}\n",
        }

    def run(argv: Sequence[str]) -> Ran:
        found = next((out for begin, out in tools.items() if " ".join(argv).startswith(begin)), None)
        if found is None:
            return Ran("", f"{argv[0]} is not installed", absent=True)
        return found if isinstance(found, Ran) else Ran(found)

    def names(folder: str) -> list[str]:
        below = [path.removeprefix(folder + "/").split("/")[0] for path in said if path.startswith(folder + "/")]
        return sorted(set(below))

    return Ports(said.get, names, run)
