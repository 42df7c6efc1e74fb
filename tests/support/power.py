"""Random metered periods of a site, for the property tests of floor 1."""

from __future__ import annotations

from hypothesis import strategies as st

from tokenworks.core.units import NS_PER_S
from tokenworks.power.contract import Flow

MIN = 60 * NS_PER_S
HOUR = 60 * MIN
MJ = st.one_of(st.just(0), st.integers(0, 10**12))


@st.composite
def flows(draw: st.DrawFn, start_ns: int = 0, most: int = 8, batteries: bool = False) -> list[Flow]:
    """Intervals of 5 to 60 minutes with gaps, a sun, a distant wind farm, export, and a battery if wanted."""
    found, now = [], start_ns + draw(st.integers(0, 40)) * 5 * MIN
    for _ in range(draw(st.integers(1, most))):
        length = draw(st.sampled_from([5, 15, 30, 60])) * MIN
        into, sun, out = draw(MJ), draw(MJ), draw(MJ) if batteries else 0
        left = into + sun + out
        export = draw(st.integers(0, left))
        charge = draw(st.integers(0, left - export)) if batteries and not out else 0
        found.append(
            Flow(
                start_ns=now,
                end_ns=now + length,
                import_mj=into,
                export_mj=export,
                produced_mj={"sun": sun},
                discharged_mj={"cell": out} if out else {},
                charged_mj={"cell": charge} if charge else {},
                remote_mj={"farm": draw(MJ)},
                curtailed_mj=draw(MJ),
            )
        )
        now += length + draw(st.sampled_from([0, 0, 15 * MIN, 36 * HOUR]))
    return found
