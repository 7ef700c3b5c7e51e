"""Order statistics of rounds, and the mark of distrust, on recorded samples."""

from __future__ import annotations

import math

import pytest

from edge.bench.spread import FEWEST, UNSTABLE_OVER, Spread, ratios, spread, unstable

# Frames a second of the same loop: on a machine that did nothing else, and on one that compiled something meanwhile.
QUIET = [46.1, 46.5, 46.3, 46.4, 45.9, 46.6, 46.2]
BUSY = [46.2, 31.0, 44.8, 27.5, 45.9, 36.7, 40.1]


def test_order_statistics() -> None:
    figure = spread([4.0, 1.0, 2.0, 3.0, 5.0])
    assert figure == Spread(samples=5, min=1.0, median=3.0, max=5.0, iqr=2.0)
    assert figure.relative == pytest.approx(2 / 3)


def test_median_of_an_even_number_lies_between() -> None:
    assert spread([1.0, 2.0, 3.0, 10.0]).median == 2.5


@pytest.mark.parametrize("samples", [[], [1.0, math.nan], [math.inf]])
def test_nothing_to_say_about_no_or_broken_samples(samples: list[float]) -> None:
    with pytest.raises(ValueError):
        spread(samples)


def test_a_quiet_machine_is_stable_and_a_busy_one_is_not() -> None:
    assert not spread(QUIET).unstable
    assert spread(BUSY).unstable


def test_one_outlier_does_not_make_a_figure_unstable() -> None:
    assert not spread([*QUIET, 12.0]).unstable


def test_the_limit_itself_is_allowed() -> None:
    at_limit = Spread(samples=5, min=0.0, median=100.0, max=200.0, iqr=100 * UNSTABLE_OVER)
    assert not at_limit.unstable
    assert Spread(samples=5, min=0.0, median=100.0, max=200.0, iqr=100 * UNSTABLE_OVER + 0.1).unstable


def test_few_rounds_are_never_stable() -> None:
    assert spread([46.0] * (FEWEST - 1)).unstable
    assert not spread([46.0] * FEWEST).unstable


def test_a_median_of_zero() -> None:
    assert spread([0.0, 0.0, 0.0]).relative == 0.0
    assert spread([-1.0, 0.0, 1.0]).relative == math.inf


def test_sentences_name_the_figure_and_the_limit() -> None:
    told = unstable({"quiet": spread(QUIET), "busy": spread(BUSY), "short": spread([1.0])})
    assert len(told) == 2
    assert told[0].startswith("busy: ")
    assert "limit 10 %" in told[0]
    assert told[1] == "short: 1 rounds are too few; take at least 3"


def test_ratios_go_round_by_round() -> None:
    # Both sides of the second round met the same disturbance: its ratio is that of the others.
    assert ratios([90.0, 45.0], [100.0, 50.0]) == [0.9, 0.9]
    with pytest.raises(ValueError):
        ratios([1.0], [1.0, 2.0])


def test_json_carries_the_mark() -> None:
    body = spread(BUSY).as_json()
    assert body["unstable"] is True
    assert body["samples"] == len(BUSY)
    assert body["min"] == min(BUSY)
