"""Rounds of kill -9 and pauses over gateways and the ledger process, and the audit after them.

``python -m bench.chaos.run [--rounds 200] [--gateways 3] [--store URL] [--seed 1]``. Nothing acknowledged may be
missing or there twice, no budget or grant may be overspent, and nothing may stay held.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

from bench.chaos import BOUND_S, LEASE_S

from tokenworks.core.clock import WallClock
from tokenworks.datadir import prepare
from tokenworks.exchange import report
from tokenworks.exchange.offices import people, sales
from tokenworks.exchange.service import LedgerService
from tokenworks.exchange.state import CLOSED
from tokenworks.exchange.words import Package, Settlement

LIMIT_NANO_PER_ROUND = 6_000_000
GRANT_USTU_PER_ROUND = 50_000_000
"""Enough for some hundred requests a round: money and packages run out near the end, so that the edge is tested too."""


KEEP_BYTES = "0"
"""Whatever the store has for good leaves the journals at once."""


class World:
    """Processes of one run and what they acknowledged."""

    def __init__(self, data: Path, gateways: int, store: str | None, seed: int, rounds: int) -> None:
        self.limit_nano, self.grant_ustu = rounds * LIMIT_NANO_PER_ROUND, rounds * GRANT_USTU_PER_ROUND
        self.data, self.store, self.chance = data, store, random.Random(seed)
        self.acknowledged: dict[str, tuple[int, int]] = {}
        self.doubled = 0
        self.gateways: dict[str, subprocess.Popen[str]] = {}
        self.ledger: subprocess.Popen[str] | None = None
        self.names = [f"g{number}" for number in range(gateways)]
        self._readers: list[threading.Thread] = []
        prepare(data)
        self.key = self._open_books()

    def _open_books(self) -> str:
        clock = WallClock()
        service = LedgerService(self.data, clock, self.store)
        try:
            people.account_create(service, "acme", limit_nano=self.limit_nano)
            people.budget_set(service, "team", parent="acme", limit_nano=self.limit_nano * 3 // 4, window="day")
            people.budget_set(service, "agent", parent="team", limit_ustu=10**12)
            terms = Package(code="p", name="p", size_ustu=self.grant_ustu, price_nano=1_000_003, validity_ns=None)
            sales.package_define(service, terms)
            for number in range(3):
                sales.grant_sell(service, "acme", "p", f"grant-{number}")
            return str(people.key_create(service, "agent")["key"])
        finally:
            service.close()

    def start_ledger(self) -> None:
        """The ledger process; its lifeline is our pipe."""
        arguments = [str(self.data), self.store or "", KEEP_BYTES]
        self.ledger = subprocess.Popen(
            [sys.executable, "-m", "bench.chaos.ledger", *arguments], stdin=subprocess.PIPE, text=True
        )

    def start_gateway(self, name: str) -> None:
        """A gateway and the thread that writes down what it acknowledges."""
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "bench.chaos.gateway",
                str(self.data),
                name,
                self.key,
                str(self.chance.randrange(1 << 30)),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.gateways[name] = process
        reader = threading.Thread(target=self._read, args=(process,), daemon=True)
        reader.start()
        self._readers.append(reader)

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        with process.stdout:
            for line in process.stdout:
                word, receipt, ustu, nano = line.split()
                assert word == "A"
                if receipt in self.acknowledged:
                    self.doubled += 1
                self.acknowledged[receipt] = (int(ustu), int(nano))

    def round(self) -> str:
        """One blow: kill a gateway, kill the ledger, or pause one of them, for short or past its lease."""
        blow = self.chance.choice(
            ("kill gateway", "kill gateway", "kill ledger", "pause gateway", "pause ledger", "fence")
        )
        name = self.chance.choice(self.names)
        if blow == "kill gateway":
            _kill(self.gateways[name])
            self.start_gateway(name)
        elif blow == "kill ledger":
            assert self.ledger is not None
            _kill(self.ledger)
            self.start_ledger()
        elif blow == "fence" and self.chance.random() < 0.7:
            blow = "none"
        else:
            target = self.ledger if blow == "pause ledger" else self.gateways[name]
            assert target is not None
            target.send_signal(signal.SIGSTOP)
            time.sleep(LEASE_S + BOUND_S + 1.0 if blow == "fence" else self.chance.random() * 0.3)
            target.send_signal(signal.SIGCONT)
        time.sleep(self.chance.random() * 0.25)
        return blow

    def stop(self) -> None:
        """End gateways by their lifeline, then the ledger by its."""
        for process in self.gateways.values():
            assert process.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
        for name, process in self.gateways.items():
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                raise AssertionError(f"gateway {name} did not end with its input") from None
        for reader in self._readers:
            reader.join(30)
        assert self.ledger is not None
        assert self.ledger.stdin is not None
        self.ledger.stdin.close()
        self.ledger.wait(60)

    def audit(self) -> dict[str, int]:
        """Open the books once more and compare them with what was acknowledged."""
        service = LedgerService(self.data, WallClock(), self.store)
        try:
            service.catch_up()
            for source, (_, standing) in sorted(service.store.sources().items()):
                if source[0] != "ledger" and standing != CLOSED:
                    service.end_epoch(source, "the run is over", CLOSED)
            books = report.books(service)
            found = {settled.receipt: settled for _, settled in service.store.receipts() if settled is not None}
            lost = [r for r, amounts in self.acknowledged.items() if r not in found or not _same(found[r], amounts)]
            state = service.state
            overspent = sum(
                max(0, tally.spent_nano - (budget.limit_nano if budget.limit_nano is not None else 1 << 62))
                for budget, tally in ((state.budgets[name], tally) for name, tally in state.tallies.items())
            ) + sum(max(0, grant.used_ustu - grant.size_ustu) for grant in state.grants.values())
            held = sum(tally.held_nano + tally.held_ustu for tally in state.tallies.values()) + len(state.holds)
            return {
                "acknowledged": len(self.acknowledged),
                "receipts": len(found),
                "lost": len(lost),
                "doubled": self.doubled,
                "overspent": overspent,
                "held_at_end": held,
                "leased_at_end": sum(len(leases) for leases in state.leases.values()),
                "spent_nano": state.tallies["acme"].spent_nano,
                "limit_nano": self.limit_nano,
                "granted_used_ustu": sum(grant.used_ustu for grant in state.grants.values()),
                "segments_at_end": len(list((self.data / "journal").rglob("*.twj"))),
                "loss_account_nano": books["loss_account_nano"],
                "books_closed": int(books["closed"]),
                **({} if books["closed"] else {"wrong": len([c for c in books["checks"] if not c["ok"]])}),
            }
        finally:
            service.close()


def _kill(process: subprocess.Popen[str]) -> None:
    """kill -9, and let go of its pipes."""
    process.kill()
    process.wait()
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):
        process.stdin.close()


def _same(settled: Settlement, amounts: tuple[int, int]) -> bool:
    """The amounts that were acknowledged; a late one may have become the operator's loss, at its list price."""
    late = settled.loss_ustu == settled.ustu and settled.loss_nano == settled.nano == settled.list_nano
    return settled.ustu == amounts[0] and (settled.nano == amounts[1] or late)


