"""The gateway benchmark can be trusted: its load generator sees wrong answers of every kind, and counts as the mock."""

from __future__ import annotations

import http.client
import json
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from bench.gateway import ours, report
from bench.gateway.answers import Wrong, check, dechunked
from bench.gateway.load import Job, Load, Outcome
from bench.gateway.words import CHUNKS, Mode, body, tokens


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """A mock engine in a process of its own."""
    command = [sys.executable, "-m", "bench.gateway.mock"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            yield int(process.stdout.readline())
        finally:
            process.kill()


def _counts(port: int) -> dict[str, int]:
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request("GET", "/counts")
    found: dict[str, int] = json.loads(connection.getresponse().read())
    connection.close()
    return found


def _answer(port: int, mode: Mode, number: int) -> bytes:
    """The mock's whole answer as bytes."""
    before, after = body(mode)
    asked = b"%s%012d%s" % (before, number, after)
    with socket.create_connection(("127.0.0.1", port)) as sock:
        head = b"POST /v1/chat/completions HTTP/1.1\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(asked)
        sock.sendall(head + asked)
        if mode == "whole":
            return b"".join(iter(lambda: sock.recv(65_536), b""))
        found = b""
        while not found.endswith(b"\r\n0\r\n\r\n"):
            found += sock.recv(65_536)
        return found


@pytest.mark.parametrize("mode", ["whole", "stream"])
@pytest.mark.parametrize("connections", [1, 8])
def test_load_counts_what_the_mock_served(port: int, mode: Mode, connections: int) -> None:
    kind = {"whole": "whole", "stream": "streams"}[mode]
    before = _counts(port)[kind]
    job = Job(host="127.0.0.1", port=port, mode=mode, connections=connections, seconds=0.2, warm_s=0.05, first=40)
    out = Load(job).run()
    assert out.good
    assert out.right
    assert out.completed == _counts(port)[kind] - before
    used = [tokens(number, mode) for number in range(40, 40 + out.completed)]
    assert (out.prompt, out.completion, out.ustu) == (
        sum(each.prompt for each in used),
        sum(each.completion for each in used),
        sum(each.ustu for each in used),
    )
    assert out.chunks == (CHUNKS * out.completed if mode == "stream" else 0)
    assert 0 < out.p50_us <= out.p99_us <= out.p100_us


def test_a_paced_load_keeps_its_rate(port: int) -> None:
    out = Load(Job(host="127.0.0.1", port=port, connections=4, seconds=0.4, warm_s=0.0, rate=100)).run()
    assert out.good
    assert 30 <= out.completed <= 41


def test_right_answers_pass_whatever_the_spacing_and_the_chunks(port: int) -> None:
    for mode in ("whole", "stream"):
        for number in (16, 17):
            assert check(_answer(port, mode, number), number, mode) == 0
    head, _, content = _answer(port, "whole", 5).partition(b"\r\n\r\n")
    spaced = json.dumps(json.loads(content), indent=1).encode()
    assert check(head + b"\r\n\r\n" + spaced, 5, "whole") == 0
    head, _, content = _answer(port, "stream", 16).partition(b"\r\n\r\n")
    plain = dechunked(content)
    cut = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (plain[:1000], plain[1000:1007], plain[1007:]))
    assert check(head + b"\r\n\r\n" + cut + b"0\r\n\r\n", 16, "stream") == 0


@pytest.mark.parametrize(
    ("mode", "old", "new", "says"),
    [
        ("whole", b" 200 ", b" 500 ", "status 500"),
        ("whole", b"#000000000016", b"#000000000017", "another text"),
        ("whole", b'"usage":', b'"usages":', "no usage"),
        ("whole", b'"prompt_tokens":27', b'"prompt_tokens":28', "usage"),
        ("whole", b'"completion_tokens":17', b'"completion_tokens":18', "usage"),
        ("whole", b"{", b"", "Expected"),
        ("stream", b"data: [DONE]", b"data: [DONT]", "end mark"),
        ("stream", b"#000000000016", b"#000000000017", "another request"),
        ("stream", b'" w07"', b'"-w07"', "62 of 63 pieces"),
        ("stream", b'" w07"', b'" w08"', "another text"),
        ("stream", b'"completion_tokens":66', b'"completion_tokens":67', "usage"),
        ("stream", b'"prompt_tokens"', b'"prompt_taking"', "missing"),
    ],
)
def test_a_wrong_answer_is_seen(port: int, mode: Mode, old: bytes, new: bytes, says: str) -> None:
    answer = _answer(port, mode, 16)
    assert old in answer
    with pytest.raises(Wrong, match=says):
        check(answer.replace(old, new, 1), 16, mode)


