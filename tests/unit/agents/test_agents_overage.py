"""Requests that packages do not cover: the cheaper model and the slow lane, over a real desk and scripted loads."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenworks.agents import overage
from tokenworks.agents.overage import Overflow, Served, told
from tokenworks.brain.route import Offer, eligible
from tokenworks.core.clock import ManualClock
from tokenworks.core.errors import EngineDown
from tokenworks.core.ids import new_key
from tokenworks.core.words import Request
from tokenworks.curtail import Order
from tokenworks.exchange.desk import Desk
from tokenworks.exchange.journal import Journal
from tokenworks.exchange.prices import Prices
from tokenworks.exchange.words import Account, Budget, Directory, Grant, Key, Lease, Overage

KEY_ID, KEY, HASH = new_key()
RATES = {"big": 10, "mid": 5, "small": 2, "tiny": 1}
"""Micro-STU per token and nano per token of each model."""


@dataclass
class Load:
    ready: bool = True
    full: bool = False
    running: int = 0
    wait_ns: int = 0
    prefill_tps: float | None = None
    decode_tps: float | None = None


class World:
    """A desk with one account and a package, and one replica of two slots for each model."""

    def __init__(
        self,
        folder: Path,
        rule: Overage = "cheaper",
        *,
        package_ustu: int = 0,
        leased_nano: int = 10**9,
        leased_ustu: int = 10**9,
        cheaper: tuple[str, ...] = (),
        contexts: dict[str, int] | None = None,
    ) -> None:
        self.clock = ManualClock()
        self.journal = Journal(folder / "journal", "g", 1)
        prices = Prices(
            currency="USD",
            rate_card="1",
            price_book="1",
            rates={m: {"input": r, "output": r} for m, r in RATES.items()} | {"*": {"input": 1, "output": 1}},
            prices={m: {"input": r * 10**6, "output": r * 10**6} for m, r in RATES.items()} | {"*": {}},
        )
        self.desk = Desk(prices, self.clock, self.journal)
        grants = () if not package_ustu else (self._grant(package_ustu),)
        account = Account(id="a", name="a", opened_ns=0, overage=rule, cheaper=cheaper)
        budget = Budget(id="a", account="a", parent=None, name="", limit_ustu=leased_ustu, limit_nano=leased_nano)
        key = Key(id=KEY_ID, hash=HASH, account="a", budget="a", role="user", made_ns=0)
        self.desk.learn(Directory(accounts=(account,), budgets=(budget,), keys=(key,), grants=grants))
        self.identity = self.desk.identify(KEY)
        allowances = {"n:a": leased_nano, "u:a": leased_ustu, "g:g": package_ustu}
        self.desk.take([Lease(counter=c, window_ns=0, allowance=a) for c, a in allowances.items()], 0)
        self.loads = {model: Load() for model in RATES}
        contexts = contexts or {}
        self.offers = {model: [self._offer(model, contexts.get(model, 4096))] for model in RATES}
        self.overflow = Overflow(self.desk, self.offers, self.clock)

    @staticmethod
    def _grant(size_ustu: int) -> Grant:
        return Grant(
            id="g", account="a", package="p", size_ustu=size_ustu, price_nano=1, created_ns=0, effective_ns=0,
            expires_ns=None,
        )  # fmt: skip

    def _offer(self, model: str, context: int) -> Offer:
        able = frozenset() if model == "tiny" else frozenset({"tools"})
        return Offer(
            replica=f"{model}-1", site="s", model=model, load=self.loads[model], slots=2, context_tokens=context,
            capabilities=able, latency_ns=0, busy_mw=None, price_nano_per_kwh=None, carbon_ug_per_kwh=None,
            device_nano_per_hour=None,
        )  # fmt: skip

    @asynccontextmanager
    async def served(self, model: str = "big", input_max: int = 100, tools: bool = False) -> AsyncIterator[Request]:
        request = Request(
            id="r", endpoint="chat", model=model, body=msgspec.json.encode({"model": model, "n": 1}), stream=False,
            show_usage=False, input_max=input_max, output_max=100, choices=1, arrived_ns=self.clock.now_ns(),
            needs=frozenset({"tools"}) if tools else frozenset(),
        )  # fmt: skip
        options, refused = eligible(request, self.offers)
        async with self.overflow.served(self.identity, Served(request, options, refused)) as found:
            assert {option.model for option in found.options} == {found.request.model}
            yield found.request

    async def model(self, model: str = "big", input_max: int = 100, tools: bool = False) -> str:
        async with self.served(model, input_max, tools) as request:
            assert msgspec.json.decode(request.body) == {"model": request.model, "n": 1}
            assert request.model_asked == ("" if request.model == model else model)
            return request.model


@pytest.fixture
def world(tmp_path: Path) -> Iterator[Callable[..., World]]:
    made: list[World] = []

    def make(**how: object) -> World:
        (tmp_path / str(len(made))).mkdir()
        made.append(World(tmp_path / str(len(made)), **how))  # type: ignore[arg-type]  # as World says
        return made[-1]

    yield make
    for each in made:
        assert each.desk.open_holds == 0
        assert all(counter.held == 0 for counter in each.desk.counters())
        assert each.overflow.waiting == 0
        each.journal.close()


async def test_what_packages_cover_is_served_as_asked(world: Callable[..., World]) -> None:
    """200 tokens of the dear model are 2,000 micro-STU: with that much left nothing changes, with less it does."""
    assert await world(package_ustu=2_000).model() == "big"
    assert await world(package_ustu=1_999).model() == "tiny"
    assert await world().model() == "tiny", "without a package there is nothing that covers"


async def test_a_budget_that_cannot_afford_it_takes_the_cheaper_model(world: Callable[..., World]) -> None:
    """The package would pay, but the budget allows no such request uncut."""
    assert await world(package_ustu=10**6, leased_nano=0).model() == "big", "a package needs no money"
    assert await world(package_ustu=10**6, leased_ustu=2_000).model() == "big"
    assert await world(package_ustu=10**6, leased_ustu=1_999).model() == "tiny"


async def test_the_account_names_what_may_stand_in(world: Callable[..., World]) -> None:
    """The cheapest of the named ones; a name that is not served, or is dearer than what was asked, does not count."""
    assert await world(cheaper=("mid", "small", "gone")).model() == "small"
    assert await world(cheaper=("mid", "big")).model("small") == "small"
    assert await world(cheaper=("gone",)).model() == "big"


async def test_only_a_model_that_can_do_it_now_stands_in(world: Callable[..., World]) -> None:
    """Capabilities, readiness and room for the prompt are hard limits of the stand-in too."""
    assert await world().model(tools=True) == "small"
    w = world()
    w.loads["tiny"].ready = False
    w.loads["small"].full = True
    assert await w.model() == "mid"
    assert await world(contexts={"tiny": 99, "small": 100}).model(input_max=100) == "small"
    assert await world(contexts={"tiny": 99, "big": 90}).model(input_max=100) == "tiny", "the asked one has less room"


@given(
    st.dictionaries(st.sampled_from([*RATES]), st.tuples(st.booleans(), st.booleans()), min_size=4, max_size=4),
    st.sets(st.sampled_from([*RATES])),
    st.sampled_from([*RATES]),
)
async def test_the_stand_in_is_the_cheapest_of_all_that_may(
    tmp_path_factory: pytest.TempPathFactory,
    loads: dict[str, tuple[bool, bool]],
    named: set[str],
    asked: str,
) -> None:
    """Against a plain minimum over every model: the answer depends on nothing but prices, names and readiness."""
    w = World(tmp_path_factory.mktemp("w"), cheaper=tuple(sorted(named)))
    for model, (ready, full) in loads.items():
        w.loads[model].ready, w.loads[model].full = ready or model == asked, full and model != asked
    usable = [m for m in RATES if (m in named or not named) and w.loads[m].ready and not w.loads[m].full]
    wanted = min([asked, *usable], key=lambda m: RATES[m])
    assert await w.model(asked) == wanted
    w.journal.close()


async def test_the_client_is_told(world: Callable[..., World]) -> None:
    """A header for each rule, and none when nothing happened."""
    async with world().served() as request:
        assert told(request) == b"x-tokenworks-model: tiny\r\n"
    async with world(rule="slow").served() as request:
        assert told(request) == b"x-tokenworks-lane: slow\r\n"
    async with world(package_ustu=10**6).served() as request:
        assert told(request) == b""


class Lane:
    """Requests for the slow lane as tasks, and the order in which they came in."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.inside: list[str] = []
        self.ended: list[str] = []
        self.go = {name: asyncio.Event() for name in "abcd"}

    async def run(self, name: str, model: str = "big") -> None:
        async with self.world.served(model):
            self.inside.append(name)
            self.world.loads[model].running += 1
            try:
                await self.go[name].wait()
            finally:
                self.world.loads[model].running -= 1
        self.ended.append(name)

    def start(self, name: str, model: str = "big") -> asyncio.Task[None]:
        return asyncio.create_task(self.run(name, model))


