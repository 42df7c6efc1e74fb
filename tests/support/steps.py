"""A stepped coroutine under test, and what it says."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Coroutine
from typing import Any

from tokenworks.core.steps import Steps, Waiter, wait


class Run:
    """A coroutine on its way, what it said, and how it ended."""

    def __init__(self) -> None:
        self.said: list[object] = []
        self.ended: list[BaseException | None] = []
        self.waits: list[Waiter] = []
        self.steps: Steps | None = None

    def start(self, running: Coroutine[Any, Any, None]) -> Run:
        self.steps = Steps(running, self.ended.append)
        return self

    def cancel(self) -> None:
        assert self.steps is not None
        self.steps.cancel("why")

    async def wait(self, name: object = "on") -> None:
        """Wait for the test, and say so."""
        self.waits.append(one := wait())
        await one
        self.said.append(name)

    async def watched(self, inner: Awaitable[object]) -> None:
        """Says how the inner one went."""
        try:
            self.said.append(await inner)
        except BaseException as error:
            self.said.append(type(error))
            raise
        finally:
            self.said.append("finally")

    @property
    def end(self) -> type[BaseException] | None:
        """How it ended, which it was told once."""
        [error] = self.ended
        return None if error is None else type(error)


async def rounds(count: int = 8) -> None:
    for _ in range(count):
        await asyncio.sleep(0)
