"""Heads that are remembered mean what a real parser says they mean: httptools is the oracle."""

from __future__ import annotations

from typing import Any, NamedTuple

import httptools
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tokenworks.agents.heads import BODY_BYTES_MAX, HEAD_KEPT_MAX, LENGTH_DIGITS_MAX, Head, Headers, remembered

PROBE = b"POST /probe HTTP/1.1\r\nContent-Length: 5\r\n\r\nprobe"
LINE = b"POST /v1/chat/completions HTTP/1.1"


class Message(NamedTuple):
    """A whole request, as parsed."""

    url: bytes
    headers: Headers
    body: bytes


class Parsed:
    """What httptools says of some bytes."""

    def __init__(self, *packets: bytes) -> None:
        self.messages: list[Message] = []
        self.headers: Headers = []
        self.broken = False
        parser: Any = httptools.HttpRequestParser(self)
        try:
            for packet in packets:
                parser.feed_data(packet)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self.broken = True

    def on_message_begin(self) -> None:
        self._url, self.headers, self._body = b"", [], b""

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        self.messages.append(Message(self._url, self.headers, self._body))


def one(packet: bytes) -> Message | None:
    """The one request that a packet is, if it is whole and nothing is left over: then the next packet is the next."""
    parsed = Parsed(packet, PROBE)
    if (
        parsed.broken
        or [message.url for message in parsed.messages[1:]] != [b"/probe"]
        or len(Parsed(packet).messages) != 1
    ):
        return None
    return parsed.messages[0]


def head_of(packet: bytes) -> Head | None:
    """As the lane remembers it."""
    return remembered(packet, "chat", Parsed(packet).headers)


def packet_of(*lines: bytes, body: bytes = b"", line: bytes = LINE) -> bytes:
    return b"\r\n".join([line, *lines, b"", body])


NAMES = st.sampled_from(
    [b"Host", b"Authorization", b"X-API-Key", b"User-Agent", b"X-Content-Length", b"accept", b"Via"]
)
VALUES = st.sampled_from([b"", b"a", b"Bearer tw-x", b"Content-Length: 7", b"a, b;q=0.1", b"\xe4\xff", b"a\tb", b"12"])
HEADERS = st.lists(st.builds(b"%b:%b%b".__mod__, st.tuples(NAMES, st.sampled_from([b"", b" "]), VALUES)), max_size=4)
BODIES = (
    st.binary(max_size=40) | st.integers(0, 1200).map(lambda size: b"b" * size) | st.just(PROBE) | st.just(b"\r\n" * 3)
)
LENGTH_LINES = st.sampled_from([b"Content-Length: ", b"content-length:", b"CONTENT-LENGTH:   "])


class Made(NamedTuple):
    """A head in two parts, without its length."""

    before: bytes
    after: bytes


@st.composite
def heads(draw: st.DrawFn) -> Made:
    first, then = draw(HEADERS), draw(HEADERS)
    before = b"".join(each + b"\r\n" for each in [LINE, *first]) + draw(LENGTH_LINES)
    return Made(before, b"\r\n" + b"".join(each + b"\r\n" for each in then) + b"\r\n")


@st.composite
def changed(draw: st.DrawFn, made: Made) -> bytes:
    """Something like a request with this head."""
    body = draw(BODIES)
    length = draw(
        st.just(len(body)) | st.integers(0, 50) | st.sampled_from([999_999, 1_000_000, BODY_BYTES_MAX, 1 << 64])
    )
    pad = draw(st.sampled_from([b""] * 4 + [b"0", b"000000", b"+", b"-", b" ", b"\t", b"0x", b"\xb2", b"_", b"1_"]))
    back = draw(st.sampled_from([b""] * 6 + [b" ", b"\t", b".0", b",", b"_0", b"\n", b"\r"]))
    packet = made.before + pad + b"%d" % length + back + made.after + body
    match draw(st.sampled_from(["as it is"] * 3 + ["behind", "cut", "byte", "no cr", "blank", "before", "piece"])):
        case "behind":
            packet += draw(st.sampled_from([PROBE, PROBE[:9], packet, b"\r\n", b"\n", b"\0"]))
        case "cut":
            packet = packet[: draw(st.integers(0, len(packet)))]
        case "byte":
            at = draw(st.integers(0, len(made.before) + len(made.after)))
            packet = packet[:at] + draw(st.binary(min_size=1, max_size=1)) + packet[at + 1 :]
        case "no cr":
            packet = packet.replace(b"\r\n", b"\n", draw(st.integers(1, 9)))
        case "blank":
            packet = b"\r\n" + packet
        case "before":
            packet = draw(st.binary(max_size=4)) + packet
        case "piece":
            at = draw(st.integers(0, len(packet)))
            packet = packet[:at] + draw(st.sampled_from([b"\r\n", b"\r\n\r\n", b"1", b": ", b"\r\nX: y"])) + packet[at:]
    return packet


