"""Fit and evaluation from pictures on disk to the report, with the built-in backbone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from calibration.datasets import good_folder, load_split
from calibration.evaluate import evaluate
from calibration.features import Worker, run_pictures
from calibration.fit import fit_bundle, refit_bundle
from calibration.options import FitOptions
from edge.bundle import load_bundle
from edge.errors import BundleError, DataError, ResourceError
from edge.heads.scorer import Scorer
from edge.pictures import read_picture
from edge.preprocess import prepare
from engines import EngineInfo, Tap, builtin_graph, open_engine

GOOD = 14


def part(rng: np.random.Generator, defect: bool) -> tuple[np.ndarray, np.ndarray]:
    """A grey part: a disc on a plate, slightly moved and lit; the defect is a dark streak."""
    image = np.full((96, 112, 3), 90 + rng.integers(-6, 7), np.uint8)
    centre = (56 + int(rng.integers(-2, 3)), 48 + int(rng.integers(-2, 3)))
    cv2.circle(image, centre, 30, (170, 175, 180), -1)
    mask = np.zeros(image.shape[:2], np.uint8)
    if defect:
        x, y = (int(v) for v in rng.integers(40, 60, 2))
        cv2.line(mask, (x, y), (x + 16, y + 9), 255, 5)
        image[mask > 0] = 20
    noise = rng.normal(0, 3, image.shape)
    return np.clip(image + noise, 0, 255).astype(np.uint8), mask


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root, rng = tmp_path_factory.mktemp("parts"), np.random.default_rng(0)
    for folder in ("train/good", "test/good", "test/streak", "ground_truth/streak"):
        (root / folder).mkdir(parents=True)
    for i in range(GOOD):
        cv2.imwrite(str(root / f"train/good/{i:02}.png"), part(rng, False)[0])
    for i in range(4):
        cv2.imwrite(str(root / f"test/good/{i}.png"), part(rng, False)[0])
        image, mask = part(rng, True)
        cv2.imwrite(str(root / f"test/streak/{i}.png"), image)
        cv2.imwrite(str(root / f"ground_truth/streak/{i}_mask.png"), mask)
    return root


OPTIONS = FitOptions(layers=("layer2", "layer3"), false_alarms=0.1)


@pytest.fixture(scope="module")
def bundle(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("fit") / "bundle"
    fit_bundle(load_split(data, "mvtec"), out, graph=builtin_graph(), backbone="builtin", options=OPTIONS)
    return out


def test_fit_then_evaluate(data: Path, bundle: Path) -> None:
    report = evaluate(bundle, data, "mvtec")
    assert report.image_auroc == 1.0
    assert report.pixel_auroc is not None
    assert report.pixel_auroc > 0.9
    assert report.aupro is not None
    assert report.aupro > 0.6
    assert report.ap is not None
    assert report.found == 1.0
    assert [(kind.kind, kind.count) for kind in report.kinds] == [("good", 4), ("streak", 4)]
    assert set(report.rules) == {"norm", "max", "combined"}
    assert report.rules["combined"] == report.image_auroc
    content = json.loads(json.dumps(report.as_json(), allow_nan=False))
    assert {"image_auroc", "pixel_auroc", "aupro", "ap"} <= set(content)
    assert len(content["pictures"]) == 8


def test_scores_are_the_same_by_one_worker_by_two_and_by_hand(data: Path, bundle: Path) -> None:
    one, two = evaluate(bundle, data, "mvtec", workers=1), evaluate(bundle, data, "mvtec", workers=2)
    assert one.pictures == two.pictures
    loaded = load_bundle(bundle)
    scorer = Scorer(loaded)
    engine = open_engine(loaded.graph, taps=scorer.taps)
    try:
        for scored in one.pictures:
            image = prepare(read_picture(data / scored.name), engine.info.input_size)
            (result,) = scorer.score(engine.infer(image[None]))
            assert (result.score, result.p_value) == (scored.score, scored.p_value)
    finally:
        engine.close()


def test_fit_is_deterministic_and_refit_agrees_to_the_last_bit(data: Path, bundle: Path, tmp_path: Path) -> None:
    split = load_split(data, "mvtec")
    fit_bundle(split, tmp_path / "again", graph=builtin_graph(), backbone="builtin", options=OPTIONS, workers=1)
    refit_bundle(bundle, tmp_path / "refit", options=OPTIONS)
    first = load_bundle(bundle)
    for other in (load_bundle(tmp_path / "again"), load_bundle(tmp_path / "refit")):
        for name, array in first.arrays.items():
            np.testing.assert_array_equal(other.arrays[name], array)
        np.testing.assert_array_equal(other.calibration["score"], first.calibration["score"])
        assert other.manifest.calibration == first.manifest.calibration
        assert other.manifest.split == first.manifest.split


def test_a_refit_changes_what_is_asked(bundle: Path, tmp_path: Path) -> None:
    options = FitOptions(layers=("layer3",), false_alarms=0.3, variance=0.5, rule="norm", keep_refit=False)
    report = refit_bundle(bundle, tmp_path / "b", options=options)
    loaded = load_bundle(tmp_path / "b")
    assert report.details["components"]["layer3"] < load_bundle(bundle).manifest.spec["components_layer3"]
    assert loaded.manifest.calibration.false_alarm_rate == 0.3
    assert loaded.make_head().taps == ("layer3",)
    with pytest.raises(DataError, match="without what a refit needs"):
        refit_bundle(tmp_path / "b", tmp_path / "c", options=options)
    with pytest.raises(DataError, match="cannot add layers"):
        refit_bundle(bundle, tmp_path / "c", options=FitOptions())


def test_the_report_says_what_is_promised(data: Path, tmp_path: Path) -> None:
    split = load_split(data, "mvtec")
    options = FitOptions(layers=("layer3",), false_alarms=1e-3)
    report = fit_bundle(split, tmp_path / "b.zip", graph=builtin_graph(), backbone="builtin", options=options)
    assert report.extrapolated
    assert report.needed_for_promise == 999
    assert report.interval is not None
    assert report.interval[0] <= report.threshold <= report.interval[1]
    assert report.alarms_per_hour == pytest.approx(108)
    assert set(report.seconds) == {"backbone", "algebra", "calibration", "write"}
    assert report.unusual[0][1] >= report.unusual[-1][1]
    assert f"1/{GOOD + 1}" in report.guarantee
    held = FitOptions(layers=("layer3",), false_alarms=0.3, calibration="holdout")
    exact = fit_bundle(split, tmp_path / "h", graph=builtin_graph(), backbone="builtin", options=held)
    assert load_bundle(tmp_path / "h").manifest.calibration.exact
    assert "exact" in exact.guarantee
    assert len(load_bundle(tmp_path / "h").calibration["score"]) == 3


def test_evaluations_that_contradict_the_split_are_refused(data: Path, bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"of the \d+ test pictures were fitted") as raised:
        evaluate(bundle, data / "train", "folder")
    assert "\n" not in str(raised.value)
    # Moved and renamed, they are still recognised; other pictures are welcome.
    shutil.copytree(data / "train/good", tmp_path / "moved/good")
    with pytest.raises(DataError, match="were fitted"):
        evaluate(bundle, tmp_path / "moved", "folder")
    shutil.copytree(data / "test", tmp_path / "other")
    (tmp_path / "other/good/zz.png").write_bytes(b"")
    with pytest.raises(DataError, match="1 of 9 pictures cannot be read"):
        evaluate(bundle, tmp_path / "other", "folder")
    report = evaluate(bundle, tmp_path / "other", "folder", skip_unreadable=True)
    assert (report.image_auroc, report.aupro, report.ap) == (1.0, None, None)
    assert len(report.skipped) == 1


def test_another_seed_over_the_same_pictures_is_refused(data: Path, tmp_path: Path) -> None:
    root = tmp_path / "set"
    shutil.copytree(data / "train/good", root / "good")
    shutil.copytree(data / "test/streak", root / "streak")
    options = FitOptions(layers=("layer3",), false_alarms=0.2)
    fit_bundle(
        load_split(root, "folder", 1), tmp_path / "b", graph=builtin_graph(), backbone="builtin", options=options
    )
    with pytest.raises(DataError, match=r"with --seed 2.*use --seed 1"):
        evaluate(tmp_path / "b", root, "folder", 2)
    report = evaluate(tmp_path / "b", root, "folder")  # the seed is remembered
    assert report.seed == 1
    assert sum(not picture.is_defect for picture in report.pictures) == GOOD - round(0.8 * GOOD)


@pytest.mark.parametrize("count", [0, 1, 2])
def test_too_few_good_pictures_are_refused_before_any_work(data: Path, tmp_path: Path, count: int) -> None:
    paths = sorted((data / "train/good").iterdir())[:count]
    with pytest.raises(DataError, match=f"{count} good pictures are too few: at least 3"):
        fit_bundle(paths, tmp_path / "b", graph=b"never opened", backbone="builtin")
    assert not (tmp_path / "b").exists()


def test_three_good_pictures_are_enough_and_copies_are_not(data: Path, tmp_path: Path) -> None:
    paths = sorted((data / "train/good").iterdir())[:3]
    options = FitOptions(layers=("layer3",))
    report = fit_bundle(paths, tmp_path / "b", graph=builtin_graph(), backbone="builtin", options=options)
    assert report.pictures == 3
    assert report.extrapolated
    copies = tmp_path / "copies"
    copies.mkdir()
    for i in range(5):
        shutil.copy(paths[0], copies / f"{i}.png")
    with pytest.raises(DataError, match="do not differ"):
        fit_bundle(good_folder(copies), tmp_path / "c", graph=builtin_graph(), backbone="builtin", options=options)


def test_one_copy_among_good_pictures_is_counted(data: Path, tmp_path: Path) -> None:
    good = tmp_path / "good"
    shutil.copytree(data / "train/good", good)
    shutil.copy(good / "00.png", good / "copy.png")
    options = FitOptions(layers=("layer3",))
    report = fit_bundle(good_folder(good), tmp_path / "b", graph=builtin_graph(), backbone="builtin", options=options)
    assert report.duplicates == 1
    assert json.loads(json.dumps(report.as_json(), allow_nan=False))["duplicates"] == 1


def test_a_target_that_cannot_be_written_is_refused_before_the_pictures(data: Path, tmp_path: Path) -> None:
    paths = sorted((data / "train/good").iterdir())
    (tmp_path / "file").write_text("in the way")
    for out in (tmp_path / "file", tmp_path / "file/under", data / "train"):
        with pytest.raises((BundleError, ResourceError), match="choose another --out"):
            fit_bundle(paths, out, graph=b"never opened", backbone="builtin")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (FitOptions(detection="layer9"), "detection layer 'layer9' is not among"),
        (FitOptions(layers=()), "one or several different taps"),
        (FitOptions(false_alarms=0), "rate of false alarms"),
        (FitOptions(variance=1.0), "retained variance"),
        (FitOptions(method="magic"), "unknown method 'magic'"),
        (FitOptions(folds=1), "folds at least 2"),
        (FitOptions(rule="best"), "unknown score rule"),  # type: ignore[arg-type]
    ],
)
def test_impossible_options_are_refused(tmp_path: Path, options: FitOptions, says: str) -> None:
    with pytest.raises(DataError, match=says):
        fit_bundle([], tmp_path / "b", graph=b"", backbone="x", options=options)


class FakeEngine:
    """One tap: the picture's mean."""

    def __init__(self) -> None:
        self.info = EngineInfo("fake", "cpu", "f32", 1, "0" * 64, (16, 16), (Tap("layer3", 1, 1, 1),))
        self.calls = 0

    def infer(self, images: np.ndarray, out: object = None) -> dict[str, np.ndarray]:
        self.calls += 1
        return {"layer3": images.mean(axis=(1, 2, 3), dtype=np.float32).reshape(-1, 1, 1, 1)}

    def warm_up(self, batch: int) -> None: ...

    def close(self) -> None: ...


