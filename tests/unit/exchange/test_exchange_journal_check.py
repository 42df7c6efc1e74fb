"""Verifying, recovering and pruning a journal, and the fake disk that the simulations stand on."""

from __future__ import annotations

import contextlib
import errno
from pathlib import Path

import pytest
from tests.support.fake_disk import FakeDisk

from tokenworks.core.errors import DataDirError, ExchangeDown
from tokenworks.exchange.journal import START, Journal, Position, prune, read_from, recover, segment_path, verify
from tokenworks.exchange.journal import journal as writer

FOLDER = Path("data") / "journal" / "w" / "00000001"
RECORDS = [b"record %d" % n for n in range(6)]


def written(disk: FakeDisk, folder: Path = FOLDER, epoch: int = 1, close: bool = True) -> list[Position]:
    journal = Journal(folder, "w", epoch, disk=disk, committer=False)
    positions = [journal.append(record) for record in RECORDS]
    if close:
        journal.close()
    return positions


def flip(disk: FakeDisk, segment: int, at: int) -> None:
    path = segment_path(FOLDER, segment)
    content = bytearray(disk.read(path, 0, 1 << 20))
    content[at] ^= 1
    disk.change(path, bytes(content))


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """About two records a segment."""
    monkeypatch.setattr(writer, "SEGMENT_BYTES_MAX", 130)


def test_a_whole_journal_is_verified_and_ends_where_its_last_record_does(short: None) -> None:
    """The report counts what is there; recovery gives the position from which nothing is left to read."""
    disk = FakeDisk()
    positions = written(disk)
    report = verify(FOLDER, disk)
    sizes = [len(disk.read(segment_path(FOLDER, n), 0, 1 << 20)) for n in range(1, report.segments + 1)]
    assert (report.bad, report.records, report.torn_bytes, report.bytes) == (None, 6, 0, sum(sizes))
    assert report.segments == positions[-1].segment > 2
    assert recover(FOLDER, disk) == report.end == positions[-1]
    assert list(read_from(FOLDER, positions[-1], disk)) == []


def test_nothing_and_a_journal_without_records_can_be_recovered() -> None:
    """There is a position to go on from in any case."""
    disk = FakeDisk()
    assert recover(FOLDER, disk) == START
    journal = Journal(FOLDER, "w", 1, disk=disk, committer=False)
    assert recover(FOLDER, disk) == journal.position
    disk.change(segment_path(FOLDER, 1), b"TW")
    assert verify(FOLDER, disk).torn_bytes == 2
    assert recover(FOLDER, disk) == START
    assert disk.read(segment_path(FOLDER, 1), 0, 9) == b""


def test_wherever_the_end_is_torn_the_records_before_it_are_recovered() -> None:
    """A process that dies in a write leaves a part of a frame; that is no damage."""
    disk = FakeDisk()
    positions = written(disk, close=False)
    path = segment_path(FOLDER, 1)
    whole = disk.read(path, 0, 1 << 20)
    for cut in range(positions[-2].offset, positions[-1].offset):
        disk.change(path, whole[:cut])
        assert verify(FOLDER, disk).torn_bytes == cut - positions[-2].offset
        assert recover(FOLDER, disk) == positions[-2]


def test_a_flipped_bit_in_what_was_synced_is_damage_and_says_where(short: None) -> None:
    """In any byte of any segment of a journal that was closed, up to its last record; reading never gives more."""
    disk = FakeDisk()
    positions = written(disk)
    last = positions[-1]
    for segment in range(1, last.segment + 1):
        path = segment_path(FOLDER, segment)
        whole = disk.read(path, 0, 1 << 20)
        for at in range(len(whole) if segment < last.segment else last.offset):
            flip(disk, segment, at)
            report = verify(FOLDER, disk)
            assert report.bad is not None, (segment, at)
            assert (report.bad.segment, report.bad.offset) <= (segment, at)
            assert report.bad.segment == segment
            with pytest.raises(DataDirError, match=rf"damaged in segment {segment} at offset {report.bad.offset}: "):
                recover(FOLDER, disk)
            disk.change(path, whole)
    assert recover(FOLDER, disk) == last


