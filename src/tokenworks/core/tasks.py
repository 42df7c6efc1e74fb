"""What ``steps.py`` leaves to asyncio's own tasks. It stands apart because it is not compiled."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Generator
from inspect import CORO_CREATED, getcoroutinestate
from types import coroutine
from typing import Any


class TaskWait:
    """Something that a coroutine in a task waits for: see ``steps.Wait``."""

    __slots__ = ("_future",)

    def __init__(self) -> None:
        self._future = asyncio.get_running_loop().create_future()

    @property
    def done(self) -> bool:
        return self._future.done()

    def set(self, error: BaseException | None = None) -> None:
        if not self._future.done():
            if error is None:
                self._future.set_result(None)
            else:
                self._future.set_exception(error)

    def __await__(self) -> Generator[Any, None, None]:
        return self._future.__await__()


class AskTask:
    """Awaited by a coroutine that is stepped: from here on it wants to be in a task. Not ``wanted``: it is in one."""

    def __init__(self, wanted: bool) -> None:
        self._wanted = wanted

    def __await__(self) -> Generator[Any, Any, None]:
        if self._wanted:
            yield self


async def taken_over(running: Coroutine[Any, Any, None], asked: object) -> None:
    """The rest of a coroutine that waits for something of asyncio, for a task to run."""
    await _rest(running, asked)


@coroutine
def _rest(running: Coroutine[Any, Any, None], asked: object) -> Generator[Any, Any, None]:
    while not isinstance(asked, AskTask):
        try:
            yield asked
            break
        except BaseException as error:
            try:
                asked = running.throw(error)
            except StopIteration:
                return
    yield from running


def cancel_task(task: asyncio.Task[None], msg: object) -> None:
    """Of ``taken_over``. Once it has begun: a task that is cancelled before never tells its coroutine."""
    rest: Any = task.get_coro()
    if getcoroutinestate(rest) == CORO_CREATED:
        task.get_loop().call_soon(task.cancel, msg)
    else:
        task.cancel(msg)
