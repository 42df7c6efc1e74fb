from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.machines import CPU, machine, output

from tokenworks.core.words import Provenance
from tokenworks.device.discovery import Device
from tokenworks.device.survey import Survey, changes, survey
from tokenworks.device.tools import Ran
from tokenworks.device.vendors import vendors

MIB = 1 << 20
TOOLS: dict[str, str | Ran] = {
    "nvidia-smi -q -x": Ran(output("nvidia.xml"), "nvidia-smi ended with status 15: GPU is lost"),
    "nvidia-smi -L": "",
    "amd-smi list": output("amd-list.json"),
    "amd-smi static": output("amd-static.json"),
    "amd-smi metric": output("amd-metric.json"),
    "npu-smi info": output("ascend.txt"),
    "cnmon": output("cambricon.txt"),
    "mthreads-gmi -q": output("mthreads.json"),
    "mx-smi": output("metax.txt"),
    "ixsmi": output("iluvatar.csv"),
    "hy-smi": output("hygon.json"),
    "xpu-smi -m": output("kunlunxin.txt"),
}
UUID = "GPU-5a1c0c3e-0000-4000-8000-00000000000"
KUNLUNXIN = [("0x1d22", "0x120000")] * 2

# id, row of the catalogue, MiB in all, MiB used, busy permille, mW now, mW at most, the variable that shows it alone
EXPECTED = [
    ("nvidia0", "nvidia-h100-sxm", 81_559, 472, 0, None, 700_000, f"CUDA_VISIBLE_DEVICES={UUID}1"),
    ("nvidia1", "nvidia-h100-sxm", 81_559, 70_211, 970, 612_340, 700_000, f"CUDA_VISIBLE_DEVICES={UUID}2"),
    ("amd0", "amd-mi300x", 196_592, 283, None, 132_000, 700_000, "HIP_VISIBLE_DEVICES=0"),
    ("amd1", "amd-mi300x", 196_592, 121_344, 870, 542_000, 750_000, "HIP_VISIBLE_DEVICES=1"),
    ("ascend0", "ascend-910b3", 65_536, 45_000, 850, 99_300, 350_000, "ASCEND_RT_VISIBLE_DEVICES=0"),
    ("ascend3", "ascend-910b3", 65_536, 3_453, 0, 97_800, 350_000, "ASCEND_RT_VISIBLE_DEVICES=3"),
    ("ascend8", "ascend-310p3", 21_527, 1_702, 0, None, None, "ASCEND_RT_VISIBLE_DEVICES=8"),
    ("ascend9", "ascend-310p3", 21_527, 1_550, 30, None, None, "ASCEND_RT_VISIBLE_DEVICES=9"),
    ("cambricon0", "cambricon-mlu370-x4", 23_308, 0, 0, 27_000, 150_000, "MLU_VISIBLE_DEVICES=0"),
    ("cambricon1", "cambricon-mlu590", 81_920, 61_440, 630, 311_000, 550_000, "MLU_VISIBLE_DEVICES=1"),
    ("mthreads0", "mthreads-s5000", 81_920, 0, 0, 96_660, 950_000, "MUSA_VISIBLE_DEVICES=0"),
    ("mthreads1", "mthreads-s4000", 49_152, 1_024, 120, None, 450_000, "MUSA_VISIBLE_DEVICES=1"),
    ("metax0", "metax-c500", 65_536, 666, 0, 57_000, 350_000, "MACA_VISIBLE_DEVICES=0"),
    ("metax1", "metax-c500", 65_536, 32_000, 420, 180_000, 350_000, "MACA_VISIBLE_DEVICES=1"),
    ("iluvatar0", "iluvatar-mr-v100", 32_768, 116, 0, 36_000, 150_000, "CUDA_VISIBLE_DEVICES=0"),
    ("iluvatar1", "iluvatar-bi-v150", 65_536, 27_996, 550, 201_000, 350_000, "CUDA_VISIBLE_DEVICES=1"),
    ("hygon0", "hygon-k100-ai", 65_520, 2, 0, 104_000, 400_000, "HIP_VISIBLE_DEVICES=0"),
    ("hygon1", "hygon-k100-ai", 65_520, 60_000, 885, 312_000, 400_000, "HIP_VISIBLE_DEVICES=1"),
    ("kunlunxin0", "kunlunxin-p800", 98_304, 4_096, 70, 92_000, None, "XPU_VISIBLE_DEVICES=0"),
    ("kunlunxin1", "kunlunxin-p800", 98_304, 0, 0, 95_000, None, "XPU_VISIBLE_DEVICES=1"),
]  # fmt: skip


