from __future__ import annotations

import gzip
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pyarrow as pa
import pytest
from pyarrow import parquet

from tokenworks.power.signal import at, weighed
from tokenworks.power.tables import HOUR_NS, MINUTE_NS, BadTable, load

ROME = ZoneInfo("Europe/Rome")


def ns(text: str) -> int:
    return int(datetime.fromisoformat(text).timestamp()) * 1_000_000_000


def write(folder: Path, text: str, name: str = "t.csv") -> Path:
    path = folder / name
    if name.endswith(".gz"):
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)
    return path


PRICES = "ts_utc,price_per_mwh\n2023-07-02T11:00Z,-499.9\n2023-07-02T12:00Z,-500.0\n2023-07-02T13:00Z,\n"
PRICES += "2023-07-02T14:00Z,48.19\n"


@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz"])
def test_a_price_table_reads_exactly_with_its_gap(tmp_path: Path, name: str) -> None:
    """After the shared tables: money per MWh becomes whole nano-currency per kWh, an empty cell is a gap."""
    signal = load(write(tmp_path, PRICES, name), "price_per_mwh")
    hours = [at(signal, ns(f"2023-07-02T{hour}:30:00Z")) for hour in (10, 11, 12, 13, 14, 15)]
    assert hours == [None, -499_900_000, -500_000_000, None, 48_190_000, None]


def test_units_follow_the_name_of_the_column(tmp_path: Path) -> None:
    """After unit mix-ups: every kind of column of the shared tables reaches its integer unit."""
    text = "ts_utc,ci_lca_g_per_kwh,carbon_free_pct,temp_c,wind10_m_s,wnd_mw,availability,price_per_kwh,note\n"
    text += "2022-01-01T00:00Z,526.8,50.0,-1.9,2.5,149,0.25,0.38,x\n"
    path = write(tmp_path, text)
    names = text.split("\n", maxsplit=1)[0].split(",")[1:-1]
    values = [at(load(path, name), ns("2022-01-01T00:00:00Z")) for name in names]
    assert values == [526_800_000, 500, -1_900, 2_500, 149_000_000_000, 250_000, 380_000_000]
    with pytest.raises(BadTable, match="does not end in a unit"):
        load(path, "note")
    with pytest.raises(BadTable, match="did you mean 'temp_c'"):
        load(path, "temp_d")


