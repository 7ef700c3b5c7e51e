"""FRE's trained encoders: oracle 6 of the method's page, the head that runs them, the fit, and what is refused."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

torch = pytest.importorskip("torch", reason="needs the extra fit")

from calibration import no_progress  # noqa: E402
from calibration.conformal import folds_of  # noqa: E402
from calibration.constants import calibrate  # noqa: E402
from calibration.fre_autoencoder import AutoencoderTask, LinearAutoencoder, trained_arrays  # noqa: E402
from calibration.methods import Job, MethodFit, Source, fitter_of  # noqa: E402
from calibration.options import FitOptions  # noqa: E402
from calibration.training import Schedule, TrainingInterrupted, train  # noqa: E402
from edge.bundle import (  # noqa: E402
    BackboneInfo,
    InputInfo,
    Manifest,
    Provenance,
    SplitInfo,
    TapInfo,
    load_bundle,
    write_bundle,
)
from edge.errors import DataError, HeadError  # noqa: E402
from edge.heads import load_head, resident_arrays, single_thread  # noqa: E402
from edge.heads.fre import FreHead, linear_residual  # noqa: E402
from edge.heads.scorer import Scorer  # noqa: E402

SIZE, KEPT, COUNT = 50, 5, 120


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Two threads that wait for each other on a busy machine take ten times as long over layers this small."""
    single_thread()
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@dataclass(frozen=True)
class Problem:
    """Pictures with five strong directions and 45 weak ones. loss: what the best five leave of the variance."""

    features: dict[str, NDArray[np.float16]]
    mean: NDArray[np.float64]
    axes: NDArray[np.float64]  # [5, 50]
    loss: float

    def task(self, tied: bool) -> AutoencoderTask:
        return AutoencoderTask(self.features, {"x": self.mean}, np.arange(COUNT), {"x": KEPT}, tied=tied, seed=0)

    def angle(self, rows: NDArray[Any]) -> float:
        """Largest principal angle between the span of ``rows`` and the principal subspace, radians."""
        basis = np.linalg.qr(rows.T.astype(np.float64))[0]
        return float(np.arcsin(min(1.0, np.linalg.norm(basis - self.axes.T @ (self.axes @ basis), 2))))


@pytest.fixture(scope="module")
def problem() -> Problem:
    rng = np.random.default_rng(0)
    turned = np.linalg.qr(rng.normal(size=(SIZE, SIZE)))[0]
    strength = np.concatenate([[3.0, 2.5, 2.0, 1.6, 1.3], np.full(SIZE - KEPT, 0.6)])
    values = (2 + rng.normal(size=(COUNT, SIZE)) * strength @ turned.T).astype(np.float16)
    exact = values.astype(np.float64)
    _, lengths, axes = np.linalg.svd(exact - exact.mean(0), full_matrices=False)
    left = float((lengths[KEPT:] ** 2).sum() / (lengths**2).sum())
    return Problem({"x": values.reshape(COUNT, 2, 5, 5)}, exact.mean(0), axes[:KEPT], left)


@pytest.fixture(scope="module")
def trained(problem: Problem) -> dict[str, tuple[dict[str, NDArray[np.float32]], NDArray[np.float64]]]:
    """By encoder: the arrays of the head, and the loss of every epoch."""
    found = {}
    for encoder, epochs in (("tied", 300), ("ae", 1000)):
        task = problem.task(encoder == "tied")
        schedule = Schedule(epochs=epochs, batch=COUNT, lr=0.03, warmup=0, decay="cosine", clip=None)
        history = np.array(train(task, schedule).history)
        found[encoder] = (trained_arrays(task, {"x": problem.mean})["x"], history)
    return found


# 6
def test_the_tied_autoencoder_becomes_the_principal_subspace(problem: Problem, trained: Mapping[str, Any]) -> None:
    arrays, history = trained["tied"]
    rows = arrays["w"].astype(np.float64)
    np.testing.assert_allclose(rows @ rows.T, np.eye(KEPT), atol=1e-4)
    assert problem.angle(rows) < 1e-3
    assert history[-1] == pytest.approx(problem.loss, rel=1e-4)
    assert history.min() > problem.loss * (1 - 1e-5)  # no linear auto-encoder of this rank does better


