"""What both ends of ``edge bench wire`` do to a frame, and what is a failed block."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edge.bench.processes import BenchError
from edge.bench.spread import spread
from edge.bench.wire import Settings, Transport, Wire, check_balance
from edge.bench.wire_ends import stamp, whole
from edge.wire.ledger import Ledger, Reason


def test_a_whole_frame_carries_its_number_at_both_ends() -> None:
    picture = np.zeros((48, 64, 3), np.uint8)
    stamp(picture, 2**40 + 7)
    assert whole(picture, 2**40 + 7)
    assert not whole(picture, 7)


@pytest.mark.parametrize("place", [0, -1])
def test_a_torn_frame_is_noticed(place: int) -> None:
    picture = np.zeros((48, 64, 3), np.uint8)
    stamp(picture, 5)
    picture.reshape(-1)[place] ^= 255
    assert not whole(picture, 5)


def test_the_ledger_must_have_every_frame_as_scored(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger")
    camera = ledger.camera_index("bench")
    tickets = []
    for _ in range(3):
        opened = ledger.open_frame(camera, 1, 1)
        assert opened is not None
        tickets.append(opened[0])
    for ticket in tickets[:2]:
        ledger.score(ticket)
    with pytest.raises(BenchError, match="3 captured and 2 scored of 3"):
        check_balance(tmp_path, 3)
    ledger.drop(tickets[2], Reason.ERROR)
    with pytest.raises(BenchError):
        check_balance(tmp_path, 3)
    ledger.close()


def test_the_ratio_is_that_of_the_copying_path() -> None:
    figure = spread([1.0, 1.0, 1.0])
    rates = {"slots": Transport(figure, figure), "zmq_copy": Transport(figure, figure)}
    result = Wire(Settings(), rates, ratio=spread([4.9, 5.1, 5.3]), ratio_in_place=spread([30.0, 30.0, 30.0]))
    assert result.met
    assert result.as_json()["ratio"] == 5.1
    assert result.as_json()["ratio_of"] == ["slots", "zmq_copy"]
    assert not Wire(Settings(), rates, ratio=spread([4.0, 4.9, 5.3]), ratio_in_place=spread([30.0])).met