def test_the_receipt_in_an_answer_is_compared(port: int) -> None:
    answer = _answer(port, "whole", 16)
    used = tokens(16, "whole").ustu
    assert check(answer[:-1] + b',"tokenworks":{"ustu":%d}}' % used, 16, "whole") == used
    with pytest.raises(Wrong, match="STU"):
        check(answer[:-1] + b',"tokenworks":{"ustu":%d}}' % (used + 1), 16, "whole")


def test_answers_that_are_cut_off_are_failures() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def cut() -> None:
            for _ in range(3):
                connection, _ = server.accept()
                with connection:
                    connection.recv(65_536)
                    connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\nhalf")

        thread = threading.Thread(target=cut)
        thread.start()
        job = Job(host="127.0.0.1", port=server.getsockname()[1], seconds=0.05, warm_s=0.0, rate=1_000)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("bench.gateway.load.FAILED_MAX", 1)
            out = Load(job).run()
        socket.create_connection(server.getsockname()).close()
        thread.join(5)
    assert out.failed == 2
    assert not out.good
    assert not out.right
    assert "closed" in out.why


def test_books_that_miss_a_request_a_token_or_a_unit_are_told() -> None:
    out = Outcome(completed=3, prompt=30, completion=12, ustu=78_000_000, ustu_said=78_000_000)
    books = {"receipts": 3, "tokens": 42, "ustu": 78_000_000}
    assert ours.missing(books, out) == ""
    for name in books:
        assert name in ours.missing({**books, name: books[name] - 1}, out)
    assert "tokenworks objects" in ours.missing(books, msgspec.structs.replace(out, ustu_said=1))


def _figures(**rps: float) -> dict[str, Any]:
    metrics = {"p50_us_c1": 1e6, "p99_us_c256": 1e7, "rps_c32": 1.0, "stream_rps_c32": 0.5}
    return {f"{name}.{metric}": times * value for name, value in rps.items() for metric, times in metrics.items()} | {
        f"{name}.p50_us_c1": 1e6 / value for name, value in rps.items()
    }


def test_ratios_hold_each_measure_against_the_best_peer() -> None:
    figures = _figures(direct=50_000, ours_books_on=20_000, smg=5_000, vllm_router=10_000, litellm=100)
    found = report.ratios(figures, ["smg", "vllm_router", "litellm", "portkey"])
    assert found["best_peer"] == "vllm_router"
    assert found["ratio_rps_c32_best_peer"] == 2.0
    assert found["ratio_rps_c32_litellm"] == 200.0
    assert found["added_p50_ratio_best_peer"] == pytest.approx((50 - 20) / (100 - 20), abs=0.01)
    assert found["stream_ratio_direct"] == 0.4
    assert report.ratios(figures, ["portkey"]).keys() == {"stream_ratio_direct"}


def test_the_table_shows_who_is_absent_and_why() -> None:
    shown = report.table({**_figures(direct=50_000), "smg.absent": "no wheel for this machine"}).splitlines()
    assert len(shown) == 4
    assert "50,000" in shown[2]
    assert shown[3].split("|")[2].strip() == "absent: no wheel for this machine"


def test_of_rounds_the_median_is_kept() -> None:
    assert report.middle([{"a.rps": 1.0, "b": "x"}, {"a.rps": 9.0}, {"a.rps": 2.0, "b": "y"}]) == {
        "a.rps": 2.0,
        "b": "y",
    }
