from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from tokenworks.device.nvml import rows

MIB = 1 << 20


class NVMLError(Exception):
    """As pynvml raises it."""


class Library:
    """pynvml with three cards: one whole, one cut by MIG into two of seven places, one that is lost."""

    NVMLError = NVMLError

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return 3

    def nvmlDeviceGetHandleByIndex(self, index: int) -> str:  # noqa: N802
        if index == 2:
            raise NVMLError("GPU is lost")
        return f"card{index}"

    def nvmlDeviceGetMigDeviceHandleByIndex(self, card: str, slot: int) -> str:  # noqa: N802
        if slot not in (0, 3):
            raise NVMLError("not found")
        return f"{card}.{slot}"

    def __getattr__(self, name: str) -> Any:
        answers: dict[str, dict[str, Any]] = {
            "MigMode": {"card0": (0, 0), "card1": (1, 1)},
            "MaxMigDeviceCount": {"card1": 7},
            "UUID": {"card0": "GPU-0", "card1.0": "MIG-0", "card1.3": "MIG-3"},
            "Name": {
                "card0": "NVIDIA H200",
                "card1.0": "NVIDIA H200 MIG 1g.18gb",
                "card1.3": "NVIDIA H200 MIG 2g.35gb",
            },
            "PciInfo": {card: SimpleNamespace(busId=f"00000000:{card}") for card in ("card0", "card1")},
            "MemoryInfo": {
                "card0": SimpleNamespace(total=143_771 * MIB, used=5 * MIB),
                "card1.0": SimpleNamespace(total=16_384 * MIB, used=0),
            },
            "UtilizationRates": {"card0": SimpleNamespace(gpu=0)},
            "PowerUsage": {"card0": 76_543},
        }

        def ask(device: str) -> Any:
            known = answers.get(name.removeprefix("nvmlDeviceGet"), {})
            if device not in known:
                raise NVMLError("not supported")
            return known[device]

        return ask


def test_cards_and_instances() -> None:
    """After one row a device: instances instead of their card, nothing for a lost card, gaps for what is not said."""
    assert list(rows(Library())) == [
        ("0", "GPU-0", "NVIDIA H200", "00000000:card0", 143_771, 5, 0, "76.543", None),
        ("1:0", "MIG-0", "NVIDIA H200 MIG 1g.18gb", "00000000:card1", 16_384, 0, None, None, None),
        ("1:3", "MIG-3", "NVIDIA H200 MIG 2g.35gb", "00000000:card1", None, None, None, None, None),
    ]
