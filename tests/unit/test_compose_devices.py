"""Replicas on the accelerators of recorded machines: two vendors, a card cut by MIG."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.machines import machine, output

from tokenworks import compose, gridfile
from tokenworks.compose import Plan, plan
from tokenworks.compose_devices import seats
from tokenworks.core.errors import GridFileError
from tokenworks.device.slices import Booked
from tokenworks.device.survey import survey
from tokenworks.engine.replica import ReplicaSpec
from tokenworks.gridfile import Replica

MIXED = machine(
    {
        "nvidia-smi -q -x": output("nvidia-mig.xml"),
        "nvidia-smi -L": output("nvidia-mig.list"),
        "npu-smi info": output("ascend.txt"),
    }
)
"""Two MIG instances and an H100; 910B3 of which one is in use and one ill; two 310P3."""
FOUR = machine({"mx-smi": output("metax.txt").replace("Unavailable", "Available  ")})
COMMAND = 'command = ["engine"]\n'


@pytest.fixture(autouse=True)
def mixed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compose, "survey", lambda currency: survey(MIXED, currency=currency))


def composed(*replicas: str, sites: str = "") -> Plan:
    tables = [f'[[replica]]\nname = "r{number}"\n{text}' for number, text in enumerate(replicas)]
    return plan(gridfile.parse(sites + "".join(tables), "t"))


def only(text: str, sites: str = "") -> ReplicaSpec:
    return composed('model = "m"\n' + COMMAND + text, sites=sites).replicas[0]


def test_a_command_gets_a_whole_card_that_nobody_uses() -> None:
    """After defaults: the model is unknown, so a card in use, an ill one and an instance are none for it."""
    made = composed('model = "m"\nvendor = "NVIDIA"\n' + COMMAND, 'model = "smollm2-135m-instruct"\n')
    card, embedded = made.replicas
    assert card.booked == {"nvidia1": (1_000, 81_559 << 20)}
    assert card.limits.env == {"CUDA_VISIBLE_DEVICES": "GPU-5a1c0c3e-0000-4000-8000-000000000002"}
    assert (card.limits.cpus, card.limits.memory_bytes) == ((), None)
    assert list(embedded.booked) == ["cpu0"]  # all of the processor is its own
    assert embedded.limits.memory_bytes == 10**9
    [site] = made.sites
    assert {load.slice: load.server for load in site.loads} == {"cpu0/0": "", "nvidia1/0": "accelerators"}
    assert site.hosts_mw == {"accelerators": 0}  # the only card whose idle power is known is booked
    assert site.thread_busy_mw == 2_760  # of the processor, not of a card


def test_two_cards_work_together() -> None:
    """After tensor parallel: two whole cards of one kind in the order of their variable, none of them ill or in use."""
    made = only('cards = 2\nvendor = "Huawei"\n')
    assert made.booked == {"ascend8": (1_000, 21_527 << 20), "ascend9": (1_000, 21_527 << 20)}
    assert made.limits.env == {"ASCEND_RT_VISIBLE_DEVICES": "8,9"}
    assert made.slice == ""  # nobody knows what they draw, so nothing is told of it


def test_slices_of_cards_that_work_together_are_one_load(monkeypatch: pytest.MonkeyPatch) -> None:
    """After energy: one slice with the power of both."""
    listed = 'site = [{ name = "s", device = [{ id = "metax0", idle = "50 W", max = "350 W", cost = "1 USD/h" }, '
    listed += '{ id = "metax1", idle = "60 W", max = "350 W", cost = "2 USD/h" }, { id = "cpu0" }] }]\n'
    quiet = FOUR._replace(run=lambda argv: FOUR.run(argv)._replace(out=FOUR.run(argv).out.replace("32000/", "    0/")))
    monkeypatch.setattr(compose, "survey", lambda currency: survey(quiet, currency=currency))
    made = composed('model = "m"\ncards = 2\n' + COMMAND, sites=listed)
    [load] = made.sites[0].loads
    assert (load.slice, load.idle_mw, load.busy_mw) == ("metax0/0+metax1/0", 110_000, 590_000)
    assert load.cost_nano_per_hour == 3 * 10**9
    assert made.replicas[0].slice == load.slice
    assert made.replicas[0].limits.env == {"MACA_VISIBLE_DEVICES": "0,1"}


def test_an_instance_and_a_part_of_it() -> None:
    """After MIG and MPS: the smallest instance with the memory, shown by its UUID; parts share it up to the whole."""
    part = 'model = "m"\nvendor = "NVIDIA"\nshare = 0.5\nmemory = "4 GB"\n' + COMMAND
    first, second, third = composed(part, part, part).replicas
    uuid = "MIG-11111111-0000-5000-8000-00000000000"
    assert first.limits.env == {
        "CUDA_VISIBLE_DEVICES": uuid + "2",
        "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE": "50",
        "CUDA_MPS_PINNED_DEVICE_MEM_LIMIT": "0=3814M",
    }
    assert first.booked == second.booked == {"nvidia0:1": (500, 4 * 10**9)}
    assert third.limits.env["CUDA_VISIBLE_DEVICES"] == uuid + "1"


def test_memory_is_weights_and_caches_where_the_shape_is_known() -> None:
    """After a model that does not fit: 8 billion weights of 16 bits need the 40 GB instance, of 4 the small one."""
    assert list(only('upstream_model = "Qwen/Qwen3-8B"\nvendor = "NVIDIA"\n').booked) == ["nvidia0:0"]
    assert list(only('upstream_model = "Qwen/Qwen3-8B-AWQ"\nvendor = "NVIDIA"\n').booked) == ["nvidia0:1"]


def test_a_named_device_is_taken_and_the_processor_is_one() -> None:
    """After choice by the operator: an instance by its id; with threads or by name a command runs on the processor."""
    assert list(only('device = "nvidia0:0"\n').booked) == ["nvidia0:0"]
    assert list(only('device = "cpu0"\n').booked) == ["cpu0"]
    assert only("threads = 1\n").limits.env == {}


def test_sites_of_one_machine_share_its_cards() -> None:
    """After two sites: what one has booked the other cannot have."""
    sites = '[[site]]\nname = "a"\n[[site]]\nname = "b"\n'
    replica = 'model = "m"\nvendor = "NVIDIA"\n' + COMMAND
    with pytest.raises(GridFileError, match="'r1' needs 100 % of 1 NVIDIA"):
        composed(replica + 'site = "a"\n', replica + 'site = "b"\n', sites=sites)


@given(
    st.lists(
        st.tuples(st.sampled_from((None, 1, 2, 3)), st.integers(1, 1_000), st.integers(1, 90_000)).map(
            lambda drawn: Replica(
                model="m", driver="process", cards=drawn[0], memory_bytes=drawn[2] * 10**6,
                share_permille=None if drawn[0] else drawn[1],
            )
        ),
        max_size=6,
    )
)  # fmt: skip
def test_nothing_is_ever_booked_twice(tables: list[Replica]) -> None:
    """After any demands at two sites of one machine: refused, or within every device; whole cards stand alone."""
    devices, taken = survey(MIXED).devices, list[Booked]()
    named = [msgspec.structs.replace(table, name=str(number)) for number, table in enumerate(tables)]
    for part in (named[::2], named[1::2]):
        try:
            found = seats(part, devices, {"ascend3"}, taken)
        except GridFileError:
            continue
        assert all(len(found[table.name].parts) == (table.cards or 1) for table in part)
    for device in devices:
        mine = [each for each in taken if each.device == device.id]
        assert sum(each.threads for each in mine) <= device.threads
        assert sum(each.memory_bytes for each in mine) <= device.memory_bytes
        assert not (mine and device.id == "ascend3")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('cards = 2\nvendor = "NVIDIA"\n', r"100 % of 2 NVIDIA card.* 1 devices .* 2 are .*nvidia1 100 %, 85,520 MB"),
        ('cards = 2\nvendor = "NVIDIA"\nmemory = "9 GB"\n', "3 devices .* 2 are needed, none of them alike"),
        ('memory = "60 GB"\nvendor = "Huawei"\n', r"60,000 MB free on each: 0 devices .* ascend0 99\.9 %, 21,534 MB"),
        ('vendor = "AMD"\n', r"100 % of 1 AMD card.*tokenworks device list"),
        ('device = "ascend3"\n', r"needs 100 % of 1 accelerator .*tokenworks device list"),
        ('vendor = "Nvidla"\n', "vendor: 'Nvidla': no such vendor"),
        ('device = "nvidia2"\n', r"there is no device 'nvidia2' \(there is: cpu0, nvidia0:0"),
        ("share = 1.5\n", "share: must be above 0 and at most 1"),
        ("cards = 2\nshare = 0.5\n", "is of a single card"),
        ('url = "http://x"\ndriver = "external"\ncards = 2\n', "command: belongs to a process or ray replica"),
    ],
)  # fmt: skip
def test_what_fits_nowhere_is_told_with_what_is_missing(text: str, said: str) -> None:
    """After a demand without room: what it needs, how many have it, and what is free where."""
    with pytest.raises(GridFileError, match=said) as caught:
        only(text)
    assert str(caught.value)
