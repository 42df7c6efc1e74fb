"""The journal over a disk that kills, loses power, fills up and fails to sync: what was acknowledged is there."""

from __future__ import annotations

import contextlib
import random
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule
from tests.support.fake_disk import FakeDisk

from tokenworks.core.errors import ExchangeDown
from tokenworks.exchange.journal import (
    RECORD_BYTES_MAX,
    START,
    Journal,
    Policy,
    Position,
    journal_folder,
    read_from,
    recover,
    segment_path,
    verify,
)
from tokenworks.exchange.journal import journal as writer
from tokenworks.exchange.journal.frames import FRAME, MAGIC

POLICIES: tuple[Policy, ...] = tuple(policy for policy in get_args(Policy) if policy != "off")
SEGMENT_BYTES = 500
SEEDS = 3000
STEPS = 40
Reader = Callable[[Path, FakeDisk], list[tuple[bytes, Position]]]


def everything(folder: Path, disk: FakeDisk) -> list[tuple[bytes, Position]]:
    return list(read_from(folder, START, disk))


class Life:
    """One epoch as its clients saw it: what was accepted, in order, and how many of it each crash must leave."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.accepted: list[tuple[bytes, Position]] = []
        self.after_kill = self.after_power_loss = self.found = 0
        self.sound = True
        """No sync of it failed."""


class World:
    """A journal, its disk, all epochs, and the promises of the policy. Reading goes through ``reader``."""

    def __init__(
        self, seed: int, policy: Policy, journal: type[Journal] = Journal, reader: Reader = everything
    ) -> None:
        self.disk, self.policy, self._kind, self._reader = FakeDisk(seed), policy, journal, reader
        self.lives: list[Life] = []
        self._number = self._failed_syncs = 0
        self.reopen()

    def reopen(self) -> None:
        """The next start, on a disk that works again."""
        self.disk.heal()
        epoch = len(self.lives) + 1
        self.lives.append(Life(journal_folder(Path("data"), "w", epoch)))
        self.journal = self._kind(self.lives[-1].folder, "w", epoch, self.policy, disk=self.disk, committer=False)

    def append(self, size: int) -> None:
        """Numbered, so that an invented, repeated or moved record is seen. A refused one must never turn up."""
        self._number += 1
        payload = struct.pack("<Q", self._number) + b"\0" * size
        with contextlib.suppress(ExchangeDown):
            self.lives[-1].accepted.append((payload, self.journal.append(payload)))

    def commit(self) -> None:
        self.journal.commit()

    def close(self) -> None:
        """An orderly end, and the next start."""
        self.journal.close()
        self._end()
        self.check(self.lives[-1:])
        self.reopen()

    def kill(self) -> None:
        """The process ends, the page cache stays."""
        self._end()
        self.disk.kill()
        self.check(self.lives[-1:])
        self.reopen()

    def power_loss(self) -> None:
        """The machine ends; what a killed process had written and not synced goes, too."""
        self._end()
        self.disk.power_loss()
        for life in self.lives:
            life.after_kill = life.after_power_loss
        self.check(self.lives)
        for life in self.lives:
            life.after_power_loss = life.found
        self.reopen()

    def _end(self) -> None:
        life, synced = self.lives[-1], self.journal.synced
        life.sound, self._failed_syncs = self._failed_syncs == self.disk.failed_syncs, self.disk.failed_syncs
        life.after_power_loss = sum(position <= synced for _, position in life.accepted)
        life.after_kill = life.after_power_loss if self.policy == "fast" else len(life.accepted)

    def check(self, lives: list[Life]) -> None:
        """Each epoch is a prefix of what was accepted, with all that was promised; no ending looks like damage."""
        self.disk.heal()
        for life in lives:
            found = self._reader(life.folder, self.disk)
            assert found == life.accepted[: len(found)]
            assert len(found) >= life.after_kill
            life.after_kill = life.found = len(found)
            report = verify(life.folder, self.disk)
            assert report.bad is None
            assert report.records == len(found)
            if len(self.lives) % 2:  # as the ledger does with a dead epoch: from here on no power cut takes any of it
                assert recover(life.folder, self.disk) == (found[-1][1] if found else report.end)
                life.after_power_loss = len(found) if life.sound else life.after_power_loss

    def fault(self, kind: str, amount: int) -> None:
        """Something that will go wrong at the next use of the disk."""
        if kind == "full":
            self.disk.room_bytes = amount
        elif kind == "room":
            self.disk.room_bytes = None
        elif kind == "short":
            self.disk.short_writes = 3
        elif kind == "no sync":
            self.disk.fail("fdatasync")
        elif kind == "no entry":
            self.disk.fail("sync_folder")
        elif kind == "no write":
            self.disk.fail("write")
        elif kind == "no cut":
            self.disk.fail("truncate", times=2)
        else:
            self.disk.fail("create")


FAULTS = ("full", "room", "short", "no sync", "no entry", "no write", "no cut", "no file")


@pytest.fixture(autouse=True)
def short_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Segments of a few records, so that every example crosses some."""
    monkeypatch.setattr(writer, "SEGMENT_BYTES_MAX", SEGMENT_BYTES)


