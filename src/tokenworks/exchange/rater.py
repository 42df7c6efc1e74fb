"""Prices without rounding: what is left over of one request's price is carried to the account's next."""

from __future__ import annotations

from collections import OrderedDict

from tokenworks.exchange.prices import TOKENS_PER_PRICE

REMEMBERED_MAX = 100_000
"""Remainders that a Rater keeps. The one unused for longest is dropped: under one nano, in the customer's favour."""


class Rater:
    """Charges requests one after another so that their sum is exact: one per gateway epoch, single-threaded.

    The remainder of each (account, class, tier, model) is kept in millionths of a nano, and outlives a change of
    prices. What has been charged is at any time the floor of what was used; a new epoch starts at 0 and so forgoes less
    than one nano per line. No request is charged more than ``Prices.price``, so a hold of ``Prices.worst`` covers it.
    """

    def __init__(self, remembered_max: int = REMEMBERED_MAX) -> None:
        self._rests: OrderedDict[tuple[str, str, str, str], int] = OrderedDict()
        self._max = remembered_max

    def __len__(self) -> int:
        return len(self._rests)

    def charge(self, line: tuple[str, str, str, str], ustu: int, money: int, covered_ustu: int = 0) -> int:
        """Whole nano of a request's exact price, for what ``covered_ustu`` of grants leave of it, in proportion.

        ``line`` is (account, class, tier, model); ``ustu`` and ``money`` are from ``Prices.exact``.
        """
        if covered_ustu and ustu:
            money = money * max(0, ustu - covered_ustu) // ustu
        rests = self._rests
        nano, rests[line] = divmod(rests.get(line, 0) + money, TOKENS_PER_PRICE)
        rests.move_to_end(line)
        if len(rests) > self._max:
            rests.popitem(last=False)
        return nano
