"""Shapes, plans and iterations against published counts, hand-made figures and common sense."""

from __future__ import annotations

from math import comb

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenworks.core.errors import BadRequest, NotFound, UnknownModel
from tokenworks.device.catalogue import accelerator
from tokenworks.engine.perf.devices import device_named, device_spec
from tokenworks.engine.perf.iteration import BOTTLENECKS, TERMS, Batch, Work, seconds
from tokenworks.engine.perf.plan import DeviceSpec, Plan
from tokenworks.engine.perf.shapes import Shape, shape_named, shapes
from tokenworks.engine.perf.shipped import shipped

H100 = DeviceSpec(
    id="nvidia-h100-sxm",
    memory_bytes=80 * 2**30,
    bandwidth_gb_s=3350,
    bf16_tflops=989,
    fp8_tflops=1979,
    link_gb_s=900,
    board_w=700,
)


def work(model: str, precision: str = "bf16", context: float = 2_000, *, tp: int = 1, dp: int = 1, ep: int = 1) -> Work:
    plan = Plan(shape=shape_named(model), device=H100, precision=precision, tp=tp, dp=dp, ep=ep)
    return Work(plan=plan, typical_context=context)


@pytest.mark.parametrize("shape", shapes().values(), ids=lambda shape: shape.name)
def test_a_shape_has_as_many_weights_as_published(shape: Shape) -> None:
    """Within 2 % in all; active ones are published in round numbers, with or without embeddings."""
    assert shape.total / 1e6 == pytest.approx(shape.total_millions, rel=0.02)
    if shape.active_millions:
        assert shape.active / 1e6 == pytest.approx(shape.active_millions, rel=0.2)
    assert shape.source
    assert max(shape.moe_layers, shape.linear_layers + shape.window_layers) <= shape.layers


def test_the_catalogue_covers_the_kinds() -> None:
    """Dense and expert models, grouped and latent, windowed, sparse and linear attention; names are unique."""
    known = list(shapes().values())
    assert len(known) >= 25
    kinds = ("experts", "kv_rank", "window_layers", "sparse_tokens", "linear_layers", "shared_experts", "tied")
    assert all(any(getattr(shape, kind) for shape in known) for kind in kinds)
    names = [name.lower() for shape in known for name in (shape.name, *shape.aliases)]
    assert len(names) == len(set(names))


def test_a_model_goes_by_its_name_in_any_case_or_by_an_alias() -> None:
    """An unknown one is an error with the nearest."""
    assert shape_named("DeepSeek-AI/deepseek-R1") is shape_named("deepseek-v3")
    with pytest.raises(UnknownModel, match="did you mean 'qwen3-32b'"):
        shape_named("qwen3-23b")


def test_a_device_goes_by_a_part_of_its_id_that_is_its_own() -> None:
    """Several are an error that names them, an unknown one an error with the nearest, and no figure is invented."""
    assert device_named("B200") == device_named("nvidia-b200-sxm")
    assert device_named("h100_sxm").fp8_tflops == 1979
    with pytest.raises(BadRequest, match="nvidia-h100-sxm or nvidia-h100-pcie"):
        device_named("h100")
    with pytest.raises(NotFound, match="did you mean 'amd-mi300x'"):
        device_named("mi300y")
    with pytest.raises(BadRequest, match="does not know 16-bit speed of mthreads-s5000"):
        device_spec(accelerator("mthreads-s5000"))


def test_an_unknown_precision_and_a_split_that_does_not_add_up_are_errors() -> None:
    """What is wrong, and the nearest right word."""
    with pytest.raises(BadRequest, match="did you mean 'fp8'"):
        work("qwen3-8b", "fp9")
    with pytest.raises(BadRequest, match="do not split 4 devices"):
        work("qwen3-30b-a3b", tp=4, ep=3)


def test_caches_have_the_size_that_engines_allocate() -> None:
    """By hand: 2·8·128·2 bytes in each of 80 layers; 576·2 in each of 61, on every device; windows keep 128 tokens."""
    assert work("llama-3.1-70b").plan.sequence_bytes(1_000) == 1_000 * 2 * 8 * 128 * 2 * 80
    assert work("llama-3.1-70b", tp=4).plan.sequence_bytes(1_000) == 1_000 * 2 * 8 * 128 * 2 * 80 / 4
    assert work("llama-3.1-70b", tp=16).plan.kv_layer_bytes == 2 * 128 * 2
    assert work("deepseek-v3", tp=8).plan.sequence_bytes(1_000) == 1_000 * 576 * 2 * 61
    assert work("gpt-oss-120b").plan.sequence_bytes(1_000) == (18 * 1_000 + 18 * 128) * 2 * 8 * 64 * 2


def test_the_kv_limit_is_what_the_weights_leave() -> None:
    """Llama-3.1-8B in 16 bits on 80 GiB: 0.9 of it, less 2 GB and 16.06 GB of weights, at 131,072 bytes a token."""
    plan = work("llama-3.1-8b").plan
    assert plan.sequences_max(2_048) == int((80 * 2**30 * 0.9 - 2e9 - 2 * 8.030e9) / (131_072 * 2_048))
    with pytest.raises(BadRequest, match="needs 141 GB on each of 1 nvidia-h100-sxm"):
        work("llama-3.1-70b").plan.sequences_max(2_048)


