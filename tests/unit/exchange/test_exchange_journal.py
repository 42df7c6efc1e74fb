from __future__ import annotations

import contextlib
import errno
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenworks.core.errors import DataDirError, ExchangeDown
from tokenworks.exchange.journal import START, Journal, Position, read_from, reading, segment_path
from tokenworks.exchange.journal import journal as writer

RECORDS = [b"first", b"\x00" * 9, b"a longer third record", b"4"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "journal"


def write(folder: Path, records: list[bytes]) -> list[Position]:
    journal = Journal(folder, "w", 1)
    positions = [journal.position, *(journal.append(record) for record in records)]
    journal.close()
    return positions


def everything(folder: Path, position: Position = START) -> list[bytes]:
    """All records behind a position, in as many calls as it takes."""
    records = []
    while batch := list(read_from(folder, position)):
        records += [payload for payload, _ in batch]
        position = batch[-1][1]
    return records


@settings(deadline=None, max_examples=25)
@given(
    st.lists(st.binary(min_size=1, max_size=120), max_size=25), st.integers(30, 400), st.sampled_from([1 << 20, 450])
)
def test_what_was_appended_is_read_from_every_position(records: list[bytes], segment: int, read: int) -> None:
    """Over segments and bounded reads, each record comes once and in order, and any position is a place to go on."""
    with tempfile.TemporaryDirectory() as parent, pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer, "SEGMENT_BYTES_MAX", segment)
        patch.setattr(reading, "READ_BYTES_MAX", read)
        folder = Path(parent) / "j"
        positions = write(folder, records)
        assert everything(folder) == records
        for n, position in enumerate(positions):
            assert everything(folder, position) == records[n:]
        yielded = list(read_from(folder, START))
        assert [position for _, position in yielded] == positions[1 : len(yielded) + 1]
        assert positions == sorted(positions)


