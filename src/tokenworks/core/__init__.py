"""Ground: the words all floors use. Units, ids, the clock, errors and the values that travel between floors.

Owns no policy and does no input or output; may know nothing of any floor.
"""
