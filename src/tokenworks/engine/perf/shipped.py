"""The coefficients that ship with the package: made by ``make bench-perf`` from the tables in ``data/measured``."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from math import sqrt

import msgspec

from tokenworks.core.words import Word
from tokenworks.engine.perf.iteration import Coefficients
from tokenworks.engine.perf.plan import Plan


class Front(Word, frozen=True):
    """What a server adds before a first token reaches the user, beside the queue and the iterations themselves."""

    wait_s: float
    """For each request: HTTP, admission, the way back."""
    iterations: float
    """Iterations of pipelining and of collecting tokens before they are sent."""


class Power(Word, frozen=True):
    """Of an active device, as shares of its board power."""

    base: float
    working: float
    compute: float

    def share(self, working: float, compute: float) -> float:
        """base + working · (share of no overhead) + compute · √(share of arithmetic), at most 1; see ``activity``."""
        return min(1.0, self.base + self.working * working + self.compute * sqrt(compute))


class Shipped(Word, frozen=True):
    """All of the file, with where it comes from and how far off it is on rows that it was not fitted to."""

    made: str
    source: str
    errors: Mapping[str, float]
    """Median relative errors, by what was held out."""
    known: Mapping[str, tuple[str, ...]]
    """Devices, models and engines in the tables, under ``gpu``, ``model`` and ``engine``."""
    iteration: Coefficients
    front: Mapping[str, Front]
    """By engine; ``any`` is for others."""
    front_token_s: float
    """For each prompt token: reading and tokenising it."""
    power: Power

    def tpot_error(self, plan: Plan) -> float | None:
        """Median error to expect: that of rows left out, by GPU, model or engine, when the tables lack this one's.

        None for a vendor that the tables lack altogether.
        """
        names = {"gpu": plan.device.id, "model": plan.shape.name, "engine": plan.engine}
        if plan.device.id.partition("-")[0] not in {gpu.partition("-")[0] for gpu in self.known["gpu"]}:
            return None
        lacking = [f"tpot_leave_{kind}_out_err" for kind, name in names.items() if name not in self.known[kind]]
        return max(self.errors[name] for name in ["tpot_sim_median_err", *lacking])


@cache
def shipped() -> Shipped:
    """Read once."""
    text = files(__package__).joinpath("data", "coefficients.toml").read_bytes()
    return msgspec.toml.decode(text, type=Shipped)
