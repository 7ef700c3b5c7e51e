"""The run-time side of calibration: from a score to a p-value and a verdict's threshold.

Inside the sample of calibration scores the p-value is the conformal one, (1 + #{calibration >= s}) / (n + 1).
Beyond its largest score the sample can say no more than 1 / (n + 1); from there a generalised Pareto tail,
fitted to the log scores by ``calibration`` and stored in the bundle, goes on. Both fall with the score, so
the order of p-values never contradicts the order of scores.
"""

from __future__ import annotations

import math
from bisect import bisect_left

import numpy as np
from numpy.typing import ArrayLike
from pydantic import BaseModel, ConfigDict, Field

from edge.errors import HeadError


class GpdTail(BaseModel):
    """Generalised Pareto tail of log scores beyond ``start`` (Pickands 1975; Coles 2001, section 4.3):
    P(log s > start + x) = weight (1 + shape x / scale)^(-1 / shape), exp for shape 0."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    start: float  # log of the score where the tail begins
    weight: float = Field(gt=0, le=1)  # share of nominal scores beyond it
    scale: float = Field(gt=0)
    shape: float = Field(ge=-0.5, le=0.9)
    exceedances: int = Field(ge=1)

    def survival(self, score: float) -> float:
        """Extrapolated probability that a nominal score is larger than ``score`` (at or beyond the start)."""
        if score <= 0:
            return self.weight
        x = max(0.0, (math.log(score) - self.start) / self.scale)
        if abs(self.shape) < 1e-9:
            return self.weight * math.exp(-x)
        base = 1 + self.shape * x
        return self.weight * base ** (-1 / self.shape) if base > 0 else 0.0

    def quantile(self, rate: float) -> float:
        """The score that a nominal picture passes with probability ``rate`` (<= weight)."""
        ratio = self.weight / rate
        if abs(self.shape) < 1e-9:
            x = math.log(ratio)
        else:
            x = (ratio**self.shape - 1) / self.shape
        return math.exp(self.start + self.scale * max(0.0, x))


class Calibrated:
    """p-values against the scores of good pictures that the fit has not seen (any order, at least one)."""

    def __init__(self, scores: ArrayLike, tail: GpdTail | None = None) -> None:
        self._sorted = sorted(np.asarray(scores, np.float64).ravel().tolist())
        if not self._sorted or not all(math.isfinite(s) for s in self._sorted):
            raise HeadError("calibration scores are missing or not finite: the bundle cannot judge a score")
        self.count = len(self._sorted)
        self.tail = tail

    def p_value(self, score: float) -> float:
        """P(a nominal picture scores at least this much), in (0, 1]; 0 only where a bounded tail has ended.

        Exactly super-uniform for exchangeable pictures inside the sample; extrapolated (no promise) below
        1 / (n + 1)."""
        above = self.count - bisect_left(self._sorted, score)
        p = (1 + above) / (self.count + 1)
        if above == 0 and self.tail is not None:
            return min(p, self.tail.survival(score))
        return p
