"""What the events of a stream mean, for each endpoint, and the stream itself.

The stream is passed on byte for byte. Ordinary delta events are not even looked at one by one: whether a block of whole
events carries output, usage or an error is read off its bytes. That is safe because a quote inside a JSON string is
always escaped, so a key with its quotes cannot be part of the text that a model made.

Sources: OpenAI API reference (chat, completions and responses streams), Anthropic Messages streaming reference.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from typing import ClassVar

import msgspec
from mypy_extensions import mypyc_attr

from tokenworks.core.errors import EngineFailed
from tokenworks.core.steps import Waiter
from tokenworks.core.words import Usage
from tokenworks.engine.adapter import Chunk, Timing
from tokenworks.engine.event import Event, decoded, timing_of
from tokenworks.engine.pace import BY_CLIENT, BY_HOLD
from tokenworks.engine.reports import message_of
from tokenworks.engine.sse import Splitter, payload
from tokenworks.engine.usage import Shape, read
from tokenworks.engine.wire import Response

_USAGE = re.compile(rb'"usage"\s*:\s*\{')
EVENT_BYTES_MIN = 16
"""An event with output is longer."""
Sink = Callable[[bytes], None]
"""Takes whole events as they come; called inside the socket's own callback, so it must not wait."""
log = logging.getLogger(__name__)


@mypyc_attr(allow_interpreted_subclasses=True)
class Reader:
    """Reads the events of one chat or text stream. Engines differ in what ``usage`` and ``timing`` they report."""

    shape: Shape = "openai"
    mark: ClassVar[bytes] = b'"content":"'
    """How a delta's text begins, as llama.cpp, vLLM and SGLang write it."""
    opening: ClassVar[bytes] = b"data: {"
    """How an event with a delta begins; of several, each but the first behind the blank line of the one before."""
    signs: ClassVar[tuple[bytes, ...]] = (b'"error"', b'"timings"')
    """An event with one of these may be more than a delta."""
    output: ClassVar[re.Pattern[bytes]] = re.compile(
        rb'"(?:content|text|reasoning_content|reasoning|refusal)"\s*:\s*"(?!")'
        rb'|"tool_calls"\s*:\s*\[\s*\{|"function_call"\s*:\s*\{'
    )

    def deltas(self, events: bytes) -> int | None:
        """How many of these whole events carry output, when they are nothing but deltas; None: read each of them."""
        made, opening = events.count(self.mark), self.opening
        if not events.startswith(opening) or events.count(b"\n\n" + opening) != made - 1 or b"\r" in events:
            return None  # an event without the mark may be output of another kind, or none
        if events.count(b"\n") != made * (opening.count(b"\n") + 2):
            return None
        for sign in self.signs:
            if sign in events:
                return None
        if b'"usage"' in events and _USAGE.search(events):
            return None
        empty = self.mark + b'"'
        return made - events.count(empty) if empty in events else made

    def read(self, raw: bytes) -> Chunk | None:
        """The chunk, or None for an event that means nothing. Raises EngineFailed when it reports an error."""
        data = payload(raw)
        if data == b"[DONE]":
            return Chunk(raw, done=True)
        if data == b"null":  # llama.cpp begins a text stream of several prompts with this; no client understands it
            return None
        if raw.startswith((b"error:", b"event: error")):  # the first is how llama.cpp once named the field
            raise EngineFailed(message_of(data or raw[6:].strip()) or "The engine reported an error.")
        if data and not data.startswith(b"{"):
            raise EngineFailed("The engine sent something that is not an answer.")
        chunk = Chunk(raw, output=self.output.search(data) is not None)
        reports = _USAGE.search(data) is not None
        if reports or b'"timings"' in data or b'"error"' in data:
            event = decoded(data)
            if event.error:
                raise EngineFailed(message_of(data) or "The engine reported an error.")
            chunk.timing = self.timing(event)
            if reports:
                chunk.usage = self.usage(event)
                chunk.held = not event.choices
        return chunk

    def usage(self, event: Event) -> Usage | None:
        """What the stream or answer has used so far."""
        return self._read({"usage": event.usage, "timings": event.timings})

    def _read(self, report: Mapping[str, object]) -> Usage | None:
        found = read(self.shape, report)
        if found.reason and report.get("usage"):
            log.warning("a usage report is not used: %s", found.reason)
        return found.usage

    def timing(self, event: Event) -> Timing | None:
        """What the engine measured: llama.cpp's ``timings``."""
        return timing_of(event.timings)


@mypyc_attr(allow_interpreted_subclasses=True)
class MessagesReader(Reader):
    """Anthropic's Messages: the prompt is reported when the message starts, the output before it stops."""

    shape = "anthropic"
    mark = b'"text":"'
    opening = b"event: content_block_delta\ndata: {"
    signs = (b'"error"',)
    output = re.compile(rb'"(?:text|thinking|partial_json)"\s*:\s*"(?!")')

    def __init__(self) -> None:
        self._report: dict[str, object] = {}

    def read(self, raw: bytes) -> Chunk | None:
        """See ``Reader.read``."""
        data = payload(raw)
        if not data:
            return Chunk(raw)
        event = decoded(data)
        if event.type == "error" or event.error:
            raise EngineFailed(message_of(data) or "The engine reported an error.")
        chunk = Chunk(raw, output=event.type == "content_block_delta" and self.output.search(data) is not None)
        said = event.message.get("usage") if isinstance(event.message, dict) else event.usage
        if isinstance(said, dict):
            self._report |= {name: value for name, value in said.items() if value is not None}
        if event.type == "message_delta":
            chunk.usage = self._read({"usage": self._report})
            chunk.held = True
        if event.type == "message_stop":
            chunk.held = chunk.done = True
        return chunk


