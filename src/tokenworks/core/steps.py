"""A coroutine that is stepped by what it waits for: without a task, and without a round of the event loop.

A task and its future cost more than all that the house does for a short answer. A ``Steps`` goes on in the very
callback that brings what its coroutine waits for (a ``Wait``). Whatever else of asyncio it waits for, a task takes it
over then and there; code that asks for the present task (a timeout, most libraries) says so with ``await in_task()``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Generator
from typing import Any

from tokenworks.core.tasks import AskTask, TaskWait, cancel_task, taken_over

_stepping: list[Steps] = []
"""The one that goes on now is the last; those before it are further up the same stack."""


class Wait:
    """Something that one coroutine waits for. ``set`` lets it go on, at once, or when it comes to wait."""

    __slots__ = ("_error", "_steps", "done")

    def __init__(self, steps: Steps) -> None:
        self.done = False
        self._steps: Steps | None = steps
        self._error: BaseException | None = None

    def set(self, error: BaseException | None = None) -> None:
        """It is there, or broke. Only the first time counts."""
        steps = self._steps
        if not self.done:
            self.done, self._error = True, error
            if steps is not None and steps.waits_for is self:
                self._steps = steps.waits_for = None
                steps.go()

    def __await__(self) -> Generator[Any, Any, None]:
        return self  # type: ignore[return-value]  # an iterator is all that awaiting takes

    def __iter__(self) -> Wait:
        return self

    def __next__(self) -> Wait:
        if not self.done:
            return self
        if self._error is not None:
            raise self._error
        raise StopIteration


Waiter = Wait | TaskWait


def wait() -> Waiter:
    """A new one, for whoever runs now: await it at once, and tell somebody to ``set`` it."""
    return Wait(_stepping[-1]) if _stepping else TaskWait()


def in_task() -> AskTask:
    """From where this is awaited on the coroutine runs in a task of asyncio."""
    return AskTask(bool(_stepping))


class Steps:
    """A coroutine on its way; it begins when it is made. ``ended`` is told how: None, or what was raised."""

    __slots__ = ("_cancelled", "_coroutine", "_ended", "_task", "waits_for")

    def __init__(self, running: Coroutine[Any, Any, None], ended: Callable[[BaseException | None], None]) -> None:
        self._coroutine, self._ended = running, ended
        self.waits_for: Wait | None = None
        self._task: asyncio.Task[None] | None = None
        self._cancelled = False
        self.go()

    def go(self) -> None:
        """One step: until it waits, or ends."""
        _stepping.append(self)
        try:
            asked: object = self._coroutine.send(None)
        except StopIteration:
            _stepping.pop()
            self._ended(None)
        except BaseException as error:
            _stepping.pop()
            self._ended(error)
        else:
            _stepping.pop()
            if not isinstance(asked, Wait):
                self._task = asyncio.get_running_loop().create_task(taken_over(self._coroutine, asked))
                self._task.add_done_callback(self._task_ended)
                if self._cancelled:
                    self.cancel()
            else:
                self.waits_for = asked
                if self._cancelled:
                    self._cancelled = False
                    asked.set(asyncio.CancelledError())

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        self._ended(asyncio.CancelledError() if task.cancelled() else task.exception())

    def cancel(self, msg: object = None) -> None:
        """As a task's: CancelledError where it waits. Nothing happens after the end."""
        if self._task is not None:
            cancel_task(self._task, msg)
        elif self.waits_for is not None:
            self.waits_for.set(asyncio.CancelledError(msg))
        else:
            self._cancelled = True