async def settle() -> None:
    for _ in range(50):
        await asyncio.sleep(0)


async def test_the_slow_lane_takes_one_at_a_time_in_order(world: Callable[..., World]) -> None:
    """Two slots are free, one request runs; the others follow as they came. Another model has a lane of its own."""
    lane = Lane(world(rule="slow"))
    tasks = [lane.start(name) for name in "abc"]
    await settle()
    assert (lane.inside, lane.world.overflow.waiting) == (["a"], 2)
    other = lane.start("d", "mid")
    await settle()
    assert lane.inside == ["a", "d"]
    for name in "abcd":
        lane.go[name].set()
    await asyncio.gather(*tasks, other)
    assert [name for name in lane.inside if name != "d"] == ["a", "b", "c"]


async def test_the_slow_lane_waits_while_payers_fill_the_slots(world: Callable[..., World]) -> None:
    """A payer never waits behind it: it goes in only when a slot is free."""
    lane = Lane(world(rule="slow"))
    lane.world.loads["big"].running = 2
    task = lane.start("a")
    await settle()
    assert lane.inside == []
    lane.world.loads["big"].running = 1
    await settle()
    assert lane.inside == ["a"]
    lane.go["a"].set()
    await task


@pytest.mark.parametrize("steps", range(12))
async def test_who_leaves_the_slow_lane_makes_room(world: Callable[..., World], steps: int) -> None:
    """Clients may hang up at any moment, waiting or running: the next one comes in."""
    lane = Lane(world(rule="slow"))
    first, second = lane.start("a"), lane.start("b")
    for _ in range(steps):
        await asyncio.sleep(0)
    first.cancel()
    await settle()
    assert lane.inside[-1] == "b"
    lane.go["b"].set()
    await second
    await asyncio.gather(first, return_exceptions=True)