def test_a_hole_in_what_was_never_synced_is_the_torn_end_of_a_power_loss() -> None:
    """Unsynced writes survive in any selection, so a good frame behind a bad one is no sign of damage by itself."""
    disk = FakeDisk()
    journal = Journal(FOLDER, "w", 1, disk=disk, committer=False)
    synced = journal.append(b"synced")
    journal.commit()
    behind = journal.append(b"carries the mark")
    journal.append(b"good")
    flip(disk, 1, behind.offset - 1)
    assert recover(FOLDER, disk) == synced
    flip(disk, 1, synced.offset - 1)
    with pytest.raises(DataDirError, match="had been synced"):
        recover(FOLDER, disk)


def test_a_missing_an_exchanged_and_a_foreign_segment_are_damage(short: None) -> None:
    """Order, writer, epoch and the SHA-256 of the segment before are checked, each with its own words."""
    disk = FakeDisk()
    written(disk)
    third, second = segment_path(FOLDER, 3), segment_path(FOLDER, 2)
    content = disk.read(second, 0, 1 << 20)
    other = FOLDER.with_name("00000002")
    written(disk, other, 2)
    for path, foreign, reason in (
        (second, disk.read(segment_path(other, 2), 0, 1 << 20), "another writer or epoch"),
        (second, disk.read(third, 0, 1 << 20), "its header is of segment 3"),
        (second, content + b"\0", "a frame is broken, although a later segment follows"),
        (second, content[:60], "broken"),
    ):
        disk.change(path, foreign)
        with pytest.raises(DataDirError, match=reason):
            recover(FOLDER, disk)
    disk.change(second, content)
    disk.remove(second)
    with pytest.raises(DataDirError, match="damaged in segment 2 at offset 0: the segment is missing"):
        recover(FOLDER, disk)


