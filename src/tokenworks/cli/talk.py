"""``tokenworks chat`` and ``tokenworks status``: talking to a running grid over HTTP."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Annotated, Any

import msgspec
from cyclopts import Parameter
from rich.console import RenderableType

from tokenworks.cli import out
from tokenworks.cli.device import shown
from tokenworks.cli.out import Answer, command
from tokenworks.cli.reach import get, grid_key, request
from tokenworks.core.errors import EngineFailed


@command
def chat(
    text: str, /, *, model: Annotated[str | None, Parameter(name=["--model", "-m"])] = None, system: str | None = None,
    max_tokens: int = 256, temperature: float | None = None, as_json: out.Json = False,
) -> Answer:  # fmt: skip
    """Ask a model something; the answer streams to stdout, its cost follows on stderr.

    Args:
        text: What to ask. "-" reads it from standard input.
        model: The model; without it the first that is served.
        system: Instructions that come before.
        max_tokens: The longest answer.
        temperature: 0 for the likeliest answer.
    """
    key = grid_key()
    model = model or get("/v1/models", key)["data"][0]["id"]
    messages = [{"role": "user", "content": sys.stdin.read() if text == "-" else text}]
    if system:
        messages.insert(0, {"role": "system", "content": system})
    body: dict[str, Any] = {"model": model, "messages": messages, "max_tokens": max_tokens}
    if temperature is not None:
        body["temperature"] = temperature
    if as_json:
        with request("POST", "/v1/chat/completions", key, body) as response:
            return Answer(msgspec.json.decode(response.read()))
    usage = _stream(key, body | {"stream": True, "stream_options": {"include_usage": True}})
    cost = usage.get("tokenworks", {})
    counted = usage.get("usage", {})
    energy = out.energy(cost.get("energy_mj")), out.carbon(cost.get("carbon_ug"))
    tokens = f"{counted.get('prompt_tokens', '?')} + {counted.get('completion_tokens', '?')} tokens"
    parts = (tokens, cost.get("stu"), cost.get("price"), *energy)
    out.note("\n" + " · ".join(part for part in parts if part))
    if "receipt" in cost:
        out.note(f"tokenworks receipt show {cost['receipt']}")
    return Answer(None)


def _stream(key: str, body: dict[str, Any]) -> dict[str, Any]:
    usage: dict[str, Any] = {}
    with request("POST", "/v1/chat/completions", key, body) as response:
        for line in response:
            data = line.strip().removeprefix(b"data: ")
            if not data or data == b"[DONE]":
                continue
            event = msgspec.json.decode(data)
            if "error" in event:
                sys.stdout.write("\n")
                raise EngineFailed(event["error"]["message"], hint=event["error"].get("hint"))
            if event.get("usage"):
                usage = event
            for choice in event.get("choices", ()):
                sys.stdout.write(choice.get("delta", {}).get("content") or "")
                sys.stdout.flush()
    sys.stdout.write("\n")
    return usage


@command
def status() -> Answer:
    """Show the running grid: replicas, ledger, load. Exit status 5 when none answers, 1 when nothing can serve."""
    found = get("/v1/status", grid_key(admin=True))
    ready = any(replica["state"] == "ready" for replica in found["replicas"])
    return Answer(found, _status(found), 0 if ready else 1)


def _status(found: dict[str, Any]) -> Iterator[RenderableType]:
    ledger = "up" if found["ledger"]["up"] else "restarting"
    yield (
        f"grid {found['grid']!r}, up {found['uptime_s']} s, {found['rss_mb']} MB, "
        f"ledger {ledger}, {found['open_holds']} open holds"
    )
    rows = (
        (r["name"], r["model"], r["site"], r["state"], f"{r['running']}/{r['slots']}", _tps(r["prefill_tokens_per_s"]),
         _tps(r["decode_tokens_per_s"]), r["restarts"], r["why"] or "")
        for r in found["replicas"]
    )  # fmt: skip
    columns = ("replica", "model", "site", "state", "running", "prefill tok/s", "decode tok/s", "restarts", "")
    yield out.table("", columns, rows, right=columns[4:8])
    devices = (
        (d["device"], site["site"], f"{d['booked_permille'] / 10:g} %", shown(d["memory_booked_bytes"], 1e9, "GB"),
         shown(d["memory_measured_bytes"], 1e9, "GB"), shown(d["memory_bytes"], 1e9, "GB"), "GONE" if d["gone"] else "")
        for site in found["sites"] for d in site["devices"]
    )  # fmt: skip
    sizes = ("booked", "memory booked", "measured", "in all")
    yield out.table("", ("device", "site", *sizes, ""), devices, right=sizes)
    if len(found["gateways"]) > 1:
        numbers = ("pid", "requests", "open_holds", "restarts")
        each = [(g["name"], *(g[number] for number in numbers)) for g in found["gateways"]]
        names = [number.replace("_", " ") for number in numbers]
        yield out.table("", ("gateway", *names), each, right=names)


def _tps(value: float | None) -> str | None:
    return None if value is None else f"{value:,.0f}"
