"""``tokenworks perf``: what a model would do on devices that need not be here, modelled and with its error."""

from __future__ import annotations

from typing import Any

from tokenworks.cli import out
from tokenworks.cli.out import Answer, command
from tokenworks.core.errors import BadRequest
from tokenworks.core.units import NANO, parse_money
from tokenworks.engine.perf.devices import device_named
from tokenworks.engine.perf.plan import Plan
from tokenworks.engine.perf.shapes import shape_named
from tokenworks.engine.perf.shipped import shipped
from tokenworks.engine.perf.simulate import Figures, Load, simulate


@command
def perf(
    model: str, /, *, device: str, gpus: int = 1, isl: int = 1024, osl: int = 1024, concurrency: int = 16,
    engine: str = "vllm", tp: int | None = None, ep: int = 1, dp: int = 1, precision: str | None = None,
    prefix_hit: float = 0.0, lora_swap: float = 0.0, cost_per_hour: str | None = None,
) -> Answer:  # fmt: skip
    """What a model would do on a device: speed, latency, power and cost, modelled from published measurements.

    Args:
        model: An open model, like llama-3.1-70b or deepseek-ai/DeepSeek-R1.
        device: A row of ``tokenworks device catalogue``, like b200 or nvidia-h100-sxm.
        gpus: Devices in all; as many replicas as they hold share the users.
        isl: Prompt tokens of a request, at most (lengths vary down to 80 %).
        osl: Output tokens, likewise.
        concurrency: Users, each of whom sends the next request when the last one is answered.
        engine: vllm, sglang or trtllm; any other is taken for an average one.
        tp: Devices that split a layer; all of them without it.
        ep: Devices that split the experts.
        dp: Copies of attention.
        precision: bf16, fp8, fp4 or int4; without it fp8 where the device computes in it.
        prefix_hit: Part of each prompt that is cached already.
        lora_swap: Part of requests whose adapter has to be fetched.
        cost_per_hour: Of one device, like "2.50 USD"; without it the cost is unknown.
    """
    spec, tp = device_named(device), gpus // max(1, dp) if tp is None else tp
    chosen = precision or ("fp8" if spec.fp8_tflops else "bf16")
    plan = Plan(shape=shape_named(model), device=spec, precision=chosen, engine=engine, tp=tp, dp=dp, ep=ep)
    if gpus < 1 or gpus % plan.gpus:
        raise BadRequest(f"{gpus} devices cannot hold replicas of {plan.gpus}", hint="change --gpus, --tp or --dp")
    replicas = gpus // plan.gpus
    load = Load(concurrency=-(-concurrency // replicas), isl=isl, osl=osl, prefix_hit=prefix_hit, lora_swap=lora_swap)
    found = _report(plan, load, simulate(plan, load, shipped()), replicas, cost_per_hour)
    parts = {f"  {part} ms": ms for part, ms in found["breakdown"].items()}
    rows = [
        (key.replace("_", " "), f"{value:,.3f}" if isinstance(value, float) else value)
        for key, value in {**found, **parts}.items()
        if key != "breakdown"
    ]
    return Answer(found, [out.table("", ("", "modelled"), rows, right=("modelled",))])


def _report(plan: Plan, load: Load, figures: Figures, replicas: int, cost_per_hour: str | None) -> dict[str, Any]:
    gpus, made = plan.gpus * replicas, shipped()
    speed = figures.output_tokens_s * replicas
    power_w = figures.power_w and figures.power_w * replicas
    nano = cost_per_hour and parse_money(cost_per_hour, cost_per_hour.partition(" ")[2])
    per_mtok = nano * gpus / NANO / 3600 / speed * 1e6 if nano else None
    return {
        "model": plan.shape.name, "device": plan.device.id, "gpus": gpus, "replicas": replicas,
        "tp": plan.tp, "ep": plan.ep, "dp": plan.dp, "precision": plan.precision, "engine": plan.engine,
        "isl": load.isl, "osl": load.osl, "concurrency": load.concurrency * replicas,
        "output_tokens_s": speed, "output_tokens_s_per_gpu": speed / gpus,
        "tpot_ms": figures.tpot_s * 1e3, "ttft_ms": figures.ttft_s * 1e3,
        "ttft_p50_ms": figures.ttft_p50_s * 1e3, "ttft_p90_ms": figures.ttft_p90_s * 1e3,
        "power_w": power_w, "j_per_output_token": power_w and power_w / speed,
        "output_tokens_s_per_kw": power_w and speed / power_w * 1e3,
        "cost_per_million_output_tokens": per_mtok, "currency": cost_per_hour and cost_per_hour.partition(" ")[2],
        "kv_limit_sequences": plan.sequences_max(load.isl + load.osl) * replicas,
        "mean_batch": figures.batch.sequences * replicas, "iteration_ms": figures.iteration_s * 1e3,
        "breakdown": {part: seconds * 1e3 for part, seconds in figures.parts.items()},
        "tpot_error": made.tpot_error(plan), "ttft_error": made.errors["ttft_sim_median_err"],
        "power_error": made.errors["power_median_err"], "provenance": "modelled", "coefficients": made.made,
    }  # fmt: skip
