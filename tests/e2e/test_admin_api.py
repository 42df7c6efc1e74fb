"""The administration API over HTTP: every office, hostile bodies, its OpenAPI page and OpenAI's organization pages."""

from __future__ import annotations

import http.client
import inspect
import json
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlencode, urlsplit

import openai
import pytest
from tests.support.grid_process import MODEL, GridProcess

from tokenworks.exchange.offices import OFFICES

HELLO: Any = [{"role": "user", "content": "Say hello."}]
BIG = 10**30
pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GridProcess]:
    """A grid for hostile parameters: what they might break is no other test's."""
    folder = tmp_path_factory.mktemp("strict")
    running = GridProcess(folder / "data").start().wait_ready()
    yield running
    running.stop()


def call(
    grid: GridProcess, path: str, body: object = None, *, key: str | None = "", method: str = "POST", raw: str = ""
) -> tuple[int, Any]:
    """One request with the administrator's key, or another; the answer's JSON, or its text when it is none."""
    parts = urlsplit(grid.run.url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=30)
    shown = grid.keys.admin_key if key == "" else key
    try:
        sent = raw or (None if body is None else json.dumps(body))
        connection.request(method, path, sent, {"authorization": f"Bearer {shown}"} if shown else {})
        response = connection.getresponse()
        text = response.read().decode()
    finally:
        connection.close()
    try:
        return response.status, json.loads(text)
    except ValueError:
        return response.status, text


def admin(grid: GridProcess, office: str, **params: object) -> Any:
    """An office's answer, which must be one."""
    status, answer = call(grid, f"/v1/admin/{office}", params)
    assert status == 200, (office, params, answer)
    return answer


def check_refused(status: int, answer: Any, about: object) -> None:
    """A refusal of the client's mistake in the OpenAI error shape."""
    assert 400 <= status < 500, (about, status, answer)
    assert isinstance(answer, dict), (about, answer)
    assert {"message", "type", "param", "code"} <= answer["error"].keys(), (about, answer)
    assert answer["error"]["message"], about


def test_what_the_api_does_is_what_the_command_line_shows(grid: GridProcess) -> None:
    """Account, budget, key, package and sale by HTTP: each is there for the CLI, and the key spends."""
    assert admin(grid, "account_create", account="api-one", limit_nano=5 * 10**9) == {
        "account": "api-one",
        "status": "opened",
    }
    assert admin(grid, "account_create", account="api-one")["status"] == "already_opened"
    assert admin(grid, "budget_set", budget="api-team", parent="api-one", limit_nano=10**9)["status"] == "made"
    made = admin(grid, "key_create", budget="api-team")
    package = {"code": "api-pack", "name": "P", "size_ustu": 10**9, "price_nano": 10**9, "validity_ns": None}
    assert admin(grid, "package_define", package=package)["status"] == "defined"
    assert admin(grid, "grant_sell", account="api-one", package="api-pack", grant="api-grant")["status"] == "sold"
    assert admin(grid, "account_set", account="api-one", clamp=False)["status"] == "changed"
    answer = grid.client(made["key"]).chat.completions.create(model=MODEL, messages=HELLO, max_tokens=3)
    assert answer.model_extra is not None
    told = answer.model_extra["tokenworks"]
    assert told["price_nano"] == 0
    account = next(found for found in grid.ask("account", "list") if found["id"] == "api-one")
    assert account["clamp"] is False
    budgets = {budget["id"]: budget for budget in account["budgets"]}
    assert {name: budget["limit_nano"] for name, budget in budgets.items()} == {
        "api-one": 5 * 10**9,
        "api-team": 10**9,
    }
    assert [(g["id"], g["size_ustu"] - g["left_ustu"]) for g in account["grants"]] == [("api-grant", told["ustu"])]
    assert [key["id"] for key in grid.ask("key", "list", "api-one")] == [made["id"]]
    assert grid.ask("receipt", "list", "--account", "api-one") == [told["receipt"]]
    assert admin(grid, "key_revoke", key=made["id"])["status"] == "revoked"
    assert grid.get("/v1/models", made["key"])[0] == 401
    assert admin(grid, "accounts") == grid.ask("account", "list")
    assert grid.ask("books")["closed"] is True


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/admin/account_create"),
        ("POST", "/v1/admin/nothing"),
        ("GET", "/v1/admin/openapi.json"),
        ("GET", "/v1/status"),
        ("GET", "/v1/organization/costs?start_time=1"),
        ("GET", "/v1/organization/usage/completions?start_time=1"),
    ],
)
def test_only_administrators_come_in(grid: GridProcess, method: str, path: str) -> None:
    """A user's key gets 403, an unknown key and none get 401, all in the OpenAI error shape."""
    body = {"account": "api-never"}
    for key, wanted, code in (
        (grid.keys.key, 403, "not_allowed"),
        ("tw-00000000-0", 401, "invalid_api_key"),
        (None, 401, "invalid_api_key"),
    ):
        status, answer = call(grid, path, body, key=key, method=method)
        check_refused(status, answer, path)
        assert (status, answer["error"]["code"]) == (wanted, code)
    assert "api-never" not in {found["id"] for found in grid.ask("account", "list")}


