"""The scorer: rules, calibration, batches, refusals; on a bundle made in memory."""

from __future__ import annotations

import hashlib
import math
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from threadpoolctl import threadpool_info

from calibration.conformal import folds_of
from calibration.constants import calibrate
from calibration.fre import fit, pooled_features
from edge.bundle import (
    BackboneInfo,
    Bundle,
    InputInfo,
    Manifest,
    Provenance,
    SplitInfo,
    TapInfo,
    load_bundle,
    write_bundle,
)
from edge.errors import HeadError
from edge.heads import single_thread
from edge.heads.scorer import RULES, LogScale, Rule, Scorer, ScoreSpec, image_score
from edge.heads.tail import TailSpec

SHAPES = {"layer2": (8, 16, 16), "layer3": (12, 8, 8)}
GOOD = 40


def taps_of(count: int, seed: int) -> dict[str, np.ndarray]:
    """Good taps: a low-dimensional variation of a fixed pattern, and noise."""
    pattern, rng = np.random.default_rng(0), np.random.default_rng(seed)
    taps = {}
    for name, shape in SHAPES.items():
        axes = pattern.normal(size=(4, *shape))
        base = pattern.normal(size=shape)
        noise = 0.2 * rng.normal(size=(count, *shape))
        taps[name] = (base + np.tensordot(rng.normal(size=(count, 4)), axes, 1) + noise).astype(np.float32)
    return taps


def make_bundle(path: Path, rule: Rule = "combined") -> Bundle:
    good = taps_of(GOOD, 1)
    rows = [pooled_features({name: tap[i : i + 1] for name, tap in good.items()}, 2) for i in range(GOOD)]
    features = {name: np.stack([row[name] for row in rows]) for name in SHAPES}
    fitted = fit(features, SHAPES, detection="layer3", pool=2, variance=0.9, folds=folds_of(GOOD, 10, 0), held=None)
    constants = calibrate(fitted, TailSpec(size=(64, 64)), rule, rate=0.05, exact=False, how="folds", seed=0)
    taps = tuple(TapInfo(name=n, channels=s[0], height=s[1], width=s[2]) for n, s in SHAPES.items())
    sha = hashlib.sha256(b"graph").hexdigest()
    manifest = Manifest(
        method="fre",
        spec=fitted.spec,
        backbone=BackboneInfo(name="fake", graph_sha256=sha, precision="f32", taps=taps),
        input=InputInfo(height=64, width=64),
        tail=constants.tail,
        score=constants.score,
        calibration=constants.info,
        provenance=Provenance(created="now", tool="t", runtime="r", pictures=GOOD, pictures_sha256=sha),
        split=SplitInfo(layout="folder", fitted=()),
    )
    write_bundle(path, manifest, fitted.arrays, constants.scores, b"graph")
    return load_bundle(path)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    single_thread()
    return make_bundle(tmp_path_factory.mktemp("scorer") / "b")


def test_good_pictures_pass_and_a_defect_is_found_where_it_is(bundle: Bundle) -> None:
    scorer = Scorer(bundle)
    good = scorer.score(taps_of(200, 2))
    assert np.mean([s.score > scorer.threshold for s in good]) == pytest.approx(0.05, abs=0.06)
    taps = taps_of(1, 3)
    taps["layer2"][0, :, 8:12, 4:8] += 3
    taps["layer3"][0, :, 4:6, 2:4] += 3
    (scored,) = scorer.score(taps)
    assert scored.score > scorer.threshold
    assert scored.p_value < 0.05
    assert scored.map.max() == np.float32(scored.parts["max"])
    assert scored.parts["max"] > scorer.pixel_threshold
    y, x = np.unravel_index(scored.map.argmax(), scored.map.shape)
    assert 30 <= y < 50
    assert 14 <= x < 34
    assert np.median([s.p_value for s in good]) == pytest.approx(0.5, abs=0.15)