def test_a_segment_with_a_forged_record_is_seen_by_its_successor(short: None) -> None:
    """A CRC can be made to fit, by adding its own polynomial; the SHA-256 that the next header carries cannot."""
    disk = FakeDisk()
    positions = written(disk)
    path = segment_path(FOLDER, 1)
    forged = bytearray(disk.read(path, 0, 1 << 20))
    for n in range(33):
        forged[positions[0].offset - 6 + n // 8] ^= (0x104C11DB7 >> (32 - n) & 1) << n % 8
    disk.change(path, bytes(forged))
    assert next(read_from(FOLDER, START, disk))[0] != RECORDS[0]
    with pytest.raises(DataDirError, match=r"damaged in segment 1 at offset 0: .* its SHA-256 differs"):
        recover(FOLDER, disk)


def test_pruning_takes_whole_segments_and_reading_before_them_is_refused(short: None) -> None:
    """What is below goes, the oldest first, at last with the folder; START is not skipped over in silence."""
    disk = FakeDisk()
    positions = written(disk)
    applied = positions[2]
    assert prune(FOLDER, 1, disk) == 0
    assert prune(FOLDER, applied.segment, disk) == applied.segment - 1
    assert [payload for payload, _ in read_from(FOLDER, applied, disk)] == RECORDS[3:]
    with pytest.raises(DataDirError, match=rf"segment 1 of .* is gone; the first one there is {applied.segment}"):
        list(read_from(FOLDER, START, disk))
    assert recover(FOLDER, disk) == positions[-1]
    assert verify(FOLDER, disk).bad is None, "the chain holds behind the pruned head"
    assert prune(FOLDER, positions[-1].segment, disk) == positions[-1].segment - applied.segment
    disk.power_loss()
    assert recover(FOLDER, disk) == positions[-1]
    assert verify(FOLDER, disk).segments == 1
    assert prune(FOLDER, 99, disk) == 1
    disk.make_folder(FOLDER)  # it is gone, or this would raise


def test_a_disk_that_refuses_is_a_sentence(short: None) -> None:
    """The operator reads what could not be done, not a traceback."""
    disk = FakeDisk()
    positions = written(disk)
    disk.fail("remove", errno.EACCES)
    with pytest.raises(DataDirError, match=r"cannot prune the journal .*: Permission denied"):
        prune(FOLDER, positions[-1].segment, disk)
    disk.fail("fdatasync")
    with pytest.raises(DataDirError, match=r"cannot sync the journal .*: Input/output error"):
        recover(FOLDER, disk)
    disk.fail("read")
    with pytest.raises(DataDirError, match=r"cannot read the journal .*: Input/output error"):
        recover(FOLDER, disk)


def test_what_was_recovered_survives_a_loss_of_power() -> None:
    """A dead writer's unsynced records may go with the power; once recovered they may not, and no torn end is left."""
    ends: dict[bool, set[int]] = {False: set(), True: set()}
    for safe in ends:
        for seed in range(60):
            disk = FakeDisk(seed)
            journal = Journal(FOLDER, "w", 1, disk=disk, committer=False)
            for record in RECORDS:
                journal.append(record)
            disk.fail("write")
            with contextlib.suppress(ExchangeDown):
                disk.fail("truncate")
                journal.append(b"torn by the death of its writer")
            disk.kill()
            disk.heal()
            if safe:
                assert recover(FOLDER, disk, dead=False) == journal.position
                assert recover(FOLDER, disk) == journal.position
                assert verify(FOLDER, disk).torn_bytes == 0
            disk.power_loss()
            ends[safe].add(len(list(read_from(FOLDER, START, disk))))
            assert not safe or verify(FOLDER, disk).torn_bytes == 0
    assert ends[True] == {len(RECORDS)}
    assert {0, 1} <= ends[False], "without it, records are lost"


def test_a_segment_that_is_pruned_while_it_is_verified_is_no_damage(short: None) -> None:
    """Whoever looks from another process looks again at what is left."""
    disk = FakeDisk()
    written(disk)

    class Racing(FakeDisk):
        def names(self, folder: Path) -> list[str]:
            found = disk.names(folder)
            prune(FOLDER, 2, disk)
            return found

        def read(self, path: Path, offset: int, size: int) -> bytes:
            return disk.read(path, offset, size)

    assert verify(FOLDER, Racing()).bad is None


def test_the_fake_disk_loses_only_what_was_not_synced() -> None:
    """Over many seeds: synced bytes stay, unsynced ones meet every fate, entries of unsynced folders come and go."""
    fates, names = set(), set()
    for seed in range(200):
        disk = FakeDisk(seed)
        fd = disk.create(Path("f") / "synced")
        disk.write(fd, b"safe")
        disk.sync_folder(Path("f"))
        disk.fdatasync(fd)
        disk.write(fd, b"one")
        disk.write(fd, b"two")
        disk.create(Path("f") / "new")
        disk.power_loss()
        fates.add(disk.read(Path("f") / "synced", 0, 99))
        names.add(frozenset(disk.names(Path("f"))))
    assert all(fate.startswith(b"safe") for fate in fates)
    assert {b"safe", b"safeone", b"safeonetwo", b"safeo", b"safe\0\0\0two", b"safe\0\0\0\0\0\0"} <= fates
    assert names == {frozenset({"synced"}), frozenset({"synced", "new"})}


def test_the_fake_disk_forgets_what_a_failed_sync_was_to_save() -> None:
    """After a failed sync the next one succeeds and saves nothing of it: that is what makes the first one final."""
    kept = set()
    for seed in range(50):
        disk = FakeDisk(seed)
        fd = disk.create(Path("f") / "file")
        disk.sync_folder(Path("f"))
        disk.write(fd, b"data")
        disk.fail("fdatasync")
        with pytest.raises(OSError, match="Input/output"):
            disk.fdatasync(fd)
        disk.fdatasync(fd)
        assert disk.read(Path("f") / "file", 0, 9) == b"data"
        disk.power_loss()
        kept.add(disk.read(Path("f") / "file", 0, 9))
    assert {b"", b"data"} <= kept
