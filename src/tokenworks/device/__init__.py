"""Floor 3, device: which accelerators there are, what they can do and draw, and the slices cut from them.

Owns the catalogue and discovery. May not know which model runs on a slice or who pays for it.
"""