def everything() -> Survey:
    return survey(machine(TOOLS, KUNLUNXIN))


def test_every_vendor_is_read() -> None:
    """After each vendor's own way to say it: ids, rows of the catalogue, memory, load, power and its variable."""
    found = {device.id: device for device in everything().devices}
    assert list(found) == ["cpu0", *(row[0] for row in EXPECTED)]
    for id_, row, total, used, busy, now, most, visible in EXPECTED:
        device = found[id_]
        assert device.catalogue_id == row, id_
        assert (device.memory_bytes, device.memory_used_bytes) == (total * MIB, used * MIB), id_
        assert device.busy_permille == busy, id_
        assert (device.power_mw and device.power_mw.value) == now, id_
        assert (device.max_mw and device.max_mw.value) == most, id_
        assert [f"{name}={value}" for name, value in device.visible.items()] == [visible], id_
        assert device.uuid, id_
        assert device.threads == 1_000


def test_every_vendor_of_the_table_is_tested() -> None:
    """After a row that nobody tries: each vendor has a sample, one variable, and a name of the catalogue."""
    assert {vendor.prefix for vendor in vendors()} == {row[0].rstrip("0123456789") for row in EXPECTED}


def test_measured_and_listed_are_never_mixed() -> None:
    """After provenance: what a card reads off itself is measured, a limit and a data sheet are listed."""
    for device in everything().devices[1:]:
        if device.power_mw is not None:
            assert device.power_mw.provenance is Provenance.MEASURED
        for figure in (device.idle_mw, device.max_mw):
            if figure is not None:
                assert figure.provenance is Provenance.LISTED
                assert figure.source


def test_what_is_wrong_is_one_finding_each() -> None:
    """After a card that fell off and cards that are ill: said once, and the others are still there."""
    said = {(finding.about, finding.what) for finding in everything().findings}
    assert said == {
        ("NVIDIA", "nvidia-smi ended with status 15: GPU is lost"),
        ("ascend3", "its health is Alarm"),
        ("metax1", "its health is Unavailable"),
    }


def test_a_machine_without_accelerators_says_nothing_about_them() -> None:
    """After noise: no tool and no card is no finding, nor is a display of a management controller a card."""
    found = survey(machine({}, [("0x19e5", "0x030000"), ("0x1af4", "0x020000")]))
    assert [device.id for device in found.devices] == ["cpu0"]
    assert found.findings == ()


@pytest.mark.parametrize(
    ("trouble", "said"),
    [
        (Ran("", "nvidia-smi did not end within 10 s"), "2 on the bus, but nvidia-smi did not end within 10 s"),
        (Ran("", "nvidia-smi is not installed", absent=True), "2 on the bus, but nvidia-smi is not installed"),
        (Ran("\x00\xff{]|,," * 1_000), "2 on the bus, but what nvidia-smi prints cannot be read (ParseError)"),
        (Ran("<a><gpu><uuid/></gpu></a>"), "2 on the bus, but nvidia-smi shows no device"),
        (Ran(""), "2 on the bus, but nvidia-smi shows no device"),
    ],
)
def test_a_tool_in_trouble_is_one_finding(trouble: Ran, said: str) -> None:
    """After a tool that hangs, is gone, or prints garbage: one clear sentence, and the processor is still found."""
    found = survey(machine({"nvidia-smi": trouble}, [("0x10de", "0x030200")] * 2))
    assert [device.id for device in found.devices] == ["cpu0"]
    assert [(finding.about, finding.what) for finding in found.findings] == [("NVIDIA", said)]


