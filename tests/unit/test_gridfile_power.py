from __future__ import annotations

from pathlib import Path

import pytest

from tokenworks import gridfile
from tokenworks.core.errors import GridFileError

HEAD = '[[replica]]\nmodel = "m"\n[[site]]\nname = "a"\n'
CONTRACT = HEAD + "[site.contract]\n"
CHARGE = CONTRACT + "[[site.contract.charge]]\n"
MODULE = '[[site.module]]\nname = "m"\ncapacity = "2 kW"\nit = "1 kW"\n'
WINDOW = '[[site.window]]\nlength = "10 min"\n'
METER_2 = '[[site.meter]]\nmax = "1 kW"\n'
METER = HEAD + METER_2
SERVER = HEAD + '[[site.server]]\nname = "rack1"\n'
EVENT = HEAD + '[[site.event]]\nid = "e"\nkind = "curtail"\nduration = "1 h"\n'


def test_one_supply_or_several() -> None:
    """After the first grids: ``[site.supply]`` still is one feed, ``[[site.supply]]`` is a list with one feed in it."""
    one = gridfile.parse(HEAD + 'supply.price = "0.1 USD/kWh"', "g").sites[0]
    assert (len(one.supplies), one.supply.price_nano_per_kwh) == (1, 100_000_000)
    text = (
        '[[site.supply]]\nname = "w"\nkind = "wind"\ncapacity = "2 MW"\n[[site.supply]]\nname = "g"\nlimit = "1 MW"\n'
    )
    several = gridfile.parse(HEAD + text, "g").sites[0]
    assert [each.name for each in several.supplies] == ["w", "g"]
    assert (several.supply.name, several.supply.limit_mw) == ("g", 1_000_000_000)


def test_files_of_signals_are_beside_the_grid_file(tmp_path: Path) -> None:
    """After moved folders: a relative path of a table of prices is meant from the grid file."""
    text = CHARGE + 'kind = "energy"\nindex = { file = "p.csv", column = "price_per_mwh" }\n'
    (tmp_path / "g.toml").write_text(text)
    contract = gridfile.load(tmp_path / "g.toml").sites[0].contract
    assert contract is not None
    index = contract.charges[0].index
    assert index is not None
    assert (index.file, index.length_ns) == (str(tmp_path / "p.csv"), 3_600_000_000_000)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (HEAD + 'supply.kind = "wind"', "site[1].supply.capacity: is missing: wind needs it"),
        (HEAD + '[[site.supply]]\nkind = "battery"\nenergy = "1 MWh"', "site[1].supply[1].power: is missing"),
        (HEAD + '[[site.supply]]\n[[site.supply]]\nname = "x"', "site[1].supply[2]: a site has one grid feed"),
        (HEAD + "[[site.supply]]\n[[site.supply]]\nkind = 'solar'\ncapacity = '1 W'", "'mains' is there twice"),
        (
            HEAD + '[[site.module]]\nname = "m"\ncapacity = "1 kW"\nit = "2 kW"',
            "module[1].it: must be above 0 and at most",
        ),
        (HEAD + WINDOW + "start = 2027-01-01T00:00:00Z", "site[1].window: a site with a window needs a module"),
        (HEAD + MODULE + WINDOW + "start = 2027-01-01T00:00:00", "window[1].start: needs a zone"),
        (
            HEAD + MODULE + WINDOW + 'start = 2027-01-01T00:00:00Z\nperiod = "1 min"',
            "window[1].period: must be longer than the window",
        ),
        (HEAD + "supply = []", "site[1].supply: a site needs a supply"),
        (HEAD + "supply.efficiency = 1.1", "site[1].supply.efficiency: must be above 0 and at most 1"),
        (HEAD + 'supply.kind = "coal"', "'coal' is not known here (one of grid, solar, wind, genset, battery)"),
        (CONTRACT + 'zone = "Mars/Base"', "site[1].contract.zone: 'Mars/Base' is not a time zone known here"),
        (CHARGE + 'kind = "energy"', "charge[1]: 'energy' needs a price (one of price, [[…tier]] and index)"),
        (CHARGE + 'kind = "demand"', "charge[1].per_kw: is missing: demand needs it"),
        (CHARGE + 'kind = "ppa"\nprice = "1 USD/kWh"', "a PPA is on a plant or a constant power"),
        (CHARGE + 'kind = "ppa"\nprice = "1 USD/kWh"\npower = "1 W"', "charge[1].index: is missing"),
        (CHARGE + 'kind = "ppa"\nprice = "1 USD/kWh"\nof = "mans"', "'mans': no such supply (did you mean 'mains'?)"),
        (CHARGE + 'kind = "standing"\nper_month = "1 USD"\nwindow = "0 s"', "window: must be longer than 0 s"),
        (
            CHARGE
            + 'kind = "export"\nprice = "1 USD/kWh"\n[[site.contract.charge]]\nkind = "export"\nprice = "1 USD/kWh"',
            "charge[2]: needs a name of its own",
        ),
        (
            CHARGE + 'kind = "energy"\n[[site.contract.charge.tier]]\nprice = "1 USD/kWh"\nhours = ["22:00-06:00"]',
            "tier[1].hours: '22:00-06:00' are not hours on a quarter",
        ),
        (EVENT + "start = 2026-01-01T00:00:00\ncut = 0.5", "event[1].start: needs a zone"),
        (
            EVENT + 'start = 2026-01-01T00:00:00Z\ncut = 0.5\n[[site.event]]\nid = "e"\nkind = "disconnect"\n'
            'duration = "1 h"\nstart = 2026-01-01T00:00:00Z',
            "event[2].id: 'e' is there twice",
        ),
        (HEAD + '[site.openadr]\nurl = "ftp://x"\nven = "v"', "site[1].openadr.url: is not an http"),
        (METER + 'kind = "modbus"\nof = "site"', "site[1].meter[1].host: is missing: modbus needs it"),
        (METER + 'kind = "rapl"\nof = "server"\nunit = "W"', "meter[1].unit: does not belong to a rapl meter"),
        (METER + 'kind = "nvml"\nof = "board"\nname = "x"', "meter[1].name: 'x': no such board"),
        (SERVER + METER_2 + 'kind = "rapl"\nof = "server"\nname = "rack2"', "no such server (did you mean 'rack1'?)"),
        (METER + 'kind = "rapl"\nof = "server"\n' + METER_2 + 'kind = "rapl"\nof = "server"', "is metered twice"),
        (METER + 'kind = "page"\nof = "site"\nurl = "dcgm"', "meter[1].url: is not an http or https address"),
        (
            METER + 'kind = "snmp"\nof = "site"\nhost = "pdu"\noid = "1.3"\nunit = "W"',
            "meter[1].host: is not a host and its port",
        ),
        (HEAD + '[[site.device]]\nid = "d"\nserver = "n"', "device[1].server: 'n': no such server"),
        (HEAD + 'wet_bulb = { file = "a", column = "b" }', "site[1].wet_bulb: a site with a wet_bulb needs a module"),
    ],
)
def test_a_wrong_table_is_told_with_its_place(text: str, what: str) -> None:
    """After typing: what is missing, twice, unknown or without sense is named with its path."""
    with pytest.raises(GridFileError) as caught:
        gridfile.parse(text, "g.toml")
    assert what in str(caught.value)
    assert "g.toml:" in str(caught.value)
