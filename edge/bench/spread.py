"""Samples as a median with its spread, and the judgement whether they may be trusted. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

UNSTABLE_OVER = 0.10  # interquartile range over median
FEWEST = 3  # samples; fewer have no spread worth the name


@dataclass(frozen=True)
class Spread:
    """Order statistics of one figure over the rounds; ``iqr`` is the distance of its quartiles. Units are the
    figure's own."""

    samples: int
    min: float
    median: float
    max: float
    iqr: float

    @property
    def relative(self) -> float:
        """Interquartile range over median; 0 where both are 0, infinite for a median of 0 with spread."""
        if self.iqr == 0:
            return 0.0
        return abs(self.iqr / self.median) if self.median else float("inf")

    @property
    def unstable(self) -> bool:
        """True where the figure may not be quoted: too few samples, or a spread over ``UNSTABLE_OVER``."""
        return self.samples < FEWEST or self.relative > UNSTABLE_OVER

    def as_json(self) -> dict[str, float | int | bool]:
        return {
            "samples": self.samples,
            "min": self.min,
            "median": self.median,
            "max": self.max,
            "iqr": self.iqr,
            "unstable": self.unstable,
        }


def spread(samples: Sequence[float]) -> Spread:
    """The spread of at least one finite sample. Raises ValueError otherwise."""
    values = np.asarray(samples, np.float64)
    if values.size == 0 or not np.isfinite(values).all():
        raise ValueError("a spread needs at least one sample, all of them finite")
    low, middle, high = np.quantile(values, (0.25, 0.5, 0.75))
    return Spread(values.size, float(values.min()), float(middle), float(values.max()), float(high - low))


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """``ours / theirs`` round by round: a disturbance that lasted a round falls on both. Raises ValueError for
    sequences of different lengths."""
    return [a / b for a, b in zip(ours, theirs, strict=True)]


def unstable(figures: Mapping[str, Spread]) -> list[str]:
    """One sentence for each figure that may not be quoted."""
    told = []
    for name, figure in figures.items():
        if figure.samples < FEWEST:
            told.append(f"{name}: {figure.samples} rounds are too few; take at least {FEWEST}")
        elif figure.unstable:
            told.append(
                f"{name}: the middle half of {figure.samples} rounds lies {100 * figure.relative:.0f} % apart"
                f" (limit {100 * UNSTABLE_OVER:.0f} %)"
            )
    return told
