"""Coroutines that are stepped by what they wait for: they go on at once, end once, and are cancelled as tasks are."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
from tests.support.steps import Run, rounds

from tokenworks.core.steps import Wait, _stepping, in_task, wait
from tokenworks.core.tasks import TaskWait


async def test_it_goes_on_at_once() -> None:
    """In the very call of ``set``, without a round of the loop and without a task."""
    run = Run()

    async def three() -> None:
        for name in range(3):
            await run.wait(name)

    run.start(three())
    for number in range(3):
        assert (run.said, run.ended) == ([*range(number)], [])
        assert isinstance(run.waits[number], Wait)
        run.waits[number].set()
    assert (run.said, run.ended) == ([0, 1, 2], [None])
    assert len(asyncio.all_tasks()) == 1


async def test_what_is_there_before_it_is_awaited() -> None:
    """Set before the coroutine comes to wait, from inside its own step: it does not wait. Errors are kept as well."""
    run = Run()

    async def body() -> None:
        one, broken = wait(), wait()
        one.set()
        one.set(ValueError("late"))
        broken.set(ValueError("kept"))
        await one
        run.said.append("on")
        await broken

    run.start(body())
    assert (run.said, run.end) == (["on"], ValueError)


async def test_set_from_a_step_further_up_the_stack() -> None:
    """One that goes on sets what another waits for, which sets its next: none is lost, none goes twice."""
    first, second = Run(), Run()

    async def one() -> None:
        await first.wait("first 1")
        later = wait()
        first.waits.append(later)
        second.waits[0].set()  # goes on here and now, and sets ``later``
        assert later.done
        await later
        first.said.append("first 2")

    async def two() -> None:
        await second.wait("second")
        first.waits[1].set()

    first.start(one())
    second.start(two())
    first.waits[0].set()
    assert (first.said, first.ended) == (["first 1", "first 2"], [None])
    assert (second.said, second.ended) == (["second"], [None])


async def test_only_the_first_set_counts() -> None:
    """A second one neither breaks what came nor wakes what the coroutine waits for next."""
    run = Run()

    async def two() -> None:
        await run.wait(1)
        await run.wait(2)

    run.start(two())
    for error in (None, ValueError("late"), None):
        run.waits[0].set(error)
    assert (run.said, run.ended) == ([1], [])
    run.waits[1].set()
    run.waits[1].set(ValueError("late"))
    assert (run.said, run.ended) == ([1, 2], [None])


@pytest.mark.parametrize("error", [None, ValueError, asyncio.CancelledError, StopAsyncIteration])
@pytest.mark.parametrize("when", ["first step", "set", "raised", "in a task"])
async def test_the_end_is_told_once(error: type[BaseException] | None, when: str) -> None:
    """Nothing, or what was raised: in the first step, by what was waited for, after it, in a task."""
    run = Run()

    async def body() -> None:
        if when == "in a task":
            await asyncio.sleep(0)
        elif when != "first step":
            await run.wait()
        if error is not None and when != "set":
            raise error

    run.start(body())
    if when == "in a task":
        await rounds()
    elif when != "first step":
        run.waits[0].set(error() if error is not None and when == "set" else None)
    assert run.end is error


async def test_cancel_where_it_waits() -> None:
    """At once, with its message; it may clean up, waiting again, and may even go on."""
    run = Run()

    async def body() -> None:
        try:
            await run.wait()
        except asyncio.CancelledError as error:
            run.said.append(error.args)
            await run.wait("cleaned up")
            raise

    run.start(body())
    run.cancel()
    assert (run.said, run.ended) == ([("why",)], [])
    run.waits[0].set()  # too late for the first
    assert run.ended == []
    run.waits[1].set()
    assert (run.said[1], run.end) == ("cleaned up", asyncio.CancelledError)
    run.cancel()
    await rounds()
    assert run.end is asyncio.CancelledError, "nothing happens after the end"


@pytest.mark.parametrize("next_wait", ["wait", "sleep", "none"])
async def test_cancelled_by_itself_it_is_cancelled_where_it_waits_next_and_once(next_wait: str) -> None:
    """While it runs it cannot be interrupted; the CancelledError comes once, as in a task."""
    run = Run()

    async def body() -> None:
        await run.wait("on")
        run.cancel()
        try:
            if next_wait == "wait":
                await run.wait("never")
            elif next_wait == "sleep":
                await asyncio.sleep(1)
        except asyncio.CancelledError:
            run.said.append("cancelled")
            await run.wait("cleaned up")

    run.start(body())
    run.waits[0].set()
    await rounds()
    if next_wait != "none":
        assert run.said == ["on", "cancelled"]
        run.waits[-1].set()
        await rounds()
        assert run.said[2:] == ["cleaned up"]
    assert run.end is None


@pytest.mark.parametrize("asyncios", [False, True])
async def test_cancelled_in_its_first_step(asyncios: bool) -> None:
    """It is told at its first await, whether that is a Wait or something of asyncio."""
    run = Run()

    async def body() -> None:
        _stepping[-1].cancel()  # nobody else knows it yet
        run.said.append("still here")
        await run.watched(asyncio.sleep(1) if asyncios else run.wait())

    run.start(body())
    await rounds()
    assert (run.said, run.end) == (["still here", asyncio.CancelledError, "finally"], asyncio.CancelledError)


@pytest.mark.parametrize("after", range(4))
async def test_cancelled_while_a_task_has_it(after: int) -> None:
    """Before the task's first step too, which a task alone would not tell its coroutine."""
    run = Run()

    async def long() -> None:
        await asyncio.sleep(0)
        await asyncio.Event().wait()

    run.start(run.watched(long()))
    await rounds(after)
    run.cancel()
    await rounds()
    assert (run.said, run.end) == ([asyncio.CancelledError, "finally"], asyncio.CancelledError)
    run.cancel()
    await rounds()
    assert len(run.ended) == 1


