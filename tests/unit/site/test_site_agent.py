from __future__ import annotations

import asyncio
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenworks.core.clock import ManualClock
from tokenworks.core.errors import EngineDown, ExchangeDown, NotFound
from tokenworks.core.units import NS_PER_S
from tokenworks.core.words import CORRECTABLE, Interval, Provenance, Work
from tokenworks.power.supply import assumed_supply
from tokenworks.site.agent import SiteAgent
from tokenworks.site.attribution import shares
from tokenworks.site.meters.meter import FLOOR_SAMPLES_MIN, Late, Panel
from tokenworks.site.words import ASSUMED_OVERHEAD, Readings, Site, SliceLoad

T0 = 1_000 * NS_PER_S

SITE = Site(
    name="home",
    entity="e",
    jurisdiction=None,
    place=None,
    overhead=ASSUMED_OVERHEAD,
    supply=assumed_supply("USD"),
    loads=(
        SliceLoad(slice="a", idle_mw=740, busy_mw=2_760, power=Provenance.MODELLED, cost_nano_per_hour=1_170_000),
        SliceLoad(slice="b", idle_mw=740, busy_mw=2_760, power=Provenance.MODELLED, cost_nano_per_hour=None),
    ),
    base_idle_mw=100,
    thread_busy_mw=2_760,
)


def work(receipt: str, start_s: float, end_s: float, slice_: str = "a", replica: str = "r") -> Work:
    """Times in seconds after T0."""
    return Work(
        receipt=receipt,
        replica=replica,
        site="home",
        slice=slice_,
        start_ns=T0 + round(start_s * NS_PER_S),
        first_ns=None,
        end_ns=T0 + round(end_s * NS_PER_S),
        input_tokens=1,
        output_tokens=1,
    )


def at(seconds: float) -> int:
    return T0 + round(seconds * NS_PER_S)


