"""``python -m bench.gateway``."""

from __future__ import annotations

import sys

from bench.gateway.run import main

if __name__ == "__main__":
    sys.exit(main())