# 6
def test_the_untied_autoencoder_reaches_the_same_product(problem: Problem, trained: Mapping[str, Any]) -> None:
    arrays, history = trained["ae"]
    assert problem.angle(arrays["dec"]) < 1e-3
    product = arrays["dec"].T.astype(np.float64) @ arrays["enc"]
    np.testing.assert_allclose(product, problem.axes.T @ problem.axes, atol=2e-3)
    assert history[-1] == pytest.approx(problem.loss, rel=1e-4)
    assert np.abs(arrays["enc"] @ arrays["enc"].T - np.eye(KEPT)).max() > 0.1  # its rows may be any basis


# 6
def test_the_tied_one_converges_faster(problem: Problem) -> None:
    schedule = Schedule(epochs=120, batch=COUNT, lr=0.03, warmup=0, clip=None)
    first = {}
    for tied in (True, False):
        history = np.array(train(problem.task(tied), schedule).history)
        near = np.flatnonzero(history < 1.01 * problem.loss)
        first[tied] = int(near[0]) if len(near) else len(history)
    assert first[True] < first[False]


def test_biases_start_at_the_mean_and_weights_are_fixed_by_the_seed(problem: Problem) -> None:
    model = LinearAutoencoder(SIZE, KEPT, tied=False, seed=3)
    arrays = model.arrays(problem.mean)
    np.testing.assert_allclose(arrays["mu"], problem.mean, rtol=1e-6)
    assert not arrays["shift"].any()
    bound = np.sqrt(6 / (SIZE + KEPT))  # Xavier, uniform
    assert 0.9 * bound < np.abs(arrays["enc"]).max() <= bound
    again, other = (LinearAutoencoder(SIZE, KEPT, tied=False, seed=seed).arrays(problem.mean) for seed in (3, 4))
    assert all(np.array_equal(arrays[name], again[name]) for name in arrays)
    assert not np.array_equal(arrays["enc"], other["enc"])
    assert not np.array_equal(arrays["enc"], arrays["dec"])


@pytest.mark.parametrize("tied", [True, False])
def test_arrays_give_what_the_network_gives(problem: Problem, tied: bool) -> None:
    model = LinearAutoencoder(SIZE, KEPT, tied, seed=1)
    random = torch.Generator().manual_seed(2)
    for parameter in (model.code_bias, model.bias):
        parameter.data.copy_(torch.randn(parameter.shape, generator=random))
    pictures = problem.features["x"][:7].reshape(7, -1).astype(np.float32)
    centred = torch.from_numpy(pictures - problem.mean.astype(np.float32))
    with torch.inference_mode():
        wanted = (centred - model(centred)).numpy()
    arrays = model.arrays(problem.mean)
    encode, decode = arrays.get("enc", arrays.get("w")), arrays.get("dec", arrays.get("w"))
    got = linear_residual(pictures, arrays["mu"], encode, decode, arrays["shift"])
    np.testing.assert_allclose(got, wanted, atol=2e-5)


# The fit and its head.

SHAPES = {"layer2": (4, 9, 8), "layer3": (6, 6, 4)}
GOOD = 30


def taps_of(count: int, seed: int) -> dict[str, NDArray[np.float32]]:
    pattern, rng = np.random.default_rng(0), np.random.default_rng(seed)
    weights = rng.normal(size=(count, 3))
    taps = {}
    for name, shape in SHAPES.items():
        axes, base = pattern.normal(size=(3, *shape)), pattern.normal(size=shape)
        noise = 0.2 * rng.normal(size=(count, *shape))
        taps[name] = np.maximum(1 + base + np.tensordot(weights, axes, 1) + noise, 0).astype(np.float32)
    return taps


def source() -> Source:
    taps = tuple(TapInfo(name=n, channels=s[0], height=s[1], width=s[2]) for n, s in SHAPES.items())
    sha = hashlib.sha256(b"graph").hexdigest()
    info = BackboneInfo(name="fake", graph_sha256=sha, precision="f32", taps=taps)
    return Source(info, InputInfo(height=32, width=32), b"graph", "none")


def options_of(encoder: str, **settings: object) -> FitOptions:
    given = {"encoder": encoder, "epochs": 60, "lr": 0.03, "batch": 8, **settings}
    return FitOptions(layers=tuple(SHAPES), variance=0.9, calibration="holdout", settings=given).resolved()


def fit(options: FitOptions, good: dict[str, NDArray[np.float32]] | None = None) -> MethodFit:
    fitter, good = fitter_of("fre"), good or taps_of(GOOD, 1)
    rows = [fitter.keep(options, {name: tap[i : i + 1] for name, tap in good.items()}) for i in range(GOOD)]
    stored = {name: np.stack([row[name] for row in rows]) for name in SHAPES}
    held = np.arange(2, 10)
    rest = np.setdiff1d(np.arange(GOOD), held)
    folds = tuple(rest[part] for part in folds_of(len(rest), 4, 0))
    return fitter.fit(Job(stored, source(), options, rest, held, folds, progress=no_progress))


