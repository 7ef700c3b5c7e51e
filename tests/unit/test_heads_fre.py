"""FRE: the oracles of its method page, at run time and in the fit.

1   test_snapshot_pca_is_scikit_learns, test_component_count_is_right_sided_monotone_and_ends_at_n_minus_1
2   test_basis_is_orthonormal_and_reconstruction_idempotent,
    test_a_training_picture_has_no_residual_with_all_components
3   test_energy_identity_and_pythagoras, test_norms_without_maps_are_the_norms_within_their_bound
4   test_the_mean_scores_zero_and_an_orthogonal_step_scores_its_length
5   test_eckart_young
6   test_fre_autoencoder.py: test_the_tied_autoencoder_becomes_the_principal_subspace,
    test_the_untied_autoencoder_reaches_the_same_product, test_the_tied_one_converges_faster
7   test_map_mass_is_the_squared_score_and_maps_are_not_negative
8   test_pooling_is_torchs_and_drops_the_odd_border
9   test_the_fused_map_is_the_geometric_mean_and_a_layers_unit_changes_no_order; the rule by itself in
    test_heads_tail.py: test_one_level_is_passed_on_and_equal_levels_give_the_same_map,
    test_scaling_one_level_scales_a_geometric_mean_by_its_root
10  test_scoring_changes_nothing_and_twice_is_the_same
11  test_fre_graph.py: test_backbone_and_head_in_one_graph_are_the_head_in_numpy
12  test_a_float16_subspace_scores_within_a_thousandth, and of trained ones in test_fre_autoencoder.py
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from calibration.conformal import folds_of
from calibration.constants import calibrate
from calibration.fre import FreFitter, fit
from calibration.methods import Job, MethodFit, Source
from calibration.metrics import image_auroc
from calibration.options import FitOptions
from calibration.snapshot import count_components, fit_subspace, gram, held_out, mean_of, recentre
from edge.bundle import BackboneInfo, InputInfo, Manifest, Provenance, SplitInfo, TapInfo, load_bundle, write_bundle
from edge.errors import DataError, HeadError
from edge.heads import load_head, resident_arrays, single_thread
from edge.heads.fre import FreHead, pool_mean
from edge.heads.scorer import Rule, Scorer
from edge.heads.tail import Tail, TailSpec

N, C, H, W = 24, 6, 9, 8  # an odd height: pooling drops its last row
POOLED = (C, 4, 4)
D = int(np.prod(POOLED))


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    single_thread()


def pictures(count: int = N, seed: int = 0) -> np.ndarray:
    """Correlated, ReLU-like pooled features in float16, as a fit sees them: [count, C, h, w]."""
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(12, D)) * np.linspace(3, 0.3, 12)[:, None]
    flat = np.maximum(rng.normal(size=(count, 12)) @ mix + 2 + 0.2 * rng.normal(size=(count, D)), 0)
    return flat.reshape(count, *POOLED).astype(np.float16)


def taps_of(pooled: np.ndarray) -> np.ndarray:
    """Taps [n, C, H, W] whose average pooling by 2 is exactly ``pooled`` (values repeated; a junk last
    row)."""
    taps = np.zeros((len(pooled), C, H, W), np.float32)
    taps[:, :, :8, :] = pooled.astype(np.float32).repeat(2, axis=2).repeat(2, axis=3)
    taps[:, :, 8, :] = 99.0
    return taps


def fre_head(variance: float = 0.9, layers: int = 1) -> FreHead:
    features = {f"layer{i + 1}": pictures(seed=i) for i in range(layers)}
    fitted = fit(
        features,
        dict.fromkeys(features, (C, H, W)),
        detection=f"layer{layers}",
        pool=2,
        variance=variance,
        folds=folds_of(N, 4, 0),
        held=None,
    )
    head = load_head("fre", fitted.spec, fitted.arrays)
    assert isinstance(head, FreHead)
    return head


def subspace(head: FreHead) -> tuple[np.ndarray, np.ndarray]:
    layer = head._layers[0]
    return layer.mean.astype(np.float64), layer.encode.astype(np.float64)


def flat_score(head: FreHead, vector: np.ndarray) -> float:
    tap = taps_of(vector.reshape(1, *POOLED))
    # Bypass float16: the vector is exact in float32.
    tap[:, :, :8, :] = vector.reshape(1, *POOLED).astype(np.float32).repeat(2, axis=2).repeat(2, axis=3)
    norms = head.residuals({"layer1": tap}).norms
    assert norms is not None
    return float(norms[0])


# 1
@pytest.mark.parametrize("variance", [0.5, 0.9, 0.97, 0.999])
def test_snapshot_pca_is_scikit_learns(variance: float) -> None:
    features = pictures()
    flat = features.reshape(N, -1).astype(np.float64)
    mean = mean_of(features)
    fitted = fit_subspace(features, mean, gram(features, mean), variance)
    pca = PCA(variance, svd_solver="full").fit(flat)
    assert len(fitted.basis) == pca.n_components_
    np.testing.assert_allclose(mean, pca.mean_, atol=1e-12)
    # In float64 the projectors agree to 1e-8; the stored basis is float32.
    values, vectors = np.linalg.eigh(gram(features, mean))
    k = pca.n_components_
    exact = (vectors[:, ::-1][:, :k] / np.sqrt(values[::-1][:k])).T @ (flat - mean)
    np.testing.assert_allclose(exact.T @ exact, pca.components_.T @ pca.components_, atol=1e-8)
    np.testing.assert_allclose(fitted.basis, exact, atol=2e-7)


# 1
def test_component_count_is_right_sided_monotone_and_ends_at_n_minus_1() -> None:
    # Cumulative shares 0.5, 0.75, 1: at exactly 0.75 the right-sided rule asks for one more.
    assert count_components(np.array([2.0, 1.0, 1.0]), 0.75) == 3
    assert count_components(np.array([2.0, 1.0, 1.0]), 0.74) == 2
    features = pictures()
    values = np.linalg.eigvalsh(gram(features, mean_of(features)))[::-1]
    counts = [count_components(values, v) for v in (0.1, 0.5, 0.9, 0.97, 0.99, 1 - 1e-15)]
    assert counts == sorted(counts)
    assert counts[-1] == N - 1


# 2
def test_basis_is_orthonormal_and_reconstruction_idempotent() -> None:
    head = fre_head()
    mean, basis = subspace(head)
    np.testing.assert_allclose(basis @ basis.T, np.eye(len(basis)), atol=1e-5)
    vector = pictures(1, seed=5).reshape(-1).astype(np.float64)
    rebuilt = mean + basis.T @ (basis @ (vector - mean))
    assert flat_score(head, vector) > 0.1
    assert flat_score(head, rebuilt) < 1e-4


# 2
def test_a_training_picture_has_no_residual_with_all_components() -> None:
    head = fre_head(variance=1 - 1e-15)
    for picture in pictures():
        assert flat_score(head, picture.reshape(-1).astype(np.float64)) < 1e-3


# 3
def test_energy_identity_and_pythagoras() -> None:
    head = fre_head()
    mean, basis = subspace(head)
    for seed in range(3):
        centred = pictures(1, seed=50 + seed).reshape(-1).astype(np.float64) - mean
        score = flat_score(head, centred + mean)
        assert score**2 == pytest.approx(centred @ centred - np.sum((basis @ centred) ** 2), rel=1e-4)
        rebuilt = basis.T @ (basis @ centred)
        assert centred @ centred == pytest.approx(rebuilt @ rebuilt + score**2, rel=1e-5)


# 4
def test_the_mean_scores_zero_and_an_orthogonal_step_scores_its_length() -> None:
    head = fre_head()
    mean, basis = subspace(head)
    assert flat_score(head, mean) < 1e-5
    away = np.random.default_rng(3).normal(size=D)
    away -= basis.T @ (basis @ away)
    away /= np.linalg.norm(away)
    for length in (0.5, 3.0, 40.0):
        assert flat_score(head, mean + length * away) == pytest.approx(length, rel=1e-4)


# 5
def test_eckart_young() -> None:
    features = pictures()
    mean = mean_of(features)
    matrix = gram(features, mean)
    fitted = fit_subspace(features, mean, matrix, 0.9)
    k = len(fitted.basis)
    centred = features.reshape(N, -1).astype(np.float64) - mean
    error = np.sum((centred - centred @ fitted.basis.T.astype(np.float64) @ fitted.basis) ** 2)
    assert error == pytest.approx(fitted.eigenvalues[k:].sum(), rel=1e-4)
    rng = np.random.default_rng(0)
    for _ in range(20):  # no other subspace of the rank does better
        other, _ = np.linalg.qr(rng.normal(size=(D, k)) + 3 * fitted.basis.T)
        assert np.sum((centred - centred @ other @ other.T) ** 2) > error


# 7
def test_map_mass_is_the_squared_score_and_maps_are_not_negative() -> None:
    result = fre_head().residuals({"layer1": taps_of(pictures(3, seed=9))})
    assert result.norms is not None
    np.testing.assert_allclose(result.levels[0].mean(axis=(1, 2), dtype=np.float64) * D, result.norms**2, rtol=1e-6)
    assert all((level >= 0).all() for level in result.levels)


# 8
@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 15, 15), (1, 7, 10)])
@pytest.mark.parametrize("pool", [1, 2, 3])
def test_pooling_is_torchs_and_drops_the_odd_border(shape: tuple[int, int, int], pool: int) -> None:
    tap = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    expected = torch.nn.functional.avg_pool2d(torch.from_numpy(tap)[None], pool)[0].numpy()
    assert pool_mean(tap, pool).shape == (shape[0], shape[1] // pool, shape[2] // pool)
    np.testing.assert_allclose(pool_mean(tap, pool), expected, atol=1e-6)


# 10
def test_scoring_changes_nothing_and_twice_is_the_same() -> None:
    head = fre_head(layers=2)
    taps = {"layer1": taps_of(pictures(2)), "layer2": taps_of(pictures(2, seed=7))}
    before = {name: tap.copy() for name, tap in taps.items()}
    arrays = [(layer.mean.copy(), layer.encode.copy()) for layer in head._layers]
    for tap in taps.values():
        tap.flags.writeable = False
    first, second = head.residuals(taps), head.residuals(taps)
    for one, two in zip(first.levels, second.levels, strict=True):
        assert np.array_equal(one, two)
        assert one is not two
    for name, tap in taps.items():
        assert np.array_equal(tap, before[name])
    for layer, (mean, basis) in zip(head._layers, arrays, strict=True):
        assert np.array_equal(layer.mean, mean)
        assert np.array_equal(layer.encode, basis)


# 9
def test_the_fused_map_is_the_geometric_mean_and_a_layers_unit_changes_no_order() -> None:
    head, tail = fre_head(layers=2), Tail(TailSpec(size=(4, 4)))
    seen = np.concatenate([pictures(6, seed=31), pictures(6, seed=32) + np.float16(0.7)])
    levels = head.residuals({"layer1": taps_of(seen), "layer2": taps_of(seen)}).levels
    fused, scores = tail.apply(levels)
    np.testing.assert_allclose(fused, np.sqrt(levels[0] * levels[1]), rtol=1e-5)
    assert np.array_equal(tail.apply(levels[:1])[0], levels[0])
    np.testing.assert_allclose(tail.apply([levels[0]] * 3)[0], levels[0], rtol=1e-5)
    for factor in (1e-3, 40.0):
        other, moved = tail.apply([levels[0] * np.float32(factor), levels[1]])
        np.testing.assert_allclose(other, fused * factor**0.5, rtol=1e-4)
        worse = [i >= 6 for i in range(12)]
        assert image_auroc(moved.tolist(), worse) == image_auroc(scores.tolist(), worse)


def fitted_by_options(rule: Rule = "norm", **settings: object) -> MethodFit:
    """Through the fitter, as ``edge fit`` does it; layer1 and layer2 of the same shape."""
    options = FitOptions(
        layers=("layer1", "layer2"), detection="layer2", rule=rule, variance=0.9, settings=settings
    ).resolved()
    stored = {"layer1": pictures(seed=0), "layer2": pictures(seed=1)}
    folds = tuple(folds_of(N, 4, 0))
    return FreFitter().fit(Job(stored, source(), options, np.arange(N), None, folds))


def source() -> Source:
    taps = tuple(TapInfo(name=name, channels=C, height=H, width=W) for name in ("layer1", "layer2"))
    sha = hashlib.sha256(b"graph").hexdigest()
    info = BackboneInfo(name="fake", graph_sha256=sha, precision="f32", taps=taps)
    return Source(info, InputInfo(height=32, width=32), b"graph", "none")


def scorer_of(fitted: MethodFit, path: Path, rule: Rule = "norm") -> Scorer:
    constants = calibrate(fitted, TailSpec(size=(16, 16)), rule, rate=0.1, exact=False, how="folds", seed=0)
    manifest = Manifest(
        method="fre",
        spec=fitted.spec,
        backbone=source().backbone,
        input=source().input,
        tail=constants.tail,
        score=constants.score,
        calibration=constants.info,
        provenance=Provenance(created="now", tool="t", runtime="r", pictures=N, pictures_sha256="0" * 64),
        split=SplitInfo(layout="folder", fitted=()),
    )
    write_bundle(path, manifest, fitted.arrays, constants.scores, b"graph")
    return Scorer(load_bundle(path))


def both(pooled: np.ndarray) -> dict[str, np.ndarray]:
    return {"layer1": taps_of(pooled), "layer2": taps_of(pooled)}


# 12
def test_a_float16_subspace_scores_within_a_thousandth(tmp_path: Path) -> None:
    exact, halved = fitted_by_options(), fitted_by_options(storage="float16")
    assert {halved.arrays[f"w_layer{i}"].dtype for i in (1, 2)} == {np.dtype(np.float16)}
    assert halved.arrays["mu_layer1"].dtype == np.float32
    seen = both(pictures(8, seed=21))
    one = scorer_of(exact, tmp_path / "exact").score(seen)
    other = scorer_of(halved, tmp_path / "halved").score(seen)
    np.testing.assert_allclose([s.score for s in other], [s.score for s in one], rtol=1e-3)
    # In memory it is float32, shared by all heads; half as large on disk.
    wide = resident_arrays("fre", halved.spec, halved.arrays)
    assert {array.dtype for array in wide.values()} == {np.dtype(np.float32)}
    np.testing.assert_array_equal(wide["w_layer1"], halved.arrays["w_layer1"].astype(np.float32))
    sizes = [(tmp_path / name / "head.safetensors").stat().st_size for name in ("halved", "exact")]
    means = 2 * 4 * D
    assert sizes[0] - means < 0.55 * (sizes[1] - means)


def test_settings_left_out_change_no_bit_of_a_fit() -> None:
    plain = fitted_by_options()
    assert set(plain.arrays) == {f"{kind}_layer{i}" for kind in ("mu", "w") for i in (1, 2)}
    assert not {"encoder", "gate"} & set(plain.spec)
    named = fitted_by_options(encoder="pca", storage="float32", epochs=3)
    assert named.spec == plain.spec
    for name, array in plain.arrays.items():
        assert array.tobytes() == named.arrays[name].tobytes()


# 3, and the score without a map


def test_norms_without_maps_are_the_norms_within_their_bound() -> None:
    head = fre_head(layers=2)
    layer = head._layers[1]  # the detection layer
    mean, basis = layer.mean.astype(np.float64), layer.encode.astype(np.float64)
    rng = np.random.default_rng(4)
    for leftover in (1.0, 0.1, 0.01):  # of the length: its square is what the subtraction leaves
        away = rng.normal(size=(5, D))
        away -= away @ basis.T @ basis
        within = rng.normal(size=(5, len(basis))) @ basis
        away *= leftover * np.linalg.norm(within, axis=1, keepdims=True) / np.linalg.norm(away, axis=1, keepdims=True)
        pooled = (mean + away + within).astype(np.float32).reshape(-1, *POOLED)
        taps = {"layer1": taps_of(pooled), "layer2": taps_of(pooled)}
        full, quick = head.residuals(taps).norms, head.norms(taps)
        assert full is not None
        assert quick.dtype == np.float64
        lengths = np.sum((pooled.reshape(5, -1) - mean) ** 2, axis=1)
        assert (np.abs(quick**2 - full**2) <= 2e-6 * lengths).all()
        for i in range(5):
            assert head.norms({name: tap[i : i + 1] for name, tap in taps.items()})[0] == quick[i]
    assert head.norms({name: tap[:0] for name, tap in taps.items()}).shape == (0,)
    rebuilt = (mean + within).astype(np.float32).reshape(-1, *POOLED)
    assert (head.norms({"layer1": taps_of(rebuilt), "layer2": taps_of(rebuilt)}) >= 0).all()  # never a NaN


@pytest.mark.parametrize("bad", [np.nan, np.inf, 3e38])
@pytest.mark.parametrize("layer", ["layer1", "layer2"])
def test_no_score_without_a_map_either_where_a_feature_is_not_finite(layer: str, bad: float) -> None:
    taps = both(pictures(2))
    taps[layer][1, 0, 0:2, 0:2] = bad
    with pytest.raises(HeadError, match=f"{layer} are not finite"):
        fre_head(layers=2).norms(taps)


def test_a_gate_gives_good_pictures_a_score_and_no_map(tmp_path: Path) -> None:
    gated = scorer_of(fitted_by_options(gate=0.8), tmp_path / "gated")
    plain = scorer_of(fitted_by_options(), tmp_path / "plain")
    assert gated.threshold == plain.threshold
    assert gated.gate == pytest.approx(0.8 * plain.threshold)
    broken = pictures(4, seed=9)
    broken[:, :, 1, 1] += np.float16(12)
    seen = both(np.concatenate([pictures(20, seed=8), broken]))
    screened, full = gated.screen(seen), plain.score(seen)
    made = [one is None for one in screened]
    assert made == [scored.score >= gated.gate for scored in full]
    assert all(made[20:])
    assert not all(made[:20])
    for one, scored in zip(screened, full, strict=True):
        if one is not None:
            assert one.score == pytest.approx(scored.score, rel=1e-4)
            assert one.p_value == pytest.approx(scored.p_value, abs=2 / (N + 1))
            assert one.parts == {"norm": one.score}
            assert scored.score < gated.threshold
    # Where a map is made, and where one is asked for, all is as without a gate.
    for one, other in zip(gated.score(seen), full, strict=True):
        assert (one.score, one.p_value, one.parts) == (other.score, other.p_value, other.parts)
        np.testing.assert_array_equal(one.map, other.map)
    assert plain.gate is None
    assert plain.screen(seen) == [None] * 24


def test_a_gate_needs_the_rule_that_it_is_for(tmp_path: Path) -> None:
    fitted = fitted_by_options(gate=0.8)
    other = scorer_of(fitted, tmp_path / "b", "combined")
    assert other.gate is None  # the maximum of the map would be missing
    assert other.screen(both(pictures(2))) == [None, None]


@pytest.mark.parametrize("gate", [0.0, 1.0, -1, "wide"])
def test_a_gate_that_makes_no_sense_is_refused(gate: Any) -> None:
    fitted = fitted_by_options()
    with pytest.raises(HeadError, match=r"gate must lie|incomplete"):
        load_head("fre", {**fitted.spec, "gate": gate}, fitted.arrays)


def test_a_result_does_not_depend_on_the_batch_to_the_last_bit() -> None:
    head = fre_head()
    tap = taps_of(pictures(5, seed=3))
    together = head.residuals({"layer1": tap})
    assert together.norms is not None
    for i in range(5):
        alone = head.residuals({"layer1": tap[i : i + 1]})
        assert alone.norms is not None
        assert alone.norms[0] == together.norms[i]
        assert np.array_equal(alone.levels[0][0], together.levels[0][i])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 3e38])
def test_features_that_are_not_finite_give_no_score(bad: float) -> None:
    tap = taps_of(pictures(2))
    tap[1, 0, 0, 0] = bad
    with pytest.raises(HeadError, match="not finite"):
        fre_head().residuals({"layer1": tap})


def test_taps_of_another_shape_are_refused() -> None:
    head = fre_head()
    with pytest.raises(HeadError, match="no tap 'layer1'"):
        head.residuals({"layer2": taps_of(pictures(1))})
    with pytest.raises(HeadError, match="was fitted on"):
        head.residuals({"layer1": np.zeros((1, C, H, W + 1), np.float32)})
    with pytest.raises(HeadError, match="was fitted on"):
        head.residuals({"layer1": np.zeros((1, C, H, W))})  # float64


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"w_layer1": np.zeros((3, D + 1), np.float32)}, "do not fit"),
        ({"w_layer1": np.zeros((3, D), np.float32)}, "length 1"),
        ({"w_layer1": np.full((3, D), np.nan, np.float32)}, "length 1"),
        ({"mu_layer1": np.zeros(D)}, "not float32"),
        ({"mu_layer1": None}, "lacks the array"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(change: dict[str, np.ndarray | None], says: str) -> None:
    layer = fre_head()._layers[0]
    spec = {"layers": ["layer1"], "detection": "layer1", "pool": 2, "shape_layer1": [C, H, W]}
    arrays = {"mu_layer1": layer.mean, "w_layer1": layer.encode, **change}
    with pytest.raises(HeadError, match=says):
        load_head("fre", spec, {name: array for name, array in arrays.items() if array is not None})


def test_an_unknown_method_and_a_broken_spec_are_refused() -> None:
    with pytest.raises(HeadError, match="unknown method 'nope'"):
        load_head("nope", {}, {})
    with pytest.raises(HeadError, match="incomplete"):
        load_head("fre", {"layers": ["layer1"]}, {})
    with pytest.raises(HeadError, match="contradict"):
        load_head("fre", {"layers": [], "detection": "layer1", "pool": 2}, {})


# The fit's shortcuts against the long way round.


def test_held_out_residuals_are_those_of_models_fitted_without_the_fold() -> None:
    features = pictures()
    mean = mean_of(features)
    folds = folds_of(N, 5, 1)
    fast = held_out(features, mean, gram(features, mean), folds, 0.9)
    flat = features.reshape(N, -1).astype(np.float64)
    for fold in folds:
        train = np.setdiff1d(np.arange(N), fold)
        pca = PCA(0.9, svd_solver="full").fit(flat[train])
        residual = flat[fold] - pca.inverse_transform(pca.transform(flat[fold]))
        np.testing.assert_allclose(fast.norms[fold], np.linalg.norm(residual, axis=1), rtol=1e-4)
        expected = (residual.reshape(-1, *POOLED) ** 2).mean(axis=1)
        np.testing.assert_allclose(fast.maps[fold], expected, rtol=2e-3, atol=1e-5)


def test_held_out_residuals_are_what_the_running_head_gives() -> None:
    features = pictures()
    held = np.array([2, 7, 11, 20])
    shapes = {"layer1": (C, H, W)}
    train = np.setdiff1d(np.arange(N), held)
    folds = [train[part] for part in folds_of(len(train), 4, 0)]
    fitted = fit({"layer1": features}, shapes, detection="layer1", pool=2, variance=0.9, folds=folds, held=held)
    running = load_head("fre", fitted.spec, fitted.arrays).residuals({"layer1": taps_of(features[held])})
    assert running.norms is not None
    np.testing.assert_allclose(running.norms, fitted.calibrating.norms, rtol=1e-4)
    np.testing.assert_allclose(running.levels[0], fitted.calibrating.levels[0], rtol=1e-3, atol=1e-5)
    assert len(fitted.scaling.norms) == len(train)
    # The held-out pictures shape nothing of the head: other ones in their place change no bit of it.
    other = features.copy()
    other[held] = pictures(4, seed=77)
    again = fit({"layer1": other}, shapes, detection="layer1", pool=2, variance=0.9, folds=folds, held=held)
    np.testing.assert_allclose(again.arrays["mu_layer1"], fitted.arrays["mu_layer1"], atol=1e-6)
    one, two = again.arrays["w_layer1"], fitted.arrays["w_layer1"]
    np.testing.assert_allclose(one.T @ one, two.T @ two, atol=1e-5)


def test_recentring_a_gram_matrix_is_centring_the_pictures() -> None:
    features = pictures()
    part = features[:10]
    matrix = gram(features, mean_of(features))[:10, :10]
    np.testing.assert_allclose(recentre(matrix), gram(part, mean_of(part)), atol=1e-9)


def test_pictures_all_alike_are_refused() -> None:
    features = np.repeat(pictures(1), 6, axis=0)
    mean = mean_of(features)
    with pytest.raises(DataError, match="do not differ"):
        fit_subspace(features, mean, gram(features, mean), 0.97)


def test_features_beyond_float16_are_refused() -> None:
    features = pictures(6)
    features[2, 0, 0, 0] = np.inf
    with np.errstate(invalid="ignore"), pytest.raises(DataError, match="not finite"):
        gram(features, mean_of(features))