@mypyc_attr(allow_interpreted_subclasses=True)
class ResponsesReader(Reader):
    """OpenAI's responses: the last event is the whole response, with its usage."""

    mark = b'"delta":"'
    opening = b"event: response.output_text.delta\ndata: {"
    signs = (b'"error"',)
    output = re.compile(rb'"delta"\s*:\s*"(?!")')

    def read(self, raw: bytes) -> Chunk | None:
        """See ``Reader.read``."""
        data = payload(raw)
        if not data:
            return Chunk(raw)
        if data == b"[DONE]":
            return None
        event = decoded(data)
        said = event.response if isinstance(event.response, dict) else {}
        if event.type in ("error", "response.failed") or event.error:
            why = said.get("error")
            raise EngineFailed(message_of(msgspec.json.encode({"error": why}) if why else data) or "The engine failed.")
        chunk = Chunk(raw, output=isinstance(event.type, str) and event.type.endswith(".delta") and self._made(data))
        if event.type in ("response.completed", "response.incomplete"):
            chunk.usage, chunk.timing = self._read(said), self.timing(event)
            chunk.held = chunk.done = True
        return chunk

    def _made(self, data: bytes) -> bool:
        return self.output.search(data) is not None


@mypyc_attr(allow_interpreted_subclasses=True)
class Relay:
    """What a stream over one HTTP answer does inside the socket's callback; ``Stream`` waits for it."""

    def __init__(self, response: Response, reader: Reader) -> None:
        self._response, self._reader = response, reader
        self._splitter = Splitter()
        self._sink: Sink = _nobody
        self._chunks_max = 0
        self._done = False
        self._later: list[bytes] = []
        """What came when the hold was used up."""
        self.chunks = 0
        self.usage: Usage | None = None
        self.timing: Timing | None = None
        self.held: list[bytes] = []

    def begin(self, sink: Sink, chunks_max: int) -> None:
        """Hand whole events to ``sink`` from now on, until so many chunks have come."""
        self._sink, self._chunks_max = sink, chunks_max
        later, self._later = self._later, []
        self._take(later)
        if not self._response.taken:
            self._response.receive(self._take)
        elif self.chunks < chunks_max:
            self._response.resume(BY_HOLD)

    def over(self) -> bool | None:
        """True: the end has come. False: so many chunks have. None: wait for ``more``. Raises EngineFailed."""
        if self._done:
            self._response.detach()
            return True
        if self.chunks >= self._chunks_max:
            return False
        self._response.check()
        if self._response.complete:
            raise EngineFailed("The engine's answer ended before its end mark.")
        return None

    def more(self) -> Waiter:
        """Await it before asking again."""
        return self._response.more()

    def _take(self, blocks: list[bytes]) -> None:
        if len(blocks) > 1:  # at once what is sure to be covered
            packet = b"".join(blocks)
            most = len(packet) // EVENT_BYTES_MIN
            if self.chunks + most < self._chunks_max or self.chunks + packet.count(b"\n\n") < self._chunks_max:
                blocks = [packet]
        for block in blocks:
            self._take_one(block)

    def _take_one(self, block: bytes) -> None:
        if self._done:
            return
        if self.chunks >= self._chunks_max:
            self._later.append(block)
            return
        events = self._splitter.whole(block)
        if events and (made := self._reader.deltas(events)) is not None:
            self.chunks += made
            self._sink(events)
        elif events and self._mixed(self._splitter.split(events)):
            self._response.wake()
            return
        if self.chunks >= self._chunks_max:
            self._response.pause(BY_HOLD)
            self._response.wake()

    def _mixed(self, events: list[bytes]) -> bool:
        """Take events of which some are more than deltas, mostly the last ones of a stream; True: the end is there."""
        plain, passed = len(events), list[bytes]()
        while plain and self._reader.deltas(events[plain - 1]) is None:
            plain -= 1
        head = b"".join(events[:plain])
        if plain and (made := self._reader.deltas(head)) is not None:
            self.chunks += made
            passed.append(head)
        else:
            plain = 0
        try:
            for raw in events[plain:]:
                self._event(raw, passed)
                if self._done:
                    break
        finally:
            if passed:
                self._sink(b"".join(passed))
        return self._done

    def _event(self, raw: bytes, passed: list[bytes]) -> None:
        """Take one event; what the client sees of it now is added to ``passed``."""
        chunk = self._reader.read(raw)
        if chunk is None:
            return
        self.chunks += chunk.output
        if chunk.usage is not None:
            self.usage = chunk.usage
        self.timing = chunk.timing or self.timing
        self._done = chunk.done
        if chunk.held:
            self.held.append(chunk.raw)
        elif not chunk.done:
            passed.append(chunk.raw)

    def pause(self) -> None:
        """See ``TokenStream.pause``."""
        self._response.pause(BY_CLIENT)

    def resume(self) -> None:
        """See ``TokenStream.resume``."""
        self._response.resume(BY_CLIENT)

    def give_up(self) -> None:
        """Close the connection at once; no effect after the end."""
        if not self._done:
            self._response.abort()


def _nobody(_: bytes) -> None:
    """Before anybody listens nothing is taken."""
