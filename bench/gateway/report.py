"""The figures side by side, and the ratios between them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import median

LEVELS = (1, 32, 256)
"""Connections at once."""
STREAM_CONNECTIONS = 32
Figures = dict[str, float | int | str]
TITLES = {
    "direct": "direct, no gateway",
    "direct_apart": "direct, mock on the gateway's core",
    "ours_books_off": "Tokenworks, books off",
    "ours_books_on": "Tokenworks, books on",
    "ours_plain": "Tokenworks, books on, not compiled",
    "ours_durable": "Tokenworks, books on, `durable`",
    "vllm_router": "vllm-router 0.1.17",
    "vllm_router_cache_aware": "vllm-router, its own policy",
    "sglang_router": "sglang-router 0.3.2",
    "sglang_router_cache_aware": "sglang-router, its own policy",
    "smg": "smg 1.13.0",
    "portkey": "Portkey 1.15.2",
    "litellm": "LiteLLM 1.106.2",
}


def middle(rounds: Sequence[Figures]) -> Figures:
    """Of several rounds, the median of each number; of words, the last."""
    keys = dict.fromkeys(key for figures in rounds for key in figures)
    found: Figures = {}
    for key in keys:
        values = [figures[key] for figures in rounds if key in figures]
        numbers = [value for value in values if not isinstance(value, str)]
        found[key] = round(median(numbers), 1) if len(numbers) == len(values) else values[-1]
    return found


def ratios(figures: Figures, peers: Iterable[str]) -> Figures:
    """What the comparison comes to. Each measure is held against the peer that is best at it."""
    number = {key: value for key, value in figures.items() if not isinstance(value, str)}

    def each(metric: str) -> dict[str, float]:
        return {peer: number[f"{peer}.{metric}"] for peer in peers if number.get(f"{peer}.{metric}")}

    found: Figures = {}
    ours, rps = number.get("ours_books_on.rps_c32"), each("rps_c32")
    if ours and rps:
        best = max(rps, key=lambda peer: rps[peer])
        found |= {"best_peer": best, "ratio_rps_c32_best_peer": round(ours / rps[best], 2)}
        if "litellm" in rps:
            found["ratio_rps_c32_litellm"] = round(ours / rps["litellm"], 1)
    direct_us, ours_us = number.get("direct.p50_us_c1"), number.get("ours_books_on.p50_us_c1")
    added = [us - direct_us for us in each("p50_us_c1").values()] if direct_us else []
    if direct_us and ours_us and added and min(added) > 0:
        found["added_p50_ratio_best_peer"] = round((ours_us - direct_us) / min(added), 2)
    slow, slow_ours = each("p99_us_c256"), number.get("ours_books_on.p99_us_c256")
    if slow and slow_ours:
        found["p99_c256_ratio_best_peer"] = round(slow_ours / min(slow.values()), 2)
    streams, streams_ours = number.get("direct.stream_rps_c32"), number.get("ours_books_on.stream_rps_c32")
    if streams and streams_ours:
        found["stream_ratio_direct"] = round(streams_ours / streams, 2)
    return found


def table(figures: Mapping[str, float | int | str]) -> str:
    """A Markdown table, a line for each gateway in the order of the titles."""
    heads = ["", *(f"{level} conn.: req/s, p50, p99 µs" for level in LEVELS), "streams/s", "CPU µs/chunk", "RSS MB"]
    rows = []
    for name, title in TITLES.items():
        if f"{name}.absent" in figures:
            rows.append([title, f"absent: {figures[f'{name}.absent']}"[:160], *[""] * (len(heads) - 2)])
        elif any(key.startswith(f"{name}.") for key in figures):
            cells = [
                ", ".join(_cell(figures, f"{name}.{metric}_c{level}") for metric in ("rps", "p50_us", "p99_us"))
                for level in LEVELS
            ]
            more = ("stream_rps_c32", "cpu_us_per_chunk", "rss_mb")
            rows.append([title, *cells, *(_cell(figures, f"{name}.{metric}") for metric in more)])
    whole = [row for row in [heads, *rows] if not row[1].startswith("absent")]
    widths = [max(len(row[column]) for row in whole) for column in range(len(heads))]
    rule = ["-" * width for width in widths]
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in [heads, rule, *rows]
    )


def _cell(figures: Mapping[str, float | int | str], key: str) -> str:
    value = figures.get(key)
    if value is None:
        return "–"
    return str(value) if isinstance(value, str) else f"{value:,.0f}" if value >= 100 else f"{value:.1f}"
