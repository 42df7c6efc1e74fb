"""The base of all commands."""

from __future__ import annotations

import msgspec


class Command(msgspec.Struct, frozen=True, kw_only=True, tag=True, array_like=True, gc=False):
    """Base of all commands: the only way in which the ledger's state changes.

    Commands and the words of a settlement are arrays on the wire, half the size of objects and faster. A new field goes
    to the end of its class and has a default, or older journals could not be read.
    """
