"""Grid events on a running grid: what is asked of each site, the order that follows each second, and what it is worth.

Events come from the grid file, from an OpenADR server and, by way of files in the data directory, from whatever gateway
process a webhook or a drill reached. Floor 1's events need numpy: they are imported when there is one.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from tokenworks.core.clock import Clock, utc_text
from tokenworks.core.errors import BadRequest, ExchangeDown, TokenworksError, find
from tokenworks.core.files import write_private
from tokenworks.core.units import NS_PER_S, energy_mj
from tokenworks.core.words import Limit, Word
from tokenworks.curtail import CAP, SLEEP, Order, answer
from tokenworks.engine.record import Replica
from tokenworks.exchange.words import BillPower
from tokenworks.history import History, file_name
from tokenworks.site.agent import SiteAgent
from tokenworks.site.facility import pue_ppm

if TYPE_CHECKING:
    from tokenworks.power.events import GridEvent

log = logging.getLogger(__name__)
LOOK_S = 1.0
SEEN = 10
"""Seconds before an event whose mean power is its baseline where there were too few similar days."""
RECENT = 3
EVENTS_MAX = 100
KEEP_NS = 86_400 * NS_PER_S
"""How long an event that is over is kept."""


_SHOWN = (
    "meter_mj", "idle_mj", "overhead_mj", "residual_mj", "bill_nano", "carbon_ug", "water_ul", "mix_permille",
    "scale_ppm", "scales_ppm", "quality_permille", "notes",
)  # fmt: skip
"""Of the last interval, in status."""


class _Posted(Word, frozen=True):
    """A file of an event that somebody posted: the body as it came."""

    site: str
    received_ns: int
    body: msgspec.Raw


def post_event(data: Path, sites: Sequence[str], site: str | None, body: bytes, now_ns: int) -> dict[str, Any]:
    """Take in an event. Raises BadRequest, or NotFound for a site that is not of this grid."""
    from tokenworks.power.events import event_from_webhook

    if site is None and len(sites) > 1:
        raise BadRequest("which site is meant?", hint=f"?site=, one of {', '.join(sites)}", param="site")
    name = sites[0] if site is None else site
    find(name, dict.fromkeys(sites), "site")
    event = event_from_webhook(body, now_ns)
    folder = data / "grid-events"
    folder.mkdir(exist_ok=True)
    path = folder / (hashlib.sha256(f"{name}\0{event.id}".encode()).hexdigest()[:32] + ".json")
    if not path.exists() and len(list(folder.iterdir())) >= EVENTS_MAX:
        raise BadRequest(f"{EVENTS_MAX} grid events are known already", hint="those that are over go after a day")
    posted = _Posted(site=name, received_ns=now_ns, body=msgspec.Raw(body))
    write_private(path, msgspec.json.encode(posted))
    return {"site": name, "id": event.id, "received": utc_text(now_ns)}


class _Heard:
    """One event and what is known of it here."""

    def __init__(self, event: GridEvent, path: Path | None = None) -> None:
        self.event, self.path = event, path
        self.baseline_mw: int | None = None
        self.method = ""
        """Where that is from."""
        self.limits: tuple[Limit, ...] = ()
        self.baseline_mj = self.metered_mj = 0
        self.avoided_nano: int | None = 0
        """What the energy that was not drawn would have cost, second by second; None: a price was not known."""
        self.until_ns = 0
        """Up to where it was metered."""
        self.billed = False


class Watch:
    """One site: its power second by second, the events that it heard of, and the order that follows."""

    def __init__(self, agent: SiteAgent, now_ns: int, history: History) -> None:
        self.agent, self.history = agent, history
        self.order: Order | None = None
        self.openadr: Callable[[], str] | None = None
        """How it stands with the utility's server; None: there is none."""
        self.shares: Callable[[], dict[str, int | None]] = dict
        """Of its sources, as ``SitePricing.shares``."""
        self.bill: Callable[[BillPower], None] = lambda _: None
        """Books what an event that is over was worth. Raises ExchangeDown; then it is asked again."""
        self._began_ns = now_ns
        self._heard: dict[str, _Heard] = {}
        self._powers: deque[int] = deque(maxlen=SEEN)
        self._meter = "modelled"
        self._last_ns = now_ns

    def hear(self, event: GridEvent, path: Path | None = None) -> None:
        """An event came, or came again: changed, or cancelled."""
        known = self._heard.get(event.id)
        if known is None and len(self._heard) >= EVENTS_MAX:
            self._heard.pop(min(self._heard.values(), key=lambda each: each.event.end_ns).event.id)
        heard = self._heard.setdefault(event.id, _Heard(event, path))
        heard.event, heard.path, heard.limits, heard.billed = event, path, (), False
        self._limit(heard)

    def step(self, now_ns: int) -> None:
        """Look at the power since the last step, and decide."""
        if now_ns <= self._last_ns:
            return
        power_mw, meter = self.agent.power(self._last_ns, now_ns)
        self._meter = meter.value
        for heard in list(self._heard.values()):
            event = heard.event
            if heard.baseline_mw is None and event.start_ns <= now_ns and not event.cancelled:
                heard.baseline_mw = self.history.baseline_mw(event.start_ns, event.end_ns)
                heard.method = "the same time on ten similar days"
                if heard.baseline_mw is None:
                    heard.baseline_mw = sum(self._powers) // len(self._powers) if self._powers else power_mw
                    heard.method = f"the {SEEN} seconds before"
                self._limit(heard)
            if heard.baseline_mw is not None and not event.cancelled:
                ns = min(now_ns, event.end_ns) - max(self._last_ns, event.start_ns)
                if ns > 0:
                    mj = energy_mj(power_mw, ns), energy_mj(heard.baseline_mw, ns)
                    heard.metered_mj, heard.baseline_mj = heard.metered_mj + mj[0], heard.baseline_mj + mj[1]
                    nano = self.agent.supply.bill_nano(mj[1] - mj[0])
                    if heard.avoided_nano is not None:
                        heard.avoided_nano = None if nano is None else heard.avoided_nano + nano
                    heard.until_ns = min(now_ns, event.end_ns)
                if heard.until_ns == event.end_ns and event.start_ns >= self._began_ns and not heard.billed:
                    self._book(heard)
            if now_ns > event.end_ns + event.ramp_ns + KEEP_NS:
                del self._heard[event.id]
                if heard.path is not None:
                    heard.path.unlink(missing_ok=True)
        asked = any(each.baseline_mw is not None and each.event.end_ns > self._last_ns for each in self._heard.values())
        self.history.see(self._last_ns, now_ns, power_mw, event=asked)
        self._powers.append(power_mw)
        self._last_ns = now_ns
        recent = list(self._powers)[-RECENT:]
        limits = [limit for heard in self._heard.values() for limit in heard.limits]
        self.order = answer(limits, sum(recent) // len(recent), self.order, now_ns)
        self.agent.state = "capped" if self.order is not None and self.order.step >= CAP else "resident"

    def _book(self, heard: _Heard) -> None:
        """An event that was seen from its start to its end. What it was worth at an unknown price stays unknown."""
        nano, event, site = self._worth(heard).get("nano"), heard.event, self.agent.site
        with contextlib.suppress(ExchangeDown):  # at the next look, then
            if nano is not None:
                said: dict[str, Any] = {"part": "events", "what": f"event {event.id}", "nano": -nano}
                self.bill(BillPower(site=site.name, supply=site.supply.name, at_ns=event.end_ns, **said))
            heard.billed = True

    def _limit(self, heard: _Heard) -> None:
        if heard.baseline_mw is not None:
            from tokenworks.power.events import limits

            heard.limits = limits(heard.event, self.agent.site.name, heard.baseline_mw)

    def status(self, replicas: Iterable[Replica]) -> dict[str, Any]:
        """For people and programs: power, limits, meters, what the last interval said."""
        latest, site = self.agent.latest, self.agent.site
        found: dict[str, Any] = {
            "site": site.name, "at": utc_text(self._last_ns), "power_mw": self._powers[-1] if self._powers else None,
            "power": self._meter, "max_mw": self.order.max_mw if self.order else None,
            "order": msgspec.to_builtins(self.order) if self.order else None,
            "events": [self._event(heard) for heard in self._heard.values()],
            "meters": [dict(zip(("meters", "power_mw", "wrong"), each, strict=True)) for each in self.agent.meters()],
            "contact": self._contact(), "openadr": self.openadr() if self.openadr else None,
            "running": sum(each.running for each in replicas if each.spec.site == site.name), "interval": None,
            "price_nano_per_kwh": self.agent.supply.price and self.agent.supply.price.value,
            "carbon_ug_per_kwh": self.agent.supply.carbon and self.agent.supply.carbon.value,
            "sources_permille": self.shares(),
        }  # fmt: skip
        if latest is not None:
            it_mj = latest.meter_mj - latest.overhead_mj
            found["interval"] = {name: getattr(latest, name) for name in _SHOWN} | {
                "start": utc_text(latest.start_ns), "end": utc_text(latest.end_ns), "meter": latest.meter.value,
                "supply": latest.supply, "pue_ppm": pue_ppm(latest.meter_mj, it_mj),
            }  # fmt: skip
        return found

    def _contact(self) -> dict[str, str] | None:
        """When a site that cannot always be reached can be, now or next; None: always."""
        facility = self.agent.site.facility
        if facility is None or not facility.windows or (near := facility.reachable(self._last_ns)) is None:
            return None
        return {"start": utc_text(near[0]), "end": utc_text(near[1])}

    def _event(self, heard: _Heard) -> dict[str, Any]:
        event = heard.event
        return {
            "id": event.id, "kind": event.kind, "start": utc_text(event.start_ns), "end": utc_text(event.end_ns),
            "cancelled": event.cancelled, "baseline_mw": heard.baseline_mw, "baseline": heard.method,
            **self._worth(heard),
        }  # fmt: skip

    def _worth(self, heard: _Heard) -> dict[str, int | None]:
        """What it asked for and got so far, what it pays, and what the energy would have cost."""
        if heard.baseline_mw is None or heard.until_ns <= heard.event.start_ns:
            return {}
        from tokenworks.power.events import settle

        ramp_ns = min(heard.event.ramp_ns, heard.until_ns - heard.event.start_ns)
        so_far = msgspec.structs.replace(heard.event, end_ns=heard.until_ns, ramp_ns=ramp_ns)
        settled = settle(so_far, heard.baseline_mj, heard.metered_mj)
        return {**settled._asdict(), "avoided_nano": heard.avoided_nano}


class Responder:
    """All sites of a grid, in its first process. ``orders`` is kept up by site, for every gateway."""

    def __init__(
        self, agents: Mapping[str, SiteAgent], replicas: Mapping[str, Replica], orders: dict[str, Order], clock: Clock,
        data: Path,
    ) -> None:  # fmt: skip
        self.watches = {
            name: Watch(agent, clock.now_ns(), History(data / "power" / f"{file_name(name)}.load.json"))
            for name, agent in agents.items()
        }
        self.follow: Callable[[int], None] = lambda _: None
        """Keeps up what else moves at sites; called with the time at each look."""
        self._replicas, self._orders, self._clock, self._folder = replicas, orders, clock, data / "grid-events"
        self._read: dict[str, int] = {}

    async def run(self) -> None:
        """Look, decide and act every second until cancelled."""
        while True:
            try:
                self.look()
            except Exception:  # the next look may work, and the last order must not stand for ever
                log.exception("grid events were not looked at")
            await self._clock.sleep(LOOK_S)

    def look(self) -> None:
        """Once."""
        self._fetch()
        for watch in self.watches.values():
            watch.step(self._clock.now_ns())
        self._orders.clear()
        self._orders.update({name: watch.order for name, watch in self.watches.items() if watch.order is not None})
        for replica in self._replicas.values():
            order = self._orders.get(replica.spec.site)
            replica.rest = order is not None and order.step >= SLEEP
        self.follow(self._clock.now_ns())

    def _fetch(self) -> None:
        """Events that were posted since the last look. A file that is none is told of once."""
        known, self._read = self._read, {}
        for path in self._folder.glob("*.json") if self._folder.is_dir() else ():
            changed_ns = self._read[path.name] = path.stat().st_mtime_ns
            if known.get(path.name) != changed_ns:
                try:
                    from tokenworks.power.events import event_from_webhook

                    posted = msgspec.json.decode(path.read_bytes(), type=_Posted)
                    event = event_from_webhook(bytes(posted.body), posted.received_ns)
                    self.watches[posted.site].hear(event, path)
                except (TokenworksError, OSError, KeyError, msgspec.MsgspecError) as error:
                    log.warning("grid event %s is left out: %s", path.name, error)

    def status(self) -> list[dict[str, Any]]:
        """Of every site."""
        return [watch.status(self._replicas.values()) for watch in self.watches.values()]
