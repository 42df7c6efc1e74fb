"""The calibrations of a data directory: one file for each engine, device and model; and what a grid takes from them."""

from __future__ import annotations

import importlib.metadata
import logging
import re
from collections.abc import Sequence
from pathlib import Path

import msgspec

from tokenworks.compose import Plan
from tokenworks.core.errors import DataDirError
from tokenworks.core.files import write_private
from tokenworks.core.words import Sourced
from tokenworks.engine.perf.calibrated import Calibration, Target
from tokenworks.engine.replica import ReplicaSpec

log = logging.getLogger(__name__)


def embedded_engine() -> str:
    """Name and version of the engine in the box."""
    return f"xllamacpp {importlib.metadata.version('xllamacpp')}"


def save(data: Path, calibration: Calibration, path: Path | None = None) -> Path:
    """Write it, whole or not at all, to ``path`` or over the last one of the same engine, device and model."""
    of = calibration.target
    where = of.url or f"{of.device} {of.threads}"
    name = re.sub(r"[^a-z0-9.]+", "-", f"{of.model} {where}".lower()).strip("-")
    path = path or data / "calibrations" / f"{name}.json"
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_private(path, msgspec.json.format(msgspec.json.encode(calibration)) + b"\n")
    except OSError as error:
        raise DataDirError(f"cannot write {path}: {error.strerror}", hint="name another file: --out FILE") from error
    return path


def read_all(data: Path) -> list[Calibration]:
    """All that can be read; a broken file is told in the log and left out, because a grid runs without it too."""
    found = []
    for path in sorted((data / "calibrations").glob("*.json")):
        try:
            found.append(msgspec.json.decode(path.read_bytes(), type=Calibration))
        except (OSError, msgspec.DecodeError) as error:
            log.warning("the calibration %s is left out: %s", path, error)
    return found


def applied(plan: Plan, found: Sequence[Calibration]) -> Plan:
    """The plan with what was measured on its replicas: their first speeds, how the energy of their slices is split, and
    the facts that receipts cite."""
    replace, specs = msgspec.structs.replace, []
    loads = {(site.name, load.slice): load for site in plan.sites for load in site.loads}
    facts = {each.site: dict(each.facts) for each in plan.facts}
    for spec in plan.replicas:
        device = next((each.name for each in plan.devices[spec.site] if each.kind == "cpu"), None)
        own = max(
            (each for each in found if _fits(each.target, spec, device)), key=lambda each: each.made, default=None
        )
        if own is None:
            specs.append(spec)
            continue
        specs.append(replace(spec, prefill_tps=own.prefill_tps, decode_tps=own.decode_tps))
        if load := loads.get(here := (spec.site, spec.slice)):
            loads[here] = replace(load, **own.energies(spec.slots, spec.context_tokens, load.busy_mw))
        facts[spec.site][f"decode_milli_tps:{spec.name}"] = Sourced(
            value=round(own.decode_tps * 1_000), provenance=own.provenance, source=own.about(),
            error_permille=round(own.held_out_error * 1_000),
        )  # fmt: skip
    cited = tuple(replace(each, facts=facts[each.site]) for each in plan.facts)
    sites = tuple(replace(s, loads=tuple(loads[s.name, each.slice] for each in s.loads)) for s in plan.sites)
    return replace(plan, replicas=tuple(specs), facts=cited, sites=sites)


def _fits(own: Target, spec: ReplicaSpec, device: str | None) -> bool:
    if own.model != (spec.upstream_model or spec.model):
        return False
    if spec.driver == "embedded":
        return (own.url, own.engine, own.device, own.threads) == (None, embedded_engine(), device, spec.threads)
    return own.url is not None and spec.url is not None and own.url == same(spec.url)


def same(url: str) -> str:
    """An engine's address in one of the ways in which people write it."""
    return url.rstrip("/").removesuffix("/v1")
