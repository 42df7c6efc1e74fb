"""Tables of signals: CSV (also gzip) and Parquet files become signals in the units of the books.

One row is one step. It starts at ``ts_utc`` (ISO 8601), or at ``ts_local`` (a zone's wall clock; an hour that comes
twice in autumn stands twice, in order), or an hour before ``year, month, day, hour_ending``. Names of value columns end
in the unit (``UNITS``). An empty cell is a gap. ``minutes``: how long a row lasts.
"""

from __future__ import annotations

import csv
import gzip
import math
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta, tzinfo
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from tokenworks.core.errors import TokenworksError, did_you_mean
from tokenworks.core.units import NS_PER_S
from tokenworks.power.signal import Signal

MINUTE_NS, HOUR_NS = 60 * NS_PER_S, 3_600 * NS_PER_S
ROWS_MAX = 5_000_000
"""Rows of one file: 47 years of 5-minute steps."""
UNITS = {"price_per_mwh": 1e6, "price_per_kwh": 1e9, "_g_per_kwh": 1e6, "_mw": 1e9, "_kw": 1e6}
UNITS |= {"_pct": 10, "_c": 1e3, "_m_s": 1e3, "availability": 1e6}
"""End of a column's name -> factor to nano-currency (the file's own) and micrograms per kWh, milliwatts, permille,
thousandths of a degree, millimetres per second, parts per million. Rounded: exact to 15 digits of the cell."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
Columns = dict[str, Sequence[Any]]


class BadTable(TokenworksError):
    """The table cannot be read as signals."""

    code, exit_status = "bad_table", 2


def load(
    path: Path, column: str, *, length_ns: int = HOUR_NS, zone: tzinfo | None = None, by_end: bool = False
) -> Signal:
    """One column of a file as a signal. Raises BadTable, naming file, row and what to do.

    A row lasts until the next one, but at most ``length_ns`` (where a stretch is missing: as long as the row before).
    ``by_end``: the file stamps the end of its steps, which all last ``length_ns``.
    """
    table = _read(path)
    starts, values = _instants(path, table, zone), _values(path, table, column)
    starts -= length_ns if by_end else 0
    return _signal(path, table, starts, values, length_ns)


def _signal(path: Path, table: Columns, starts: Any, values: Any, length_ns: int) -> Signal:
    """The steps of all rows; those without a value delimit their neighbours and are left out."""
    steps = np.diff(starts)
    if np.any(steps <= 0):
        row = int(np.argmax(steps <= 0))
        raise BadTable(f"{path}: row {row + 3} does not start after the row before", hint="sort it; one row a step")
    if "minutes" in table:
        lengths = np.array([int(float(each) * MINUTE_NS) for each in table["minutes"]], dtype=np.int64)
        lengths[:-1] = np.minimum(lengths[:-1], steps)
    else:
        lengths = np.append(steps, length_ns + 1)
        for row in np.flatnonzero(lengths > length_ns).tolist():  # before a missing stretch: as the row before
            lengths[row] = min(length_ns, int(lengths[row - 1])) if row else length_ns
    there = ~np.isnan(values)
    return Signal(starts[there], (starts + lengths)[there], np.rint(values[there]).astype(np.int64))


def _read(path: Path) -> Columns:
    try:
        if path.suffix == ".parquet":
            return _parquet(path)
        with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as file:
            rows = csv.reader(file)
            header = next(rows, [])
            found = list(islice(rows, ROWS_MAX + 1))
    except (OSError, EOFError, ValueError, csv.Error) as error:
        raise BadTable(f"{path}: cannot be read: {error}") from error
    lengths = list(map(len, found))
    if lengths.count(len(header)) < len(found) or len(found) > ROWS_MAX:
        wrong = [
            f"row {number} has another length than row 1" for number, n in enumerate(lengths, 2) if n != len(header)
        ]
        raise BadTable(f"{path}: {(wrong or ['too many rows'])[0]}")
    return dict(zip(header, zip(*found, strict=True), strict=True)) if found else dict.fromkeys(header, ())


def _parquet(path: Path) -> Columns:
    try:
        from pyarrow import parquet  # heavy: only who keeps Parquet files needs it
    except ImportError as error:
        raise BadTable(f"{path}: Parquet needs pyarrow", hint="install tokenworks[parquet], or write CSV") from error
    with parquet.ParquetFile(path) as file:
        if file.metadata.num_rows > ROWS_MAX:
            raise BadTable(f"{path}: too many rows")
        table = file.read()
    return {name: table.column(name).to_pylist() for name in table.column_names}


def _column(path: Path, table: Columns, name: str) -> Sequence[Any]:
    if name not in table:
        raise BadTable(f"{path}: has no column {name!r}", hint=did_you_mean(name, table))
    return table[name]


def _values(path: Path, table: Columns, name: str) -> Any:
    cells = _column(path, table, name)
    factor = next((factor for end, factor in UNITS.items() if name.endswith(end)), None)
    if factor is None:
        raise BadTable(f"{path}: the name of column {name!r} does not end in a unit", hint=", ".join(UNITS))
    try:
        values = np.array([math.nan if cell is None or cell == "" else float(cell) for cell in cells], dtype=np.float64)
    except ValueError as error:
        raise BadTable(f"{path}: column {name!r}: {error}", hint="leave the cell of an unknown value empty") from error
    if np.any(np.abs(values) > 2**62 / factor):
        raise BadTable(f"{path}: column {name!r} has a value that the books cannot count")
    return values * factor


def _instants(path: Path, table: Columns, zone: tzinfo | None) -> Any:
    """Starts in nanoseconds UTC."""
    if "hour_ending" in table:
        parts = zip(*(_column(path, table, name) for name in ("year", "month", "day", "hour_ending")), strict=True)
        cells: Sequence[Any] = [f"{int(y)}-{int(m):02}-{int(d):02}T{int(hour) - 1:02}" for y, m, d, hour in parts]
        zone = zone or UTC
    else:
        cells = _column(path, table, "ts_local" if zone else "ts_utc")
    starts = [_utc_ns(path, row, cell, zone) for row, cell in enumerate(cells)]
    if zone is not None:
        for row in range(1, len(starts)):  # the second of an hour that comes twice
            if starts[row] <= starts[row - 1]:
                starts[row] = _utc_ns(path, row, cells[row], zone, fold=1)
    return np.array(starts, dtype=np.int64)


def _utc_ns(path: Path, row: int, cell: Any, zone: tzinfo | None, fold: int = 0) -> int:
    try:
        when = cell if isinstance(cell, datetime) else datetime.fromisoformat(cell)
    except (TypeError, ValueError) as error:
        raise BadTable(f"{path}: row {row + 2}: {cell!r} is not a time", hint="like 2026-01-31T23:00Z") from error
    if when.tzinfo is None:
        if zone is None:
            raise BadTable(f"{path}: row {row + 2}: {cell!r} has no zone", hint="end it in Z, or name it ts_local")
        local = when.replace(tzinfo=zone, fold=fold)
        when = local.astimezone(UTC)
        if when.astimezone(zone).replace(tzinfo=None) != local.replace(tzinfo=None):
            raise BadTable(f"{path}: row {row + 2}: {cell!r} did not happen: the clocks were put forward")
    return (when - _EPOCH) // _MICROSECOND * 1_000
