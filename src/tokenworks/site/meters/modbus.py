"""Modbus TCP: registers of a revenue meter or PDU. Needs the extra ``meters`` (pymodbus)."""

from __future__ import annotations

import struct
from typing import Literal, NamedTuple

from tokenworks.core.clock import Clock
from tokenworks.core.errors import Unreachable
from tokenworks.site.meters.meter import Sample

_FORMATS = {"uint16": ">H", "uint32": ">I", "uint64": ">Q", "float32": ">f", "float64": ">d"}
UNITS = {"Wh": 3_600_000.0, "kWh": 3.6e9, "J": 1e3, "W": 1e3, "kW": 1e6}


class Register(NamedTuple):
    """A holding register: big-endian words from ``address`` on, times ``factor``, in this unit."""

    address: int
    form: Literal["uint16", "uint32", "uint64", "float32", "float64"]
    unit: Literal["Wh", "kWh", "J", "W", "kW"]
    factor: float = 1.0


class Modbus:
    """One device (``unit_id``); a channel is one of its ``registers``, named by who configures it."""

    def __init__(self, clock: Clock, host: str, port: int = 502, unit_id: int = 1) -> None:
        self._clock, self._host, self._port, self._unit_id = clock, host, port, unit_id
        self.registers: dict[str, Register] = {}

    async def read(self) -> dict[str, Sample]:
        """As ``Source`` says. Connects anew each time: meters have few connections to spare, and forget them."""
        from pymodbus import ModbusException
        from pymodbus.client import AsyncModbusTcpClient

        client, found = AsyncModbusTcpClient(self._host, port=self._port, retries=0), dict[str, Sample]()
        try:
            if not await client.connect():
                raise Unreachable(f"no meter answers on {self._host}:{self._port}")
            for channel, (address, form, unit, factor) in self.registers.items():
                size = struct.calcsize(_FORMATS[form])
                answer = await client.read_holding_registers(address, count=size // 2, device_id=self._unit_id)
                if answer.isError():
                    raise Unreachable(f"{self._host}: register {address}: {answer}")
                (value,) = struct.unpack(_FORMATS[form], struct.pack(f">{size // 2}H", *answer.registers))
                amount, at_ns = round(value * factor * UNITS[unit]), self._clock.now_ns()
                power = unit in ("W", "kW")
                found[channel] = Sample(at_ns, None if power else amount, amount if power else None)
        except (ModbusException, ValueError, OverflowError) as error:  # a float may be no number
            raise Unreachable(f"{self._host}:{self._port}: {error}") from error
        finally:
            client.close()
        return found
