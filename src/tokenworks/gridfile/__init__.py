"""The grid file: one strict TOML file that describes a grid, read as values. Nothing is started here.

Every quantity is an integer in the smallest unit of the books (``core.units``) and says so in its name. A wrong file
raises GridFileError with file, line, path (arrays counted from 1: ``site[1]`` is the first) and the nearest right word.
"""

from __future__ import annotations

from tokenworks.gridfile.read import SIZE_MAX, default_grid, load, parse
from tokenworks.gridfile.tables import EMBEDDED_MODEL, WORKERS_MAX, Device, Gateway, GridFile, Replica, Site

__all__ = ["EMBEDDED_MODEL", "SIZE_MAX", "WORKERS_MAX", "Device", "Gateway", "GridFile", "Replica", "Site"]
__all__ += ["default_grid", "load", "parse"]
