from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenworks import gridfile
from tokenworks.core.errors import GridFileError

EXAMPLES = Path(__file__).parents[2] / "examples"
EXTERNAL = '[[replica]]\nmodel = "m"\n'
SITE = '[[site]]\nname = "a"\n'
FULL = SITE + '[[replica]]\nmodel = "m"\n'


def message(text: str) -> str:
    with pytest.raises(GridFileError) as caught:
        gridfile.parse(text, "g.toml")
    return str(caught.value)


def test_no_file_is_this_machine() -> None:
    """Without a file the grid is one site with discovered devices and the embedded engine."""
    grid = gridfile.default_grid()
    (site,), (replica,) = grid.sites, grid.replicas
    assert (site.name, site.entity, site.devices, site.pue_permille) == ("here", "grid", (), None)
    assert (replica.name, replica.site, replica.model) == ("here-1", "here", "smollm2-135m-instruct")
    assert (replica.driver, replica.url, grid.exchange.budget_nano) == ("embedded", None, 10_000_000_000)


def test_the_one_machine_example_is_the_default_written_out() -> None:
    """Nobody has to guess what the default is: the example equals it, value by value."""
    assert gridfile.load(EXAMPLES / "one-machine.toml") == gridfile.default_grid()


def test_the_existing_server_example_loads() -> None:
    """A server that already runs is an external replica, known by its URL; every amount is an integer."""
    grid = gridfile.load(EXAMPLES / "existing-server.toml")
    big, small = grid.replicas
    assert (big.driver, big.url, big.site, big.slots) == ("external", "http://127.0.0.1:8000/v1", "room-1", 16)
    assert (small.driver, small.name) == ("embedded", "small")
    assert big.capabilities == frozenset(("tools", "json_schema"))
    supply = grid.sites[0].supply
    assert (supply.price_nano_per_kwh, supply.carbon_ug_per_kwh) == (120_000_000, 480_000_000)
    assert supply.mix_permille == {"lignite": 300, "gas": 200, "wind": 350, "solar": 150}
    assert grid.exchange.rates[0].cached_input_ustu == 100_000
    assert grid.exchange.prices[0].input_nano_per_mtok == 40_000_000
    assert grid.exchange.prices[0].reasoning_nano_per_mtok is None
    assert (grid.brain.carbon_price_nano_per_kg, grid.brain.delay_price_nano_per_h) == (50_000_000, 360_000_000)


def test_every_quantity_reaches_its_smallest_unit() -> None:
    """Text with a unit becomes the integer that the field's name promises."""
    grid = gridfile.parse(
        'exchange.currency = "EUR"\nexchange.budget = "2.5 EUR"\nexchange.journal_keep = "1 GB"\n'
        '[[site]]\nname = "a"\nlatency = "5 ms"\npue = 1.12\n'
        'supply = { interval = "15 min", mix = { a = 1, b = 2e-4 } }\n'
        '[[site.device]]\nid = "d"\nmemory = "24 GB"\ncost = "0.0001 EUR/h"\n'
        'idle = "1 W"\nmax = "0.7 kW"\nthreads = 2\n'
        '[[exchange.rate]]\nmodel = "*"\ninput = "0.000001"\noutput = 4\n'
        '[[replica]]\nmodel = "m"\nmemory = "1 GiB"\ncontext = 2048\n',
        "g.toml",
    )
    site, replica = grid.sites[0], grid.replicas[0]
    device = site.devices[0]
    assert (grid.exchange.budget_nano, site.latency_ns, site.pue_permille) == (2_500_000_000, 5_000_000, 1120)
    assert grid.exchange.journal_keep_bytes == 1_000_000_000
    assert (site.supply.interval_ns, site.supply.mix_permille) == (900_000_000_000, {"a": 1000, "b": 0})
    assert (device.memory_bytes, device.cost_nano_per_h) == (24_000_000_000, 100_000)
    assert (device.idle_mw, device.max_mw, device.threads) == (1000, 700_000, 2)
    assert (grid.exchange.rates[0].input_ustu, grid.exchange.rates[0].output_ustu) == (1, 4_000_000)
    assert (replica.name, replica.device, replica.context_tokens, replica.memory_bytes) == ("a-1", "d", 2048, 1 << 30)


def test_a_replica_alone_stands_on_this_machine() -> None:
    """A file that only adds a server needs no site: it is here, and the driver follows from the URL."""
    grid = gridfile.parse(EXTERNAL + 'url = "http://h:1/v1"\n' + EXTERNAL, "g.toml")
    assert [(each.name, each.site, each.driver) for each in grid.replicas] == [
        ("here-1", "here", "external"),
        ("here-2", "here", "embedded"),
    ]


