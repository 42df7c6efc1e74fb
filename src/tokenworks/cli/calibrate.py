"""``tokenworks calibrate``: measure a running engine, keep its coefficients, and show where its time goes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import msgspec
from rich.console import RenderableType

from tokenworks import calibrations, datadir
from tokenworks.cli import out
from tokenworks.cli.out import Answer, command
from tokenworks.core.clock import WallClock
from tokenworks.core.errors import BadRequest, EngineFailed, NotFound, TokenworksError, UnknownModel, Unreachable
from tokenworks.device.discovery import Device, discover, read_text
from tokenworks.engine.calibrate import STREAMS, Probe
from tokenworks.engine.calibrate import calibrate as measure
from tokenworks.engine.local import Door
from tokenworks.engine.models import catalogue
from tokenworks.engine.openai_compatible import OpenAICompatible
from tokenworks.engine.perf.calibrated import Calibration, Check, Target, bottlenecks, limits_of
from tokenworks.engine.perf.devices import device_named
from tokenworks.engine.perf.here import roof
from tokenworks.engine.perf.iteration import Work
from tokenworks.engine.perf.plan import DeviceSpec, Plan
from tokenworks.engine.perf.shapes import shape_named

ERROR_GOOD = 0.15


@command
def calibrate(
    url: str | None = None, /, *, key: str | None = None, model: str | None = None, streams: int = STREAMS,
    device: str | None = None, gpus: int = 1, precision: str = "bf16",
    out_file: Annotated[Path | None, out.OutFile] = None,
) -> Answer:  # fmt: skip
    """Measure a running engine in under three minutes: its coefficients, how far off they are, where its time goes.

    Args:
        url: Of any server that speaks OpenAI's protocol. Without it, the embedded engine of the running grid, spoken to
            directly: what it does for the calibration is in nobody's bill.
        key: The engine's API key.
        model: Without it the first that the engine serves.
        streams: The most at once.
        device: What an engine elsewhere runs on, a row of ``tokenworks device catalogue``: for the device's limits.
        gpus: Of how many.
        precision: Of its weights: bf16, fp8, fp4 or int4.
        out_file: Where the calibration goes; without it into the data directory, where ``tokenworks up`` finds it.
    """
    data, roofs = datadir.data_directory(), device_named(device) if device else None
    if url is None:
        own, door = discover(), _door(data, model)
        name = own[0].name if own else None
        of = Target(model=door.model, engine=calibrations.embedded_engine(), device=name, threads=door.threads)
        made = asyncio.run(_measured(door.url, door.api_key, of, streams, own))
        found = roof(door.threads)
        roofs = DeviceSpec(
            id=name or "cpu", memory_bytes=0, bandwidth_gb_s=found.bandwidth_gb_s, bf16_tflops=found.tflops
        )
    else:
        of = Target(model=model or "", url=calibrations.same(url), device=roofs.id if roofs else None)
        made = asyncio.run(_measured(url, key, of, streams, []))
    made = msgspec.structs.replace(made, checks=_with_parts(made, roofs, gpus, precision))
    path = calibrations.save(data, made, out_file)
    out.note(f"{made.about()}\nin {path}" + ("; tokenworks up uses it from its next start" if out_file is None else ""))
    if made.held_out_error > ERROR_GOOD:
        out.note("That is much: was the machine busy with other things? Repeat it when it is quiet.")
    return Answer(made, _lines(made))


def _door(data: Path, model: str | None) -> Door:
    """Of an embedded replica of the running grid. Raises Unreachable or NotFound."""
    if datadir.read_run(data) is None:
        raise Unreachable("no grid runs here", hint="start one: tokenworks up; or name an engine's URL")
    doors = [msgspec.json.decode(path.read_bytes(), type=Door) for path in sorted((data / "logs").glob("*.door"))]
    for door in doors:
        if model in (None, door.model):
            return door
    raise NotFound("the running grid has no such embedded engine", hint="name an engine's URL")


async def _measured(url: str, key: str | None, of: Target, streams: int, devices: list[Device]) -> Calibration:
    try:
        engine = OpenAICompatible(url, api_key=key, connections_max=streams + 8)
    except ValueError as error:
        raise BadRequest(str(error), hint="like http://127.0.0.1:8000") from None
    try:
        if of.url:
            model, version = of.model or await _first_model(engine), await _version(engine)
            of = msgspec.structs.replace(of, model=model, engine=version)
        out.note(f"calibrating {of.model} at {of.url or of.engine}")
        probe = Probe(engine, WallClock(), of.model)
        return await measure(probe, of, out.note, streams=streams, meter=_meter(devices))
    finally:
        await engine.close()


async def _first_model(engine: OpenAICompatible) -> str:
    status, said = await engine.control("GET", "/v1/models")
    try:
        return str(msgspec.json.decode(said)["data"][0]["id"])
    except (msgspec.DecodeError, LookupError, TypeError):
        raise EngineFailed(
            f"the engine does not say which models it serves (HTTP {status})", hint="name one: --model; a key: --key"
        ) from None


async def _version(engine: OpenAICompatible) -> str | None:
    """vLLM tells a version, llama.cpp its build; of others it stays unknown."""
    for path, field in (("/version", "version"), ("/props", "build_info")):
        try:
            status, said = await engine.control("GET", path)
            if status == 200:
                return str(msgspec.json.decode(said)[field])
        except (TokenworksError, msgspec.DecodeError, LookupError, TypeError):
            continue
    return None


def _meter(devices: list[Device]) -> Callable[[], int | None]:
    counters = [path for device in devices for path in device.energy_counters]

    def read() -> int | None:
        texts = [(read_text(path) or "").strip() for path in counters]
        return sum(map(int, texts)) if texts and all(map(str.isdecimal, texts)) else None

    return read


def _with_parts(made: Calibration, roofs: DeviceSpec | None, gpus: int, precision: str) -> tuple[Check, ...]:
    """Where the time of the mean iterations goes. The limits need a known device and a known model."""
    file, checks = None if made.target.url else catalogue().get(made.target.model), []
    plan: Plan | None = None
    try:
        if roofs is not None:
            plan = Plan(shape=shape_named(made.target.model), device=roofs, precision=precision, tp=gpus)
    except UnknownModel as error:
        out.note(f"{error}; without its shape the device's limits are unknown")
    for check in made.checks:
        lengths = [one.prompt + one.output / 2 for user in check.users for one in user]
        limits = None
        if plan is not None:
            work = Work(plan=plan, typical_context=sum(lengths) / len(lengths))
            limits = limits_of(work, check.batch, file.size_bytes if file else None)
        checks.append(msgspec.structs.replace(check, parts=bottlenecks(made.speed, check.batch, limits)))
    return tuple(checks)


def _lines(made: Calibration) -> Iterator[RenderableType]:
    columns = ("streams", "tokens/s", "predicted", "TPOT ms", "predicted", "TTFT ms", "predicted", "W")
    rows: list[tuple[Any, ...]] = []
    for check in made.checks:
        said = check.measured
        pairs = [(said.tokens_s, "tokens_s"), (said.tpot_s * 1e3, "tpot_s"), (said.ttft_s * 1e3, "ttft_s")]
        shown = [text for value, name in pairs for text in (f"{value:,.1f}", f"{check.error(name):+.1%}")]
        rows.append((len(check.users), *shown, check.power_mw and f"{check.power_mw / 1e3:.1f}"))
    yield out.table("measured on loads kept out of the fit", columns, rows, right=columns)
    for check in (made.checks[0], made.checks[-1]):
        whole = sum(part.seconds for part in check.parts)
        parts = [
            (p.name, f"{p.seconds * 1e3:,.2f}", f"{p.seconds / whole:.0%}", p.limit_s and f"{p.limit_s * 1e3:,.2f}")
            for p in check.parts
        ]
        title = f"\nwhere a mean iteration of {check.batch.sequences:.1f} sequences spends its {whole * 1e3:,.1f} ms"
        names = ("", "ms", "share", "device's limit, ms")
        yield out.table(title, names, parts, right=names[1:])
