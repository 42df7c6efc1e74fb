"""The ledger's store. SQL lives in ``.sql`` files; one process opens it, in one thread; all others ask that one."""

from __future__ import annotations

from importlib import resources


def queries() -> dict[str, str]:
    """The named statements of ``queries.sql``."""
    text = resources.files(__name__).joinpath("queries.sql").read_text("utf-8")
    named: dict[str, str] = {}
    for block in text.split("-- name: ")[1:]:
        name, _, body = block.partition("\n")
        named[name.strip()] = body.strip().rstrip(";")
    return named


def schema() -> str:
    """The tables."""
    return resources.files(__name__).joinpath("schema.sql").read_text("utf-8")