async def test_it_may_end_by_what_a_task_brings_it() -> None:
    """Whoever takes the error of the first thing of asyncio for an answer and ends has ended well."""
    run = Run()

    async def body() -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()

    run.start(body())
    await rounds()
    run.cancel()
    await rounds()
    assert run.end is None


@pytest.mark.parametrize("by", ["its task", "itself"])
async def test_a_cancel_is_not_lost_when_what_it_waits_for_is_there(by: str) -> None:
    """As any task: asyncio raises CancelledError although the future has its result in the same round."""
    run, future = Run(), asyncio.get_running_loop().create_future()
    run.start(run.watched(future))
    await rounds()
    [task] = asyncio.all_tasks() - {asyncio.current_task()}
    future.set_result("result")
    task.cancel() if by == "its task" else run.cancel()
    await rounds()
    assert run.said == [asyncio.CancelledError, "finally"]


async def test_each_wait_belongs_to_the_one_that_made_it() -> None:
    """One that is started in another's step waits for itself; afterwards the outer one's waits are its own again."""
    outer, inner = Run(), Run()

    async def inside() -> None:
        await inner.wait("inner 1")
        await inner.wait("inner 2")

    async def outside() -> None:
        inner.start(inside())
        await outer.wait("outer 1")
        inner.waits[0].set()
        await outer.wait("outer 2")

    outer.start(outside())
    outer.waits[0].set()
    assert (outer.said, inner.said) == (["outer 1"], ["inner 1"])
    inner.waits[1].set()
    assert (outer.ended, inner.ended) == ([], [None])
    outer.waits[1].set()
    assert (outer.said, outer.ended) == (["outer 1", "outer 2"], [None])


async def test_in_a_task_a_wait_is_a_future() -> None:
    """Also in the task that has taken a stepped coroutine over; there ``in_task`` does nothing more."""
    run = Run()

    async def body() -> None:
        await in_task()
        task = asyncio.current_task()
        await in_task()
        assert asyncio.current_task() is task
        await run.wait()

    run.start(body())
    await rounds()
    assert isinstance(run.waits[0], TaskWait)
    run.waits[0].set()
    assert run.said == []
    run.waits[0].set(ValueError("late"))
    await rounds()
    assert (run.said, run.ended) == (["on"], [None])
    mine = wait()
    assert isinstance(mine, TaskWait)
    asyncio.get_running_loop().call_soon(mine.set, ValueError("broken"))
    with pytest.raises(ValueError, match="broken"):
        await mine
    assert mine.done
