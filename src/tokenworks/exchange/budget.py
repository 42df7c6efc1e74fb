"""The budget tree in a gateway's memory: holds on a whole path in one step, so no interleaving can overspend it.

Every method is synchronous and touches no file or socket: on one event loop it is atomic. The invariant, for every
node at every moment: spent + held <= limit.
"""

from __future__ import annotations

from collections.abc import Iterable

from tokenworks.core.errors import BudgetSpent
from tokenworks.core.units import money_text, stu_text
from tokenworks.core.words import Amount
from tokenworks.exchange.words import Budget


class Node:
    """One budget with its running figures. ``None`` limits bind nothing."""

    __slots__ = ("held_nano", "held_ustu", "id", "limit_nano", "limit_ustu", "parent", "spent_nano", "spent_ustu")

    def __init__(self, budget: Budget) -> None:
        self.id = budget.id
        self.parent = budget.parent
        self.limit_ustu = budget.limit_ustu
        self.limit_nano = budget.limit_nano
        self.spent_ustu = budget.spent_ustu
        self.spent_nano = budget.spent_nano
        self.held_ustu = budget.held_ustu
        self.held_nano = budget.held_nano


Path = tuple[Node, ...]
"""Leaf first, root last."""


class BudgetTree:
    """All budgets that this gateway may spend from."""

    def __init__(self) -> None:
        self._nodes: dict[str, Node] = {}
        self._paths: dict[str, Path] = {}

    def learn(self, budgets: Iterable[Budget]) -> None:
        """Take new budgets and new limits. Figures of known nodes are kept: this gateway counts them itself."""
        for budget in budgets:
            node = self._nodes.get(budget.id)
            if node is None:
                self._nodes[budget.id] = Node(budget)
            else:
                node.limit_ustu, node.limit_nano = budget.limit_ustu, budget.limit_nano
        self._paths.clear()

    def path(self, leaf: str) -> Path:
        """The nodes from a leaf to its root. Raises KeyError for an unknown leaf."""
        path = self._paths.get(leaf)
        if path is None:
            nodes = [self._nodes[leaf]]
            while (parent := nodes[-1].parent) is not None:
                nodes.append(self._nodes[parent])
            path = self._paths[leaf] = tuple(nodes)
        return path

    @staticmethod
    def hold(path: Path, amount: Amount, currency: str) -> None:
        """Promise an amount on every node of the path, or on none. Raises BudgetSpent, naming the node."""
        ustu, nano = amount.ustu, amount.nano
        for node in path:
            if node.limit_nano is not None and node.limit_nano - node.spent_nano - node.held_nano < nano:
                left = max(0, node.limit_nano - node.spent_nano - node.held_nano)
                raise _spent(node, money_text(nano, currency), money_text(left, currency))
            if node.limit_ustu is not None and node.limit_ustu - node.spent_ustu - node.held_ustu < ustu:
                left = max(0, node.limit_ustu - node.spent_ustu - node.held_ustu)
                raise _spent(node, stu_text(ustu), stu_text(left))
        for node in path:
            node.held_ustu += ustu
            node.held_nano += nano

    @staticmethod
    def release(path: Path, amount: Amount) -> None:
        """Give back what a hold does not need."""
        for node in path:
            node.held_ustu -= amount.ustu
            node.held_nano -= amount.nano

    @staticmethod
    def settle(path: Path, held: Amount, charged: Amount) -> None:
        """Turn a hold into spending; ``charged`` never exceeds ``held``, so no limit can break."""
        if charged.ustu > held.ustu or charged.nano > held.nano:
            raise ValueError("more would be charged than was held")
        for node in path:
            node.held_ustu -= held.ustu
            node.held_nano -= held.nano
            node.spent_ustu += charged.ustu
            node.spent_nano += charged.nano

    def nodes(self) -> Iterable[Node]:
        """All nodes, for reports and checks."""
        return self._nodes.values()


def _spent(node: Node, needed: str, left: str) -> BudgetSpent:
    return BudgetSpent(
        f"budget {node.id!r} has {left} left, this request may cost up to {needed}",
        hint="ask for fewer tokens (max_tokens), or have the budget raised: tokenworks account budget",
    )
