"""The receipts log: a public, append-only tree over salted commitments to every receipt, with signed checkpoints.

Owns leaves, tree, proofs, checkpoints and the bundles that a customer checks offline. Knows no database: what it keeps
goes through the ports in ``merkle`` and ``writer``. ``merkle``, ``checkpoint``, ``plain``, ``figures`` and ``bundle``
are the verifier's half and need hashlib, json and cryptography only.
"""
