"""How long a newcomer waits: a fresh clone in an empty directory, one command, the first streamed token.

Cold includes making the environment, all downloads and the model; the package manager's own cache is left out by an
empty cache directory. Warm is the same command again.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

ROOT = Path(__file__).resolve().parents[1]
START_S_MAX = 600
HELP_RUNS = 11
REQUESTS = 100


def measure() -> dict[str, float]:
    """Figures of the first start, the second start, the help and the gateway's memory."""
    with tempfile.TemporaryDirectory(prefix="tokenworks-bench-") as folder:
        clone = Path(folder) / "clone"
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
        env = {
            **os.environ,
            "TOKENWORKS_DATA": f"{folder}/data",
            "TOKENWORKS_CACHE": f"{folder}/cache",
            "PIP_NO_CACHE_DIR": "1",
            "TOKENWORKS_PORT": "0",
        }
        with running(clone, env) as (url, cold_s, ready_cold_s):
            pass
        with running(clone, env) as (url, warm_s, ready_warm_s):
            rss_mb = after_load(url, Path(folder) / "data")
        return {
            "first_token_s_cold": round(cold_s, 2),
            "first_token_s_warm": round(warm_s, 2),
            "ready_s_cold": round(ready_cold_s, 2),
            "ready_s_warm": round(ready_warm_s, 2),
            "help_ms": round(help_ms(clone), 1),
            "gateway_rss_mb": rss_mb,
        }


@contextmanager
def running(clone: Path, env: dict[str, str]) -> Iterator[tuple[str, float, float]]:
    """``make up`` in a clone until its first token: the URL, and seconds to the first token and to being ready."""
    data = Path(env["TOKENWORKS_DATA"])
    began = time.monotonic()
    process = subprocess.Popen(["make", "--silent", "up"], cwd=clone, env=env, start_new_session=True)
    try:
        url = _wait(process, data)
        ready_s = time.monotonic() - began
        key = json.loads((data / "keys.json").read_bytes())["key"]
        body = {"messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 4, "stream": True}
        connection, response = _post(url, key, body)
        first = response.readline()
        assert first.startswith(b"data: {"), first
        first_s = time.monotonic() - began
        response.read()
        connection.close()
        yield url, first_s, ready_s
    finally:
        os.killpg(process.pid, signal.SIGINT)
        process.wait(60)


def _wait(process: subprocess.Popen[bytes], data: Path) -> str:
    deadline = time.monotonic() + START_S_MAX
    while time.monotonic() < deadline and process.poll() is None:
        try:
            url: str = json.loads((data / "run.json").read_bytes())["url"]
            connection = _connect(url)
            connection.request("GET", "/healthz")
            if connection.getresponse().status == 200:
                return url
        except (OSError, ValueError):
            pass
        time.sleep(0.02)
    raise SystemExit("the grid did not become ready")


def _connect(url: str) -> http.client.HTTPConnection:
    parts = urlsplit(url)
    return http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=60)


def _post(url: str, key: str, body: dict[str, Any]) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
    connection = _connect(url)
    headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
    text = json.dumps({"model": "smollm2-135m-instruct", **body})
    connection.request("POST", "/v1/chat/completions", text, headers)
    return connection, connection.getresponse()


def after_load(url: str, data: Path) -> float:
    """The gateway's resident memory in MB after a hundred answers."""
    keys = json.loads((data / "keys.json").read_bytes())
    for _ in range(REQUESTS):
        body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}
        connection, response = _post(url, keys["key"], body)
        assert response.status == 200, response.read()
        response.read()
        connection.close()
    connection = _connect(url)
    connection.request("GET", "/v1/status", headers={"authorization": f"Bearer {keys['admin_key']}"})
    status: dict[str, float] = json.loads(connection.getresponse().read())
    connection.close()
    return status["rss_mb"]


def help_ms(clone: Path) -> float:
    """Median milliseconds of ``tokenworks --help``."""
    took = []
    for _ in range(HELP_RUNS):
        began = time.monotonic()
        subprocess.run([str(clone / ".venv/bin/tokenworks"), "--help"], check=True, capture_output=True)
        took.append((time.monotonic() - began) * 1000)
    return statistics.median(took)
