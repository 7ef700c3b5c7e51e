"""The supervisor's pools: who gets which, and when a pool may go."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from edge.errors import ResourceError
from edge.supervisor.plan import CORE, PoolPlan
from edge.supervisor.pools import Pools
from edge.wire.pool import SlotPool

PLAN = PoolPlan(slots=2, input_bytes=100, feature_bytes=200, map_bytes=300)


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture
def live() -> set[int]:
    """Tickets of frames that are open."""
    return set()


@pytest.fixture
def pools(live: set[int]) -> Iterator[Pools]:
    made = Pools(live.__contains__)
    made.make_core(PLAN)
    yield made
    made.close()


def test_every_stage_gets_what_it_reads_and_writes(pools: Pools) -> None:
    camera = pools.make_frames("capture-a", 3, 10, 10)
    roles = {stage: [role for role, _ in pools.for_stage(stage)] for stage in CORE}
    assert roles == {
        "preprocess": ["input", "frame"],
        "backbone": ["input", "features"],
        "head": ["features", "map"],
        "alert": ["map", "frame"],
    }
    assert dict(pools.for_stage("alert"))["frame"] is camera
    assert list(pools.for_stage("capture-a")) == []  # it asks for one once it knows its size
    ids = [pool.id for pool in (*pools.core.values(), camera)]
    assert len(set(ids)) == len(ids)


def test_a_pool_goes_when_its_last_frame_is_closed(pools: Pools, live: set[int]) -> None:
    old = pools.make_frames("capture-a", 2, 10, 10)
    old.commit(old.loan(0, ticket=7), 0, 0, 0, 300)
    live.add(7)
    new = pools.make_frames("capture-a", 2, 20, 20)
    assert new.id != old.id
    assert pools.retire() == []  # somebody may still read frame 7
    live.remove(7)
    assert pools.retire() == [old.id]
    assert pools.retire() == []
    assert pools.frames == {"capture-a": new}


def test_new_core_pools_retire_the_old_ones(pools: Pools) -> None:
    before = {pool.id for pool in pools.core.values()}
    pools.make_core(PoolPlan(slots=3, input_bytes=1, feature_bytes=1, map_bytes=1))
    assert set(pools.retire()) == before
    assert before.isdisjoint(pool.id for pool in pools.core.values())


def test_what_cannot_be_made_leaves_the_old_pools_and_nothing_behind(
    pools: Pools, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, count = dict(pools.core), descriptors()
    create = SlotPool.create

    def fails_at_last(pool_id: int, slots: int, slot_bytes: int, name: str) -> SlotPool:
        if name == "map":
            raise ResourceError("no memory")
        return create(pool_id, slots, slot_bytes, name)

    monkeypatch.setattr(SlotPool, "create", fails_at_last)
    with pytest.raises(ResourceError):
        pools.make_core(PLAN)
    assert pools.core == before
    assert descriptors() == count


def test_sizes_come_and_go_without_a_descriptor_left(live: set[int]) -> None:
    count = descriptors()
    pools = Pools(live.__contains__)
    pools.make_core(PLAN)
    for side in range(10, 40):
        pools.make_frames("capture-a", 2, side, side)
        pools.retire()
    pools.drop_frames("capture-a")
    pools.drop_frames("capture-a")  # harmless
    pools.retire()
    assert pools.frames == {}
    pools.close()
    assert descriptors() == count


def test_occupancy(pools: Pools, live: set[int]) -> None:
    pool = pools.core["input"]
    pool.commit(pool.loan(0, ticket=3), 0, 0, 0, 100)
    live.add(3)
    assert pools.occupancy() == {"input": (1, 2), "features": (0, 2), "map": (0, 2)}
