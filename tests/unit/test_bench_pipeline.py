"""Windows, ratios and latency of ``edge bench pipeline``, from samples that were written down."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from edge.alerts.messages import Verdict
from edge.bench.line import Sample, Window, line_file
from edge.bench.pipeline import Latency, Loop, Pipeline, Round, Settings, latency_of
from edge.bench.processes import BenchError
from edge.bench.tables import pipeline_table
from edge.config import load_line
from edge.wire.ledger import Counts

MS = 1_000_000


def _counts(captured: int, scored: int, open_: int = 0, **missed: int) -> Counts:
    return Counts(captured, scored, {"stale": 0, "no_slot": 0, **missed}, open_)


FIRST = Sample(0, {"supervisor": 10 * MS, "head": 500 * MS}, 2_000 * MS, (_counts(50, 50), _counts(40, 40)))
LAST = Sample(
    2_000 * MS,
    {"supervisor": 20 * MS, "head": 1_500 * MS},
    5_000 * MS,
    (_counts(104, 100, 2, stale=2), _counts(95, 90, 2, stale=2, no_slot=1)),
)
WINDOW = Window(FIRST, LAST)


def test_a_window_is_the_difference_of_its_ends() -> None:
    WINDOW.check()
    assert WINDOW.scored == 100
    assert WINDOW.frames_per_s == 50.0
    assert WINDOW.cpu_ms == pytest.approx({"supervisor": 0.1, "head": 10.0})
    assert WINDOW.not_inspected == {"stale": 4, "no_slot": 1}
    assert WINDOW.share_not_inspected == pytest.approx(5 / 105)


def test_what_was_lost_in_the_warm_up_is_not_counted() -> None:
    warm = replace(FIRST, cameras=(_counts(53, 50, stale=3), _counts(40, 40)))
    later = replace(LAST, cameras=(_counts(105, 100, 2, stale=3), _counts(92, 90, 2)))
    assert Window(warm, later).not_inspected == {}


def test_cores_that_others_used() -> None:
    # The machine was busy for 3 s in 2 s of wall time; 1.01 s of it were the line's.
    assert WINDOW.others_cores == pytest.approx((3.0 - 1.01) / 2)
    # Ticks of the whole machine lag behind the clocks of its processes: never less than nothing.
    assert Window(FIRST, replace(LAST, busy_ns=2_000 * MS)).others_cores == 0.0


def test_a_restarted_stage_spoils_the_window() -> None:
    other = replace(LAST, cpu_ns={"supervisor": 20 * MS})
    with pytest.raises(BenchError, match="restarted"):
        Window(FIRST, other).check()


def test_a_ledger_that_does_not_add_up_spoils_the_window() -> None:
    with pytest.raises(BenchError, match="does not add up"):
        Window(FIRST, replace(LAST, cameras=(_counts(104, 100), _counts(90, 90)))).check()


def test_no_frame_is_no_figure() -> None:
    with pytest.raises(BenchError, match="no frame"):
        Window(FIRST, replace(FIRST, at_ns=5)).check()


def _verdict(seq: int, latency_ms: float, kind: str = "normal") -> Verdict:
    body = {"camera": "c0", "seq": seq, "epoch": "e" * 32, "verdict": kind, "captured_at": 1, "latency_ms": latency_ms}
    scored = {"score": 1.0, "threshold": 2.0, "p_value": 0.5}
    return Verdict.model_validate({**body, **({"reason": "stale"} if kind == "not_inspected" else scored)})


def test_frames_not_inspected_have_no_latency() -> None:
    verdicts = [_verdict(n, float(n)) for n in range(1, 101)] + [_verdict(200, 0.001, "not_inspected")]
    latency = latency_of(30.0, verdicts, WINDOW)
    assert latency.verdicts == 100
    assert latency.p50_ms == pytest.approx(50.5)
    assert latency.p99_ms == pytest.approx(99.01)
    assert latency.max_ms == 100.0
    assert latency.share_not_inspected == pytest.approx(5 / 105)


def test_no_verdict_is_an_error() -> None:
    with pytest.raises(BenchError, match="no verdict"):
        latency_of(30.0, [_verdict(1, 2.0, "not_inspected")], WINDOW)


def _round(bare: float, ours: float, bare_ms: float, ours_ms: tuple[float, float]) -> Round:
    by_process = {"backbone": ours_ms[0], "head": ours_ms[1]}
    return Round(Loop(bare, {"bare": bare_ms}), Loop(ours, by_process), 0, {}, 0.0)


RESULT = Pipeline(
    Settings(rounds=3),
    # The second round ran beside something else, which slowed both sides down.
    (_round(100, 95, 20, (12, 11)), _round(50, 47, 22, (13, 12)), _round(100, 96, 20, (12, 12))),
    Latency(30.0, 100, 10.0, 12.0, 20.0, 25.0, {"stale": 3}, 0.03),
    torch_loaded=False,
)


def test_ratios_are_taken_round_by_round() -> None:
    assert RESULT.ratio.median == pytest.approx(0.95)
    assert RESULT.cpu_ratio.median == pytest.approx(23 / 20)
    assert RESULT.by_process == {"backbone": 12.0, "head": 12.0}
    assert RESULT.met


def test_targets_are_missed_by_either_figure_or_by_torch() -> None:
    assert not replace(RESULT, torch_loaded=True).met
    assert not replace(RESULT, rounds=(_round(100, 80, 20, (12, 11)),)).met
    assert not replace(RESULT, rounds=(_round(100, 95, 20, (14, 12)),)).met


def test_json_names_the_ratios() -> None:
    body = RESULT.as_json()
    assert body["ratio"] == pytest.approx(0.95)
    assert body["cpu_ratio"] == pytest.approx(1.15)
    assert body["latency"]["share_not_inspected"] == 0.03
    assert [r["pipeline"]["frames_per_s"] for r in body["rounds"]] == [95, 47, 96]


def test_the_table_shows_what_was_not_inspected(capsys: pytest.CaptureFixture[str]) -> None:
    from rich.console import Console

    pipeline_table(Console(width=160), RESULT)
    shown = capsys.readouterr().out
    assert "0.95 (0.94 to 0.96) of the bare loop" in shown
    assert "not inspected: 3.0 % (3 stale)" in shown


def test_the_line_file_is_one_that_the_daemon_takes(tmp_path: Path) -> None:
    settings = Settings(cameras=3, defect_rate=0.25)
    odd = tmp_path / 'a "strange" folder'
    file = tmp_path / "line.toml"
    file.write_text(line_file(odd / "bundle", settings.sources(12.5), "latest", odd / "engines"), encoding="utf-8")
    line = load_line(file)
    assert [camera.name for camera in line.camera] == ["c0", "c1", "c2"]
    assert [camera.source for camera in line.camera] == settings.sources(12.5)
    assert {camera.policy for camera in line.camera} == {"latest"}
    assert line.line.bundle == odd / "bundle"
    assert line.engine.threads == 1
