"""The fit of one engine's pace, its prediction, and where its time goes."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.token_loop import TokenLoop

from tokenworks.engine.perf.calibrated import (
    CACHE_TOKENS,
    CHUNK,
    Asked,
    Seen,
    Speed,
    SpeedPace,
    bottlenecks,
    fit_speed,
    limits_of,
    replay,
)
from tokenworks.engine.perf.clock import Job, Limits
from tokenworks.engine.perf.devices import device_named
from tokenworks.engine.perf.iteration import Batch, Work
from tokenworks.engine.perf.plan import Plan
from tokenworks.engine.perf.shapes import shape_named

SPEED = Speed(
    iteration_s=0.011, sequence_s=0.007, context_s=6e-6, prompt_s=0.005, attention_s=3e-6, request_s=0.005
)  # fmt: skip
paces = st.builds(
    Speed,
    iteration_s=st.floats(1e-3, 5e-2),
    sequence_s=st.floats(1e-5, 1e-2),
    context_s=st.floats(1e-9, 1e-5),
    prompt_s=st.floats(1e-5, 1e-2),
    attention_s=st.floats(1e-10, 1e-6),
    request_s=st.floats(1e-3, 5e-2),
)


def seen(speed: Speed) -> list[Seen]:
    """What a calibration would see of an engine of exactly that pace."""
    found = []
    for prompt in (20, 140, 400):
        found.append((1.0, 0.0, 0.0, float(prompt), prompt * prompt / 2, 1.0))
        found += [(8.0, 8.0, 8.0 * (prompt + k), 0.0, 0.0, 0.0) for k in (4, 12)]
    for n in (2, 4, 8, 16):
        found += [(10.0, 10.0 * n, 10.0 * n * (50 + k), 0.0, 0.0, 0.0) for k in (5, 15, 25)]
    costs = [getattr(speed, name) for name in speed.__struct_fields__]
    exact = [sum(a * c for a, c in zip(amounts, costs, strict=True)) for amounts in found]
    return [Seen(seconds=s, amounts=a) for s, a in zip(exact, found, strict=True)]


def load(streams: int) -> list[list[Asked]]:
    return [[Asked(prompt=80 + u, cached=20, output=40 + turn) for turn in range(3)] for u in range(streams)]


@settings(max_examples=25, deadline=None)
@given(paces, st.sampled_from([1, 4, 16]))
def test_a_fit_predicts_an_engine_of_that_form(true: Speed, streams: int) -> None:
    """Whatever the coefficients, a load that was not fitted is predicted, although parts cannot be told apart."""
    speed, off = fit_speed(seen(true))
    assert off < 0.02
    (told, _), (real, _) = replay(speed, 16, load(streams)), replay(true, 16, load(streams))
    assert told.tokens_s == pytest.approx(real.tokens_s, rel=0.05)
    assert told.tpot_s == pytest.approx(real.tpot_s, rel=0.1)
    assert told.ttft_s == pytest.approx(real.ttft_s, rel=0.1)


@settings(max_examples=15, deadline=None)
@given(paces, st.integers(0, 4))
def test_odd_measurements_stay_odd(true: Speed, where: int) -> None:
    """One stretch of decoding in five took three times as long: the rest decides."""
    exact = seen(true)
    odd = [
        Seen(seconds=s.seconds * (3 if n % 5 == where and not s.amounts[3] else 1), amounts=s.amounts)
        for n, s in enumerate(exact)
    ]
    told, _ = replay(fit_speed(odd)[0], 16, load(8))
    real, _ = replay(true, 16, load(8))
    assert told.tokens_s == pytest.approx(real.tokens_s, rel=0.15)


def test_a_replay_is_the_token_by_token_loop() -> None:
    """The first request of each user, against the loop that takes every token by itself."""
    users = [[Asked(prompt=90 + 7 * n, cached=10, output=30 + n)] for n in range(6)]
    figures, _ = replay(SPEED, 4, users)
    jobs = [
        Job(id=n, arrival_s=SPEED.request_s, prompt=u[0].prompt, output=u[0].output, hit=10)
        for n, u in enumerate(users)
    ]
    done = TokenLoop(SpeedPace(SPEED), Limits(seats=4, cache_tokens=CACHE_TOKENS, chunk_tokens=CHUNK), jobs).run()
    assert figures.tokens_s == pytest.approx(sum(u[0].output for u in users) / max(one.end_s for one in done))
    assert figures.ttft_s == pytest.approx(sum(one.first_s for one in done) / 6)


def test_more_users_than_seats_wait() -> None:
    """With four seats, sixteen users get what four get, and wait for it."""
    four, sixteen = replay(SPEED, 4, load(4))[0], replay(SPEED, 4, load(16))[0]
    assert sixteen.tokens_s == pytest.approx(four.tokens_s, rel=0.1)
    assert sixteen.ttft_s > 3 * four.ttft_s


def test_parts_add_up_and_stand_beside_the_limits() -> None:
    """Each part is named once; together they are the iteration, with limits and without."""
    plan = Plan(shape=shape_named("llama-3.1-8b"), device=device_named("h100-sxm"), precision="bf16", tp=2)
    batch = Batch(sequences=8, context=4_000, prompt=300, prompt_context=45_000, mixed=0.1)
    work = Work(plan=plan, typical_context=500)
    limits = limits_of(work, batch)
    whole = SPEED.iteration_s + 8 * SPEED.sequence_s + 4_000 * SPEED.context_s
    whole += 300 * SPEED.prompt_s + 45_000 * SPEED.attention_s
    for given_limits in (None, limits):
        parts = bottlenecks(SPEED, batch, given_limits)
        assert sum(part.seconds for part in parts) == pytest.approx(whole)
        assert len({part.name for part in parts}) == len(parts)
    told = {part.name: part for part in bottlenecks(SPEED, batch, limits)}
    assert told["weights"].seconds == told["weights"].limit_s == pytest.approx(plan.weight_bytes / 3.35e12, rel=0.1)
    assert told["per-layer overhead"].limit_s is None
    assert told["communication"].seconds > 0
    halved = limits_of(work, batch, plan.weight_bytes / 2)
    assert halved["weights"] == pytest.approx(limits["weights"] / 2)
