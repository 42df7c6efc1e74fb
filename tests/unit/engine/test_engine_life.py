"""The life of a replica, as pure transitions, and its live record."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenworks.core.clock import ManualClock
from tokenworks.core.errors import EngineDown, UnknownModel
from tokenworks.core.units import NS_PER_S
from tokenworks.core.words import Usage
from tokenworks.engine import replica as life_of
from tokenworks.engine.adapter import Timing
from tokenworks.engine.models import catalogue, model_named
from tokenworks.engine.record import Replica
from tokenworks.engine.replica import Life, ReplicaSpec, State, came_up, may_start, started, went_down

SPEC = ReplicaSpec(name="r", model="m", site="s", slice="s/0", slots=2, context_tokens=256, api_key="sk-secret")


def speeds(replica: Replica) -> tuple[float | None, float | None]:
    return replica.prefill_tps, replica.decode_tps


def test_the_pause_doubles_to_its_bound() -> None:
    """A replica that keeps failing is tried less and less often, but never given up."""
    life, pauses = Life(), []
    for _ in range(9):
        life = went_down(started(life, life.next_try_ns), life.next_try_ns)
        pauses.append((life.next_try_ns - life.since_ns) / NS_PER_S)
    assert pauses == [0.5, 1, 2, 4, 8, 16, 30, 30, 30]


def test_a_steady_time_forgives() -> None:
    """After a minute of being ready the next failure is a first one; after less it is not."""
    life = came_up(started(Life(failures=5), 0), 0)
    assert went_down(life, 60 * NS_PER_S).failures == 1
    assert went_down(life, 59 * NS_PER_S).failures == 6


def test_it_may_start_when_cold_or_after_its_pause() -> None:
    """Nothing is started twice, and not before its time."""
    assert may_start(Life(), 0)
    failed = went_down(started(Life(), 0), 0)
    assert not may_start(failed, failed.next_try_ns - 1)
    assert may_start(failed, failed.next_try_ns)
    for state in (State.LOADING, State.READY, State.ASLEEP):
        assert not may_start(Life(state=state), 10**18)
        if state is not State.ASLEEP:
            with pytest.raises(ValueError, match=f"is {state} cannot"):
                started(Life(state=state), 0)


@given(st.integers(0, 10**6))
def test_the_pause_is_bounded_for_ever(failures: int) -> None:
    """Years of failures must not make the pause, or the number behind it, huge."""
    life = went_down(Life(state=State.LOADING, failures=failures), 0)
    assert 0 < life.next_try_ns <= life_of.BACKOFF_NS_MAX


def test_the_record_counts_and_is_bounded() -> None:
    """The number of requests at one replica has a bound that holds whatever the router thinks."""
    replica = Replica(SPEC, ManualClock(), waiting_max=1)
    for _ in range(3):
        replica.begin()
    assert replica.full
    with pytest.raises(EngineDown):
        replica.begin()
    replica.end()
    assert replica.running == 2
    with pytest.raises(EngineDown, match="is cold"):
        _ = replica.adapter


def test_speeds_are_learnt_from_what_the_engine_measured() -> None:
    """Only exact reports with enough tokens teach; the newest has a fifth of the weight."""
    replica = Replica(SPEC, ManualClock())
    replica.observe(None, Timing())
    replica.observe(Usage(input=1, output=1), Timing(prefill_ns=1, decode_ns=1))
    replica.observe(Usage(input=100, output=11, certainty="counted"), Timing(prefill_ns=NS_PER_S, decode_ns=NS_PER_S))
    assert speeds(replica) == (None, None)
    replica.observe(Usage(input=100, cached_input=50, output=11), Timing(prefill_ns=NS_PER_S, decode_ns=NS_PER_S))
    assert speeds(replica) == (100, 10)
    replica.observe(Usage(input=200, output=21), Timing(prefill_ns=NS_PER_S, decode_ns=NS_PER_S))
    assert speeds(replica) == (120, 12)


def test_a_key_is_not_in_a_repr() -> None:
    """What is logged by accident holds no secret."""
    assert "sk-secret" not in repr(SPEC)


def test_the_catalogue_names_what_it_knows() -> None:
    """A misspelt model is answered with the right name."""
    assert catalogue()["smollm2-135m-instruct"].size_bytes == 98_362_432
    with pytest.raises(UnknownModel, match="smollm2-135m-instruct"):
        model_named("smollm-135m")
