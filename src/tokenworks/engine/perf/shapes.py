"""The shapes of open models: what an iteration reads, computes and keeps for each of them.

Counts leave out norms, biases and routers, which together stay below 1 % of any model here.
"""

from __future__ import annotations

import csv
import re
from functools import cache
from importlib.resources import files

import msgspec

from tokenworks.core.errors import UnknownModel, did_you_mean
from tokenworks.core.words import Word


class Shape(Word, frozen=True, kw_only=True):
    """One transformer; zero: it has no such part."""

    name: str
    aliases: tuple[str, ...]
    layers: int
    hidden: int
    heads: int
    kv_heads: int = 0
    """Of grouped-query attention; none where attention is latent (``kv_rank``)."""
    head_dim: int = 0
    gated_attention: int = 0
    """1: attention has an output gate as large as its queries."""
    q_rank: int = 0
    kv_rank: int = 0
    nope_dim: int = 0
    rope_dim: int = 0
    v_dim: int = 0
    intermediate: int = 0
    mlp_matrices: int
    """3 with a gate, 2 without."""
    moe_layers: int = 0
    experts: int = 0
    active_experts: int = 0
    shared_experts: int = 0
    expert_intermediate: int = 0
    linear_layers: int = 0
    """Layers with a fixed state (gated delta rule) instead of a growing cache."""
    linear_k_heads: int = 0
    linear_v_heads: int = 0
    linear_head_dim: int = 0
    window_layers: int = 0
    """Layers that see the last ``window_tokens`` only."""
    window_tokens: int = 0
    sparse_tokens: int = 0
    """Each token attends to so many chosen ones, though all are kept."""
    vocab: int
    tied: int = 0
    """1: input and output embedding are one matrix."""
    context_tokens: int
    total_millions: int
    """As published; a test compares it with ``total``."""
    active_millions: int | None = None
    source: str

    @property
    def attention(self) -> int:
        """Weights of one attention layer."""
        if self.kv_rank:
            query = self.heads * (self.nope_dim + self.rope_dim)
            queries = self.q_rank * (self.hidden + query) if self.q_rank else self.hidden * query
            expanded = self.kv_rank * self.heads * (self.nope_dim + self.v_dim)
            kept = self.hidden * (self.kv_rank + self.rope_dim)
            return queries + kept + expanded + self.heads * self.v_dim * self.hidden
        return self.hidden * self.head_dim * (self.heads * (2 + self.gated_attention) + 2 * self.kv_heads)

    def adapter_bytes(self, rank: int) -> int:
        """A LoRA adapter of that rank on the four projections of every attention layer, in 16 bits."""
        queries = self.heads * (self.v_dim or self.head_dim)
        keys = self.kv_heads * self.head_dim or self.kv_rank
        return 2 * rank * self.layers * (4 * self.hidden + 2 * queries + 2 * keys)

    @property
    def expert(self) -> int:
        """Weights of one routed expert of one layer."""
        return 3 * self.hidden * self.expert_intermediate

    @property
    def common(self) -> int:
        """Weights that every token passes, with the output head and without the input embedding."""
        linear = self.hidden * self.linear_head_dim * (2 * self.linear_k_heads + 3 * self.linear_v_heads)
        return (
            (self.layers - self.linear_layers) * self.attention
            + self.linear_layers * linear
            + (self.layers - self.moe_layers) * self.mlp_matrices * self.hidden * self.intermediate
            + self.moe_layers * self.shared_experts * self.expert
            + self.vocab * self.hidden
        )

    @property
    def total(self) -> int:
        """All weights."""
        return self.common + self.moe_layers * self.experts * self.expert + (1 - self.tied) * self.vocab * self.hidden

    @property
    def active(self) -> int:
        """Weights that one token passes, with the output head and without the input embedding."""
        return self.common + self.moe_layers * self.active_experts * self.expert


@cache
def shapes() -> dict[str, Shape]:
    """All known shapes by name, read once."""
    text = files(__package__).joinpath("data", "models.csv").read_text(encoding="utf-8")
    rows = ({**row, "aliases": row["aliases"].split()} for row in csv.DictReader(text.splitlines()))
    found = [msgspec.convert({k: v for k, v in row.items() if v}, Shape, strict=False) for row in rows]
    return {shape.name: shape for shape in found}


@cache
def _names() -> dict[str, Shape]:
    names = {name.lower(): shape for shape in shapes().values() for name in (shape.name, *shape.aliases)}
    return names | {name.rpartition("/")[2]: shape for name, shape in names.items()}


def shape_named(name: str) -> Shape:
    """By name or alias, in any case, without owner or format too. Raises UnknownModel with the nearest known one."""
    word, known = name.lower(), _names()
    bare = re.sub(r"-(fp8|fp4|nvfp4|mxfp4|int4|awq|bf16)(-v\d)?$", "", word.rpartition("/")[2])
    if found := known.get(word) or known.get(bare):
        return found
    hint = did_you_mean(word, known, "known: " + ", ".join(sorted(shapes())))
    raise UnknownModel(f"no shape is known of model {name!r}", hint=hint)
