"""The members of a request's body that we read. They stand apart from ``shape.py`` because that is compiled."""

from __future__ import annotations

import msgspec

ABSENT = msgspec.Raw()


class Asked(msgspec.Struct, gc=False):
    """The members that we read; all others are the engine's."""

    model: object = None
    stream: object = None
    stream_options: object = None
    n: object = None
    best_of: object = None
    max_tokens: object = None
    max_completion_tokens: object = None
    max_output_tokens: object = None
    grammar: msgspec.Raw = ABSENT
    messages: msgspec.Raw = ABSENT
    system: msgspec.Raw = ABSENT
    prompt: msgspec.Raw = ABSENT
    input: msgspec.Raw = ABSENT
    instructions: msgspec.Raw = ABSENT
    previous_response_id: msgspec.Raw = ABSENT
    background: msgspec.Raw = ABSENT
    tools: msgspec.Raw = ABSENT
    logprobs: msgspec.Raw = ABSENT
    response_format: msgspec.Raw = ABSENT
    text: msgspec.Raw = ABSENT


class Message(msgspec.Struct, gc=False):
    role: object = None
    content: msgspec.Raw = ABSENT


decode_asked = msgspec.json.Decoder(Asked).decode
decode_messages = msgspec.json.Decoder(list[Message]).decode
