"""What is modelled: a model of some precision, spread over equal devices, run by an engine."""

from __future__ import annotations

from functools import cached_property

from tokenworks.core.errors import BadRequest, did_you_mean
from tokenworks.core.words import Word
from tokenworks.engine.perf.shapes import Shape

WEIGHT_BYTES = {"bf16": 2.0, "fp8": 1.0, "fp4": 0.5625, "int4": 0.53}
"""A weight with its share of block scales: NVFP4 has one byte per 16, grouped int4 two per 64 (rounded)."""
MEMORY_SHARE = 0.9
"""Part of a device's memory that engines take (``gpu_memory_utilization`` of vLLM)."""
RESERVE_BYTES = 2e9
"""Activations, graphs and communication buffers of one device."""


class DeviceSpec(Word, frozen=True):
    """The figures of one device that the model needs, as a data sheet gives them. None: unknown or not there."""

    id: str
    memory_bytes: float
    bandwidth_gb_s: float
    bf16_tflops: float
    fp8_tflops: float | None = None
    fp4_tflops: float | None = None
    link_gb_s: float | None = None
    """To the other devices of the node, both directions together."""
    board_w: float | None = None

    def tflops(self, precision: str) -> float:
        """Dense peak for weights of this precision; a format without units of its own is computed in 16 bits."""
        return {"fp8": self.fp8_tflops, "fp4": self.fp4_tflops}.get(precision) or self.bf16_tflops


class Plan(Word, frozen=True, dict=True):
    """One replica: ``tp`` devices share each copy of the attention layers, and there are ``dp`` such copies.

    Experts are split over all devices, by tensor or, for the part ``ep``, whole.
    """

    shape: Shape
    device: DeviceSpec
    precision: str = "fp8"
    engine: str = "vllm"
    tp: int = 1
    dp: int = 1
    ep: int = 1

    def __post_init__(self) -> None:
        if self.precision not in WEIGHT_BYTES:
            hint = did_you_mean(self.precision, WEIGHT_BYTES, "known: " + ", ".join(WEIGHT_BYTES))
            raise BadRequest(f"no precision {self.precision!r}", hint=hint)
        if min(self.tp, self.dp, self.ep) < 1 or self.gpus % self.ep:
            raise BadRequest(f"tp {self.tp}, dp {self.dp} and ep {self.ep} do not split {self.gpus} devices")

    @property
    def gpus(self) -> int:
        """Devices of the replica."""
        return self.tp * self.dp

    @property
    def common_precision(self) -> str:
        """Of all but the routed experts: 4-bit releases of expert models keep the rest at 16 bits."""
        return "bf16" if self.shape.experts and self.precision in ("fp4", "int4") else self.precision

    @cached_property
    def weight_bytes(self) -> float:
        """On each device; the input embedding is kept in 16 bits."""
        shape = self.shape
        experts = shape.moe_layers * shape.experts * shape.expert * WEIGHT_BYTES[self.precision]
        embedding = 2.0 * (1 - shape.tied) * shape.vocab * shape.hidden
        return (shape.common * WEIGHT_BYTES[self.common_precision] + embedding) / self.tp + experts / self.gpus

    @property
    def kv_layer_bytes(self) -> float:
        """Of one token in one attention layer on one device; latent caches and few heads are copied, not split.

        In 8 bits when the weights are quantised, as in the measured engines.
        """
        shape, element = self.shape, 2.0 if self.precision == "bf16" else 1.0
        if shape.kv_rank:
            return (shape.kv_rank + shape.rope_dim) * element
        return 2 * shape.head_dim * shape.kv_heads / min(self.tp, shape.kv_heads) * element

    @property
    def growing_layers(self) -> int:
        """Attention layers whose cache grows with the context."""
        return self.shape.layers - self.shape.linear_layers - self.shape.window_layers

    def sequence_bytes(self, tokens: int) -> float:
        """Cache of one sequence of that length on each device of its copy."""
        shape = self.shape
        cached = self.growing_layers * tokens + shape.window_layers * min(tokens, shape.window_tokens)
        state = shape.linear_layers * shape.linear_v_heads * shape.linear_head_dim**2 * 4.0 / self.tp
        return cached * self.kv_layer_bytes + state

    @cached_property
    def kv_bytes(self) -> float:
        """Room for caches on each device. Raises BadRequest when the weights leave none."""
        if (usable := self.device.memory_bytes * MEMORY_SHARE - RESERVE_BYTES) <= self.weight_bytes:
            raise BadRequest(
                f"{self.shape.name} at {self.precision} needs {self.weight_bytes / 1e9:.0f} GB on each of {self.gpus} "
                f"{self.device.id}, which have {usable / 1e9:.0f} GB free",
                hint="take more devices, a larger tp, or a smaller precision",
            )
        return usable - self.weight_bytes

    def sequences_max(self, tokens: int) -> int:
        """How many sequences of that length fit at once: the KV limit of the whole replica."""
        return self.dp * int(self.kv_bytes / self.sequence_bytes(tokens))