def test_garbled_json_is_one_finding() -> None:
    """After a document that breaks off: the parser's trouble is told, not thrown."""
    broken = output("mthreads.json")[:300]
    assert [f.what for f in survey(machine({"mthreads-gmi": broken})).findings] == [
        "what mthreads-gmi prints cannot be read (DecodeError)"
    ]
    deep = "[" * 100_000
    assert [f.about for f in survey(machine({"hy-smi": deep})).findings] == ["Hygon"]


def test_part_of_what_a_vendor_says_is_better_than_nothing() -> None:
    """After one of three commands failing: the devices are there with what is known, and the trouble is told."""
    found = survey(machine({**TOOLS, "amd-smi metric": Ran("", "amd-smi did not end within 10 s")}))
    amd = [device for device in found.devices if device.vendor == "AMD"]
    assert [(device.memory_bytes, device.power_mw) for device in amd] == [(196_592 * MIB, None)] * 2
    assert ("AMD", "amd-smi did not end within 10 s") in {(f.about, f.what) for f in found.findings}


def test_a_card_on_the_bus_that_nobody_can_use_is_told() -> None:
    """After a card that fell off without a word: the bus has one more than the tool."""
    found = survey(machine({"cnmon": output("cambricon.txt")}, [("0xcabc", "0x120000")] * 3))
    assert [f.what for f in found.findings] == ["3 on the bus, but only 2 can be used"]


def test_nvml_comes_before_nvidia_smi_and_shows_mig_instances() -> None:
    """After instances: they are devices of their own, shown by their UUID, with no data sheet."""
    nvml = (
        "0:1,MIG-11111111-0000-5000-8000-000000000001,NVIDIA H100 80GB HBM3 MIG 1g.10gb,00000000:19:00.0,9984,12,,,\n"
        "1,GPU-22222222,NVIDIA H100 80GB HBM3,00000000:3B:00.0,81559,0,0,67.120,700.000\n"
    )
    tools: dict[str, str | Ran] = {"python -m tokenworks.device.nvml": nvml, "nvidia-smi": output("nvidia.xml")}
    _, part, whole = survey(machine(tools, [("0x10de", "0x030200")] * 2)).devices
    assert (part.id, part.catalogue_id, part.memory_bytes, part.max_mw) == ("nvidia0:1", None, 9_984 * MIB, None)
    assert part.visible == {"CUDA_VISIBLE_DEVICES": "MIG-11111111-0000-5000-8000-000000000001"}
    assert whole.power_mw is not None
    assert whole.power_mw.value == 67_120


def test_nvidia_smi_shows_mig_instances() -> None:
    """After cards in parts: instances with their profile and UUID instead of the card; one without a UUID is no use."""
    tools: dict[str, str | Ran] = {
        "nvidia-smi -q -x": output("nvidia-mig.xml"),
        "nvidia-smi -L": output("nvidia-mig.list"),
    }
    _, large, small, whole = survey(machine(tools, [("0x10de", "0x030200")] * 2)).devices
    assert (large.id, large.name, large.memory_bytes) == (
        "nvidia0:0", "NVIDIA H100 80GB HBM3 MIG 3g.40gb", 40_448 * MIB,
    )  # fmt: skip
    assert small.visible == {"CUDA_VISIBLE_DEVICES": "MIG-11111111-0000-5000-8000-000000000002"}
    assert (small.memory_used_bytes, small.power_mw, small.max_mw) == (12 * MIB, None, None)
    assert (whole.id, whole.catalogue_id, whole.uuid) == ("nvidia1", "nvidia-h100-sxm", f"{UUID}2")


