"""What a grid file lets a site know of its slices: where the energy goes, what making them emitted, whose they are."""

from __future__ import annotations

import pytest

from tokenworks import gridfile
from tokenworks.compose import Plan, plan
from tokenworks.core.errors import GridFileError
from tokenworks.core.units import NS_PER_S
from tokenworks.core.words import Interval, Provenance, Work
from tokenworks.engine.perf.devices import device_named
from tokenworks.engine.perf.iteration import Batch, seconds
from tokenworks.engine.perf.iteration import Work as Constants
from tokenworks.engine.perf.plan import Plan as EnginePlan
from tokenworks.engine.perf.shapes import shape_named
from tokenworks.engine.perf.shipped import shipped
from tokenworks.engine.perf.simulate import activity, modelled
from tokenworks.site.attribution import close_interval
from tokenworks.site.words import Readings

HOUR_NS = 3_600 * NS_PER_S
GRID = """
[[site]]
name = "s"
[[site.server]]
name = "n1"
idle = "300 W"
embodied = "1.2 t"
life = 4
[[site.device]]
id = "left"
catalogue = "nvidia-h100-sxm"
server = "n1"
idle = "70 W"
embodied = "164 kg"
life = 5
[[site.device]]
id = "right"
catalogue = "nvidia-h100-sxm"
server = "n1"
[[replica]]
name = "big"
model = "llama-3.1-8b"
device = "left"
engine = "vllm"
url = "http://127.0.0.1:1"
slots = 64
context = 16384
reserved = "acme"
"""


def composed(text: str = GRID) -> Plan:
    return plan(gridfile.parse(text, "t"))


def work(receipt: str, times_s: tuple[float, float, float], tokens: tuple[int, int], slice_: str) -> Work:
    start_ns, first_ns, end_ns = (round(s * NS_PER_S) for s in times_s)
    return Work(
        receipt=receipt, replica="big", site="s", slice=slice_, start_ns=start_ns, first_ns=first_ns, end_ns=end_ns,
        input_tokens=tokens[0], output_tokens=tokens[1],
    )  # fmt: skip


def closed(made: Plan, works: list[Work], reading: Readings | None = None) -> Interval:
    end_ns = max((each.end_ns for each in works), default=HOUR_NS)
    return close_interval(made.sites[0], 0, end_ns, works, frozenset(w.receipt for w in works), {"agents": 5}, reading)


def test_a_card_elsewhere_is_its_data_sheet_and_what_the_file_says() -> None:
    """After a copy of the processor: name, power and memory are the accelerator's; nothing of this machine is its."""
    made = composed()
    left, right = made.devices["s"]
    assert (left.name, left.vendor, left.memory_bytes, left.threads) == (right.name, "NVIDIA", 80_000 * 10**6, 1_000)
    assert (left.kind, left.energy_counters, left.cores, left.visible) == ("accelerator", (), None, {})
    assert left.idle_mw is not None
    assert left.max_mw is not None
    assert (left.idle_mw.value, left.max_mw.value) == (70_000, 700_000)
    assert (left.idle_mw.source, left.max_mw.provenance) == ("the grid file", Provenance.LISTED)
    assert left.max_mw.source is not None
    assert left.max_mw.source.startswith("nvidia-h100-sxm; ")
    [load], [replica] = made.sites[0].loads, made.replicas
    assert (load.slice, load.idle_mw, load.busy_mw, load.server) == ("left/0", 70_000, 630_000, "n1")
    assert replica.booked == {"left": (1_000, 80_000 * 10**6)}
    assert replica.limits.env == {}


@pytest.mark.parametrize(
    ("device", "more", "said"),
    [
        ('id = "cpu-0"', "", r"device 'cpu-0' is not on this machine, and its size .*\(here: cpu0"),
        ('id = "zzzz"\nthreads = 2', "", r"'zzzz' is not on this machine.*\(here: cpu0.*; elsewhere: its catalogue"),
        ('id = "card"\ncatalogue = "nvidia-h100-sxm"', 'command = ["engine"]', r"100 % of 1 accelerator card.* 0 devi"),
    ],
)
def test_a_device_that_is_not_here_is_told(device: str, more: str, said: str) -> None:
    """After an engine on a card of another machine: without a size it is no device, and nothing of ours runs on one."""
    with pytest.raises(GridFileError, match=said):
        composed(
            f'[[site]]\nname = "s"\n[[site.device]]\n{device}\n[[replica]]\nmodel = "m"\n{more}\nmemory = "1 GB"\n'
        )


def engine_plan() -> EnginePlan:
    return EnginePlan(shape=shape_named("llama-3.1-8b"), device=device_named("h100-sxm"), precision="bf16")


def test_parts_are_those_of_the_engine_model() -> None:
    """A slice knows them where card and model are known; else, and for a part of a card, time alone weighs."""
    load = composed().sites[0].loads[0]
    parts = modelled(engine_plan(), 64, 16_384, 70_000, 630_000)
    assert {"stream_mw": load.stream_mw, "prefill_nj": load.prefill_nj, "context_nj": load.context_nj} == parts
    assert 0 < parts["stream_mw"] < load.busy_mw
    plain = (None, 0, 0)
    for old, new in (
        ("llama-3.1-8b", "nobody-knows"),
        ("slots = 64", "threads = 500"),
        ("nvidia-h100-sxm", "nvidia-l4"),
    ):
        text = GRID.replace(old, new).replace('idle = "70 W"', 'idle = "20 W"\nmax = "90 W"')
        [other] = composed(text).sites[0].loads
        assert ((other.stream_mw, other.prefill_nj, other.context_nj) == plain) is (new != "nvidia-l4"), new


