"""Meters and sensors behind one port: a ``Source`` is asked what it reads, a ``Meter`` judges what it said.

Each module beside this one is a source and opens its own files or sockets. Nothing here knows what the energy is for.
"""