def test_the_values_can_be_written_to_the_wire() -> None:
    """All integers are plain ones, so that a value taken from the file can stand on a receipt."""
    grid = gridfile.load(EXAMPLES / "existing-server.toml")
    assert msgspec.json.decode(msgspec.json.encode(grid))["replica"][0]["slots"] == 16


WRONG = {
    "unknown key": (
        SITE + '[site.supply]\nprise = "0.12 USD/kWh"\n',
        "g.toml:4: site[1].supply.prise: unknown key (did you mean 'price'?)",
    ),
    "unknown table": (
        "[zzz]\n",
        "g.toml:1: zzz: unknown key (known here: name, exchange, brain, gateway, site, replica)",
    ),
    "odd key": (
        '"\\n`x" = 1',
        "g.toml:1: '\\n`x': unknown key (known here: name, exchange, brain, gateway, site, replica)",
    ),
    "second site": (SITE + '[[site]]\nname = "b"\npeu = 1', "g.toml:5: site[2].peu: unknown key (did you mean 'pue'?)"),
    "in an inline table": (
        'site = [\n  {name = "a"},\n  {nam = "b"},\n]\n',
        "g.toml:1: site[2].nam: unknown key (did you mean 'name'?)",
    ),
    "after a long string": (
        'name = """\n[[site]]\npue = 1\n"""\n[[site]]\npue = "x"\n',
        "g.toml:6: site[1].pue: must be a number (like 1.2)",
    ),
    "not TOML": ("name =\n", "g.toml:1: not TOML: Invalid value"),
    "not TOML at the end": ("\n[site", "g.toml:2: not TOML: Expected ']' at the end of a table declaration"),
    "key twice": ('name = "a"\nname = "b"\n', "g.toml:2: not TOML: Cannot overwrite a value"),
    "wrong type": ("name = 3", "g.toml:1: name: must be a string, not a whole number"),
    "table for array": (
        '[site]\nname = "a"',
        "g.toml:1: site: must be an array, not a table (write [[site]] above each)",
    ),
    "missing name": ('[[site]]\nplace = "x"\n' + EXTERNAL, "g.toml:1: site[1].name: is missing"),
    "missing model": ('\n[[replica]]\nname = "x"', "g.toml:2: replica[1].model: is missing"),
    "empty name": ('name = ""', "g.toml:1: name: must not be empty"),
    "control character": ('name = "\\u0000"', "g.toml:1: name: must not have control characters"),
    "no unit": (
        SITE + "supply.price = 0.12",
        'g.toml:3: site[1].supply.price: must be a string with a number and its unit (like "0.12 USD/kWh")',
    ),
    "unit of another thing": (
        SITE + 'supply.price = "0.12 USD/kg"',
        "g.toml:3: site[1].supply.price: '0.12 USD/kg' is not a price in USD per kWh (write it like \"0.12 USD/kWh\")",
    ),
    "misspelt unit": (
        SITE + 'latency = "5 msec"',
        "g.toml:3: site[1].latency: unknown unit 'msec' in '5 msec' (did you mean 'ms'?)",
    ),
    "cost per day": (
        SITE + '[[site.device]]\nid = "d"\ncost = "1 USD/d"',
        "g.toml:5: site[1].device[1].cost: '1 USD/d' is not a price in USD per h (like \"0.04 USD/h\")",
    ),
    "monstrous exponent": (
        'exchange.budget = "1e999999999 USD"',
        'g.toml:1: exchange.budget: is not a quantity (like "10 USD")',
    ),
    "too much": (
        'exchange.budget = "1e12 USD"',
        'g.toml:1: exchange.budget: 1e12 USD is larger than the books can count (like "10 USD")',
    ),
    "another currency": (
        '[exchange]\ncurrency = "EUR"\nbudget = "10 USD"',
        "g.toml:3: exchange.budget: '10 USD' is not in EUR (the grid's currency is EUR; write amounts in it)",
    ),
    "no currency": (
        'exchange.currency = "usd"',
        "g.toml:1: exchange.currency: is not a currency (three capital letters of ISO 4217, like USD)",
    ),
    "negative": (
        'exchange.budget = "-1 USD"',
        'g.toml:1: exchange.budget: -1 USD is negative (like "10 USD")',
    ),
    "seven decimals": (
        '[[exchange.rate]]\nmodel = "*"\ninput = 0.0000001',
        "g.toml:3: exchange.rate[1].input: 1E-7 has more than 6 decimals",
    ),
    "not a number": (SITE + "pue = nan", "g.toml:3: site[1].pue: must be a number (like 1.2)"),
    "pue below 1": (
        SITE + 'pue = 0.9\n[[replica]]\nmodel = "m"',
        "g.toml:3: site[1].pue: is below 1: a site takes at least what its devices take",
    ),
    "mix of 0.9": (
        SITE + "supply.mix = { wind = 0.5, sun = 0.4 }",
        "g.toml:3: site[1].supply.mix: the shares sum to 0.9, not to 1 (like { hydro = 0.7, wind = 0.3 })",
    ),
    "mix with a word": (
        SITE + '[site.supply.mix]\nwind = "all"',
        "g.toml:4: site[1].supply.mix.wind: must be a number (like 0.3)",
    ),
    "no time": (
        FULL + '[[site]]\nname = "b"\nsupply.interval = "0 s"',
        "g.toml:3: replica[1].site: is missing, and there are several sites (one of 'a', 'b')",
    ),
    "interval of nothing": (
        SITE + 'supply.interval = "0 s"\n[[replica]]\nmodel = "m"',
        "g.toml:3: site[1].supply.interval: must be longer than 0 s",
    ),
    "max below idle": (
        SITE + 'device = [{ id = "d", idle = "2 W", max = "1 W" }]\n[[replica]]\nmodel = "m"',
        "g.toml:3: site[1].device[1].max: is below idle",
    ),
    "no replica": (
        SITE,
        "g.toml:1: site[1]: the file has sites but no replica, so nothing makes tokens "
        "(add [[replica]] with model and site = 'a')",
    ),
    "site twice": (
        FULL + SITE + EXTERNAL,
        "g.toml:3: replica[1].site: is missing, and there are several sites (one of 'a', 'a')",
    ),
    "site name twice": (SITE + SITE + EXTERNAL + 'site = "a"', "g.toml:4: site[2].name: 'a' is there twice"),
    "replica name twice": (
        EXTERNAL + EXTERNAL + 'name = "here-1"',
        "g.toml:5: replica[2].name: 'here-1' is there twice",
    ),
    "device twice": (
        SITE + '[[site.device]]\nid = "d"\n[[site.device]]\nid = "d"\n' + EXTERNAL,
        "g.toml:6: site[1].device[2].id: 'd' is there twice",
    ),
    "dangling site": (
        SITE.replace('"a"', '"west"') + EXTERNAL + 'site = "wset"',
        "g.toml:5: replica[1].site: 'wset': no such site (did you mean 'west'?)",
    ),
    "dangling device": (
        SITE + '[[site.device]]\nid = "gpu-0"\n' + EXTERNAL + 'device = "gpu-1"',
        "g.toml:7: replica[1].device: 'gpu-1': no such device at site 'a' (did you mean 'gpu-0'?)",
    ),
    "dangling model": (
        '[[exchange.price]]\nmodel = "lama"\n[[replica]]\nmodel = "llama"',
        "g.toml:2: exchange.price[1].model: 'lama': served by no replica (did you mean 'llama'?)",
    ),
    "rate twice": (
        '[[exchange.rate]]\nmodel = "*"\n[[exchange.rate]]\nmodel = "*"',
        "g.toml:4: exchange.rate[2].model: '*' is there twice",
    ),
    "unknown driver": (
        EXTERNAL + 'driver = "vllm"',
        "g.toml:3: replica[1].driver: 'vllm' is not known here (one of embedded, external, process, ray)",
    ),
    "unknown capability": (
        EXTERNAL + 'capabilities = ["tool"]',
        "g.toml:3: replica[1].capabilities: 'tool' is not known here "
        "(one of tools, json_schema, logprobs, images, embeddings, messages, responses)",
    ),
    "no slots": (EXTERNAL + "slots = 0", "g.toml:3: replica[1].slots: must be at least 1"),
    "half a slot": (
        EXTERNAL + "slots = 1.5",
        "g.toml:3: replica[1].slots: must be a whole number, not a number with decimals",
    ),
    "endless slots": (EXTERNAL + "slots = 0x" + "f" * 9000, "g.toml:3: replica[1].slots: is too large"),
    "external without url": (
        EXTERNAL + 'driver = "external"',
        "g.toml:1: replica[1].url: is missing: an external replica is reached by it",
    ),
    "embedded with url": (
        EXTERNAL + 'driver = "embedded"\nurl = "http://h"',
        'g.toml:4: replica[1].url: belongs to an external replica (write driver = "external" and url)',
    ),
    "url of a file": (
        EXTERNAL + 'url = "file:///etc/passwd"',
        "g.toml:3: replica[1].url: is not an http, https or unix address "
        '(like "http://127.0.0.1:8000/v1" or "unix:///run/engine.sock", without user, password or query)',
    ),
    "the key itself": (
        EXTERNAL + 'url = "http://h"\napi_key_env = "sk-secret"',
        "g.toml:4: replica[1].api_key_env: must be the name of an environment variable in capitals, "
        'never the key itself (like "UPSTREAM_API_KEY")',
    ),
}


