"""OpenADR 2.0b: this site as a VEN that polls a utility's VTN and hears its events. Needs the extra ``openadr``.

Understood: SIMPLE levels, LOAD_CONTROL as a share of capacity, LOAD_DISPATCH set-points. All else is answered optOut.
(The ramp of an event does not survive openleadr's parser, so an event over OpenADR has none.)
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, Literal

from tokenworks.core.clock import Clock
from tokenworks.core.errors import Unreachable
from tokenworks.core.units import NS_PER_S
from tokenworks.power.events import GridEvent
from tokenworks.power.tariff import to_ns

LEVELS_PERMILLE = {1: 100, 2: 250, 3: 500}
"""What SIMPLE levels cut, unless the programme says otherwise. Level 0 asks for nothing."""
EVENTS_MAX = 100
SILENT_POLLS, PAUSE_S_MAX, START_S = 3, 60.0, 30.0
_MILLI = {"none": 1e3, "k": 1e6, "M": 1e9, "G": 1e12}


def events_of(raw: Mapping[str, Any], received_ns: int, capacity_mw: int) -> list[GridEvent]:
    """The event of an openleadr message, one per interval. Raises ValueError for what is not understood."""
    signal, *more = raw["event_signals"]
    kind = (signal["signal_name"].upper(), signal["signal_type"])
    if more or len(signal["intervals"]) > EVENTS_MAX:
        raise ValueError("an event of several signals or too many intervals")
    found, head, start_ns = [], raw["event_descriptor"], to_ns(raw["active_period"]["dtstart"])
    for number, interval in enumerate(signal["intervals"]):
        level, target = float(interval["signal_payload"]), {}
        start_ns = to_ns(interval["dtstart"]) if interval.get("dtstart") else start_ns
        end_ns = start_ns + round(interval["duration"].total_seconds()) * NS_PER_S
        if kind == ("SIMPLE", "level"):
            target = {"cut_permille": LEVELS_PERMILLE[int(level)]} if level else {}
        elif kind == ("LOAD_CONTROL", "x-loadControlCapacity"):
            target = {"cap_mw": round(capacity_mw * level)}
        elif kind == ("LOAD_DISPATCH", "setpoint"):
            scale = (signal.get("measurement") or {}).get("scale", "none")
            target = {"cap_mw": round(level * _MILLI[scale])}
        else:
            raise ValueError("a signal that is not understood: " + " ".join(kind))
        if target:
            target |= {"received_ns": received_ns, "start_ns": start_ns, "end_ns": end_ns}
            name, gone = head["event_id"] + (f".{number}" if number else ""), head["event_status"] == "cancelled"
            found.append(GridEvent(id=name, kind="curtail", cancelled=gone, **target))
        start_ns = end_ns
    return found


class OpenAdr:
    """One VEN. ``emit`` is given every event, again when it changes or is cancelled; if it raises, we opt out."""

    def __init__(self, url: str, name: str, capacity_mw: int, clock: Clock, emit: Callable[[GridEvent], None]) -> None:
        self._url, self._name, self._capacity_mw, self._clock, self._emit = url, name, capacity_mw, clock, emit
        self.state: Literal["connecting", "up", "lost"] = "connecting"
        self.heard_ns: int | None = None
        """When the VTN last said anything that could be read; None: never."""
        self.refused = 0  # events that were not understood or too many

    async def run(self) -> None:
        """Register and poll until cancelled; after silence, begin again with growing pauses. Raises Unreachable when
        the extra is not installed."""
        pause_s = 1.0
        while True:
            if await self._session():
                pause_s = 1.0
            self.state = "lost"
            await self._clock.sleep(pause_s)
            pause_s = min(2 * pause_s, PAUSE_S_MAX)

    async def _session(self) -> bool:
        """One registration and its polls, until ``SILENT_POLLS`` of them heard nothing; False: it never began."""
        try:
            from openleadr import OpenADRClient  # an extra, and heavy: only who uses it pays for it
        except ImportError as error:
            raise Unreachable("OpenADR needs openleadr", hint="install tokenworks[openadr]") from error
        client = OpenADRClient(ven_name=self._name, vtn_url=self._url, allow_jitter=False)

        def on_event(raw: Mapping[str, Any]) -> str:
            try:
                if len(client.received_events) > EVENTS_MAX:
                    raise ValueError("too many events")
                for event in events_of(raw, self._clock.now_ns(), self._capacity_mw):
                    self._emit(event)
            except (ValueError, LookupError, TypeError):
                self.refused += 1
                return "optOut"
            return "optIn"

        def on_answer(_kind: str, _payload: object) -> None:
            self.heard_ns = self._clock.now_ns()

        client.add_handler("on_event", on_event)
        client.add_handler("on_update_event", on_event)
        client.add_hook("after_parse_xml", on_answer)
        try:
            async with asyncio.timeout(START_S):
                await client.run()
            if not client.registration_id:
                return False
            self.state = "up"
            every_s = max(1.0, client.poll_frequency.total_seconds())
            while self._clock.now_ns() - (self.heard_ns or 0) < SILENT_POLLS * every_s * NS_PER_S:
                await self._clock.sleep(every_s)
            return True
        except (TimeoutError, TypeError, KeyError, AttributeError):  # openleadr trips over an odd or empty answer
            return False
        finally:
            if client.client_session is not None:
                await client.stop()
