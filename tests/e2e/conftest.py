"""Fixtures: a grid shared by all tests that leave it whole, and one of its own for a test that breaks it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.grid_process import MODEL, GridProcess


@pytest.fixture(scope="session")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GridProcess]:
    """One grid for all tests that leave it whole. Intervals close every second."""
    folder = tmp_path_factory.mktemp("grid")
    file = folder / "grid.toml"
    file.write_text(f'[[site]]\nname = "here"\n[site.supply]\ninterval = "1 s"\n[[replica]]\nmodel = "{MODEL}"\n')
    running = GridProcess(folder / "data", "--grid", str(file)).start().wait_ready()
    yield running
    running.stop()


@pytest.fixture
def own_grid(tmp_path: Path) -> Iterator[GridProcess]:
    """A grid for a test that breaks it; not started yet."""
    made = GridProcess(tmp_path / "data")
    yield made
    if made.process is not None and made.process.poll() is None:
        made.stop()
