"""``tokenworks perf`` as a user meets it."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from tokenworks.cli import main

ASKED = ("perf", "llama-3.1-70b", "--device", "h100-sxm", "--gpus", "8", "--tp", "4", "--concurrency", "32")


def run(*words: str) -> int:
    """The exit status of a command line."""
    try:
        return main(words)
    except SystemExit as done:
        return int(done.code or 0)


def asked(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    assert run(*words, "--json") == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_it_prints_what_was_promised(capsys: pytest.CaptureFixture[str]) -> None:
    """Speed, latency, energy, cost, KV limit, breakdown, errors and provenance; replicas share the users."""
    found = asked(capsys, *ASKED, "--cost-per-hour", "2.50 USD")
    assert (found["replicas"], found["gpus"], found["provenance"]) == (2, 8, "modelled")
    assert found["output_tokens_s_per_gpu"] == pytest.approx(found["output_tokens_s"] / 8)
    assert found["j_per_output_token"] == pytest.approx(found["power_w"] / found["output_tokens_s"])
    assert found["output_tokens_s_per_kw"] == pytest.approx(1_000 / found["j_per_output_token"])
    assert found["cost_per_million_output_tokens"] == pytest.approx(8 * 2.5 / 3600 / found["output_tokens_s"] * 1e6)
    assert sum(found["breakdown"].values()) == pytest.approx(found["iteration_ms"])
    assert found["mean_batch"] <= 32 < found["kv_limit_sequences"]
    assert 0 < found["tpot_error"] < 0.15 < found["ttft_error"] < 0.3
    one = asked(capsys, *ASKED[:4], "--gpus", "4", "--concurrency", "16")
    assert found["output_tokens_s"] == pytest.approx(2 * one["output_tokens_s"])
    assert found["ttft_ms"] == pytest.approx(one["ttft_ms"])


def test_without_a_price_the_cost_is_unknown(capsys: pytest.CaptureFixture[str]) -> None:
    """And not zero; nor is the error of a vendor that nothing was fitted to."""
    assert asked(capsys, *ASKED)["cost_per_million_output_tokens"] is None
    assert asked(capsys, "perf", "qwen3-8b", "--device", "mi300x")["tpot_error"] is None
    assert run(*ASKED) == 0
    shown = capsys.readouterr().out
    assert "cost per million output tokens" in shown
    assert "per-layer overhead ms" in shown


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (("perf", "llama-3.1-7b", "--device", "h100-sxm"), "did you mean 'llama-3.1-70b'"),
        (("perf", "qwen3-8b", "--device", "nvidia-h100-sxn"), "did you mean 'nvidia-h100-sxm'"),
        (("perf", "qwen3-8b", "--device", "h100-sxm", "--precision", "fp9"), "did you mean 'fp8'"),
        (("perf", "qwen3-8b", "--device", "h100-sxm", "--gpus", "3", "--tp", "2"), "change --gpus"),
        (("perf", "deepseek-r1", "--device", "h100-sxm"), "take more devices"),
    ],
)
def test_a_wrong_word_is_one_sentence_and_a_hint(
    capsys: pytest.CaptureFixture[str], words: tuple[str, ...], hint: str
) -> None:
    """With the nearest right word."""
    assert run(*words) != 0
    assert hint in capsys.readouterr().err


def test_the_command_line_alone_loads_no_performance_model() -> None:
    """So that it starts as fast as before."""
    code = "from tokenworks.cli import main; import sys; sys.exit(any('engine.perf' in name for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0
