"""Reading metrics pages and rate-limit headers, and doubting them."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from tokenworks.core.errors import EngineFailed
from tokenworks.core.units import NS_PER_S
from tokenworks.engine.adapter import Load
from tokenworks.engine.exposition import LLAMACPP, SGLANG, VLLM, Dialect, load_of
from tokenworks.engine.rate import PAUSE_S_MAX, retry_after_s, room_of
from tokenworks.engine.watch import LIES_MAX, Doubt, Idleness, Silence

PAGES = Path(__file__).resolve().parents[2] / "fixtures" / "engine"


@pytest.mark.parametrize(
    ("page", "dialect", "load"),
    [
        ("vllm-0.32", VLLM, Load(running=3, waiting=0, kv_permille=11, prefix_hit_permille=706, asleep=False)),
        ("vllm-0.9", VLLM, Load(running=10, waiting=3, kv_permille=900, prefix_hit_permille=250)),
        ("vllm-0.6", VLLM, Load(running=4, waiting=3, kv_permille=305, prefix_hit_permille=125)),
        ("sglang-0.5", SGLANG, Load(running=162, waiting=2826, kv_permille=280, prefix_hit_permille=8)),
        ("llamacpp-2026.10", LLAMACPP, Load(running=0, waiting=0, prefix_hit_permille=659)),
    ],
)
def test_versions_differ_and_the_words_do_not(page: str, dialect: Dialect, load: Load) -> None:
    """Several engines behind one page add up, and the fullest of them says how full it is."""
    assert load_of((PAGES / f"{page}.prom").read_bytes(), dialect) == load


@pytest.mark.parametrize("page", sorted(PAGES.glob("*.prom")), ids=lambda path: path.stem)
def test_another_parser_reads_the_same(page: Path) -> None:
    """Prometheus' own parser is the oracle for running requests."""
    dialect = {"vllm": VLLM, "sglang": SGLANG, "llamacpp": LLAMACPP}[page.stem.split("-")[0]]
    families = text_string_to_metric_families(page.read_text())
    samples = [sample for family in families for sample in family.samples if sample.name == dialect.running[0]]
    assert load_of(page.read_bytes(), dialect).running == sum(sample.value for sample in samples)


@pytest.mark.parametrize(
    ("page", "says"),
    [
        (b"", "none of the series"),
        (b"<html>vllm:num_requests_running</html>", "none of the series"),
        (b"vllm:num_requests_running -1", "running -1"),
        (b"vllm:num_requests_running many", "running many"),
        (b"vllm:num_requests_running +Inf", "Inf"),
        (b"vllm:num_requests_running 1e30", "1e.30 requests"),
        (b"vllm:num_requests_running 1\nvllm:kv_cache_usage_perc 40", "40 of its memory"),
        (
            b"vllm:num_requests_running 1\nvllm:prefix_cache_hits_total 9\nvllm:prefix_cache_queries_total 8",
            "9 hits of 8",
        ),
    ],
)
def test_what_cannot_be_is_refused(page: bytes, says: str) -> None:
    """One impossible value, and nothing of the page is believed."""
    with pytest.raises(EngineFailed, match=says):
        load_of(page, VLLM)


@given(st.binary(max_size=300) | st.text(alphabet='vllm:num_requests_running{}" 0123456789.-e\n').map(str.encode))
def test_no_page_breaks_the_reader(page: bytes) -> None:
    """Any bytes are a load or a refusal in words."""
    try:
        load = load_of(b"vllm:num_requests_running 2\n" + page, VLLM)
    except EngineFailed:
        return
    assert load.running is not None


def headers(**said: str) -> list[tuple[bytes, bytes]]:
    return [(name.replace("_", "-").encode(), value.encode()) for name, value in said.items()]


DATE = "Sat, 21 Nov 2026 08:00:00 GMT"