async def test_the_slow_lane_is_bounded(world: Callable[..., World], monkeypatch: pytest.MonkeyPatch) -> None:
    """In number and in time: then it says so, and what to do."""
    monkeypatch.setattr(overage, "WAITING_MAX", 1)
    monkeypatch.setattr(overage, "PATIENCE_S", 0.02)
    lane = Lane(world(rule="slow"))
    first, second = lane.start("a"), lane.start("b")
    await settle()
    with pytest.raises(EngineDown, match="full"):
        await lane.run("c")
    with pytest.raises(EngineDown, match="did not move"):
        await second
    lane.go["a"].set()
    await first


async def test_a_timeout_of_the_request_itself_is_not_the_lanes(world: Callable[..., World]) -> None:
    """What happens while the request runs is passed on as it is."""
    with pytest.raises(TimeoutError):
        async with world(rule="slow").served():
            raise TimeoutError


def order(step: int = 1) -> Order:
    return Order(event="e", max_mw=1, firm=True, end_ns=2**62, step=step, since_ns=0)


async def admit(w: World, deferrable: bool) -> list[str]:
    """At which replicas a request may run, once it is let in."""
    request = Request(
        id="r", endpoint="chat", model="big", body=b"{}", stream=False, show_usage=False, input_max=1, output_max=1,
        choices=1, arrived_ns=w.clock.now_ns(), needs=frozenset(),
    )  # fmt: skip
    found = await w.overflow.admitted(Served(request, *eligible(request, w.offers)), deferrable=deferrable)
    return [option.replica for option in found.options]


