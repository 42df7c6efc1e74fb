"""From a row of the catalogue of accelerators to the figures that the model needs."""

from __future__ import annotations

from tokenworks.core.errors import BadRequest
from tokenworks.device.catalogue import Accelerator, accelerator, catalogue
from tokenworks.engine.perf.plan import DeviceSpec

FP4_TFLOPS = {
    "nvidia-b200-sxm": 9_000.0,
    "nvidia-gb200": 10_000.0,
    "nvidia-b300-sxm": 14_000.0,
    "nvidia-gb300": 15_000.0,
    "nvidia-rtxpro6000-server": 1_871.0,
}
"""Dense; ai-dynamo/aiconfigurator systems/*.yaml (NVIDIA, 2026-08). The catalogue has no column for it."""


def device_spec(row: Accelerator) -> DeviceSpec:
    """The figures of one row. Raises BadRequest naming what the catalogue does not know of it."""
    figures = {"memory": row.memory_mb, "bandwidth": row.bandwidth_mb_s, "16-bit speed": row.bf16_dense_gflops}
    if missing := [name for name, value in figures.items() if not value]:
        raise BadRequest(
            f"the catalogue does not know {' and '.join(missing)} of {row.id}, so its speed cannot be modelled",
            hint="see: tokenworks device catalogue",
        )
    memory, bandwidth, bf16 = (value / 1e3 for value in figures.values() if value)
    # A data sheet's gigabyte of memory is 2^30 bytes: an 80 GB H100 shows 81559 MiB, a 141 GB H200 143771 MiB.
    return DeviceSpec(
        id=row.id, memory_bytes=memory * 2**30, bandwidth_gb_s=bandwidth, bf16_tflops=bf16,
        fp8_tflops=row.fp8_dense_gflops and row.fp8_dense_gflops / 1e3, fp4_tflops=FP4_TFLOPS.get(row.id),
        link_gb_s=row.interconnect_mb_s_bidir and row.interconnect_mb_s_bidir / 1e3,
        board_w=row.board_mw and row.board_mw / 1e3,
    )  # fmt: skip


def device_named(name: str) -> DeviceSpec:
    """By the catalogue's id, with or without its vendor and variant when that leaves one: ``b200``, ``h100_sxm``.

    Raises NotFound with the nearest id, and BadRequest as ``device_spec``.
    """
    word = name.lower().replace("_", "-")
    short = {row: row.partition("-")[2] for row in catalogue()}
    exact = [row for row, rest in short.items() if word in (row, rest)]
    found = exact or [row for row, rest in short.items() if rest.startswith(word + "-")]
    if len(found) > 1:
        raise BadRequest(f"{name!r} may be {' or '.join(found)}", hint="name one of them")
    return device_spec(accelerator(found[0] if found else word))
