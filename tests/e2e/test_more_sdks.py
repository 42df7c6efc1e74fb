"""Other official clients and endpoints against the real engine: responses, Anthropic's Messages, and their receipts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import anthropic
import openai
import pytest
from tests.support.grid_process import MODEL, GridProcess

pytestmark = pytest.mark.engine
HELLO: Any = [{"role": "user", "content": "Say hello."}]


@pytest.fixture
def claude(grid: GridProcess) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=grid.run.url, api_key=grid.keys.key, max_retries=0) as client:
        yield client


def check_receipt(grid: GridProcess, receipt_id: str, input_tokens: int, output_tokens: int) -> None:
    """The receipt is there, of a complete answer, with the usage that the client was told."""
    status, receipt = grid.get(f"/v1/receipts/{receipt_id}", grid.keys.key)
    assert status == 200
    usage = receipt["usage"]
    assert usage["certainty"] == "exact"
    assert usage.get("input", 0) + usage.get("cached_input", 0) == input_tokens
    assert usage["output"] == output_tokens
    assert receipt["lines"][-1]["ending"] == "complete"


def test_responses(grid: GridProcess) -> None:
    """OpenAI's newer endpoint, whole and as a stream: the same text, and a receipt for each."""
    options: dict[str, Any] = {"model": MODEL, "input": "Say hello.", "max_output_tokens": 12, "temperature": 0}
    raw = grid.client().responses.with_raw_response.create(**options)
    whole = raw.parse()
    assert whole.output_text
    assert whole.usage is not None
    check_receipt(grid, raw.headers["x-tokenworks-receipt"], whole.usage.input_tokens, whole.usage.output_tokens)
    with grid.client().responses.create(stream=True, **options) as stream:
        receipt_id = stream.response.headers["x-tokenworks-receipt"]
        events = list(stream)
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == whole.output_text
    last = events[-1]
    assert last.type == "response.completed"
    assert last.response.usage is not None
    assert last.model_extra is not None
    assert last.model_extra["tokenworks"]["receipt"] == receipt_id
    check_receipt(grid, receipt_id, last.response.usage.input_tokens, last.response.usage.output_tokens)


def test_chat_and_text_streams_have_receipts_with_their_usage(grid: GridProcess) -> None:
    """The usage chunk and the receipt say the same."""
    create: Any
    for create, said in (
        (grid.client().chat.completions.create, {"messages": HELLO}),
        (grid.client().completions.create, {"prompt": "Once upon"}),
    ):
        stream = create(model=MODEL, max_tokens=9, stream=True, stream_options={"include_usage": True}, **said)
        receipt_id = stream.response.headers["x-tokenworks-receipt"]
        usage = [chunk.usage for chunk in stream if chunk.usage][-1]
        check_receipt(grid, receipt_id, usage.prompt_tokens, usage.completion_tokens)


def test_embeddings_of_a_model_that_makes_none(grid: GridProcess) -> None:
    """The SDK's own error, before anything is billed."""
    with pytest.raises(openai.BadRequestError) as caught:
        grid.client().embeddings.create(model=MODEL, input="hello")
    assert "embeddings" in caught.value.message
    assert caught.value.code == "bad_request"


def test_messages(grid: GridProcess, claude: anthropic.Anthropic) -> None:
    """Anthropic's SDK, unchanged: whole, with a system text and a stop."""
    raw = claude.messages.with_raw_response.create(
        model=MODEL, max_tokens=12, messages=HELLO, system="Be brief.", temperature=0
    )
    answer = raw.parse()
    assert answer.content[0].type == "text"
    assert answer.content[0].text
    assert answer.stop_reason in ("max_tokens", "end_turn")
    used = answer.usage
    cached = used.cache_read_input_tokens or 0
    check_receipt(grid, raw.headers["x-tokenworks-receipt"], used.input_tokens + cached, used.output_tokens)
    assert answer.model_extra is not None
    assert answer.model_extra["tokenworks"]["receipt"] == raw.headers["x-tokenworks-receipt"]


def test_messages_stream(grid: GridProcess, claude: anthropic.Anthropic) -> None:
    """Its stream helper puts the message together, and the receipt has what the last event says."""
    with claude.messages.stream(model=MODEL, max_tokens=12, messages=HELLO, temperature=0) as stream:
        text = "".join(stream.text_stream)
        message = stream.get_final_message()
        receipt_id = stream.response.headers["x-tokenworks-receipt"]
    assert text
    assert message.content[0].type == "text"
    assert message.content[0].text == text
    cached = message.usage.cache_read_input_tokens or 0
    check_receipt(grid, receipt_id, message.usage.input_tokens + cached, message.usage.output_tokens)


def test_errors_are_the_sdks_own(grid: GridProcess, claude: anthropic.Anthropic) -> None:
    """A wrong key, model or parameter raises the class that users of the SDK catch."""
    with pytest.raises(anthropic.NotFoundError):
        claude.messages.create(model="gpt-9", max_tokens=5, messages=HELLO)
    with pytest.raises(anthropic.BadRequestError) as caught:
        claude.messages.create(model=MODEL, max_tokens=5, messages=[])
    assert isinstance(caught.value.body, dict)
    assert caught.value.body["error"]["type"] == "invalid_request_error"
    with (
        anthropic.Anthropic(base_url=grid.run.url, api_key="tw-no", max_retries=0) as stranger,
        pytest.raises(anthropic.AuthenticationError),
    ):
        stranger.messages.create(model=MODEL, max_tokens=5, messages=HELLO)
