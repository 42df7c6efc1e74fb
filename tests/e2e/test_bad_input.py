"""Bad input gets one clear error: the right status, the OpenAI shape, a code and a hint, and nothing lost."""

from __future__ import annotations

import contextlib
from typing import Any

import openai
import pytest
from tests.support.grid_process import MODEL, GridProcess, wait_until

HELLO: Any = [{"role": "user", "content": "Say hello."}]
pytestmark = pytest.mark.engine


def _error(caught: pytest.ExceptionInfo[openai.APIStatusError]) -> dict[str, Any]:
    body: dict[str, Any] = caught.value.response.json()["error"]
    assert set(body) >= {"message", "type", "param", "code"}
    return body


def test_bad_json_is_400(grid: GridProcess) -> None:
    """A body that is no JSON is told so."""
    with pytest.raises(openai.BadRequestError) as caught:
        grid.client().post("/chat/completions", content=b"{not json", cast_to=object)
    assert _error(caught)["code"] == "bad_request"


def test_unknown_key_is_401(grid: GridProcess) -> None:
    """A wrong secret, a wrong id and nonsense all get the same answer."""
    right = grid.keys.key
    for key in ("nonsense", right[:-1] + ("0" if right[-1] != "0" else "1"), "tw-00000000-" + "0" * 32):
        with pytest.raises(openai.AuthenticationError) as caught:
            grid.client(key).chat.completions.create(model=MODEL, messages=HELLO)
        assert _error(caught)["code"] == "invalid_api_key"


def test_spent_budget_is_402_and_the_sdk_does_not_retry(grid: GridProcess) -> None:
    """A budget too small for the worst case refuses before any engine works; raising it takes effect at once."""
    grid.ask("account", "create", "poor", "--limit", "0.000001 USD")
    key = grid.ask("key", "create", "poor")["key"]
    wait_until(lambda: grid.get("/v1/models", key)[0] == 200, 5, "the key to be known")
    with pytest.raises(openai.APIStatusError) as caught:
        grid.client(key, max_retries=5).chat.completions.create(model=MODEL, messages=HELLO)
    assert caught.value.status_code == 402
    error = _error(caught)
    assert error["code"] == "budget_exceeded"
    assert "poor" in error["message"]
    assert "max_tokens" in error["hint"]
    grid.ask("budget", "set", "poor", "--limit", "1 USD")
    answered: list[object] = []

    def answers() -> bool:
        with contextlib.suppress(openai.APIStatusError):
            answered.append(grid.client(key).chat.completions.create(model=MODEL, messages=HELLO, max_tokens=2))
        return bool(answered)

    wait_until(answers, 5, "the raised budget")


def test_unknown_model_is_404_and_names_the_nearest(grid: GridProcess) -> None:
    """A misspelt model is answered with the right spelling."""
    with pytest.raises(openai.NotFoundError) as caught:
        grid.client().chat.completions.create(model="smollm2-135-instruct", messages=HELLO)
    error = _error(caught)
    assert error["code"] == "model_not_found"
    assert MODEL in error["hint"]


def test_large_body_is_413(grid: GridProcess) -> None:
    """A body beyond the bound is refused before it is read whole."""
    with pytest.raises(openai.APIStatusError) as caught:
        grid.client(max_retries=0).chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "x" * (9 << 20)}]
        )
    assert caught.value.status_code == 413
    assert _error(caught)["code"] == "request_too_large"


def test_long_prompt_is_400_context_length_exceeded(grid: GridProcess) -> None:
    """A prompt beyond the context is the client's mistake, costs nothing, and says how long is too long."""
    before = grid.ask("account", "list")
    with pytest.raises(openai.BadRequestError) as caught:
        grid.client().chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "word " * 6000}])
    assert _error(caught)["code"] == "context_length_exceeded"
    receipt = grid.ask("receipt", "show", caught.value.response.headers["x-tokenworks-receipt"])
    assert receipt["price_nano"] == 0
    spent = [budget["spent_nano"] for account in grid.ask("account", "list") for budget in account["budgets"]]
    assert spent == [budget["spent_nano"] for account in before for budget in account["budgets"]]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"messages": HELLO}, "model"),
        ({"model": MODEL}, "messages"),
        ({"model": MODEL, "messages": []}, "messages"),
        ({"model": MODEL, "messages": [{"role": "king", "content": "x"}]}, "messages[0].role"),
        ({"model": MODEL, "messages": HELLO, "max_tokens": -1}, "max_tokens"),
        ({"model": MODEL, "messages": HELLO, "max_tokens": "many"}, "max_tokens"),
        ({"model": MODEL, "messages": HELLO, "stream": "yes"}, "stream"),
        ({"model": MODEL, "messages": HELLO, "n": 0}, "n"),
    ],
)
def test_wrong_parameter_is_named(grid: GridProcess, body: dict[str, Any], param: str) -> None:
    """Every wrong parameter is a 400 that names it."""
    with pytest.raises(openai.BadRequestError) as caught:
        grid.client().post("/chat/completions", body=body, cast_to=object)
    assert _error(caught)["param"] == param


def test_unknown_path_and_method(grid: GridProcess) -> None:
    """Other paths are 404 with the nearest one, a GET on a token route is 405, both in the same shape."""
    status, body = grid.get("/v1/chat/completion", grid.keys.key)
    assert status == 404
    assert "/v1/chat/completions" in body["error"]["hint"]
    status, body = grid.get("/v1/chat/completions", grid.keys.key)
    assert status == 405
    assert body["error"]["code"] == "method_not_allowed"


def test_status_needs_an_administrator(grid: GridProcess) -> None:
    """A user's key does not show the grid's inside."""
    assert grid.get("/v1/status", grid.keys.key)[0] == 403
    assert grid.get("/v1/status", grid.keys.admin_key)[0] == 200


def test_metrics_page(grid: GridProcess) -> None:
    """The page is Prometheus text with the metrics that docs/metrics.md names, and no secret in it."""
    grid.client().chat.completions.create(model=MODEL, messages=HELLO, max_tokens=2)
    status, page = grid.get("/metrics")
    assert status == 200
    assert f'tokenworks_tokens_total{{bucket="output",model="{MODEL}"}}' in page
    assert 'tokenworks_replica_ready{replica="here-1"} 1.0' in page
    assert grid.keys.key not in page
