"""``make bench-drill``: a grid event on the embedded grid under interactive and deferrable load, with the real engine.

Deferrable work keeps the engine busy all the time; one short interactive request a second comes beside it and beside
those of the drill itself. Figures go to ``bench/results/power.json``.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

MODEL = "smollm2-135m-instruct"
CUT, FOR_S, DEFERRABLE, READY_S, WARM_S = 25, 40, 3, 120, 6


class Load:
    """Clients of one kind, until left."""

    def __init__(self, url: str, key: str, clients: int, pause_s: float, tokens: int, *, deferrable: bool) -> None:
        self._parts, self._key, self._pause_s, self._tokens = urlsplit(url), key, pause_s, tokens
        self._headers = {"x-tokenworks-deferrable": "true"} if deferrable else {}
        self.statuses: list[int] = []
        self.done = threading.Event()
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(clients)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.done.set()
        for thread in self._threads:
            thread.join(10)

    def _run(self) -> None:
        body = {"model": MODEL, "messages": [{"role": "user", "content": "Count."}], "max_tokens": self._tokens}
        while not self.done.is_set():
            self.statuses.append(self._ask(json.dumps(body)))
            self.done.wait(self._pause_s)

    def _ask(self, body: str) -> int:
        connection = http.client.HTTPConnection(self._parts.hostname or "", self._parts.port, timeout=200)
        try:
            headers = {"authorization": f"Bearer {self._key}", "content-type": "application/json", **self._headers}
            connection.request("POST", "/v1/chat/completions", body, headers)
            response = connection.getresponse()
            response.read()
            return response.status
        except OSError:
            return 0
        finally:
            connection.close()


def play(data: Path, env: dict[str, str], for_s: int, cut: int = CUT) -> tuple[dict[str, Any], list[int]]:
    """A drill on the running grid of a data directory under both loads: what it said, and interactive statuses."""
    url, keys = json.loads((data / "run.json").read_text())["url"], json.loads((data / "keys.json").read_text())
    with Load(url, keys["key"], 1, 1.0, 1, deferrable=False) as interactive:
        later = Load(url, keys["key"], DEFERRABLE, 0.0, 40, deferrable=True)
        with later:
            time.sleep(WARM_S)
            command = [sys.executable, "-m", "tokenworks.cli", "drill", "--curtail", f"{cut}%", "--for", f"{for_s}s"]
            done = subprocess.run(
                [*command, "--pay", "0.40 USD/kWh", "--json"], env=env, capture_output=True, text=True
            )
            if not done.stdout:
                raise SystemExit(done.stderr)
            later.done.set()
        return json.loads(done.stdout), interactive.statuses


def main() -> None:
    """Start a grid, play, merge the figures."""
    from bench.results_file import merge

    with tempfile.TemporaryDirectory(prefix="tokenworks-drill-") as folder:
        data = Path(folder) / "data"
        env = {**os.environ, "TOKENWORKS_DATA": str(data), "TOKENWORKS_PORT": "0"}
        up = [sys.executable, "-m", "tokenworks.cli", "up"]
        with subprocess.Popen(up, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as grid:
            try:
                until = time.monotonic() + READY_S
                while not (data / "run.json").exists() and time.monotonic() < until:
                    time.sleep(0.2)
                time.sleep(5)  # until the model is loaded
                found, statuses = play(data, env, FOR_S)
            finally:
                grid.send_signal(signal.SIGINT)
    failed = found["interactive_failed"] + sum(status != 200 for status in statuses)
    figures = {"drill_cut_percent": found["cut_percent"], "drill_seconds_to_target": found["seconds_to_target"]}
    print(json.dumps({name: value for name, value in found.items() if name != "seconds"}, indent=2))
    print(merge("power", {**figures, "drill_interactive_failed": failed}))


if __name__ == "__main__":
    main()
