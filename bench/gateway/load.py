"""The load generator: ``python -m bench.gateway.load JSON`` runs one Job and prints its Outcome as JSON.

A closed loop over keep-alive connections: each sends its next request when its answer is whole and checked. It is one
process around ``epoll`` with a few microseconds for a request, so that it is not what is measured; latencies are kept
one by one and percentiles are exact. Every answer is checked against what its number demands (see ``words``).
"""

from __future__ import annotations

import gc
import re
import select
import socket
import sys
import time
from array import array
from itertools import count

import msgspec
from bench.gateway import words
from bench.gateway.answers import Wrong, check

STUCK_S = 60.0
"""No answer for so long: the rest is given up and counted as failed."""
FAILED_MAX = 1000
"""More than so many requests without an answer end the run."""
_LENGTH = re.compile(rb"(?i)\r\ncontent-length:\s*(\d+)")
_END = b"\r\n0\r\n\r\n"
_SECOND = 1_000_000_000


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """One run. ``rate`` paces it to so many requests a second; 0 sends as fast as answers come."""

    host: str
    port: int
    headers: dict[str, str] = {}
    mode: words.Mode = "whole"
    connections: int = 1
    seconds: float = 5.0
    warm_s: float = 1.0
    rate: float = 0.0
    first: int = 0
    """The number of the first request."""


class Outcome(msgspec.Struct, kw_only=True):
    """What came back. Counts and sums are of the whole run; ``rps`` and percentiles without the warm-up."""

    completed: int = 0
    wrong: int = 0
    """Answers that were not what their number demands; ``why`` has the first."""
    failed: int = 0
    """Requests without a whole answer."""
    why: str = ""
    prompt: int = 0
    completion: int = 0
    ustu: int = 0
    ustu_said: int = 0
    """What the answers' ``tokenworks`` objects say, where there are any."""
    chunks: int = 0
    seconds: float = 0.0
    rps: float = 0.0
    p50_us: float = 0.0
    p99_us: float = 0.0
    p100_us: float = 0.0

    @property
    def good(self) -> bool:
        """Everything asked was answered, and rightly."""
        return self.completed > 0 and not self.wrong and not self.failed

    @property
    def right(self) -> bool:
        """Its figures are worth keeping: not one request in a hundred went wrong."""
        return self.completed > 100 * (self.wrong + self.failed)


class _Client:
    """One connection and the request that is on it."""

    __slots__ = ("began", "buffer", "busy", "need", "number", "sock")

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.buffer = bytearray()
        self.began = self.number = 0
        self.need = -1
        self.busy = False

    def take(self, data: bytes) -> bool:
        """Keep what came; whether the answer is whole now."""
        buffer = self.buffer
        buffer += data
        if self.need < 0:
            end = buffer.find(b"\r\n\r\n")
            if end < 0:
                return False
            length = _LENGTH.search(buffer, 0, end + 2)
            self.need = end + 4 + int(length[1]) if length else 0
        return len(buffer) >= self.need if self.need else buffer.endswith(_END)


