from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from tests.support.machines import machine, output

from tokenworks.cli import main
from tokenworks.device.catalogue import catalogue
from tokenworks.device.survey import survey


def run(*arguments: str) -> int:
    """Exit status of a command line."""
    with pytest.raises(SystemExit) as ended:
        sys.exit(main(arguments))
    return int(ended.value.code or 0)


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TOKENWORKS_DATA", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path


def has(monkeypatch: pytest.MonkeyPatch, *tools: str) -> None:
    """This machine becomes one with these accelerators."""
    said = {"metax": ("mx-smi", output("metax.txt")), "ascend": ("npu-smi info", output("ascend.txt"))}
    ports = machine(dict(said[tool] for tool in tools))
    monkeypatch.setattr("tokenworks.cli.device.survey", lambda: survey(ports))


def listed(capsys: pytest.CaptureFixture[str], *options: str) -> dict[str, list[dict[str, str]]]:
    assert run("device", "list", "--json", *options) == 0
    found: dict[str, list[dict[str, str]]] = json.loads(capsys.readouterr().out)
    return found


def test_this_machine(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """After the real thing: the processor, and nothing new at the first look."""
    found = listed(capsys)
    assert found["devices"][0]["kind"] == "cpu"
    assert (found["new"], found["lost"]) == ([], [])
    assert oct((data / "devices.json").stat().st_mode & 0o777) == "0o600"


def test_lost_devices_stay_on_the_list(
    data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """After a card that vanished: it is named at every look until it is back or forgotten; new ones only once."""
    has(monkeypatch, "metax")
    listed(capsys)
    has(monkeypatch, "ascend")
    found = listed(capsys)
    assert [str(each) for each in found["new"]] == ["ascend0", "ascend3", "ascend8", "ascend9"]
    assert [each["id"] for each in found["lost"]] == ["metax0", "metax1"]
    assert run("device", "list") == 0
    shown = capsys.readouterr().out
    assert shown.count("LOST") == 2
    assert "new" not in shown
    assert "45.0 GB" not in shown  # 45,000 MiB used are 47.2 GB
    assert "47.2 GB" in shown
    assert "ascend3: its health is Alarm" in shown
    has(monkeypatch, "ascend", "metax")
    assert listed(capsys)["lost"] == []
    has(monkeypatch, "ascend")
    assert len(listed(capsys, "--forget")["lost"]) == 2
    assert listed(capsys)["lost"] == []


def test_without_a_data_directory_nothing_is_written(
    data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """After a look at a machine that runs no grid; and a damaged file is as good as none."""
    monkeypatch.setenv("TOKENWORKS_DATA", str(data / "none"))
    listed(capsys)
    assert not (data / "none").exists()
    monkeypatch.setenv("TOKENWORKS_DATA", str(data))
    (data / "devices.json").write_bytes(b"[{]")
    assert listed(capsys)["new"] == []


def test_the_catalogue_is_shown(capsys: pytest.CaptureFixture[str], data: Path) -> None:
    """After figures with their sources; what is unknown is a dash and null, never 0."""
    assert run("device", "catalogue", "--json") == 0
    rows = json.loads(capsys.readouterr().out)
    assert len(rows) == len(catalogue())
    assert all(row["source"] and row["confidence"] for row in rows)
    assert run("device", "catalogue", "--vendor", "biren") == 0
    shown = capsys.readouterr().out
    assert shown.count("biren-") == 3
    assert "0 " not in shown.split("biren-166m")[1]
    assert run("device", "catalogue", "--vendor", "nvida") == 3
    assert "did you mean 'NVIDIA'?" in capsys.readouterr().err
