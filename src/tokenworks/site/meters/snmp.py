"""SNMP v2c: objects of a rack PDU (APC: 1.3.6.1.4.1.318.1.1.26). Needs the extra ``snmp`` (pysnmp)."""

from __future__ import annotations

from typing import Literal, NamedTuple

from tokenworks.core.clock import Clock
from tokenworks.core.errors import Unreachable
from tokenworks.site.meters.meter import Sample


class Oid(NamedTuple):
    """An object and what one of it is: millijoules of a counter, or milliwatts of a power."""

    oid: str
    factor: float
    kind: Literal["energy", "power"]


class Snmp:
    """A PDU; a channel is one of its ``objects``, named by who configures it."""

    def __init__(self, clock: Clock, host: str, port: int = 161, word: str = "public") -> None:
        self._clock, self._address, self._word = clock, (host, port), word
        self.objects: dict[str, Oid] = {}

    async def read(self) -> dict[str, Sample]:
        """As ``Source`` says."""
        from pysnmp.error import PySnmpError
        from pysnmp.hlapi.v3arch import asyncio as snmp

        asked = [snmp.ObjectType(snmp.ObjectIdentity(each.oid)) for each in self.objects.values()]
        engine = snmp.SnmpEngine()
        try:
            target = await snmp.UdpTransportTarget.create(self._address, timeout=1, retries=0)
            failed, refused, _, values = await snmp.get_cmd(
                engine, snmp.CommunityData(self._word), target, snmp.ContextData(), *asked, lookupMib=False
            )
            if failed or refused:
                raise Unreachable(f"{self._address[0]}: {failed or refused}")
            at_ns, found = self._clock.now_ns(), dict[str, Sample]()
            for (channel, (_, factor, kind)), (_, value) in zip(self.objects.items(), values, strict=True):
                amount = round(int(value) * factor)
                found[channel] = Sample(at_ns, mj=amount) if kind == "energy" else Sample(at_ns, mw=amount)
            return found
        except (PySnmpError, ValueError, TypeError) as error:
            raise Unreachable(f"{self._address[0]}: {error}") from error
        finally:
            engine.close_dispatcher()
