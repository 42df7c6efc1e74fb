"""Tokenworks runs a network of AI token factories as one public utility."""

from __future__ import annotations

__version__ = "0.1.0"
