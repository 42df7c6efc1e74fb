"""What the three policies promise, group commit, backpressure, and disks that fail to sync."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest
from tests.support.fake_disk import FakeDisk

from tokenworks.core.errors import ExchangeDown
from tokenworks.exchange.journal import START, Journal, LiveDisk, Policy, read_from, recover, verify, waiters
from tokenworks.exchange.journal import journal as writer
from tokenworks.exchange.journal.committer import Committer

FOLDER = Path("data") / "journal" / "w" / "00000001"
POLICIES: tuple[Policy, ...] = tuple(policy for policy in get_args(Policy) if policy != "off")


def make(disk: FakeDisk, policy: Policy, unsynced_bytes_max: int = 1 << 20, committer: bool = False) -> Journal:
    return Journal(FOLDER, "w", 1, policy, unsynced_bytes_max=unsynced_bytes_max, disk=disk, committer=committer)


def payloads(disk: FakeDisk) -> list[bytes]:
    return [payload for payload, _ in read_from(FOLDER, START, disk)]


async def turns() -> None:
    """Let everything that was handed to the loop happen."""
    for _ in range(5):
        await asyncio.sleep(0)


def test_off_records_nothing() -> None:
    """It is there to measure what the books cost."""
    disk = FakeDisk()
    journal = make(disk, "off")
    before = journal.position
    assert journal.append(b"record") == before == journal.position
    journal.commit()
    assert journal.appended_records == 0
    assert not list(read_from(FOLDER, START, disk))


@pytest.mark.parametrize("policy", POLICIES)
def test_what_is_readable_before_and_after_a_commit(policy: Policy) -> None:
    """Written and durable records are with the kernel at once, fast ones after the commit; counts say how many."""
    disk = FakeDisk()
    journal = make(disk, policy)
    last = [journal.append(b"record %d" % n) for n in range(3)][-1]
    assert payloads(disk) == ([] if policy == "fast" else [b"record 0", b"record 1", b"record 2"])
    assert (journal.appended_records, journal.synced_records) == (3, 0)
    assert journal.commit()
    assert (journal.synced_records, journal.synced) == (3, last)
    disk.power_loss()
    assert payloads(disk) == [b"record 0", b"record 1", b"record 2"]


async def test_a_waiter_returns_when_its_position_is_synced_and_not_before() -> None:
    """A commit wakes exactly those that it covers; who asks later need not wait; a cancelled one is no harm."""
    disk = FakeDisk()
    journal = make(disk, "durable")
    first = asyncio.create_task(journal.durable(journal.append(b"one")))
    gone = asyncio.create_task(journal.durable())
    await turns()
    assert not first.done()
    gone.cancel()
    await asyncio.to_thread(journal.commit)
    await first
    second = asyncio.create_task(journal.durable(journal.append(b"two")))
    await turns()
    assert not second.done()
    journal.commit()
    await second
    await journal.durable(journal.position)
    with pytest.raises(ValueError, match="nothing was appended"):
        await journal.durable(journal.position._replace(offset=1 << 40))


async def test_the_thread_commits_what_waiters_wait_for(tmp_path: Path) -> None:
    """On the live disk, with the thread: many waiters at once, on and between groups, each gets its answer."""
    journal = Journal(tmp_path / "journal", "w", 1, "durable")

    async def client(number: int) -> None:
        for n in range(20):
            await journal.durable(journal.append(b"%d %d" % (number, n)))

    await asyncio.gather(*(client(number) for number in range(50)))
    assert journal.synced_records == 1000
    journal.close()
    assert verify(tmp_path / "journal").records == 1000


async def test_a_failed_sync_is_never_reported_as_success() -> None:
    """Waiters get ExchangeDown, also those that come later and although the next sync would succeed; so do appends."""
    disk = FakeDisk()
    journal = make(disk, "durable")
    safe = journal.append(b"safe")
    journal.commit()
    waiting = asyncio.create_task(journal.durable(journal.append(b"lost")))
    await turns()
    disk.fail("fdatasync")
    assert not journal.commit()
    with pytest.raises(ExchangeDown, match="failed to sync the journal: Input/output error"):
        await waiting
    assert not journal.commit()
    with pytest.raises(ExchangeDown) as caught:
        await journal.durable()
    assert caught.value.hint == "check the disk, then restart: a new journal begins"
    with pytest.raises(ExchangeDown, match="failed to sync"):
        journal.append(b"more")
    await journal.durable(safe)
    journal.close()
    assert (disk.failed_syncs, journal.synced, journal.failed) == (1, safe, True)


async def test_closing_answers_every_waiter() -> None:
    """A close syncs, and who still waits is told; nobody waits for ever."""
    disk = FakeDisk()
    journal = make(disk, "fast")
    good = asyncio.create_task(journal.durable(journal.append(b"one")))
    await turns()
    disk.fail("write", times=2)
    assert not journal.commit()
    journal.close()
    with pytest.raises(ExchangeDown, match="closed"):
        await good


async def test_waiters_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """No more than so many wait at once; places of cancelled ones are free again."""
    monkeypatch.setattr(waiters, "WAITERS_MAX", 2)
    journal = make(FakeDisk(), "durable")
    journal.append(b"one")
    tasks = [asyncio.create_task(journal.durable()) for _ in range(2)]
    await turns()
    with pytest.raises(ExchangeDown, match="too many"):
        await journal.durable()
    tasks[0].cancel()
    await turns()
    tasks.append(asyncio.create_task(journal.durable()))
    await turns()
    journal.commit()
    await asyncio.gather(*tasks[1:])


def test_a_disk_that_cannot_keep_up_is_told(tmp_path: Path) -> None:
    """Durable and fast refuse what would be too much unsynced, and go on after a commit; written only counts."""
    for policy in POLICIES:
        disk = FakeDisk()
        journal = make(disk, policy, unsynced_bytes_max=100)
        accepted = 0
        refused = False
        while accepted < 10 and not refused:
            try:
                journal.append(b"x" * 22)
                accepted += 1
            except ExchangeDown as error:
                refused = "cannot keep up" in str(error)
        assert (accepted, refused) == ((10, False) if policy == "written" else (3, True))
        assert journal.commit()
        journal.append(b"y")
        journal.commit()
        assert payloads(disk) == [b"x" * 22] * accepted + [b"y"]


@pytest.mark.parametrize("room", range(60))
def test_a_fast_journal_on_a_full_disk_keeps_what_it_took(room: int) -> None:
    """Nothing more is taken while the disk refuses; when there is room, all comes once and in order."""
    disk = FakeDisk(room)
    journal = make(disk, "fast")
    for n in range(4):
        journal.append(b"record %d" % n)
    disk.room_bytes = room
    assert not journal.commit()
    with pytest.raises(ExchangeDown, match="cannot write"):
        journal.append(b"refused")
    disk.heal()
    assert journal.commit()
    journal.append(b"record 4")
    journal.close()
    assert payloads(disk) == [b"record %d" % n for n in range(5)]


def test_a_killed_process_loses_nothing_that_was_written(tmp_path: Path) -> None:
    """kill -9 right behind an append, with the real kernel: every record that the process counted is there."""
    for policy in ("written", "durable"):
        folder = tmp_path / policy
        program = f"""
