from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenworks.core.errors import TokenworksError, UnknownModel, nearest
from tokenworks.core.words import BUCKETS, EnergyLine, Interval, Provenance, ServiceLine, Usage

counts = st.integers(0, 10**9)


@given(st.fixed_dictionaries(dict.fromkeys(BUCKETS, counts)))
def test_the_buckets_of_a_usage_add_up(buckets: dict[str, int]) -> None:
    """Nothing is in two buckets, so the total is their sum; empty buckets are not listed, the order is fixed."""
    usage = Usage(**buckets)  # type: ignore[arg-type]  # the buckets are all integers
    assert usage.total() == sum(buckets.values())
    assert usage.counts() == tuple((name, buckets[name]) for name in BUCKETS if buckets[name])


def test_every_bucket_is_a_field_and_every_count_is_a_bucket() -> None:
    """A bucket that someone adds to the usage without the list would be used and never paid."""
    assert {*BUCKETS} == {*Usage.__struct_fields__} - {"certainty"}


def _interval() -> Interval:
    line = EnergyLine(
        receipt="r",
        energy_mj=70,
        energy_nano=7,
        overhead_mj=14,
        overhead_nano=2,
        carbon_ug=5,
        slice_ns=9,
        device_nano=3,
        ended=True,
    )
    return Interval(
        site="s",
        supply="grid",
        start_ns=0,
        end_ns=60,
        meter_mj=120,
        meter=Provenance.MEASURED,
        scale_ppm=1_000_000,
        requests=(line,),
        services=(ServiceLine(layer="agents", cpu_ns=1, energy_mj=4, energy_nano=1, carbon_ug=None),),
        idle_mj=20,
        idle_nano=2,
        overhead_mj=24,
        overhead_nano=3,
        residual_mj=2,
        bill_nano=13,
        carbon_ug=8,
        idle_device_nano=1,
    )


def test_the_identity_of_an_interval_is_the_one_that_is_written_down() -> None:
    """The docstring's formula, read with sums over the lines, holds for a closed interval and fails for an open one."""
    i = _interval()
    formula = (Interval.__doc__ or "").split("``")[1]
    assert formula == (
        "sum(requests.energy_mj) + idle_mj + sum(services.energy_mj) + overhead_mj + residual_mj == meter_mj"
    )
    requests = sum(line.energy_mj for line in i.requests)
    services = sum(line.energy_mj for line in i.services)
    assert requests + i.idle_mj + services + i.overhead_mj + i.residual_mj == i.meter_mj
    money = sum(line.energy_nano or 0 for line in i.requests) + sum(s.energy_nano or 0 for s in i.services)
    assert money + (i.idle_nano or 0) + (i.overhead_nano or 0) == i.bill_nano


def test_words_are_frozen_and_refuse_what_they_do_not_know() -> None:
    """A value that travels between floors cannot be changed on the way, nor carry a field that nobody reads."""
    with pytest.raises(AttributeError):
        Usage().input = 1  # type: ignore[misc]  # this is what must fail
    with pytest.raises(msgspec.ValidationError, match="unknown field"):
        msgspec.json.decode(b'{"input": 1, "inputs": 2}', type=Usage)


def test_an_errors_docstring_is_its_message() -> None:
    """Every class of error is one sentence; a hint is added in brackets where there is one."""
    assert str(UnknownModel()) == "No model of that name is served here."
    assert str(TokenworksError("so", hint="do that")) == "so (do that)"
    stack: list[type[TokenworksError]] = [TokenworksError]
    while stack:
        kind = stack.pop()
        stack += kind.__subclasses__()
        assert (kind.__doc__ or "").strip().endswith("."), kind
        assert kind.code, kind
        assert 400 <= kind.status < 600, kind


def test_the_nearest_word_is_close_or_absent() -> None:
    """A misspelling finds its word, nonsense finds none."""
    assert nearest("smolm2", ["smollm2", "qwen3"]) == "smollm2"
    assert nearest("zzz", ["smollm2", "qwen3"]) is None