@settings(max_examples=1500, deadline=None, database=None)
@given(st.data(), heads())
def test_what_it_takes_for_a_request_is_one(data: st.DataObject, made: Made) -> None:
    """Same headers but for the length, whole, and nothing left over; what it leaves is left to the parser."""
    first = made.before + b"3" + made.after + b"abc"
    original, head = one(first), head_of(first)
    assert original is not None
    assert head is not None
    packet = data.draw(changed(made))
    body = head.body(packet)
    if body is None:
        return
    parsed = one(packet)
    assert parsed is not None
    assert (parsed.url, parsed.body) == (original.url, body)
    assert [h for h in parsed.headers if h[0] != b"content-length"] == [
        h for h in original.headers if h[0] != b"content-length"
    ]
    assert [int(value) for name, value in parsed.headers if name == b"content-length"] == [len(body)]


@settings(max_examples=200, deadline=None, database=None)
@given(heads(), BODIES, st.integers(0, LENGTH_DIGITS_MAX))
@example(Made(LINE + b"\r\nContent-Length: ", b"\r\n\r\n"), b"x" * 999_999, 0)
def test_it_knows_every_request_with_its_head(made: Made, body: bytes, zeros: int) -> None:
    """Whatever the body's length; zeros before it are digits too, as far as the bound of digits goes."""
    head = head_of(made.before + b"3" + made.after + b"abc")
    assert head is not None
    length = (b"%d" % len(body)).rjust(zeros, b"0")
    packet = made.before + length + made.after + body
    assert head.body(packet) == body
    parsed = one(packet)
    assert parsed is not None
    assert parsed.body == body


LENGTH = b"Content-Length: 3"
KEY = b"Authorization: Bearer tw-x"
KNOWN = head_of(packet_of(LENGTH, KEY, body=b"abc"))
BEHIND = packet_of(LENGTH, KEY, body=b"abc")


@pytest.mark.parametrize(
    "packet",
    [
        packet_of(b"Content-Length: 4", KEY, body=b"abc"),
        packet_of(b"Content-Length: 2", KEY, body=b"abc"),
        packet_of(b"Content-Length: +3", KEY, body=b"abc"),
        packet_of(b"Content-Length:  3", KEY, body=b"abc"),
        packet_of(b"Content-Length: 3 ", KEY, body=b"abc"),
        packet_of(b"Content-Length: ", KEY, body=b""),
        packet_of(b"Content-Length: 0000003", KEY, body=b"abc"),
        packet_of(b"Content-Length: 1000000", KEY, body=b"x" * 1_000_000),
        packet_of(LENGTH, b"Authorization: Bearer tw-y", body=b"abc"),
        packet_of(LENGTH, KEY, b"Idempotency-Key: k", body=b"abc"),
        packet_of(KEY, LENGTH, body=b"abc"),
        packet_of(LENGTH, KEY, body=b"abc") + BEHIND,
        packet_of(LENGTH, KEY, body=b"abc") + b"\r\n",
        packet_of(LENGTH, KEY, body=b"ab"),
        packet_of(LENGTH, KEY, body=b"abc").replace(b"\r\n", b"\n"),
        packet_of(LENGTH, KEY, body=b"abc").replace(b"3\r\n", b"3\n"),
        packet_of(LENGTH, KEY, body=b"abc", line=LINE.replace(b"1.1", b"1.0")),
        packet_of(LENGTH, KEY)[:-2],
        b"\r\n" + packet_of(LENGTH, KEY, body=b"abc"),
        LINE + b"\r\nContent-Length: 3",
        LINE + b"\r\nContent-Length: ",
        b"",
    ],
)
def test_anything_else_is_left_to_the_parser(packet: bytes) -> None:
    """Another length than the body's, another head, more than one request, less than one."""
    assert KNOWN is not None
    assert KNOWN.body(BEHIND) == b"abc"
    assert KNOWN.body(packet) is None


