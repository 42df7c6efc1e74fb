"""The books as other people's tools read them: FOCUS, CloudEvents, invoices, journals, OpenAI's usage pages.

Every export is a pure function from ``Sold`` rows or ledger entries to text or plain values, and every amount in it is
exact decimal text made from integers. None of them reads a store, a clock or a file.
"""

from __future__ import annotations
