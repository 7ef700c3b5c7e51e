"""`edge soak`, short: the campaign runs, kills, and finds nothing; and it finds what is planted."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from edge.alerts.messages import Alert, Verdict
from edge.bench.soak import STAGES, Soak, SoakReport


@pytest.mark.multiprocess
@pytest.mark.timeout(170)
def test_a_short_campaign_kills_and_finds_no_violation(tmp_path: Path) -> None:
    target = tmp_path / "report.json"
    command = [sys.executable, "-m", "edge.cli", "soak", "--minutes", "0.4", "--kill-every", "4", "--fps", "15"]
    done = subprocess.run([*command, "--json", str(target)], capture_output=True, text=True, timeout=160)
    assert done.returncode == 0, done.stderr + done.stdout
    report = json.loads(target.read_text())
    assert report["violations"] == []
    assert len(report["kills"]) >= 2
    assert all(kill["stage"] in STAGES and kill["recovered_s"] is not None for kill in report["kills"])
    assert report["alerts"] > 0
    for counts in report["balance"].values():
        assert counts["open"] == 0
        assert counts["captured"] == counts["scored"] + sum(counts["not_inspected"].values())


def alert(identity: int, seq: int) -> Alert:
    return Alert(
        id=identity, camera="a", seq=seq, epoch="e", captured_at=1, raised_at=2, score=2.0, threshold=1.0,
        p_value=0.1, why="planted",
    )  # fmt: skip


def verdict(seq: int, reason: str | None) -> Verdict:
    scored = {} if reason else {"score": 1.0, "threshold": 2.0, "p_value": 0.5}
    end = "not_inspected" if reason else "normal"
    return Verdict.model_validate(
        {"camera": "a", "seq": seq, "epoch": "e", "verdict": end, "reason": reason, "captured_at": 1, "latency_ms": 1.0}
        | scored
    )


def test_two_ends_of_a_frame_and_one_id_for_two_frames_are_violations(tmp_path: Path) -> None:
    soak = Soak(tmp_path, "", SoakReport(0, 1.0, 1.0), 1.0)
    for message in (verdict(1, None), verdict(1, None), verdict(2, "stale"), alert(1, 1), alert(1, 1)):
        soak._note(message)
    assert soak.report.violations == []
    soak._note(verdict(1, "timeout"))
    soak._note(alert(1, 7))
    assert len(soak.report.violations) == 2


def test_growing_memory_and_descriptors_are_violations(tmp_path: Path) -> None:
    soak = Soak(tmp_path, "", SoakReport(0, 1.0, 1.0), 1.0)
    soak._samples["head"] = [(float(i), 100_000_000 + i * 1_000_000, 20) for i in range(40)]
    soak._samples["alert"] = [(float(i), 100_000_000, 20 + i) for i in range(40)]
    soak._samples["backbone"] = [(float(i), 100_000_000, 20) for i in range(40)]
    soak._judge_resources()
    assert [text.split(":")[0] for text in soak.report.violations] == ["alert", "head"]