@pytest.mark.parametrize(
    "packet",
    [
        packet_of(KEY),
        packet_of(KEY, b"Transfer-Encoding: chunked", body=b"3\r\nabc\r\n0\r\n\r\n"),
        packet_of(KEY, b"Content-Length: 0"),
        packet_of(KEY, b"Content-Length: 03", body=b"abc"),
        packet_of(KEY, b"Content-Length:\t3", body=b"abc"),
        packet_of(KEY, b"X: Content-Length: 3"),
        packet_of(LENGTH, KEY, b"Idempotency-Key: k", body=b"abc"),
        packet_of(LENGTH, KEY, b"iDEMPOTENCY-kEY:k", body=b"abc"),
        packet_of(LENGTH, KEY, b"X: a\r\n folded", body=b"abc"),
        packet_of(LENGTH, KEY, body=b"abc").replace(b"x\r\n", b"x\n"),
        packet_of(LENGTH, KEY, body=b"abc").replace(b"\r\n", b"\n"),
        packet_of(LENGTH, KEY, body=b"abc").replace(b"\r\n", b"\n", 1),
        b"\r\n" + packet_of(LENGTH, KEY, body=b"abc"),
        packet_of(LENGTH, KEY, body=b"abc", line=LINE.replace(b"/v1", b"/v2")),
        packet_of(LENGTH, KEY, body=b"abc", line=LINE.replace(b"/v1", b"http://g/v1")),
        packet_of(LENGTH, KEY, b"X: " + b"x" * HEAD_KEPT_MAX, body=b"abc"),
        packet_of(LENGTH, KEY)[:-2],
        b"",
    ],
)
def test_heads_that_are_not_remembered(packet: bytes) -> None:
    """No length or one in another form, a key of idempotency, lines that are not one header each, too long."""
    assert head_of(packet) is None


def test_a_head_that_came_in_pieces_is_not_remembered() -> None:
    """The packet then begins with a part of it, or is none at all."""
    whole = packet_of(LENGTH, KEY, body=b"abc")
    headers = Parsed(whole).headers
    assert remembered(whole, "chat", headers) is not None
    for end in range(whole.index(b"\r\n\r\n") + 4):
        assert remembered(whole[:end], "chat", headers) is None


def test_a_packet_that_begins_with_another_request_is_not_the_head_of_this_one() -> None:
    """Its headers are others, or fewer, or more."""
    other = packet_of(LENGTH, body=b"abc", line=b"POST /v1/admin/x HTTP/1.1")
    assert remembered(other + BEHIND, "chat", Parsed(BEHIND).headers) is None
    assert remembered(BEHIND[40:], "chat", Parsed(BEHIND).headers) is None


def test_a_line_that_ends_otherwise_is_not_remembered() -> None:
    """Even if the parser took it for a part of a header."""
    packet = packet_of(LENGTH, KEY, b"X: a\nb", body=b"abc")
    assert remembered(packet, "chat", [(b"a", b"")] * 3) is None
    assert remembered(packet.replace(b"\nb", b"b"), "chat", [(b"a", b"")] * 3) is not None


@pytest.mark.parametrize("size", [HEAD_KEPT_MAX - 1, HEAD_KEPT_MAX])
def test_the_bound_of_a_remembered_head(size: int) -> None:
    """Without the empty line at its end."""
    short = packet_of(LENGTH, KEY, b"X: ")
    packet = packet_of(LENGTH, KEY, b"X: " + b"x" * (size - len(short) + 4), body=b"abc")
    assert packet.index(b"\r\n\r\n") == size
    assert (head_of(packet) is not None) == (size < HEAD_KEPT_MAX)


def test_what_a_head_meant() -> None:
    """Whose key it is and whether it may wait."""
    assert KNOWN is not None
    assert (KNOWN.key, KNOWN.deferrable, KNOWN.endpoint, KNOWN.identity) == ("tw-x", False, "chat", None)
    other = head_of(packet_of(b"X-API-Key: tw-y", LENGTH, b"X-Tokenworks-Deferrable: true", body=b"abc"))
    assert other is not None
    assert (other.key, other.deferrable) == ("tw-y", True)
    nobody = head_of(packet_of(LENGTH, body=b"abc"))
    assert nobody is not None
    assert nobody.key is None