@pytest.mark.parametrize(("text", "expected"), WRONG.values(), ids=WRONG.keys())
def test_an_error_says_where_what_and_the_nearest_right_word(text: str, expected: str) -> None:
    """Read these as a user would: file, line, path, what is wrong, what to write instead."""
    assert message(text) == expected


@pytest.mark.parametrize(
    "url",
    ["http://[::1", "http://h:99999", "http://", "//h", "http://u:pw@h/", "http://h/?key=s", "unix://h/x", "unix:///"],
)
def test_a_wrong_url_is_refused_and_never_repeated(url: str) -> None:
    """A password or key inside a URL must not reach a terminal or a log through the error."""
    text = message(EXTERNAL + f'url = "{url}"')
    assert "is not an http, https or unix address" in text
    assert "pw@" not in text
    assert "key=s" not in text


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    """A missing file, a directory, bytes that are no text and a file of the wrong kind are all told apart."""
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    (tmp_path / "big").write_bytes(b"#" * 1_000_001)
    for name, reason in {
        "absent": "cannot be read: No such file or directory",
        ".": "cannot be read: Is a directory",
        "bytes": "cannot be read: not UTF-8 text",
        "big": "over 1 MB",
    }.items():
        with pytest.raises(GridFileError, match=reason):
            gridfile.load(tmp_path / name)