def test_a_batch_of_one_reads_its_weights_once() -> None:
    """Llama-3.1-8B without its input embedding at 3,350 GB/s; the terms of a device alone have no communication."""
    terms = dict(zip(TERMS, work("llama-3.1-8b").terms(Batch(sequences=1, context=100)), strict=True))
    assert terms["weights"] == pytest.approx(2 * (8.030e9 - 128_256 * 4_096) / 3350e9, rel=1e-3)
    assert terms["kv"] == pytest.approx(100 * 131_072 / 3350e9)
    assert terms["decode_communication"] == terms["expert_us"] == terms["dequantise"] == 0.0


@pytest.mark.parametrize("sequences", [1, 2, 5])
def test_experts_are_read_as_often_as_chance_has_them_chosen(sequences: int) -> None:
    """The share of experts that no token chose, counted over all choices."""
    shape = shape_named("mixtral-8x7b")
    missed = (comb(shape.experts - 1, shape.active_experts) / comb(shape.experts, shape.active_experts)) ** sequences
    assert work("mixtral-8x7b").cover(Batch(sequences=sequences, context=0)) == pytest.approx(1 - missed)


MODELS = st.sampled_from(sorted(shapes()))
SPLITS = st.sampled_from([{"tp": 1}, {"tp": 4}, {"tp": 8}, {"tp": 1, "dp": 8, "ep": 8}, {"tp": 2, "dp": 4}])
PRECISIONS = st.sampled_from(["bf16", "fp8", "fp4", "int4"])


@given(model=MODELS, split=SPLITS, precision=PRECISIONS, n=st.integers(1, 512), prompt=st.integers(0, 8_192))
def test_more_work_takes_longer(model: str, split: dict[str, int], precision: str, n: int, prompt: int) -> None:
    """Of any model, in each kind of work; and the parts make the whole."""
    one, made = work(model, precision, **split), shipped().iteration
    less = seconds(one, Batch(sequences=n, context=500.0 * n, prompt=prompt, prompt_context=100.0 * prompt), made)
    more = seconds(
        one, Batch(sequences=n + 1, context=501.0 * n, prompt=prompt + 64, prompt_context=101.0 * prompt), made
    )
    assert less.keys() == BOTTLENECKS.keys()
    assert all(0 <= less[part] <= more[part] for part in less)
    assert sum(less.values()) < sum(more.values())


def test_tensor_parallel_halves_reading_and_adds_talking() -> None:
    """The same batch on one, two and four devices."""
    batch, made = Batch(sequences=8, context=8_000), shipped().iteration
    found = [seconds(work("llama-3.1-8b", tp=tp), batch, made) for tp in (1, 2, 4)]
    for wide, narrow in zip(found[1:], found, strict=False):
        assert wide["weights"] == pytest.approx(narrow["weights"] / 2)
        assert wide["kv"] == pytest.approx(narrow["kv"] / 2)
        assert wide["communication"] > narrow["communication"]


def test_copies_of_attention_split_a_latent_cache_and_tensor_parallel_does_not() -> None:
    """Why expert models with latent attention are served with data-parallel attention."""
    batch, made = Batch(sequences=64, context=64_000), shipped().iteration
    split, copied = (
        seconds(work("deepseek-v3", "fp8", **sizes), batch, made)["kv"] for sizes in ({"tp": 1, "dp": 8}, {"tp": 8})
    )
    assert copied == pytest.approx(8 * split)


def test_sparse_and_windowed_layers_stop_growing() -> None:
    """What a token reads beyond the window costs nothing more."""
    batch, made = Batch(sequences=8, context=8 * 100_000), shipped().iteration
    full, sparse = (seconds(work(m, "fp8", 100_000, tp=8), batch, made)["kv"] for m in ("deepseek-v3", "deepseek-v3.2"))
    assert full == pytest.approx(sparse * 100_000 / 2_048)
    assert work("gpt-oss-120b", context=1e5).terms(batch)[2] < 0.51 * work("gpt-oss-120b").plan.kv_layer_bytes * (
        36 * 8e5 / 3350e9
    )


def test_an_engine_that_the_tables_lack_is_an_average_one() -> None:
    """And so are its overheads; the error that is stated is then that of rows left out."""
    made, batch = shipped(), Batch(sequences=8, context=8_000)
    unknown, average = (
        Work(plan=Plan(shape=shape_named("qwen3-32b"), device=H100, engine=engine), typical_context=1_000)
        for engine in ("another", "yet-another")
    )
    assert seconds(unknown, batch, made.iteration) == seconds(average, batch, made.iteration)
    known = Plan(shape=shape_named("qwen3-32b"), device=H100)
    assert made.tpot_error(known) == made.errors["tpot_sim_median_err"]
    assert made.tpot_error(unknown.plan) == made.errors["tpot_leave_engine_out_err"]
    assert made.tpot_error(Plan(shape=shape_named("qwen3-8b"), device=device_named("amd-mi300x"))) is None