def test_entities_do_not_expand_without_end() -> None:
    """After a billion laughs: expat refuses, and the survey says so."""
    bomb = "".join(f'<!ENTITY l{n + 1} "{f"&l{n};" * 10}">' for n in range(9))
    laughs = f'<!DOCTYPE a [<!ENTITY l0 "{"ha" * 50}">{bomb}]><a><gpu><uuid>&l9;</uuid></gpu></a>'
    [finding] = survey(machine({"nvidia-smi": laughs})).findings
    assert finding.what == "what nvidia-smi prints cannot be read (ParseError)"


def test_senseless_figures_are_unknown() -> None:
    """After garbage that looks like numbers: more used than there is, 300 % busy, a gigawatt."""
    row = "0,GPU-1,Iluvatar MR-V100,32768 MiB,99999 MiB,300 %,1000000000 W,150 W\n"
    _, device = survey(machine({"ixsmi": row})).devices
    assert (device.memory_used_bytes, device.busy_permille, device.power_mw) == (None, None, None)
    assert device.catalogue_id == "iluvatar-mr-v100"


def test_intels_tool_of_the_same_name_is_not_asked() -> None:
    """After xpu-smi of another vendor: it is run only where a Kunlunxin card is on the bus."""
    assert survey(machine({"xpu-smi": Ran("", "xpu-smi ended with status 1")})).findings == ()


@given(st.text(max_size=2_000), st.sampled_from([vendor.prefix for vendor in vendors()]))
def test_no_output_whatever_stops_a_survey(text: str, prefix: str) -> None:
    """After hostile output: any text from any tool ends in devices or findings, never in an exception."""
    vendor = next(vendor for vendor in vendors() if vendor.prefix == prefix)
    tools: dict[str, str | Ran] = {" ".join(command): text for way in vendor.ways for command in way.commands}
    found = survey(machine(tools, [(vendor.pci, "0x120000")]))
    assert found.devices[0].id == "cpu0"
    assert len(found.devices) > 1 or found.findings


@given(st.sampled_from(sorted(TOOLS)), st.data())
def test_no_damage_to_an_output_stops_a_survey(name: str, data: st.DataObject) -> None:
    """After outputs that break off or lose a piece in the middle, which hostile noise alone would never resemble."""
    said = TOOLS[name]
    text = said.out if isinstance(said, Ran) else said
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, len(text)))
    found = survey(machine({**TOOLS, name: text[:start] + text[end:]}, KUNLUNXIN))
    for device in found.devices:
        assert device.memory_bytes > 0
        assert device.memory_used_bytes is None or device.memory_used_bytes <= device.memory_bytes


def named(id_: str, uuid: str | None) -> Device:
    return msgspec.structs.replace(everything().devices[0], id=id_, uuid=uuid)


def test_changes() -> None:
    """After cards that go, come, move and are swapped; a processor is known by its place."""
    before = [named("cpu0", None), named("nvidia0", "A"), named("nvidia1", "B")]
    assert changes(before, before) == changes([], [])
    gone = changes(before, before[:2])
    assert [device.uuid for device in gone.lost] == ["B"]
    assert gone.new == ()
    moved = changes(before, [before[0], named("nvidia0", "B"), named("nvidia1", "A")])
    assert (moved.new, moved.lost) == ((), ())
    swapped = changes(before, [*before[:2], named("nvidia1", "C")])
    assert ([d.uuid for d in swapped.new], [d.uuid for d in swapped.lost]) == (["C"], ["B"])


@given(st.sets(st.integers(0, 20)), st.sets(st.integers(0, 20)))
def test_changes_lead_from_before_to_after(before: set[int], after: set[int]) -> None:
    """After bookkeeping: before, less the lost and with the new, is after; nothing is in both."""
    row = survey(machine({}, files=CPU)).devices[0]
    old, new = ([msgspec.structs.replace(row, uuid=f"u{n}") for n in numbers] for numbers in (before, after))
    found = changes(old, new)
    lost, came = ({int((d.uuid or "")[1:]) for d in devices} for devices in (found.lost, found.new))
    assert (before - lost) | came == after
    assert not lost & came