def test_what_gateways_tell_the_ledger_is_not_for_administrators(grid: GridProcess) -> None:
    """lease, hello and describe_site are not found, whatever they are asked, and are in no description."""
    for office in ("lease", "hello", "describe_site"):
        bodies: list[dict[str, Any]] = [
            {},
            {"writer": "x"},
            {"facts": {}},
            {"writer": "x", "epoch": 1, "wanted": {}, "returned": {}},
        ]
        for body in bodies:
            status, answer = call(grid, f"/v1/admin/{office}", body)
            check_refused(status, answer, office)
            assert status == 404
    assert not {"/v1/admin/lease", "/v1/admin/hello", "/v1/admin/describe_site"} & described(grid)["paths"].keys()


WRONG: list[tuple[str, dict[str, Any]]] = [
    ("nothing", {}),
    ("answer", {}),
    ("__class__", {}),
    ("account_create", {}),
    ("account_create", {"acount": "x"}),
    ("account_create", {"account": 5}),
    ("account_create", {"account": None}),
    ("account_create", {"account": ["x"]}),
    ("account_create", {"account": "bad name"}),
    ("account_create", {"account": "w1", "limit_nano": "five"}),
    ("account_create", {"account": "w2", "limit_nano": -1}),
    ("account_create", {"account": "w3", "limit_nano": 1.5}),
    ("account_create", {"account": "w4", "limit_nano": BIG}),
    ("account_create", {"account": "w5", "window": ["day"]}),
    ("account_create", {"account": "w6", "window": "fortnight"}),
    ("account_create", {"account": "w7", "clamp": "yes"}),
    ("account_create", {"account": "w8", "name": 7}),
    ("account_create", {"account": "w9", "price_class": 8}),
    ("account_set", {"account": {}}),
    ("account_set", {"account": "nobody"}),
    ("account_set", {"account": "default", "clamp": "no"}),
    ("account_set", {"account": "default", "price_class": 5}),
    ("budget_set", {"budget": 7}),
    ("budget_set", {"budget": "w10", "parent": 7}),
    ("budget_set", {"budget": "w11", "parent": "default", "carved": "yes"}),
    ("budget_set", {"budget": "w12", "parent": "default", "expires_ns": "tomorrow"}),
    ("budget_set", {"budget": "w13", "parent": "default", "limit_nano": 0.5}),
    ("budget_close", {"budget": []}),
    ("keys", {"account": 5}),
    ("keys", {"account": []}),
    ("key_create", {"budget": 5}),
    ("key_create", {"budget": "default", "role": "emperor"}),
    ("key_create", {"budget": "default", "role": ["admin"]}),
    ("key_revoke", {"key": 5}),
    ("key_revoke", {"key": "nokey"}),
    ("package_define", {"package": 5}),
    ("package_define", {"package": {}}),
    ("grant_sell", {"account": "default", "package": []}),
    ("grant_sell", {"account": "default", "package": "none"}),
    ("grant_sell", {"account": "default", "package": "w-pack", "effective_ns": "now"}),
    ("grant_sell", {"account": "default", "package": "w-pack", "grant": 5}),
    ("grant_refund", {"grant": "none"}),
    ("grant_refund", {"grant": "w-grant", "refund_nano": "all"}),
    ("grant_refund", {"grant": "w-grant", "refund_nano": 0.5}),
    ("grant_refund", {"grant": "w-grant", "reason": 5}),
    ("entity_set", {"entity": 5}),
    ("entity_set", {"entity": "e", "fee_permille": "a"}),
    ("entity_set", {"entity": "e", "fee_permille": 0.5}),
    ("entity_set", {"entity": "e", "fee_permille": 2_000}),
    ("entity_set", {"entity": "e", "own": "x"}),
    ("receipt", {"receipt": 5, "account": None, "operator": True}),
    ("receipt", {"receipt": "a"}),
    ("receipts", {"limit": "many"}),
    ("receipts", {"limit": None}),
    ("receipts", {"account": [1]}),
    ("cake", {"since_ns": "x"}),
    ("cake", {"since_ns": BIG}),
    ("sold", {"limit": "x"}),
    ("sold", {"after": 5}),
    ("sold", {"until_ns": BIG}),
    ("entries", {"after": "x"}),
    ("entries", {"since_ns": "a"}),
    ("statement", {"statement": "none"}),
    ("statement", {"statement": 5}),
    ("statement_issue", {"until_ns": {}}),
    ("statement_issue", {"until_ns": 5}),
    ("statement_issue", {"until_ns": BIG}),
    ("statement_dispute", {"statement": "none", "reason": "x", "nano": 1}),
    ("statement_dispute", {"statement": "none", "reason": "x", "nano": 0.5}),
    ("dispute_answer", {"dispute": "none", "accepted": True}),
    ("dispute_answer", {"dispute": "none", "accepted": "yes"}),
    ("statements_net", {"netting": "bad name"}),
    ("pair_settle", {"netting": "none", "debtor": "a", "creditor": "b", "reference": "r"}),
    ("log_proof", {"old": "a", "new": 1}),
    ("log_proof", {"old": 0.5, "new": 1}),
    ("log_proof", {"old": 0, "new": 1 << 60}),
    ("receipt_export", {"receipts": "abc"}),
    ("receipt_export", {"receipts": 5}),
    ("receipt_export", {"receipts": []}),
    ("receipt_export", {"receipts": [5]}),
    ("organization_usage", {"start_time": "a"}),
    ("organization_usage", {"start_time": 0, "end_time": 100, "page": 5}),
    ("organization_usage", {"start_time": 0, "end_time": 100, "page": "page_" + "9" * 5_000}),
    ("organization_usage", {"start_time": 0, "end_time": 100, "limit": "x"}),
    ("organization_usage", {"start_time": 0, "end_time": 100, "group_by": "model"}),
    ("organization_usage", {"start_time": 0, "end_time": 100, "group_by": 5}),
    ("organization_costs", {"start_time": None}),
    *(("books", {name: 1}) for name in ("service", "clock", "self", "method", "name", "params", "number", "writer")),
]
RAW = ["[]", "5", '"a"', "{", "null", '{"a":1', "\x00", "[" * 5_000, '{"a":' * 3_000 + "1" + "}" * 3_000]


