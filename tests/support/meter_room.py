"""A meter room on loopback: a Modbus meter, a Redfish BMC and pages of metrics, all real servers."""

from __future__ import annotations

import json
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from pymodbus.server import ModbusTcpServer
from pymodbus.simulator import DataType, SimData, SimDevice


@asynccontextmanager
async def modbus_meter(wh: int, kw: float) -> AsyncIterator[tuple[int, ModbusTcpServer]]:
    """A meter with a uint64 of watt-hours at register 100 and a float32 of kilowatts at 200."""
    device = SimDevice(
        id=1,
        simdata=[
            SimData(100, values=wh, datatype=DataType.UINT64),
            SimData(200, values=kw, datatype=DataType.FLOAT32),
        ],
    )
    server = ModbusTcpServer(device, address=("127.0.0.1", 0))
    await server.serve_forever(background=True)
    try:
        assert server.transport is not None
        yield server.transport.sockets[0].getsockname()[1], server  # type: ignore[attr-defined]
    finally:
        await server.shutdown()  # type: ignore[no-untyped-call]


@asynccontextmanager
async def modbus_counter(joules: Callable[[], int]) -> AsyncIterator[int]:
    """A meter whose uint64 of joules at register 100 is asked for anew at each reading; its port."""

    async def count(_: int, start: int, address: int, size: int, registers: list[int], __: object) -> None:
        words = [joules() >> shift & 0xFFFF for shift in (48, 32, 16, 0)]
        registers[address - start : address - start + size] = words[address - 100 :][:size]

    device = SimDevice(id=1, simdata=[SimData(100, values=0, datatype=DataType.UINT64)], action=count)
    server = ModbusTcpServer(device, address=("127.0.0.1", 0))
    await server.serve_forever(background=True)
    try:
        assert server.transport is not None
        yield server.transport.sockets[0].getsockname()[1]  # type: ignore[attr-defined]
    finally:
        await server.shutdown()  # type: ignore[no-untyped-call]


Answer = Callable[[str, str, bytes], tuple[int, bytes]]


@contextmanager
def http_server(answer: Answer) -> Iterator[str]:
    """A server that calls ``answer(method, path, body)`` for (status, body); its address."""

    class Handler(BaseHTTPRequestHandler):
        def _serve(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, content = answer(self.command, self.path, body)
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_PATCH = _serve  # noqa: N815 - the library's own names

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - as above
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class Bmc:
    """A Redfish tree as DMTF shapes it: two chassis, one with EnvironmentMetrics whose power limit can be PATCHed."""

    METRICS = "/redfish/v1/Chassis/1U/EnvironmentMetrics"

    def __init__(self) -> None:
        self.tree: dict[str, Any] = {
            "/redfish/v1/Chassis": {
                "Members": [{"@odata.id": "/redfish/v1/Chassis/1U"}, {"@odata.id": "/redfish/v1/Chassis/Shelf"}],
                "Members@odata.count": 2,
            },
            "/redfish/v1/Chassis/1U": {"Id": "1U", "EnvironmentMetrics": {"@odata.id": self.METRICS}},
            "/redfish/v1/Chassis/Shelf": {"Id": "Shelf"},
            self.METRICS: {
                "@odata.type": "#EnvironmentMetrics.v1_3_0.EnvironmentMetrics",
                "PowerWatts": {"Reading": 374},
                "EnergykWh": {"Reading": 325675.25},
                "PowerLimitWatts": {"SetPoint": 500, "AllowableMin": 150, "AllowableMax": 1000},
            },
        }

    def __call__(self, method: str, path: str, body: bytes) -> tuple[int, bytes]:
        if path not in self.tree:
            return 404, b"{}"
        if method == "PATCH":
            for key, value in json.loads(body).items():
                self.tree[path][key] |= value
            return 204, b""
        return 200, json.dumps(self.tree[path]).encode()
