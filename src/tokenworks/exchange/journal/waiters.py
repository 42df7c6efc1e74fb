"""Who waits until a position is safe on the disk. They wait on their event loops; the committer's thread wakes them."""

from __future__ import annotations

import asyncio
import contextlib
import threading

from tokenworks.core.errors import ExchangeDown
from tokenworks.exchange.journal.frames import Position

WAITERS_MAX = 65_536

_Waiter = tuple[Position, asyncio.AbstractEventLoop, "asyncio.Future[None]"]


class Waiters:
    """Futures by position. A position that was reported as synced stays so; after a failure no other ever will be."""

    def __init__(self, synced: Position) -> None:
        self._lock = threading.Lock()
        """Held for a few list operations, never while a disk is asked: an event loop may wait for it."""
        self._synced = synced
        self._waiting: list[_Waiter] = []
        self._failure: str | None = None
        self._hint: str | None = None

    def wait(self, position: Position, loop: asyncio.AbstractEventLoop) -> asyncio.Future[None] | None:
        """A future of that loop, or None: it is synced already. Raises ExchangeDown after a failure."""
        with self._lock:
            if position <= self._synced:
                return None
            if self._failure is not None:
                raise ExchangeDown(self._failure, hint=self._hint)
            if len(self._waiting) >= WAITERS_MAX:
                self._waiting = [waiter for waiter in self._waiting if not waiter[2].done()]
            if len(self._waiting) >= WAITERS_MAX:
                raise ExchangeDown("too many requests wait for the disk", hint="the disk cannot keep up")
            future = loop.create_future()
            self._waiting.append((position, loop, future))
            return future

    def wake(self, synced: Position) -> None:
        """Everything up to this position is on the disk."""
        with self._lock:
            self._synced = synced
            ready = [waiter for waiter in self._waiting if waiter[0] <= synced]
            if ready:
                self._waiting = [waiter for waiter in self._waiting if waiter[0] > synced]
        _hand_over(ready, None, None)

    def fail(self, failure: str, hint: str | None) -> None:
        """Nothing more will be reported as synced. The first failure is the one that is told."""
        with self._lock:
            if self._failure is None:
                self._failure, self._hint = failure, hint
            ready, self._waiting = self._waiting, []
        _hand_over(ready, failure, hint)


def _hand_over(ready: list[_Waiter], failure: str | None, hint: str | None) -> None:
    by_loop: dict[asyncio.AbstractEventLoop, list[asyncio.Future[None]]] = {}
    for _, loop, future in ready:
        by_loop.setdefault(loop, []).append(future)
    for loop, futures in by_loop.items():
        with contextlib.suppress(RuntimeError):  # the loop has ended, and whoever waited there with it
            loop.call_soon_threadsafe(_resolve, futures, failure, hint)


def _resolve(futures: list[asyncio.Future[None]], failure: str | None, hint: str | None) -> None:
    for future in futures:
        if future.done():  # its waiter was cancelled
            continue
        if failure is None:
            future.set_result(None)
        else:
            future.set_exception(ExchangeDown(failure, hint=hint))
