"""``make bench-gateway``: the gateway beside its peers, one core each, on the same mock engine.

``python -m bench.gateway [--only NAMES] [--seconds 5] [--rounds 1] [--soak 60] [--json]``.
Every answer is checked, and after every run of ours the books are compared with what the load generator received.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
from bench.gateway import ours, peers, processes, report
from bench.gateway.load import Job, Load, Outcome
from bench.gateway.peers import Absent
from bench.gateway.words import Mode
from bench.results_file import RESULTS, merge

READY_S_MAX = 90
IDLE_STREAMS = 10_000
FILES_SPARE = 100
"""Files of a gateway beside the two sockets of each stream."""
SOAK_FULL_S = 600
Names = Callable[[], list[int]]
NAMES = ("direct", "ours", "plain", "durable", "books_off", "idle", "soak", *(peer.name for peer in peers.PEERS))


def say(text: str) -> None:
    """Progress goes to standard error."""
    print(text, file=sys.stderr, flush=True)


class Bench:
    """One run of the benchmark: what is asked for, where things run, and what was found wrong."""

    def __init__(self, options: argparse.Namespace, work: Path) -> None:
        self.options, self.work, self.cores = options, work, processes.cores()
        self.problems: list[str] = []
        self._firsts = itertools.count(0, 10**8)
        self._folders = itertools.count(1)
        self.mock_port = 0

    @property
    def mock_url(self) -> str:
        return f"http://127.0.0.1:{self.mock_port}"

    def folder(self) -> Path:
        """A new place for a process's files."""
        return self.work / str(next(self._folders))

    @contextlib.contextmanager
    def mock(self, core: int) -> Iterator[tuple[int, int]]:
        """A mock engine: its process id and port."""
        log = self.folder()
        with processes.running([sys.executable, "-m", "bench.gateway.mock"], core, log) as process:
            for _ in processes.wait_until(10):
                if (said := log.read_text()).endswith("\n"):
                    yield process.pid, int(said)
                    return
        raise OSError(f"the mock engine did not start: {processes.tail(log)}")

    def job(self, port: int, headers: dict[str, str], mode: Mode, connections: int, **more: float) -> Job:
        """A run with numbers of its own."""
        timing = {"seconds": self.options.seconds, "warm_s": min(1.0, self.options.seconds / 5), **more}
        return Job(
            host="127.0.0.1", port=port, headers=headers, mode=mode, connections=connections,
            first=next(self._firsts), **timing,
        )  # fmt: skip

    def begin(self, job: Job) -> subprocess.Popen[bytes]:
        """The load generator on its core."""
        with processes.on_core(self.cores.load):
            command = [sys.executable, "-m", "bench.gateway.load", msgspec.json.encode(job).decode()]
            return subprocess.Popen(command, stdout=subprocess.PIPE)

    def load(self, job: Job) -> Outcome:
        """Run a job to its end."""
        return msgspec.json.decode(self.begin(job).communicate()[0], type=Outcome)

    # -- one gateway ---------------------------------------------------------------------------------------------------

    def measure(
        self, name: str, port: int, headers: dict[str, str], pids: Names, grid: ours.Gateway | None
    ) -> report.Figures:
        """All levels, the streams and the memory of one gateway."""
        found: report.Figures = {}
        for level in report.LEVELS:
            job = self.job(port, headers, "whole", level)
            out = self._answered(f"{name} at {level}", job)
            booked_rps = self._booked_rps(f"{name} at {level}", grid, out)
            if out.right:
                metrics = {"rps": booked_rps, "p50_us": out.p50_us, "p99_us": out.p99_us}
                metrics |= {} if grid is None else {"answered_rps": out.rps}
                found |= {f"{name}.{metric}_c{level}": value for metric, value in metrics.items()}
        job = self.job(port, headers, "stream", report.STREAM_CONNECTIONS)
        before = processes.cpu_s(*pids())
        out = self._answered(f"{name} streaming at {job.connections}", job)
        took = processes.cpu_s(*pids()) - before
        booked_rps = self._booked_rps(f"{name} streaming", grid, out)
        if out.right:
            found[f"{name}.stream_rps_c{job.connections}"] = booked_rps
        if out.right and pids():
            found[f"{name}.cpu_us_per_chunk"] = round(took * 1e6 / out.chunks, 2)
        return found

    def _answered(self, what: str, job: Job) -> Outcome:
        self.since_ns = time.time_ns()
        out = self.load(job)
        say(f"  {what:32} {out.rps:9,.0f} /s  p50 {out.p50_us:9,.1f} µs  p99 {out.p99_us:10,.1f} µs")
        if not out.good:
            self.problems.append(
                f"{what}: {out.wrong} wrong and {out.failed} failed of {out.completed}: {out.why[:500]}"
            )
            say(f"    ! {self.problems[-1]}")
        return out

    def _booked_rps(self, what: str, grid: ours.Gateway | None, out: Outcome) -> float:
        """Requests a second after the warm-up. The books are compared, and a run ends when they have all of it."""
        if grid is None:
            return out.rps
        books, seconds = grid.drained(self.since_ns, out.completed)
        if wrong := ours.missing(books, out):
            self.problems.append(f"{what}: the books have {wrong}")
            say(f"    ! {self.problems[-1]}")
        else:
            say(f"    books: {out.completed:,} receipts, {out.ustu:,} µSTU, as received; drained {seconds:.1f} s later")
        return round(out.rps * out.seconds / (out.seconds + seconds), 1)

    # -- the gateways --------------------------------------------------------------------------------------------------

    def direct(self) -> report.Figures:
        """The mock alone: placed as beside a gateway, and on the core that gateways get."""
        found = self.measure("direct", self.mock_port, {}, list, None)
        with self.mock(self.cores.gateway) as (_, port):
            return found | self.measure("direct_apart", port, {}, list, None)

    def tokenworks(self, name: str, journal: str = "written", *, plain: bool = False) -> report.Figures:
        """Ours, with its books checked after every run and closed at the end; with the journal off there are none."""
        folder, books = self.folder(), journal != "off"
        with ours.grid(folder, self.mock_url, self.cores, journal, plain=plain) as gateway:
            ledger = gateway.ledger_pid()
            self._wait(gateway.process.pid, gateway.port, gateway.headers, folder / "tokenworks.log")

            def pids() -> list[int]:
                return [pid for pid in processes.tree(gateway.process.pid) if pid != ledger]

            found = self.measure(name, gateway.port, gateway.headers, pids, gateway if books else None)
            found[f"{name}.rss_mb"] = processes.rss_mb(*pids())
            found[f"{name}.ledger_rss_mb"] = processes.rss_mb(ledger)
        if books:
            self._close(name, folder)
        return found

    def _close(self, name: str, folder: Path) -> None:
        books = ours.closed_books(folder / "data")
        say(f"    {name}: {books['receipts']:,} receipts, {books['open_holds']} open holds, closed: {books['closed']}")
        if not books["closed"] or books["open_holds"]:
            wrong = [check["check"] for check in books["checks"] if not check["ok"]]
            self.problems.append(f"{name}: the books do not close: {wrong}, {books['open_holds']} open holds")

    def peer(self, peer: peers.Peer) -> report.Figures:
        """One of the others; absent with a reason when it cannot be had."""
        folder = self.folder()
        folder.mkdir()
        try:
            with peers.started(peer, folder, self.mock_url, self.cores.gateway) as (pid, port, headers, log):
                self._wait(pid, port, headers, log)
                found = self.measure(peer.name, port, headers, lambda: processes.tree(pid), None)
                return {**found, f"{peer.name}.rss_mb": processes.rss_mb(*processes.tree(pid))}
        except Absent as why:
            say(f"  {peer.name}: absent: {why}")
            return {f"{peer.name}.absent": str(why)}

    def _wait(self, pid: int, port: int, headers: dict[str, str], log: Path) -> None:
        why = "nothing listens"
        for _ in processes.wait_until(READY_S_MAX, 0.5):
            try:
                out = Load(self.job(port, headers, "whole", 1, seconds=0.02, warm_s=0.0)).run()
            except OSError as error:
                why = str(error)
                continue
            if out.good:
                return
            why = out.why
        raise Absent(f"it did not answer within {READY_S_MAX} s: {why[:200]} {processes.tail(log)}")

    # -- memory --------------------------------------------------------------------------------------------------------

    def idle(self) -> report.Figures:
        """Ten thousand open streams, or as many as this system's limit of open files lets one process relay."""
        count = min(IDLE_STREAMS, (processes.many_files() - FILES_SPARE) // 2)
        folder = self.folder()
        with ours.grid(folder, self.mock_url, self.cores) as gateway:
            before, since_ns = processes.rss_mb(gateway.process.pid), time.time_ns()
            command = [sys.executable, "-m", "bench.gateway.idle", str(gateway.port), str(count)]
            with processes.on_core(self.cores.load):
                client = subprocess.Popen(
                    [*command, gateway.headers["authorization"]], stdin=subprocess.PIPE, stdout=subprocess.PIPE
                )
            assert client.stdout is not None
            opened = int(client.stdout.readline() or 0)
            time.sleep(2)
            rss = processes.rss_mb(gateway.process.pid)
            client.communicate()  # closes its input: it ends, and all streams with it
            books, seconds = gateway.drained(since_ns, opened)
        say(f"  {opened:,} idle streams: {rss} MB, {before} MB before; their receipts {seconds:.1f} s after their end")
        if opened < count or books["receipts"] != opened:
            self.problems.append(f"idle streams: {opened} of {count} opened, {books['receipts']} in the books")
        self._close("idle", folder)
        whole = rss if opened == IDLE_STREAMS else round(before + (rss - before) * IDLE_STREAMS / max(1, opened), 1)
        return {"idle_streams": opened, "idle_streams_rss_mb": rss, "idle_streams_10000_rss_mb": whole}

    def soak(self, rps: float) -> report.Figures:
        """Half the load for long: the gateway's memory after a fifth of the time against the end."""
        seconds, folder = self.options.soak, self.folder()
        with ours.grid(folder, self.mock_url, self.cores) as gateway:
            self.since_ns = time.time_ns()
            warm_s = min(60.0, seconds / 5)
            job = self.job(gateway.port, gateway.headers, "whole", 32, seconds=seconds, warm_s=warm_s, rate=rps / 2)
            client, pid = self.begin(job), gateway.process.pid
            samples = [processes.rss_mb(pid) for _ in processes.wait_until(seconds + warm_s, 1.0)]
            out = msgspec.json.decode(client.communicate()[0], type=Outcome)
            self._booked_rps(f"soak of {seconds} s", gateway, out)
        samples = samples[round(warm_s) :]
        first, last = statistics.median(samples[:5]), statistics.median(samples[-5:])
        growth = round((last - first) * 100 / first, 2)
        say(f"  {out.rps:,.0f} requests/s of {rps / 2:,.0f} asked: RSS {first} -> {last} MB, {growth} %")
        if not out.good:
            self.problems.append(f"soak: {out.wrong} wrong, {out.failed} failed: {out.why[:300]}")
        self._close("soak", folder)
        long = seconds >= SOAK_FULL_S
        return {"rss_growth_percent_10min": growth} if long else {f"rss_growth_percent_{seconds}s": growth}

    def round(self, wanted: list[str]) -> report.Figures:
        """Every gateway once."""
        found: report.Figures = {}
        steps: dict[str, Callable[[], report.Figures]] = {
            "direct": self.direct,
            "ours": lambda: self.tokenworks("ours_books_on"),
            "plain": lambda: self.tokenworks("ours_plain", plain=True),
            "durable": lambda: self.tokenworks("ours_durable", "durable"),
            "books_off": lambda: self.tokenworks("ours_books_off", "off"),
        }
        for peer in peers.PEERS:
            steps[peer.name] = lambda peer=peer: self.peer(peer)  # type: ignore[misc]  # bound now
        for name, step in steps.items():
            if name in wanted:
                say(f"bench-gateway: {name}")
                try:
                    found |= step()
                except (OSError, Absent) as error:  # a peer's absence is told by ``peer``; this is ours
                    self.problems.append(f"{name}: {error}")
                    say(f"    ! {error}")
        return found


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.gateway", description=__doc__)
    parser.add_argument("--only", default=",".join(NAMES), help=f"some of: {','.join(NAMES)}")
    parser.add_argument("--seconds", type=float, default=5.0, help="length of each run, after its warm-up")
    parser.add_argument("--rounds", type=int, default=1, help="all gateways so many times; figures are medians")
    parser.add_argument("--soak", type=int, default=60, help="seconds of half load")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON instead of the table")
    found = parser.parse_args()
    unknown = [name for name in found.only.split(",") if name not in NAMES]
    if unknown:
        parser.error(f"no {unknown[0]!r}; there is: {', '.join(NAMES)}")
    return found


def _forget(figures: report.Figures, *, whole: bool) -> None:
    """Drop from the results file what an older run said of the gateways of this one; a whole run drops everything."""
    path, names = RESULTS / "gateway.json", {key.partition(".")[0] for key in figures if "." in key}
    if path.exists():
        before = json.loads(path.read_text())
        kept = {} if whole else {key: value for key, value in before.items() if key.partition(".")[0] not in names}
        path.write_text(json.dumps(kept))


def main() -> int:
    """Measure, print the table and keep the figures; status 1 when something was wrong with ours."""
    chosen = options()
    wanted = chosen.only.split(",")
    processes.many_files()
    with tempfile.TemporaryDirectory(prefix="tokenworks-bench-", ignore_cleanup_errors=True) as folder:
        bench = Bench(chosen, Path(folder))
        say(f"bench-gateway: cores {bench.cores._asdict()}")
        with bench.mock(bench.cores.mock) as (_, bench.mock_port):
            figures = report.middle([bench.round(wanted) for _ in range(chosen.rounds)])
            if "idle" in wanted:
                say("bench-gateway: idle streams")
                figures |= bench.idle()
            half_of = figures.get("ours_books_on.rps_c32")
            if "soak" in wanted and chosen.soak and isinstance(half_of, float):
                say(f"bench-gateway: {chosen.soak} s at half load")
                figures |= bench.soak(half_of)
    figures |= report.ratios(figures, [peer.name for peer in peers.PEERS])
    _forget(figures, whole=set(wanted) == set(NAMES))
    path = merge("gateway", figures)
    if chosen.json:
        print(json.dumps(figures, indent=2, sort_keys=True))
    else:
        print(report.table(figures))
        for key in sorted(key for key in figures if "." not in key):
            print(f"{key:32} {figures[key]}")
    for problem in bench.problems:
        say(f"! {problem}")
    say(f"-> {path}")
    mine = ("ours", "durable", "books_off", "idle", "soak", "direct")
    return 1 if any(problem.startswith(mine) for problem in bench.problems) else 0
