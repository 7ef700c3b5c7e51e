"""The choice of a head: a pure decision on figures, and the trials that give them."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from click.testing import CliRunner

from calibration import selection
from calibration.datasets import good_folder
from calibration.methods import fitter_of
from calibration.options import FitOptions
from calibration.selection import Trial, _Scores, choose, select_method
from calibration.synthetic_defects import KINDS, draw_defect
from edge.bundle import load_bundle
from edge.commands.fit import command as fit_command
from edge.errors import DataError
from engines.export import export_backbone

GOOD = 24
SIZE = (64, 64)


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root, rng = tmp_path_factory.mktemp("parts"), np.random.default_rng(0)
    for i in range(GOOD):
        image = np.full((96, 96, 3), 90 + rng.integers(-6, 7), np.uint8)
        cv2.circle(image, (48 + int(rng.integers(-2, 3)), 47), 28, (170, 175, 180), -1)
        image = np.clip(image + rng.normal(0, 3, image.shape), 0, 255).astype(np.uint8)
        cv2.imwrite(str(root / f"{i:02}.png"), image)
    return root


def small_graph(options: FitOptions) -> bytes:
    """Enough to try a head with, in a sixteenth of the time."""
    return export_backbone("builtin", None, input_size=SIZE, taps=fitter_of(options.method).taps(options))


def trial(method: str, mean: float, milliseconds: float = 5.0) -> Trial:
    return Trial(method, 1.0, milliseconds, {"a": mean}, mean)


def scores(good: np.ndarray, defect: np.ndarray) -> _Scores:
    return _Scores(good, {"a": defect})


def test_a_clear_lead_wins_and_a_small_one_does_not() -> None:
    rng = np.random.default_rng(0)
    good = rng.normal(size=40)
    clear, blind = scores(good, good + 5), scores(good, rng.normal(size=40))
    trials = [trial("fre", blind.mean()), trial("sgfr", clear.mean())]
    assert choose(trials, {"fre": blind, "sgfr": clear}, 0)[0] == "sgfr"
    # Two heads that differ in one pair of pictures.
    close = scores(good, good + 5)
    close.drawn["a"][0] = good.min() - 1
    trials = [trial("fre", close.mean()), trial("sgfr", clear.mean())]
    method, why = choose(trials, {"fre": close, "sgfr": clear}, 0)
    assert method == "fre"
    assert "too little" in why


def test_equal_heads_keep_the_usual_one_and_without_it_the_quickest_counts_as_usual() -> None:
    good = np.arange(10.0)
    same = scores(good, good + 20)
    assert choose([trial("fre", 1.0), trial("sgfr", 1.0)], {"fre": same, "sgfr": same}, 0)[0] == "fre"
    trials = [trial("sgfr", 1.0, 9.0), trial("hfra", 1.0, 4.0)]
    assert choose(trials, {"sgfr": same, "hfra": same}, 0)[0] == "hfra"


def test_nothing_that_fits_is_one_line_with_the_reasons() -> None:
    with pytest.raises(DataError, match=r"no head can be chosen \(fre: 12.0 ms a picture, more than 5\)"):
        choose([Trial("fre", 1.0, 12.0, left_out="12.0 ms a picture, more than 5")], {}, 0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_drawn_defect_changes_a_part_of_the_picture_and_is_fixed_by_its_seed(kind: str) -> None:
    image = np.random.default_rng(0).integers(60, 200, (64, 64, 3), np.uint8)
    before = image.copy()
    first, again = (draw_defect(kind, image, np.random.RandomState([1, 2])) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(image, before)
    assert first.dtype == np.uint8
    assert first.shape == image.shape
    changed = (first != image).any(axis=2).mean()
    assert 0.001 < changed < 0.6
    assert (draw_defect(kind, image, np.random.RandomState([1, 3])) != first).any()


def test_the_strength_of_a_blend_is_its_distance_from_the_picture() -> None:
    image = np.full((64, 64, 3), 120, np.uint8)

    def distance(kind: str) -> float:
        drawn = [draw_defect(kind, image, np.random.RandomState(seed)).astype(int) for seed in range(8)]
        return float(np.mean([np.abs(d - 120).sum() for d in drawn]))

    blends = [kind for kind in KINDS if kind.startswith("blend")]
    assert len(blends) >= 3
    distances = [distance(kind) for kind in blends]
    assert distances == sorted(distances)
    assert distances[-1] > 2 * distances[0]


def test_the_closed_forms_are_tried_and_one_is_chosen(parts: Path, tmp_path: Path) -> None:
    told: list[Trial] = []
    found = select_method(
        good_folder(parts),
        tmp_path,
        graphs=small_graph,
        backbone="builtin",
        input_size=SIZE,
        options=FitOptions(),
        candidates=["sgfr", "fre"],
        tell=told.append,
    )
    assert [trial.method for trial in found.trials] == ["fre", "sgfr"]
    assert tuple(told) == found.trials
    for entry in found.trials:
        assert entry.auroc is not None
        assert entry.mean == pytest.approx(np.mean(list(entry.auroc.values())))
        assert 0.5 < entry.mean <= 1
        assert entry.milliseconds is not None
        assert entry.milliseconds > 0
    assert found.chosen in ("fre", "sgfr")
    assert list(tmp_path.iterdir()) == []


def test_a_head_over_the_budget_or_the_trial_time_is_left_out(
    parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spent = {"fre": 3.0, "sgfr": 30.0, "hfra": 3.0}
    monkeypatch.setattr(selection, "milliseconds", lambda bundle, image, runtime: spent[bundle.manifest.method])
    found = select_method(
        good_folder(parts),
        tmp_path,
        graphs=small_graph,
        backbone="builtin",
        input_size=SIZE,
        options=FitOptions(),
        candidates=["fre", "sgfr", "hfra"],
        budget_ms=10,
        trial_minutes=1e-6,
    )
    left_out = {trial.method: trial.left_out for trial in found.trials}
    assert left_out["fre"] is None
    assert left_out["sgfr"] == "30.0 ms a picture, more than 10"
    assert "minutes is spent" in str(left_out["hfra"])
    assert found.chosen == "fre"


@pytest.mark.parametrize(
    ("count", "given", "says"),
    [
        (8, {}, "too few to keep"),
        (GOOD, {"budget_ms": 0.0}, "more than 0 ms"),
        (GOOD, {"candidates": ["x"]}, "unknown"),
    ],
)
def test_what_cannot_work_is_said_first(
    parts: Path, tmp_path: Path, count: int, given: dict[str, object], says: str
) -> None:
    split = good_folder(parts)
    few = type(split)(split.root, split.layout, None, split.good[:count], ())
    with pytest.raises(DataError, match=says):
        select_method(few, tmp_path, graphs=lambda _: None, backbone="none", options=FitOptions(), **given)  # type: ignore[arg-type]


def test_the_command_prints_the_table_and_fits_the_chosen_head(parts: Path, tmp_path: Path) -> None:
    run = CliRunner().invoke(
        fit_command,
        [
            f"--good={parts}",
            f"--out={tmp_path / 'b'}",
            "--method=auto",
            "--candidates=fre,sgfr",
            "--size=64",
            "--json=-",
        ],
    )
    assert run.exit_code == 0, run.output
    report = json.loads(run.stdout)
    assert report["method"] == report["selection"]["chosen"]
    assert f"chosen: {report['method']}" in run.stderr
    for word in ("fre", "sgfr", *KINDS):
        assert word in run.stderr
    assert load_bundle(tmp_path / "b").manifest.method == report["method"]


def test_settings_of_one_method_do_not_go_with_auto(parts: Path, tmp_path: Path) -> None:
    for wrong in (["--method=auto", "--set=atoms=3"], ["--method=fre", "--budget-ms=3"]):
        run = CliRunner().invoke(fit_command, [f"--good={parts}", f"--out={tmp_path / 'b'}", *wrong])
        assert run.exit_code == 2
        assert "auto" in run.output