def test_quarters_follow_hours_in_one_file(tmp_path: Path) -> None:
    """After 2025-10-01: rows of 60 and then of 15 minutes, with a missing stretch, each last as long as they should."""
    rows = ["2025-09-30T21:00Z,10", "2025-09-30T22:00Z,1", "2025-09-30T22:15Z,2", "2025-09-30T23:30Z,3"]
    signal = load(write(tmp_path, "ts_utc,price_per_mwh\n" + "\n".join(rows)), "price_per_mwh")
    minutes = ((signal.ends - signal.starts) // MINUTE_NS).tolist()
    assert minutes == [60, 15, 15, 15]
    assert at(signal, ns("2025-09-30T22:45:00Z")) is None


def test_a_row_may_say_its_own_length(tmp_path: Path) -> None:
    """After guesses: the column ``minutes`` is believed, and cut where the next row begins."""
    rows = "ts_utc,minutes,price_per_mwh\n2025-01-01T00:00Z,30,1\n2025-01-01T01:00Z,90,2\n2025-01-01T02:00Z,5,3\n"
    signal = load(write(tmp_path, rows), "price_per_mwh")
    assert ((signal.ends - signal.starts) // MINUTE_NS).tolist() == [30, 60, 5]


def test_stamps_of_the_end_and_hours_ending(tmp_path: Path) -> None:
    """After the two other habits: end-stamped rows and hours counted 1 to 24 start an hour earlier."""
    ends = load(write(tmp_path, "ts_utc,a_mw\n2020-01-01T01:00Z,1\n2020-01-01T02:00Z,2"), "a_mw", by_end=True)
    rows = "year,month,day,hour_ending,a_mw\n2020,1,1,1,1\n2020,1,1,24,2\n"
    hours = load(write(tmp_path, rows, "h.csv"), "a_mw")
    assert ends.starts.tolist() == [ns("2020-01-01T00:00:00Z"), ns("2020-01-01T01:00:00Z")]
    assert hours.starts.tolist() == [ns("2020-01-01T00:00:00Z"), ns("2020-01-01T23:00:00Z")]


@pytest.mark.parametrize(("day", "hours"), [("2025-03-30", 23), ("2025-10-26", 25), ("2025-10-27", 24)])
@pytest.mark.parametrize("step", [15, 60])
def test_local_days_of_23_and_25_hours(tmp_path: Path, day: str, hours: int, step: int) -> None:
    """After daylight saving: a local file of such a day covers it in UTC without gap or overlap, in order of rows."""
    start = datetime.fromisoformat(day).replace(tzinfo=ROME).astimezone(UTC)
    count = hours * 60 // step
    stamps = [(start + timedelta(minutes=step * n)).astimezone(ROME).strftime("%Y-%m-%dT%H:%M") for n in range(count)]
    text = "ts_local,price_per_mwh\n" + "\n".join(f"{stamp},{n}" for n, stamp in enumerate(stamps))
    signal = load(write(tmp_path, text), "price_per_mwh", length_ns=step * MINUTE_NS, zone=ROME)
    begin = int(start.timestamp()) * 1_000_000_000
    assert signal.starts.tolist() == [begin + n * step * MINUTE_NS for n in range(count)]
    assert weighed(signal, begin, begin + hours * HOUR_NS) is not None
    assert int(signal.ends[-1]) == begin + hours * HOUR_NS


def test_parquet_equals_csv(tmp_path: Path) -> None:
    """After the other format: a Parquet file with real timestamps gives the same signal as the CSV."""
    rows = [line.split(",") for line in PRICES.splitlines()[1:]]
    times = pa.array([datetime.fromisoformat(when) for when, _ in rows], pa.timestamp("us", tz="UTC"))
    prices = pa.array([float(price) if price else None for _, price in rows])
    parquet.write_table(pa.table({"ts_utc": times, "price_per_mwh": prices}), tmp_path / "t.parquet")
    ours, csv = (load(path, "price_per_mwh") for path in (tmp_path / "t.parquet", write(tmp_path, PRICES)))
    assert ours.starts.tolist() == csv.starts.tolist()
    assert ours.ends.tolist() == csv.ends.tolist()
    assert ours.values.tolist() == csv.values.tolist()


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("ts_utc,a_mw\n2020-01-01T00:00Z,1\n2020-01-01T00:00Z,2\n", "row 3 does not start after the row before"),
        ("ts_utc,a_mw\n2020-01-01T00:00,1\n", "row 2: '2020-01-01T00:00' has no zone"),
        ("ts_utc,a_mw\nyesterday,1\n", "row 2: 'yesterday' is not a time"),
        ("ts_utc,a_mw\n2020-01-01T00:00Z,1,2\n", "row 2 has another length than row 1"),
        ("ts_utc,a_mw\n2020-01-01T00:00Z,much\n", "column 'a_mw': could not convert"),
        ("ts_utc,a_mw\n2020-01-01T00:00Z,inf\n", "has a value that the books cannot count"),
        ("ts_utc,a_mw\n2020-01-01T00:00Z,1e300\n", "has a value that the books cannot count"),
        ("when,a_mw\n2020-01-01T00:00Z,1\n", "has no column 'ts_utc'"),
    ],
)
def test_a_bad_table_is_told_with_its_row(tmp_path: Path, text: str, what: str) -> None:
    """After strangers' files: each mistake names the file, the row or column, and what is wrong."""
    with pytest.raises(BadTable, match=what):
        load(write(tmp_path, text), "a_mw")


def test_an_hour_that_never_was_is_refused(tmp_path: Path) -> None:
    """After spring: a wall clock that was skipped is a mistake of the file, not an hour to be moved silently."""
    with pytest.raises(BadTable, match="did not happen"):
        load(write(tmp_path, "ts_local,a_mw\n2025-03-30T02:30,1\n"), "a_mw", zone=ROME)


def test_what_is_not_there_or_not_a_table(tmp_path: Path) -> None:
    """After wrong paths: no file, a broken gzip and bytes that are no text are each one clear error."""
    (tmp_path / "x.csv.gz").write_bytes(b"no gzip")
    (tmp_path / "x.csv").write_bytes(b"\xff\xfe\x00")
    for name in ("none.csv", "x.csv.gz", "x.csv"):
        with pytest.raises(BadTable, match="cannot be read"):
            load(tmp_path / name, "a_mw")
    assert load(write(tmp_path, "ts_utc,a_mw\n", "empty.csv"), "a_mw").starts.size == 0
