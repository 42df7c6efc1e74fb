"""``make bench-perf``: refit the performance model on half of the measured tables; say how far off it is on the rest.

Errors are medians of |predicted / measured - 1| over rows that the coefficients were not fitted to: the other half (of
configurations, so no repetition of one is on both sides), and each GPU type, model family and engine left out in turn.
Then all rows are fitted, and that is what ships: ``src/tokenworks/engine/perf/data/coefficients.toml``.
"""

from __future__ import annotations

import csv
import gzip
import json
import random
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from statistics import fmean, median

import msgspec
from bench.results_file import ROOT, merge

from tokenworks.core.errors import BadRequest, UnknownModel
from tokenworks.core.words import Word
from tokenworks.engine.perf.devices import device_named
from tokenworks.engine.perf.iteration import OVERHEADS, TERMS, Batch, Coefficients, Work, seconds
from tokenworks.engine.perf.plan import Plan
from tokenworks.engine.perf.robust_fit import Prior, Row, fit, predicted
from tokenworks.engine.perf.shapes import shape_named
from tokenworks.engine.perf.shipped import Front, Power, Shipped, shipped
from tokenworks.engine.perf.simulate import CHUNK, Load, WorkPace, activity, closed_loop, limits

DATA = ROOT / "data" / "measured"
SHIPPED = ROOT / "src" / "tokenworks" / "engine" / "perf" / "data" / "coefficients.toml"
SEEDS = range(10)
"""Random halves; the figure is over all of them."""
ENGINES = ("vllm", "sglang", "trtllm")
STARTS = {
    "weights": 1.2,
    "dequantise": 0.5,
    "kv": 1.2,
    "decode_flops": 1.0,
    "prefill_flops": 1.5,
    "prefill_experts": 3.0,
    "prefill_attention": 3.0,
    "decode_communication": 3.0,
    "prefill_communication": 3.0,
    "layer_us": 50.0,
    "expert_us": 5.0,
    "sparse_us": 50.0,
    "sequence_us": 10.0,
}
"""Where the fit begins: round numbers, so that nothing that is left out comes back through them."""
ISL = {"gpqa": 250, "lm-arena-chat": 150, "sourcegraph-fim": 2000}
"""Prompt lengths of the tasks of the power table, which does not give them: our assumption."""
POWER_DEVICES = {"H100": "nvidia-h100-sxm", "B200": "nvidia-b200-sxm"}
POWER_PRECISIONS = {"bfloat16": "bf16", "fp8": "fp8", "mxfp4": "fp4"}


RESULTS = ("engine_version", "ttft_ms", "tpot_ms", "measured")
"""Columns that are no part of a configuration."""


class Measured(Word, frozen=True):
    """One row of the table of speeds, ready to be fitted."""

    plan: Plan
    load: Load
    sequences: int
    terms: tuple[float, ...]
    tpot_s: float
    ttft_s: float
    group: str
    """Its configuration."""

    @property
    def queued(self) -> bool:
        """More than half of the time is waiting: the batch was smaller than the concurrency, so it teaches nothing."""
        return self.ttft_s > self.load.osl * self.tpot_s


def table(name: str) -> list[dict[str, str]]:
    """A table of ``data/measured``."""
    with gzip.open(DATA / f"{name}.csv.gz", "rt", newline="") as file:
        return list(csv.DictReader(file))


def speeds() -> list[Measured]:
    """The table of TPOT and TTFT."""
    found = []
    for row in table("inferencex"):
        device = device_named(row["device"])
        plan = Plan(
            shape=shape_named(row["model"]), device=device, precision=row["precision"], engine=row["engine"],
            tp=int(row["tp"]), dp=int(row["dp"]), ep=int(row["ep"]),
        )  # fmt: skip
        load = Load(concurrency=int(row["concurrency"]), isl=int(row["isl"]), osl=int(row["osl"]))
        try:
            sequences = min(load.concurrency, max(1, plan.sequences_max(load.isl + load.osl)))
        except BadRequest:  # the run did fit, whatever a rule of thumb says
            sequences = load.concurrency
        work, batch = steady(plan, load, sequences)
        found.append(
            Measured(
                plan=plan,
                load=load,
                sequences=sequences,
                terms=work.terms(batch),
                tpot_s=float(row["tpot_ms"]) / 1e3,
                ttft_s=float(row["ttft_ms"]) / 1e3,
                group=" ".join(row[key] for key in row if key not in RESULTS),
            )
        )
    return found


