"""A robust fit of positive coefficients, for the performance model and for the calibration of one engine.

A prediction is a sum of pieces, each a known amount times a product of coefficients. Errors are ratios, so the loss is
the soft L1 of their logarithms, which lets a few odd rows be odd; each coefficient is pulled towards its start.
Levenberg and Marquardt's method on the logarithms of the coefficients: a dozen coefficients, a few thousand rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import exp, log, prod, sqrt

from tokenworks.core.words import Word


class Row(Word, frozen=True):
    """One measurement."""

    measured: float
    pieces: tuple[tuple[float, tuple[int, ...]], ...]
    """Amounts, each with the coefficients that multiply it."""
    offset: float = 0.0
    """The part of the prediction that no coefficient changes."""


class Prior(Word, frozen=True):
    """Where a coefficient starts and how hard it is held there: as hard as by so many rows of middling error."""

    start: float
    rows: float


def predicted(row: Row, coefficients: Sequence[float]) -> float:
    """What ``coefficients`` say that the row should have measured."""
    total = row.offset
    for amount, names in row.pieces:
        total += prod((coefficients[name] for name in names), start=amount)
    return total


def fit(rows: Sequence[Row], priors: Sequence[Prior], scale: float, rounds: int = 60) -> list[float]:
    """Coefficients that minimise the loss; errors well below ``scale`` (of a logarithm) count in square."""
    logs = [log(prior.start) for prior in priors]
    start = list(logs)
    loss, normal, gradient = _normal(rows, priors, start, logs, scale)
    damping = 1e-3
    for _ in range(rounds):
        step = _solve(normal, gradient, damping)
        tried = [value - max(-1.0, min(1.0, by)) for value, by in zip(logs, step, strict=True)]
        after = _normal(rows, priors, start, tried, scale)
        if after[0] < loss:
            gained, logs, damping = loss - after[0], tried, damping / 5
            loss, normal, gradient = after
            if gained < 1e-7 * loss:
                break
        else:
            damping *= 4
            if damping > 1e8:
                break
    return [exp(value) for value in logs]


def _normal(
    rows: Sequence[Row], priors: Sequence[Prior], start: Sequence[float], logs: Sequence[float], scale: float
) -> tuple[float, list[list[float]], list[float]]:
    """Loss, normal matrix and gradient at ``logs``."""
    size, coefficients = len(logs), [exp(value) for value in logs]
    loss, normal, gradient = 0.0, [[0.0] * size for _ in logs], [0.0] * size
    for row in rows:
        total, shares = row.offset, [0.0] * size
        for amount, names in row.pieces:
            piece = prod((coefficients[name] for name in names), start=amount)
            total += piece
            for name in names:
                shares[name] += piece
        residual = log(total / row.measured) / scale
        root = sqrt(1 + residual * residual)
        loss += 2 * (root - 1)
        weight = 1 / root / (scale * total) ** 2
        used = [(name, share) for name, share in enumerate(shares) if share]
        for name, share in used:
            gradient[name] += residual / root * share / (scale * total)
            line, weighted = normal[name], weight * share
            for other, with_share in used:
                line[other] += weighted * with_share
    for name, prior in enumerate(priors):
        away = logs[name] - start[name]
        loss += prior.rows * away * away
        gradient[name] += prior.rows * away
        normal[name][name] += prior.rows
    return loss, normal, gradient


def _solve(normal: list[list[float]], gradient: list[float], damping: float) -> list[float]:
    """The damped step."""
    import numpy as np  # only where something is fitted: a gateway goes without it

    matrix = np.array(normal)
    matrix[np.diag_indices_from(matrix)] *= 1 + damping
    return [float(step) for step in np.linalg.solve(matrix + 1e-12 * np.eye(len(gradient)), gradient)]
