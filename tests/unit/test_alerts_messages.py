"""The public messages: round trip, pinned bytes, bounds, and hostile bytes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.alerts import replay
from edge.alerts.messages import (
    MAX_ID,
    MAX_MESSAGE_BYTES,
    Alert,
    CameraHealth,
    Health,
    MessageError,
    Region,
    StageHealth,
    Verdict,
    encode,
    explain,
    parse,
)

reals = st.floats(allow_nan=False, allow_infinity=False)
probabilities = st.floats(0, 1)
counts = st.integers(0, MAX_ID)
cameras = st.from_regex(r"\A[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}\Z")
epochs = st.from_regex(r"\A[A-Za-z0-9-]{1,36}\Z")
walls = st.integers(0, 2**63 - 1)
labels = st.text(max_size=128)
names = st.text(min_size=1, max_size=64)
pixels = st.integers(0, 1_000_000)

regions = st.builds(
    Region,
    x=pixels,
    y=pixels,
    w=st.integers(1, 1_000_000),
    h=st.integers(1, 1_000_000),
    area=st.floats(0, 1e12),
    peak=reals,
    peak_x=st.floats(0, 1e6),
    peak_y=st.floats(0, 1e6),
)
frame_keys: dict[str, Any] = {"camera": cameras, "seq": counts, "epoch": epochs, "captured_at": walls, "bundle": labels}
inspected = st.builds(
    Verdict,
    **frame_keys,
    verdict=st.sampled_from(["normal", "anomalous"]),
    score=reals,
    threshold=reals,
    p_value=probabilities,
    latency_ms=st.floats(0, 1e9),
    alerting=st.booleans(),
    name=labels,
    n=st.none() | counts,
)
not_inspected = st.builds(
    Verdict,
    **frame_keys,
    verdict=st.just("not_inspected"),
    latency_ms=st.floats(0, 1e9),
    reason=st.sampled_from(["stale", "no_slot", "decode", "timeout", "stage_restart", "shutdown", "error"]),
)
alerts = st.builds(
    Alert,
    **frame_keys,
    id=st.integers(1, MAX_ID),
    raised_at=walls,
    score=reals,
    threshold=reals,
    p_value=probabilities,
    parts=st.dictionaries(names, reals, max_size=16),
    regions=st.lists(regions, max_size=16).map(tuple),
    why=st.text(max_size=200),
    repeat=st.booleans(),
    engine=labels,
    picture=st.none() | st.text(max_size=200),
)
healths = st.builds(
    Health,
    at=walls,
    epoch=epochs,
    version=labels,
    status=st.sampled_from(["ok", "degraded", "stopping"]),
    problems=st.lists(st.text(max_size=50), max_size=4).map(tuple),
    uptime_s=st.floats(0, 1e10),
    cameras=st.dictionaries(
        cameras,
        st.builds(
            CameraHealth, captured=counts, scored=counts, not_inspected=st.dictionaries(names, counts, max_size=3)
        ),
        max_size=4,
    ),
    stages=st.dictionaries(names, st.builds(StageHealth, pid=st.integers(0, 2**31), restarts=counts), max_size=4),
    last_alert_id=counts,
)
messages = inspected | not_inspected | alerts | healths


def an_alert(**change: Any) -> Alert:
    keys: dict[str, Any] = {
        "id": 7,
        "camera": "cam1",
        "seq": 41,
        "epoch": "e0",
        "captured_at": 10,
        "raised_at": 20,
        "score": 3.5,
        "threshold": 2.0,
        "p_value": 0.001,
        "why": "score",
        **change,
    }
    return Alert(**keys)


@given(messages)
def test_round_trip(message: Verdict | Alert | Health) -> None:
    assert parse(*encode(message)) == message


def test_pinned_bytes() -> None:
    """What is on the wire is a promise: a change here is a new version of the schema."""
    verdict = Verdict(
        camera="cam1",
        seq=41,
        epoch="e0",
        verdict="normal",
        score=0.5,
        threshold=1.0,
        p_value=0.25,
        captured_at=10,
        latency_ms=2.0,
        n=3,
    )
    topic, data = encode(verdict)
    assert topic == b"verdict.cam1"
    assert msgpack.unpackb(data) == {
        "v": 1,
        "n": 3,
        "camera": "cam1",
        "seq": 41,
        "epoch": "e0",
        "verdict": "normal",
        "reason": None,
        "score": 0.5,
        "threshold": 1.0,
        "p_value": 0.25,
        "captured_at": 10,
        "latency_ms": 2.0,
        "alerting": False,
        "bundle": "",
        "name": "",
    }
    assert encode(an_alert())[0] == b"alert.cam1"
    assert set(msgpack.unpackb(encode(an_alert())[1])) == {
        "v",
        "n",
        "id",
        "camera",
        "seq",
        "epoch",
        "captured_at",
        "raised_at",
        "score",
        "threshold",
        "p_value",
        "parts",
        "regions",
        "why",
        "repeat",
        "bundle",
        "engine",
        "name",
        "picture",
    }


def packed(**change: Any) -> bytes:
    body = {**an_alert().to_map(), **change}
    return msgpack.packb({key: value for key, value in body.items() if value is not ...})


def test_unknown_keys_are_tolerated() -> None:
    assert parse(b"alert.cam1", packed(colour="blue", nested={"x": [1]})) == an_alert()


def test_missing_optional_keys_are_tolerated() -> None:
    assert parse(b"alert.cam1", packed(engine=..., picture=..., n=...)) == an_alert()


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"v": 2}, "version '2'"),
        ({"v": ...}, "version 'None'"),
        ({"v": True}, "version 'True'"),
        ({"id": 0}, "id"),
        ({"id": MAX_ID + 1}, "id"),
        ({"id": 7.0}, "id"),
        ({"id": "7"}, "id"),
        ({"id": ...}, "id"),
        ({"seq": -1}, "seq"),
        ({"seq": True}, "seq"),
        ({"score": float("nan")}, "score"),
        ({"score": float("inf")}, "score"),
        ({"score": None}, "score"),
        ({"p_value": 1.0001}, "p_value"),
        ({"p_value": -0.1}, "p_value"),
        ({"camera": "cam1/../x"}, "camera"),
        ({"camera": ""}, "camera"),
        ({"camera": "a" * 65}, "camera"),
        ({"camera": "cam1\n"}, "camera"),
        ({"camera": "cam2"}, "carries"),
        ({"epoch": "a b"}, "epoch"),
        ({"captured_at": 2**63}, "captured_at"),
        ({"why": "x" * 1001}, "why"),
        ({"parts": {"a": "b"}}, "parts"),
        ({"parts": {str(at): 1.0 for at in range(17)}}, "parts"),
        ({"parts": {"": 1.0}}, "parts"),
        ({"regions": [{"x": 1}]}, "regions"),
        ({"regions": {}}, "regions"),
        ({"picture": "x" * 4097}, "picture"),
        ({"picture": b"x"}, "picture"),
        ({"bundle": "x" * 129}, "bundle"),
        ({"repeat": 1}, "repeat"),
    ],
)
def test_bounds(change: dict[str, Any], word: str) -> None:
    with pytest.raises(MessageError, match=word) as caught:
        parse(b"alert.cam1", packed(**change))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_too_many_regions() -> None:
    region = Region(x=0, y=0, w=1, h=1, area=1, peak=1, peak_x=0, peak_y=0).to_map()
    assert len(parse(b"alert.cam1", packed(regions=[region] * 16)).regions) == 16  # type: ignore[union-attr]
    with pytest.raises(MessageError, match="regions"):
        parse(b"alert.cam1", packed(regions=[region] * 17))


def test_a_verdict_without_inspection_is_never_a_normal_one() -> None:
    frame = {"camera": "c", "seq": 1, "epoch": "e", "captured_at": 0, "latency_ms": 0.0, "v": 1}
    scored = {"score": 1.0, "threshold": 2.0, "p_value": 0.5}
    for body in (
        {"verdict": "normal"},
        {"verdict": "normal", "score": 1.0},
        {"verdict": "anomalous", **scored, "reason": "stale"},
        {"verdict": "not_inspected"},
        {"verdict": "not_inspected", "reason": "stale", **scored},
        {"verdict": "not_inspected", "reason": "lazy"},
        {"verdict": "fine", **scored},
    ):
        with pytest.raises(MessageError):
            parse(b"verdict.c", msgpack.packb({**frame, **body}))


def test_size_limit() -> None:
    with pytest.raises(MessageError, match="limit"):
        parse(b"health", b"\x80" + b"x" * MAX_MESSAGE_BYTES)
    with pytest.raises(MessageError, match="limit"):
        encode(
            Health(
                at=0,
                epoch="e",
                status="ok",
                uptime_s=0,
                stages={f"{at:03d}" + "s" * 60: StageHealth(pid=1, status="é" * 128) for at in range(400)},
            )
        )


ATTACKS = [
    b"",
    b"\xc1",
    b"\xdf\xff\xff\xff\xff",
    b"\xdd\xff\xff\xff\xff",
    b"\xdb\xff\xff\xff\xff",
    b"\x91" * 5000,
    b"\x81" * 5000,
    b"\x81\x01\x02",
    b"\x81\x81\x01\x02\x03",
    b"\x80\x80",
    b"\xd6\xff\x00\x00\x00\x01",
    b"\xc7\x0c\xff" + b"\xff" * 12,
    b"\x81\xa1v\xd7\xff" + b"\xff" * 8,
    b"\x81\xa2\xff\xfe\x01",
    b"\xc4\x01x",
    b"\x81\xc4\x01v\x01",
    b"\x81\xc0\x01",
    msgpack.packb({"v": 1}),
    msgpack.packb([1, 2]),
    msgpack.packb({"v": [1]}),
    msgpack.packb({"v": 1, "regions": [[[[]]]]}),
]


@pytest.mark.parametrize("data", ATTACKS, ids=range(len(ATTACKS)))
@pytest.mark.parametrize("topic", [b"verdict.c", b"alert.c", b"health"])
def test_attacks(topic: bytes, data: bytes) -> None:
    with pytest.raises(MessageError):
        parse(topic, data)
    with pytest.raises(MessageError):
        replay.parse_reply(data)


@pytest.mark.parametrize("topic", [b"", b"alert", b"alert.", b"alertx.cam1", b"\xff", b"alert.cam1.", b"health.x"])
def test_wrong_topics(topic: bytes) -> None:
    with pytest.raises(MessageError):
        parse(topic, packed())


topics = st.sampled_from([b"verdict.cam1", b"alert.cam1", b"health"]) | st.binary(max_size=80)
junk = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=8)
    | st.binary(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8) | st.integers(0, 9), inner, max_size=4)
    ),
    max_leaves=10,
)


def survives(topic: bytes, data: bytes) -> None:
    """Parses, or raises MessageError: any other exception fails the test."""
    for attempt in (lambda: parse(topic, data), lambda: replay.parse_reply(data)):
        try:
            attempt()
        except MessageError:
            pass


@given(topics, st.binary(max_size=300))
def test_any_bytes(topic: bytes, data: bytes) -> None:
    survives(topic, data)


@given(messages, st.data())
def test_bitten_messages(message: Verdict | Alert | Health, data: st.DataObject) -> None:
    topic, good = encode(message)
    at = data.draw(st.integers(0, len(good) - 1))
    survives(topic, good[:at] + data.draw(st.binary(max_size=4)) + good[at + data.draw(st.integers(0, 4)) :])


@given(st.data())
def test_any_value_in_any_field(data: st.DataObject) -> None:
    body = an_alert().to_map()
    body[data.draw(st.sampled_from(sorted(body)))] = data.draw(junk)
    survives(b"alert.cam1", msgpack.packb(body))


class Shelf:
    """An outbox of plain alerts."""

    def __init__(self, *ids: int, why: str = "x") -> None:
        self.alerts = [an_alert(id=number, why=why) for number in ids]

    def since(self, last: int, limit: int) -> list[Alert]:
        return [alert for alert in self.alerts if alert.id > last][:limit]

    def oldest_id(self) -> int:
        return self.alerts[0].id if self.alerts else 0

    def latest_id(self) -> int:
        return self.alerts[-1].id if self.alerts else 0


def asked(shelf: Shelf, since: int, limit: int = 500) -> replay.Reply:
    return replay.parse_reply(replay.answer(shelf, replay.Request(since, limit).pack()))


def test_replay_pages_through_everything_once() -> None:
    shelf, last, got = Shelf(*range(3, 1200)), 0, []
    while (reply := asked(shelf, last, 500)).alerts:
        got += [alert.id for alert in reply.alerts]
        last = got[-1]
        assert reply.more == (last < 1199)
        assert (reply.oldest, reply.latest) == (3, 1199)
    assert got == list(range(3, 1200))


def test_replay_answers_are_bounded_in_bytes() -> None:
    parts = {f"{at:064d}": 1.0 for at in range(16)}
    region = Region(x=1, y=1, w=1, h=1, area=1, peak=1, peak_x=1, peak_y=1)
    shelf = Shelf()
    shelf.alerts = [
        an_alert(id=at, parts=parts, regions=(region,) * 16, why="é" * 1000, picture="é" * 4096) for at in range(1, 501)
    ]
    data = replay.answer(shelf, replay.Request(0).pack())
    assert replay.MAX_REPLY_BYTES // 2 < len(data) <= replay.MAX_REPLY_BYTES
    assert replay.parse_reply(data).more


def test_limit_zero_asks_for_the_ids_alone() -> None:
    assert asked(Shelf(5, 6), MAX_ID, 0) == replay.Reply(MAX_ID, (), False, 5, 6)


@pytest.mark.parametrize(
    "request_",
    [
        b"",
        b"x" * 2000,
        *ATTACKS,
        msgpack.packb({"v": 1, "since": -1}),
        msgpack.packb({"v": 1, "since": "0"}),
        msgpack.packb({"v": 1, "since": 0, "limit": 501}),
        msgpack.packb({"v": 1, "since": True}),
        msgpack.packb({"v": 2, "since": 0}),
        msgpack.packb({"v": 1, "since": 2**64 - 1}),
    ],
    ids=repr,
)
def test_malformed_requests_get_an_error_map(request_: bytes) -> None:
    reply = msgpack.unpackb(replay.answer(Shelf(1), request_))
    assert set(reply) == {"v", "error"}
    assert len(reply["error"]) <= 500


@given(st.binary(max_size=200) | junk.map(msgpack.packb))
def test_any_request_gets_an_answer(request_: bytes) -> None:
    assert msgpack.unpackb(replay.answer(Shelf(1, 2), request_))["v"] == 1


def test_why_names_score_threshold_confirmation_and_place() -> None:
    region = Region(x=10, y=20, w=30, h=40, area=900, peak=5, peak_x=25.5, peak_y=40.2)
    assert explain(3.21, 1.8, 0.0004, 2, 3, (region, region)) == (
        "score 3.21 is over the threshold 1.8 (p-value 0.0004); 2 of the last 3 inspected frames anomalous;"
        " strongest at (26, 40) in a box of 30 x 40 pixels, 2 regions"
    )
    assert explain(3.21, 1.8, 0.0004) == "score 3.21 is over the threshold 1.8 (p-value 0.0004)"


def test_the_document_names_every_key_and_its_example_parses() -> None:
    text = (Path(__file__).resolve().parents[2] / "deploy" / "schema" / "README.md").read_text(encoding="utf-8")
    for title, model in (("verdict.<camera>", Verdict), ("alert.<camera>", Alert), ("health", Health)):
        section = re.split(r"\n##+ ", text.split(f"### `{title}`", 1)[1], maxsplit=1)[0]
        first_column = " ".join(line.split("|")[1] for line in section.splitlines() if line.startswith("| `"))
        documented = set(re.findall(r"`([a-z_]+)`", first_column))
        inner = set(Region.model_fields) if model is Alert else set()
        assert documented == set(model.model_fields) | inner
    for model in (CameraHealth, StageHealth):
        assert all(f"`{key}`" in text for key in model.model_fields)
    for key in replay.Reply.__dataclass_fields__:
        assert f"| `{key}` |" in text.split("## Replay", 1)[1]
    topic, _, body = text.rsplit("```", 2)[1].strip().partition("\n")
    alert = parse(topic.encode(), msgpack.packb(json.loads(body)))
    assert isinstance(alert, Alert)
    assert alert.why == explain(alert.score, alert.threshold, alert.p_value, regions=alert.regions)