def chaos(rounds: int, gateways: int, store: str | None = None, seed: int = 1) -> dict[str, int]:
    """Run the rounds and return the audit's figures."""
    with tempfile.TemporaryDirectory(prefix="tokenworks-chaos-") as folder:
        world = World(Path(folder) / "data", gateways, store, seed, rounds)
        world.start_ledger()
        for name in world.names:
            world.start_gateway(name)
        time.sleep(1.0)
        blows: Counter[str] = Counter()
        try:
            for number in range(rounds):
                blows[world.round()] += 1
                if sys.stderr.isatty() and number % 10 == 9:
                    sys.stderr.write(f"\r{number + 1} of {rounds} rounds, {len(world.acknowledged):,} acknowledged ")
            time.sleep(0.5)
        finally:
            world.stop()
        figures: dict[str, Any] = {"chaos_rounds": rounds, **world.audit()}
        for blow, count in sorted(blows.items()):
            figures["rounds_" + blow.replace(" ", "_")] = count
        return figures


def main() -> int:
    """Print the figures; status 1 when the exchange failed its audit."""
    options = dict(zip(sys.argv[1::2], sys.argv[2::2], strict=True))
    figures = chaos(
        int(options.get("--rounds", "200")),
        int(options.get("--gateways", "3")),
        options.get("--store") or os.environ.get("CHAOS_STORE"),
        int(options.get("--seed", "1")),
    )
    for name, value in figures.items():
        print(f"{name:24} {value}")
    good = figures["books_closed"] and not any(figures[n] for n in ("lost", "doubled", "overspent", "held_at_end"))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
