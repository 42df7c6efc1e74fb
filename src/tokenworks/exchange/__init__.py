"""Floor 5, exchange: the standard token, prices, budgets, holds and settlements, the journal and the ledger.

Owns the three books (money, standard tokens, energy), all in integers. May not know replicas, sites or watts beyond the
words of ``core``: it books what it is told and refuses what a budget does not cover.
"""
