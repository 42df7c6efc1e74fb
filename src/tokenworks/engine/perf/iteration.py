"""The time of one engine iteration: the work of each kind at the data sheet's speed, times a fitted coefficient.

Form: rooflines of LLM serving (LLM-Viewer, GenZ, InferSim, BLIS) add up reading weights and cache, computing,
communicating, and overheads per layer and per sequence. Here it is linear in the coefficients, so that each reads as an
inefficiency (1 is the data sheet) or as microseconds, and in the summed contexts, so that the iteration clock can jump.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

from tokenworks.core.words import Word
from tokenworks.engine.perf.plan import WEIGHT_BYTES, Plan

BOTTLENECKS = {
    "weights": ("weights", "dequantise"),
    "kv": ("kv",),
    "decode compute": ("decode_flops",),
    "prefill compute": ("prefill_flops", "prefill_experts", "prefill_attention"),
    "communication": ("decode_communication", "prefill_communication"),
    "per-layer overhead": ("layer_us", "expert_us", "sparse_us"),
    "per-sequence overhead": ("sequence_us",),
}
"""What an operator is told: where an iteration's time goes."""
TERMS = tuple(term for terms in BOTTLENECKS.values() for term in terms)
"""The coefficients, in the order of ``Work.terms``."""
OVERHEADS = TERMS[-4:]
"""Those that the engine's own code decides: they carry its factor."""


class Batch(Word, frozen=True):
    """What one iteration does; fractions are means over many."""

    sequences: float
    """That decode one token each."""
    context: float
    """Tokens that these sequences have before them, summed."""
    prompt: float = 0.0
    """Prompt tokens computed in this iteration (prefix hits are not)."""
    prompt_context: float = 0.0
    """Tokens before each of those, summed: a whole prompt of p tokens has p²/2."""
    mixed: float | None = None
    """Share of iterations with prompt tokens; None: this one has them or not."""


class Work(Word, frozen=True, dict=True):
    """The constants of a plan: seconds at data-sheet speed for each unit of work.

    ``typical_context`` is where windowed and sparse attention stop growing: each sequence is taken to be that long.
    """

    plan: Plan
    typical_context: float

    @cached_property
    def _reads(self) -> tuple[float, float, float]:
        """Seconds for the weights that all tokens need, for all experts, and per token of one layer's cache."""
        plan, shape, bytes_s = self.plan, self.plan.shape, self.plan.device.bandwidth_gb_s * 1e9
        common = shape.common * WEIGHT_BYTES[plan.common_precision] / plan.tp / bytes_s
        experts = shape.moe_layers * shape.experts * shape.expert * WEIGHT_BYTES[plan.precision] / plan.gpus / bytes_s
        return common, experts, plan.kv_layer_bytes / plan.dp / bytes_s

    @cached_property
    def _flops(self) -> tuple[float, float, float]:
        """Seconds per token in common matrices, in experts; and per token before it in the attention of one layer."""
        plan, shape, device = self.plan, self.plan.shape, self.plan.device
        common = 2e-12 * shape.common / device.tflops(plan.common_precision)
        experts = 2e-12 * (shape.active - shape.common) / device.tflops(plan.precision)
        width = shape.heads * (shape.nope_dim + shape.rope_dim + shape.v_dim if shape.kv_rank else 2 * shape.head_dim)
        return common / plan.gpus, experts / plan.gpus, 2e-12 * width / device.bf16_tflops / plan.gpus

    def _attended(self, context: float) -> tuple[int, float]:
        """Layers that see all of the context; and what the others see of one that long, summed over them."""
        shape, growing = self.plan.shape, self.plan.growing_layers
        limited = shape.window_layers * min(context, shape.window_tokens)
        if not shape.sparse_tokens:
            return growing, limited
        return 0, limited + growing * min(context, shape.sparse_tokens)

    @cached_property
    def _links(self) -> float:
        """Seconds per token: two all-reduces a layer over tp devices, two all-to-alls an expert layer over dp copies.

        Without a known link, the devices are taken to talk over a sixteen-lane PCIe 4 slot.
        """
        plan, shape = self.plan, self.plan.shape
        hidden = 2.0 * shape.hidden * 2  # two of each, in 16 bits
        sent = shape.layers * hidden * 2 * (plan.tp - 1) / plan.tp
        if plan.dp > 1:
            sent += shape.moe_layers * hidden * min(shape.active_experts, plan.gpus)
        return sent / plan.dp / ((plan.device.link_gb_s or 64.0) / 2 * 1e9)

    def cover(self, batch: Batch) -> float:
        """Share of the experts that some token of the iteration needs, if tokens choose evenly and independently."""
        shape = self.plan.shape
        if not shape.experts:
            return 0.0
        miss = 1 - shape.active_experts / shape.experts
        if batch.mixed is None:
            return 1.0 - float(miss ** (batch.sequences + batch.prompt))
        return (1 - batch.mixed) * (1.0 - float(miss**batch.sequences)) + batch.mixed

    def terms(self, batch: Batch) -> tuple[float, ...]:
        """The work of one iteration, in the order of TERMS: seconds, or microseconds of a unit overhead as seconds."""
        shape, sequences, prompt = self.plan.shape, batch.sequences, batch.prompt
        common, experts, cached = self._reads
        in_common, in_experts, pair = self._flops
        layers, decode_seen = self._attended(self.typical_context)
        _, prefill_seen = self._attended(self.typical_context / 2)
        read = experts * self.cover(batch)
        return (
            common + read,
            (read if shape.experts else common) if self.plan.precision == "int4" else 0.0,
            cached * (layers * batch.context + decode_seen * sequences),
            (in_common + in_experts) * sequences,
            in_common * prompt,
            in_experts * prompt,
            pair * (layers * batch.prompt_context + prefill_seen * prompt),
            self._links * sequences,
            self._links * prompt,
            1e-6 * shape.layers,
            1e-6 * shape.moe_layers * shape.active_experts,
            1e-6 * shape.layers if shape.sparse_tokens else 0.0,
            1e-6 * sequences,
        )


class Coefficients(Word, frozen=True):
    """Fitted once for all devices and models; an engine unknown to ``engines`` has the factor 1."""

    terms: Mapping[str, float]
    engines: Mapping[str, float]

    def of(self, engine: str) -> tuple[float, ...]:
        """In the order of TERMS, the engine's factor applied."""
        factor = self.engines.get(engine, 1.0)
        return tuple(self.terms[term] * (factor if term in OVERHEADS else 1.0) for term in TERMS)


def seconds(work: Work, batch: Batch, coefficients: Coefficients) -> dict[str, float]:
    """Where the time of an iteration goes, by the names of BOTTLENECKS; their sum is its length."""
    parts = dict(zip(TERMS, work.terms(batch), strict=True))
    scale = dict(zip(TERMS, coefficients.of(work.plan.engine), strict=True))
    return {name: sum(parts[term] * scale[term] for term in terms) for name, terms in BOTTLENECKS.items()}
