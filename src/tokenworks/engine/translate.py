"""OpenAI's chat in Anthropic's Messages, and back. Pure functions.

What would change the shape of the answer and cannot be said in Messages is refused; what only tunes it (seed,
penalties) is left out, as Anthropic's own compatibility layer does. Sources: Anthropic Messages API reference,
"OpenAI SDK compatibility"; OpenAI chat reference.
"""

from __future__ import annotations

from typing import Any

import msgspec

from tokenworks.core.errors import BadRequest, EngineFailed
from tokenworks.core.units import NS_PER_S
from tokenworks.core.words import Request, Usage
from tokenworks.engine.adapter import Chunk
from tokenworks.engine.events import MessagesReader
from tokenworks.engine.sse import payload
from tokenworks.engine.usage import read

OUTPUT_TOKENS_DEFAULT = 4096
"""Messages must say how much; for chat requests that do not."""
_REFUSED = ("logprobs", "audio", "functions", "modalities")
_CHOICES = {"auto": "auto", "required": "any", "none": "none"}
_ENDS = {"max_tokens": "length", "tool_use": "tool_calls", "refusal": "content_filter"}
_encode = msgspec.json.Encoder().encode


def to_messages(request: Request) -> bytes:
    """A chat request as a Messages request. Raises BadRequest for what that cannot say."""
    said = msgspec.json.decode(request.body)
    if request.choices > 1:
        raise BadRequest("this model gives one choice", param="n")
    if (said.get("response_format") or {}).get("type", "text") != "text":
        raise BadRequest("this model takes no response_format", param="response_format")
    for name in _REFUSED:
        if said.get(name):
            raise BadRequest(f"this model takes no {name}", param=name)
    system, messages = _messages(said["messages"])
    asked: dict[str, Any] = {"model": said["model"], "messages": messages}
    asked["max_tokens"] = said.get("max_completion_tokens") or said.get("max_tokens") or OUTPUT_TOKENS_DEFAULT
    if system:
        asked["system"] = system
    if request.stream:
        asked["stream"] = True
    if said.get("temperature") is not None:
        asked["temperature"] = min(said["temperature"], 1)  # theirs ends at 1
    if said.get("top_p") is not None:
        asked["top_p"] = said["top_p"]
    if stop := said.get("stop"):
        asked["stop_sequences"] = [stop] if isinstance(stop, str) else stop
    if said.get("user"):
        asked["metadata"] = {"user_id": said["user"]}
    if said.get("tools"):
        asked["tools"] = [_tool(tool) for tool in said["tools"]]
        asked["tool_choice"] = _tool_choice(said.get("tool_choice") or "auto")
        if said.get("parallel_tool_calls") is False and asked["tool_choice"]["type"] != "none":
            asked["tool_choice"]["disable_parallel_tool_use"] = True
    return _encode(asked)


def _messages(said: list[dict[str, Any]]) -> tuple[str, list[dict[str, Any]]]:
    system: list[str] = []
    messages: list[dict[str, Any]] = []
    for message in said:
        role, content = message.get("role"), message.get("content")
        if role in ("system", "developer"):
            system += [part["text"] for part in _parts(content)]
            continue
        if role == "tool":
            result = {"type": "tool_result", "tool_use_id": message.get("tool_call_id"), "content": _parts(content)}
            if messages and messages[-1]["role"] == "user" and messages[-1]["content"][-1]["type"] == "tool_result":
                messages[-1]["content"].append(result)  # results of one turn belong together
                continue
            role, parts = "user", [result]
        else:
            parts = _parts(content) + [_call(call) for call in message.get("tool_calls") or ()]
        messages.append({"role": role, "content": parts})
    return "\n\n".join(system), messages


def _parts(content: str | list[dict[str, Any]] | None) -> list[dict[str, Any]]:
    if not isinstance(content, list):
        return [{"type": "text", "text": content}] if content else []
    return [_part(part) for part in content]


def _part(part: dict[str, Any]) -> dict[str, Any]:
    if part.get("type") == "text":
        return {"type": "text", "text": part["text"]}
    if part.get("type") != "image_url":
        raise BadRequest(f"this model takes no content of type {part.get('type')!r}", param="messages")
    url = part["image_url"]["url"]
    head, _, data = url.partition(";base64,")
    if not head.startswith("data:"):
        return {"type": "image", "source": {"type": "url", "url": url}}
    return {"type": "image", "source": {"type": "base64", "media_type": head[5:], "data": data}}


def _call(call: dict[str, Any]) -> dict[str, Any]:
    function = call["function"]
    try:
        arguments = msgspec.json.decode(function.get("arguments") or "{}")
    except msgspec.DecodeError:
        raise BadRequest("the arguments of a tool call are not JSON", param="messages") from None
    return {"type": "tool_use", "id": call["id"], "name": function["name"], "input": arguments}


