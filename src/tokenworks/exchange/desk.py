"""The exchange's desk in a gateway: keys, holds and settlements, in memory and in the journal.

The life of a hold: ``hold`` promises the worst case on the whole budget path, ``trim`` fixes the amount and writes it
down before an engine is called, ``extend`` adds to it while a long stream runs, ``settle`` writes the true cost before
the last byte leaves. ``release`` gives back a hold that never reached an engine. All are synchronous: no two requests
can pass on one balance. Only ``refill`` asks the ledger, when a lease runs short.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence

from tokenworks.core.clock import Clock
from tokenworks.core.errors import ExchangeDown, UnknownKey
from tokenworks.core.ids import key_hash, key_id_of, same_hash
from tokenworks.core.units import NS_PER_S
from tokenworks.core.words import Amount, Decision, Delivery, EnergyLine, Request, Usage, Work
from tokenworks.exchange import budget
from tokenworks.exchange.budget import BudgetTree, Counter, Path, Promise, Purse, Shortage, burns
from tokenworks.exchange.journal import Journal
from tokenworks.exchange.prices import TOKENS_PER_PRICE, Prices, Tariff
from tokenworks.exchange.rater import Rater
from tokenworks.exchange.words import (
    Account,
    AnyCommand,
    BillPower,
    CloseInterval,
    Directory,
    ExtendHold,
    Key,
    Lease,
    PlaceHold,
    Settle,
    Settlement,
    encode_command,
)

AskLease = Callable[[dict[str, int], dict[str, int]], Awaitable[Sequence[Lease]]]
"""Asks the ledger for more of some counters and returns sums of others: (wanted, returned) -> leases."""
NOTHING = Amount(ustu=0, nano=0)
LEASE_S = 10
"""How long leases hold after the ledger was last heard; then this gateway holds nothing new."""
DRY_NS = NS_PER_S
"""How long a grant of which the ledger had nothing left is passed over."""
LOW_WATER = 4
"""More is asked for in the background when less than a quarter of an allowance is left."""


class Identity:
    """Who asks: the account, the key, and the path that it spends from."""

    __slots__ = ("account", "directory", "key", "path")

    def __init__(self, account: Account, key: Key, path: Path, directory: int) -> None:
        self.account, self.key, self.path, self.directory = account, key, path, directory
        """Which of the directories that the desk was taught it is from."""


class Hold(Promise):
    """A promise on a budget path, and whose journal has it."""

    __slots__ = ("identity", "journal", "model", "open", "prices", "promised_ns", "receipt", "spent_ns", "written")

    def __init__(
        self,
        identity: Identity,
        path: Path,
        promised_ns: int,
        receipt: str,
        model: str,
        journal: Journal,
        prices: Prices,
    ) -> None:
        self.identity, self.receipt, self.model, self.journal = identity, receipt, model, journal
        self.prices = prices
        """What holds for this request to its end: the prices in force when it was promised."""
        super().__init__(path)
        self.promised_ns = promised_ns
        self.spent_ns = 0
        """Time this request has spent in the exchange."""
        self.written = False
        self.open = True
        """Neither settled nor released yet."""

    @property
    def waits(self) -> bool:
        """Whoever answers for it has to wait until it is ``safe``."""
        return self.journal.policy == "durable"

    @property
    def amount(self) -> Amount:
        """What is held now."""
        return Amount(ustu=self.ustu, nano=self.nano)


class Desk:
    """One gateway's exchange. Single-threaded: it belongs to the event loop."""

    def __init__(self, prices: Tariff, clock: Clock, journal: Journal, ask_lease: AskLease | None = None) -> None:
        self.prices, self._clock, self._journal, self._ask = prices, clock, journal, ask_lease
        self._rater = Rater()
        self.budgets = BudgetTree()
        self._accounts: dict[str, Account] = {}
        self._keys: dict[str, Key] = {}
        self._directory = 0
        self._backlog: deque[tuple[Journal, AnyCommand]] = deque()
        """What the disk refused: written as soon as it takes it. Bounded, since no new hold is accepted while there is
        any: by the holds that were open."""
        self._valid_ns = 0
        self._asking = asyncio.Lock()
        """One question at a time: a sum given back must not be overtaken by an answer on its way."""
        self.open_holds = 0
        self.busy_ns = 0

    # --- what the ledger says ----------------------------------------------------------------------------------------

    def learn(self, directory: Directory) -> None:
        """Take accounts, keys, limits and grants from the ledger."""
        blocking = [account.id for account in directory.accounts if account.overage == "block"]
        self.budgets.learn(directory.budgets, directory.grants, blocking)
        self._accounts = {account.id: account for account in directory.accounts}
        self._keys = {key.id: key for key in directory.keys}
        self._directory += 1

    def take(self, leases: Iterable[Lease], asked_ns: int) -> None:
        """Take leases; good for ``LEASE_S`` from when they were asked for, less than the ledger thinks."""
        for lease in leases:
            if (counter := self.budgets.counters.get(lease.counter)) is not None:
                counter.take(lease)
        self._valid_ns = max(self._valid_ns, asked_ns + LEASE_S * NS_PER_S)

    def rejoin(self, journal: Journal, directory: Directory) -> None:
        """A new epoch: rights of the old one are void. What is in flight settles into the old journal."""
        self._journal, self.budgets, self._valid_ns = journal, BudgetTree(), 0
        self._rater = Rater()
        self.learn(directory)

    async def refill(self, shortage: Shortage) -> bool:
        """Ask the ledger for what a request lacks; True when it gave enough of it to try again."""
        if self._ask is None:
            return False
        async with self._asking:
            asked_ns = self._clock.now_ns()
            wanted: dict[str, int] = {}
            for counter, need in shortage.counters:
                counter.roll(asked_ns)
                wanted[counter.id] = need - counter.left
            before = {counter.id: counter.allowance for counter, _ in shortage.counters}
            self.take(await self._ask(wanted, {}), asked_ns)
            changed = False
            for counter, _ in shortage.counters:
                if counter.allowance > before[counter.id]:
                    changed = True
                elif counter.id.startswith("g:"):
                    counter.dry_ns, changed = asked_ns + DRY_NS, True  # then the next grant pays, or money does
            return changed

    async def beat(self) -> None:
        """Once a second: renew the leases, ask for more where they run low, give back what nobody uses."""
        if self._ask is None:
            return
        async with self._asking:
            asked_ns = self._clock.now_ns()
            wanted: dict[str, int] = {}
            returned: dict[str, int] = {}
            for counter in self.budgets.counters.values():
                counter.roll(asked_ns)
                idle = counter.used == counter.used_at_beat and not counter.held
                counter.used_at_beat = counter.used
                if idle and counter.left > 0:
                    counter.allow(0)
                    returned[counter.id] = counter.allowance
                elif not idle and counter.left < counter.allowance // LOW_WATER:
                    wanted[counter.id] = max(1, counter.allowance // LOW_WATER)
            self.take(await self._ask(wanted, returned), asked_ns)

    # --- the life of a hold ------------------------------------------------------------------------------------------

    def identify(self, key: str | None) -> Identity:
        """Whose key is it? Raises UnknownKey, the same for a wrong, a revoked and a missing one."""
        key_id = key_id_of(key) if key else None
        found = self._keys.get(key_id) if key_id else None
        if key is None or found is None or not same_hash(found.hash, key_hash(key)) or found.revoked_ns is not None:
            raise UnknownKey(
                "no API key was given" if not key else "the API key is unknown or revoked",
                hint="send it as 'Authorization: Bearer tw-...'; make one with: tokenworks key create",
            )
        return Identity(self._accounts[found.account], found, self.budgets.path(found.budget), self._directory)

    def knows(self, identity: Identity) -> bool:
        """Nothing was taught since: whoever was identified is so still, by the same key."""
        return identity.directory == self._directory

    def hold(
        self,
        identity: Identity,
        receipt: str,
        worst: Amount,
        model: str,
        sites: Collection[str] = (),
        prices: Prices | None = None,
    ) -> Hold:
        """Promise the worst case, at these prices or those of now.

        Raises Shortage (a BudgetSpent) when leases do not cover it, ExchangeDown while the journal cannot be written or
        the ledger has not been heard for too long.
        """
        began = self._clock.now_ns()
        if self._backlog:
            self._write_backlog()
        if began >= self._valid_ns and self._ask is not None:
            raise ExchangeDown("the ledger has not been heard for too long, so nothing can be promised")
        path = self.budgets.path(identity.key.budget)
        if path.expires_ns is not None:
            budget.check_time(path, began)
        prices = prices or self.prices.at(began)
        made = Hold(identity, path, began, receipt, model, self._journal, prices)
        budget.hold(made, worst, model, sites, began, prices.currency)
        self.open_holds += 1
        made.spent_ns = self._spend(began)
        return made

    def _spend(self, began_ns: int) -> int:
        took = self._clock.now_ns() - began_ns
        self.busy_ns += took
        return took

    def trim(self, hold: Hold, amount: Amount, site: str | None = None) -> None:
        """Keep only what the chosen price needs, and write the hold down.

        Raises ExchangeDown, and Shortage when a grant that the hold counted on does not pay at the chosen site; then
        nothing is held.
        """
        began = self._clock.now_ns()
        elsewhere = False
        for purse, _ in hold.parts:
            if purse.grant.sites and site not in purse.grant.sites:
                elsewhere = True
        less = amount.ustu < hold.ustu or amount.nano < hold.nano
        if elsewhere or less or not hold.ustu:
            budget.settle(hold, 0, 0, ())
            hold.promised_ns = began
            budget.hold(hold, amount, hold.model, _sites(site), began, hold.prices.currency)
        command = PlaceHold(
            receipt=hold.receipt,
            budget=hold.identity.key.budget,
            ustu=hold.ustu,
            nano=hold.nano,
            at_ns=hold.promised_ns,
            parts=burns(hold.parts),
        )
        try:
            hold.journal.append(encode_command(command))
        except ExchangeDown:
            self.release(hold)
            raise
        hold.written = True
        hold.spent_ns += self._spend(began)

    def extend(self, hold: Hold, more: Amount, site: str | None = None) -> None:
        """Promise more for a stream that goes on. Raises Shortage or ExchangeDown; then the hold is as it was."""
        began = self._clock.now_ns()
        before = (hold.ustu, hold.nano)
        parts = budget.hold(hold, more, hold.model, _sites(site), began, hold.prices.currency)
        ustu, nano = hold.ustu - before[0], hold.nano - before[1]
        command = ExtendHold(receipt=hold.receipt, ustu=ustu, nano=nano, parts=burns(parts))
        self._write(hold.journal, command)  # if the disk refuses now it is written before anything else is
        hold.spent_ns += self._spend(began)

    async def safe(self, hold: Hold) -> None:
        """With the policy ``durable``: wait until what was written of a hold is on the disk. Raises ExchangeDown."""
        if hold.waits:
            await hold.journal.durable()

    def release(self, hold: Hold) -> None:
        """Give back a hold that was never written down."""
        budget.settle(hold, 0, 0, ())
        hold.open = False
        self.open_holds -= 1

    def settle(
        self,
        hold: Hold,
        request: Request,
        decision: Decision,
        usage: Usage,
        delivery: Delivery,
        work: Work | None,
        estimate: EnergyLine | None,
        entity: str = "",
    ) -> Settlement:
        """Turn the hold into what was really used and write it down; what exceeds the hold is the operator's loss.

        Grants cover standard tokens in burn order; money is owed for the rest, with the fraction of a nano carried to
        the account's next request. Raises ExchangeDown when the journal refuses: the books in memory have it, and it is
        written later.
        """
        began = self._clock.now_ns()
        identity, chosen, prices = hold.identity, decision.chosen, hold.prices
        model, account, key = chosen.model, identity.account, identity.key
        held_ustu, held_nano = hold.ustu, hold.nano
        ustu, money = prices.exact(model, usage, account.price_class)
        list_nano = -(-money // TOKENS_PER_PRICE)
        burned: list[tuple[Purse, int]] = []
        covered = 0
        if hold.parts:
            burned = budget.burn(hold, ustu)
            covered = sum([part for _, part in burned])
        nano = self._rater.charge((account.id, account.price_class, "standard", model), ustu, money, covered)
        charged_ustu = ustu if ustu < held_ustu else held_ustu
        charged_nano = nano if nano < held_nano else held_nano
        settlement = Settlement(
            receipt=hold.receipt,
            account=account.id,
            budget=key.budget,
            key=key.id,
            endpoint=request.endpoint,
            model_asked=request.model_asked or request.model,
            model_served=model,
            usage=usage,
            ustu=ustu,
            nano=nano,
            loss_ustu=ustu - charged_ustu,
            loss_nano=nano - charged_nano,
            rate_card=prices.rate_card,
            price_book=prices.price_book,
            currency=prices.currency,
            decision=decision,
            delivery=delivery,
            work=work,
            estimate=estimate,
            held_ustu=held_ustu,
            held_nano=held_nano,
            hold_ns=hold.spent_ns,
            arrived_ns=request.arrived_ns,
            at_ns=began,
            list_nano=list_nano,
            burned=burns(burned),
            entity=entity,
            lane=request.lane,
        )
        # Memory first: the tokens are spent whether or not the disk takes the record now.
        budget.settle(hold, charged_ustu, charged_nano, burned)
        hold.open = False
        self.open_holds -= 1
        self._write(hold.journal, Settle(settlement=settlement))
        self._spend(began)
        return settlement

    def book(self, command: CloseInterval | BillPower) -> None:
        """Write down the energy records of an interval, of a correction, or what a supply charges. Raises ExchangeDown;
        then it is not written later either, and is to be said again: who closes intervals goes on with this one."""
        self._write_backlog()
        self._journal.append(encode_command(command))

    def _write(self, journal: Journal, command: AnyCommand) -> None:
        if not self._backlog:
            try:
                journal.append(encode_command(command))
                return
            except ExchangeDown:
                pass  # written later
        self._backlog.append((journal, command))
        self._write_backlog()

    def _write_backlog(self) -> None:
        while self._backlog:
            journal, command = self._backlog[0]
            journal.append(encode_command(command))
            self._backlog.popleft()

    def counters(self) -> Iterable[Counter]:
        """The leased limits as this gateway counts them, for reports and checks."""
        return self.budgets.counters.values()


def _sites(site: str | None) -> Collection[str]:
    return () if site is None else (site,)