def replayed(requests: dict[str, tuple[int, int]]) -> tuple[dict[str, float], dict[str, tuple[float, float, float]]]:
    """The oracle: iteration by iteration, what all share divided by who is there, what is each one's own to it. Prompts
    come first, one after the other. Joules of each by the power of each iteration; start, first token and end [s]."""
    work, made = Constants(plan=engine_plan(), typical_context=4_000), shipped()
    now, joules, first = 0.0, dict.fromkeys(requests, 0.0), dict[str, float]()

    def iteration(batch: Batch) -> tuple[dict[str, float], float]:
        parts = seconds(work, batch, made.iteration)
        return parts, 700 * made.power.share(*activity(work.terms(batch), parts)) - 70

    for name, (prompt, _) in requests.items():
        parts, watts = iteration(Batch(sequences=0, context=0, prompt=prompt, prompt_context=prompt**2 / 2))
        for other in requests:
            joules[other] += watts * (sum(parts.values()) - parts["prefill compute"]) / len(requests)
        joules[name] += watts * parts["prefill compute"]
        now += sum(parts.values())
        first[name] = now
    left = {name: [prompt, output] for name, (prompt, output) in requests.items()}
    ends = dict[str, float]()
    while left:
        context, running = sum(each[0] for each in left.values()), len(left)
        parts, watts = iteration(Batch(sequences=running, context=context))
        now += sum(parts.values())
        for name in list(left):
            joules[name] += watts * (sum(parts.values()) - parts["kv"]) / running
            joules[name] += watts * parts["kv"] * left[name][0] / context
            left[name][0] += 1
            left[name][1] -= 1
            if not left[name][1]:
                del left[name]
                ends[name] = now
    return joules, {name: (0.0, first[name], ends[name]) for name in requests}


@pytest.mark.parametrize("metered_j", [None, 33_333])
def test_a_long_prompt_and_a_long_answer_cost_what_the_model_says(metered_j: int | None) -> None:
    """Against a replay of the iterations: less than half as far off as equal shares of time, and it closes."""
    requests = {f"chat-{n}": (200, 300) for n in range(6)} | {"prompt": (12_000, 300), "answer": (200, 600)}
    exact, times = replayed(requests)
    made = composed(GRID.replace("slots = 64", "slots = 8"))
    [load] = made.sites[0].loads
    works = [work(name, times[name], tokens, load.slice) for name, tokens in requests.items()]
    reading = None if metered_j is None else Readings(load=metered_j * 1_000, servers={"n1": metered_j * 600})
    interval = closed(made, works, reading)
    lines = {line.receipt: line for line in interval.requests}
    total = sum(line.energy_mj for line in lines.values())
    parts = interval.idle_mj + interval.overhead_mj + interval.residual_mj + sum(s.energy_mj for s in interval.services)
    assert total + parts == interval.meter_mj == (metered_j * 1_000 if metered_j else interval.meter_mj)
    want = {name: joule / sum(exact.values()) for name, joule in exact.items()}
    got = {name: line.energy_mj / total for name, line in lines.items()}
    by_time = {name: line.slice_ns / sum(each.slice_ns for each in lines.values()) for name, line in lines.items()}
    off, crude = (sum(abs(one[name] - want[name]) for name in want) for one in (got, by_time))
    assert off < crude / 2, (want, got, by_time)
    assert got["prompt"] > 1.5 * got["chat-0"]
    assert got["answer"] > 1.5 * got["chat-0"]
    assert got["chat-0"] == pytest.approx(got["chat-5"], rel=0.05)


def test_embodied_carbon_and_who_reserved_it() -> None:
    """After figures that only tests set: the card over its years and half of its server's, on lines and on the rest;
    what nobody said is not known. Idle energy stands under who reserved the card."""
    made = composed()
    [load] = made.sites[0].loads
    card, server = 164 * 10**9 // (5 * 8_766), 1_200 * 10**9 // (4 * 8_766 * 2)
    assert load.embodied_ug_per_hour == card + server
    fact = made.facts[0].facts["embodied:left/0"]
    assert (fact.value, fact.provenance, fact.source) == (card + server, Provenance.LISTED, "the grid file")
    both = [work("r", (0, 1, 1_800), (9, 9), "left/0"), work("z", (0, 0, 3_600), (1, 1), "")]
    interval = closed(made, both)
    [line] = [each for each in interval.requests if each.receipt == "r"]
    assert line.embodied_ug is not None
    assert line.embodied_ug + (interval.idle_embodied_ug or 0) == card + server
    assert line.embodied_ug == pytest.approx((card + server) / 2, rel=1e-6)
    assert interval.reserved_mj == {"acme": 70 * 3_600 * 1_000}
    [bare] = composed(GRID.replace('embodied = "1.2 t"\n', "").replace('embodied = "164 kg"\n', "")).sites[0].loads
    assert bare.embodied_ug_per_hour is None
