"""The ledger: the balance holds after every operation, whoever dies in the middle."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.errors import ConfigError, ResourceError
from edge.wire.ledger import Ledger, LedgerBusy, Reason, Station

CAPTURE = Station.CAPTURE


@pytest.fixture
def ledger(tmp_path: Path):
    with_capacity = Ledger(tmp_path / "ledger", capacity=16)
    yield with_capacity
    with_capacity.close()


def open_one(ledger: Ledger, camera: int = 0, mono: int = 1) -> int:
    opened = ledger.open_frame(camera, mono, 2)
    assert opened is not None
    return opened[0]


def test_a_frame_ends_once_and_only_once(ledger: Ledger) -> None:
    camera = ledger.camera_index("a")
    ticket, seq = ledger.open_frame(camera, 10, 20) or (0, 0)
    assert seq == 0
    assert ledger.is_live(ticket)
    assert ledger.pass_on(ticket, CAPTURE + camera, Station.PREPROCESS)
    assert not ledger.pass_on(ticket, CAPTURE + camera, Station.HEAD), "it is not the sender's any more"
    assert ledger.accept(ticket, Station.PREPROCESS)
    assert ledger.score(ticket)
    assert not ledger.score(ticket)
    assert not ledger.drop(ticket, Reason.TIMEOUT)
    assert not ledger.is_live(ticket)
    counts = ledger.counts(camera)
    assert (counts.captured, counts.scored, counts.open) == (1, 1, 0)
    assert counts.balanced


def test_a_dropped_frame_waits_to_be_announced_and_its_row_is_not_used_before(ledger: Ledger) -> None:
    camera = ledger.camera_index("a")
    ticket = open_one(ledger, camera)
    assert ledger.drop(ticket, Reason.DECODE)
    (frame,) = ledger.unannounced()
    assert (frame.ticket, frame.reason, frame.seq) == (ticket, Reason.DECODE, 0)
    assert not ledger.is_live(ticket)
    for _ in range(15):
        assert ledger.open_frame(camera, 1, 1) is not None
    assert ledger.open_frame(camera, 1, 1) is None, "16 rows: 15 open, one waiting to be announced"
    counts = ledger.counts(camera)
    assert counts.not_inspected["no_slot"] == 1, "a frame that found no row is counted all the same"
    assert counts.balanced
    ledger.announced([ticket])
    assert ledger.unannounced() == []
    assert ledger.open_frame(camera, 1, 1) is not None


def test_tickets_are_never_used_twice(ledger: Ledger) -> None:
    camera = ledger.camera_index("a")
    seen = set()
    for _ in range(100):
        ticket = open_one(ledger, camera)
        assert ticket not in seen
        seen.add(ticket)
        ledger.score(ticket)


def test_the_dead_stages_frames_are_told_from_those_it_handed_over(ledger: Ledger) -> None:
    camera = ledger.camera_index("a")
    held, sent, taken = (open_one(ledger, camera) for _ in range(3))
    for ticket in (held, sent, taken):
        ledger.pass_on(ticket, CAPTURE + camera, Station.PREPROCESS)
        ledger.accept(ticket, Station.PREPROCESS)
    for ticket in (sent, taken):
        ledger.pass_on(ticket, Station.PREPROCESS, Station.BACKBONE)
    ledger.accept(taken, Station.BACKBONE)
    lost = ledger.drop_where(Reason.STAGE_RESTART, sender=Station.PREPROCESS)
    lost += ledger.drop_where(Reason.STAGE_RESTART, holder=Station.PREPROCESS)
    assert {frame.ticket for frame in lost} == {held, sent}
    assert not ledger.accept(sent, Station.BACKBONE), "its descriptor may still arrive; it must be refused"
    assert ledger.is_live(taken)


def test_the_oldest_waiting_frame_gives_way_but_never_an_accepted_one(ledger: Ledger) -> None:
    camera = ledger.camera_index("a")
    first, second = open_one(ledger, camera), open_one(ledger, camera)
    for ticket in (first, second):
        ledger.pass_on(ticket, CAPTURE + camera, Station.PREPROCESS)
    assert ledger.waiting(camera, Station.PREPROCESS) == 2
    ledger.accept(first, Station.PREPROCESS)
    assert ledger.waiting(camera, Station.PREPROCESS) == 1
    gone = ledger.drop_oldest_waiting(camera, Station.PREPROCESS)
    assert gone is not None
    assert gone.ticket == second
    assert ledger.drop_oldest_waiting(camera, Station.PREPROCESS) is None


def test_frames_older_than_the_limit_time_out(ledger: Ledger) -> None:
    camera = ledger.camera_index("a")
    old, young = open_one(ledger, camera, mono=100), open_one(ledger, camera, mono=200)
    assert [frame.ticket for frame in ledger.drop_where(Reason.TIMEOUT, older_than_ns=150)] == [old]
    assert ledger.is_live(young)


def test_counters_names_and_epoch_outlive_the_process(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    first = Ledger(path)
    epoch, camera = first.epoch, first.camera_index("press-3")
    first.score(open_one(first, camera))
    first.close()
    again = Ledger(path)
    assert again.epoch == epoch
    assert again.cameras() == ["press-3"]
    assert again.counts(again.camera_index("press-3")).scored == 1
    opened = again.open_frame(0, 1, 1)
    assert opened is not None
    assert opened[1] == 1, "seq goes on: (epoch, camera, seq) names a frame for good"
    again.close()


@pytest.mark.parametrize("content", [b"x" * 100, b"\0" * 4096, b"EDGELDG1" + b"\xff" * 200])
def test_a_file_that_is_no_ledger_is_refused_and_left_alone(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "ledger"
    path.write_bytes(content)
    with pytest.raises(ResourceError, match="not a ledger of this version"):
        Ledger(path)
    assert path.read_bytes() == content


def test_camera_names_are_bounded(ledger: Ledger) -> None:
    for index in range(64):
        assert ledger.camera_index(f"camera-{index}") == index
    with pytest.raises(ConfigError, match="already knows 64 cameras"):
        ledger.camera_index("one-more")
    for bad in ("", "x" * 65):
        with pytest.raises(ConfigError, match="1 to 64 bytes"):
            ledger.camera_index(bad)


operations = st.lists(
    st.tuples(
        st.sampled_from(["open", "pass", "accept", "score", "drop", "stale", "dead", "announce"]), st.integers(0, 7)
    ),
    max_size=60,
)


@settings(max_examples=150, deadline=None)
@given(operations)
def test_any_order_of_operations_keeps_the_balance(tmp_path_factory: pytest.TempPathFactory, steps) -> None:
    path = tmp_path_factory.mktemp("ledger") / "ledger"
    ledger = Ledger(path, capacity=8)
    try:
        camera = ledger.camera_index("a")
        tickets: list[int] = []
        opened = 0
        for step, which in steps:
            ticket = tickets[which % len(tickets)] if tickets else 0
            match step:
                case "open":
                    opened += 1
                    got = ledger.open_frame(camera, opened, 0)
                    if got is not None:
                        assert got[1] == opened - 1
                        tickets.append(got[0])
                case "pass":
                    ledger.pass_on(ticket, CAPTURE + camera, Station.PREPROCESS)
                case "accept":
                    ledger.accept(ticket, Station.PREPROCESS)
                case "score":
                    ledger.score(ticket)
                case "drop":
                    ledger.drop(ticket, Reason(1 + which % 7))
                case "stale":
                    ledger.drop_oldest_waiting(camera, Station.PREPROCESS)
                case "dead":
                    ledger.drop_where(Reason.STAGE_RESTART, holder=Station.PREPROCESS)
                case "announce":
                    ledger.announced([frame.ticket for frame in ledger.unannounced()])
            counts = ledger.counts(camera)
            assert counts.balanced
            assert counts.captured == opened
            assert counts.open == sum(map(ledger.is_live, tickets))
    finally:
        ledger.close()
        path.unlink()


CHURN = textwrap.dedent(
    """
    import sys
    from pathlib import Path
    from edge.wire.ledger import Ledger, Reason, Station
    ledger = Ledger(Path(sys.argv[1]))
    camera = ledger.camera_index("a")
    print("up", flush=True)
    while True:
        opened = ledger.open_frame(camera, 1, 1)
        if opened is None:
            ledger.announced([f.ticket for f in ledger.unannounced()])
            continue
        ledger.pass_on(opened[0], Station.CAPTURE, Station.PREPROCESS)
        ledger.accept(opened[0], Station.PREPROCESS)
        ledger.score(opened[0]) if opened[1] % 3 else ledger.drop(opened[0], Reason.ERROR)
    """
)


@pytest.mark.multiprocess
def test_sigkill_at_any_moment_leaves_a_balanced_ledger(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    ledger = Ledger(path, lock_timeout_s=5)
    camera = ledger.camera_index("a")
    rng = random.Random(7)
    before = 0
    for _ in range(12):
        children = [
            subprocess.Popen([sys.executable, "-c", CHURN, str(path)], stdout=subprocess.PIPE) for _ in range(2)
        ]
        try:
            for child in children:
                assert child.stdout is not None
                assert child.stdout.readline() == b"up\n"
            pause = rng.uniform(0.005, 0.03)
            until = time.monotonic() + pause
            while time.monotonic() < until:
                assert ledger.counts(camera).balanced
        finally:
            for child in children:
                child.send_signal(signal.SIGKILL)
                child.wait()
                assert child.stdout is not None
                child.stdout.close()
        counts = ledger.counts(camera)
        assert counts.balanced, counts
        assert counts.captured > before, "the children must have got somewhere, or nothing was tested"
        before = counts.captured
        ledger.drop_where(Reason.STAGE_RESTART)
        ledger.announced([frame.ticket for frame in ledger.unannounced()])
        assert ledger.counts(camera).open == 0
    assert ledger.repair() == []
    ledger.close()


def test_a_change_cut_off_after_its_journal_is_finished_by_the_next_holder(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger")
    camera = ledger.camera_index("a")
    ticket = open_one(ledger, camera)
    replay, ledger._replay = ledger._replay, lambda: None  # type: ignore[method-assign]
    ledger.score(ticket)  # journal written, no store done: as if killed in between
    ledger._replay = replay  # type: ignore[method-assign]
    assert ledger.is_live(ticket)
    other = Ledger(tmp_path / "ledger")
    counts = other.counts(camera)
    assert (counts.scored, counts.open) == (1, 0)
    assert counts.balanced
    other.close()
    ledger.close()


@pytest.mark.multiprocess
def test_a_lock_that_is_never_let_go_is_told_with_its_holder(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    ledger = Ledger(path, lock_timeout_s=0.05)
    code = (
        "import fcntl,os,sys,time; fd=os.open(sys.argv[1],os.O_RDWR); fcntl.lockf(fd,fcntl.LOCK_EX);"
        "print('held',flush=True); time.sleep(60)"
    )
    child = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE)
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == b"held\n"
        with pytest.raises(LedgerBusy) as busy:
            ledger.open_frame(0, 1, 1)
        assert busy.value.pid == child.pid
    finally:
        child.kill()
        child.wait()
        assert child.stdout is not None
        child.stdout.close()
    assert ledger.open_frame(0, 1, 1) is not None, "the kernel dropped the lock with its holder"
    ledger.close()


def test_a_ledger_unbalanced_by_a_power_cut_is_put_right_and_says_so(ledger: Ledger) -> None:
    camera = ledger.camera_index("a")
    for _ in range(3):
        ledger.score(open_one(ledger, camera))
    word = ledger._camera_word(camera, 9)  # scored: as if its page had not reached the disk
    ledger._w[word] -= 2
    assert not ledger.counts(camera).balanced
    (text,) = ledger.repair()
    assert "2 frames" in text
    assert ledger.counts(camera).balanced
    assert ledger.counts(camera).not_inspected["stage_restart"] == 2


def test_no_descriptor_is_left_open(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        ledger = Ledger(tmp_path / "ledger")
        ledger.counts(0)
        ledger.close()
    assert len(os.listdir("/proc/self/fd")) == before
