"""What a site's energy costs on the running grid: each interval goes through supplies, contract and account.

What its batteries hold, and what that cost, is kept in the data directory. Imported only for sites of which the grid
file says more than one plain supply, since tables of signals need numpy.
"""

from __future__ import annotations

import logging
from collections import deque
from hashlib import sha256
from pathlib import Path

import msgspec

from tokenworks.compose_power import SitePower, site_power
from tokenworks.core.words import Word
from tokenworks.datadir import write_private
from tokenworks.gridfile import Site
from tokenworks.power.account import Stock, account, mix_permille
from tokenworks.power.plant import Feed, dispatch
from tokenworks.power.tables import HOUR_NS
from tokenworks.site.agent import CLOSED_MAX
from tokenworks.site.words import Costs

log = logging.getLogger(__name__)


class _Traced(Word, frozen=True):
    """One interval, and what batteries held before and after it."""

    start_ns: int
    end_ns: int
    before: dict[str, Stock]
    after: dict[str, Stock]


class SitePricing:
    """The ``Pricing`` of one site. Asked again for a time (a longer one, or corrected), it says what it would have said
    then; what batteries held since is not changed by that. Raises as ``site_power``."""

    def __init__(self, site: Site, currency: str, data: Path) -> None:
        self.power: SitePower = site_power(site, currency)
        self._path = data / "power" / f"{sha256(site.name.encode()).hexdigest()[:32]}.json"
        self._traced: deque[_Traced] = deque(maxlen=CLOSED_MAX)
        try:
            self._traced.append(msgspec.json.decode(self._path.read_bytes(), type=_Traced))
        except FileNotFoundError:
            pass
        except (OSError, msgspec.MsgspecError) as error:
            log.warning("what the batteries of %s held is lost, they count as empty: %s", site.name, error)

    def __call__(self, start_ns: int, end_ns: int, load_mj: int) -> Costs:
        """As ``Pricing``. What nothing could serve has no known price, and so neither has its interval. What only the
        end of a month decides (its peak) is not in it."""
        known = next((each for each in self._traced if each.start_ns <= start_ns < each.end_ns), None)
        last = self._traced[-1] if self._traced else None
        before = known.before if known else last.after if last and last.end_ns <= start_ns else {}
        supplies, contract, _ = self.power
        stored = {name: stock.mj for name, stock in before.items()}
        flow, unserved_mj = dispatch(supplies, max(0, load_mj), start_ns, end_ns, stored)
        nano = contract.bill([flow], closing=False).nano if not unserved_mj else None
        matched: dict[str, int] | None = {} if end_ns - start_ns > HOUR_NS else None
        traced = account(supplies, flow, nano, before, matched)
        if known is None or known is last:
            self._keep(_Traced(start_ns=start_ns, end_ns=end_ns, before=before, after=traced.stocks), known)
        load = traced.load
        carbon_ug, market_ug = (None, None) if unserved_mj else (load.carbon_ug, load.market_ug)
        return Costs(load.nano, carbon_ug, market_ug, mix_permille(supplies.feed or Feed(name="grid"), load))

    def _keep(self, traced: _Traced, instead: _Traced | None) -> None:
        if instead is not None:
            self._traced.pop()
        self._traced.append(traced)
        if self.power.supplies.batteries:
            self._path.parent.mkdir(exist_ok=True)
            write_private(self._path, msgspec.json.encode(traced))
