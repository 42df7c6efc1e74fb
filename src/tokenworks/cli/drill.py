"""``tokenworks drill`` and ``site status``: what the grid asks of a site, and how it answers."""

from __future__ import annotations

import math
import re
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any

from cyclopts import Parameter
from rich.console import RenderableType

from tokenworks.cli import out
from tokenworks.cli.given import currency, duration_ns
from tokenworks.cli.out import Answer, command
from tokenworks.cli.reach import get, grid_key, request
from tokenworks.core.clock import WallClock
from tokenworks.core.errors import BadRequest, NotFound, TokenworksError, find
from tokenworks.core.units import NS_PER_MS, NS_PER_S, parse_price

BEFORE_S, AFTER_S = 5, 5
PROBE_EVERY_S = 0.5


@command
def drill(
    *, curtail: str, for_: Annotated[str, Parameter(name="--for")] = "10m", site: str | None = None,
    pay: str | None = None, as_json: out.Json = False,
) -> Answer:  # fmt: skip
    """Play a grid event on the running grid and show the answer, second by second. Ctrl-C ends the event.

    Two short requests a second are sent meanwhile as an interactive client would; they are billed to the first account.
    Exit status 1 when one of them failed, or when the power never fell to the target.

    Args:
        curtail: How much less than before, like 25%.
        for_: How long, like 10m or 90s.
        site: Which site; the only one without it.
        pay: What the grid would pay, like "0.40 USD/kWh".
    """
    found = re.fullmatch(r"(\d+(?:\.\d)?)\s*%", curtail)
    if found is None or not 0 < float(found[1]) <= 100:
        raise BadRequest(f"--curtail {curtail!r} is no share", hint="like 25%")
    long_ns = duration_ns(for_)
    asked = {"cut_permille": round(float(found[1]) * 10)}
    if pay is not None:
        asked["pay_nano_per_kwh"] = parse_price(pay, "kWh", currency())
    played = _Drill(site, as_json)
    with _probing() as probes:
        summary = played.play(asked, long_ns, probes)
    well = summary["interactive_failed"] == 0 and summary["seconds_to_target"] is not None
    return Answer({"seconds": played.seconds, **summary}, _summary(summary), 0 if well else 1)