@pytest.fixture(scope="module", params=["tied", "ae"])
def fitted(request: pytest.FixtureRequest) -> MethodFit:
    single_thread()
    return fit(options_of(request.param))


def test_the_head_is_its_reference_in_float64_at_any_batch(fitted: MethodFit) -> None:
    head, taps = load_head("fre", fitted.spec, fitted.arrays), taps_of(6, 5)
    assert isinstance(head, FreHead)
    found = head.residuals(taps)
    assert found.norms is not None
    for level, (name, shape) in zip(found.levels, SHAPES.items(), strict=True):
        channels, height, width = shape[0], shape[1] // 2, shape[2] // 2
        cut = taps[name][:, :, : 2 * height, : 2 * width].astype(np.float64)
        pooled = cut.reshape(6, channels, height, 2, width, 2).mean(axis=(3, 5)).reshape(6, -1)
        arrays = {kind: fitted.arrays.get(f"{kind}_{name}") for kind in ("w", "enc", "dec", "mu", "shift")}
        encode = arrays["enc"] if arrays["w"] is None else arrays["w"]
        decode = arrays["dec"] if arrays["w"] is None else arrays["w"]
        rest = linear_residual(pooled, *(a.astype(np.float64) for a in (arrays["mu"], encode, decode, arrays["shift"])))
        exact = (rest.reshape(6, channels, height, width) ** 2).mean(axis=1)
        np.testing.assert_allclose(level, exact, rtol=1e-3, atol=1e-6 * exact.max())
        if name == "layer3":
            np.testing.assert_allclose(found.norms, np.linalg.norm(rest, axis=1), rtol=1e-5)
    np.testing.assert_array_equal(head.norms(taps), found.norms)
    for i in range(6):
        alone = head.residuals({name: tap[i : i + 1] for name, tap in taps.items()})
        for one, many in zip(alone.levels, found.levels, strict=True):
            np.testing.assert_array_equal(one[0], many[i])


def test_held_out_residuals_are_what_the_running_head_gives(fitted: MethodFit) -> None:
    good = taps_of(GOOD, 1)
    running = load_head("fre", fitted.spec, fitted.arrays).residuals({n: t[2:10] for n, t in good.items()})
    # The fit has seen the features rounded to float16.
    np.testing.assert_allclose(fitted.calibrating.norms, running.norms, rtol=2e-3)
    for level, apart in zip(running.levels, fitted.calibrating.levels, strict=True):
        np.testing.assert_allclose(apart, level, rtol=0.05, atol=2e-3 * level.max())
    assert len(fitted.scaling.levels[0]) == GOOD - 8
    assert fitted.details["variance_left"] < 0.2  # type: ignore[operator]


def test_a_bundle_brings_a_trained_head_back(fitted: MethodFit, tmp_path: Path) -> None:
    options = FitOptions().resolved()
    assert options.tail is not None
    tail = options.tail.model_copy(update={"size": (32, 32)})
    constants = calibrate(fitted, tail, "combined", rate=0.1, exact=True, how="holdout", seed=0)
    manifest = Manifest(
        method="fre",
        spec=fitted.spec,
        backbone=source().backbone,
        input=source().input,
        tail=constants.tail,
        score=constants.score,
        calibration=constants.info,
        provenance=Provenance(created="now", tool="t", runtime="r", pictures=GOOD, pictures_sha256="0" * 64),
        split=SplitInfo(layout="folder", fitted=()),
    )
    write_bundle(tmp_path / "b", manifest, fitted.arrays, constants.scores, b"graph", fitted.refit or None)
    bundle, taps = load_bundle(tmp_path / "b"), taps_of(3, 8)
    before, after = load_head("fre", fitted.spec, fitted.arrays).residuals(taps), bundle.make_head().residuals(taps)
    for one, other in zip(before.levels, after.levels, strict=True):
        np.testing.assert_array_equal(one, other)
    broken = {name: tap + 3 * (np.arange(tap.shape[3]) == 2) for name, tap in taps.items()}
    scorer = Scorer(bundle)
    for good, bad in zip(
        scorer.score(taps), scorer.score({n: t.astype(np.float32) for n, t in broken.items()}), strict=True
    ):
        assert bad.score > scorer.threshold > 0
        assert good.score < bad.score


