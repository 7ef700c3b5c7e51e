"""Every method's bundle in the daemon: the verdicts are those of an evaluation, to the last digit.

FRE is what the other daemon tests run. Here the trained heads are hardly trained, on an input of 64 pixels: what a
network has learnt is no matter of the daemon.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from line import Line, folder

from edge.heads import METHODS

pytestmark = pytest.mark.multiprocess

SIZE = (64, 64)
SETTINGS: dict[str, dict[str, object]] = {
    "fair": {"width": 4, "epochs": 1},
    "grad": {"abnormal_epochs": 1, "epochs": 1, "blocks": 1, "width": 16},
    "hfra": {"epochs": 1},
    "sgfr": {},
}


def test_no_method_is_forgotten() -> None:
    assert {*SETTINGS, "fre"} == set(METHODS)


@pytest.mark.parametrize("method", sorted(SETTINGS))
def test_the_daemon_scores_as_an_evaluation_does(
    start: Callable[..., Line], parts: Path, tmp_path: Path, method: str
) -> None:
    from calibration.datasets import load_split
    from calibration.evaluate import evaluate
    from calibration.fit import fit_bundle
    from calibration.methods import fitter_of
    from calibration.options import FitOptions
    from engines.export import export_backbone

    options = FitOptions(method=method, false_alarms=0.05, settings=SETTINGS[method]).resolved()
    taps = fitter_of(method).taps(options)
    graph = export_backbone("builtin", None, input_size=SIZE, taps=taps) if taps else None
    bundle = tmp_path / method
    fit_bundle(load_split(parts, "mvtec"), bundle, graph=graph, backbone="builtin", options=options, input_size=SIZE)
    expected = {s.name.removeprefix("test/"): s for s in evaluate(bundle, parts, "mvtec").pictures}

    line = start(folder(parts / "test", mode="once", recursive=True), bundle=bundle)
    assert line.ended() == 0
    line.assert_balanced()
    line.assert_ends_once()
    line.assert_alerts_whole()
    assert line.missed() == {}
    told = {verdict.name: verdict for verdict in line.told.verdicts}
    assert told.keys() == expected.keys()
    for name, verdict in told.items():
        assert verdict.score == expected[name].score
        assert verdict.p_value == expected[name].p_value
        assert verdict.verdict == ("anomalous" if expected[name].anomalous else "normal")
