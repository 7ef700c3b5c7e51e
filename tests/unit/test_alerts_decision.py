"""The alert decision against a brute-force model, and its properties."""

from __future__ import annotations

from dataclasses import dataclass, field

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from edge.alerts.config import AlertPolicy, PublishSettings, StoreSettings, check_endpoint
from edge.alerts.decision import Clear, DecisionState, Hold, Observation, Raise, decide
from edge.errors import ConfigError

SECOND = 1_000_000_000


def seen(verdict: str, at_s: float = 0.0, p: float | None = 0.5) -> Observation:
    at = int(at_s * SECOND)
    return Observation(verdict, None if verdict == "not_inspected" else p, at, 10**18 + at)  # type: ignore[arg-type]


def run(policy: AlertPolicy, frames: list[Observation], state: DecisionState | None = None) -> list[object]:
    state, actions = state or DecisionState(), []
    for frame in frames:
        state, action = decide(policy, state, frame)
        actions.append(action)
    return actions


def names(policy: AlertPolicy, letters: str, p: float = 0.5) -> str:
    """One letter a frame: a(nomalous), n(ormal), '-' not inspected; answers R(aise), C(lear), '.' for Hold."""
    kinds = {"a": "anomalous", "n": "normal", "-": "not_inspected"}
    frames = [seen(kinds[letter], at / 30, p) for at, letter in enumerate(letters)]
    return "".join({Raise: "R", Clear: "C", Hold: "."}[type(action)] for action in run(policy, frames))


policies = st.builds(
    lambda m, n, clear, release, cooldown: AlertPolicy(
        n=min(n, m), m=m, clear_after=clear, release_p=release, cooldown_s=cooldown, lapse_s=86_400
    ),
    st.integers(1, 6),
    st.integers(1, 6),
    st.integers(1, 4),
    st.sampled_from([None, 0.2]),
    st.sampled_from([0.0, 2.5]),
)
frames_st = st.lists(
    st.tuples(st.sampled_from(["anomalous", "normal", "not_inspected"]), st.sampled_from([0.1, 0.2, 0.3])),
    max_size=60,
).map(lambda items: [seen(verdict, float(at), p) for at, (verdict, p) in enumerate(items)])


@dataclass
class Model:
    """The rules said again in the plainest way: the whole history since the last clear, no clever state."""

    policy: AlertPolicy
    history: list[Observation] = field(default_factory=list)
    episode: list[Observation] | None = None
    last_raise_s: float = -1e9

    def step(self, frame: Observation) -> str:
        policy = self.policy
        if frame.verdict == "not_inspected":
            return "hold"
        if self.episode is not None:
            self.episode.append(frame)
            tail = self.episode[-policy.clear_after :]
            if len(self.episode) >= policy.clear_after and all(
                item.verdict == "normal" and (policy.release_p is None or item.p_value > policy.release_p)
                for item in tail
            ):
                self.episode, self.history = None, []
                return "clear"
            return "hold"
        self.history.append(frame)
        window = self.history[-policy.m :]
        enough = sum(item.verdict == "anomalous" for item in window) >= policy.n
        now = frame.mono_ns / SECOND
        if frame.verdict == "anomalous" and enough and now - self.last_raise_s >= policy.cooldown_s:
            self.episode, self.last_raise_s = [], now
            return "raise"
        return "hold"


@given(policies, frames_st)
def test_agrees_with_the_brute_force_model(policy: AlertPolicy, frames: list[Observation]) -> None:
    model = Model(policy)
    expected = [model.step(frame) for frame in frames]
    assert [type(action).__name__.lower() for action in run(policy, frames)] == expected


@given(policies, frames_st)
def test_never_two_raises_without_a_clear(policy: AlertPolicy, frames: list[Observation]) -> None:
    told = [action for action in run(policy, frames) if not isinstance(action, Hold)]
    assert all(isinstance(action, Raise if at % 2 == 0 else Clear) for at, action in enumerate(told))