def steady(plan: Plan, load: Load, sequences: float) -> tuple[Work, Batch]:
    """The mean iteration of a long run: every finished sequence brings the prompt of the next one."""
    prompt = sequences * load.isl / load.osl
    batch = Batch(
        sequences=sequences,
        context=sequences * (load.isl + load.osl / 2),
        prompt=prompt,
        prompt_context=prompt * load.isl / 2,
        mixed=min(1.0, sequences / load.osl * max(1.0, load.isl / CHUNK)),
    )
    return Work(plan=plan, typical_context=load.isl + load.osl / 2), batch


def iteration_row(row: Measured, known: Sequence[str] = ENGINES) -> Row:
    """The measured iteration as a sum of terms; the engine's own code has a factor."""
    factor = (len(TERMS) + ENGINES.index(row.plan.engine),) if row.plan.engine in known else ()
    pieces = [
        (amount, (n, *(factor if name in OVERHEADS else ())))
        for n, (name, amount) in enumerate(zip(TERMS, row.terms, strict=True))
        if amount
    ]
    return Row(measured=row.tpot_s, pieces=tuple(pieces))


ITERATION_PRIORS = [Prior(start=STARTS[name], rows=2.0) for name in TERMS] + [Prior(start=1.0, rows=60.0)] * len(
    ENGINES
)


def fit_iteration(rows: Iterable[Measured]) -> list[float]:
    """Coefficients of TERMS, then of ENGINES."""
    return fit([iteration_row(row) for row in rows if not row.queued], ITERATION_PRIORS, scale=0.12)


def named(fitted: Sequence[float]) -> Coefficients:
    """The same with names."""
    factors = fitted[len(TERMS) :]
    return Coefficients(terms=dict(zip(TERMS, fitted, strict=False)), engines=dict(zip(ENGINES, factors, strict=True)))


def errors(rows: Iterable[Row], fitted: Sequence[float]) -> list[float]:
    """Of each row."""
    return [abs(predicted(row, fitted) / row.measured - 1) for row in rows]