def test_no_mistake_is_taken_and_none_hurts(strict: GridProcess) -> None:
    """Unknown offices, wrong names, wrong types and broken bodies are refused; the ledger goes on, the books close."""
    ledgers = strict.children()["ledger"]
    package = {"code": "w-pack", "name": "W", "size_ustu": 10**9, "price_nano": 10**9, "validity_ns": None}
    admin(strict, "package_define", package=package)
    admin(strict, "grant_sell", account="default", package="w-pack", grant="w-grant")
    before = strict.ask("account", "list"), strict.ask("key", "list"), strict.ask("statement", "list")
    wrong = []
    for office, body in WRONG:
        status, answer = call(strict, f"/v1/admin/{office}", body)
        if not (400 <= status < 500 and isinstance(answer, dict) and "error" in answer):
            wrong.append((office, str(body)[:80], status, str(answer)[:120]))
    for raw in RAW:
        status, answer = call(strict, "/v1/admin/account_create", raw=raw)
        if not (400 <= status < 500 and isinstance(answer, dict) and "error" in answer):
            wrong.append(("account_create", raw[:40], status, str(answer)[:120]))
    books = strict.ask("books")
    assert not wrong, "\n".join(map(str, wrong))
    assert (strict.ask("account", "list"), strict.ask("key", "list"), strict.ask("statement", "list")) == before
    assert books["closed"] is True, [check for check in books["checks"] if not check["ok"]]
    assert strict.children()["ledger"] == ledgers
    assert "Traceback" not in strict.log.read_text()


