"""Slot pools: what is read is what was written, or it is refused."""

from __future__ import annotations

import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.errors import ResourceError
from edge.wire.pool import PAGE, SlotPool, SlotRef, StaleSlot


@pytest.fixture
def pool():
    made = SlotPool.create(7, slots=3, slot_bytes=1000, name="test")
    yield made
    made.close()


def attach(pool: SlotPool) -> SlotPool:
    return SlotPool.attach(os.dup(pool.fd), os.dup(pool.event_fd))


def write(pool: SlotPool, ticket: int, value: int, live=lambda _: True) -> SlotRef:
    slot = pool.free_slot(live)
    assert slot is not None
    pool.loan(slot, ticket)
    pool.array(slot, (1000,))[:] = value
    return pool.commit(slot, seq=ticket, mono_ns=1, wall_ns=2, nbytes=1000)


def test_a_consumer_reads_what_the_producer_wrote_without_a_copy(pool: SlotPool) -> None:
    reader = attach(pool)
    ref = write(pool, ticket=1, value=42)
    view = reader.view(ref, (1000,))
    assert (view == 42).all()
    assert not view.flags.writeable
    assert reader.stamps(ref) == (1, 1, 2)
    del view
    reader.close()


def test_the_pool_cannot_be_resized_and_has_no_name(pool: SlotPool) -> None:
    with pytest.raises(PermissionError):
        os.ftruncate(pool.fd, PAGE)
    with pytest.raises(PermissionError):
        os.ftruncate(pool.fd, 1 << 30)
    assert not [name for name in os.listdir("/dev/shm") if "edge" in name]


def test_an_overwritten_slot_is_refused_before_and_after_the_read(pool: SlotPool) -> None:
    ref = write(pool, 1, 1)
    view = pool.view(ref, (1000,))
    dead = lambda ticket: ticket != 1  # noqa: E731 - the frame of ticket 1 was closed meanwhile
    for ticket in (2, 3, 4):
        write(pool, ticket, ticket, dead)
    with pytest.raises(StaleSlot, match="holds generation 4, not 2"):
        pool.check(ref)
    with pytest.raises(StaleSlot):
        pool.view(ref, (1000,))
    assert view[0] != 1, "the very overwrite that check() must tell"


def test_a_slot_under_way_is_never_loaned_and_a_closed_frames_slot_is(pool: SlotPool) -> None:
    live = {1, 2, 3}
    for ticket in sorted(live):
        write(pool, ticket, ticket, live.__contains__)
    assert pool.free_slot(live.__contains__) is None
    assert pool.stats(live.__contains__).in_use == 3
    live.discard(2)
    assert pool.free_slot(live.__contains__) == 1
    assert pool.stats(live.__contains__).peak == 3


def test_a_slot_released_early_is_free_while_its_frame_goes_on(pool: SlotPool) -> None:
    refs = [write(pool, ticket, 0) for ticket in (1, 2, 3)]
    assert pool.free_slot(lambda _: True) is None
    reader = attach(pool)
    reader.release(refs[1])
    reader.release(refs[1])
    assert pool.free_slot(lambda _: True) == 1
    assert pool.drain_event(), "the producer is woken"
    again = write(pool, 4, 9)
    reader.release(refs[1])  # a late release of the old generation must not free the new frame's slot
    assert pool.free_slot(lambda _: True) is None
    assert (reader.view(again, (1000,)) == 9).all()
    reader.close()


def test_a_producer_that_died_while_writing_leaves_nothing_readable(pool: SlotPool) -> None:
    slot = pool.free_slot(lambda _: True)
    assert slot is not None
    pool.loan(slot, 1)  # odd generation, no commit: killed here
    for generation in range(4):
        with pytest.raises(StaleSlot):
            pool.view(SlotRef(7, slot, generation if generation != 0 else 1), (10,))
    ref = write(pool, 2, 5, live=lambda ticket: ticket != 1)
    assert ref.generation % 2 == 0
    assert (pool.view(ref, (1000,)) == 5).all()


@pytest.mark.parametrize(
    "ref", [SlotRef(8, 0, 2), SlotRef(7, 3, 2), SlotRef(7, -1, 2), SlotRef(7, 0, 1), SlotRef(7, 0, 4)]
)
def test_references_that_cannot_be_right_are_refused(pool: SlotPool, ref: SlotRef) -> None:
    write(pool, 1, 1)
    with pytest.raises(StaleSlot):
        pool.view(ref, (10,))


def test_what_does_not_fit_is_refused(pool: SlotPool) -> None:
    with pytest.raises(ValueError, match="does not fit"):
        pool.array(0, (1001,))
    with pytest.raises(ValueError, match="does not fit"):
        pool.array(0, (100,), np.float32, offset=700)
    with pytest.raises(ValueError, match="does not fit"):
        pool.array(3, (1,))
    with pytest.raises(ResourceError, match="over"):
        SlotPool.create(1, 1024, 1 << 40)
    fd = os.memfd_create("other")
    os.ftruncate(fd, PAGE)
    with pytest.raises(ResourceError, match="not a slot pool"):
        SlotPool.attach(fd, os.dup(fd))
    os.close(fd)


def test_a_pair_reads_any_two_slots_without_a_copy(pool: SlotPool) -> None:
    refs = [write(pool, ticket, ticket) for ticket in (1, 2, 3)]
    for first, second in ((0, 1), (0, 2), (2, 0)):
        pair = pool.pair(refs[first], refs[second], (10, 10))
        assert pair[0].base is not None
        assert (pair[0] == first + 1).all()
        assert (pair[1] == second + 1).all()
        assert not pair.flags.writeable
    assert pool.has_free(1, {1, 3}.__contains__)
    assert not pool.has_free(2, {1, 3}.__contains__)
    write(pool, 4, 4, {2, 3}.__contains__)
    with pytest.raises(StaleSlot):
        pool.pair(refs[1], refs[0], (10, 10))


def test_waiting_ends_with_a_release_or_with_the_time(pool: SlotPool) -> None:
    pool.wait_for_release(0.01)
    ref = write(pool, 1, 1)
    pool.release(ref)
    pool.wait_for_release(60)  # returns at once: the release is pending


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["write", "close", "release"]), st.integers(0, 5)), max_size=40))
def test_a_reference_reads_its_own_bytes_or_nothing(steps) -> None:
    pool = SlotPool.create(1, slots=2, slot_bytes=16)
    live: set[int] = set()
    refs: dict[int, SlotRef] = {}
    released: set[int] = set()
    try:
        for serial, (step, which) in enumerate(steps, start=1):
            known = sorted(refs)
            pick = known[which % len(known)] if known else None
            if step == "write" and pool.free_slot(live.__contains__) is not None:
                live.add(serial)
                slot = pool.loan(pool.free_slot(live.__contains__) or 0, serial)
                pool.array(slot, (16,))[:] = serial % 251
                refs[serial] = pool.commit(slot, serial, 0, 0, 16)
            elif step == "close" and pick is not None:
                live.discard(pick)
            elif step == "release" and pick is not None:
                pool.release(refs[pick])
                released.add(pick)
            for ticket, ref in refs.items():
                try:
                    value = pool.view(ref, (16,))
                except StaleSlot:
                    assert ticket not in live or ticket in released, "an open, unreleased frame lost its slot"
                else:
                    assert (value == ticket % 251).all()
                    del value
    finally:
        pool.close()
