from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenworks.core.words import BUCKETS, Usage
from tokenworks.engine.usage import COUNT_MAX, OLLAMA_PROMPT_UNKNOWN, Shape, read

SHAPES: tuple[Shape, ...] = ("openai", "anthropic", "vllm", "llamacpp", "ollama")
NAMES = [
    "usage",
    "prompt_tokens",
    "completion_tokens",
    "total_tokens",
    "input_tokens",
    "output_tokens",
    "prompt_tokens_details",
    "timings",
    "input_tokens_details",
    "cached_tokens",
    "reasoning_tokens",
    "cache_read_input_tokens",
    "cache_creation",
    "cache_creation_input_tokens",
    "ephemeral_5m_input_tokens",
    "cache_n",
    "prompt_n",
    "predicted_n",
    "prompt_eval_count",
    "eval_count",
]
buckets = st.fixed_dictionaries(dict.fromkeys(BUCKETS, st.integers(0, 10**9)))
leaf = st.none() | st.booleans() | st.integers(-5, 50) | st.just(COUNT_MAX + 1) | st.text(max_size=3)
reports = st.recursive(
    leaf,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=8),
    max_leaves=20,
)


def normalise(shape: Shape, report: object) -> Usage | None:
    return read(shape, report).usage


@given(buckets)
def test_openais_shape_loses_nothing(counts: dict[str, int]) -> None:
    """Inclusive counts written from any buckets read back as the same buckets, and their sum must be the total."""
    usage = Usage(**counts)  # type: ignore[arg-type]  # the buckets are all integers
    inside = {"cached_tokens": usage.cached_input, "cache_write_tokens": usage.cache_write}
    inside |= {f"{kind}_tokens": counts[kind] for kind in ("image", "audio", "video")}
    told = {
        "prompt_tokens": usage.total() - usage.output - usage.reasoning,
        "completion_tokens": usage.output + usage.reasoning,
        "total_tokens": usage.total(),
        "prompt_tokens_details": inside,
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning},
    }
    assert normalise("openai", told) == usage
    assert normalise("openai", told | {"total_tokens": usage.total() + 1}) is None


@given(buckets)
def test_anthropics_caches_stand_beside_its_input(counts: dict[str, int]) -> None:
    """Reads and writes are not taken out of the input a second time."""
    told = {
        "input_tokens": counts["input"],
        "cache_read_input_tokens": counts["cached_input"],
        "cache_creation_input_tokens": counts["cache_write"],
        "output_tokens": counts["output"],
    }
    kept = {bucket: counts[bucket] for bucket in ("input", "cached_input", "cache_write", "output")}
    assert normalise("anthropic", told) == Usage(**kept)  # type: ignore[arg-type]  # the buckets are all integers


@given(st.sampled_from(SHAPES), reports)
def test_no_report_raises_or_gives_a_negative_bucket(shape: Shape, report: Any) -> None:
    """Engines may say anything: the answer is a usage of counts, or none and a reason."""
    reading = read(shape, report)
    assert (reading.usage is None) <= (reading.reason is not None)
    if reading.usage is not None:
        assert reading.usage.certainty == "exact"
        assert all(getattr(reading.usage, bucket) >= 0 for bucket in BUCKETS)


@given(st.integers(0, 1000), st.integers(0, 1000), st.integers(0, 1000), st.integers(0, 1000))
def test_the_same_request_reads_the_same_in_every_shape(fresh: int, cached: int, made: int, thought: int) -> None:
    """F15: inclusive and exclusive conventions of cached tokens end in the same buckets."""
    chat = {
        "prompt_tokens": fresh + cached,
        "completion_tokens": made,
        "prompt_tokens_details": {"cached_tokens": cached},
    }
    responses = {
        "input_tokens": fresh + cached,
        "input_tokens_details": {"cached_tokens": cached},
        "output_tokens": made + thought,
        "output_tokens_details": {"reasoning_tokens": thought},
        "total_tokens": fresh + cached + made + thought,
    }
    anthropic = {"input_tokens": fresh, "cache_read_input_tokens": cached, "output_tokens": made}
    timings = {"timings": {"cache_n": cached, "prompt_n": fresh, "predicted_n": made}}
    wanted = Usage(input=fresh, cached_input=cached, output=made)
    assert normalise("openai", {"usage": chat}) == normalise("vllm", chat) == wanted
    assert normalise("anthropic", anthropic) == wanted
    assert normalise("llamacpp", timings) == normalise("llamacpp", timings["timings"]) == wanted
    assert normalise("llamacpp", timings | {"usage": chat}) == wanted
    assert normalise("llamacpp", {"usage": chat}) == wanted
    assert normalise("openai", responses) == Usage(input=fresh, cached_input=cached, output=made, reasoning=thought)