def described(grid: GridProcess) -> dict[str, Any]:
    status, document = call(grid, "/v1/admin/openapi.json", method="GET")
    assert status == 200
    assert isinstance(document, dict)
    return document


def references(value: object) -> Iterator[str]:
    """Each $ref of a document."""
    if isinstance(value, dict):
        for name, inner in value.items():
            if name == "$ref":
                yield inner
            else:
                yield from references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from references(inner)


def test_the_description_is_openapi_of_the_offices(grid: GridProcess) -> None:
    """OpenAPI 3.1 whose paths are the offices, whose parameters are theirs, and whose references lead somewhere."""
    document = described(grid)
    assert document["openapi"].startswith("3.1.")
    assert document["info"].keys() >= {"title", "version"}
    operations = [path["post"] for path in document["paths"].values()]
    assert len({operation["operationId"] for operation in operations}) == len(operations) > 20
    for path, methods in document["paths"].items():
        name = path.removeprefix("/v1/admin/")
        assert name in OFFICES
        operation = methods["post"]
        assert operation["operationId"] == name
        assert operation["summary"]
        assert all(each["description"] for each in operation["responses"].values())
        schema = operation["requestBody"]["content"]["application/json"]["schema"]
        parameters = list(inspect.signature(OFFICES[name]).parameters.values())[1:]
        assert [*schema["properties"]] == [parameter.name for parameter in parameters]
        assert schema["required"] == [p.name for p in parameters if p.default is inspect.Parameter.empty]
        assert operation["requestBody"]["required"] == bool(schema["required"])
    for reference in references(document):
        found: Any = document
        for part in reference.removeprefix("#/").split("/"):
            found = found[part]
        assert isinstance(found, dict)


def test_every_described_path_can_be_called(grid: GridProcess) -> None:
    """Without its parameters an office names the first that is missing; one without any answers."""
    for path, methods in described(grid)["paths"].items():
        required = methods["post"]["requestBody"]["content"]["application/json"]["schema"]["required"]
        status, answer = call(grid, path, {})
        if required:
            check_refused(status, answer, path)
            assert status == 400
            assert any(name in answer["error"]["message"] for name in required), answer
        else:
            assert status == 200, (path, answer)


def page(grid: GridProcess, kind: str, **query: object) -> dict[str, Any]:
    status, answer = call(grid, f"/v1/organization/{kind}?{urlencode(query, doseq=True)}", method="GET")
    assert status == 200, answer
    assert isinstance(answer, dict)
    return answer


def results(made: dict[str, Any]) -> list[dict[str, Any]]:
    return [result for bucket in made["data"] for result in bucket["results"]]