import os, signal
from pathlib import Path
from tokenworks.exchange.journal import Journal
journal = Journal(Path({str(folder)!r}), "w", 1, {policy!r})
for n in range(1000):
    journal.append(b"%07d" % n)
os.kill(os.getpid(), signal.SIGKILL)
"""
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=60)
        assert done.returncode == -9, done.stderr
        found = list(read_from(folder, START))
        assert [payload for payload, _ in found] == [b"%07d" % n for n in range(1000)]
        assert recover(folder) == found[-1][1]


def test_a_name_that_could_not_be_synced_fails_the_journal(monkeypatch: pytest.MonkeyPatch) -> None:
    """A segment whose entry may vanish is no place for records, and a second try would prove nothing."""
    monkeypatch.setattr(writer, "SEGMENT_BYTES_MAX", 1)
    disk = FakeDisk()
    journal = make(disk, "written")
    journal.append(b"one")
    disk.fail("sync_folder")
    for _ in range(2):
        with pytest.raises(ExchangeDown):
            journal.append(b"two")
    assert (journal.failed, payloads(disk)) == (True, [b"one"])


class Scripted:
    """A group whose record appears exactly while the committer looks whether there is one, and sees the old count."""

    def __init__(self) -> None:
        self.synced_records = self._appended = 0
        self.failed = False
        self.committed = threading.Event()
        self.committer = Committer(self)

    @property
    def appended_records(self) -> int:
        seen = self._appended
        if seen == 0:  # the appender: count, then look at wake_at
            self._appended = 1
            if self.committer.wake_at <= 1:
                self.committer.wake()
        return seen

    def commit(self) -> bool:
        self.synced_records = self._appended
        self.committed.set()
        return True


def test_no_wake_up_is_lost() -> None:
    """A record that comes while the committer is about to sleep, unseen by it, is committed all the same."""
    group = Scripted()
    group.committer.start()
    assert group.committed.wait(10)
    assert group.committer.stop()


def test_a_full_group_is_not_kept_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """The 256th record ends the wait of a group, however long that is."""
    monkeypatch.setattr("tokenworks.exchange.journal.committer.GROUP_WAIT_S", 3600)
    synced = threading.Event()

    class Watched(FakeDisk):
        def fdatasync(self, fd: int) -> None:
            super().fdatasync(fd)
            synced.set()

    journal = make(Watched(), "written", committer=True)
    for _ in range(256):
        journal.append(b"x")
    assert synced.wait(10)
    journal.close()


def test_threads_and_syncs_of_every_length_lose_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An appender at full speed against the committer, over many segments, under each policy."""
    monkeypatch.setattr(writer, "SEGMENT_BYTES_MAX", 4000)
    monkeypatch.setattr("tokenworks.exchange.journal.segment.HASH_BEHIND_BYTES", 700)
    for policy in POLICIES:
        journal = Journal(tmp_path / policy, "w", 1, policy)
        positions = [journal.append(b"%d" % n * 9) for n in range(3000)]
        journal.close()
        report = verify(tmp_path / policy)
        assert (report.bad, report.records, report.end) == (None, 3000, positions[-1])
        assert report.segments == positions[-1].segment > 10


def test_the_live_disk_syncs_each_folder_that_got_a_new_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new writer's folders are of no use if the power takes their names."""
    synced: list[Path] = []
    real: Callable[[LiveDisk, Path], None] = LiveDisk.sync_folder

    def watched(disk: LiveDisk, folder: Path) -> None:
        synced.append(folder)
        real(disk, folder)

    monkeypatch.setattr(LiveDisk, "sync_folder", watched)
    LiveDisk().make_folder(tmp_path / "a" / "b" / "c")
    assert set(synced) == {tmp_path, tmp_path / "a", tmp_path / "a" / "b"}