def test_a_reader_follows_a_writer_across_segments(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that asks after every append gets exactly the new record, also when a new segment has begun."""
    monkeypatch.setattr(writer, "SEGMENT_BYTES_MAX", 100)
    journal = Journal(folder, "w", 1)
    position = START
    assert list(read_from(folder, position)) == []
    for n in range(30):
        expected = b"%d" % n * 5, journal.append(b"%d" % n * 5)
        assert list(read_from(folder, position)) == [expected]
        position = expected[1]
    journal.close()
    assert position.segment > 3
    assert len(list(folder.iterdir())) == position.segment


def test_a_torn_tail_gives_exactly_the_records_before_it(folder: Path) -> None:
    """Wherever the last record is cut, the ones before it are read, and nothing else."""
    positions = write(folder, RECORDS)
    path = segment_path(folder, 1)
    whole = path.read_bytes()
    for cut in range(positions[-2].offset, positions[-1].offset):
        path.write_bytes(whole[:cut])
        assert everything(folder) == RECORDS[:-1], cut
    for cut in range(positions[0].offset):
        path.write_bytes(whole[:cut])
        assert everything(folder) == [], cut


def test_a_flipped_bit_ends_the_reading_and_never_makes_a_record(folder: Path) -> None:
    """In length, checksum or payload of any record: the records before it are read, it and what follows are not."""
    positions = write(folder, RECORDS)
    path = segment_path(folder, 1)
    whole = path.read_bytes()
    for number in range(len(RECORDS)):
        for at in range(positions[number].offset, positions[number + 1].offset):
            for bit in range(8):
                path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :])
                assert everything(folder) == RECORDS[:number], (number, at, bit)
    for at in range(positions[0].offset):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        assert everything(folder) == [], at


def test_a_lost_or_moved_record_is_found(folder: Path) -> None:
    """Each frame is whole by itself, but the chain of checksums shows that one is missing or out of its place."""
    positions = write(folder, RECORDS)
    path = segment_path(folder, 1)
    whole = path.read_bytes()
    head = whole[: positions[0].offset]
    frames = [whole[a.offset : b.offset] for a, b in pairwise(positions)]
    path.write_bytes(head + frames[0] + frames[2] + frames[3])
    assert everything(folder) == RECORDS[:1]
    path.write_bytes(head + frames[1] + frames[0])
    assert everything(folder) == []
    path.write_bytes(whole + frames[3])
    assert everything(folder) == RECORDS


def test_a_lost_segment_ends_the_reading(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The header of a segment carries the chain, so a segment cannot be taken away or exchanged unseen."""
    monkeypatch.setattr(writer, "SEGMENT_BYTES_MAX", 1)
    write(folder, RECORDS)
    assert everything(folder) == RECORDS
    assert len(list(folder.iterdir())) == 1 + len(RECORDS)
    third = segment_path(folder, 3)
    segment_path(folder, 4).replace(third)
    assert everything(folder) == RECORDS[:1]
    third.unlink()
    assert everything(folder) == RECORDS[:1]


def partial_writes(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """The disk takes ``count`` bytes and is full then."""
    real, left = os.write, [count]

    def full(fd: int, data: bytes) -> int:
        if left[0] <= 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        taken = real(fd, data[: left[0]])
        left[0] -= taken
        return taken

    monkeypatch.setattr(os, "write", full)


@pytest.fixture
def journal(folder: Path) -> Iterator[Journal]:
    made = Journal(folder, "w", 1)
    yield made
    made.close()


@pytest.mark.parametrize("count", range(20))
def test_after_a_failed_write_the_journal_goes_on(
    folder: Path, journal: Journal, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    """A full disk may take any part of a record: the error says so, and the next record follows the last good one."""
    journal.append(b"before")
    position = journal.position
    with monkeypatch.context() as patch:
        partial_writes(patch, count)
        with pytest.raises(ExchangeDown, match="No space left") as caught:
            journal.append(b"a record that does not fit")
    assert caught.value.hint == "is the disk full?"
    assert journal.position == position
    assert everything(folder) == [b"before"]
    journal.append(b"after")
    assert everything(folder) == [b"before", b"after"]


def test_an_acknowledged_record_is_readable_even_if_the_torn_one_could_not_be_removed(
    folder: Path, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When truncating fails too, later appends must be refused or be readable; never accepted behind garbage."""
    journal.append(b"before")
    with monkeypatch.context() as patch:
        partial_writes(patch, 5)

        def broken(fd: int, length: int) -> None:
            raise OSError(errno.EIO, "Input/output error")

        patch.setattr(os, "ftruncate", broken)
        with pytest.raises(ExchangeDown):
            journal.append(b"torn")
    acknowledged = [b"before"]
    try:
        journal.append(b"after")
        acknowledged.append(b"after")
    except ExchangeDown:
        pass
    assert everything(folder) == acknowledged


def test_a_process_that_hits_a_full_disk_goes_on_when_there_is_room(folder: Path) -> None:
    """The same with the kernel's own limit on a file's size, in a process of its own."""
    program = f"""
import resource
from pathlib import Path
from tokenworks.core.errors import ExchangeDown
from tokenworks.exchange.journal import Journal
journal = Journal(Path({str(folder)!r}), "w", 1)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
try:
    for n in range(1000):
        journal.append(b"%07d" % n)
except ExchangeDown:
    pass
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
journal.append(b"after")
print(n)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    written = int(done.stdout)
    assert 10 < written < 1000
    assert everything(folder) == [*(b"%07d" % n for n in range(written)), b"after"]


def test_a_segment_that_cannot_be_opened_refuses_the_record_and_is_tried_again(
    folder: Path, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk at the change of segments leaves no half segment in the way."""
    monkeypatch.setattr(writer, "SEGMENT_BYTES_MAX", 1)
    journal.append(b"before")
    for count in (0, 3, 10):
        with monkeypatch.context() as patch:
            partial_writes(patch, count)
            with pytest.raises(ExchangeDown):
                journal.append(b"refused")
    assert everything(folder) == [b"before"]
    journal.append(b"after")
    assert everything(folder) == [b"before", b"after"]
    assert not segment_path(folder, 4).exists()


def test_a_failed_sync_at_the_change_of_segments_fails_the_journal(
    folder: Path, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that fails to sync is noticed wherever it happens; an append raises ExchangeDown or works."""
    monkeypatch.setattr(writer, "SEGMENT_BYTES_MAX", 1)
    acknowledged = []

    def broken(fd: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fdatasync", broken)
    for record in (b"one", b"two", b"three"):
        with contextlib.suppress(ExchangeDown):
            journal.append(record)
            acknowledged.append(record)
    assert journal.failed
    assert everything(folder) == acknowledged == [b"one"]
    with pytest.raises(ExchangeDown, match="failed to sync") as caught:
        journal.append(b"four")
    assert caught.value.hint == "check the disk, then restart: a new journal begins"


def test_a_folder_has_one_journal_for_ever(folder: Path, journal: Journal) -> None:
    """Two writers in one folder would destroy each other's chain: the second is refused, also after the first ended."""
    for _ in range(2):
        with pytest.raises(DataDirError, match="exists already") as caught:
            Journal(folder, "w", 1)
        assert caught.value.hint == "is another grid using this data?"
        journal.close()


def test_a_folder_that_cannot_be_made_is_a_sentence(tmp_path: Path) -> None:
    """The operator reads what is wrong with the data directory, not a traceback."""
    (tmp_path / "file").write_text("")
    with pytest.raises(DataDirError, match=r"cannot write the journal .*: Not a directory"):
        Journal(tmp_path / "file" / "journal", "w", 1)


def test_bounds_and_the_end(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Empty and oversized records are mistakes of the caller; a closed journal takes nothing; closing twice is fine."""
    journal = Journal(folder, "w", 1)
    with monkeypatch.context() as patch:
        patch.setattr(writer, "RECORD_BYTES_MAX", 10)
        for wrong in (b"", b"x" * 11):
            with pytest.raises(ValueError, match="1 to 10 bytes"):
                journal.append(wrong)
        journal.append(b"x" * 10)
    journal.close()
    journal.close()
    with pytest.raises(ExchangeDown, match="closed"):
        journal.append(b"x")
    assert everything(folder) == [b"x" * 10]
    assert segment_path(folder, 1).stat().st_mode & 0o777 == 0o600


def test_there_is_nothing_to_read_where_there_is_nothing(folder: Path) -> None:
    """A journal that does not exist yet, and a file that is none, have no records."""
    assert everything(folder) == []
    folder.mkdir()
    segment_path(folder, 1).write_bytes(b"something else entirely")
    assert everything(folder) == []
