from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenworks.core.errors import TokenworksError
from tokenworks.core.words import Provenance, Sourced
from tokenworks.device.discovery import Device
from tokenworks.device.slices import Booked, Limits, Slice, Took, cut, limits_of, overrun, share_out


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


def sliced(whole: Device, threads: int, memory_bytes: int, taken: Sequence[Booked] = ()) -> Slice:
    part = cut(whole, threads, memory_bytes, taken)
    assert isinstance(part, Slice)
    return part


def test_half_a_device_has_half_its_power_and_cost() -> None:
    """After the share: idle, power above idle and cost follow the threads."""
    half = sliced(device(), 4, 500)
    assert (half.id, half.idle_mw, half.busy_mw, half.cost_nano_per_hour) == ("cpu0/0", 2_960, 11_040, 4_500)
    assert half.power is Provenance.MODELLED
    assert sliced(device(cost=None), 4, 500).cost_nano_per_hour is None


@pytest.mark.parametrize(
    ("threads", "memory", "said"), [(5, 1, "threads"), (1, 501, "memory"), (0, 1, "at least 1"), (1, -1, "at least 0")]
)
def test_what_does_not_fit_is_refused_with_what_is_left(threads: int, memory: int, said: str) -> None:
    """After overbooking: more than is left, or less than nothing, is refused with a reason."""
    taken = [cut(device(), 4, 500, [])]
    with pytest.raises(TokenworksError, match=said):
        cut(device(), threads, memory, taken)


def test_of_unknown_power_there_is_no_slice() -> None:
    """After energy that no book would see: a part of a device of unknown power is booked, but is no load of a site."""
    part = cut(device(idle=None), 1, 1, [])
    assert (part, type(part)) == (Booked(id="cpu0/0", device="cpu0", threads=1, memory_bytes=1), Booked)


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
            taken.append(sliced(whole, wanted, 0, taken))
        except TokenworksError:
            assert wanted > threads - sum(s.threads for s in taken)
    assert whole.idle_mw is not None
    assert whole.max_mw is not None
    assert sum(s.idle_mw for s in taken) <= whole.idle_mw.value
    assert sum(s.idle_mw + s.busy_mw for s in taken) <= whole.max_mw.value
    assert sum(s.cost_nano_per_hour or 0 for s in taken) <= cost
    assert len({s.id for s in taken}) == len(taken)


def card(number: int, vendor: str = "NVIDIA", variable: str = "CUDA_VISIBLE_DEVICES") -> Device:
    return Device(
        id=f"c{number}", catalogue_id=None, name="card", vendor=vendor, kind="gpu", threads=1_000,
        memory_bytes=80 << 30, idle_mw=modelled(70_000), max_mw=modelled(700_000), cost_nano_per_hour=None,
        visible={variable: f"GPU-{number}"},
    )  # fmt: skip


def test_whole_cards_need_only_to_be_shown() -> None:
    """After tensor parallel: several whole cards, named in order in the variable of their vendor."""
    cards = [card(0), card(1)]
    slices = [cut(each, 1_000, 80 << 30, []) for each in cards]
    assert limits_of(slices, cards) == Limits(env={"CUDA_VISIBLE_DEVICES": "GPU-0,GPU-1"})


def test_a_part_of_an_nvidia_card_is_held_by_mps() -> None:
    """After shares of compute and memory: percent of the multiprocessors, MiB of the first card that it sees."""
    part = sliced(card(0), 250, 20 << 30)
    assert (part.idle_mw, part.busy_mw) == (17_500, 157_500)
    assert limits_of([part], [card(0)]).env == {
        "CUDA_VISIBLE_DEVICES": "GPU-0",
        "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE": "25",
        "CUDA_MPS_PINNED_DEVICE_MEM_LIMIT": "0=20480M",
    }


def test_a_part_that_nobody_enforces_says_so() -> None:
    """After a promise that no software keeps: the environment shows the card, and the gap is told."""
    other = card(0, "MetaX", "MACA_VISIBLE_DEVICES")
    found = limits_of([cut(other, 500, 1, [])], [other])
    assert found.env == {"MACA_VISIBLE_DEVICES": "GPU-0"}
    assert found.not_enforced == "a part of c0: MetaX cards are only shown or hidden whole"


def test_a_slice_of_a_processor_is_held_by_the_kernel() -> None:
    """After processors and memory; more memory than booked is told in one sentence, up to it is fine."""
    limits = limits_of([cut(device(), 2, 500, [])], [device()])
    assert limits == Limits(memory_bytes=500)
    assert overrun(limits, Took(memory_bytes=500, cpu_ns=0)) is None
    assert overrun(limits, Took(memory_bytes=1_501, cpu_ns=0)) == "it takes 1,501 bytes of memory, booked are 500"
    assert overrun(Limits(), Took(memory_bytes=1 << 60, cpu_ns=0)) is None


@given(st.lists(st.integers(0, 9), max_size=9), st.integers(1, 8))
def test_processors_are_shared_out_evenly(wanted: list[int], count: int) -> None:
    """After two engines on one processor while another is free: none is used twice more than any other."""
    cpus = list(range(10, 10 + count))
    shares = share_out(wanted, cpus)
    assert [len(share) for share in shares] == [min(threads, count) for threads in wanted]
    used = [sum(cpu in share for share in shares) for cpu in cpus]
    assert max(used) - min(used) <= 1
    if sum(wanted) <= count:
        assert max(used) <= 1
