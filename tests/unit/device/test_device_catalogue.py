from __future__ import annotations

import csv
from importlib.resources import files

import pytest

from tokenworks.core.errors import NotFound
from tokenworks.device.catalogue import accelerator, catalogue

COLUMNS = (
    "id,name,vendor,memory_gb,memory_type,bandwidth_gb_s,bf16_dense_tflops,fp8_dense_tflops,board_power_w,"
    "idle_power_w,interconnect,interconnect_gb_s_bidir,partition_modes,backend,pci_vendor,confidence,source,note,"
    "idle_w_per_thread,max_w_per_thread,capital_usd_per_thread,life_years,capital_source"
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


def test_unknown_id_names_the_nearest() -> None:
    """After a dead end: a misspelt id is answered with the right one."""
    with pytest.raises(NotFound) as caught:
        accelerator("cpu-generic-x86")
    assert "cpu-generic-x86-64" in (caught.value.hint or "")
    with pytest.raises(NotFound) as caught:
        accelerator("zzz")
    assert "cpu-generic-arm64" in (caught.value.hint or "")