def halves(groups: Sequence[str], seed: int) -> list[bool]:
    """Which rows are in the fitted half: whole groups."""
    names = sorted(set(groups))
    chosen = set(random.Random(seed).sample(names, len(names) // 2))
    return [group in chosen for group in groups]


KEYS: dict[str, Callable[[Measured], str]] = {
    "gpu": lambda row: row.plan.device.id,
    "model": lambda row: row.plan.shape.name,
    "engine": lambda row: row.plan.engine,
}
"""What is left out in turn."""


def left_out(rows: list[Measured], key: Callable[[Measured], str]) -> dict[str, list[float]]:
    """Errors on each value of ``key`` when all its rows are left out."""
    found = {}
    for value in sorted({key(row) for row in rows}):
        fitted = fit_iteration(row for row in rows if key(row) != value)
        known = [engine for engine in ENGINES if engine != value]
        found[value] = errors((iteration_row(row, known) for row in rows if key(row) == value), fitted)
    return found


def simulated(row: Measured, coefficients: Coefficients) -> tuple[float, float, float]:
    """Mean TTFT of the engine alone, mean iteration, and mean TPOT."""
    work = Work(plan=row.plan, typical_context=row.load.isl + row.load.osl / 2)
    done, clock = closed_loop(WorkPace(work, coefficients), limits(row.load, row.sequences), row.load)
    ttft_s, tpot_s = (fmean(times) for times in zip(*((one.ttft_s, one.tpot_s) for one in done), strict=True))
    return ttft_s, clock.tally.busy_s / clock.tally.iterations, tpot_s


FRONT_PRIORS = [*[Prior(start=0.02, rows=3.0)] * 3, *[Prior(start=8.0, rows=3.0)] * 3, Prior(start=5e-6, rows=3.0)]


def front_row(row: Measured, queue_s: float, iteration_s: float) -> Row:
    """TTFT as the simulated queue plus what the server adds."""
    engine = ENGINES.index(row.plan.engine)
    pieces = ((1.0, (engine,)), (iteration_s, (len(ENGINES) + engine,)), (float(row.load.isl), (2 * len(ENGINES),)))
    return Row(measured=row.ttft_s, offset=queue_s, pieces=pieces)


def powers(coefficients: Coefficients) -> list[tuple[str, float, tuple[float, float]]]:
    """Of the table of powers: configuration, share of board power, working and computing shares."""
    found = []
    for row in table("mlenergy"):
        try:
            shape = shape_named(row["model_id"])
        except UnknownModel:
            continue
        if row["task"] not in ISL:
            continue
        gpus, dp = int(row["num_gpus"]), int(row["data_parallel"])
        device = device_named(POWER_DEVICES[row["gpu_model"]])
        plan = Plan(
            shape=shape, device=device, precision=POWER_PRECISIONS[row["weight_precision"]], tp=gpus // dp, dp=dp
        )
        osl = max(1, round(float(row["avg_output_len"])))
        load = Load(concurrency=1, isl=ISL[row["task"]], osl=osl)
        work, batch = steady(plan, load, float(row["avg_batch_size"]))
        active = activity(work.terms(batch), seconds(work, batch, coefficients))
        share = float(row["avg_power_watts"]) / gpus / (device.board_w or 0.0)
        name = " ".join([shape.name, row["gpu_model"], row["num_gpus"], row["task"], row["avg_batch_size"]])
        found.append((name, share, active))
    return found


def fit_power(rows: Iterable[tuple[str, float, tuple[float, float]]]) -> Power:
    """Robust, as for times."""
    made = [
        Row(measured=share, pieces=((1.0, (0,)), (active[0], (1,)), (active[1] ** 0.5, (2,))))
        for _, share, active in rows
    ]
    base, working, compute = fit(made, [Prior(start=0.4, rows=2.0)] * 3, scale=0.1)
    return Power(base=base, working=working, compute=compute)


def measure() -> dict[str, float]:
    """Fit, judge, write what ships, and return the errors."""
    rows = speeds()
    tested: dict[str, list[float]] = {"tpot": [], "ttft": [], "power": []}
    for seed in SEEDS:
        mine = halves([row.group for row in rows], seed)
        fitted = fit_iteration(row for row, own in zip(rows, mine, strict=True) if own)
        tested["tpot"] += errors((iteration_row(row) for row, own in zip(rows, mine, strict=True) if not own), fitted)
        if seed == SEEDS[0]:
            runs = [simulated(row, named(fitted)) for row in rows]
            front_rows = [front_row(row, *run[:2]) for row, run in zip(rows, runs, strict=True)]
            tested["tpot_sim"] = [
                abs(run[2] / row.tpot_s - 1) for row, run, own in zip(rows, runs, mine, strict=True) if not own
            ]
            front = fit([row for row, own in zip(front_rows, mine, strict=True) if own], FRONT_PRIORS, scale=0.3)
            tested["ttft"] += errors((row for row, own in zip(front_rows, mine, strict=True) if not own), front)
        drawn = powers(named(fitted))
        own_power = halves([name for name, _, _ in drawn], seed)
        power = fit_power(one for one, own in zip(drawn, own_power, strict=True) if own)
        tested["power"] += [
            abs(power.share(*active) / share - 1)
            for (_, share, active), own in zip(drawn, own_power, strict=True)
            if not own
        ]
    figures = {f"{name}_median_err": median(found) for name, found in tested.items()}
    figures["ttft_sim_median_err"] = figures.pop("ttft_median_err")
    for name, key in KEYS.items():
        alone = left_out(rows, key)
        figures[f"tpot_leave_{name}_out_err"] = median(error for found in alone.values() for error in found)
        print(f"  left out, {name}: " + ", ".join(f"{v} {median(e):.1%} of {len(e)}" for v, e in alone.items()))
    figures = {name: round(value, 4) for name, value in figures.items()}
    ship(rows, figures)
    return figures | {name: round(value, 4) for name, value in apart().items()}


def apart() -> dict[str, float]:
    """Tables that nothing is fitted to: Llama-2-70B and BLOOM on A100 and H100 under a vLLM of 2023, power on A100.

    That engine was slower; what it took beyond the model is overhead as far as power is concerned.
    """
    made, slower, drawn = shipped(), [], []
    for row in table("splitwise"):
        device = device_named("nvidia-a100-sxm-80g" if row["hardware"] == "a100-80gb" else "nvidia-h100-sxm")
        plan = Plan(shape=shape_named(row["model"]), device=device, precision="bf16", tp=int(row["tensor_parallel"]))
        sequences, context = int(row["batch_size"]), int(row["prompt_size"]) + int(row["token_size"]) / 2
        work = Work(plan=plan, typical_context=context)
        batch = Batch(sequences=sequences, context=sequences * context)
        parts = seconds(work, batch, made.iteration)
        slower.append(float(row["token_time_ms"]) / 1e3 / sum(parts.values()))
        parts["per-layer overhead"] += max(0.0, float(row["token_time_ms"]) / 1e3 - sum(parts.values()))
        if row["average_power_frac"]:
            share = made.power.share(*activity(work.terms(batch), parts))
            drawn.append(abs(share / float(row["average_power_frac"]) - 1))
    return {"power_a100_median_err": median(drawn), "tpot_2023_engine_ratio": median(slower)}


def ship(rows: list[Measured], figures: dict[str, float]) -> None:
    """Fit everything and write the package's data."""
    coefficients = named(fit_iteration(rows))
    front = fit([front_row(row, *simulated(row, coefficients)[:2]) for row in rows], FRONT_PRIORS, scale=0.3)
    count = len(ENGINES)
    fronts = {e: Front(wait_s=front[n], iterations=front[count + n]) for n, e in enumerate(ENGINES)}
    fronts["any"] = Front(wait_s=median(front[:count]), iterations=median(front[count : 2 * count]))
    made = Shipped(
        made=datetime.now(UTC).date().isoformat(),
        source="data/measured/inferencex.csv.gz (TPOT, TTFT) and data/measured/mlenergy.csv.gz (power)",
        errors=figures,
        known={name: tuple(sorted({key(row) for row in rows})) for name, key in KEYS.items()},
        iteration=coefficients,
        front=fronts,
        front_token_s=front[-1],
        power=fit_power(powers(coefficients)),
    )
    head = "# Made by `make bench-perf` from the tables named below; see docs/performance-model.md.\n"
    SHIPPED.write_text(head + _toml(msgspec.to_builtins(made)))
    print(f"  -> {SHIPPED.relative_to(ROOT)}")


def _toml(value: dict[str, object], path: str = "") -> str:
    """A nested dict of texts, lists of texts and numbers, five digits each."""
    flat = {key: inner for key, inner in value.items() if not isinstance(inner, dict)}
    lines = "".join(f"{k} = {v:.5g}\n" if isinstance(v, float) else f"{k} = {json.dumps(v)}\n" for k, v in flat.items())
    for key, inner in value.items():
        if isinstance(inner, dict):
            lines += f"\n[{path}{key}]\n" + _toml(inner, f"{path}{key}.")
    return lines


if __name__ == "__main__":
    found = measure()
    for name, value in found.items():
        print(f"  {name:28} {value:.3f}")
    print(f"  -> {merge('perf', found)}")
