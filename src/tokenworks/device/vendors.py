"""Vendors of accelerators as one table, ``data/vendors.toml``, and the four readers that their tools need.

To support another vendor, add its row there and a sample of its output to the tests.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from functools import cache
from importlib.resources import files
from typing import Any
from xml.etree import ElementTree

import msgspec

from tokenworks.core.words import Word

Raw = dict[str, str]
"""One device as its tool describes it; the keys are the fields of the table."""
LINE_CHARS_MAX, DEVICES_MAX = 1_000, 1_024
"""Of one line, and of one vendor in one machine."""


class Way(Word, frozen=True):
    """Commands that together describe all devices of a vendor, and one of four readers."""

    commands: tuple[tuple[str, ...], ...]
    csv: tuple[str, ...] = ()
    lines: tuple[str, ...] = ()
    json: dict[str, tuple[str, ...]] = {}
    xml: dict[str, tuple[str, ...]] = {}
    on_bus_only: bool = False
    """Not run unless a device of the vendor is on the bus."""

    def parse(self, outputs: Sequence[str]) -> list[Raw]:
        """Devices in what the commands printed. Raises ValueError or whatever a parser makes of garbage."""
        if self.json:
            raws = _json(self.json, outputs)
        elif self.xml:
            raws = list(_xml(self.xml, outputs))
        else:
            lines = [line[:LINE_CHARS_MAX] for line in outputs[0].splitlines()]
            raws = _csv(self.csv, lines) if self.csv else _patterns(self.lines, lines)
        return [raw for raw in raws if re.fullmatch(r"\d{1,4}(:\d{1,2})?", raw.get("index", ""))][:DEVICES_MAX]


class Vendor(Word, frozen=True, rename={"ways": "way"}):
    """One maker of accelerators; the fields are explained in the table."""

    prefix: str
    name: str
    kind: str
    pci: str
    visible: str
    ways: tuple[Way, ...]
    by_uuid: bool = False
    pci_classes: tuple[str, ...] = ("0x03", "0x0b40", "0x12")
    """Display controllers, coprocessors and processing accelerators."""


@cache
def vendors() -> tuple[Vendor, ...]:
    """The table, read once."""
    table = files(__package__).joinpath("data", "vendors.toml").read_bytes()
    return msgspec.toml.decode(table, type=dict[str, tuple[Vendor, ...]])["vendor"]


def _csv(columns: Sequence[str], lines: Sequence[str]) -> list[Raw]:
    rows = ([cell.strip() for cell in row] for row in csv.reader(lines))
    return [dict(zip(columns, row, strict=True)) for row in rows if len(row) == len(columns)]


def _patterns(patterns: Sequence[str], lines: Sequence[str]) -> list[Raw]:
    """Devices of one line each, or of two that follow each other, as nvidia-smi made it popular."""
    found: list[Raw] = []
    above: Raw | None = None
    for line in lines:
        match = re.match(patterns[-1], line) if above is not None or len(patterns) == 1 else None
        if match:
            found.append({**(above or {}), **{key: text for key, text in match.groupdict().items() if text}})
            above = None
        else:
            match = re.match(patterns[0], line)
            above = match.groupdict() if match else None
    return found


def _xml(fields: dict[str, tuple[str, ...]], outputs: Sequence[str]) -> Iterator[Raw]:
    """Cards of ``nvidia-smi -q -x`` in its order; where MIG is on, instances that ``nvidia-smi -L`` names."""
    instances, at = dict[str, list[str]](), ""
    for line in "".join(outputs[1:]).splitlines()[: 8 * DEVICES_MAX]:
        if match := re.match(r"(?:GPU (\d+)|\s+MIG (\S+)\s+Device\s+(\d+)):.*\(UUID: ([\w-]+)\)", line):
            at = match[1] or at
            instances[f"{at}:{match[3]}"] = [match[2], match[4]]
    # The tool is local and run_tool bounds its output; expat bounds what entities may expand to.
    for number, card in enumerate(ElementTree.fromstring(outputs[0]).iter("gpu")):  # noqa: S314
        texts = {name: next(filter(None, map(card.findtext, paths)), "") for name, paths in fields.items()}
        if card.findtext("mig_mode/current_mig") != "Enabled":
            yield texts | {"index": str(number)}
        for part in card.findall("mig_devices/mig_device"):
            index = f"{number}:{part.findtext('index')}"
            if index in instances:  # without its UUID it can be shown to nobody
                profile, uuid = instances[index]
                said = {"index": index, "uuid": uuid, "name": f"{texts['name']} MIG {profile}", "bus": texts["bus"]}
                yield said | {key: part.findtext(fields[key][0], "") for key in ("total", "used")}


def _json(fields: dict[str, tuple[str, ...]], outputs: Sequence[str]) -> list[Raw]:
    """Records in a list or keyed by device, merged over the commands by their index."""
    merged: dict[str, Raw] = {}
    for output in outputs:
        for flat in _records(output):
            said = {field: flat[path] for field, paths in fields.items() for path in paths[::-1] if path in flat}
            merged.setdefault(said.get("index", ""), {}).update(said)
    return list(merged.values())


def _records(output: str) -> list[Raw]:
    begin = re.search(r"^\s*[\[{]", output, re.MULTILINE)  # warnings may come before the document
    # Some versions of hy-smi forget the comma between two members.
    text = re.sub(r'(?<=[^\s:,{\[\\])"\s*"(?=\w)', '","', output[begin.start() :] if begin else "")
    document = msgspec.json.decode(text.encode())
    if isinstance(document, dict):
        lists = [value for value in document.values() if isinstance(value, list)]
        cards = [(re.sub(r"\D", "", key), card) for key, card in document.items() if isinstance(card, dict)]
        document = lists[0] if lists else [{"index": index, **card} for index, card in cards]
    return [dict(_flat("", record)) for record in document if isinstance(record, dict)]


def _flat(path: str, value: Any) -> list[tuple[str, str]]:
    """``{"Power ": {"socket": {"value": 3}}}`` -> ``power.socket`` is "3"."""
    if not isinstance(value, dict):
        return [(path, str(value))]
    names = [(path if key == "value" else f"{path}.{key.strip().lower()}".lstrip("."), key) for key in value]
    return [leaf for name, key in names for leaf in _flat(name, value[key])]
