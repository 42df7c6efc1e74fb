"""How commands answer: data on stdout, tables for people and ``--json`` for programs; everything else on stderr."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import update_wrapper
from typing import Annotated, Any, NamedTuple

import msgspec
from cyclopts import Parameter
from rich.console import Console, RenderableType
from rich.table import Table

from tokenworks.core.clock import utc_text
from tokenworks.core.units import MJ_PER_KWH, money_text, stu_text

Flag = Annotated[bool, Parameter(negative="")]
OutFile = Parameter(name="--out")
Json = Annotated[bool, Parameter(name="--json", negative="", help="Print JSON.")]
_JSON = inspect.Parameter("as_json", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Json)


class Answer(NamedTuple):
    """What a command found: the data for programs, what people are shown of it, and the exit status."""

    data: Any
    shown: Iterable[RenderableType] = ()
    status: int = 0


def command(function: Callable[..., Answer]) -> Callable[..., int]:
    """The function as a command with ``--json``. One that must know beforehand takes ``as_json`` itself."""
    parameters = dict(inspect.signature(function, eval_str=True).parameters)
    knows = parameters.pop(_JSON.name, None) is not None

    def run(*words: Any, as_json: bool = False, **options: Any) -> int:
        answer = function(*words, **options, **({_JSON.name: as_json} if knows else {}))
        if as_json:
            put_json(answer.data)
        else:
            for each in answer.shown:
                console().print(each)
        return answer.status

    vars(run)["__signature__"] = inspect.Signature([*parameters.values(), _JSON])
    return update_wrapper(run, function)


def told(made: dict[str, Any], text: str) -> Answer:
    """An answer of the ledger in words that name its fields."""
    return Answer(made, [text.format(**made)])


PIPE_COLUMNS = 160


def console() -> Console:
    """For stdout; plain when it is no terminal or NO_COLOR is set, and then as wide as a line of a log."""
    given = sys.stdout.isatty() or "COLUMNS" in os.environ
    return Console(highlight=False, soft_wrap=True, width=None if given else PIPE_COLUMNS)


def put_json(value: Any) -> None:
    """One indented JSON document on stdout."""
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(value)).decode() + "\n")


def note(text: str) -> None:
    """A line on stderr."""
    sys.stderr.write(text + "\n")


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]], right: Sequence[str] = ()) -> Table:
    """A table; the columns named in ``right`` hold numbers."""
    made = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for column in columns:
        made.add_column(column, justify="right" if column in right else "left", overflow="fold")
    for row in rows:
        made.add_row(*("-" if cell is None else str(cell) for cell in row))
    return made


def energy(mj: int | None) -> str | None:
    """Millijoules for people: J below 100 kJ, then Wh and kWh."""
    if mj is None:
        return None
    if abs(mj) < 100_000_000:
        return f"{mj / 1000:,.3f} J"
    return f"{mj / MJ_PER_KWH * 1000:,.2f} Wh" if abs(mj) < MJ_PER_KWH else f"{mj / MJ_PER_KWH:,.3f} kWh"


def carbon(ug: int | None) -> str | None:
    """Micrograms for people."""
    if ug is None:
        return None
    if abs(ug) < 1_000_000:
        return f"{ug / 1000:,.3f} mg CO2e"
    return f"{ug / 1e6:,.3f} g CO2e" if abs(ug) < 1e9 else f"{ug / 1e9:,.3f} kg CO2e"


def water(ul: int | None) -> str | None:
    """Microlitres for people."""
    return None if ul is None else f"{ul / 1e6:,.3f} l" if abs(ul) >= 100_000 else f"{ul / 1e3:,.3f} ml"


def money(nano: int | None, currency: str) -> str | None:
    """Exact money."""
    return None if nano is None else money_text(nano, currency).strip()


def stu(ustu: int | None) -> str | None:
    """Exact standard tokens."""
    return None if ustu is None else stu_text(ustu)


def when(ns: int | None) -> str | None:
    """An instant in UTC."""
    return utc_text(ns) if ns else None
