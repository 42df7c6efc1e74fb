"""How the CLI shows things: data on stdout, everything else on stderr, tables for people, ``--json`` for programs."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table

from tokenworks.core.units import MJ_PER_KWH, money_text, stu_text


def console() -> Console:
    """For stdout; plain when it is no terminal or NO_COLOR is set."""
    return Console(highlight=False, soft_wrap=True)


def put_json(value: Any) -> None:
    """One indented JSON document on stdout."""
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(value)).decode() + "\n")


def note(text: str) -> None:
    """A line on stderr."""
    sys.stderr.write(text + "\n")


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]], right: Sequence[str] = ()) -> Table:
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


def money(nano: int | None, currency: str) -> str | None:
    """Exact money."""
    return None if nano is None else money_text(nano, currency)


def stu(ustu: int | None) -> str | None:
    """Exact standard tokens."""
    return None if ustu is None else stu_text(ustu)
