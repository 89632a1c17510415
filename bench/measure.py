"""Rounds, medians and ratios. Pure.

A value is measured once per round, all its peers in the same round, so that what disturbs a round disturbs them
alike: a ratio is taken within each round, and only then the median over the rounds.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Rounds:
    """One number per round, in the order of the rounds."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        """The number to quote."""
        return statistics.median(self.values)

    @property
    def low(self) -> float:
        """The smallest."""
        return min(self.values)

    @property
    def high(self) -> float:
        """The largest."""
        return max(self.values)

    def less(self, base: Rounds) -> Rounds:
        """Round by round, without what `base` cost."""
        return Rounds(tuple(a - b for a, b in zip(self.values, base.values, strict=True)))

    def ratio(self, peer: Rounds) -> Rounds:
        """Round by round, as a multiple of the peer's."""
        return Rounds(tuple(a / b for a, b in zip(self.values, peer.values, strict=True)))

    def text(self, digits: int) -> str:
        """Median, and half the distance between the extremes as a part of it."""
        spread = (self.high - self.low) / 2 / self.median if self.median else 0.0
        return f"{self.median:.{digits}f} ±{spread:.0%}"

    def as_json(self) -> dict[str, object]:
        """Everything that was measured, rounded to what it is worth."""
        return {
            "median": round(self.median, 4),
            "low": round(self.low, 4),
            "high": round(self.high, 4),
            "rounds": [round(value, 4) for value in self.values],
        }


def rounds(values: Sequence[float]) -> Rounds:
    """For what is collected in lists."""
    return Rounds(tuple(values))
