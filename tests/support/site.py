"""A small site with everything that attribution knows of, and works on it, for the tests of floor 2."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import strategies as st

from tokenworks.core.units import NS_PER_S
from tokenworks.core.words import Provenance, Sourced, Work
from tokenworks.power.supply import Supply
from tokenworks.site import bulk
from tokenworks.site.bulk import Columns
from tokenworks.site.facility import Facility, Module
from tokenworks.site.words import Site, SliceLoad


def columns(works: Sequence[Work]) -> tuple[list[str], Columns]:
    """The receipts in order, and the works as columns."""
    receipts = sorted({work.receipt for work in works})
    return receipts, bulk.columns(works, {name: i for i, name in enumerate(receipts)})


POWER = st.integers(-300, 300) | st.integers(0, 10**8)
FACILITY = Facility(
    modules=(
        Module(name="m1", capacity_mw=2_000_000, it_mw=1_500_000, cooling="air", fixed_mw=30_000),
        Module(name="m2", capacity_mw=900_000, it_mw=700_000, cooling="liquid", fixed_mw=5_000),
    )
)


def listed(value: int) -> Sourced:
    return Sourced(value=value, provenance=Provenance.LISTED)


def slice_(name: str, server: str = "", board: str = "", **more: int | str | None) -> SliceLoad:
    figures = {"idle_mw": 20_000, "busy_mw": 300_000, "cost_nano_per_hour": 3_600_000, **more}
    return SliceLoad(slice=name, server=server, board=board, power=Provenance.MODELLED, **figures)  # type: ignore[arg-type]


def home(variant: int = 1) -> Site:
    """Two slices on one board of server s1, one slice elsewhere; ``variant`` changes what is known of them."""
    return Site(
        name="s",
        entity="e",
        jurisdiction=None,
        place=None,
        overhead=listed(500),
        supply=Supply(name="grid", price=listed(88_000_000), carbon=listed(481_000_000)),
        loads=(
            slice_("a", "s1", "b", prefill_nj=400_000, context_nj=3_000, embodied_ug_per_hour=77_777, reserved="r"),
            slice_("b", "s1", "b", stream_mw=120_000, prefill_nj=variant * 50_000, cost_nano_per_hour=None),
            slice_("c", "" if variant < 2 else "s2", embodied_ug_per_hour=None if variant else 3),
        ),
        base_idle_mw=1_000,
        thread_busy_mw=2_760,
        hosts_mw={"s1": 40_000},
        facility=FACILITY if variant % 2 else None,
    )


def work(
    receipt: str, start_s: float, end_s: float, slice_: str = "a", tokens: tuple[int, int, int] = (1, 0, 1),
    first_s: float | None = None,
) -> Work:  # fmt: skip
    """Times in seconds; tokens are input, cached of it, and output."""
    return Work(
        receipt=receipt,
        replica="r",
        site="s",
        slice=slice_,
        start_ns=round(start_s * NS_PER_S),
        first_ns=None if first_s is None else round(first_s * NS_PER_S),
        end_ns=round(end_s * NS_PER_S),
        input_tokens=tokens[0],
        cached_tokens=tokens[1],
        output_tokens=tokens[2],
    )


WORKS = st.lists(
    st.builds(
        lambda receipt, start, length, slice_, tokens, first: work(
            f"r{receipt}", start, start + length, slice_, tokens, None if first is None else start + first
        ),
        st.integers(0, 6),
        st.floats(-20, 70),
        st.floats(0, 30),
        st.sampled_from(["a", "b", "c", "gone"]),
        st.tuples(st.integers(0, 5_000), st.integers(0, 5_000), st.integers(0, 900)),
        st.none() | st.floats(-1, 31),
    ),
    max_size=10,
)
