"""One error root. Each class is one sentence: its docstring is the default message.

An error knows its HTTP status and its stable ``code``; ``hint`` tells the reader what to do. The front door turns
any of them into the OpenAI error shape, the CLI into one line on stderr and a non-zero exit status.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import TypeVar

T = TypeVar("T")


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word closest to a misspelt one, or None when nothing is close."""
    found = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return found[0] if found else None


def did_you_mean(word: str, known: Iterable[str], otherwise: str | None = None) -> str | None:
    """The hint for a misspelt word; ``otherwise`` where nothing is close to it."""
    near = nearest(word, known)
    return f"did you mean {near!r}?" if near else otherwise


class TokenworksError(Exception):
    """Something went wrong in Tokenworks."""

    status = 500
    code = "internal_error"
    kind = "server_error"
    exit_status = 1
    retry_after_s: int | None = None

    def __init__(self, message: str | None = None, *, hint: str | None = None, param: str | None = None) -> None:
        self.message = message or (self.__doc__ or "").strip().splitlines()[0]
        self.hint = hint
        self.param = param
        self.receipt: str | None = None
        """The receipt of the request that failed, when it had come so far."""
        super().__init__(self.message)

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class BadQuantity(TokenworksError, ValueError):
    """The text is not a quantity with a known unit."""

    status, code, kind, exit_status = 400, "bad_quantity", "invalid_request_error", 2


class GridFileError(TokenworksError):
    """The grid file cannot be used."""

    code, exit_status = "bad_grid_file", 2


class BadRequest(TokenworksError):
    """The request cannot be understood."""

    status, code, kind, exit_status = 400, "bad_request", "invalid_request_error", 2


class ContextTooLong(BadRequest):
    """The prompt and the tokens asked for do not fit the model's context."""

    code = "context_length_exceeded"


class BodyTooLarge(BadRequest):
    """The request body is larger than this grid accepts."""

    status, code = 413, "request_too_large"


class TimedOut(BadRequest):
    """The request did not arrive in time."""

    status, code = 408, "request_timeout"


class AnotherRequest(BadRequest):
    """This Idempotency-Key belongs to a request with another body."""

    status, code = 422, "idempotency_key_reused"


class UnknownKey(TokenworksError):
    """The key is unknown or revoked."""

    status, code, kind, exit_status = 401, "invalid_api_key", "authentication_error", 4


class NotAllowed(TokenworksError):
    """This key may not do that."""

    status, code, kind, exit_status = 403, "not_allowed", "permission_error", 4


class BudgetSpent(TokenworksError):
    """The budget does not cover the most that this request could cost."""

    status, code, kind, exit_status = 402, "budget_exceeded", "insufficient_quota", 4


class NotFound(TokenworksError):
    """There is no such thing here."""

    status, code, kind, exit_status = 404, "not_found", "invalid_request_error", 3


def find(name: str, known: Mapping[str, T], what: str) -> T:
    """What has that name. Raises NotFound, naming the nearest."""
    if name not in known:
        raise NotFound(f"there is no {what} {name!r}", hint=did_you_mean(name, known))
    return known[name]


class UnknownModel(NotFound):
    """No model of that name is served here."""

    code = "model_not_found"


class EngineDown(TokenworksError):
    """No replica can serve this model now."""

    status, code, exit_status, retry_after_s = 503, "engine_unavailable", 5, 2


class EngineFailed(TokenworksError):
    """The engine failed while it made the tokens."""

    status, code, exit_status = 502, "engine_failed", 5


class ExchangeDown(TokenworksError):
    """The exchange cannot write to its books now."""

    status, code, exit_status, retry_after_s = 503, "exchange_unavailable", 5, 2


class Unreachable(TokenworksError):
    """Nothing answers there."""

    status, code, exit_status = 503, "unreachable", 5


class DataDirError(TokenworksError):
    """The data directory cannot be used."""

    code, exit_status = "data_directory", 1


class BooksDoNotClose(TokenworksError):
    """The books do not close."""

    code, exit_status = "books_do_not_close", 1


class LedgerRefused(TokenworksError):
    """The ledger refused the command."""

    status, code, kind, exit_status = 409, "ledger_refused", "invalid_request_error", 4


class LeasedOut(LedgerRefused):
    """Gateways hold rights to it now; they return what they do not use within seconds."""

    code, retry_after_s = "leased_to_gateways", 2
