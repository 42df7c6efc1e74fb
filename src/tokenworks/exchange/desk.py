"""The exchange's desk in a gateway: keys, holds and settlements, in memory and in the journal, with no call to anyone.

The life of a hold: ``hold`` promises the worst case on the whole budget path, ``trim`` fixes the amount and writes it
down before an engine is called, ``settle`` writes the true cost before the last byte leaves. ``release`` gives back a
hold that never reached an engine. All are synchronous, so no two requests can pass on one balance.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from tokenworks.core.clock import Clock
from tokenworks.core.errors import ExchangeDown, UnknownKey
from tokenworks.core.ids import key_hash, key_id_of, same_hash
from tokenworks.core.words import Amount, Decision, Delivery, EnergyLine, Interval, Request, Usage, Work
from tokenworks.exchange.budget import BudgetTree, Node, Path
from tokenworks.exchange.journal import Journal
from tokenworks.exchange.prices import Prices
from tokenworks.exchange.words import (
    Account,
    AnyCommand,
    CloseInterval,
    Directory,
    Key,
    PlaceHold,
    Settle,
    Settlement,
    encode_command,
)

NOTHING = Amount(ustu=0, nano=0)


class Identity:
    """Who asks: the account, the key, and the path that it spends from."""

    __slots__ = ("account", "key", "path")

    def __init__(self, account: Account, key: Key, path: Path) -> None:
        self.account, self.key, self.path = account, key, path


class Hold:
    """A promise on a budget path."""

    __slots__ = ("amount", "identity", "open", "receipt", "spent_ns", "written")

    def __init__(self, identity: Identity, receipt: str, amount: Amount, spent_ns: int) -> None:
        self.identity, self.receipt, self.amount = identity, receipt, amount
        self.spent_ns = spent_ns
        """Time this request has spent in the exchange."""
        self.written = False
        self.open = True
        """Neither settled nor released yet."""


class Desk:
    """One gateway's exchange. Single-threaded: it belongs to the event loop."""

    def __init__(self, prices: Prices, clock: Clock, journal: Journal) -> None:
        self.prices, self._clock, self._journal = prices, clock, journal
        self._budgets = BudgetTree()
        self._accounts: dict[str, Account] = {}
        self._keys: dict[str, Key] = {}
        self._backlog: deque[AnyCommand] = deque()
        """Settlements and intervals that the disk refused: written as soon as it takes them. Bounded, since no new hold
        is accepted while there is one: by the holds that were open, and an interval a minute."""
        self.open_holds = 0
        self.busy_ns = 0

    def learn(self, directory: Directory) -> None:
        """Take accounts, keys and limits from the ledger."""
        self._budgets.learn(directory.budgets)
        self._accounts = {account.id: account for account in directory.accounts}
        self._keys = {key.id: key for key in directory.keys}

    def budget_nodes(self) -> Iterable[Node]:
        """The budgets as this gateway counts them."""
        return self._budgets.nodes()

    def identify(self, key: str | None) -> Identity:
        """Whose key is it? Raises UnknownKey, the same for a wrong, a revoked and a missing one."""
        key_id = key_id_of(key) if key else None
        found = self._keys.get(key_id) if key_id else None
        if key is None or found is None or not same_hash(found.hash, key_hash(key)) or found.revoked_ns is not None:
            raise UnknownKey(
                "no API key was given" if not key else "the API key is unknown or revoked",
                hint="send it as 'Authorization: Bearer tw-...'; make one with: tokenworks key create",
            )
        return Identity(self._accounts[found.account], found, self._budgets.path(found.budget))

    def hold(self, identity: Identity, receipt: str, worst: Amount) -> Hold:
        """Promise the worst case. Raises BudgetSpent, or ExchangeDown while the journal cannot be written."""
        began = self._clock.now_ns()
        self._write_backlog()
        self._budgets.hold(identity.path, worst, self.prices.currency)
        self.open_holds += 1
        return Hold(identity, receipt, worst, self._spend(began))

    def _spend(self, began_ns: int) -> int:
        took = self._clock.now_ns() - began_ns
        self.busy_ns += took
        return took

    def trim(self, hold: Hold, amount: Amount) -> None:
        """Keep only what the chosen price needs, and write the hold down. Raises ExchangeDown; then nothing is held."""
        began = self._clock.now_ns()
        if amount.ustu > hold.amount.ustu or amount.nano > hold.amount.nano:
            raise ValueError("a hold can only be trimmed downwards")
        excess = Amount(ustu=hold.amount.ustu - amount.ustu, nano=hold.amount.nano - amount.nano)
        self._budgets.release(hold.identity.path, excess)
        hold.amount = amount
        command = PlaceHold(
            receipt=hold.receipt, budget=hold.identity.key.budget, ustu=amount.ustu, nano=amount.nano, at_ns=began
        )
        try:
            self._journal.append(encode_command(command))
        except ExchangeDown:
            self.release(hold)
            raise
        hold.written = True
        hold.spent_ns += self._spend(began)

    def release(self, hold: Hold) -> None:
        """Give back a hold that was never written down."""
        self._budgets.release(hold.identity.path, hold.amount)
        hold.amount, hold.open = NOTHING, False
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
    ) -> Settlement:
        """Turn the hold into what was really used and write it down; what exceeds the hold is the operator's loss.

        Raises ExchangeDown when the journal refuses: the hold then stays, and the settlement is written later.
        """
        began = self._clock.now_ns()
        price = self.prices.price(decision.chosen.model, usage)
        charged = Amount(ustu=min(price.ustu, hold.amount.ustu), nano=min(price.nano, hold.amount.nano))
        settlement = Settlement(
            receipt=hold.receipt,
            account=hold.identity.account.id,
            budget=hold.identity.key.budget,
            key=hold.identity.key.id,
            endpoint=request.endpoint,
            model_asked=request.model,
            model_served=decision.chosen.model,
            usage=usage,
            ustu=price.ustu,
            nano=price.nano,
            loss_ustu=price.ustu - charged.ustu,
            loss_nano=price.nano - charged.nano,
            rate_card=self.prices.rate_card,
            price_book=self.prices.price_book,
            currency=self.prices.currency,
            decision=decision,
            delivery=delivery,
            work=work,
            estimate=estimate,
            held_ustu=hold.amount.ustu,
            held_nano=hold.amount.nano,
            hold_ns=hold.spent_ns,
            arrived_ns=request.arrived_ns,
            at_ns=began,
        )
        # Memory first: the tokens are spent whether or not the disk takes the record now.
        self._budgets.settle(hold.identity.path, hold.amount, charged)
        hold.open = False
        self.open_holds -= 1
        self._backlog.append(Settle(settlement=settlement))
        self._write_backlog()
        self._spend(began)
        return settlement

    def close_interval(self, interval: Interval) -> None:
        """Write down the energy records of an interval. Raises ExchangeDown; then they are written later."""
        self._backlog.append(CloseInterval(interval=interval))
        self._write_backlog()

    def _write_backlog(self) -> None:
        while self._backlog:
            self._journal.append(encode_command(self._backlog[0]))
            self._backlog.popleft()
