"""A bundle with a gate in the daemon: frames far below the threshold are inspected and scored, and have no map."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from line import Line, folder

pytestmark = pytest.mark.multiprocess


def test_gated_frames_are_scored_and_defects_have_their_alerts(
    start: Callable[..., Line], parts: Path, tmp_path: Path
) -> None:
    from calibration.datasets import load_split
    from calibration.evaluate import evaluate
    from calibration.fit import fit_bundle
    from calibration.options import FitOptions
    from edge.bundle import load_bundle
    from engines import builtin_graph

    options = FitOptions(rule="norm", false_alarms=0.02, keep_refit=False, settings={"gate": 0.8})
    gated = tmp_path / "gated"
    fit_bundle(load_split(parts, "mvtec"), gated, graph=builtin_graph(), backbone="builtin", options=options)
    limit = 0.8 * load_bundle(gated).manifest.calibration.threshold
    expected = {s.name.removeprefix("test/"): s for s in evaluate(gated, parts, "mvtec").pictures}
    low = {name for name, picture in expected.items() if picture.score < limit}
    assert 0 < len(low) < len(expected)

    line = start(folder(parts / "test", mode="once", recursive=True), bundle=gated)
    assert line.ended() == 0
    line.assert_balanced()
    line.assert_ends_once()
    line.assert_alerts_whole()
    assert line.missed() == {}
    told = {v.name: v for v in line.told.verdicts}
    assert told.keys() == expected.keys()
    for name, verdict in told.items():
        picture = expected[name]
        assert verdict.score == (pytest.approx(picture.score, rel=1e-3) if name in low else picture.score)
        assert verdict.verdict == ("anomalous" if picture.anomalous else "normal")
    assert any(picture.anomalous for picture in expected.values())