class Counter(Panel):
    """A meter that counts so much a second, except while it is silent; what it missed comes late."""

    def __init__(self, mw: int) -> None:
        super().__init__()
        self.mw = mw
        self.silent = False
        self.missed: list[tuple[int, int]] = []

    def read(self, start_ns: int, end_ns: int) -> tuple[Readings, Late]:
        if self.silent:
            return Readings(seen_permille=0), {}
        late = {start: {("load", "grid"): self.mw * (end - start) // NS_PER_S} for start, end in self.missed}
        return Readings(load=self.mw * (end_ns - start_ns) // NS_PER_S), late

    def booked(self, start_ns: int, end_ns: int) -> None:
        self.missed = [*self.missed, (start_ns, end_ns)] if self.silent else []


class Grid:
    """An agent at T0 with a manual clock and what it emitted."""

    def __init__(self, works_max: int = 1_000, panel: Panel | None = None) -> None:
        self.clock = ManualClock(T0)
        self.emitted: list[Interval] = []
        self.corrections: list[Interval] = []
        self.cpu = {"agents": 5 * NS_PER_S}
        self.agent = SiteAgent(
            SITE, self.clock, self.emitted.append, 60, lambda: self.cpu, panel, works_max, None, self.corrections.append
        )

    def begin(self, w: Work) -> None:
        self.agent.begin(w.receipt, w.replica, w.slice, w.start_ns)


def test_work_over_several_intervals_is_counted_once() -> None:
    """After double counting at a cut: the parts of a long work add up to the whole, and only the last is final."""
    grid = Grid()
    whole = work("x", 10, 150)
    grid.begin(whole)
    grid.agent.close(at(60))
    grid.agent.close(at(120))
    grid.agent.end(whole)
    grid.agent.close(at(180))
    lines = [line for interval in grid.emitted for line in interval.requests]
    assert [line.slice_ns // NS_PER_S for line in lines] == [50, 60, 30]
    assert [line.energy_mj for line in lines] == [138_000, 165_600, 82_800]
    assert [line.ended for line in lines] == [False, False, True]
    assert grid.agent.close(at(240)) is not None
    assert grid.emitted[-1].requests == ()


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.integers(0, 100), st.integers(1, 100), st.sampled_from("ab")), min_size=1, max_size=8),
    st.lists(st.integers(1, 220), max_size=4, unique=True),
)
def test_each_receipts_intervals_add_up_to_its_share_of_the_whole(
    spans: list[tuple[int, int, str]], cuts: list[int]
) -> None:
    """Conservation: however the time is cut, a receipt's slice time over all intervals is its share of one."""
    works = [work(f"r{i}", start, start + length, slice_) for i, (start, length, slice_) in enumerate(spans)]
    grid = Grid()
    for second in range(231):  # begin, end and close happen in the order of time, as in life
        for each in works:
            if each.start_ns == at(second):
                grid.begin(each)
            if each.end_ns == at(second):
                grid.agent.end(each)
        if second in cuts or second == 230:
            grid.agent.close(at(second))
    starts, ends = [i.start_ns for i in grid.emitted], [i.end_ns for i in grid.emitted]
    assert starts == [T0, *ends[:-1]]
    whole = {receipt: ns for _, parts in shares(works, T0, at(230)).values() for receipt, ns in parts.items()}
    for each in works:
        lines = [line for i in grid.emitted for line in i.requests if line.receipt == each.receipt]
        assert abs(sum(line.slice_ns for line in lines) - whole[each.receipt]) <= len(grid.emitted) + 1
        assert [line.ended for line in lines] == [False] * (len(lines) - 1) + [True]


def test_work_that_ended_before_the_cut_but_was_told_after_becomes_final() -> None:
    """After records that stay provisional forever: a late end gets its line of zeros in the next interval."""
    grid = Grid()
    late = work("x", 10, 59)
    grid.begin(late)
    grid.agent.close(at(60))
    grid.agent.end(late)
    interval = grid.agent.close(at(120))
    assert interval is not None
    [line] = interval.requests
    assert (line.energy_mj, line.slice_ns, line.ended) == (0, 0, True)


def test_work_that_ends_after_the_cut_is_not_final_yet() -> None:
    """After a lost tail: an end stamped later than the cut is counted in both intervals, and final in the second."""
    grid = Grid()
    grid.agent.end(work("x", 50, 70))
    first, second = grid.agent.close(at(60)), grid.agent.close(at(120))
    assert first is not None
    assert second is not None
    assert [(i.requests[0].slice_ns // NS_PER_S, i.requests[0].ended) for i in (first, second)] == [
        (10, False),
        (10, True),
    ]


def test_estimate_of_a_lone_work_is_its_final_line() -> None:
    """After a provisional figure that means something else: alone in its interval, estimate and final line agree."""
    grid = Grid()
    grid.cpu = {}
    lone = work("x", 0, 7.3)
    grid.begin(lone)
    estimate = grid.agent.estimate(lone)
    grid.agent.end(lone)
    assert grid.agent.estimate(lone) == estimate
    interval = grid.agent.close(lone.end_ns)
    assert interval is not None
    [line] = interval.requests
    for name in ("energy_mj", "overhead_mj", "slice_ns"):
        assert getattr(line, name) == getattr(estimate, name)
    for name in ("energy_nano", "overhead_nano", "carbon_ug", "device_nano"):
        assert abs(getattr(line, name) - getattr(estimate, name)) <= 1  # the interval's are parts of a rounded sum


def test_estimate_of_an_abort_before_the_start_is_zero() -> None:
    """After a response that fails on its own estimate: a work that ends before it starts has a line of zeros."""
    line = Grid().agent.estimate(work("x", 5, 4))
    assert (line.energy_mj, line.overhead_mj, line.slice_ns, line.device_nano, line.ended) == (0, 0, 0, 0, True)


def test_estimate_knows_company() -> None:
    """After estimates that ignore the others: open and ended works on the same slice share the time, others do not."""
    grid = Grid()
    done, before, x = work("done", 2, 6), work("before", 0, 1), work("x", 1, 7)
    for other in (work("open", 0, 0), work("elsewhere", 0, 0, "b"), before):
        grid.begin(other)
    grid.agent.end(before)
    grid.begin(x)
    grid.begin(done)
    grid.agent.end(done)
    line = grid.agent.estimate(x)
    assert line.slice_ns == int((1 / 2 + 4 / 3 + 1 / 2) * NS_PER_S)
    assert line.ended


def test_retry_on_another_replica_keeps_the_receipt_open() -> None:
    """After a record that is final too early: a failed try ended, but the receipt still runs elsewhere."""
    grid = Grid()
    grid.begin(work("x", 0, 0))
    grid.agent.end(work("x", 0, 5))
    grid.begin(work("x", 5, 5, "b", "r2"))
    grid.agent.close(at(60))
    grid.agent.end(work("x", 5, 70, "b", "r2"))
    grid.agent.close(at(120))
    assert [[(r.receipt, r.ended) for r in i.requests] for i in grid.emitted] == [[("x", False)], [("x", True)]]


def test_no_time_no_interval() -> None:
    """After empty or backward intervals: nothing is emitted until time has passed."""
    grid = Grid()
    assert grid.agent.close(T0) is None
    assert grid.agent.close(T0 - 5) is None
    assert grid.emitted == []


def test_services_and_meter_are_on_the_interval() -> None:
    """After forgotten ports: processor time and the meter's reading reach the books."""
    interval = Grid(panel=Counter(20_000)).agent.close(at(60))
    assert interval is not None
    assert (interval.meter, interval.meter_mj) == (Provenance.MEASURED, 1_200_000)
    assert [(s.layer, s.cpu_ns, s.energy_mj) for s in interval.services] == [("agents", 5 * NS_PER_S, 13_800)]


def test_failed_emit_forgets_nothing() -> None:
    """After a journal that refused: the next interval covers the time, works, processor time and meter of both."""
    fail = True

    def emit(interval: Interval) -> None:
        if fail:
            raise OSError("disk full")
        emitted.append(interval)

    emitted: list[Interval] = []
    agent = SiteAgent(SITE, ManualClock(T0), emit, 60, lambda: {"brain": 7}, Counter(2_000))
    agent.end(work("x", 0, 5))
    with pytest.raises(OSError, match="disk full"):
        agent.close(at(60))
    fail = False
    agent.close(at(120))
    [interval] = emitted
    assert (interval.start_ns, interval.end_ns, interval.meter_mj) == (T0, at(120), 240_000)
    assert [(s.layer, s.cpu_ns) for s in interval.services] == [("brain", 14)]
    assert [r.receipt for r in interval.requests] == ["x"]


def test_bound_on_works_closes_early_and_then_refuses() -> None:
    """After unbounded memory: a full agent closes early; when all are still open it takes no more."""
    grid = Grid(works_max=4)
    for n in range(4):
        grid.clock.advance(1)
        grid.agent.end(work(f"d{n}", n, n + 1))
    assert len(grid.emitted) == 1
    assert grid.agent.known() == 0
    for n in range(4):
        grid.begin(work(f"o{n}", 5, 5))
    with pytest.raises(EngineDown):
        grid.begin(work("o4", 5, 5))
    grid.clock.advance(10)
    grid.agent.end(work("o0", 5, 14))
    assert {(r.receipt, r.ended) for r in grid.emitted[-1].requests} == {
        ("o0", True),
        ("o1", False),
        ("o2", False),
        ("o3", False),
    }
    grid.begin(work("o4", 14, 14))


def test_unknown_slice_is_refused() -> None:
    """After work without a power figure: a slice that is not of this site is an error at dispatch."""
    with pytest.raises(NotFound):
        Grid().begin(work("x", 0, 0, "nowhere"))


def test_resume_goes_on_where_the_books_ended() -> None:
    """After a restart: the first interval starts at the last closed one and holds what was settled since."""
    grid = Grid(works_max=1)
    grid.agent.resume(at(-60), [work("x", -70, -20), work("y", -30, -20)])
    interval = grid.agent.close(at(1))
    assert interval is not None
    assert interval.start_ns == at(-60)
    assert [(r.receipt, r.slice_ns // NS_PER_S, r.ended) for r in interval.requests] == [
        ("x", 35, True),
        ("y", 5, True),
    ]


async def test_run_closes_on_the_clock_and_once_more_when_cancelled() -> None:
    """After a last interval lost at shutdown: run closes every 60 s of its clock, then the rest at cancellation."""
    grid = Grid()
    task = asyncio.create_task(grid.agent.run())
    for _ in range(8):  # the manual clock's sleep yields once a round
        await asyncio.sleep(0)
    task.cancel()
    grid.clock.advance(5)
    with pytest.raises(asyncio.CancelledError):
        await task
    lengths = [(i.end_ns - i.start_ns) // NS_PER_S for i in grid.emitted]
    assert len(lengths) > 3
    assert set(lengths[:-1]) == {60}
    assert grid.emitted[-1].end_ns == grid.clock.now_ns()
    assert [i.start_ns for i in grid.emitted[1:]] == [i.end_ns for i in grid.emitted[:-1]]


def test_agent_refuses_senseless_bounds() -> None:
    """After an agent that would close forever or know nothing."""
    with pytest.raises(ValueError, match="at least"):
        SiteAgent(SITE, ManualClock(), print, interval_s=0)


@settings(max_examples=80)
@given(st.lists(st.tuples(st.integers(0, 50), st.integers(1, 60)), min_size=1, max_size=10))
def test_estimates_are_the_shares_of_a_sweep(spans: list[tuple[int, int]]) -> None:
    """The live clock against the sweep: once all have ended, each work's estimate is its share of all of them."""
    works = [work(f"r{n}", start, start + length) for n, (start, length) in enumerate(spans)]
    grid = Grid()
    moments = [(each.start_ns, 1, each) for each in works] + [(each.end_ns, 0, each) for each in works]
    for _, begins, each in sorted(moments, key=lambda moment: moment[:2]):
        if begins:
            grid.begin(each)
        else:
            grid.agent.end(each)
    parts = shares(works, T0, at(200))["a"][1]
    for each in works:
        assert abs(grid.agent.estimate(each).slice_ns - parts[each.receipt]) <= 1


def test_the_request_path_is_cheap() -> None:
    """After an interval closed for every response: begin, end and estimate among 64 others take microseconds."""
    grid = Grid(works_max=100_000)
    for n in range(64):
        grid.begin(work(f"mate{n}", 0, 0))
    took = []
    for n in range(300):
        each = work(f"x{n}", n / 100, (n + 1) / 100)
        began = time.perf_counter()
        grid.begin(each)
        grid.agent.end(each)
        grid.agent.estimate(each)
        took.append(time.perf_counter() - began)
    assert sorted(took)[150] < 200e-6  # a hundred is typical for a machine under load, 15 for an idle one


def test_a_late_work_corrects_the_books_of_its_time() -> None:
    """After work that another gateway told too late: a new entry moves energy to it, and the sum is as if in time."""
    grid, prompt = Grid(panel=Counter(9_000)), Grid(panel=Counter(9_000))
    early, late = work("early", 0, 30), work("late", 10, 50)
    for each in (early, late):
        prompt.agent.end(each)
    grid.agent.end(early)
    for agent in (grid.agent, prompt.agent):
        agent.close(at(60))
    grid.agent.end(late)
    grid.agent.close(at(120))
    [entry] = grid.corrections
    assert (entry.corrects, entry.start_ns, entry.meter_mj, entry.bill_nano) == (1, T0, 0, 0)
    lines = [line for each in (grid.emitted[0], entry) for line in each.requests]
    for line in prompt.emitted[0].requests:
        assert sum(each.energy_mj for each in lines if each.receipt == line.receipt) == line.energy_mj
        assert sum(each.slice_ns for each in lines if each.receipt == line.receipt) == line.slice_ns
    assert [(r.receipt, r.ended) for r in entry.requests] == [("early", False), ("late", True)]
    assert grid.emitted[1].requests == (), "its record is the correction, and no line of zeros"
    assert grid.agent.known() == 0


def test_a_work_whose_beginning_is_told_late_corrects_too() -> None:
    """As a worker tells it: begun, then ended, both after the interval. One that was forgotten leaves nothing; time in
    which it was known as open is not counted twice."""
    grid = Grid()
    grid.agent.close(at(60))
    for name in ("both", "open", "forgotten"):
        grid.begin(work(name, 10, 50))
    grid.agent.end(work("both", 10, 50))
    grid.agent.forget("forgotten", "r", "a")
    grid.agent.close(at(120))
    [entry] = grid.corrections
    assert [(r.receipt, r.slice_ns, r.ended) for r in entry.requests] == [("both", 40 * NS_PER_S, True)]
    assert [(r.receipt, r.slice_ns, r.ended) for r in grid.emitted[1].requests] == [("open", 60 * NS_PER_S, False)]
    grid.agent.end(work("open", 30, 110))
    grid.agent.close(at(180))
    entry = grid.corrections[-1]
    assert entry.corrects == 2
    assert {r.receipt: (r.slice_ns, r.ended) for r in entry.requests} == {
        "both": (-10 * NS_PER_S, False), "open": (20 * NS_PER_S, False),
    }  # fmt: skip
    assert [(r.receipt, r.slice_ns, r.ended) for r in grid.emitted[2].requests] == [("open", 0, True)]
    assert len(grid.corrections) == 2


def test_what_can_not_be_corrected_any_more_ends_in_the_running_interval() -> None:
    """A late work of a time that is not remembered gets its line of zeros; one that goes on is final there only."""
    grid = Grid()
    for minute in range(1, CORRECTABLE + 2):
        grid.agent.close(at(60 * minute))
    now = 60 * (CORRECTABLE + 1)
    grid.agent.end(work("gone", 10, 50))
    grid.agent.end(work("going", now - 30, now + 5))
    assert grid.agent.receipts() == {"gone", "going"}
    grid.agent.close(at(now + 60))
    assert [(r.receipt, r.ended, r.energy_mj > 0) for r in grid.emitted[-1].requests] == [
        *(("going", True, True), ("gone", True, False))
    ]
    assert [[(r.receipt, r.ended) for r in each.requests] for each in grid.corrections] == [[("going", False)]]


async def test_a_journal_that_refuses_is_asked_again() -> None:
    """After a full disk: the agent goes on, and the next interval has the time and the works of the refused one."""
    refused, emitted, clock = [True, True], list[Interval](), ManualClock(T0)

    def emit(interval: Interval) -> None:
        if refused:
            refused.pop()
            raise ExchangeDown("the disk is full")
        emitted.append(interval)

    agent = SiteAgent(SITE, clock, emit)
    agent.end(work("x", 10, 50))
    running = asyncio.create_task(agent.run())
    for _ in range(8):  # as above
        await asyncio.sleep(0)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert [(i.start_ns, i.end_ns) for i in emitted[:2]] == [(at(0), at(62)), (at(62), at(122))]
    assert [(r.receipt, r.ended) for r in emitted[0].requests] == [("x", True)]


def test_a_correction_that_could_not_be_written_is_made_again() -> None:
    """After a journal that refused: the interval is closed once, and its correction is tried at the next close."""
    refuse, grid = True, Grid()

    def correct(entry: Interval) -> None:
        if refuse:
            raise OSError("disk full")
        grid.corrections.append(entry)

    grid.agent = SiteAgent(SITE, grid.clock, grid.emitted.append, correct=correct)
    grid.agent.close(at(60))
    grid.agent.end(work("late", 10, 50))
    with pytest.raises(OSError, match="disk full"):
        grid.agent.close(at(120))
    refuse = False
    grid.agent.close(at(180))
    grid.agent.close(at(240))
    assert [entry.start_ns for entry in grid.corrections] == [T0]
    assert [each.start_ns for each in grid.emitted] == [at(0), at(60), at(120), at(180)]


def test_a_late_reading_trues_up_what_was_modelled() -> None:
    """After a silent meter: its time is modelled and says so, and when the meter speaks again an entry closes on it."""
    panel = Counter(9_000)
    grid = Grid(panel=panel)
    grid.agent.end(work("x", 0, 30))
    panel.silent = True
    dark = grid.agent.close(at(60))
    assert dark is not None
    assert (dark.meter, dark.quality_permille) == (Provenance.MODELLED, 0)
    assert dark.meter_mj > 0
    panel.silent = False
    grid.agent.close(at(120))
    [entry] = grid.corrections
    assert (entry.meter, entry.corrects, entry.start_ns) == (Provenance.MEASURED, 1, T0)
    assert dark.meter_mj + entry.meter_mj == 9_000 * 60
    placed = sum(r.energy_mj for r in entry.requests) + sum(s.energy_mj for s in entry.services) + entry.idle_mj
    placed += entry.overhead_mj
    assert placed + entry.residual_mj == entry.meter_mj


def test_idle_power_is_learnt_from_the_meter() -> None:
    """After a listed idle power that is wrong: what a server draws while nothing runs becomes its floor."""

    class Server(Counter):
        def read(self, start_ns: int, end_ns: int) -> tuple[Readings, Late]:
            return Readings(servers={"": 7_000 * (end_ns - start_ns) // NS_PER_S}), {}

    grid = Grid(panel=Server(0))
    grid.cpu = {}
    for n in range(FLOOR_SAMPLES_MIN):
        grid.agent.close(at(60 * (n + 1)))
    grid.agent.end(work("x", 60 * FLOOR_SAMPLES_MIN, 60 * FLOOR_SAMPLES_MIN + 60))
    interval = grid.agent.close(at(60 * (FLOOR_SAMPLES_MIN + 1)))
    assert interval is not None
    assert (interval.idle_mj, interval.requests[0].energy_mj) == (7_000 * 60, 0)
