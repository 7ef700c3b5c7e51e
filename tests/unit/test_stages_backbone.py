"""Batches: up to a size and a deadline, fair across cameras, never two models in one."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edge.stages.backbone import Pending
from edge.wire.descriptor import Descriptor
from edge.wire.pool import SlotRef


def frame(camera: int, seq: int) -> Descriptor:
    return Descriptor(seq + 1, camera, seq, 0, 0, 8, 8, SlotRef(1, 0, 2), SlotRef(2, 0, 2))


def pending(*frames: tuple[float, int, int, int]) -> Pending:
    """From (arrival, model, camera, seq)."""
    made = Pending()
    for arrival, model, camera, seq in frames:
        made.add(model, frame(camera, seq), arrival)
    return made


def names(taken: list[Descriptor]) -> list[tuple[int, int]]:
    return [(descriptor.camera, descriptor.seq) for descriptor in taken]


def test_one_camera_never_fills_a_batch_while_another_waits() -> None:
    made = pending((0, 0, 1, 0), (1, 0, 1, 1), (2, 0, 1, 2), (3, 0, 1, 3), (4, 0, 2, 0), (5, 0, 3, 0))
    assert names(made.take(0, 4)) == [(1, 0), (2, 0), (3, 0), (1, 1)]
    assert names(made.take(0, 4)) == [(1, 2), (1, 3)]
    assert len(made) == 0
    assert made.oldest() is None


def test_turns_go_on_from_batch_to_batch() -> None:
    made = pending(*((0.0, 0, camera, seq) for camera in range(3) for seq in range(2)))
    assert [names(made.take(0, 2)) for _ in range(3)] == [[(0, 0), (1, 0)], [(2, 0), (0, 1)], [(1, 1), (2, 1)]]


def test_a_batch_is_due_when_it_is_full_or_its_first_frame_has_waited() -> None:
    made = Pending()
    assert made.due(0.0, 2, 0.01) is None
    made.add(0, frame(1, 0), now=5.0)
    assert made.due(5.009, 2, 0.01) is None
    assert made.due(5.011, 2, 0.01) == 0
    made.add(0, frame(2, 0), now=5.001)
    assert made.due(5.002, 2, 0.01) == 0


def test_without_a_wait_every_frame_is_due_at_once() -> None:
    assert pending((5.0, 3, 1, 0)).due(5.0, 4, 0.0) == 3


def test_models_do_not_mix_and_the_oldest_goes_first() -> None:
    made = pending((2.0, 1, 5, 0), (1.0, 0, 4, 0), (3.0, 1, 6, 0))
    assert made.oldest() == (1.0, 0)
    assert made.due(10.0, 4, 0.5) == 0
    assert names(made.take(0, 4)) == [(4, 0)]
    assert names(made.take(1, 4)) == [(5, 0), (6, 0)]


def test_a_full_batch_of_one_model_does_not_wait_for_the_oldest_of_another() -> None:
    made = pending((1.0, 0, 4, 0), (1.1, 1, 5, 0), (1.1, 1, 6, 0))
    assert made.due(1.2, 2, 10.0) == 1


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 3)), max_size=40), st.integers(1, 5))
def test_every_frame_is_taken_once_in_its_cameras_order(arrivals: list[tuple[int, int]], limit: int) -> None:
    made, seqs = Pending(), [0] * 4
    for now, (model, camera) in enumerate(arrivals):
        made.add(model, frame(camera, seqs[camera]), float(now))
        seqs[camera] += 1
    assert len(made) == len(arrivals)
    taken: dict[int, list[tuple[int, int]]] = {0: [], 1: []}
    while (due := made.due(1e9, limit, 0.0)) is not None:
        waiting = {key for key, queue in made._queues.items() if key[0] == due and queue}
        batch = names(made.take(due, limit))
        assert 0 < len(batch) <= limit
        assert len({camera for camera, _ in batch}) == min(limit, len(waiting))  # fair: as many cameras as there are
        taken[due] += batch
    assert len(made) == 0
    for model in (0, 1):
        for camera in range(4):
            order = [seq for c, seq in taken[model] if c == camera]
            assert order == sorted(order)
    assert sorted(taken[0] + taken[1]) == sorted((c, s) for c in range(4) for s in range(seqs[c]))
