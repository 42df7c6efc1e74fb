"""Chaos for the exchange: real gateway and ledger processes that are killed and paused under load, then audited."""

from __future__ import annotations

LEASE_S = 1
BOUND_S = 1
SEGMENT_BYTES = 64 << 10
PRUNE_NS = 200_000_000


def short_leases() -> None:
    """Leases of a second instead of ten, in this process, so that a pause of a few seconds outlives them.

    Segments are short and pruned at once, so that what a recovery needs is all that is there.
    """
    from tokenworks.exchange import desk, server, service
    from tokenworks.exchange.journal import journal

    for module, name, value in (
        (desk, "LEASE_S", LEASE_S),
        (service, "LEASE_S", LEASE_S),
        (service, "BOUND_S", BOUND_S),
        (server, "PRUNE_NS", PRUNE_NS),
        (journal, "SEGMENT_BYTES_MAX", SEGMENT_BYTES),
    ):
        assert hasattr(module, name)
        setattr(module, name, value)