def _tool(tool: dict[str, Any]) -> dict[str, Any]:
    function = tool["function"]
    made = {"name": function["name"], "input_schema": function.get("parameters") or {"type": "object"}}
    return made | ({"description": function["description"]} if function.get("description") else {})


def _tool_choice(choice: str | dict[str, Any]) -> dict[str, Any]:
    if isinstance(choice, str):
        return {"type": _CHOICES.get(choice, "auto")}
    return {"type": "tool", "name": choice["function"]["name"]}


def to_chat(body: bytes, request: Request) -> bytes:
    """A whole Messages answer as a chat answer. Raises EngineFailed when it is none."""
    try:
        said = msgspec.json.decode(body)
        blocks, end = said["content"], said.get("stop_reason")
        text = "".join(block["text"] for block in blocks if block["type"] == "text")
        thought = "".join(block["thinking"] for block in blocks if block["type"] == "thinking")
        calls = [
            {"id": b["id"], "type": "function", "function": _function(b["name"], _encode(b["input"]).decode())}
            for b in blocks
            if b["type"] == "tool_use"
        ]
    except (msgspec.DecodeError, KeyError, TypeError) as error:
        raise EngineFailed("The engine's answer is not one of Messages.") from error
    message: dict[str, Any] = {"role": "assistant", "content": text or None}
    message |= {"reasoning_content": thought} if thought else {}
    message |= {"tool_calls": calls} if calls else {}
    choice = {"index": 0, "message": message, "finish_reason": _ENDS.get(end, "stop")}
    made = _envelope(said.get("id"), "chat.completion", request, [choice])
    usage = read("anthropic", said).usage
    return _encode(made if usage is None else made | {"usage": _usage(usage)})


def _function(name: str, arguments: str) -> dict[str, str]:
    return {"name": name, "arguments": arguments}


def _envelope(answer_id: object, kind: str, request: Request, choices: list[dict[str, Any]]) -> dict[str, Any]:
    made_s = request.arrived_ns // NS_PER_S
    return {"id": answer_id, "object": kind, "created": made_s, "model": request.model, "choices": choices}


def _usage(usage: Usage) -> dict[str, Any]:
    prompt = usage.input + usage.cached_input + usage.cache_write
    return {
        "prompt_tokens": prompt,
        "completion_tokens": usage.output,
        "total_tokens": prompt + usage.output,
        "prompt_tokens_details": {"cached_tokens": usage.cached_input},
    }


class ChatReader(MessagesReader):
    """Reads a stream of Messages and hands it on as a stream of chat."""

    def __init__(self, request: Request) -> None:
        super().__init__()
        self._request = request
        self._id: object = None
        self._calls = -1
        self._used: Usage | None = None

    def deltas(self, events: bytes) -> int | None:
        """See ``Reader.deltas``: every event is written anew."""
        return None

    def read(self, raw: bytes) -> Chunk | None:
        chunk = super().read(raw)
        data = payload(raw)
        if chunk is None or not data:
            return None
        try:
            event = msgspec.json.decode(data)
            choice = self._choice(event)
        except (KeyError, TypeError) as error:
            raise EngineFailed("The engine sent an event that is not one of Messages.") from error
        self._used = chunk.usage or self._used
        if chunk.done:
            return msgspec.structs.replace(chunk, raw=self._event([], self._used), held=self._used is not None)
        if choice is None:
            return None
        return msgspec.structs.replace(chunk, raw=self._event([{"index": 0, **choice}]), held=False)

    def _choice(self, event: dict[str, Any]) -> dict[str, Any] | None:
        """What one event adds to the answer; None: nothing that chat has a word for."""
        kind = event["type"]
        if kind == "message_start":
            self._id = event["message"].get("id")
            return _delta(role="assistant", content="")
        if kind == "message_delta":
            return {"delta": {}, "finish_reason": _ENDS.get(event["delta"].get("stop_reason"), "stop")}
        if kind == "content_block_start" and event["content_block"]["type"] == "tool_use":
            self._calls += 1
            block = event["content_block"]
            call = {"index": self._calls, "id": block["id"], "type": "function"}
            return _delta(tool_calls=[call | {"function": _function(block["name"], "")}])
        if kind != "content_block_delta":
            return None
        delta = event["delta"]
        if delta["type"] == "text_delta":
            return _delta(content=delta["text"])
        if delta["type"] == "thinking_delta":
            return _delta(reasoning_content=delta["thinking"])
        if delta["type"] == "input_json_delta":
            return _delta(tool_calls=[{"index": self._calls, "function": {"arguments": delta["partial_json"]}}])
        return None

    def _event(self, choices: list[dict[str, Any]], usage: Usage | None = None) -> bytes:
        made = _envelope(self._id, "chat.completion.chunk", self._request, choices)
        return b"data: " + _encode(made if usage is None else made | {"usage": _usage(usage)}) + b"\n\n"


def _delta(**members: Any) -> dict[str, Any]:
    return {"delta": members, "finish_reason": None}
