"""Tokenworks runs a network of AI token factories as one public utility.

Seven floors (power, site, device, engine, exchange, brain, agents) stand on ``core``; each imports only floors below.
``grid.py`` composes a running grid of them from a grid file, ``cli`` and ``console`` look at it from outside.
"""

from __future__ import annotations

__version__ = "0.1.0"
