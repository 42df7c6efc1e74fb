"""``tokenworks doctor``: a list of checks, each with its evidence and, when it is not well, what to do."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from tokenworks.cli.out import Answer, command
from tokenworks.cli.reach import configured_host, configured_port, get, grid_key
from tokenworks.core.errors import DataDirError, TokenworksError
from tokenworks.datadir import FORMAT, data_directory, read_run
from tokenworks.device.discovery import discover
from tokenworks.engine.models import catalogue
from tokenworks.engine.pull import model_cache
from tokenworks.exchange.ask import ask
from tokenworks.exchange.journal import journal_folder, verify
from tokenworks.exchange.journals import journals

FREE_BYTES_MIN = 1_000_000_000
MEMORY_BYTES_MIN = 2_000_000_000


class Check(NamedTuple):
    """One finding."""

    check: str
    status: Literal["ok", "warn", "fail"]
    evidence: str
    fix: str | None = None


def _finding(check: str, well: bool, evidence: str, fix: str, else_: Literal["warn", "fail"] = "fail") -> Check:
    return Check(check, "ok", evidence) if well else Check(check, else_, evidence, fix)


def _python() -> Check:
    version = ".".join(map(str, sys.version_info[:3]))
    return _finding("python", (3, 11) <= sys.version_info[:2] <= (3, 13), version, "use Python 3.11 to 3.13")


def _devices() -> Check:
    found = discover()
    if not found:
        return Check("devices", "fail", "none found", "describe them in a grid file: [[site.device]]")
    seen = "; ".join(f"{d.name}, {d.threads} threads, {d.memory_bytes / 1e9:.1f} GB" for d in found)
    small = sum(d.memory_bytes for d in found) < MEMORY_BYTES_MIN
    return _finding("devices", not small, seen, "the embedded engine wants 2 GB of memory", "warn")


def _data() -> Check:
    data = data_directory()
    version = data / "version"
    if not version.exists():
        return Check("data directory", "ok", f"{data} (not started yet)")
    found = version.read_text().strip()
    if found != str(FORMAT):
        return Check("data directory", "fail", f"{data} has format {found}", "set TOKENWORKS_DATA to another directory")
    private = data.stat().st_mode & 0o077 == 0
    return _finding("data directory", private, str(data), f"others can read it: chmod 700 {data}")


def _disk() -> Check:
    place = data_directory()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    return _finding("disk", free >= FREE_BYTES_MIN, f"{free / 1e9:.1f} GB free", "free some space", "warn")


def _model() -> Check:
    missing = [m.name for m in catalogue().values() if not (model_cache() / m.file).exists()]
    seen = f"{', '.join(missing)} not fetched yet" if missing else str(model_cache())
    return _finding("model file", not missing, seen, "tokenworks model pull", "warn")


def _grid() -> Check:
    if read_run(data_directory()) is None:
        port = configured_port()
        return Check("grid", "warn", f"none is running (port {port} on {configured_host()})", "tokenworks up")
    try:
        found = get("/v1/status", grid_key(admin=True))
    except TokenworksError as error:
        return Check("grid", "fail", error.message, error.hint)
    states = ", ".join(f"{r['name']} {r['state']}" for r in found["replicas"])
    ready = any(r["state"] == "ready" for r in found["replicas"])
    return _finding("grid", ready, states, "see logs/ in the data directory")


def _books() -> Check:
    if not (data_directory() / "version").exists():
        return Check("books", "ok", "nothing booked yet")
    try:
        report: dict[str, Any] = ask(data_directory(), "books")
    except TokenworksError as error:
        return Check("books", "fail", error.message, error.hint)
    wrong = [check["check"] for check in report["checks"] if not check["ok"]]
    evidence = "; ".join(wrong) or f"closed, {report['receipts']} receipts"
    return _finding("books", not wrong, evidence, "tokenworks books shows the lines")


def _journals() -> Check:
    """The files themselves: every frame, the order of the segments, and the hashes that chain them."""
    wrong, count, records = [], 0, 0
    for source in journals(data_directory()):
        folder = journal_folder(data_directory(), *source)
        try:
            report = verify(folder)
        except DataDirError as error:
            wrong.append(error.message)
            continue
        count, records = count + report.segments, records + report.records
        if report.bad is not None:
            wrong.append("{} segment {} at offset {}: {}".format(folder, *report.bad))
    if wrong:
        return Check("journals", "fail", "; ".join(wrong), "restore that segment from a copy, then restart the grid")
    return Check("journals", "ok", f"{records} records in {count} segments, each hash and checksum right")


def _root() -> Check:
    root = os.geteuid() == 0
    return _finding("user", not root, "root" if root else "not root", "run it as a user of its own", "warn")


COLOURS = {"ok": "green", "warn": "yellow", "fail": "red"}
CHECKS: tuple[Callable[[], Check], ...] = (_python, _root, _devices, _data, _disk, _model, _grid, _books, _journals)


@command
def doctor() -> Answer:
    """Check this machine and its grid. Exit status 1 when a check fails; warnings do not count."""
    found, lines = [check() for check in CHECKS], []
    for each in found:
        lines.append(f"[{COLOURS[each.status]}]{each.status:4}[/] {each.check}: {each.evidence}")
        if each.fix:
            lines.append(f"       {each.fix}")
    return Answer([each._asdict() for each in found], lines, int(any(each.status == "fail" for each in found)))
