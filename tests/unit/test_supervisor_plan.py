"""Which stages a change of the line file touches: no more than it must."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edge.config import parse_line
from edge.supervisor import plan as plans
from edge.supervisor.plan import CORE, Model, Plan, capture_name, compare, make_plan

BASE: dict[str, Any] = {
    "line": {"bundle": "one"},
    "camera": [
        {"name": "a", "source": {"kind": "synthetic"}},
        {"name": "b", "source": {"kind": "folder", "path": "/p"}},
    ],
}
ONE = Model("one", "id-1", "fre", "graph", "f32", (("layer3", 8, 16, 16),), (64, 64), (64, 64), 1.0, 0.001)


@pytest.fixture(autouse=True)
def models(monkeypatch: pytest.MonkeyPatch) -> dict[str, Model]:
    """Bundles by the last part of their path; no bundle is read."""
    known = {
        "one": ONE,
        "refitted": replace(ONE, bundle="refitted", identity="id-2"),
        "larger": replace(ONE, bundle="larger", identity="id-3", size=(128, 128), map_size=(256, 192)),
    }
    monkeypatch.setattr(plans, "read_model", lambda path: known[path.name])
    return known


class Index:
    """Camera rows as the ledger gives them: for ever."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def __call__(self, name: str) -> int:
        if name not in self.names:
            self.names.append(name)
        return self.names.index(name)


def plan_of(data: dict[str, Any], index: Index) -> Plan:
    return make_plan(parse_line(data, Path("/l/line.toml")), Path("/state"), index)


def change(**changes: Any) -> Any:
    """What a reload from BASE to BASE with changes does; ``a``, ``b`` change that camera."""
    data = copy.deepcopy(BASE)
    for key, value in changes.items():
        if key in ("a", "b"):
            data["camera"]["ab".index(key)].update(value)
        else:
            data[key] = value
    index = Index()
    return compare(plan_of(BASE, index), plan_of(data, index))


def test_nothing_changed_touches_nothing() -> None:
    found = change()
    assert found.stop == found.start == ()
    assert not found.new_pools
    assert not found.touches_core


@pytest.mark.parametrize(
    ("changes", "touched"),
    [
        ({"b": {"source": {"kind": "folder", "path": "/other"}}}, {"capture-b"}),
        ({"a": {"policy": "every"}}, {"capture-a"}),
        ({"pipeline": {"queue": 3}}, {"capture-a", "capture-b"}),
        ({"pipeline": {"heartbeat_s": 3.0, "grace_s": 1.0, "frame_timeout_s": 9.0}}, set()),
        ({"pipeline": {"batch_wait_ms": 5.0}}, {"backbone"}),
        ({"engine": {"threads": 2}}, {"backbone"}),
        ({"alerts": {"n": 2, "m": 3}}, {"alert"}),
        ({"store": {"max_pictures": 5}}, {"alert"}),
        ({"a": {"roi": [0, 0, 9, 9]}}, {"preprocess", "alert"}),
        ({"line": {"bundle": "refitted"}}, {"backbone", "head", "alert"}),
        ({"a": {"bundle": "refitted"}}, {"backbone", "head", "alert"}),
    ],
)
def test_only_what_a_change_touches(changes: dict[str, Any], touched: set[str]) -> None:
    found = change(**changes)
    assert set(found.stop) == set(found.start) == touched
    assert not found.new_pools
    assert found.touches_core == bool(touched & set(CORE))


def test_another_input_size_is_new_pools_and_every_core_stage_anew() -> None:
    found = change(line={"bundle": "larger"})
    assert found.new_pools
    assert set(found.stop) == set(found.start) == set(CORE)


def test_more_slots_between_the_stages_are_new_pools() -> None:
    found = change(pipeline={"stage_slots": 9})
    assert found.new_pools
    assert set(CORE) <= set(found.stop)


def test_cameras_that_come_and_go() -> None:
    added = change(camera=[*BASE["camera"], {"name": "c", "source": {"kind": "synthetic"}}])
    assert "capture-c" in added.start
    assert "capture-c" not in added.stop
    assert {"capture-a", "capture-b"}.isdisjoint((*added.stop, *added.start))
    removed = change(camera=BASE["camera"][:1])
    assert "capture-b" in removed.stop
    assert "capture-b" not in removed.start


def test_the_order_of_the_cameras_touches_nothing() -> None:
    """A camera keeps its row in the ledger, so only where it stands in the file has changed."""
    assert not change(camera=BASE["camera"][::-1]).touches_core


def test_the_credentials_of_a_camera_reach_its_capture_stage_and_no_other() -> None:
    url = "rtsp://op:geheim4711@10.0.0.1/x"
    data = copy.deepcopy(BASE)
    data["camera"][0]["source"] = {"kind": "rtsp", "url": url}
    plan = plan_of(data, Index())
    assert plan.stages[capture_name("a")]["source"]["url"] == url
    others = {name: spec for name, spec in plan.stages.items() if name != capture_name("a")}
    assert "geheim4711" not in str(others)


def test_pools_are_large_enough_for_the_largest_bundle() -> None:
    data = copy.deepcopy(BASE)
    data["camera"][1]["bundle"] = "larger"
    plan = plan_of(data, Index())
    assert plan.pools.input_bytes == 128 * 128 * 3
    assert plan.pools.map_bytes == 256 * 192 * 4
    assert plan.pools.feature_bytes >= 8 * 16 * 16 * 4
    assert [model.bundle for model in plan.models] == ["one", "larger"]
