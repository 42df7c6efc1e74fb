"""Floor 4, engine: replicas that make tokens. Model files, child processes and their life, adapters, upstream HTTP.

Owns the way from a checked request body to typed usage, and the cancelling of work nobody waits for. May not know
accounts, budgets or prices: it makes tokens for whoever the floors above have already let through.
"""
