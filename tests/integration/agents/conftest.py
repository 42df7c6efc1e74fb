"""Fixtures: houses over scripted engines, on the event loop that a gateway runs on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import uvloop
from tests.support.house import World

from tokenworks.engine.adapter import Adapter


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture
def house(tmp_path: Path) -> Iterator[Callable[..., World]]:
    """Makes houses and closes their journals."""
    made: list[World] = []

    def make(*engines: Adapter, limit_nano: int = 10**12) -> World:
        folder = tmp_path / str(len(made))
        folder.mkdir()
        made.append(World(folder, engines, limit_nano))
        return made[-1]

    yield make
    for each in made:
        each.journal.close()
