"""Thresholds from good pictures alone, with what they promise and what they do not.

Conformal inside the sample; below 1 / (n + 1), which n pictures cannot promise, the tail is extrapolated by
peaks over threshold (generalised Pareto) on the log scores, and everything is marked as such.

The tail's estimator was chosen by simulation (normal, gamma, Gumbel, Laplace, t5 and uniform log scores; 50, 209 and
761 pictures; 400 samples each) for few exceedances: with 209 pictures, probability-weighted moments alone realise 2.3
to 2.7 times the asked rate of 1e-3 on average, since the shape's error is as large as the shape. Shrunk towards the
exponential as if 20 exceedances of shape 0 had been seen, and held in [0, 0.5], they realise 0.6 to 1.9 times the
asked rate (t5 1.9; uniform never alarms). A shape below 0 is not believed: it would mean a score that no good picture
can ever pass. 50 pictures at 1e-3 still give up to 3.5 times: extrapolation is marked for a reason.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge.errors import DataError
from edge.heads.calibrated import GpdTail

F64 = NDArray[np.float64]

TAIL_SHARE = 0.1  # of the scores are exceedances ...
TAIL_LEAST = 10  # ... at least this many, but at most half of all
SHAPE_PRIOR = 20  # exceedances' worth of belief in an exponential tail
SHAPE_MOST = 0.5
BOOTSTRAPS = 1000
MIN_PICTURES = 3
"""Fewer good pictures have no held-out scores worth the name: two give two, each from a model of one picture,
whose subspace is empty."""


@dataclass(frozen=True)
class Threshold:
    """A score threshold for an accepted rate of false alarms; alarm where score > ``value``.

    interval: 95% bootstrap interval of the threshold; rate_interval: of the nominal pictures' rate of
    alarms at ``value`` under the refitted tails. Both None inside the sample, where the rate itself is the
    promise."""

    value: float
    extrapolated: bool
    interval: tuple[float, float] | None
    rate_interval: tuple[float, float] | None
    tail: GpdTail | None


def needed_for_promise(rate: float) -> int:
    """Smallest n with 1 / (n + 1) <= rate: with fewer calibration pictures no threshold promises the rate."""
    return max(1, math.ceil(1.0 / rate - 1e-9) - 1)


def conformal_rank(count: int, rate: float) -> int | None:
    """k so that P(score > k-th smallest of ``count`` exchangeable scores) <= rate; None where even the
    largest does not promise it. Source: Vovk, Gammerman, Shafer (2005), split conformal prediction."""
    rank = math.ceil((count + 1) * (1.0 - rate) - 1e-9)
    return rank if rank <= count else None


def fit_tail(scores: F64) -> GpdTail | None:
    """Peaks over threshold of the log scores ([n], > 0); None with fewer than 3 scores or no spread above the
    start. Probability-weighted moments (Hosking and Wallis 1987), shape shrunk and bounded as above."""
    logs = np.sort(np.log(scores))
    count = len(logs)
    exceedances = min(count // 2, max(TAIL_LEAST, math.ceil(TAIL_SHARE * count)))
    if count < MIN_PICTURES or exceedances < 1:
        return None
    start = float(logs[count - exceedances - 1])
    excess = logs[count - exceedances :] - start
    mean = float(excess.mean())
    if not mean > 0:
        return None
    shape = 0.0
    if exceedances >= 3:
        ranks = np.arange(1, exceedances + 1)
        weighted = float(np.mean((exceedances - ranks) / (exceedances - 1) * excess))
        if mean > 2 * weighted:
            shape = 2 - mean / (mean - 2 * weighted)
        shape *= exceedances / (exceedances + SHAPE_PRIOR)
    shape = min(max(shape, 0.0), SHAPE_MOST)
    return GpdTail(
        start=start,
        weight=exceedances / (count + 1),
        scale=mean * (1 - shape),  # keeps the mean excess, whatever the shape became
        shape=shape,
        exceedances=exceedances,
    )


def threshold_for(scores: F64, rate: float, seed: int = 0) -> Threshold:
    """The threshold for at most ``rate`` (in (0, 1)) false alarms a picture, from the held-out scores of good
    pictures ([n], finite, > 0). Raises DataError for fewer than 3 scores, or a rate outside (0, 1)."""
    if not 0 < rate < 1:
        raise DataError(f"the accepted rate of false alarms must lie between 0 and 1, not {rate}")
    if len(scores) < MIN_PICTURES:
        raise DataError(f"{len(scores)} calibration scores are too few; at least {MIN_PICTURES} good pictures")
    ordered = np.sort(scores)
    tail = fit_tail(ordered)
    rank = conformal_rank(len(ordered), rate)
    if rank is not None:
        return Threshold(float(ordered[max(rank, 1) - 1]), False, None, None, tail)
    value = _beyond(ordered, tail, rate)
    generator = np.random.RandomState(seed)  # frozen stream (NEP 19): the same interval in every NumPy
    values, rates = [], []
    for _ in range(BOOTSTRAPS):
        again = np.sort(ordered[generator.randint(0, len(ordered), len(ordered))])
        other = fit_tail(again)
        values.append(_beyond(again, other, rate))
        rates.append(other.survival(value) if other is not None else 1.0 / (len(ordered) + 1))
    return Threshold(value, True, _central(values), _central(rates), tail)


def _beyond(ordered: F64, tail: GpdTail | None, rate: float) -> float:
    """Never below the largest score seen: the p-value there is the conformal one."""
    largest = float(ordered[-1])
    return largest if tail is None else max(largest, tail.quantile(rate))


def _central(values: list[float]) -> tuple[float, float]:
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)


def alarms_per_hour(rate: float, frames_per_second: float) -> float:
    """False alarms an hour at a camera's rate, before n-of-m. Consecutive frames of one scene are dependent:
    alarms then come in runs, with the same mean."""
    return rate * frames_per_second * 3600.0


def folds_of(count: int, folds: int, seed: int) -> list[NDArray[np.intp]]:
    """A fixed random partition of ``range(count)`` into ``folds`` parts (leave-one-out where count is
    smaller)."""
    order = np.random.RandomState(seed).permutation(count)
    return [np.sort(part) for part in np.array_split(order, min(folds, count))]


def promise(count: int, rate: float, exact: bool, how: str) -> str:
    """One paragraph for people: what ``count`` calibration pictures promise at ``rate``, and what not."""
    needed = needed_for_promise(rate)
    can = f"{count} pictures can promise no rate below 1/{count + 1}"
    if count < needed:
        first = f"the threshold for {_fraction(rate)} is extrapolated, not promised: {can}; {needed} would"
    elif exact:
        first = f"at most {_fraction(rate)} false alarms a picture, exact for pictures exchangeable with these {count}"
    else:
        first = f"about {_fraction(rate)} false alarms a picture from {count} pictures"
    if exact:
        second = f"{how}: the pictures were held out of the fit"
    else:
        second = f"{how}: approximate, each picture was scored by a model fitted without it; no exact guarantee"
    return f"{first} ({second}). Consecutive video frames depend on each other: alarms come in runs."


def _fraction(rate: float) -> str:
    inverse = 1 / rate
    return f"1/{inverse:.0f}" if abs(inverse - round(inverse)) < 1e-6 * inverse else f"{rate:.3g}"
