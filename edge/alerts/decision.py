"""From verdicts to alerts: n of m, hysteresis, cooldown. Pure: no clock, socket or file inside.

An *episode* runs from the raise to the clear and has one alert. It opens on an anomalous frame when at least ``n``
of the last ``m`` inspected frames of that camera were anomalous, and closes after ``clear_after`` inspected frames
in a row that count as normal again; the window then starts empty. With ``each = "frame"`` there are no episodes:
every anomalous frame outside the cooldown raises. A frame that was not inspected neither confirms nor clears: it
leaves the state untouched. Every doubt about clocks is decided in favour of raising.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from edge.alerts.config import MAX_WINDOW, AlertPolicy

Verdict = Literal["normal", "anomalous", "not_inspected"]

SAVE_EVERY_S = 60.0
"""Save the state of a camera at every Raise and Clear, and this often while an episode is open (well under
the smallest sensible ``lapse_s``): a saved state that looks older than ``lapse_s`` no longer holds back an
alert."""

REORDERED_NS = 5_000_000_000


@dataclass(frozen=True, slots=True)
class Observation:
    """One frame's verdict. ``mono_ns`` and ``wall_ns``: when it was captured, on the monotonic and the wall
    clock. ``p_value`` is None for a frame that was not inspected."""

    verdict: Verdict
    p_value: float | None
    mono_ns: int
    wall_ns: int


@dataclass(frozen=True, slots=True)
class DecisionState:
    """What a camera's decision remembers. ``window``: the last inspected frames, True where anomalous,
    oldest first. ``calm``: normal frames in a row within the open episode. Times are those of the frame: of
    the last raise (None: never) and of the last inspected frame (None: none yet)."""

    window: tuple[bool, ...] = ()
    raised: bool = False
    calm: int = 0
    raised_at: tuple[int, int] | None = None  # (mono_ns, wall_ns)
    seen_at: tuple[int, int] | None = None

    def to_map(self) -> dict[str, Any]:
        """A map of msgpack types; :meth:`from_map` gives the equal state back."""
        return {
            "v": 1,
            "window": list(self.window),
            "raised": self.raised,
            "calm": self.calm,
            "raised_at": None if self.raised_at is None else list(self.raised_at),
            "seen_at": None if self.seen_at is None else list(self.seen_at),
        }

    @classmethod
    def from_map(cls, saved: object) -> DecisionState:
        """Raises ValueError for anything that :meth:`to_map` cannot have written."""
        if not isinstance(saved, Mapping) or saved.get("v") != 1:
            raise ValueError("a decision state of an unknown version")
        window, raised, calm = saved.get("window"), saved.get("raised"), saved.get("calm")
        if not isinstance(window, (list, tuple)) or len(window) > MAX_WINDOW:
            raise ValueError("a decision state whose window is not a list of bounded length")
        if not all(isinstance(item, bool) for item in (*window, raised)):
            raise ValueError("a decision state whose flags are not boolean")
        if not isinstance(calm, int) or isinstance(calm, bool) or calm < 0:
            raise ValueError("a decision state whose count is not a natural number")
        return cls(tuple(window), bool(raised), calm, _stamp(saved.get("raised_at")), _stamp(saved.get("seen_at")))


@dataclass(frozen=True, slots=True)
class Raise:
    """Raise an alert on this frame. ``anomalous`` of the last ``inspected`` frames confirmed it.
    ``repeat``: the episode was already open and ``repeat_s`` has passed. ``lapsed``: an earlier episode was
    forgotten unseen."""

    anomalous: int
    inspected: int
    repeat: bool = False
    lapsed: bool = False


@dataclass(frozen=True, slots=True)
class Clear:
    """The episode ends with this frame."""


@dataclass(frozen=True, slots=True)
class Hold:
    """Nothing to tell. ``why``: the frame is normal, not yet confirmed by n of m, within an open episode,
    held back by the cooldown, or was not inspected."""

    why: Literal["normal", "confirming", "episode", "cooldown", "not_inspected"]


Action = Raise | Clear | Hold


def decide(policy: AlertPolicy, state: DecisionState, seen: Observation) -> tuple[DecisionState, Action]:
    """The next state of a camera and what to do, after one frame; frames come in the order of their
    capture."""
    if seen.verdict == "not_inspected":
        return state, Hold("not_inspected")
    now = (seen.mono_ns, seen.wall_ns)
    lapsed = False
    if state.seen_at is not None and _seconds_since(state.seen_at, now) > policy.lapse_s:
        lapsed = state.raised
        state = DecisionState(raised_at=state.raised_at)
    anomalous = seen.verdict == "anomalous"
    window = (*state.window, anomalous)[-policy.m :]
    state = replace(state, window=window, seen_at=now)
    if state.raised and policy.each == "episode":
        return _within_episode(policy, state, seen, now)
    if not anomalous:
        return state, Hold("normal")
    if sum(window) < policy.n:
        return state, Hold("confirming")
    if state.raised_at is not None and _seconds_since(state.raised_at, now) < policy.cooldown_s:
        return state, Hold("cooldown")
    opened = replace(state, raised=policy.each == "episode", calm=0, raised_at=now)
    return opened, Raise(sum(window), len(window), lapsed=lapsed)


def _within_episode(
    policy: AlertPolicy, state: DecisionState, seen: Observation, now: tuple[int, int]
) -> tuple[DecisionState, Action]:
    if seen.verdict == "anomalous":
        state = replace(state, calm=0)
        since = 0.0 if state.raised_at is None else _seconds_since(state.raised_at, now)
        if policy.repeat_s is not None and since >= max(policy.repeat_s, policy.cooldown_s):
            again = Raise(sum(state.window), len(state.window), repeat=True)
            return replace(state, raised_at=now), again
        return state, Hold("episode")
    released = policy.release_p is None or (seen.p_value is not None and seen.p_value > policy.release_p)
    state = replace(state, calm=state.calm + 1 if released else 0)
    if state.calm < policy.clear_after:
        return state, Hold("episode")
    # The window starts afresh: with n = 2 of m = 10 the frames of this episode would otherwise raise the
    # next one.
    return replace(state, raised=False, calm=0, window=()), Clear()


def _seconds_since(then: tuple[int, int], now: tuple[int, int]) -> float:
    """The longer of what the two clocks say; endless if the monotonic clock ran backwards (a reboot).

    The wall clock alone may be set back by hours and the monotonic one restarts at boot: a cooldown that is
    too short costs one alert more, one that is too long hides a defect. A few seconds backwards are two
    frames that changed places, not a reboot.
    """
    if now[0] < then[0] - REORDERED_NS:
        return float("inf")
    return max(now[0] - then[0], now[1] - then[1], 0) / 1e9


def _stamp(saved: object) -> tuple[int, int] | None:
    if saved is None:
        return None
    if (
        isinstance(saved, (list, tuple))
        and len(saved) == 2
        and all(isinstance(item, int) and not isinstance(item, bool) for item in saved)
    ):
        return int(saved[0]), int(saved[1])
    raise ValueError("a decision state whose time is not a pair of integers")