def test_a_score_is_the_same_in_every_batch_and_every_scorer(bundle: Bundle) -> None:
    taps = taps_of(6, 4)
    together = Scorer(bundle).score(taps)
    alone = Scorer(bundle)
    for i in range(6):
        (one,) = alone.score({name: tap[i : i + 1] for name, tap in taps.items()})
        assert (one.score, one.p_value, one.parts) == (
            together[i].score,
            together[i].p_value,
            together[i].parts,
        )
        np.testing.assert_array_equal(one.map, together[i].map)


def test_maps_are_written_in_place_and_inputs_stay(bundle: Bundle) -> None:
    taps = taps_of(3, 5)
    copies = {name: tap.copy() for name, tap in taps.items()}
    out = np.zeros((3, 64, 64), np.float32)
    scorer = Scorer(bundle)
    scored = scorer.score(taps, out)
    assert all(np.shares_memory(one.map, out) for one in scored)
    np.testing.assert_array_equal(out, np.stack([one.map for one in scorer.score(taps)]))
    for name, tap in taps.items():
        np.testing.assert_array_equal(tap, copies[name])


def test_features_at_any_address_give_the_same_bits(bundle: Bundle) -> None:
    taps, scorer = taps_of(1, 6), Scorer(bundle)
    expected = scorer.score(taps)[0]
    for shift in (4, 20, 36):
        moved = {}
        for name, tap in taps.items():
            raw = np.empty(tap.nbytes + 64, np.uint8)
            moved[name] = raw[shift : shift + tap.nbytes].view(np.float32).reshape(tap.shape)
            moved[name][:] = tap
        again = scorer.score(moved)[0]
        assert again.score == expected.score
        np.testing.assert_array_equal(again.map, expected.map)


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_is_calibrated_on_its_own_scores(tmp_path: Path, rule: Rule) -> None:
    bundle = make_bundle(tmp_path / "b", rule)
    scores = bundle.calibration["score"]
    above = np.mean(scores > bundle.manifest.calibration.threshold)
    assert above <= 0.05
    assert above >= 0.05 - 2 / GOOD
    if rule != "combined":
        np.testing.assert_array_equal(scores, bundle.calibration[rule])
    scored = Scorer(bundle).score(taps_of(1, 7))[0]
    assert scored.score == image_score(bundle.manifest.score, scored.parts, rule)


def test_the_combination_is_the_larger_standardised_log() -> None:
    spec = ScoreSpec(norm=LogScale(mean=math.log(10), std=0.1, floor=1e-3), max=LogScale(mean=0.0, std=0.5, floor=1e-3))
    # At the typical value of both: one times a typical good picture.
    assert image_score(spec, {"norm": 10, "max": 1}) == pytest.approx(1)
    # The norm rules: the score is its ratio to the typical norm.
    assert image_score(spec, {"norm": 13, "max": 1}) == pytest.approx(1.3)
    # Two standard deviations of the other part weigh as much as two of the norm.
    assert image_score(spec, {"norm": 10, "max": math.exp(1.0)}) == pytest.approx(math.exp(0.2))
    assert image_score(spec, {"norm": 0, "max": 0}) > 0
    assert math.isfinite(image_score(spec, {"norm": 1e300, "max": 1e300}))
    with pytest.raises(HeadError, match="needs a head with a norm"):
        image_score(spec, {"max": 1.0})
    with pytest.raises(HeadError, match="which this head does not give"):
        image_score(spec, {"max": 1.0}, "norm")


def test_a_single_thread_is_one_for_blas_and_opencv() -> None:
    single_thread()
    assert {lib["num_threads"] for lib in threadpool_info() if lib["user_api"] == "blas"} == {1}
    assert cv2.getNumThreads() == 1


def test_a_device_that_runs_imports_neither_torch_nor_the_fit() -> None:
    code = (
        "import sys, edge.bundle, edge.heads.scorer, edge.heads.fre;"
        "print([name for name in ('torch', 'onnx', 'calibration', 'sklearn') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout.strip() == "[]"


def test_nan_is_never_a_score(bundle: Bundle) -> None:
    taps = taps_of(2, 8)
    taps["layer2"][1, 0, 0, 0] = np.nan
    with pytest.raises(HeadError, match="not finite"):
        Scorer(bundle).score(taps)