class _Drill:
    """One event, from before its beginning to after its end."""

    def __init__(self, site: str | None, quiet: bool) -> None:
        self._clock, self._quiet, self._key = WallClock(), quiet, grid_key(admin=True)
        self._site, self._wait = site or _status(site, self._key)["site"], threading.Event().wait
        self.seconds: list[dict[str, Any]] = []

    def play(self, asked: dict[str, int], long_ns: int, probes: list[tuple[int, int | None]]) -> dict[str, Any]:
        """Raises Unreachable when the grid goes away."""
        marks = [self._clock.now_ns()]
        self._watch("before", probes, lambda n: n < BEFORE_S)
        start_ns = self._clock.now_ns()
        event = {"id": f"drill-{start_ns}", "kind": "curtail", "start_ns": start_ns, "end_ns": start_ns + long_ns}
        event |= asked
        marks.append(start_ns)
        try:
            self._post(event)
            self._watch("during", probes, lambda _: self._clock.now_ns() < start_ns + long_ns)
        except KeyboardInterrupt:
            out.note("the event is ended")
        finally:
            self._post(event | {"cancelled": True})
        marks.append(self._clock.now_ns())
        self._watch("after", probes, lambda n: n < AFTER_S)
        return self._summary(event, [*marks, self._clock.now_ns()], probes)

    def _post(self, event: dict[str, Any]) -> None:
        with request("POST", f"/v1/grid-events?site={self._site}", self._key, event) as response:
            response.read()

    def _watch(self, phase: str, probes: list[tuple[int, int | None]], more: Callable[[int], bool]) -> None:
        number = 0
        while more(number):
            self._wait(1.0)
            number += 1
            now, page = _status(self._site, self._key), get("/v1/status", self._key)
            took = [ns for at_ns, ns in probes if ns is not None and at_ns > self._clock.now_ns() - 2 * NS_PER_S]
            second = {
                "phase": phase, "second": number, "power_mw": now["power_mw"], "power": now["power"],
                "max_mw": now["max_mw"], "step": now["order"] and now["order"]["step"], "running": now["running"],
                "waiting": sum(gateway["waiting"] for gateway in page["gateways"]),
                "latency_ms": took[-1] // NS_PER_MS if took else None,
            }  # fmt: skip
            self.seconds.append(second)
            if not self._quiet:
                target = f" of {second['max_mw'] / 1000:,.1f} W" if second["max_mw"] is not None else ""
                sys.stdout.write(
                    f"{phase:6} {number:4} s  {second['power_mw'] / 1000:9,.1f} W{target} ({second['power']})  "
                    f"running {second['running']}, waiting {second['waiting']}, latency {second['latency_ms']} ms\n"
                )
                sys.stdout.flush()

    def _summary(
        self, event: dict[str, Any], marks: Sequence[int], probes: list[tuple[int, int | None]]
    ) -> dict[str, Any]:
        known: dict[str, Any] = next(
            (e for e in _status(self._site, self._key)["events"] if e["id"] == event["id"]), {}
        )
        powers = {p: [s["power_mw"] for s in self.seconds if s["phase"] == p] for p in ("before", "during", "after")}
        target_mw = next((s["max_mw"] for s in self.seconds if s["max_mw"] is not None), None)
        below = [
            n for n in range(len(powers["during"])) if target_mw is not None and _below(powers["during"][n:], target_mw)
        ]
        before_mw = known.get("baseline_mw") or 0
        settled_mw = _mean(powers["during"][below[0] :]) if below else _mean(powers["during"][-3:])
        phases = zip(powers, marks, marks[1:], strict=False)
        return {
            "site": self._site, "event": event["id"], "power": self.seconds[-1]["power"], "target_mw": target_mw,
            "baseline_mw": before_mw, "held_mw": settled_mw,
            "cut_percent": round(100 * (1 - settled_mw / before_mw), 1) if before_mw else None,
            "seconds_to_target": below[0] + 1 if below else None,
            "interactive_failed": sum(ns is None for _, ns in probes),
            "latency_ms": {name: _percentiles(ns for at, ns in probes if a <= at < b) for name, a, b in phases},
            "waiting_max": max(second["waiting"] for second in self.seconds),
            **{name: known.get(name) for name in ("asked_mj", "delivered_mj", "short_mj", "nano", "avoided_nano")},
        }  # fmt: skip


def _below(powers: Sequence[int], target_mw: int) -> bool:
    """It is at the target and stays there: the mean of all that follows, and of the next seconds."""
    return _mean(powers) <= target_mw and _mean(powers[:3]) <= target_mw


def _mean(numbers: Sequence[int]) -> int:
    return sum(numbers) // len(numbers) if numbers else 0


