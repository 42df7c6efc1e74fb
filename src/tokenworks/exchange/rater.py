"""Prices without rounding: what is left over of one request's price is carried to the account's next."""

from __future__ import annotations

from collections import OrderedDict

from tokenworks.core.words import Usage
from tokenworks.exchange.prices import TOKENS_PER_PRICE, Tariff

REMEMBERED_MAX = 100_000
"""Remainders that a Rater keeps. The one unused for longest is dropped: under one nano, in the customer's favour."""


class Rater:
    """Prices requests one after another so that their sum is exact: one per gateway epoch, single-threaded.

    The remainder of each (account, price line) is kept in millionths of a nano. What has been charged is at any time
    the floor of what was used; a new epoch starts at 0 and so forgoes less than one nano per line.
    """

    def __init__(self, prices: Tariff, remembered_max: int = REMEMBERED_MAX) -> None:
        self.prices = prices
        self._rests: OrderedDict[tuple[str, str, str, str], int] = OrderedDict()
        self._max = remembered_max

    def __len__(self) -> int:
        return len(self._rests)

    def rate(
        self,
        account: str,
        model: str,
        usage: Usage,
        price_class: str = "standard",
        tier: str = "standard",
        covered_ustu: int = 0,
        arrived_ns: int = 0,
    ) -> tuple[int, int]:
        """(micro-STU, nano) of a request. The nano are for what ``covered_ustu`` of grants leave, in proportion.

        It costs what held when it arrived; the remainder outlives a change of prices.
        They never exceed ``Prices.price`` of the same usage, so a hold of ``Prices.worst`` covers them.
        """
        ustu, money = self.prices.at(arrived_ns).exact(model, usage, price_class, tier)
        return ustu, self.charge((account, price_class, tier, model), ustu, money, covered_ustu)

    def charge(self, key: tuple[str, str, str, str], ustu: int, money: int, covered_ustu: int = 0) -> int:
        """Whole nano of an exact price, as far as grants do not cover it, and of what was left over before.

        ``key`` is (account, class, tier, model), ``money`` in millionths of a nano.
        """
        if covered_ustu and ustu:
            money = money * max(0, ustu - covered_ustu) // ustu
        rests = self._rests
        nano, rests[key] = divmod(rests.get(key, 0) + money, TOKENS_PER_PRICE)
        rests.move_to_end(key)
        if len(rests) > self._max:
            rests.popitem(last=False)
        return nano