@given(policies, frames_st)
def test_frames_not_inspected_change_nothing(policy: AlertPolicy, frames: list[Observation]) -> None:
    state = DecisionState()
    for frame in frames:
        after, action = decide(policy, state, frame)
        if frame.verdict == "not_inspected":
            assert after == state
            assert action == Hold("not_inspected")
        state = after
    inspected = [frame for frame in frames if frame.verdict != "not_inspected"]
    told = [action for action in run(policy, frames) if action != Hold("not_inspected")]
    assert told == run(policy, inspected)


@given(policies, frames_st, st.integers(0, 60))
def test_state_survives_msgpack_at_any_point(policy: AlertPolicy, frames: list[Observation], cut: int) -> None:
    state = DecisionState()
    for frame in frames[:cut]:
        state, _ = decide(policy, state, frame)
    restored = DecisionState.from_map(msgpack.unpackb(msgpack.packb(state.to_map())))
    assert restored == state
    assert run(policy, frames[cut:], restored) == run(policy, frames[cut:], state)


@pytest.mark.parametrize(
    "saved",
    [None, [], {}, {"v": 2}, {"v": 1, "window": "ab", "raised": True, "calm": 0}]
    + [
        {**DecisionState().to_map(), **change}
        for change in (
            {"window": [1]},
            {"window": [True] * 1001},
            {"raised": 1},
            {"calm": -1},
            {"calm": True},
            {"raised_at": [1]},
            {"seen_at": [1, "x"]},
            {"seen_at": 5},
        )
    ],
)
def test_a_damaged_state_is_refused(saved: object) -> None:
    with pytest.raises(ValueError):
        DecisionState.from_map(saved)


@pytest.mark.parametrize(
    ("policy", "frames", "expected"),
    [
        (AlertPolicy(), "nanna", ".RC.R"),
        (AlertPolicy(n=2, m=3), "anan", "..RC"),
        (AlertPolicy(n=2, m=3), "annannaa", ".......R"),
        (AlertPolicy(n=2, m=2), "a-a", "..R"),
        (AlertPolicy(n=2, m=2), "a" + "-" * 50 + "a", "." * 51 + "R"),
        (AlertPolicy(clear_after=3), "annannna", "R.....CR"),
        (AlertPolicy(clear_after=2), "an-n", "R..C"),
        (AlertPolicy(n=2, m=5), "aannaa", ".RC..R"),
        (AlertPolicy(each="frame"), "aana-aan", "RR.R.RR."),
    ],
)
def test_sequences(policy: AlertPolicy, frames: str, expected: str) -> None:
    assert names(policy, frames) == expected


def test_release_p_keeps_a_hovering_score_in_its_episode() -> None:
    policy = AlertPolicy(release_p=0.05)
    assert names(policy, "an", p=0.05) == "R."
    assert names(policy, "an", p=0.051) == "RC"


def test_cooldown_delays_the_next_alert_but_does_not_swallow_it() -> None:
    policy = AlertPolicy(cooldown_s=10)
    frames = [seen("anomalous", 0), seen("normal", 1), seen("anomalous", 2), seen("anomalous", 9.9)]
    assert run(policy, frames)[2:] == [Hold("cooldown"), Hold("cooldown")]
    assert isinstance(run(policy, [*frames, seen("anomalous", 10)])[-1], Raise)
    # a normal frame after the cooldown is no reason for an alert
    assert run(policy, [*frames, seen("normal", 11)])[-1] == Hold("normal")


def test_each_frame_is_an_alert_of_its_own_outside_the_cooldown() -> None:
    policy = AlertPolicy(each="frame", cooldown_s=2)
    actions = run(policy, [seen("anomalous", at) for at in range(5)])
    assert [at for at, action in enumerate(actions) if isinstance(action, Raise)] == [0, 2, 4]
    with pytest.raises(ValidationError, match="knows no window"):
        AlertPolicy(each="frame", n=2, m=3)


def test_repeat_raises_again_within_an_episode() -> None:
    policy = AlertPolicy(repeat_s=5)
    actions = run(policy, [seen("anomalous", at) for at in range(11)])
    assert [at for at, action in enumerate(actions) if isinstance(action, Raise)] == [0, 5, 10]
    assert [action.repeat for action in actions if isinstance(action, Raise)] == [False, True, True]


