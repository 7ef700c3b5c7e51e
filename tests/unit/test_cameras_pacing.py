"""Pacing and back-off, with a clock that the test holds."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.cameras.backoff import Backoff
from edge.cameras.pacing import Pacer


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert seconds >= 0
        self.now += seconds


def test_without_a_rate_every_frame_passes_at_once() -> None:
    clock = Clock()
    pacer = Pacer(None, clock, clock.sleep)
    assert all(pacer.wait(0) for _ in range(100))
    assert clock.now == 100.0


def test_the_rate_is_kept() -> None:
    clock = Clock()
    pacer = Pacer(25, clock, clock.sleep)
    passed = [clock.now for _ in range(51) if pacer.wait(1.0)]
    assert len(passed) == 51
    assert passed[-1] - passed[0] == pytest.approx(2.0)


def test_a_frame_that_is_not_due_in_time_waits_for_the_next_call() -> None:
    clock = Clock()
    pacer = Pacer(2, clock, clock.sleep)
    assert pacer.wait(0)
    assert [pacer.wait(0.2) for _ in range(3)] == [False, False, True]
    assert clock.now == pytest.approx(100.5)


def test_a_late_reader_gets_no_burst() -> None:
    clock = Clock()
    pacer = Pacer(10, clock, clock.sleep)
    assert pacer.wait(0)
    clock.now += 5.0
    passed = [clock.now for _ in range(10) if pacer.wait(1.0)]
    assert passed[0] == pytest.approx(105.0)
    assert min(b - a for a, b in itertools.pairwise(passed)) >= 0.0999


@given(st.lists(st.floats(0, 0.09), min_size=20, max_size=60))
def test_delays_below_a_period_do_not_lower_the_mean_rate(delays: list[float]) -> None:
    clock = Clock()
    pacer = Pacer(10, clock, clock.sleep)
    assert pacer.wait(0)
    for delay in delays:
        clock.now += delay
        assert pacer.wait(1.0)
    assert clock.now == pytest.approx(100 + 0.1 * len(delays), abs=0.1)


@given(
    st.floats(0.01, 10),
    st.floats(1, 5),
    st.floats(1, 20),
    st.floats(0, 0.9),
    st.integers(0, 2**32),
)
def test_backoff_grows_to_its_cap_within_its_jitter(
    first: float, factor: float, times: float, jitter: float, seed: int
) -> None:
    cap = first * times
    backoff = Backoff(first, factor, cap, jitter, seed)
    for attempt in range(12):
        plain = min(cap, first * factor**attempt)
        low, high = plain * (1 - jitter) * 0.999, min(cap, plain * (1 + jitter)) * 1.001
        assert low <= backoff.next_delay() <= high
    assert backoff.attempts == 12
    backoff.reset()
    assert backoff.attempts == 0
    assert backoff.next_delay() <= first * (1 + jitter)


def test_backoff_repeats_with_its_seed_and_differs_without() -> None:
    first, again, other = (Backoff(seed=s) for s in (1, 1, 2))
    one = [first.next_delay() for _ in range(5)]
    assert one == [again.next_delay() for _ in range(5)]
    assert one != [other.next_delay() for _ in range(5)]


@pytest.mark.parametrize("bad", [{"first_s": 0}, {"cap_s": 0.1}, {"factor": 0.5}, {"jitter": 1}])
def test_backoff_refuses_nonsense(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="need"):
        Backoff(**bad)  # type: ignore[arg-type]
