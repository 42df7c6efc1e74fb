"""Docs under test: what is not documented is a red test, and what is documented exists."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
from cyclopts import App
from tests.tidy.test_tidy import ROOT

from tokenworks.agents.heads import TOKEN_ROUTES
from tokenworks.agents.metrics import Metrics
from tokenworks.cli import app
from tokenworks.core import errors
from tokenworks.gridfile import GridFile, load
from tokenworks.gridfile.tables import (
    Brain,
    Charge,
    Contract,
    Device,
    Event,
    Exchange,
    Gateway,
    Meter,
    Module,
    OpenAdr,
    Price,
    Rate,
    Replica,
    Server,
    SignalFile,
    Site,
    Supply,
    Tier,
    Window,
)


def page(name: str) -> str:
    return (ROOT / name).read_text()


def leaves(node: App, path: tuple[str, ...] = ()) -> list[str]:
    found = []
    for name in node:
        if name.startswith("-"):
            continue
        child = node[name]
        below = leaves(child, (*path, name))
        found += below or [" ".join((*path, name))]
    return found


def test_every_command_is_documented() -> None:
    """docs/cli.md names every command, and no command that does not exist."""
    documented = {" ".join(m.split()) for m in re.findall(r"`tokenworks ([a-z]+(?: [a-z]+)?)", page("docs/cli.md"))}
    assert documented == set(leaves(app))


def test_every_metric_is_documented() -> None:
    """docs/metrics.md names exactly the metrics of the registry."""
    samples = {m.name + ("_total" if m.type == "counter" else "") for m in Metrics().registry.collect()}
    assert set(re.findall(r"`(tokenworks_\w+)`", page("docs/metrics.md"))) == samples


def test_every_error_that_http_can_give_is_documented() -> None:
    """docs/api.md names every error code that a request can meet."""
    kinds = [
        kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.TokenworksError)
    ]
    inside = {"bad_quantity", "internal_error", "unreachable", "ledger_refused"}
    codes = {kind.code for kind in kinds if kind.status != 500} - inside
    assert codes <= set(re.findall(r"`(\w+)`", page("docs/api.md"))), codes


def test_every_route_is_documented() -> None:
    """docs/api.md names the token routes."""
    for route in TOKEN_ROUTES:
        assert f"`POST {route.decode()}`" in page("docs/api.md")


def test_every_key_of_the_grid_file_is_documented() -> None:
    """docs/grid-file.md names every key that a grid file can have."""
    words = set(re.findall(r"`([a-z_]+)`", page("docs/grid-file.md")))
    power = (Supply, SignalFile, Contract, Charge, Tier, Event, OpenAdr, Module, Window, Server, Meter)
    for table in (GridFile, Exchange, Rate, Price, Brain, Gateway, Site, *power, Device, Replica):
        for field in msgspec.structs.fields(table):
            nested = field.encode_name in ("site", "supply", "device", "replica", "exchange", "brain", "rate", "price")
            nested |= field.encode_name in ("contract", "charge", "tier", "event", "openadr", "gateway")
            nested |= field.encode_name in ("module", "window", "server", "meter")
            assert nested or field.encode_name in words, f"{table.__name__}.{field.encode_name}"


def test_every_example_loads() -> None:
    """Each grid in examples/ is a valid grid file."""
    for path in sorted((ROOT / "examples").glob("*.toml")):
        assert load(path).replicas


def test_links_in_the_docs_lead_somewhere() -> None:
    """No page links to a file that is not there."""
    for name in ("README.md", *(str(p.relative_to(ROOT)) for p in (ROOT / "docs").glob("*.md"))):
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page(name)):
            assert (ROOT / Path(name).parent / target).exists(), f"{name}: {target}"
