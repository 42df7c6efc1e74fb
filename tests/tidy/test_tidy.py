"""The repository's own rules, as tests. Each failure is a list of offenders, one a line: ``path:line what``."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "src" / "tokenworks"
SOURCES = sorted(PACKAGE.rglob("*.py"))
FILE_LINES_MAX = 400
FUNCTION_LINES_MAX = 70

# Effects stay outside (DESIGN, idea 1). A module that touches one says which and why; everything else asks a Clock, an
# Entropy or a port. Add an entry with its reason; an entry that is no longer needed is an offender too.
EFFECTS_ALLOWED: dict[str, dict[str, str]] = {
    "core/clock.py": {"clock": "the one live clock"},
    "core/ids.py": {"random": "the one source of ids and keys; tests pass their own entropy"},
    "engine/local.py": {"random": "a key between the gateway and its own child process, made anew at each start"},
    "engine/http.py": {"socket": "HTTP to replicas"},
    "engine/lifeline.py": {"socket": "asks the system for a free port for the engine that it starts"},
    "engine/pull.py": {"clock": "compares with the modification time of a file, which is wall time"},
    "exchange/ask.py": {"socket": "the command line's calls to the ledger process"},
    "exchange/link.py": {"socket": "the gateway's end of the line to the ledger process"},
    "exchange/server.py": {"socket": "the ledger process's end of that line"},
    "site/meters/page.py": {"socket": "HTTP to meters, BMCs and pages of metrics"},
    "cli/reach.py": {"socket": "the command line is a client of a running grid"},
    "gateway.py": {"socket": "listens on the grid's port"},
}
# Modules of the exchange that wait for disks and sockets, in seconds as Python wants them; none touches an amount.
FLOAT_WAITS = ("journal.py", "link.py", "server.py")
EFFECT_MODULES = {
    "random": "random",
    "secrets": "random",
    "uuid": "random",
    "socket": "socket",
    "socketserver": "socket",
    "http.client": "socket",
    "http.server": "socket",
    "urllib.request": "socket",
}
EFFECT_CALLS = {
    "time.time": "clock",
    "time.time_ns": "clock",
    "time.monotonic": "clock",
    "time.monotonic_ns": "clock",
    "time.perf_counter": "clock",
    "time.perf_counter_ns": "clock",
    "datetime.now": "clock",
    "datetime.utcnow": "clock",
    "datetime.today": "clock",
    "date.today": "clock",
    "os.urandom": "random",
}
SOCKET_METHODS = {
    "open_connection",
    "open_unix_connection",
    "create_connection",
    "create_unix_connection",
    "create_server",
    "create_unix_server",
    "start_server",
    "start_unix_server",
}


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def at(path: Path, line: int, what: str) -> str:
    return f"{path.relative_to(ROOT)}:{line} {what}"


def report(rule: str, offenders: list[str]) -> None:
    if offenders:
        pytest.fail("\n  ".join([rule, *offenders]), pytrace=False)


@cache
def text_files() -> tuple[tuple[Path, str], ...]:
    """What is in the repository, or would be with the next commit, and is text."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    found = []
    for name in sorted(set(listed.stdout.split("\0")) - {""}):
        path = ROOT / name
        if path.is_file() and b"\0" not in (content := path.read_bytes()):
            found.append((path, content.decode(errors="replace")))
    return tuple(found)


def test_no_source_file_is_too_long() -> None:
    """A file that needs more lines holds more than one idea."""
    lengths = ((path, len(path.read_text().splitlines())) for path in SOURCES)
    report(
        f"source files have at most {FILE_LINES_MAX} lines",
        [at(path, length, "lines") for path, length in lengths if length > FILE_LINES_MAX],
    )


def test_no_function_is_too_long() -> None:
    """A function fits a screen."""
    offenders = []
    for path in SOURCES:
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                if length > FUNCTION_LINES_MAX:
                    offenders.append(at(path, node.lineno, f"{node.name} has {length} lines"))
    report(f"functions have at most {FUNCTION_LINES_MAX} lines", offenders)


def test_every_package_says_what_it_owns() -> None:
    """The docstring of a package is a paragraph: what it is, what it owns or may not do."""
    offenders = []
    for path in SOURCES:
        if path.name == "__init__.py":
            sentences = re.findall(r"[.!?](?=\s|$)", ast.get_docstring(tree(path)) or "")
            if len(sentences) < 2:
                offenders.append(at(path, 1, f"has {len(sentences)} sentences"))
    report("a package's docstring has two sentences or more", offenders)


def test_every_public_module_has_a_docstring() -> None:
    """A reader who opens any file is told what it is."""
    offenders = [at(path, 1, "has none") for path in SOURCES if not ast.get_docstring(tree(path))]
    report("every module has a docstring", offenders)