def test_organization_pages_say_what_the_receipts_say(grid: GridProcess) -> None:
    """Tokens and requests per account and money per budget equal the sums of its receipts, in OpenAI's shape."""
    start = int(time.time()) - 60
    admin(grid, "account_create", account="api-usage")
    client = grid.client(admin(grid, "key_create", budget="api-usage")["key"])
    for tokens in (2, 5, 9):
        client.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=tokens)
    receipts = [grid.ask("receipt", "show", each) for each in grid.ask("receipt", "list", "--account", "api-usage")]
    assert len(receipts) == 3
    usage = page(grid, "usage/completions", start_time=start, group_by=["user_id", "model"])
    assert (usage["object"], usage["has_more"], usage["next_page"]) == ("page", False, None)
    own = [each for each in results(usage) if each["user_id"] == "api-usage"]
    assert all(each["object"] == "organization.usage.completions.result" for each in own)
    assert {each["model"] for each in own} == {MODEL}
    inputs = ("input", "cached_input", "cache_write")
    assert sum(each["input_tokens"] for each in own) == sum(
        receipt["usage"].get(name, 0) for receipt in receipts for name in inputs
    )
    assert sum(each["output_tokens"] for each in own) == sum(receipt["usage"]["output"] for receipt in receipts)
    assert sum(each["num_model_requests"] for each in own) == 3
    costs = page(grid, "costs", start_time=start, group_by="project_id")
    assert costs["object"] == "page"
    assert all(bucket["object"] == "bucket" for bucket in costs["data"])
    amounts = [each["amount"] for each in results(costs) if each["project_id"] == "api-usage"]
    assert {amount["currency"] for amount in amounts} == {"usd"}
    # A float has 15 digits, so below a million dollars the nearest nano-dollar is the exact one.
    assert sum(round(amount["value"] * 10**9) for amount in amounts) == sum(r["price_nano"] for r in receipts) > 0


def test_organization_pages_go_on_where_they_stopped(grid: GridProcess) -> None:
    """A page of the smallest size leads to the next until all buckets came once, each with its bounds."""
    end = int(time.time()) // 60 * 60
    found: list[int] = []
    query: dict[str, object] = {"start_time": end - 180, "end_time": end, "bucket_width": "1m", "limit": 1}
    while True:
        made = page(grid, "usage/completions", **query)
        found += [bucket["start_time"] for bucket in made["data"]]
        assert all(bucket["end_time"] - bucket["start_time"] == 60 for bucket in made["data"])
        assert made["has_more"] == (made["next_page"] is not None)
        if not made["has_more"]:
            break
        query["page"] = made["next_page"]
    assert found == [end - 180, end - 120, end - 60]


@pytest.mark.parametrize("kind", ["usage/completions", "costs"])
def test_wrong_questions_of_organization_pages_are_400(grid: GridProcess, kind: str) -> None:
    """Each bad parameter of the query string is the asker's mistake, and is told so."""
    now = int(time.time())
    started: dict[str, object] = {"start_time": now - 60}
    queries: list[dict[str, object]] = [
        {},
        {"start_time": "x"},
        {"start_time": "-1"},
        {"start_time": "1.5"},
        {"start_time": "²"},
        {"start_time": "9" * 5_000},
        {"start_time": 1},
        {"start_time": now, "end_time": now - 5},
        started | {"end_time": 10**20},
        started | {"end_time": "²"},
        started | {"limit": 0},
        started | {"limit": 99_999},
        started | {"limit": "x"},
        started | {"limit": "9" * 40},
        started | {"page": "x"},
        started | {"page": "page_²"},
        started | {"page": "page_1"},
        started | {"page": "page_" + "9" * 5_000},
        started | {"group_by": "colour"},
        started | {"group_by[]": "colour"},
    ]
    if kind != "costs":
        queries.append(started | {"bucket_width": "1w"})
    wrong = []
    for query in queries:
        status, answer = call(grid, f"/v1/organization/{kind}?{urlencode(query)}", method="GET")
        if status != 400 or not isinstance(answer, dict) or answer["error"]["code"] != "bad_request":
            wrong.append((str(query)[:80], status, str(answer)[:120]))
    assert not wrong, "\n".join(map(str, wrong))


def test_the_sdk_shows_refusals_as_its_own_errors(grid: GridProcess) -> None:
    """The official SDK, given an administrator's path, raises its own classes for our refusals."""
    client = grid.client(max_retries=0)
    with pytest.raises(openai.PermissionDeniedError):
        client.post("/admin/accounts", body={}, cast_to=object)
    boss = grid.client(grid.keys.admin_key, max_retries=0)
    with pytest.raises(openai.BadRequestError):
        boss.post("/admin/account_create", body={"acount": "x"}, cast_to=object)
    assert boss.post("/admin/packages", body={}, cast_to=object) is not None
