"""The model catalogue: which models Tokenworks can fetch by itself, where they come from and what they can do."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from types import MappingProxyType

import msgspec

from tokenworks.core.errors import UnknownModel, did_you_mean
from tokenworks.core.words import Word


class Model(Word, frozen=True):
    """One model file inside one registry package, both pinned by checksum."""

    name: str
    file: str
    """Its name in the model cache."""
    sha256: str
    size_bytes: int
    licence: str
    context_tokens: int
    """What the model was trained for; a replica may serve less."""
    parameters: int
    package: str
    """An exact requirement: ``name==version``."""
    package_sha256: str
    member: str
    """The file's path inside the package's wheel."""
    capabilities: frozenset[str]
    note: str


class _Catalogue(Word, frozen=True):
    model: tuple[Model, ...]


@cache
def catalogue() -> MappingProxyType[str, Model]:
    """All known models by name, read once from the package's own data."""
    text = files("tokenworks.engine").joinpath("data/models.toml").read_bytes()
    known = msgspec.toml.decode(text, type=_Catalogue)
    return MappingProxyType({model.name: model for model in known.model})


def model_named(name: str) -> Model:
    """The catalogue's entry of that name. Raises UnknownModel, naming the nearest known one."""
    known = catalogue()
    if name in known:
        return known[name]
    hint = did_you_mean(name, known, "it has " + ", ".join(sorted(known)))
    raise UnknownModel(f"the catalogue has no model {name!r}", hint=hint)