async def test_deferrable_requests_wait_while_the_grid_asks_for_less(world: Callable[..., World]) -> None:
    """None starts before the limit ends; then they go in as slots are free. Interactive ones pass."""
    w = world()
    w.overflow.orders = {"s": order()}
    tasks = [asyncio.create_task(admit(w, deferrable=True)) for _ in range(3)]
    await settle()
    assert (w.overflow.waiting, w.overflow.deferred) == (3, 3)
    assert await admit(w, deferrable=False) == ["big-1"]
    w.loads["big"].running, w.overflow.orders = 2, {}
    await settle()
    assert w.overflow.waiting == 3
    w.loads["big"].running = 0
    assert await asyncio.gather(*tasks) == [["big-1"]] * 3
    assert await admit(w, deferrable=True) == ["big-1"]


async def test_the_slow_lane_yields_to_the_grid_too(world: Callable[..., World]) -> None:
    """Who is served there can wait, header or not."""
    lane = Lane(world(rule="slow"))
    lane.world.overflow.orders = {"s": order()}
    task = lane.start("a")
    await settle()
    assert lane.inside == []
    lane.world.overflow.orders = {}
    lane.go["a"].set()
    await task
    assert lane.ended == ["a"]


async def test_deferrable_requests_go_where_nothing_is_asked(world: Callable[..., World]) -> None:
    """Another site that serves the model takes them at once, and only that one."""
    w = world()
    w.offers["big"].append(msgspec.structs.replace(w.offers["big"][0], replica="far-1", site="far", load=Load()))
    w.overflow.orders = {"s": order()}
    assert await admit(w, deferrable=True) == ["far-1"]
    assert await admit(w, deferrable=False) == ["big-1", "far-1"]


async def test_waiting_for_the_grid_is_bounded(world: Callable[..., World], monkeypatch: pytest.MonkeyPatch) -> None:
    """In number and in time; the answer says when to come back."""
    monkeypatch.setattr(overage, "WAITING_MAX", 1)
    monkeypatch.setattr(overage, "PATIENCE_S", 0.02)
    w = world()
    w.overflow.orders = {"s": order()}
    waiting = asyncio.create_task(admit(w, deferrable=True))
    await settle()
    with pytest.raises(EngineDown, match="full"):
        await admit(w, deferrable=True)
    with pytest.raises(EngineDown, match="did not move") as refused:
        await waiting
    assert refused.value.retry_after_s == 3_600


async def test_a_cap_delays_interactive_requests_and_refuses_none(world: Callable[..., World]) -> None:
    """Two seconds at most while the replica works; not at all when it is free."""
    w = world()
    w.overflow.orders = {"s": order(step=2)}
    before_ns = w.clock.now_ns()
    assert await admit(w, deferrable=False) == ["big-1"]
    assert w.clock.now_ns() == before_ns
    w.loads["big"].running = 1
    assert await admit(w, deferrable=False) == ["big-1"]
    assert w.clock.now_ns() - before_ns == pytest.approx(2e9, abs=1e8)
