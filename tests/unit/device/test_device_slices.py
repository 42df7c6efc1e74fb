from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenworks.core.errors import TokenworksError
from tokenworks.core.words import Provenance, Sourced
from tokenworks.device.discovery import Device
from tokenworks.device.slices import Slice, cut


def modelled(value: int) -> Sourced:
    return Sourced(value=value, provenance=Provenance.MODELLED)


def device(threads: int = 8, memory: int = 1_000, idle: int | None = 5_920, cost: int | None = 9_000) -> Device:
    return Device(
        id="cpu0",
        catalogue_id=None,
        name="box",
        vendor="v",
        kind="cpu",
        threads=threads,
        memory_bytes=memory,
        idle_mw=None if idle is None else modelled(idle),
        max_mw=modelled(28_000),
        cost_nano_per_hour=None if cost is None else modelled(cost),
    )


def test_half_a_device_has_half_its_power_and_cost() -> None:
    """After the share: idle, power above idle and cost follow the threads."""
    half = cut(device(), 4, 500, [])
    assert (half.id, half.idle_mw, half.busy_mw, half.cost_nano_per_hour) == ("cpu0/0", 2_960, 11_040, 4_500)
    assert half.power is Provenance.MODELLED
    assert cut(device(cost=None), 4, 500, []).cost_nano_per_hour is None


@pytest.mark.parametrize(
    ("threads", "memory", "said"), [(5, 1, "threads"), (1, 501, "memory"), (0, 1, "at least 1"), (1, -1, "at least 0")]
)
def test_what_does_not_fit_is_refused_with_what_is_left(threads: int, memory: int, said: str) -> None:
    """After overbooking: more than is left, or less than nothing, is refused with a reason."""
    taken = [cut(device(), 4, 500, [])]
    with pytest.raises(TokenworksError, match=said):
        cut(device(), threads, memory, taken)


def test_unknown_power_is_refused() -> None:
    """After energy that no book would see: a device of unknown power cannot be cut."""
    with pytest.raises(TokenworksError, match="nothing is known about the power"):
        cut(device(idle=None), 1, 1, [])


def test_numbers_of_released_slices_are_used_again_but_never_twice() -> None:
    """After two slices of one name, and after slices of other devices that take no room here."""
    first, second = cut(device(), 1, 1, []), cut(device(), 1, 1, [cut(device(), 1, 1, [])])
    assert second.id == "cpu0/1"
    assert cut(device(), 1, 1, [second]).id == "cpu0/0"
    assert cut(device(), 1, 1, [first, second]).id == "cpu0/2"
    elsewhere = Slice(
        id="x/0",
        device="x",
        threads=8,
        memory_bytes=1_000,
        idle_mw=1,
        busy_mw=1,
        power=Provenance.MODELLED,
        cost_nano_per_hour=None,
    )
    assert cut(device(), 8, 1_000, [elsewhere]).threads == 8


@given(st.integers(1, 64), st.integers(0, 10**6), st.integers(0, 10**6), st.lists(st.integers(1, 8), max_size=20))
def test_slices_never_sum_above_the_device(threads: int, idle: int, cost: int, asked: list[int]) -> None:
    """After shares that add up to more than the whole: power and cost of all slices stay within the device's."""
    whole = device(threads=threads, idle=min(idle, 28_000), cost=cost)
    taken: list[Slice] = []
    for wanted in asked:
        try:
            taken.append(cut(whole, wanted, 0, taken))
        except TokenworksError:
            assert wanted > threads - sum(s.threads for s in taken)
    assert whole.idle_mw is not None
    assert whole.max_mw is not None
    assert sum(s.idle_mw for s in taken) <= whole.idle_mw.value
    assert sum(s.idle_mw + s.busy_mw for s in taken) <= whole.max_mw.value
    assert sum(s.cost_nano_per_hour or 0 for s in taken) <= cost
    assert len({s.id for s in taken}) == len(taken)
