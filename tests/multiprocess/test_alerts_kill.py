"""The store under SIGKILL: nothing that was reported is lost, nothing comes twice."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from edge.alerts.store import AlertStore

pytestmark = pytest.mark.multiprocess

ROUNDS = 40

# One process imports once and forks a child a round: 40 interpreters would cost most of the test's time. Each child
# begins with the last frame that was reported, as a daemon does that was killed before it could tell anybody.
_DRIVER = """
import json, os, random, select, signal, sys
from pathlib import Path
from edge.alerts.config import StoreSettings
from edge.alerts.decision import DecisionState
from edge.alerts.messages import AlertDraft
from edge.alerts.store import AlertStore

folder, rounds = Path(sys.argv[1]), int(sys.argv[2])
settings = StoreSettings(max_pictures=50)

def child(seq, out):
    with AlertStore(folder, settings) as store:
        while True:
            draft = AlertDraft(camera="c", seq=seq, epoch="e", captured_at=seq, raised_at=10**18 + seq, score=2.0,
                               threshold=1.0, p_value=0.1, why="x" * (seq % 900))
            added = store.add(draft, DecisionState(calm=seq), picture=b"p" * 3000)
            os.write(out, b"%d %d %d\\n" % (seq, added.alert.id, added.new))
            seq += 1

rng, seq, reported = random.Random(int(sys.argv[3])), 1, []
for _ in range(rounds):
    source, sink = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(source)
        try:
            child(seq, sink)
        finally:
            os._exit(9)
    os.close(sink)
    # Killed some microseconds after a commit was seen: anywhere within the next one.
    data, wanted = b"", rng.randrange(1, 30)
    while data.count(b"\\n") < wanted:
        piece = os.read(source, 65536)
        assert piece, "the child ended by itself"
        data += piece
    select.select([], [], [], rng.random() * 0.004)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    while piece := os.read(source, 65536):
        data += piece
    os.close(source)
    with AlertStore(folder, settings) as store:  # in one transaction: the state is that of the last alert
        assert store.states()["c"].calm == store.since(store.latest_id() - 1, 1)[0].seq
    lines = [list(map(int, line.split())) for line in data.decode().splitlines()]
    reported.append(lines)
    seq = lines[-1][0]
print(json.dumps(reported))
"""


def test_kill_9_at_random_moments(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _DRIVER, str(tmp_path), str(ROUNDS), "5"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    rounds = json.loads(done.stdout)
    assert len(rounds) == ROUNDS
    told: dict[int, int] = {}
    for at, lines in enumerate(rounds):
        for seq, identity, new in lines:
            assert told.setdefault(seq, identity) == identity  # the same frame again is the same alert
            if at > 0 and seq == lines[0][0]:
                assert not new  # it was committed before the kill
    with AlertStore(tmp_path) as store:
        stored = store.since(0, 100_000)
        ids = {alert.seq: alert.id for alert in stored}
        assert len(ids) == len(stored)  # no frame twice
        assert [alert.id for alert in stored] == sorted(set(ids.values()))
        assert [alert.seq for alert in stored] == sorted(ids)
        assert told.items() <= ids.items()  # all that was reported is there, under the id that was reported
        assert len(ids) - len(told) <= ROUNDS  # at most one a kill was committed and not reported
        pictures = [alert for alert in stored if alert.picture is not None]
        assert 0 < len(pictures) <= 50 + 1
        for alert in pictures:
            assert alert.picture is not None
            assert Path(alert.picture).read_bytes() == b"p" * 3000
    assert not list((tmp_path / "pictures").glob(".partial-*"))
    assert not list(tmp_path.glob("*.damaged-*"))
