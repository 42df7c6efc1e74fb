from __future__ import annotations

import csv
from importlib.resources import files

import pytest

from tokenworks.core.errors import NotFound
from tokenworks.device.catalogue import accelerator, catalogue, recognise

COLUMNS = (
    "id,name,vendor,memory_mb,memory_type,bandwidth_mb_s,bf16_dense_gflops,fp8_dense_gflops,board_mw,"
    "idle_mw,interconnect,interconnect_mb_s_bidir,partition_modes,backend,pci_vendor,confidence,source,note,"
    "idle_mw_per_thread,max_mw_per_thread,capital_nano_usd_per_thread,life_years,capital_source"
)


def test_every_row_has_a_source_and_a_unique_id() -> None:
    """After unsourced figures: each row says where its figures come from, and no row hides another."""
    text = files("tokenworks.device").joinpath("data", "catalogue.csv").read_text(encoding="utf-8")
    rows = list(csv.DictReader(text.splitlines()))
    assert text.splitlines()[0] == COLUMNS
    assert len(catalogue()) == len(rows)
    for row in catalogue().values():
        assert row.source.strip(), row.id
        assert row.confidence in {"A", "B", "C"}, row.id
        assert bool(row.capital_source) == (row.capital_nano_usd_per_thread is not None), row.id


def test_blank_is_unknown_and_numbers_are_exact_integers() -> None:
    """After blanks that became 0, and floats: 0.74 W is 740 mW, 61.64 USD is 61,640,000,000 nano."""
    x86, arm = accelerator("cpu-generic-x86-64"), accelerator("cpu-generic-arm64")
    assert (x86.idle_mw_per_thread, x86.max_mw_per_thread) == (740, 3_500)
    assert x86.capital_nano_usd_per_thread == 61_640_000_000
    assert x86.life_years == 6
    assert arm.capital_nano_usd_per_thread is None
    assert x86.memory_mb is None
    h100, biren = accelerator("nvidia-h100-sxm"), accelerator("biren-166m")
    assert (h100.memory_mb, h100.bandwidth_mb_s, h100.bf16_dense_gflops) == (80_000, 3_350_000, 989_000)
    assert (h100.board_mw, h100.idle_mw, h100.interconnect_mb_s_bidir) == (700_000, 68_000, 900_000)
    assert (biren.memory_mb, biren.board_mw, biren.pci_vendor) == (None, None, None)


def test_the_catalogue_is_wide_and_sane() -> None:
    """After rows that got lost or lost a digit: 70 and more of 19 vendors, each figure within what exists."""
    rows = [row for row in catalogue().values() if row.backend != "cpu"]
    assert len(rows) >= 70
    assert len({row.vendor for row in rows}) >= 19
    for row in rows:
        for figure, least, most in (
            (row.memory_mb, 200, 300_000),
            (row.bandwidth_mb_s, 100_000, 30_000_000_000),
            (row.bf16_dense_gflops, 50_000, 100_000_000),
            (row.board_mw, 50_000, 30_000_000),
        ):
            assert figure is None or least <= figure <= most, row.id
        assert row.idle_mw is None or row.board_mw is None or row.idle_mw < row.board_mw, row.id
        # Vendors whose cards Linux can tell apart have their number on the bus.
        assert row.pci_vendor is None or row.pci_vendor.startswith("0x")


@pytest.mark.parametrize(
    ("vendor", "name", "mib", "row"),
    [
        ("NVIDIA", "NVIDIA H100 80GB HBM3", 81_559, "nvidia-h100-sxm"),
        ("NVIDIA", "NVIDIA H100 PCIe", 81_559, "nvidia-h100-pcie"),
        ("NVIDIA", "NVIDIA A100-SXM4-80GB", 81_920, "nvidia-a100-sxm-80g"),
        ("NVIDIA", "NVIDIA A100-SXM4-40GB", 40_960, "nvidia-a100-sxm-40g"),
        ("NVIDIA", "NVIDIA A100 80GB PCIe", 81_920, "nvidia-a100-pcie-80g"),
        ("NVIDIA", "NVIDIA A100-PCIE-40GB", 40_960, None),  # no such row
        ("NVIDIA", "NVIDIA H200", 143_771, "nvidia-h200-sxm"),
        ("NVIDIA", "NVIDIA L40S", 46_068, "nvidia-l40s"),
        ("NVIDIA", "NVIDIA L40", 46_068, "nvidia-l40"),
        ("NVIDIA", "NVIDIA RTX PRO 6000 Blackwell Server Edition", 97_887, "nvidia-rtxpro6000-server"),
        ("NVIDIA", "NVIDIA GeForce RTX 4090", 24_564, "nvidia-rtx4090"),
        ("NVIDIA", "NVIDIA GeForce RTX 4090", 49_140, None),  # a card with other memory soldered on
        ("NVIDIA", "NVIDIA H100 80GB HBM3 MIG 1g.10gb", 9_984, None),
        ("NVIDIA", "NVIDIA GB10", None, "nvidia-gb10"),  # memory shared with the processor
        ("Huawei", "910B4-1", 65_536, None),  # the variant with 64 GB
        ("Cambricon", "MLU370-X8", 23_374, None),  # one of the two chips of a card
        ("AMD", "NVIDIA H100 80GB HBM3", 81_559, None),
        ("NVIDIA", "", 0, None),
    ],
)
def test_a_name_means_a_row_or_nothing(vendor: str, name: str, mib: int | None, row: str | None) -> None:
    """After wrong data sheets: variants are told apart, and a card that no row describes gets none."""
    found = recognise(vendor, name, None if mib is None else mib << 20)
    assert (found and found.id) == row


def test_unknown_id_names_the_nearest() -> None:
    """After a dead end: a misspelt id is answered with the right one."""
    with pytest.raises(NotFound) as caught:
        accelerator("cpu-generic-x86")
    assert "cpu-generic-x86-64" in (caught.value.hint or "")
    with pytest.raises(NotFound) as caught:
        accelerator("zzz")
    assert "cpu-generic-arm64" in (caught.value.hint or "")
