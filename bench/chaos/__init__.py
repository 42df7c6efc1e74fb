"""Chaos for the exchange: real gateway and ledger processes that are killed and paused under load, then audited."""

from __future__ import annotations

LEASE_S = 1
BOUND_S = 1


def short_leases() -> None:
    """Leases of a second instead of ten, in this process, so that a pause of a few seconds outlives them."""
    from tokenworks.exchange import desk, service

    for module, name, value in (
        (desk, "LEASE_S", LEASE_S),
        (service, "LEASE_S", LEASE_S),
        (service, "BOUND_S", BOUND_S),
    ):
        assert hasattr(module, name)
        setattr(module, name, value)
