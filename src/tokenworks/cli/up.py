"""``tokenworks up``: the main job."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import sys
from pathlib import Path
from typing import Annotated

import msgspec
import uvloop
from cyclopts import Parameter, validators

from tokenworks import calibrations, compose, datadir, grid, gridfile
from tokenworks.cli.out import note
from tokenworks.cli.reach import configured_host, configured_port
from tokenworks.device.discovery import CPU
from tokenworks.engine.models import catalogue
from tokenworks.gridfile import WORKERS_MAX


def up(
    *,
    grid_file: Annotated[Path | None, Parameter(name=["--grid", "-g"])] = None,
    host: str | None = None,
    port: int | None = None,
    workers: Annotated[int | None, Parameter(validator=validators.Number(gte=1, lte=WORKERS_MAX))] = None,
    verbose: Annotated[bool, Parameter(name=["--verbose", "-v"], negative="")] = False,
) -> int:
    """Run a grid on this machine, in the foreground. Stop it with Ctrl-C.

    Args:
        grid_file: The TOML file that describes the grid. Without it, this machine with one embedded replica.
        host: Where to listen; TOKENWORKS_HOST or 127.0.0.1.
        port: TOKENWORKS_PORT or 8080; 0 takes a free one.
        workers: Gateway processes on that port; as the grid file says, or 1.
        verbose: Log what happens inside.
    """
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING, format="%(levelname)s %(name)s: %(message)s"
    )
    data = datadir.data_directory()
    host, port = host or configured_host(), configured_port() if port is None else port
    described = gridfile.load(grid_file) if grid_file else gridfile.default_grid()
    if workers is not None:
        described = msgspec.structs.replace(described, gateway=gridfile.Gateway(workers=workers))
    plan = calibrations.applied(compose.plan(described), calibrations.read_all(data))
    datadir.prepare(data)
    with datadir.locked(data):
        grid.check_currency(data, plan)
        datadir.save_store(data, plan.store)
        _introduce(plan, data)

        def ready(url: str, seconds: float) -> None:
            note(f"ready after {seconds:.1f} s\n")
            keys = datadir.read_keys(data)
            assert keys is not None, "the grid makes them before it is ready"
            sys.stdout.write(_welcome(url, keys, plan))
            sys.stdout.flush()

        with contextlib.suppress(KeyboardInterrupt):
            uvloop.run(grid.run(plan, data, host, port, lambda text: note(f"· {text}"), ready))
    note("stopped; every request is settled in the books")
    return 0


def _introduce(plan: compose.Plan, data: Path) -> None:
    """Say what is about to run, and openly what it is not."""
    note(f"tokenworks: grid {plan.name!r}, data in {data}")
    if plan.journal == "off":
        note("  the journal is off: nothing is recorded and nobody is billed")
    for site in plan.sites:
        for device in plan.devices[site.name]:
            size = f"{device.threads} threads, " if device.kind == CPU else ""
            note(f"  site {site.name}: {device.id} {device.name}, {size}{device.memory_bytes / 1e9:.1f} GB")
    for replica in plan.replicas:
        size = f"{replica.threads} thread(s), " if replica.limits.memory_bytes else ""
        on = f"on {' + '.join(replica.booked) or replica.driver}, {size}{replica.slots} slots"
        where = f"at {replica.url}" if replica.url else on
        note(f"  replica {replica.name}: {replica.model}, {where}, {replica.context_tokens} tokens of context")
        if replica.limits.not_enforced:
            note(f"    nobody enforces {replica.limits.not_enforced}")
        if replica.decode_tps:
            note(f"    calibrated: {replica.decode_tps:,.0f} tokens/s of a lone request")
        model = catalogue().get(replica.model)
        if model and replica.driver == "embedded":
            note(f"    {model.note}")


def _welcome(url: str, keys: datadir.Keys, plan: compose.Plan) -> str:
    model = plan.replicas[0].model
    colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    me = "tokenworks" if shutil.which("tokenworks") else os.path.relpath(sys.argv[0])
    bold, plain = ("\x1b[1m", "\x1b[0m") if colour else ("", "")
    return f"""{bold}URL{plain}  {url}/v1
{bold}key{plain}  {keys.key}   (account {keys.account!r})

curl -N {url}/v1/chat/completions -H 'Authorization: Bearer {keys.key}' \\
  -H 'Content-Type: application/json' \\
  -d '{{"model": "{model}", "stream": true, "stream_options": {{"include_usage": true}}, "max_tokens": 64, \
"messages": [{{"role": "user", "content": "Say hello to the grid."}}]}}'

In another terminal, with the same TOKENWORKS_DATA:
  {me} chat "Why is the sky blue?"
  {me} receipt show · status · books · cake · doctor
"""