def fake_workers(count: int) -> list[Worker[float]]:
    return [Worker(FakeEngine(), lambda taps: float(taps["layer3"].item())) for _ in range(count)]


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_pictures_keep_their_order_and_progress_counts_them(tmp_path: Path, workers: int) -> None:
    paths = []
    for i in range(20):
        paths.append(tmp_path / f"{i}.png")
        cv2.imwrite(str(paths[-1]), np.full((20 + i, 30, 3), 10 * i, np.uint8))
    seen: list[tuple[int, int, str]] = []
    results = list(run_pictures(paths, fake_workers(workers), progress=lambda *args: seen.append(args)))
    assert results == [(i, 10.0 * i) for i in range(20)]
    assert seen == [(i + 1, 20, "backbone") for i in range(20)]


def test_all_unreadable_pictures_are_listed_or_skipped(tmp_path: Path) -> None:
    paths = []
    for i in range(8):
        paths.append(tmp_path / f"{i}.png")
        cv2.imwrite(str(paths[-1]), np.full((20, 20, 3), i, np.uint8))
    paths[2].write_bytes(b"")
    paths[5].write_bytes(b"\x89PNG\r\n\x1a\n junk")
    paths[6].unlink()
    with pytest.raises(DataError, match="3 of 8 pictures cannot be read") as raised:
        list(run_pictures(paths, fake_workers(2)))
    for index in (2, 5, 6):
        assert str(paths[index]) in str(raised.value)
    skipped: list[str] = []
    results = list(run_pictures(paths, fake_workers(2), skip_unreadable=True, skipped=skipped))
    assert [index for index, _ in results] == [0, 1, 3, 4, 7]
    assert len(skipped) == 3


@pytest.mark.data
def test_bottle_with_the_built_in_backbone(data_dir: Path, tmp_path: Path) -> None:
    root = data_dir / "mvtec/bottle"
    fit_bundle(load_split(root, "mvtec"), tmp_path / "b", graph=builtin_graph(), backbone="builtin")
    report = evaluate(tmp_path / "b", root, "mvtec")
    assert report.image_auroc is not None
    assert report.image_auroc >= 0.995
    assert report.aupro is not None
    assert report.aupro >= 0.94
    assert report.false_alarms == 0.0
