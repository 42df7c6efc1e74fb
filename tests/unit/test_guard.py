"""The guard: cards that go, come back, or are hidden by a tool that hangs; booked beside measured."""

from __future__ import annotations

import msgspec
from tests.support.machines import machine, output

from tokenworks.core.clock import ManualClock
from tokenworks.device.survey import Survey, survey
from tokenworks.device.tools import ENDLESS, Ran
from tokenworks.engine.record import Replica
from tokenworks.engine.replica import ReplicaSpec
from tokenworks.guard import Guard

GONE = output("nvidia.xml").replace("GPU-5a1c0c3e-0000-4000-8000-000000000002", "GPU is lost").replace("70211 MiB", "x")
BOTH = ReplicaSpec(
    name="both", model="m", site="s", slice="", slots=1, context_tokens=1,
    booked={"nvidia0": (1_000, 5), "nvidia1": (1_000, 7)},
)  # fmt: skip
PART = msgspec.structs.replace(BOTH, name="part", booked={"nvidia0": (250, 3)})


def look(xml: str | Ran) -> Survey:
    return survey(machine({"nvidia-smi -q -x": xml, "nvidia-smi -L": ""}))


def guard(*specs: ReplicaSpec) -> tuple[Guard, list[Replica]]:
    clock = ManualClock()
    replicas = [Replica(spec, clock) for spec in specs]
    devices = {"s": look(output("nvidia.xml")).devices}
    return Guard(devices, {each.spec.name: each for each in replicas}, clock, 1), replicas


def test_a_card_that_is_gone_takes_its_replicas_out_until_it_is_back() -> None:
    """After a card that fell off: one missed look is nothing; at the second its replicas are told, others are not."""
    made, [both, part] = guard(BOTH, PART)
    made.see(look(GONE))
    assert (both.lost, part.lost) == ("", "")
    made.see(look(GONE))
    assert (both.lost, part.lost) == ("nvidia1: gone", "")
    assert [each["gone"] for each in made.status("s")] == [False, False, True]
    made.see(look(output("nvidia.xml")))
    assert (both.lost, part.lost) == ("", "")


def test_a_tool_that_hangs_takes_nothing_out() -> None:
    """After a monitoring tool in trouble: engines on healthy cards go on for as long as it hangs."""
    made, [both] = guard(BOTH)
    hangs = look(Ran("", f"nvidia-smi {ENDLESS} 10 s"))
    assert hangs.silent == {"NVIDIA"}
    for _ in range(5):
        made.see(hangs)
    assert both.lost == ""
    failed = look(Ran("", "nvidia-smi ended with status 9: no driver"))
    for _ in range(2):
        made.see(failed)
    assert both.lost == "nvidia0 and nvidia1: gone"


def test_booked_and_measured_stand_side_by_side() -> None:
    """After the truth about a card: what replicas have booked adds up, what is measured is the card's own word."""
    made, _ = guard(BOTH, PART)
    first = made.status("s")[1]
    assert (first["booked_permille"], first["memory_booked_bytes"]) == (1_250, 8)
    assert (first["memory_measured_bytes"], first["busy_permille"], first["power_mw"]) == (None, None, None)
    made.see(look(output("nvidia.xml")))
    processor, first, second = made.status("s")
    assert (first["memory_measured_bytes"], first["power_mw"]) == (472 << 20, None)
    assert (second["memory_measured_bytes"], second["busy_permille"], second["power_mw"]) == (
        70_211 << 20,
        970,
        612_340,
    )
    assert (processor["booked_permille"], processor["memory_measured_bytes"]) == (0, None)
