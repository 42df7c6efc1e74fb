"""The peers: where they come from, how they are installed in environments of their own, and how they are started.

They lie in ``$XDG_CACHE_HOME/tokenworks-bench``, outside the checkout, and are installed once per pinned version with
``uv`` where it is on the path and ``pip`` otherwise, or ``npm``. Command lines follow each project's documentation:
one worker, round robin where it can be chosen, quiet, on the loopback. Two routers run a second time with the policy
that they have when nobody chooses one.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
from bench.gateway.processes import free_port, running
from bench.gateway.words import MODEL

INSTALL_S_MAX = 900


class Absent(Exception):
    """A peer cannot be installed or started; the message says why."""


@dataclass(frozen=True)
class Start:
    """How to start a peer, and what its clients must send."""

    command: list[str]
    env: dict[str, str] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Peer:
    """One gateway of others. ``start(home, work, port, mock_url)`` may write files into ``work``."""

    name: str
    requirement: str
    start: Callable[[Path, Path, int, str], Start]
    package: dict[str, object] | None = None
    """For npm: the ``package.json`` to install instead."""
    shares: str = ""
    """The peer whose environment it runs in."""


def cache() -> Path:
    """Where peers are installed."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "tokenworks-bench"


def install(peer: Peer) -> Path:
    """The peer's environment, made now unless it has this version already. Raises Absent."""
    home = cache() / (peer.shares or peer.name)
    stamp, wanted = home / "installed", peer.requirement if peer.package is None else str(peer.package)
    if stamp.exists() and stamp.read_text() == wanted:
        return home
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    if peer.package is not None:
        (home / "package.json").write_bytes(msgspec.json.encode(peer.package))
        _run(peer, ["npm", "install", "--prefix", str(home), "--no-audit", "--no-fund"])
    elif uv := shutil.which("uv"):
        _run(peer, [uv, "venv", "--quiet", "--python", sys.executable, "--clear", str(home)])
        _run(peer, [uv, "pip", "install", "--quiet", "--python", str(home / "bin/python"), peer.requirement])
    else:
        _run(peer, [sys.executable, "-m", "venv", str(home)])
        pip = [str(home / "bin/python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        _run(peer, [*pip, peer.requirement])
    stamp.write_text(wanted)
    return home


def _run(peer: Peer, command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_S_MAX)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Absent(f"{peer.requirement} cannot be installed: {error}") from None
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
        raise Absent(f"{peer.requirement} cannot be installed: {' '.join(said)[:300]}")


@contextlib.contextmanager
def started(peer: Peer, work: Path, mock_url: str, core: int) -> Iterator[tuple[int, int, dict[str, str], Path]]:
    """Process id, port, headers and log of a running peer that need not answer yet. Raises Absent."""
    home = install(peer)
    port = free_port()
    start = peer.start(home, work, port, mock_url)
    log = work / f"{peer.name}.log"
    try:
        with running(start.command, core, log, start.env, cwd=work) as process:
            yield process.pid, port, start.headers, log
    except OSError as error:
        raise Absent(f"{peer.name} cannot be started: {error}") from None


def _litellm(home: Path, work: Path, port: int, mock_url: str) -> Start:
    key = "sk-" + secrets.token_hex(16)
    upstream = {"model": f"openai/{MODEL}", "api_base": f"{mock_url}/v1", "api_key": "x"}
    config = {
        "model_list": [{"model_name": MODEL, "litellm_params": upstream}],
        "general_settings": {"master_key": key},
    }
    (work / "litellm.yaml").write_bytes(msgspec.json.encode(config))  # JSON is YAML
    return Start(
        [str(home / "bin/litellm"), "--config", "litellm.yaml", "--host", "127.0.0.1", "--port", str(port)],
        # Production settings of its documentation; the price list comes with the package instead of the network.
        {
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",
            "LITELLM_MODE": "PRODUCTION",
            "LITELLM_LOG": "ERROR",
            "LITELLM_TELEMETRY": "False",
        },
        {"authorization": f"Bearer {key}"},
    )


def _router(policy: str, quiet: str, *program: str) -> Callable[[Path, Path, int, str], Start]:
    def start(home: Path, work: Path, port: int, mock_url: str) -> Start:
        address = ["--host", "127.0.0.1", "--port", str(port), "--worker-urls", mock_url, "--policy", policy]
        metrics = ["--prometheus-host", "127.0.0.1", "--prometheus-port", str(free_port()), "--log-level", quiet]
        return Start([str(home / "bin" / program[0]), *program[1:], *address, *metrics])

    return start


def _portkey(home: Path, work: Path, port: int, mock_url: str) -> Start:
    server = home / "node_modules/@portkey-ai/gateway/build/start-server.js"
    return Start(
        ["node", str(server), f"--port={port}", "--headless"],
        {"NODE_ENV": "production"},
        {
            "authorization": "Bearer x",
            "x-portkey-provider": "openai",
            "x-portkey-custom-host": f"{mock_url}/v1",
        },
    )


# It takes any 1.x of its server library, and answers every stream with status 500 on the newest of them.
PORTKEY: dict[str, object] = {
    "dependencies": {"@portkey-ai/gateway": "1.15.2"},
    "overrides": {"@hono/node-server": "1.14.0"},
}
_VLLM = ("warning", "vllm-router")
_SGLANG = ("warn", "python", "-m", "sglang_router.launch_router")
PEERS = (
    Peer("vllm_router", "vllm-router==0.1.17", _router("round_robin", *_VLLM)),
    Peer("vllm_router_cache_aware", "vllm-router==0.1.17", _router("cache_aware", *_VLLM), shares="vllm_router"),
    Peer("sglang_router", "sglang-router==0.3.2", _router("round_robin", *_SGLANG)),
    Peer("sglang_router_cache_aware", "sglang-router==0.3.2", _router("cache_aware", *_SGLANG), shares="sglang_router"),
    Peer("smg", "smg==1.13.0", _router("round_robin", "warn", "smg", "launch")),
    Peer("portkey", "@portkey-ai/gateway 1.15.2", _portkey, PORTKEY),
    Peer("litellm", "litellm[proxy]==1.106.2", _litellm),
)
