"""Ten thousand open streams on which nothing happens: how much memory does the gateway need for them?

``python -m bench.gateway.idle PORT COUNT AUTHORIZATION`` opens them, prints how many have their first event, and keeps
them until its standard input ends.
"""

from __future__ import annotations

import select
import socket
import sys
import time

from bench.gateway import words

SOURCES = 16
"""Loopback addresses that clients come from, so that ports suffice."""
AT_ONCE = 200
"""Connections that wait for their first event at the same time."""
FIRST_S_MAX = 60.0


def open_streams(port: int, count: int, authorization: str) -> list[socket.socket]:
    """Streams that have had their first event, at most ``count``."""
    before, after = words.body("idle")
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\nauthorization: {authorization}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(before) + 12 + len(after)}\r\n\r\n"
    ).encode()
    opened: list[socket.socket] = []
    for first in range(0, count, AT_ONCE):
        part: dict[int, socket.socket] = {}
        epoll = select.epoll()
        for number in range(first, min(count, first + AT_ONCE)):
            source = (f"127.0.0.{1 + number % SOURCES}", 0)
            sock = socket.create_connection(("127.0.0.1", port), timeout=FIRST_S_MAX, source_address=source)
            sock.sendall(b"%s%s%012d%s" % (head, before, number, after))
            part[sock.fileno()] = sock
            epoll.register(sock.fileno(), select.EPOLLIN)
        seen: dict[int, bytes] = {}
        waiting = set(part)
        deadline = time.monotonic() + FIRST_S_MAX
        while waiting and time.monotonic() < deadline:
            for fd, _ in epoll.poll(1.0):
                data = part[fd].recv(65_536)
                seen[fd] = seen.get(fd, b"") + data
                if b"data: " in seen[fd] or not data:
                    waiting.discard(fd)
                    epoll.unregister(fd)
        epoll.close()
        opened += [sock for fd, sock in part.items() if seen.get(fd, b"")[9:12] == b"200" and fd not in waiting]
        if len(opened) < first + len(part):
            sample = next((data for data in seen.values() if data[9:12] != b"200"), b"no first event")
            print(f"only {len(opened)} of {first + len(part)}: {sample[-200:]!r}", file=sys.stderr)
            break
    return opened


if __name__ == "__main__":
    streams = open_streams(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
    print(len(streams), flush=True)
    sys.stdin.read()
