"""The iteration clock against the token-by-token loop, and what it refuses."""

from __future__ import annotations

from dataclasses import dataclass
from time import perf_counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.token_loop import TokenLoop

from tokenworks.core.errors import BadRequest
from tokenworks.engine.perf.clock import Clock, Done, Job, Limits

EXACT = 1 / 1024
"""Times in multiples of this add without rounding, so the two simulations must agree to the last bit."""


@dataclass
class Line:
    """A pace in whole units of EXACT."""

    fixed: int
    sequence: int
    token: int
    pair: int
    per_context: float

    def base(self, sequences: int, prompt: int, prompt_context: float) -> float:
        pairs = self.pair * 2 * prompt_context
        return EXACT * (self.fixed + self.sequence * sequences + self.token * prompt + pairs)


paces = st.builds(
    Line,
    fixed=st.integers(1, 2_000),
    sequence=st.integers(0, 50),
    token=st.integers(0, 20),
    pair=st.integers(0, 2),
    per_context=st.integers(0, 4).map(lambda n: n * EXACT),
)


@st.composite
def loads(draw: st.DrawFn) -> tuple[Limits, list[Job]]:
    """Limits, and jobs that each fit them, in the order of arrival."""
    seats = draw(st.integers(1, 6))
    limits = Limits(seats=seats, cache_tokens=draw(st.integers(80, 300)), chunk_tokens=draw(st.integers(seats + 1, 64)))
    jobs, now = [], 0
    for n in range(draw(st.integers(1, 14))):
        now += draw(st.integers(0, 40_000))
        prompt = draw(st.integers(1, 40))
        jobs.append(
            Job(
                id=n,
                arrival_s=now * EXACT,
                prompt=prompt,
                output=draw(st.integers(1, 40)),
                hit=draw(st.integers(0, prompt)),
                load_s=draw(st.sampled_from([0, 0, 512])) * EXACT,
            )
        )
    return limits, jobs


def run(clock: Clock, until_s: float = float("inf")) -> list[Done]:
    """Everything that finishes before the iteration that starts at ``until_s``."""
    done = []
    while finished := clock.advance(until_s):
        done += finished
    return done


def order(done: list[Done]) -> list[Done]:
    return sorted(done, key=lambda one: one.job.id)


@given(pace=paces, load=loads())
@settings(max_examples=300, deadline=None)
def test_the_clock_equals_the_token_loop(pace: Line, load: tuple[Limits, list[Job]]) -> None:
    """Every first token and every end, bit for bit, over chunks, full caches, full seats, hits and stalls."""
    limits, jobs = load
    clock = Clock(pace, limits)
    for job in jobs:
        clock.submit(job)
    assert order(run(clock)) == order(TokenLoop(pace, limits, jobs).run())


@given(pace=paces, load=loads(), looks=st.lists(st.integers(0, 300_000), max_size=12))
@settings(max_examples=200, deadline=None)
def test_looking_changes_nothing(pace: Line, load: tuple[Limits, list[Job]], looks: list[int]) -> None:
    """A router that looks at a replica, and hands it jobs as they arrive, sees what it would without looking."""
    limits, jobs = load
    clock, done = Clock(pace, limits), []
    events: list[tuple[float, Job | None]] = [(look * EXACT, None) for look in looks]
    for at, job in sorted(events + [(job.arrival_s, job) for job in jobs], key=lambda event: event[0]):
        done += run(clock, at)
        if job:
            clock.submit(job)
    done += run(clock)
    assert order(done) == order(TokenLoop(pace, limits, jobs).run())


@given(pace=paces, load=loads())
@settings(max_examples=100, deadline=None)
def test_the_tally_adds_up(pace: Line, load: tuple[Limits, list[Job]]) -> None:
    """Tokens made, prompt tokens computed and busy time are those of the jobs."""
    limits, jobs = load
    clock = Clock(pace, limits)
    for job in jobs:
        clock.submit(job)
    done, tally = run(clock), clock.tally
    assert tally.sequences == sum(job.output - 1 for job in jobs)
    assert tally.prompt == sum(job.prompt - min(job.hit, job.prompt - 1) for job in jobs)
    assert tally.context == sum((job.output - 1) * job.prompt + job.output * (job.output - 1) // 2 for job in jobs)
    assert tally.mixed <= tally.iterations
    assert tally.busy_s <= max(one.end_s for one in done)


def test_the_cost_does_not_depend_on_the_length_of_outputs() -> None:
    """A million iterations are one jump."""
    pace = Line(fixed=10, sequence=1, token=1, pair=0, per_context=EXACT / 1024)
    clock = Clock(pace, Limits(seats=8, cache_tokens=10_000_000))
    for n in range(8):
        clock.submit(Job(id=n, arrival_s=0.0, prompt=100, output=1_000_000))
    began = perf_counter()
    assert len(run(clock)) == 8
    assert clock.tally.iterations == 1_000_000
    assert perf_counter() - began < 0.2


@pytest.mark.parametrize(
    "job",
    [
        Job(id=1, arrival_s=0.0, prompt=0, output=1),
        Job(id=1, arrival_s=0.0, prompt=1, output=0),
        Job(id=1, arrival_s=0.0, prompt=4, output=1, hit=5),
        Job(id=1, arrival_s=0.0, prompt=60, output=60),
    ],
)
def test_a_job_that_cannot_be_served_is_refused(job: Job) -> None:
    """Nothing waits for ever."""
    clock = Clock(Line(1, 0, 0, 0, 0.0), Limits(seats=1, cache_tokens=100))
    with pytest.raises(BadRequest, match="job 1"):
        clock.submit(job)


def test_jobs_come_in_order_and_limits_make_sense() -> None:
    """The clock never turns back."""
    clock = Clock(Line(1, 0, 0, 0, 0.0), Limits(seats=1, cache_tokens=100))
    clock.submit(Job(id=1, arrival_s=2.0, prompt=1, output=1))
    with pytest.raises(BadRequest, match="before the one queued last"):
        clock.submit(Job(id=2, arrival_s=1.0, prompt=1, output=1))
    with pytest.raises(BadRequest, match="chunks larger than its seats"):
        Clock(Line(1, 0, 0, 0, 0.0), Limits(seats=8, cache_tokens=100, chunk_tokens=8))