def live(world: World, seed: int) -> None:
    """A random life of a journal, with many crashes, by a seed."""
    choose = random.Random(seed)
    for _ in range(STEPS):
        step = choose.random()
        if step < 0.55:
            world.append(choose.randrange(120))
        elif step < 0.75:
            world.commit()
        elif step < 0.85:
            world.fault(choose.choice(FAULTS), choose.randrange(60))
        elif step < 0.89:
            world.kill()
        elif step < 0.97:
            world.power_loss()
        else:
            world.close()
    world.power_loss()


@pytest.mark.parametrize("policy", POLICIES)
def test_what_was_acknowledged_survives_what_its_policy_says(policy: Policy) -> None:
    """Over thousands of random lives, each policy keeps its promise, and nothing is invented, lost inside or moved."""
    for seed in range(SEEDS // len(POLICIES)):
        live(World(seed, policy), seed)


class Machine(RuleBasedStateMachine):
    """The same world, with the steps chosen by hypothesis, which shrinks what it finds."""

    world: World

    @initialize(seed=st.integers(0, 1 << 32), policy=st.sampled_from(POLICIES))
    def begin(self, seed: int, policy: Policy) -> None:
        self.world = World(seed, policy)

    @rule(size=st.integers(0, 300))
    def append(self, size: int) -> None:
        self.world.append(size)

    @rule()
    def commit(self) -> None:
        self.world.commit()

    @rule(kind=st.sampled_from(FAULTS), amount=st.integers(0, 80))
    def fault(self, kind: str, amount: int) -> None:
        self.world.fault(kind, amount)

    @rule()
    def kill(self) -> None:
        self.world.kill()

    @rule()
    def power_loss(self) -> None:
        self.world.power_loss()

    @rule()
    def close(self) -> None:
        self.world.close()


Machine.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


TestMachine = Machine.TestCase


class EarlyJournal(Journal):
    """The naive variant that says 'synced' of what was only written."""

    @property
    def synced(self) -> Position:
        return self.position


def trusting(folder: Path, disk: FakeDisk) -> list[tuple[bytes, Position]]:
    """The naive reader: it believes each length it finds, and checks no sum."""
    return list(_trusting(folder, disk))


def _trusting(folder: Path, disk: FakeDisk) -> Iterator[tuple[bytes, Position]]:
    names = sorted(disk.names(folder))
    for segment in range(1, len(names) + 1):
        data = disk.read(segment_path(folder, segment), 0, RECORD_BYTES_MAX)
        at, first = len(MAGIC), True
        while at + FRAME.size <= len(data):
            length, crc = FRAME.unpack_from(data, at)
            begin, marked = at + FRAME.size, bool(length >> 31)
            at = begin + (length & 0x7FFFFFFF)
            if not first and not marked:
                yield data[begin:at], Position(segment, at, crc)
            first = False


def caught(policy: Policy, journal: type[Journal], reader: Reader) -> int:
    """In how many of some hundred lives a variant is convicted."""
    convicted = 0
    for seed in range(200):
        try:
            live(World(seed, policy, journal, reader), seed)
        except AssertionError:
            convicted += 1
    return convicted


def test_acknowledging_before_the_sync_is_caught() -> None:
    """A journal that calls durable what is only written does not get through."""
    assert caught("durable", Journal, everything) == 0
    assert caught("durable", EarlyJournal, everything) > 50


def test_reading_without_the_chain_is_caught() -> None:
    """A reader that believes what it finds invents records out of torn and lost writes."""
    assert caught("written", Journal, trusting) > 50


def test_the_same_seed_is_the_same_fate() -> None:
    """A failure that a seed showed is shown by it again."""
    worlds = [World(7, "written") for _ in range(2)]
    for world in worlds:
        live(world, 11)
    fates = [[(life.accepted, life.found) for life in world.lives] for world in worlds]
    assert fates[0] == fates[1]
