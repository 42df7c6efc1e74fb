"""The event loop is kept awake for a moment, and no longer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

from hypothesis import given
from hypothesis import strategies as st

from tokenworks.agents.awake import AWAKE_NS, ROUNDS_MAX, Awake
from tokenworks.core.clock import ManualClock


class Loop:
    """A loop that is turned by hand, one round at a time; a round takes ``round_ns`` by the clock."""

    def __init__(self, round_ns: int = 0) -> None:
        self.clock = ManualClock()
        self.round_ns = round_ns
        self.soon: list[tuple[Callable[..., object], tuple[Any, ...]]] = []

    def call_soon(self, callback: Callable[..., object], *args: Any) -> None:
        self.soon.append((callback, args))

    def turn(self) -> None:
        self.clock.advance(self.round_ns / 1e9)
        now, self.soon = self.soon, []
        for callback, args in now:
            callback(*args)

    def sleeps_after(self) -> int:
        """In how many rounds it has nothing to do."""
        rounds = 0
        while self.soon:
            self.turn()
            rounds += 1
            assert rounds <= ROUNDS_MAX
        return rounds

    @property
    def it(self) -> asyncio.AbstractEventLoop:
        return cast(asyncio.AbstractEventLoop, self)


def test_an_idle_one_sleeps() -> None:
    """Nothing is done until something happens."""
    loop = Loop()
    Awake(loop.clock)
    assert loop.soon == []


def test_it_sleeps_again_by_the_clock() -> None:
    """After ``AWAKE_NS``; stirred again it stays awake as long again."""
    loop = Loop(round_ns=AWAKE_NS // 10)
    awake = Awake(loop.clock)
    for _ in range(3):
        awake.stir(loop.it)
        assert loop.sleeps_after() == 10
    assert loop.soon == []


def test_it_sleeps_again_when_the_clock_stands_still() -> None:
    """After ``ROUNDS_MAX`` rounds."""
    loop = Loop()
    awake = Awake(loop.clock)
    for _ in range(2):
        awake.stir(loop.it)
        assert loop.sleeps_after() == ROUNDS_MAX


def test_a_stir_while_it_is_awake_begins_the_moment_anew() -> None:
    """By the clock and by the rounds."""
    for round_ns, whole in ((AWAKE_NS // 10, 10), (0, ROUNDS_MAX)):
        loop = Loop(round_ns)
        awake = Awake(loop.clock)
        awake.stir(loop.it)
        for _ in range(whole - 1):
            loop.turn()
        awake.stir(loop.it)
        assert loop.sleeps_after() == whole


@given(st.lists(st.integers(0, 5), max_size=60), st.integers(0, AWAKE_NS // 4))
def test_there_is_one_chain_however_often_it_is_stirred(stirs: list[int], round_ns: int) -> None:
    """Never more than one callback in the loop, and in the end none."""
    loop = Loop(round_ns)
    awake = Awake(loop.clock)
    for times in stirs:
        for _ in range(times):
            awake.stir(loop.it)
        assert len(loop.soon) <= 1
        loop.turn()
    loop.sleeps_after()
    assert loop.soon == []


async def test_on_a_real_loop_it_ends() -> None:
    """With a clock that stands still: as many rounds as the bound says, then the loop sleeps."""
    awake, loop = Awake(ManualClock()), asyncio.get_running_loop()
    awake.stir(loop)
    for _ in range(ROUNDS_MAX - 2):
        await asyncio.sleep(0)
    assert awake._on
    for _ in range(3):
        await asyncio.sleep(0)
    assert not awake._on
