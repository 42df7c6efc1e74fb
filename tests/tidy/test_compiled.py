"""What mypyc compiles (``make fast``) must keep off what mypyc gets wrong. Found the hard way, each with a crash."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
WITH_MESSAGES = ("Shortage", "_Unusable")
"""Errors that are always raised with a message, or never shown."""
PLAIN = ("Header",)
"""Structs all of whose members are of plain types, which mypyc keeps. It does not keep ``str | None``."""


def _compiled() -> list[Path]:
    """The modules of FAST, read from the Makefile with its continued lines joined."""
    lines = (ROOT / "Makefile").read_text().replace("\\\n", " ").splitlines()
    (fast,) = (line for line in lines if line.startswith("FAST :="))
    return [ROOT / "src" / "tokenworks" / f"{name}.py" for name in fast.split(",")[2].rstrip(")").split()]


COMPILED = _compiled()


def _ids(path: Path) -> str:
    return str(path.relative_to(ROOT / "src" / "tokenworks"))


def test_the_list_is_read() -> None:
    """The rules below look at what the Makefile compiles."""
    assert len(COMPILED) > 30
    assert all(path.is_file() for path in COMPILED), [path for path in COMPILED if not path.is_file()]


@pytest.mark.parametrize("path", COMPILED, ids=_ids)
def test_no_compiled_coroutine_waits_while_it_handles_an_error(path: Path) -> None:
    """mypyc does not put the handled error aside when a coroutine waits: another one then raises it, or None."""
    tree = ast.parse(path.read_text())
    handling = [
        part for node in ast.walk(tree) if isinstance(node, ast.Try) for part in [*node.handlers, *node.finalbody]
    ]
    waits = [inner.lineno for part in handling for inner in ast.walk(part) if isinstance(inner, ast.Await)]
    assert not waits, f"{path.name}:{waits} waits in an except or finally; look at the error after it"


@pytest.mark.parametrize("path", COMPILED, ids=_ids)
def test_no_error_class_is_compiled(path: Path) -> None:
    """A compiled class loses its docstring, which is an error's message unless it is given another."""
    tree = ast.parse(path.read_text())
    classes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    errors = re.compile(r"Error|Exception|NotFound|BadRequest|EngineDown|EngineFailed|BudgetSpent|LedgerRefused|Down$")
    found = [node.name for node in classes if any(errors.search(ast.unparse(base)) for base in node.bases)]
    assert not [name for name in found if name not in WITH_MESSAGES], found


@pytest.mark.parametrize("path", COMPILED, ids=_ids)
def test_no_struct_is_compiled(path: Path) -> None:
    """A compiled class loses the types of its members, by which msgspec reads it."""
    classes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ClassDef)]
    structs = [node.name for node in classes if any(re.search("Struct|Word$", ast.unparse(b)) for b in node.bases)]
    assert not [name for name in structs if name not in PLAIN], structs
