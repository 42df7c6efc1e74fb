"""The real ledger process with short leases: ``python -m bench.chaos.ledger DATA [STORE]``."""

from __future__ import annotations

import sys

from bench.chaos import short_leases

from tokenworks.exchange.server import main

if __name__ == "__main__":
    short_leases()
    sys.exit(main())
