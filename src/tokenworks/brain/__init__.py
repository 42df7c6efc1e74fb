"""Floor 6, brain: who serves a request. Hard limits first, then every consideration as money, then the least.

Owns decisions and their reasons. Pure: it reads snapshots, keeps no state and does no input or output.
"""
