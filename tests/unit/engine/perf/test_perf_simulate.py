"""A closed loop on one replica: what the shipped coefficients say, and that they come from the tables."""

from __future__ import annotations

from statistics import fmean

import pytest
from bench import perf as bench_perf

from tokenworks.core.errors import BadRequest
from tokenworks.engine.perf.devices import device_named
from tokenworks.engine.perf.iteration import BOTTLENECKS
from tokenworks.engine.perf.plan import Plan
from tokenworks.engine.perf.robust_fit import Prior, Row, fit, predicted
from tokenworks.engine.perf.shapes import shape_named
from tokenworks.engine.perf.shipped import shipped
from tokenworks.engine.perf.simulate import ROUNDS, Figures, Load, jobs, simulate


def run(model: str = "llama-3.1-8b", *, tp: int = 1, device: str = "h100-sxm", **load: float) -> Figures:
    plan = Plan(shape=shape_named(model), device=device_named(device), tp=tp)
    asked = {"concurrency": 16, "isl": 1_024, "osl": 256} | load
    return simulate(plan, Load(**asked), shipped())  # type: ignore[arg-type]


def test_the_shipped_coefficients_are_those_of_the_tables() -> None:
    """A fit of the tables in data/ gives the file again, to its five digits."""
    made = bench_perf.named(bench_perf.fit_iteration(bench_perf.speeds()))
    assert dict(made.terms) == pytest.approx(dict(shipped().iteration.terms), rel=1e-3)
    assert dict(made.engines) == pytest.approx(dict(shipped().iteration.engines), rel=1e-3)


def test_the_shipped_errors_hold_what_is_promised() -> None:
    """TPOT 12 %, 15 % on a GPU left out; power 11 %; simulated TTFT 30 %."""
    errors = shipped().errors
    assert errors["tpot_median_err"] <= 0.12
    assert errors["tpot_sim_median_err"] <= 0.12
    assert errors["tpot_leave_gpu_out_err"] <= 0.15
    assert errors["power_median_err"] <= 0.11
    assert errors["ttft_sim_median_err"] <= 0.30


def test_a_fit_finds_coefficients_under_outliers() -> None:
    """Two coefficients and a factor, a tenth of the rows wrong by ten times."""
    true = [2.0, 0.5, 1.5]
    rows = []
    for n in range(1, 80):
        pieces = ((float(n), (0,)), (20.0 * (n * n % 17 + 1), (1, 2) if n % 2 else (1,)))
        exact = predicted(Row(measured=1.0, pieces=pieces, offset=3.0), true)
        rows.append(Row(measured=exact * (10 if n % 10 == 0 else 1), pieces=pieces, offset=3.0))
    found = fit(rows, [Prior(start=1.0, rows=1e-6)] * 3, scale=0.1)
    assert found == pytest.approx(true, rel=0.05)


def test_a_steady_loop_agrees_with_the_mean_iteration_that_is_fitted() -> None:
    """TPOT from the simulation against the closed form of a long run, where nobody waits for room."""
    for model, tp in (("llama-3.1-70b", 4), ("gpt-oss-120b", 2), ("deepseek-v3", 8)):
        plan = Plan(shape=shape_named(model), device=device_named("h200-sxm"), tp=tp)
        load = Load(concurrency=32, isl=1_024, osl=1_024)
        scale = shipped().iteration.of("vllm")
        work, batch = bench_perf.steady(plan, load, 32)
        closed_form = sum(amount * by for amount, by in zip(work.terms(batch), scale, strict=True))
        assert simulate(plan, load, shipped()).tpot_s == pytest.approx(closed_form, rel=0.05)


def test_figures_hang_together() -> None:
    """Little's law, parts that make the iteration, power below the boards'."""
    found = run(concurrency=16, osl=1_024)
    assert found.parts.keys() == BOTTLENECKS.keys()
    assert sum(found.parts.values()) == pytest.approx(found.iteration_s)
    assert found.output_tokens_s == pytest.approx(found.batch.sequences / found.iteration_s, rel=0.05)
    assert found.ttft_p50_s <= found.ttft_p90_s
    assert found.power_w is not None
    assert 0.3 * 700 < found.power_w <= 700


def test_energy_per_token_falls_as_the_batch_grows() -> None:
    """It is a function of load, never a constant."""
    joules = [(found.power_w or 0) / found.output_tokens_s for found in (run(concurrency=n) for n in (1, 8, 64))]
    assert joules[0] > 3 * joules[1] > 3 * joules[2]


def test_beyond_the_kv_limit_requests_queue() -> None:
    """The batch stops growing and the wait for a first token explodes."""
    within, beyond = (run("qwen3-32b", concurrency=n, isl=4_096, osl=512) for n in (16, 256))
    room = Plan(shape=shape_named("qwen3-32b"), device=device_named("h100-sxm")).sequences_max(4_096 + 512)
    assert 16 < room < 256
    assert beyond.batch.sequences < 1.25 * room
    assert beyond.ttft_s > 20 * within.ttft_s


def test_prefix_hits_shorten_and_adapter_swaps_lengthen_the_wait() -> None:
    """Against the same load without."""
    plain = run(isl=4_096)
    assert run(isl=4_096, prefix_hit=0.9).ttft_s < 0.6 * plain.ttft_s
    swapped = run(isl=4_096, lora_swap=0.5, lora_rank=256)
    assert swapped.ttft_s > plain.ttft_s
    assert swapped.output_tokens_s < plain.output_tokens_s


def test_the_requests_of_a_load_are_spread_evenly() -> None:
    """Between 80 and 100 % of the nominal lengths, prompt and output apart, half of them with a swap."""
    made = jobs(Load(concurrency=100, isl=1_000, osl=2_000, lora_swap=0.5), swap_s=1.0)
    assert len(made) == 100 * ROUNDS
    assert fmean(job.prompt for job in made) == pytest.approx(900, rel=0.01)
    assert fmean(job.output for job in made) == pytest.approx(1_800, rel=0.01)
    assert {800 <= job.prompt <= 1_000 and 1_600 <= job.output <= 2_000 for job in made} == {True}
    assert sum(job.load_s for job in made) == len(made) / 2


@pytest.mark.parametrize("wrong", [{"concurrency": 0}, {"concurrency": 1 << 20}, {"isl": 0}, {"prefix_hit": 1.5}])
def test_a_load_has_bounds(wrong: dict[str, float]) -> None:
    """A simulation ends."""
    with pytest.raises(BadRequest):
        Load(**{"concurrency": 1, "isl": 1, "osl": 1} | wrong)  # type: ignore[arg-type]