@pytest.mark.parametrize(
    ("said", "seconds"),
    [
        (headers(retry_after="7"), 7),
        (headers(retry_after="0.5"), 0.5),
        (headers(retry_after_ms="250", retry_after="1"), 0.25),
        (headers(retry_after="Sat, 21 Nov 2026 08:01:30 GMT", date=DATE), 90),
        (headers(retry_after="Sat, 21 Nov 2026 07:00:00 GMT", date=DATE), 0),
        (headers(retry_after="86400"), PAUSE_S_MAX),
        (headers(retry_after="soon"), None),
        (headers(retry_after="Sat, 99 Nov 2026 08:01:30 GMT", date=DATE), None),
        (headers(retry_after="Sat, 21 Nov 2026 08:01:30 GMT"), None),
        ([], None),
    ],
)
def test_how_long_to_wait(said: list[tuple[bytes, bytes]], seconds: float | None) -> None:
    """Seconds, milliseconds or a time of day, by the server's own clock; never for ever."""
    assert retry_after_s(said) == seconds


@pytest.mark.parametrize(
    ("said", "room"),
    [
        ([], None),
        (headers(x_ratelimit_remaining_requests="12", x_ratelimit_reset_requests="1s"), Load(requests_left=12)),
        (
            headers(x_ratelimit_remaining_requests="0", x_ratelimit_reset_requests="6m0s"),
            Load(requests_left=0, resets_s=360),
        ),
        (
            headers(
                x_ratelimit_remaining_requests="5",
                x_ratelimit_remaining_tokens="0",
                x_ratelimit_reset_tokens="1m2.5s",
            ),
            Load(requests_left=0, resets_s=62.5),
        ),
        (
            headers(
                anthropic_ratelimit_requests_remaining="0",
                anthropic_ratelimit_requests_reset="2026-11-21T08:00:20Z",
                date=DATE,
            ),
            Load(requests_left=0, resets_s=20),
        ),
        (headers(x_ratelimit_remaining_requests="0"), Load(requests_left=0, resets_s=1)),
        (headers(x_ratelimit_remaining_requests="-3"), None),
    ],
)
def test_what_is_left_of_a_rate_limit(said: list[tuple[bytes, bytes]], room: Load | None) -> None:
    """OpenAI's durations and Anthropic's times in one word; tokens count when none is left."""
    assert room_of(said) == room


@given(st.dictionaries(st.sampled_from(["retry-after", "date", "x-ratelimit-remaining-requests"]), st.text()))
def test_no_header_breaks_the_reader(said: dict[str, str]) -> None:
    """Whatever a provider sends is a time within bounds, or nothing."""
    raw = [(name.encode(), value.encode(errors="replace")) for name, value in said.items()]
    seconds = retry_after_s(raw)
    assert seconds is None or 0 <= seconds <= PAUSE_S_MAX
    room_of(raw)


def test_silence_is_no_byte_while_somebody_waits() -> None:
    """It begins anew with every byte, and when nobody waits."""
    silence = Silence()
    heard = [None, 0, 0, 0, 5, 5, None, 5, 5]
    assert [silence.lasts_s(said, second * NS_PER_S) for second, said in enumerate(heard)] == [
        0, 0, 1, 2, 0, 1, 0, 0, 1,
    ]  # fmt: skip


def test_idleness_sees_what_came_between_two_looks() -> None:
    """A request that came and went while nobody looked counts as well."""
    idle = Idleness(0, 0)
    looks = [(0, 0), (1, 0), (0, 0), (0, 1), (0, 1), (0, 2), (0, 2)]
    assert [idle.lasts_ns(running, served, at) for at, (running, served) in enumerate(looks)] == [0, 0, 1, 0, 1, 0, 1]


def test_a_liar_is_doubted_after_five_looks() -> None:
    """The lag of a page is no lie; an engine that has honestly more to do than we know is none either."""
    doubt = Doubt()
    honest = [Load(running=0), Load(running=3, waiting=1), None, Load(asleep=False), Load(running=40)]
    assert not any(doubt.about(load, 4) for load in honest * 3)
    said = [doubt.about(Load(running=0, waiting=1), 4) for _ in range(LIES_MAX + 1)]
    assert said[:-2] == [None] * (LIES_MAX - 1)
    assert said[-1] == "its metrics say 1 requests, 4 are with it; they are not believed"
    assert doubt.about(Load(running=4), 4) is None
