"""What is written in a round of the loop leaves at its end, in order, and nothing else overtakes it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenworks.core import turns
from tokenworks.core.post import BATCH, LETTER_BYTES_MAX, LETTERS_MAX, Posted, posted


class Wire(asyncio.Transport):
    """A transport that keeps what is done with it."""

    def __init__(self) -> None:
        super().__init__()
        self.done: list[bytes | str] = []
        self.closing = False

    def write(self, data: Any) -> None:
        self.done.append(bytes(data))

    def close(self) -> None:
        self.closing = True
        self.done.append("close")

    def abort(self) -> None:
        self.closing = True
        self.done.append("abort")

    def is_closing(self) -> bool:
        return self.closing

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.done.append("eof")

    def pause_reading(self) -> None:
        self.done.append("pause")

    def resume_reading(self) -> None:
        self.done.append("resume")

    def get_write_buffer_size(self) -> int:
        return sum(len(said) for said in self.done if isinstance(said, bytes))


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    """One that only runs when it is asked to."""
    made = asyncio.new_event_loop()
    yield made
    made.close()


def turn(loop: asyncio.AbstractEventLoop) -> None:
    """One round of it."""
    loop.call_soon(loop.stop)
    loop.run_forever()


def pair(loop: asyncio.AbstractEventLoop) -> tuple[Wire, Posted]:
    """A transport, and the one that sends later."""
    wire = Wire()
    return wire, posted(wire, loop)


def test_what_is_said_in_a_round_is_one_packet(loop: asyncio.AbstractEventLoop) -> None:
    """It leaves at the end of the round; the next round has its own."""
    wire, later = pair(loop)
    other, too = pair(loop)
    later.write(b"a")
    too.write(b"x")
    later.write(b"b")
    assert (wire.done, other.done) == ([], [])
    turn(loop)
    assert (wire.done, other.done) == ([b"ab"], [b"x"])
    later.write(b"c")
    turn(loop)
    turn(loop)
    assert wire.done == [b"ab", b"c"]


def test_enough_connections_do_not_wait_for_the_end_of_the_round(loop: asyncio.AbstractEventLoop) -> None:
    """The other side begins while this one still works."""
    pairs = [pair(loop) for _ in range(BATCH + 1)]
    for _, later in pairs:
        later.write(b"a")
    assert [wire.done for wire, _ in pairs] == [[b"a"]] * BATCH + [[]]
    turn(loop)
    assert [wire.done for wire, _ in pairs] == [[b"a"]] * (BATCH + 1)


def test_much_goes_at_once(loop: asyncio.AbstractEventLoop) -> None:
    """So that the transport can say that it is too much: what waits is bounded in bytes and in pieces."""
    wire, later = pair(loop)
    later.write(b"a")
    later.write(b"b" * (LETTER_BYTES_MAX + 1))
    assert wire.done == [b"a" + b"b" * (LETTER_BYTES_MAX + 1)]
    for _ in range(LETTERS_MAX + 1):
        later.write(b"c")
    assert wire.done[1:] == [b"c" * (LETTERS_MAX + 1)]


def test_a_closing_transport_is_told_nothing(loop: asyncio.AbstractEventLoop) -> None:
    """Its other end is gone, and it may not be written to any more."""
    wire, later = pair(loop)
    later.write(b"a")
    wire.closing = True
    turn(loop)
    later.close()
    assert wire.done == ["close"]


def test_each_loop_has_its_own_post() -> None:
    """A loop that was closed with something unsent holds nobody up."""
    first = asyncio.new_event_loop()
    wire, later = pair(first)
    later.write(b"never")
    first.close()
    second = asyncio.new_event_loop()
    other, now = pair(second)
    now.write(b"a")
    turn(second)
    second.close()
    assert (wire.done, other.done) == ([], [b"a"])


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.integers(0, 2), st.binary(min_size=1, max_size=3)),
        st.tuples(st.sampled_from(["turn", "eof", "size", "abort", "close", "flush"]), st.integers(0, 2), st.just(b"")),
    ),
    max_size=40,
)


@given(STEPS)
def test_the_other_side_sees_the_same_as_without(steps: list[tuple[str, int, bytes]]) -> None:
    """Against the oracle of transports that send at once: the same bytes before the same ends; an abort loses at most
    what was written in its round."""
    loop = asyncio.new_event_loop()
    pairs, plain = [pair(loop) for _ in range(3)], [Wire() for _ in range(3)]
    since = [0, 0, 0]
    for what, which, data in steps:
        (wire, later), other = pairs[which], plain[which]
        if what == "turn":
            turn(loop)
            since = [was if w.closing else w.get_write_buffer_size() for was, w in zip(since, plain, strict=True)]
        elif other.closing:
            continue
        elif what == "write":
            later.write(data)
            other.write(data)
        elif what == "eof":
            later.write_eof()
            other.write_eof()
        elif what == "size":
            assert later.get_write_buffer_size() == other.get_write_buffer_size()
        elif what == "flush":
            later.flush()
        else:
            getattr(later, what)()
            getattr(other, what)()
    turn(loop)
    loop.close()
    for at, ((wire, _), other) in enumerate(zip(pairs, plain, strict=True)):
        if "abort" not in other.done:
            assert _said(wire) == _said(other)
        else:
            said, all_of_it = _said(wire), _said(other)
            assert said[-1] == "abort"
            assert b"".join(each for each in all_of_it if isinstance(each, bytes)).startswith(
                b"".join(each for each in said if isinstance(each, bytes))
            )
            assert wire.get_write_buffer_size() >= since[at]


def _said(wire: Wire) -> list[bytes | str]:
    """What was done, with bytes that follow one another as one."""
    found: list[bytes | str] = []
    for each in wire.done:
        last = found[-1] if found else ""
        if isinstance(each, bytes) and isinstance(last, bytes):
            found[-1] = last + each
        else:
            found.append(each)
    return found


def test_things_come_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them, in order; before every few of them whoever else wants the processor goes first."""
    seen: list[int | None] = []
    monkeypatch.setattr(os, "sched_yield", lambda: seen.append(None))
    for turn in turns.in_turns(range(turns.TURN * 2 + 1)):
        seen.extend(turn)
    first, second = list(range(turns.TURN)), list(range(turns.TURN, turns.TURN * 2))
    assert seen == [None, *first, None, *second, None, turns.TURN * 2]
