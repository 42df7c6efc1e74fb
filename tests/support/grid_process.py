"""A real grid in a child process, as a user starts it, with the real engine, journal and SQLite."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import openai

from tokenworks.datadir import Keys, Run, read_keys, read_run

MODEL = "smollm2-135m-instruct"
READY_S_MAX = 90


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


class GridProcess:
    """``tokenworks up`` on a data directory of its own."""

    def __init__(self, data: Path, *arguments: str, env: dict[str, str] | None = None) -> None:
        self.data = data
        self.env = {**os.environ, "TOKENWORKS_DATA": str(data), "TOKENWORKS_PORT": "0", **(env or {})}
        self._arguments = arguments
        self.log = data.parent / f"{data.name}.log"
        self.process: subprocess.Popen[bytes] | None = None
        self._clients: list[openai.OpenAI] = []

    def start(self) -> GridProcess:
        """Start it without waiting."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tokenworks.cli", "up", *self._arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self.env,
            )
        return self

    def wait_ready(self) -> GridProcess:
        """Wait until it can serve; shows its output when it cannot."""
        deadline = time.monotonic() + READY_S_MAX
        assert self.process is not None
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                break
            run = read_run(self.data)
            if run is not None and run.pid == self.process.pid and self.get("/healthz")[0] == 200:
                return self
            time.sleep(0.05)
        raise AssertionError(f"the grid did not become ready:\n{self.log.read_text()[-4000:]}")

    @property
    def run(self) -> Run:
        found = read_run(self.data)
        assert found is not None
        return found

    @property
    def keys(self) -> Keys:
        found = read_keys(self.data)
        assert found is not None
        return found

    def get(self, path: str, key: str | None = None) -> tuple[int, Any]:
        """GET with the standard library, so that no client of ours stands between."""
        import http.client
        from urllib.parse import urlsplit

        parts = urlsplit(self.run.url)
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=30)
        try:
            connection.request("GET", path, headers={"authorization": f"Bearer {key}"} if key else {})
            response = connection.getresponse()
            body = response.read()
            is_json = (response.getheader("content-type") or "").startswith("application/json")
            return response.status, json.loads(body) if is_json else body.decode()
        except OSError:
            return 0, None
        finally:
            connection.close()

    def client(self, key: str | None = None, **options: Any) -> openai.OpenAI:
        """The official SDK, unchanged; closed with the grid."""
        made = openai.OpenAI(base_url=f"{self.run.url}/v1", api_key=key or self.keys.key, **options)
        self._clients.append(made)
        return made

    def cli(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """The real command line against this grid's data directory."""
        command = [sys.executable, "-m", "tokenworks.cli", *arguments]
        return subprocess.run(command, env=self.env, capture_output=True, text=True, timeout=120)

    def ask(self, *arguments: str) -> Any:
        """A command with ``--json``, which must succeed."""
        done = self.cli(*arguments, "--json")
        assert done.returncode == 0, done.stderr + done.stdout
        return msgspec.json.decode(done.stdout)

    def children(self) -> dict[str, list[int]]:
        """Process ids of the engine's, the ledger's and the other gateways' children."""
        assert self.process is not None
        found: dict[str, list[int]] = {"engine": [], "ledger": [], "gateway": []}
        for task in Path(f"/proc/{self.process.pid}/task").iterdir():
            with contextlib.suppress(OSError):
                for pid in map(int, (task / "children").read_text().split()):
                    command = Path(f"/proc/{pid}/cmdline").read_bytes()
                    if b"llamacpp_child" in command:
                        found["engine"].append(pid)
                    elif b"exchange.server" in command:
                        found["ledger"].append(pid)
                    elif b"tokenworks.worker" in command:
                        found["gateway"].append(pid)
        return found

    def kill(self) -> None:
        """kill -9, as the kernel's out-of-memory killer would; then see that no child is left behind."""
        assert self.process is not None
        for client in self._clients:
            client.close()
        children = [pid for pids in self.children().values() for pid in pids]
        self.process.kill()
        self.process.wait(30)
        wait_until(lambda: not any(map(_alive, children)), 10, "the children to follow their gateway")

    def stop(self) -> int:
        """Ctrl-C, and wait for the drain."""
        for client in self._clients:
            client.close()
        if self.process is None or self.process.poll() is not None:
            return -1
        self.process.send_signal(signal.SIGINT)
        try:
            return self.process.wait(40)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise


def wait_until(true: Callable[[], bool], seconds: float, what: str) -> None:
    """Poll until something holds; a bound, not a timing assertion."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(0.02)
