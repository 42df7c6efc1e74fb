"""Floor 1, power: supplies and contracts, and with them a price, a carbon intensity and a source mix for every moment.

Owns what energy costs and where it comes from. May not know what the energy is used for: no site, device or token.
"""