@pytest.mark.parametrize(
    ("shape", "report", "reason"),
    [
        ("openai", {"prompt_tokens": 3}, "completion_tokens is missing"),
        ("openai", {"prompt_tokens": -1, "completion_tokens": 1}, "prompt_tokens is not a count"),
        ("openai", {"prompt_tokens": 1.5, "completion_tokens": 1}, "prompt_tokens is not a count"),
        ("openai", {"prompt_tokens": True, "completion_tokens": 1}, "prompt_tokens is not a count"),
        ("openai", {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 5}, "total_tokens says 5"),
        (
            "vllm",
            {"prompt_tokens": 3, "completion_tokens": 1, "prompt_tokens_details": {"cached_tokens": 4}},
            "the details of prompt_tokens exceed it",
        ),
        (
            "openai",
            {"prompt_tokens": 3, "completion_tokens": 1, "completion_tokens_details": {"reasoning_tokens": 2}},
            "reasoning_tokens exceeds completion_tokens",
        ),
        ("openai", {"prompt_tokens": 3, "completion_tokens": 1, "prompt_tokens_details": 7}, "is not an object"),
        (
            "anthropic",
            {
                "input_tokens": 1,
                "output_tokens": 1,
                "cache_creation_input_tokens": 5,
                "cache_creation": {"ephemeral_5m_input_tokens": 4},
            },
            "cache_creation_input_tokens says 5",
        ),
        (
            "llamacpp",
            {
                "timings": {"cache_n": 1, "prompt_n": 1, "predicted_n": 1},
                "usage": {"prompt_tokens": 3, "completion_tokens": 1},
            },
            "prompt_tokens says 3",
        ),
        (
            "llamacpp",
            {"timings": {"prompt_n": 4, "predicted_n": 1}, "usage": {"prompt_tokens": 3, "completion_tokens": 1}},
            "prompt_n exceeds prompt_tokens",
        ),
        (
            "llamacpp",
            {
                "timings": {"cache_n": 2, "prompt_n": 1, "predicted_n": 1},
                "usage": {
                    "prompt_tokens": 3,
                    "completion_tokens": 1,
                    "prompt_tokens_details": {"cached_tokens": 1},
                },
            },
            "cached_tokens and cache_n differ",
        ),
        ("ollama", {"done": False, "eval_count": 1}, "not done"),
        ("ollama", {"done": True}, "are missing"),
    ],
)
def test_a_report_that_contradicts_itself_is_refused_with_its_reason(
    shape: Shape, report: dict[str, Any], reason: str
) -> None:
    """Negative, inconsistent or incomplete reports bill nobody, and the reason names the field."""
    found = read(shape, report)
    assert found.usage is None
    assert reason in (found.reason or "")


def test_what_is_no_object_is_no_report() -> None:
    """A list, a number or nothing."""
    odd: list[object] = [None, [], 3, "x"]
    assert [read("openai", each).usage for each in odd] == [None] * 4


def test_what_says_nothing_about_tokens_says_nothing_else() -> None:
    """Null details are absent ones, and timings without counts leave the usage as it stands."""
    usage = {"prompt_tokens": 2, "completion_tokens": 3, "prompt_tokens_details": None}
    report = {"usage": usage, "timings": {"prompt_ms": 1.5, "predicted_ms": 2.5}}
    assert normalise("openai", report) == normalise("llamacpp", report) == Usage(input=2, output=3)


def test_old_llama_servers_show_reuse_only_as_a_difference() -> None:
    """Without cache_n the reused part is what prompt_n lacks of prompt_tokens."""
    report = {"timings": {"prompt_n": 4, "predicted_n": 2}, "usage": {"prompt_tokens": 10, "completion_tokens": 2}}
    assert normalise("llamacpp", report) == Usage(input=4, cached_input=6, output=2)


def test_ollamas_absent_prompt_count_is_told_and_not_guessed() -> None:
    """A wholly cached prompt has no count: the output is exact, and the reason says what is not billed."""
    assert read("ollama", {"done": True, "eval_count": 7}) == (Usage(output=7), OLLAMA_PROMPT_UNKNOWN)
    assert read("ollama", {"prompt_eval_count": 3, "eval_count": 7}) == (Usage(input=3, output=7), None)


def test_cache_writes_by_lifetime_sum_up() -> None:
    """Anthropic may state only the split by lifetime."""
    report = {
        "input_tokens": 1,
        "output_tokens": 2,
        "cache_creation": {"ephemeral_5m_input_tokens": 3, "ephemeral_1h_input_tokens": 4},
    }
    assert normalise("anthropic", report) == Usage(input=1, output=2, cache_write=7)
