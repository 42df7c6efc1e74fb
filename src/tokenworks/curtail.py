"""The simple answer to a limit on a site's power, until a plan gives a better one. Pure policy.

Step by step, each only if the one before did not bring the power down: new deferrable requests wait, replicas work on
one request at a time, idle replicas sleep. What runs may end, and interactive requests are never refused for it.
"""

from __future__ import annotations

from collections.abc import Iterable

from tokenworks.core.units import NS_PER_S
from tokenworks.core.words import Limit, Word

DEFER, CAP, SLEEP = 1, 2, 3
STEP_NS = 3 * NS_PER_S
"""How long a step may take to show in the power before the next one follows."""
RUNNING_MAX = 1


class Order(Word, frozen=True):
    """What a site does about the lowest limit in force."""

    event: str
    max_mw: int
    firm: bool
    end_ns: int
    """When the last limit of its event ends, as far as is known."""
    step: int
    since_ns: int
    """When this step was taken."""

    @property
    def running_max(self) -> int | None:
        """Requests of a replica at a time; None: as many as it can."""
        return RUNNING_MAX if self.step >= CAP else None


def answer(limits: Iterable[Limit], power_mw: int | None, before: Order | None, now_ns: int) -> Order | None:
    """The order for now; None: nothing is asked for. ``power_mw`` is a mean over the last moments, None: not known yet.

    Steps are not taken back before the event ends. Where nothing at all may be drawn, all are taken at once.
    """
    upper = [(each.max_mw, each) for each in limits if each.max_mw is not None]
    held = [pair for pair in upper if pair[1].start_ns <= now_ns < pair[1].end_ns]
    if not held:
        return None
    max_mw, limit = min(held, key=lambda pair: pair[0])
    step, since_ns = SLEEP if max_mw == 0 else DEFER, now_ns
    if before is not None and before.event == limit.event and before.step >= step:
        step, since_ns = before.step, before.since_ns
        if step < SLEEP and power_mw is not None and power_mw > max_mw and now_ns - since_ns >= STEP_NS:
            step, since_ns = step + 1, now_ns
    end_ns = max(each.end_ns for _, each in upper if each.event == limit.event)
    return Order(
        event=limit.event, max_mw=max_mw, firm=limit.firm, end_ns=end_ns, step=step, since_ns=since_ns
    )  # fmt: skip