def test_a_second_fit_is_the_same_and_a_resumed_one_too(tmp_path: Path) -> None:
    options = options_of("tied", epochs=6)
    first, second = fit(options), fit(options)
    stopped = options_of("tied", epochs=6, minutes=1e-9, resume=str(tmp_path / "t"))
    for _ in range(2):
        with pytest.raises(TrainingInterrupted, match="goes on from there"):
            fit(stopped)
    resumed = fit(options_of("tied", epochs=6, resume=str(tmp_path / "t")))
    assert resumed.details["resumed_at_step"] == 2
    for name, array in first.arrays.items():
        np.testing.assert_array_equal(array, second.arrays[name])
        np.testing.assert_array_equal(array, resumed.arrays[name])
    with pytest.raises(DataError, match="an unfinished training with other encoder"):
        fit(options_of("ae", epochs=6, resume=str(tmp_path / "t")))


def test_held_out_pictures_shape_nothing(fitted: MethodFit) -> None:
    good = taps_of(GOOD, 1)
    for name, other_pictures in taps_of(8, 77).items():
        good[name][2:10] = other_pictures
    other = fit(options_of(str(fitted.spec["encoder"])), good)
    assert not np.array_equal(other.calibrating.norms, fitted.calibrating.norms)
    for name, array in fitted.arrays.items():
        np.testing.assert_array_equal(array, other.arrays[name])


# 12
def test_float16_storage_scores_within_a_thousandth(fitted: MethodFit) -> None:
    encoder = str(fitted.spec["encoder"])
    halved = fit(options_of(encoder, storage="float16"))
    kinds = {"tied": {"w"}, "ae": {"enc", "dec"}}[encoder]
    assert {name.split("_")[0] for name, array in halved.arrays.items() if array.dtype == np.float16} == kinds
    taps = taps_of(6, 5)
    wide = load_head("fre", halved.spec, resident_arrays("fre", halved.spec, halved.arrays)).residuals(taps).norms
    exact = load_head("fre", fitted.spec, fitted.arrays).residuals(taps).norms
    np.testing.assert_allclose(wide, exact, rtol=1e-3)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"shift_layer3": None}, "lacks the array 'shift_layer3'"),
        ({"shift_layer3": np.zeros(1, np.float32)}, "do not belong together"),
        ({"shift_layer3": np.zeros(99)}, "do not belong together"),
        ({"mu_layer3": np.full(36, np.nan, np.float32)}, "not finite"),
        ({"gram_layer3": np.zeros((2, 2))}, "has no use for the array 'gram_layer3'"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(fitted: MethodFit, change: dict[str, Any], says: str) -> None:
    arrays = {name: array for name, array in {**fitted.arrays, **change}.items() if array is not None}
    with pytest.raises(HeadError, match=says):
        load_head("fre", fitted.spec, arrays)


def test_a_head_of_one_encoder_does_not_take_anothers_arrays(fitted: MethodFit) -> None:
    for encoder in {"pca", "tied", "ae"} - {str(fitted.spec["encoder"])}:
        with pytest.raises(HeadError):
            load_head("fre", {**fitted.spec, "encoder": encoder}, fitted.arrays)
    with pytest.raises(HeadError, match="contradict"):
        load_head("fre", {**fitted.spec, "encoder": "magic"}, fitted.arrays)


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"settings": {"encoder": "tied"}}, "add --calibration holdout"),
        ({"settings": {"encoder": "deep"}}, "fre: encoder"),
        ({"settings": {"epochs": 0}}, "fre: epochs"),
        ({"settings": {"storage": "int8"}}, "fre: storage"),
        ({"settings": {"gate": 0.8}}, "add --score norm"),
        ({"settings": {"gate": 1.0}, "rule": "norm"}, "fre: gate"),
        ({"settings": {"gate": 0.8, "encoder": "tied"}, "rule": "norm", "calibration": "holdout"}, "encoder pca"),
    ],
)
def test_settings_that_cannot_work_are_refused(asked: dict[str, Any], says: str) -> None:
    with pytest.raises(DataError, match=says):
        FitOptions(**asked).resolved()


def test_a_trained_bundle_cannot_be_refitted(fitted: MethodFit) -> None:
    with pytest.raises(DataError, match="without what a refit needs"):
        fitter_of("fre").restore(FitOptions().resolved(), fitted.spec, fitted.arrays, None)
