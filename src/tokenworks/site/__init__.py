"""Floor 2, site: the factory around the devices; its overhead, its meter and the splitting of that meter.

Owns the interval: every millijoule of the meter gets exactly one place. May not know models, accounts or prices of
tokens; it splits Work records that engines left in its sink, on slices of which it only knows the power.
"""