class Load:
    """A job at work."""

    def __init__(self, job: Job) -> None:
        self.job, self.out = job, Outcome()
        self._latencies = array("q")
        before, after = words.body(job.mode)
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nhost: {job.host}:{job.port}\r\ncontent-type: application/json\r\n"
        )
        head += "".join(f"{name}: {value}\r\n" for name, value in job.headers.items())
        head += f"content-length: {len(before) + 12 + len(after)}\r\n\r\n"
        self._before, self._after = head.encode() + before, after
        self._numbers = count(job.first)
        self._epoll = select.epoll()
        self._clients: dict[int, _Client] = {}
        self._window_ns = (0, 0)

    def run(self) -> Outcome:
        """Warm up, measure, then wait for what is still under way: no answer is left out of the sums."""
        job, clock = self.job, time.perf_counter_ns
        idle = [self._connect() for _ in range(job.connections)]
        start = clock()
        self._window_ns = (start + int(job.warm_s * _SECOND), start + int((job.warm_s + job.seconds) * _SECOND))
        last = self._window_ns[1]
        sent, heard = 0, start
        while True:
            now = clock()
            if now < last:
                due = len(idle) if not job.rate else min(len(idle), int((now - start) * job.rate / _SECOND) - sent)
                for _ in range(due):
                    self._send(idle.pop())
                sent += max(0, due)
            if len(idle) == len(self._clients) and now >= last:
                break
            events = self._epoll.poll(0.001 if job.rate else 1.0)
            for fd, _ in events:
                if (client := self._receive(fd)) is None:
                    continue
                if not job.rate and clock() < last:
                    self._send(client)
                else:
                    idle.append(client)
            if events:
                heard = clock()
            if self.out.failed > FAILED_MAX:
                break
            if clock() - heard > STUCK_S * _SECOND:
                self.out.failed += sum(client.busy for client in self._clients.values())
                self.out.why = self.out.why or f"no answer for {STUCK_S:.0f} s"
                break
        return self._sum_up((clock() - start) / _SECOND)

    def _connect(self) -> _Client:
        sock = socket.create_connection((self.job.host, self.job.port), timeout=STUCK_S)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setblocking(False)
        client = self._clients[sock.fileno()] = _Client(sock)
        self._epoll.register(sock.fileno(), select.EPOLLIN)
        return client

    def _send(self, client: _Client) -> None:
        client.number = number = next(self._numbers)
        client.busy, client.need = True, -1
        request = b"%s%012d%s" % (self._before, number, self._after)
        client.began = time.perf_counter_ns()
        try:
            client.sock.send(request)
        except OSError as error:
            self.out.why = self.out.why or f"sending: {error}"  # its end of file is seen next, and counted there

    def _receive(self, fd: int) -> _Client | None:
        """What came on a connection; its client when it is free again."""
        client = self._clients[fd]
        try:
            data = client.sock.recv(262_144)
        except BlockingIOError:
            return None
        except OSError as error:
            data, self.out.why = b"", self.out.why or str(error)
        if not data:
            return self._again(client, fd)
        if not client.take(data):
            return None
        now = time.perf_counter_ns()
        self._account(client, now)
        client.busy = False
        client.buffer.clear()
        return client

    def _again(self, client: _Client, fd: int) -> _Client:
        """The other side closed: in the middle of an answer that is a failure."""
        if client.busy:
            self.out.failed += 1
            self.out.why = self.out.why or "the connection was closed before the answer was whole"
        self._epoll.unregister(fd)
        client.sock.close()
        del self._clients[fd]
        return self._connect()

    def _account(self, client: _Client, now: int) -> None:
        out, mode = self.out, self.job.mode
        out.completed += 1
        if self._window_ns[0] <= now < self._window_ns[1]:
            self._latencies.append(now - client.began)
        try:
            said = check(bytes(client.buffer), client.number, mode)
        except Wrong as error:
            out.wrong += 1
            out.why = out.why or f"request {client.number}: {error}"
            return
        used = words.tokens(client.number, mode)
        out.prompt += used.prompt
        out.completion += used.completion
        out.ustu += used.ustu
        out.ustu_said += said
        out.chunks += words.CHUNKS if mode == "stream" else 0

    def _sum_up(self, seconds: float) -> Outcome:
        out, took = self.out, sorted(self._latencies)
        for client in self._clients.values():
            client.sock.close()
        self._epoll.close()
        out.seconds = seconds
        out.rps = round(len(took) / self.job.seconds, 1)
        if took:
            out.p50_us, out.p99_us, out.p100_us = (
                round(took[min(len(took) - 1, len(took) * part // 100)] / 1000, 1) for part in (50, 99, 100)
            )
        return out


if __name__ == "__main__":
    gc.disable()
    print(msgspec.json.encode(Load(msgspec.json.decode(sys.argv[1], type=Job)).run()).decode())