def _percentiles(took: Iterator[int | None]) -> dict[str, int | None]:
    """Nearest rank; None: nothing was answered then."""
    known = sorted(ns for ns in took if ns is not None)
    ranks = {name: math.ceil(share * len(known)) - 1 for name, share in (("p50", 0.5), ("p99", 0.99))}
    return {name: known[rank] // NS_PER_MS if known else None for name, rank in ranks.items()}


@contextmanager
def _probing() -> Iterator[list[tuple[int, int | None]]]:
    """Ask for one token twice a second until left: when each was sent, and how long it took; None: it failed."""
    key, clock, done, took = grid_key(), WallClock(), threading.Event(), list[tuple[int, int | None]]()
    model = next((each["id"] for each in get("/v1/models", key)["data"] if each["ready"]), None)
    if model is None:
        raise NotFound("no model can serve now", hint="tokenworks status shows the replicas")
    body = {"model": model, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}

    def probe() -> None:
        while not done.is_set():
            began_ns = clock.now_ns()
            try:
                with request("POST", "/v1/chat/completions", key, body) as response:
                    response.read()
                took.append((began_ns, clock.now_ns() - began_ns))
            except TokenworksError:
                took.append((began_ns, None))
            done.wait(max(0.0, PROBE_EVERY_S - (clock.now_ns() - began_ns) / NS_PER_S))

    thread = threading.Thread(target=probe, daemon=True)
    thread.start()
    try:
        yield took
    finally:
        done.set()
        thread.join(5)


def _summary(found: dict[str, Any]) -> Iterator[RenderableType]:
    unit, reached = currency(), found["seconds_to_target"]
    yield (
        f"\n{found['site']}: {found['power']} power {found['baseline_mw'] / 1000:,.1f} W before, "
        f"{found['held_mw'] / 1000:,.1f} W held, a cut of {found['cut_percent']} %; "
        + (f"at the target after {reached} s" if reached is not None else "the target was not reached")
    )
    rows = [(name, each["p50"], each["p99"]) for name, each in found["latency_ms"].items()]
    columns = ("interactive", "p50 ms", "p99 ms")
    yield out.table("", columns, rows, right=columns[1:])
    yield f"{found['interactive_failed']} interactive requests failed; at most {found['waiting_max']} waited"
    paid, avoided = out.money(found["nano"], unit), out.money(found["avoided_nano"], unit)
    yield (
        f"delivered {out.energy(found['delivered_mj'])} of {out.energy(found['asked_mj'])}; "
        f"the event pays {paid or 'nothing known'}, energy not bought {avoided or 'of unknown price'}"
    )


def _status(site: str | None, key: str) -> dict[str, Any]:
    sites = {each["site"]: each for each in get("/v1/status", key)["sites"]}
    if site is None and len(sites) > 1:
        raise BadRequest("which site is meant?", hint=f"--site, one of {', '.join(sites)}")
    found: dict[str, Any] = find(next(iter(sites)) if site is None else site, sites, "site")
    return found


@command
def site_status(site: str | None = None, /) -> Answer:
    """Power, limits, meters and the last interval of every site.

    Args:
        site: Only this one.
    """
    key = grid_key(admin=True)
    sites = get("/v1/status", key)["sites"] if site is None else [_status(site, key)]
    return Answer(sites, (line for each in sites for line in (*_site(each), *_interval(each["interval"]))))


def _watts(mw: int) -> str:
    return f"{mw / 1000:,.1f} W"


def _site(each: dict[str, Any]) -> Iterator[str]:
    asked = ", no limit" if each["max_mw"] is None else f", no more than {_watts(each['max_mw'])}"
    power = "unknown" if each["power_mw"] is None else f"{_watts(each['power_mw'])} ({each['power']})"
    yield f"[bold]{each['site']}[/bold]  {power}{asked}, {each['running']} running"
    if each["contact"] is not None:
        yield f"  contact from {each['contact']['start']} to {each['contact']['end']}"
    price = out.money(each["price_nano_per_kwh"], currency()) or "price unknown"
    yield f"  one more kWh now: {price}, {out.carbon(each['carbon_ug_per_kwh']) or 'carbon unknown'}"
    shares = [f"{name} {share / 10:g} %" for name, share in each["sources_permille"].items() if share is not None]
    if shares:
        yield f"  of the last intervals: {', '.join(shares)}".replace("_", " ")
    if each["openadr"] is not None:
        yield f"  OpenADR server: {each['openadr']}"
    for event in each["events"]:
        ended = ", cancelled" if event["cancelled"] else ""
        yield f"  event {event['id']}: {event['kind']} from {event['start']} to {event['end']}{ended}"
    for meter in each["meters"]:
        watts = "silent" if meter["power_mw"] is None else _watts(meter["power_mw"])
        yield f"  meter of {meter['meters']}: {watts} {meter['wrong']}".rstrip()


def _interval(last: dict[str, Any] | None) -> Iterator[str]:
    if last is None:
        yield "  no interval was closed yet"
        return
    pue = f"{last['pue_ppm'] / 1e6:.3f}" if last["pue_ppm"] else "unknown"
    water = "unknown" if last["water_ul"] is None else f"{last['water_ul'] / 1e6:,.3f} l"
    paid = out.money(last["bill_nano"], currency()) or "price unknown"
    carbon = out.carbon(last["carbon_ug"]) or "carbon unknown"
    yield f"  last interval to {last['end']}: {out.energy(last['meter_mj'])} ({last['meter']}), {paid}, {carbon}"
    quality = last["quality_permille"] / 10
    yield f"  PUE {pue}, water {water}, from {last['supply']}"
    sign = "-" if last["residual_mj"] < 0 else ""
    yield f"  {quality:g} % placed by readings, residual {sign}{out.energy(abs(last['residual_mj']))}"
    yield from (f"  note: {note}" for note in last["notes"])
