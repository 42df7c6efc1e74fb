"""A coroutine that is stepped does what it would do as a task of asyncio: tasks are the oracle."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.steps import Run, rounds

from tokenworks.core.steps import Steps, in_task, wait


async def _result() -> object:
    asyncio.get_running_loop().call_soon((made := asyncio.get_running_loop().create_future()).set_result, "result")
    return await made


async def _there() -> object:
    made = asyncio.get_running_loop().create_future()
    made.set_result("was there")
    return await made


async def _broken() -> object:
    made = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_soon(made.set_exception, ValueError("broken"))
    return await made


async def _caught() -> object:
    try:
        return await _broken()
    except ValueError:
        await asyncio.sleep(0)
        return await _result()


async def _future_cancelled() -> object:
    made = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_soon(made.cancel)
    return await made


async def _event() -> object:
    event = asyncio.Event()
    asyncio.get_running_loop().call_soon(event.set)
    return await event.wait()


async def _timeout() -> object:
    await in_task()
    async with asyncio.timeout(0.001):
        await asyncio.Event().wait()
    return "not reached"


async def _in_time() -> object:
    await in_task()
    await in_task()
    async with asyncio.timeout(5):
        return await _result()


async def _lock() -> object:
    lock = asyncio.Lock()
    await lock.acquire()
    asyncio.get_running_loop().call_soon(lock.release)
    async with lock:
        return lock.locked()


async def _gathered() -> object:
    return await asyncio.gather(_result(), _event(), asyncio.shield(_lock()))


async def _letters() -> AsyncIterator[str]:
    try:
        for letter in "abc":
            await asyncio.sleep(0)
            yield letter
    finally:
        await asyncio.sleep(0)


async def _generator() -> object:
    return [letter async for letter in _letters()]


@asynccontextmanager
async def _room() -> AsyncIterator[str]:
    try:
        yield await wait_a_moment()
    finally:
        await asyncio.sleep(0)


async def wait_a_moment() -> str:
    one = wait()
    asyncio.get_running_loop().call_soon(one.set)
    await one
    return "moment"


async def _context() -> object:
    async with _room() as said:
        await asyncio.sleep(0)
        return said, await wait_a_moment()


async def _context_broken() -> object:
    async with _room():
        return await _broken()


THINGS: list[Callable[[], Awaitable[object]]] = [
    lambda: asyncio.sleep(0, "slept"), lambda: asyncio.sleep(0.001, "slept"), _result, _there, _broken, _caught,
    _future_cancelled, _event, _timeout, _in_time, _lock, _gathered, _generator, wait_a_moment, _context,
    _context_broken,
]  # fmt: skip


@pytest.mark.parametrize("first_waits", [False, True])
@pytest.mark.parametrize("thing", THINGS)
async def test_what_asyncio_has_is_awaited_as_in_a_task(
    thing: Callable[[], Awaitable[object]], first_waits: bool
) -> None:
    """The same words and the same end, whether a Wait came before or not; afterwards it can wait again."""

    async def program(run: Run, *, waits: bool) -> None:
        if waits:
            await run.wait()
        try:
            await run.watched(thing())
        finally:
            await wait_a_moment()
            run.said.append("end")

    run, oracle = Run(), Run()
    run.start(program(run, waits=first_waits))
    if first_waits:
        run.waits[0].set()
    task = asyncio.create_task(program(oracle, waits=False))
    await asyncio.wait([task])
    await asyncio.sleep(0.002)
    oracle.ended.append(asyncio.CancelledError() if task.cancelled() else task.exception())
    assert run.said == ["on"] * first_waits + oracle.said
    assert run.end is oracle.end


Program = list[Any]
"""What to do in order; a list in it is nested."""
LEAVES = st.sampled_from(["set", "now", "later", "broken", "sleep", "task", "raise", "stuck"])
PROGRAMS: st.SearchStrategy[Program] = st.recursive(
    st.lists(LEAVES, max_size=4),
    lambda inner: st.lists(
        LEAVES | st.tuples(st.sampled_from(["call", "try", "catch", "start"]), inner), min_size=1, max_size=5
    ),
    max_leaves=14,
)


class Player:
    """Plays a program as it is, and lets whoever is stuck for good be cancelled by ``drive``."""

    def __init__(self, begin: Callable[[Player, Coroutine[Any, Any, None], str], Callable[[], object]]) -> None:
        self._begin = begin
        self.trace: dict[str, list[str]] = {}
        """By player, since several of them run by turns."""
        self.stuck: set[str] = set()
        self.cancels: dict[str, Callable[[], object]] = {}
        self.open = 0

    def start(self, program: Program, who: str) -> None:
        self.trace[who] = []
        self.open += 1
        self.cancels[who] = self._begin(self, self.play(program, who), who)

    def told(self, who: str, error: BaseException | None) -> None:
        self.open -= 1
        self.trace[who].append(f"ended {type(error).__name__}")

    async def play(self, program: Program, who: str) -> None:
        trace = self.trace[who]
        for number, action in enumerate(program):
            trace.append(f"{number} {action[0] if isinstance(action, tuple) else action}")
            if action in ("set", "now", "later", "broken", "stuck"):
                await self._wait(action, who)
            elif action == "sleep":
                await asyncio.sleep(0)
            elif action == "task":
                await in_task()
                async with asyncio.timeout(None):
                    await asyncio.sleep(0)
            elif action == "raise":
                raise ValueError
            else:
                how, inner = action
                await self._nested(how, inner, f"{who}.{number}", who)

    async def _wait(self, action: str, who: str) -> None:
        one = wait()
        if action in ("set", "now"):
            one.set()
        elif action != "stuck":
            error = ValueError("broken") if action == "broken" else None
            asyncio.get_running_loop().call_soon(one.set, error)
        else:
            self.stuck.add(who)
        try:
            await one
        finally:
            self.stuck.discard(who)
            self.trace[who].append(f"waited {action}")

    async def _nested(self, how: str, program: Program, name: str, who: str) -> None:
        trace = self.trace[who]
        if how == "start":
            while name in self.trace:
                name += "'"
            self.start(program, name)
        elif how == "call":
            await self.play(program, who)
        elif how == "try":
            try:
                await self.play(program, who)
            finally:
                trace.append("finally")
                await self._wait("later", who)
                await asyncio.sleep(0)
        else:
            try:
                await self.play(program, who)
            except (ValueError, asyncio.CancelledError) as error:
                trace.append(f"caught {type(error).__name__}")


def stepped(player: Player, running: Coroutine[Any, Any, None], who: str) -> Callable[[], object]:
    steps = Steps(running, lambda error: player.told(who, error))
    return steps.cancel


def as_task(player: Player, running: Coroutine[Any, Any, None], who: str) -> Callable[[], object]:
    task = asyncio.get_running_loop().create_task(running)

    def ended(task: asyncio.Task[None]) -> None:
        player.told(who, asyncio.CancelledError() if task.cancelled() else task.exception())

    task.add_done_callback(ended)
    return task.cancel


async def drive(player: Player, program: Program) -> dict[str, list[str]]:
    """Play it to the end; whoever is stuck is cancelled once nothing else moves."""
    player.start(program, "p")
    for _ in range(60):
        await rounds(25)
        if not player.open:
            return player.trace
        for who in sorted(player.stuck):
            player.cancels[who]()
    raise AssertionError(player.trace)


@settings(max_examples=250, deadline=None, database=None)
@given(PROGRAMS)
def test_any_program_does_what_it_does_as_a_task(program: Program) -> None:
    """Each coroutine of it says the same in the same order, and ends the same."""

    async def both() -> None:
        assert await drive(Player(stepped), program) == await drive(Player(as_task), program)

    asyncio.run(both())
