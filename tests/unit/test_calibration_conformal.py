"""Thresholds: what is promised holds, and what is not is said."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calibration.conformal import (
    alarms_per_hour,
    conformal_rank,
    fit_tail,
    folds_of,
    needed_for_promise,
    promise,
    threshold_for,
)
from edge.errors import DataError, HeadError
from edge.heads.calibrated import Calibrated, GpdTail


@pytest.mark.parametrize(("rate", "needed"), [(0.5, 1), (0.1, 9), (1 / 3, 2), (0.001, 999), (1 / 1500, 1499)])
def test_needed_is_the_smallest_count_that_promises(rate: float, needed: int) -> None:
    assert needed_for_promise(rate) == needed
    assert conformal_rank(needed, rate) is not None
    if needed > 1:
        assert conformal_rank(needed - 1, rate) is None


@given(st.integers(3, 400), st.floats(0.002, 0.9))
@settings(max_examples=200, deadline=None)
def test_the_rank_leaves_exactly_the_accepted_share_above(count: int, rate: float) -> None:
    rank = conformal_rank(count, rate)
    if rank is None:
        assert 1 / (count + 1) > rate
    else:
        # A new score is equally likely to fall into each of the count + 1 gaps.
        assert (count + 1 - rank) / (count + 1) <= rate + 1e-9
        assert rank <= 1 or (count + 2 - rank) / (count + 1) > rate - 1e-9  # and no smaller rank would do


def test_the_promised_rate_is_kept_on_fresh_pictures() -> None:
    rng = np.random.default_rng(0)
    alarms = 0
    for _ in range(2000):
        scores = rng.lognormal(size=50)
        chosen = threshold_for(scores[:49], 0.1)
        assert not chosen.extrapolated
        alarms += scores[49] > chosen.value
    assert alarms / 2000 == pytest.approx(0.1, abs=0.02)  # 3 standard deviations


@pytest.mark.parametrize("draw", ["lognormal", "gamma", "gumbel"])
def test_an_extrapolated_threshold_is_marked_and_near_the_asked_rate(draw: str) -> None:
    rng = np.random.default_rng(1)
    sample = {
        "lognormal": lambda n: np.exp(0.2 * rng.normal(size=n)),
        "gamma": lambda n: np.exp(0.1 * rng.gamma(4, size=n)),
        "gumbel": lambda n: np.exp(0.1 * rng.gumbel(size=n)),
    }[draw]
    population = sample(400_000)
    realised = []
    for seed in range(30):
        scores = sample(209)
        result = threshold_for(scores, 1e-3, seed) if seed == 0 else None
        tail = fit_tail(scores)
        assert tail is not None
        value = max(float(scores.max()), tail.quantile(1e-3))
        if result is not None:
            assert result.extrapolated
            assert result.value == value
            assert result.interval is not None
            assert result.interval[0] <= result.value <= result.interval[1]
            assert result.rate_interval is not None
            assert result.rate_interval[0] < 1e-3 < result.rate_interval[1]
        realised.append(float(np.mean(population > value)))
    assert 2e-4 < np.mean(realised) < 3e-3


def test_the_interval_is_reproducible_and_the_threshold_monotone_in_the_rate() -> None:
    scores = np.random.default_rng(2).lognormal(size=100)
    assert threshold_for(scores, 1e-3, 5) == threshold_for(scores, 1e-3, 5)
    values = [threshold_for(scores, rate).value for rate in (0.5, 0.1, 0.02, 0.009, 1e-3, 1e-5)]
    assert values == sorted(values)


def test_a_threshold_and_the_p_value_say_the_same() -> None:
    scores = np.random.default_rng(3).lognormal(sigma=0.3, size=120)
    for rate in (0.2, 0.05, 0.01, 1e-3, 1e-4):
        chosen = threshold_for(scores, rate)
        judge = Calibrated(scores, chosen.tail)
        above, at = judge.p_value(chosen.value * (1 + 1e-9)), judge.p_value(chosen.value)
        assert above <= rate * (1 + 1e-6)
        assert at >= rate * (1 - 1e-6) or chosen.extrapolated


def test_p_values_fall_with_the_score_and_go_on_beyond_the_sample() -> None:
    scores = np.random.default_rng(4).lognormal(sigma=0.3, size=200)
    judge = Calibrated(scores, fit_tail(scores))
    p = [judge.p_value(s) for s in np.linspace(0, 4 * scores.max(), 500)]
    assert p == sorted(p, reverse=True)
    assert p[0] == 1.0
    assert 0 < p[-1] < 1e-4
    assert judge.p_value(float(scores.max())) == 2 / 201
    no_tail = Calibrated(scores)
    assert no_tail.p_value(1e9) == 1 / 201


def test_conformal_p_values_of_good_pictures_are_uniform() -> None:
    rng = np.random.default_rng(5)
    p = [Calibrated(s[:-1]).p_value(s[-1]) for s in rng.normal(size=(4000, 20))]
    for level in (0.05, 0.2, 0.5, 0.9):
        assert np.mean(np.array(p) <= level) == pytest.approx(level, abs=0.03)


@pytest.mark.parametrize("shape", [0.0, 0.2, 0.5])
def test_a_tail_s_quantile_and_survival_are_inverse(shape: float) -> None:
    tail = GpdTail(start=0.3, weight=0.1, scale=0.2, shape=shape, exceedances=20)
    for rate in (0.09, 1e-2, 1e-4, 1e-7):
        assert tail.survival(tail.quantile(rate)) == pytest.approx(rate, rel=1e-6)
    assert tail.survival(math.exp(0.3)) == pytest.approx(0.1)


def test_moments_find_the_exponential_tail() -> None:
    rng = np.random.default_rng(6)
    tail = fit_tail(np.exp(rng.exponential(0.5, size=20_000)))
    assert tail is not None
    assert tail.shape == pytest.approx(0, abs=0.05)
    assert tail.scale == pytest.approx(0.5, abs=0.03)


def test_few_and_equal_scores() -> None:
    with pytest.raises(DataError, match="too few"):
        threshold_for(np.array([1.0, 2.0]), 0.1)
    for bad in (0.0, 1.0, -1.0, float("nan")):
        with pytest.raises(DataError, match="between 0 and 1"):
            threshold_for(np.arange(1.0, 9.0), bad)
    equal = threshold_for(np.full(10, 2.0), 1e-3)
    assert (equal.value, equal.extrapolated, equal.tail) == (2.0, True, None)
    assert threshold_for(np.array([1.0, 2.0, 3.0]), 1e-3).value >= 3.0
    with pytest.raises(HeadError, match="missing or not finite"):
        Calibrated([])


def test_folds_partition_and_clamp_to_leave_one_out() -> None:
    parts = folds_of(23, 10, 0)
    assert sorted(np.concatenate(parts).tolist()) == list(range(23))
    assert len(parts) == 10
    assert [part.tolist() for part in parts] == [part.tolist() for part in folds_of(23, 10, 0)]
    assert [len(part) for part in folds_of(4, 10, 0)] == [1, 1, 1, 1]


def test_the_promise_names_what_holds_and_what_does_not() -> None:
    assert "extrapolated, not promised" in promise(209, 1e-3, False, "folds")
    assert "999 would" in promise(209, 1e-3, False, "folds")
    assert "no exact guarantee" in promise(2000, 1e-3, False, "folds")
    assert "at most 1/1000" in promise(999, 1e-3, True, "holdout")
    assert "1/210" in promise(209, 1e-3, True, "holdout")
    assert alarms_per_hour(1 / 1000, 30) == pytest.approx(108)
