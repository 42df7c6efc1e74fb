"""``python -m tokenworks.cli``."""

from __future__ import annotations

import sys

from tokenworks.cli import main

sys.exit(main())