def test_an_episode_is_forgotten_after_a_long_stop() -> None:
    policy = AlertPolicy(lapse_s=60)
    assert run(policy, [seen("anomalous", 0), seen("anomalous", 60)])[-1] == Hold("episode")
    late = run(policy, [seen("anomalous", 0), seen("anomalous", 60.1)])[-1]
    assert isinstance(late, Raise)
    assert late.lapsed
    # neither does an old frame confirm a new one
    assert run(AlertPolicy(n=2, m=2, lapse_s=60), [seen("anomalous", 0), seen("anomalous", 61)])[-1] == Hold(
        "confirming"
    )


def test_clocks_that_run_backwards_never_hold_back_an_alert_for_long() -> None:
    policy = AlertPolicy(cooldown_s=3600)
    day = 86_400 * SECOND
    raised = DecisionState(raised_at=(day, 10**18))
    rebooted = Observation("anomalous", 0.0, SECOND, 10**18 + SECOND)
    assert isinstance(decide(policy, raised, rebooted)[1], Raise)
    wall_set_back = Observation("anomalous", 0.0, day + 3600 * SECOND, 10**18 - day)
    assert isinstance(decide(policy, raised, wall_set_back)[1], Raise)
    swapped = Observation("anomalous", 0.0, day - SECOND, 10**18 - SECOND)
    assert decide(policy, raised, swapped)[1] == Hold("cooldown")


def test_a_policy_changed_on_reload_takes_the_old_state() -> None:
    state = DecisionState(window=(True,) * 10)
    after, action = decide(AlertPolicy(n=2, m=2), state, seen("anomalous"))
    assert after.window == (True, True)
    assert action == Raise(2, 2)


@pytest.mark.parametrize(
    "change",
    [
        {"n": 3, "m": 2},
        {"n": 0},
        {"m": 1001},
        {"clear_after": 0},
        {"release_p": 1.0},
        {"cooldown_s": -1},
        {"cooldown_s": float("nan")},
        {"repeat_s": 0.0},
        {"lapse_s": 0},
        {"picture": "some"},
        {"jpeg_quality": 0},
        {"unknown": 1},
    ],
)
def test_policy_bounds(change: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        AlertPolicy.model_validate(change)


@pytest.mark.parametrize("model", [AlertPolicy, StoreSettings, PublishSettings])
def test_every_key_is_described(model: type) -> None:
    assert all(item.description for item in model.model_fields.values())  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "endpoint",
    [
        "ipc:///run/edge/pub",
        "tcp://127.0.0.1:5555",
        "tcp://127.8.8.8:1",
        "tcp://[::1]:5555",
        "tcp://localhost:65535",
    ],
)
def test_local_endpoints_are_taken(endpoint: str) -> None:
    assert check_endpoint(endpoint) == endpoint


@pytest.mark.parametrize(
    ("endpoint", "word"),
    [
        ("tcp://0.0.0.0:5555", "CURVE"),
        ("tcp://*:5555", "CURVE"),
        ("tcp://192.168.1.2:5555", "CURVE"),
        ("tcp://[::]:5555", "CURVE"),
        ("tcp://example.com:5555", "CURVE"),
        ("tcp://eth0:5555", "CURVE"),
        ("tcp://127.0.0.1:0", "port"),
        ("tcp://127.0.0.1:70000", "port"),
        ("tcp://127.0.0.1", "not an endpoint"),
        ("tcp://127.0.0.1:5555 ", "not an endpoint"),
        ("tcp://127.0.0.1:*", "not an endpoint"),
        ("udp://127.0.0.1:5555", "not an endpoint"),
        ("inproc://x", "not an endpoint"),
        ("ipc://@name", "absolute"),
        ("ipc://relative", "absolute"),
        ("ipc:///" + "x" * 107, "107"),
        ("", "not an endpoint"),
    ],
)
def test_other_endpoints_are_refused(endpoint: str, word: str) -> None:
    with pytest.raises(ConfigError, match=word) as caught:
        check_endpoint(endpoint)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValidationError, match=word):
        PublishSettings(endpoint=endpoint)