def effects(path: Path) -> Iterator[tuple[str, int, str]]:
    """Each use of clock, randomness or sockets as (effect, line, what)."""
    for node in ast.walk(tree(path)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Attribute):
            called = ".".join(ast.unparse(node).split(".")[-2:])
            if called in EFFECT_CALLS:
                yield EFFECT_CALLS[called], node.lineno, called
            if node.attr in SOCKET_METHODS:
                yield "socket", node.lineno, node.attr
        for name in names:
            if effect := EFFECT_MODULES.get(name) or EFFECT_CALLS.get(name):
                yield effect, getattr(node, "lineno", 1), f"import of {name}"


def test_effects_stay_in_the_modules_that_say_so() -> None:
    """Clock, randomness and sockets come in from outside, so that twin, recovery and tests run the same functions."""
    offenders = []
    for path in SOURCES:
        name = path.relative_to(PACKAGE).as_posix()
        allowed = EFFECTS_ALLOWED.get(name, {})
        used = list(effects(path))
        offenders += [at(path, line, f"{what} ({effect})") for effect, line, what in used if effect not in allowed]
        offenders += [
            at(path, 1, f"is allowed {effect} without need") for effect in allowed.keys() - {e[0] for e in used}
        ]
    offenders += [
        f"{name} is allowed effects but is not there" for name in EFFECTS_ALLOWED if not (PACKAGE / name).exists()
    ]
    report("clock, randomness and sockets only where EFFECTS_ALLOWED says why", offenders)


def joins_path(node: ast.expr) -> bool:
    """Whether a chain of ``/`` has a text in it, which no division of numbers has."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
        return joins_path(node.left) or joins_path(node.right)
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))


def test_the_exchange_counts_in_integers() -> None:
    """No float comes near a book: no literal, conversion, annotation, true division (joining paths is none)."""
    offenders = []
    for path in sorted((PACKAGE / "exchange").rglob("*.py")):
        if path.name in FLOAT_WAITS:
            continue
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Constant) and isinstance(node.value, float):
                offenders.append(at(path, node.lineno, f"the literal {node.value}"))
            elif isinstance(node, ast.Name) and node.id == "float":
                offenders.append(at(path, node.lineno, "the word float"))
            elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
                if not joins_path(node):
                    offenders.append(at(path, node.lineno, ast.unparse(node)))
            elif isinstance(node, ast.AugAssign) and isinstance(node.op, ast.Div):
                offenders.append(at(path, node.lineno, ast.unparse(node)))
    report("no float in exchange/", offenders)


def test_nothing_is_left_for_later_in_the_source() -> None:
    """What is not there is said in the docs, not in a note to oneself."""
    banned = re.compile(r"\b(TODO|FIXME|XXX|NotImplementedError)\b")
    offenders = [
        at(path, number, match[1])
        for path in SOURCES
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if (match := banned.search(line))
    ]
    report("no notes to oneself in src/", offenders)


def test_no_registry_host_and_no_path_of_one_machine() -> None:
    """The repository works wherever it is unpacked, with whatever package source pip is told to use."""
    host = re.compile(r"https?://[^\s/\"']*(?:pypi|pythonhosted|npmjs|registry|mirror)[^\s\"']*", re.IGNORECASE)
    place = re.compile(r"(?<![\w.~-])/(?:" + "|".join(("work", "root", "tmp/bash")) + r")(?:[/_][\w.-]*)")
    offenders = [
        at(path, number, match[0])
        for path, text in text_files()
        for number, line in enumerate(text.splitlines(), 1)
        if (match := host.search(line) or place.search(line))
    ]
    report("no registry host, no path of one machine", offenders)


def test_no_test_is_switched_off() -> None:
    """A test runs or is deleted."""
    banned = {"skip", "skipif", "skipIf", "skipTest", "xfail", "importorskip"}
    offenders = []
    for path in sorted((ROOT / "tests").rglob("*.py")):
        for node in ast.walk(tree(path)):
            name = node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
            if name in banned:
                offenders.append(at(path, getattr(node, "lineno", 1), name))
    report("no test is skipped or expected to fail", offenders)


def test_a_floor_imports_only_floors_below_it() -> None:
    """The house stands: the contracts of pyproject.toml hold."""
    linter = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([linter], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_environment_variable_is_documented() -> None:
    """Whatever variable of ours the source reads, README.md or docs/ names it."""
    docs = "".join(path.read_text() for path in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")] if path.exists())
    offenders = []
    for path in SOURCES:
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                name = re.fullmatch(r"TOKENWORKS_[A-Z0-9_]+", node.value)
                if name and not re.search(rf"\b{name[0]}\b", docs):
                    offenders.append(at(path, node.lineno, name[0]))
    report("environment variables that neither README.md nor docs/ names", offenders)
