"""What a site's energy costs on the running grid: each interval goes through supplies, contract and account.

What its batteries hold, and what that cost, is kept in the data directory. Imported only for sites of which the grid
file says more than one plain supply, since tables of signals need numpy.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from tokenworks.compose_power import SitePower, site_power
from tokenworks.core.files import write_private
from tokenworks.core.words import CORRECTABLE, Provenance, Sourced, Word
from tokenworks.exchange.words import BillPower
from tokenworks.gridfile import Site
from tokenworks.history import file_name
from tokenworks.power.account import Account, Stock, account, green_permille, mix_permille
from tokenworks.power.contract import Demand, Flow, Peak, direct_connection_permille, total
from tokenworks.power.plant import Feed, dispatch
from tokenworks.power.signal import at
from tokenworks.power.supply import Supply
from tokenworks.power.tables import HOUR_NS
from tokenworks.power.tariff import local
from tokenworks.site.words import Costs

log = logging.getLogger(__name__)


class _Traced(Word, frozen=True):
    """One interval, what batteries held before it, and its trace."""

    start_ns: int
    end_ns: int
    before: dict[str, Stock]
    flow: Flow
    account: Account
    peaks_before: dict[str, Peak]
    """By demand charge."""
    peaks: dict[str, list[Peak]]
    """After each window of it."""


class SitePricing:
    """The ``Pricing`` of one site. Asked again for a time (a longer one, or corrected), it says what it would have said
    then; what batteries held since is not changed by that. Raises as ``site_power``."""

    def __init__(self, site: Site, currency: str, data: Path) -> None:
        self.power: SitePower = site_power(site, currency)
        self._path = data / "power" / f"{file_name(site.name)}.json"
        self._demands = [charge for charge in self.power.contract.charges if isinstance(charge, Demand)]
        self._billed: dict[str, int] = {}
        self._traced: deque[_Traced] = deque(maxlen=CORRECTABLE)
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
        before = known.before if known else last.account.stocks if last and last.end_ns <= start_ns else {}
        supplies, contract = self.power.supplies, self.power.contract
        stored = {name: stock.mj for name, stock in before.items()}
        flow, unserved_mj = dispatch(supplies, max(0, load_mj), start_ns, end_ns, stored)
        nano = contract.bill(flow) if not unserved_mj else None
        matched: dict[str, int] | None = {} if end_ns - start_ns > HOUR_NS else None
        traced = account(supplies, flow, nano, before, matched)
        if known is None or known is last:
            was = {name: found[-1] for name, found in last.peaks.items()} if last else {}
            was = known.peaks_before if known else was
            peaks = {charge.name: charge.follow(was.get(charge.name, Peak()), flow) for charge in self._demands}
            ends = {"start_ns": start_ns, "end_ns": end_ns}
            self._keep(_Traced(**ends, before=before, flow=flow, account=traced, peaks_before=was, peaks=peaks), known)
        load = traced.load
        carbon_ug, market_ug = (None, None) if unserved_mj else (load.carbon_ug, load.market_ug)
        return Costs(load.nano, carbon_ug, market_ug, mix_permille(supplies.feed or Feed(name="grid"), load))

    def now(self, flat: Supply, now_ns: int) -> Supply:
        """What one more kilowatt-hour costs at a moment, and what those of the last interval's sources emit then.

        More load means more import, unless the site then exported (less of that) or lived on its plants alone (more of
        them). What is not known stays unknown. Peaks, which only the end of a month decides, are not in it.
        """
        feed, contract = self.power.supplies.feed, self.power.contract
        flow = self._traced[-1].flow if self._traced else Flow(start_ns=0, end_ns=1)
        made = {name: mj for name, mj in flow.produced_mj.items() if mj}
        moves = "export" if flow.export_mj else "import"
        if made and not (flow.export_mj or flow.import_mj or any(flow.discharged_mj.values())):
            moves = next(iter(made))
        nano = contract.marginal_nano_per_kwh(now_ns, moves)
        emits = {plant.name: plant.carbon for plant in self.power.supplies.plants}
        parts = [(emits[name], mj) for name, mj in made.items()]
        if flow.import_mj or not made:
            parts.append((feed.carbon if feed else None, flow.import_mj or 1))
        rates = [(None if steps is None else at(steps, now_ns), mj) for steps, mj in parts]
        carbon = total([None if rate is None else rate * mj for rate, mj in rates])
        carbon_ug = None if carbon is None else carbon // sum(mj for _, mj in rates)
        price, intensity = (
            None if value is None else Sourced(value=value, provenance=Provenance.LISTED, source=f"{what}, now")
            for value, what in ((nano, f"one more kWh of {moves} under {contract.name}"), (carbon_ug, "its sources"))
        )
        return msgspec.structs.replace(flat, price=price, carbon=intensity)

    def shares(self) -> dict[str, int | None]:
        """Of the last intervals (``CORRECTABLE`` at most), in permille: clean energy by the hour and over their whole
        time, and what rules for green direct connection ask for. None: there was none of it."""
        flows, accounts = [each.flow for each in self._traced], [each.account for each in self._traced]
        plants = [plant.name for plant in self.power.supplies.plants if plant.green and not plant.remote]
        hourly, whole = green_permille(self.power.supplies, accounts, flows) or (None, None)
        return {"clean_hourly": hourly, "clean": whole, **direct_connection_permille(flows, plants)}

    def bills(self, site: str, supply: str) -> Iterator[BillPower]:
        """What months cost by their peaks, all so far, where that was not said yet: it is once the next is asked for.

        What is corrected later than the next interval moves no peak.
        """
        for charge in self._demands if self._traced else ():
            for peak in {peak.month_ns: peak for peak in self._traced[-1].peaks[charge.name]}.values():
                what = f"{charge.name} {local(peak.month_ns, charge.zone):%Y-%m}"
                if self._billed.get(what) != (nano := charge.month_nano(peak.highest_mj)):
                    said: dict[str, Any] = {"part": "demand", "what": what, "nano": nano, "at_ns": peak.window_ns}
                    yield BillPower(site=site, supply=supply, **said)
                    self._billed[what] = nano

    def _keep(self, traced: _Traced, instead: _Traced | None) -> None:
        if instead is not None:
            self._traced.pop()
        self._traced.append(traced)
        if self.power.supplies.batteries or traced.peaks:
            self._path.parent.mkdir(exist_ok=True)
            write_private(self._path, msgspec.json.encode(traced))