def test_the_line_is_found_in_a_large_file() -> None:
    """The locator parses beginnings of the file; it must not parse all of them."""
    text = "".join(f'[[site]]\nname = "s{n}"\nsupply = {{ name = "x" }}\n' for n in range(2000)) + "pue = 0.5\n"
    assert message(text + '[[replica]]\nmodel = "m"\nsite = "s0"\n').startswith(
        "g.toml:6001: site[2000].pue: is below 1"
    )


def only_grid_file_errors(text: str) -> None:
    try:
        grid = gridfile.parse(text, "g.toml")
    except GridFileError:
        return
    assert grid.sites
    assert grid.replicas


@given(st.text())
def test_any_text_is_a_grid_or_a_grid_file_error(text: str) -> None:
    """No text whatever ends in a traceback."""
    only_grid_file_errors(text)


HEADERS = ["[exchange]", "[[exchange.rate]]", "[[exchange.price]]", "[brain]", "[[site]]", "[site.supply]"]
HEADERS += ["[[site.device]]", "[[replica]]", "[site]", "[site.supply.mix]"]
KEYS = ["name", "model", "site", "input", "price", "mix", "pue", "url", "driver", "slots", "capabilities", "id", "cost"]
VALUES = ["1", "-1", "0.5", "nan", "1e400", '"a"', '"*"', '"1 USD/h"', '"0.1 USD/kWh"', '"http://h"', '"embedded"']
VALUES += [
    "{}",
    "{ a = 1 }",
    "[]",
    '["tools"]',
    "[[1]]",
    "true",
    "1979-01-01",
    "[{ x = [{}] }]",
    '"1e99 USD"',
    '"\\u0000"',
]
ASSIGNMENTS = st.builds("{} = {}".format, st.sampled_from(KEYS), st.sampled_from(VALUES) | st.integers().map(str))


@given(st.lists(st.sampled_from(HEADERS) | ASSIGNMENTS, max_size=20).map("\n".join))
def test_anything_that_looks_like_a_grid_is_one_or_a_grid_file_error(text: str) -> None:
    """The same among texts that come far into the reader: right headers and keys, values of every type."""
    only_grid_file_errors(text)


def test_deep_nesting_is_an_error_and_not_a_crash() -> None:
    """A parser that recurses must not take the process with it."""
    assert "not TOML" in message("x = " + "[" * 100_000)
