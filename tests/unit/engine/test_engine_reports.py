"""Errors of engines in our words."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenworks.core.errors import BadRequest, ContextTooLong, EngineDown, EngineFailed, TokenworksError
from tokenworks.engine.reports import MESSAGE_CHARS_MAX, error_of


@pytest.mark.parametrize(
    ("status", "body", "kind", "says"),
    [
        (
            400,
            {"error": {"type": "exceed_context_size_error", "n_prompt_tokens": 731, "n_ctx": 256}},
            ContextTooLong,
            "731",
        ),
        (400, {"error": {"code": "context_length_exceeded", "message": "too long"}}, ContextTooLong, "too long"),
        (400, {"message": "This model's maximum context length is 9 tokens"}, ContextTooLong, "9 tokens"),
        (400, {"error": {"message": "Expected 'messages'"}}, BadRequest, "Expected 'messages'"),
        (422, {"error": "odd"}, BadRequest, "odd"),
        (401, {"error": {"message": "Invalid API Key"}}, EngineFailed, "our credential"),
        (403, {}, EngineFailed, "our credential"),
        (404, {}, EngineFailed, "no such model or path"),
        (429, {}, EngineDown, "too busy"),
        (503, {"error": {"message": "Loading model"}}, EngineDown, "503"),
        (500, {"error": {"message": "boom"}}, EngineFailed, "boom"),
        (302, {}, EngineFailed, "302"),
    ],
)
def test_errors_are_told_by_whose_fault_they_are(
    status: int, body: object, kind: type[TokenworksError], says: str
) -> None:
    """The client hears of its own mistakes only, and the router knows where another try makes sense."""
    error = error_of(status, msgspec.json.encode(body))
    assert isinstance(error, kind)
    assert says in str(error)


@given(st.integers(400, 599), st.binary(max_size=200))
def test_any_error_body_is_survived(status: int, body: bytes) -> None:
    """A proxy's HTML page or a cut body is an error like any other."""
    assert isinstance(error_of(status, body), TokenworksError)


def test_a_long_message_is_cut() -> None:
    """An engine cannot make our error as long as it likes."""
    assert len(error_of(400, msgspec.json.encode({"error": "x" * 9999})).message) == MESSAGE_CHARS_MAX
