"""When to restart, when to give up, when silence means death: pure, so told in tables."""

from __future__ import annotations

import signal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.errors import Exit
from edge.supervisor.policy import (
    ABORT_GRACE_S,
    CANNOT_START,
    FIRST_RETRY_S,
    LONGEST_RETRY_S,
    RestartPolicy,
    answer_silence,
    describe_exit,
)


def test_the_first_crash_is_answered_at_once_and_the_next_ones_ever_later() -> None:
    policy = RestartPolicy(limit=20, window_s=1e6)
    delays = [policy.crashed(float(second)) for second in range(10)]
    assert delays == [0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0]


def test_more_crashes_than_the_limit_are_given_up() -> None:
    policy = RestartPolicy(limit=2, window_s=60)
    assert [policy.crashed(0), policy.crashed(1), policy.crashed(2)] == [0.0, FIRST_RETRY_S, None]


def test_a_limit_of_none_gives_up_at_the_first_crash() -> None:
    assert RestartPolicy(limit=0, window_s=60).crashed(0) is None


def test_crashes_outside_the_window_are_forgotten() -> None:
    policy = RestartPolicy(limit=2, window_s=60)
    assert policy.crashed(0) == 0.0
    assert policy.crashed(10) == 0.5
    assert policy.crashed(61) == 0.5  # the one at 0 is forgotten, the one at 10 is not
    assert policy.crashed(200) == 0.0


@given(st.lists(st.floats(0, 100), max_size=40), st.integers(0, 10), st.floats(1, 50))
def test_a_delay_is_always_bounded_and_giving_up_follows_the_limit(
    gaps: list[float], limit: int, window_s: float
) -> None:
    policy, now, times = RestartPolicy(limit, window_s), 0.0, []
    for gap in gaps:
        now += gap
        times.append(now)
        delay = policy.crashed(now)
        recent = sum(time >= now - window_s for time in times)
        assert (delay is None) == (recent > limit)
        assert delay is None or 0 <= delay <= LONGEST_RETRY_S


@pytest.mark.parametrize(
    ("silent_s", "aborted_s_ago", "answer"),
    [
        (0.0, None, "wait"),
        (9.9, None, "wait"),
        (10.1, None, "abort"),
        (11.0, 0.5, "wait"),
        (11.0, ABORT_GRACE_S + 0.1, "kill"),
        (0.0, ABORT_GRACE_S + 0.1, "kill"),  # it was aborted; a late beat does not save it
    ],
)
def test_silence(silent_s: float, aborted_s_ago: float | None, answer: str) -> None:
    now = 1000.0
    aborted_at = None if aborted_s_ago is None else now - aborted_s_ago
    assert answer_silence(now, now - silent_s, 10.0, aborted_at) == answer


def test_what_cannot_start_and_what_may_pass() -> None:
    assert {Exit.BAD_CONFIG, Exit.BAD_BUNDLE, Exit.NO_CAMERA} <= CANNOT_START
    assert not CANNOT_START & {Exit.OK, Exit.CRASHED, Exit.NO_RESOURCE}


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (0, "exit code 0 (OK)"),
        (4, "exit code 4 (BAD_BUNDLE)"),
        (77, "exit code 77 (unknown)"),
        (-signal.SIGSEGV, "SIGSEGV"),
        (-signal.SIGKILL, "SIGKILL (out of memory, perhaps)"),
        (-200, "signal 200"),
    ],
)
def test_an_exit_in_words(code: int, words: str) -> None:
    assert describe_exit(code) == words
