"""SGFR: the oracles of its method page (numbered as there), the fit's shortcuts, and what it refuses.

1   test_pursuit_is_scikit_learns
2   test_gram_form_is_the_direct_form, test_the_head_is_the_algorithm_in_float64
3   test_sparse_combinations_of_incoherent_columns_are_recovered
4   test_residuals_are_orthogonal_and_shrink_to_the_least_squares_one
5   test_a_bank_column_is_rebuilt_by_itself_alone, test_a_bank_picture_has_an_empty_map
6   test_scaling_a_picture_scales_its_reconstruction
7   test_permuting_columns_permutes_the_support_and_permuting_rows_changes_nothing, test_a_batch_is_its_pictures
8   test_sampling_all_is_sampling_none_and_sampling_itself_is_one_pursuit
9   test_a_planted_patch_is_found_where_it_is
10  test_signed_and_abs_agree_where_no_correlation_is_negative
11  test_leave_one_out_energies_from_the_gram_are_the_explicit_ones

A bank larger than memory: test_float16_resident_gives_the_same_maps; a packed bundle of one:
test_calibration_methods.py, test_a_zip_larger_than_memory_is_refused_with_its_size. A bundle with another method's
arrays: test_heads_contract.py, test_a_bundle_of_one_method_with_the_arrays_of_another_is_refused.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from sklearn.linear_model import orthogonal_mp, orthogonal_mp_gram

from calibration.methods import Job, MethodFit, Source, fitter_of
from calibration.options import FitOptions
from calibration.sgfr import Pursuits, SgfrSettings, leftover, references_of
from calibration.snapshot import gram
from edge.bundle import BackboneInfo, InputInfo, TapInfo
from edge.errors import DataError, HeadError, ResourceError
from edge.heads import half, load_head, resident_arrays, sgfr, single_thread
from edge.heads.bank import Bank, widened_rows
from edge.heads.omp import SELECTIONS, Pursuit, Selection, pursue
from edge.heads.sgfr import SgfrHead

N = 30
SHAPES = {"layer2": (6, 12, 10), "layer3": (10, 6, 5), "layer4": (12, 3, 3)}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    single_thread()


def columns(rows: int = 400, count: int = 40, seed: int = 0) -> np.ndarray:
    """Correlated, ReLU-like columns, float64 [rows, count]: what feature maps look like."""
    rng = np.random.default_rng(seed)
    common = rng.normal(size=(rows, 8)) @ rng.normal(size=(8, count))
    return np.maximum(common + 1.5 + 0.6 * rng.normal(size=(rows, count)), 0)


def gram_pursuit(x: np.ndarray, y: np.ndarray, atoms: int, **settings: object) -> Pursuit:
    return pursue(x.T @ x, x.T @ y, float(y @ y), atoms, **settings)  # type: ignore[arg-type]


def direct(x: np.ndarray, y: np.ndarray, atoms: int, selection: Selection = "abs", unit: bool = False) -> Pursuit:
    """The paper's Algorithm 1, word by word: residual in D dimensions, least squares in each step."""
    support: list[int] = []
    rest, coefficients = y, np.empty(0)
    for _ in range(atoms):
        values = x.T @ rest
        values = np.abs(values) if selection == "abs" else values
        values = values / np.linalg.norm(x, axis=0) if unit else values
        values[support] = -np.inf
        support.append(int(values.argmax()))
        coefficients = np.linalg.lstsq(x[:, support], y, rcond=None)[0]
        rest = y - x[:, support] @ coefficients
    return Pursuit(np.array(support), coefficients, float(rest @ rest))


def residual(x: np.ndarray, y: np.ndarray, found: Pursuit) -> np.ndarray:
    return y - x[:, found.support] @ found.coefficients


# 1
@pytest.mark.parametrize("unit", [False, True])
@pytest.mark.parametrize("atoms", [1, 5, 17, 40])
def test_pursuit_is_scikit_learns(atoms: int, unit: bool) -> None:
    x = columns()
    if unit:
        x = x / np.linalg.norm(x, axis=0)
    for seed in range(5):
        y = columns(count=1, seed=10 + seed)[:, 0]
        found = gram_pursuit(x, y, atoms)
        expected = orthogonal_mp(x, y, n_nonzero_coefs=atoms)
        other = orthogonal_mp_gram(x.T @ x, x.T @ y, n_nonzero_coefs=atoms)
        assert set(found.support) == set(np.flatnonzero(expected)) == set(np.flatnonzero(other))
        np.testing.assert_allclose(found.coefficients, expected[found.support], rtol=1e-8, atol=1e-10)
        np.testing.assert_allclose(found.coefficients, other[found.support], rtol=1e-8, atol=1e-10)


# 2
@pytest.mark.parametrize("unit", [False, True])
@pytest.mark.parametrize("selection", SELECTIONS)
def test_gram_form_is_the_direct_form(selection: Selection, unit: bool) -> None:
    x, y = columns(), columns(count=1, seed=3)[:, 0]
    lengths = np.linalg.norm(x, axis=0) if unit else None
    found = gram_pursuit(x, y, 20, selection=selection, lengths=lengths)
    expected = direct(x, y, 20, selection, unit)
    np.testing.assert_array_equal(found.support, expected.support)
    np.testing.assert_allclose(found.coefficients, expected.coefficients, atol=1e-9)
    assert found.energy == pytest.approx(expected.energy, rel=1e-9)


# 3
@pytest.mark.parametrize(("dtype", "limit"), [(np.float64, 1e-12), (np.float32, 1e-6)])
def test_sparse_combinations_of_incoherent_columns_are_recovered(dtype: type, limit: float) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(500, 40)).astype(dtype)
    chosen = rng.choice(40, 6, replace=False)
    y = x[:, chosen] @ rng.uniform(1, 2, 6).astype(dtype)
    # The products are formed in the bank's precision, as the head does.
    found = pursue((x.T @ x).astype(np.float64), (x.T @ y).astype(np.float64), float(y @ y), 6, eps=1e-9)
    assert set(found.support) == set(chosen)
    assert np.linalg.norm(residual(x.astype(np.float64), y.astype(np.float64), found)) < limit * np.linalg.norm(y)


# 4
def test_residuals_are_orthogonal_and_shrink_to_the_least_squares_one() -> None:
    x, y = columns(), columns(count=1, seed=4)[:, 0]
    last = np.inf
    for atoms in range(1, 41):
        found = gram_pursuit(x, y, atoms)
        rest = residual(x, y, found)
        chosen = x[:, found.support]
        assert np.abs(chosen.T @ rest).max() <= 1e-10 * np.linalg.norm(chosen) * np.linalg.norm(y)
        assert np.linalg.norm(rest) <= last * (1 + 1e-12)
        assert found.energy == pytest.approx(float(rest @ rest), rel=1e-8)
        last = float(np.linalg.norm(rest))
    projection = y - x @ np.linalg.lstsq(x, y, rcond=None)[0]
    np.testing.assert_allclose(residual(x, y, gram_pursuit(x, y, 40)), projection, atol=1e-8)


# 5. By the letter (no normalisation) a longer column may be chosen before the one that is y itself; one atom it is with
# unit lengths, where Cauchy and Schwarz see to it.
@pytest.mark.parametrize("unit", [False, True])
def test_a_bank_column_is_rebuilt_by_itself_alone(unit: bool) -> None:
    x = columns()
    lengths = np.linalg.norm(x, axis=0) if unit else None
    for own in range(40):
        found = gram_pursuit(x, x[:, own], 39, lengths=lengths)
        assert found.support[-1] == own  # and no atom after it
        assert not unit or len(found.support) == 1
        assert found.coefficients[-1] == pytest.approx(1, abs=1e-9)
        np.testing.assert_allclose(found.coefficients[:-1], 0, atol=1e-9)
        assert found.energy <= 1e-12 * float(x[:, own] @ x[:, own])


# 6
@pytest.mark.parametrize("selection", SELECTIONS)
@pytest.mark.parametrize("factor", [1e-3, 7.0, 1e4])
def test_scaling_a_picture_scales_its_reconstruction(selection: Selection, factor: float) -> None:
    x, y = columns(), columns(count=1, seed=5)[:, 0]
    one, other = gram_pursuit(x, y, 17, selection=selection), gram_pursuit(x, factor * y, 17, selection=selection)
    np.testing.assert_array_equal(one.support, other.support)
    np.testing.assert_allclose(other.coefficients, factor * one.coefficients, rtol=1e-9)


# 7
def test_permuting_columns_permutes_the_support_and_permuting_rows_changes_nothing() -> None:
    x, y = columns(), columns(count=1, seed=6)[:, 0]
    rng = np.random.default_rng(0)
    order, rows = rng.permutation(40), rng.permutation(400)
    plain = gram_pursuit(x, y, 17)
    moved = gram_pursuit(x[:, order], y, 17)
    np.testing.assert_array_equal(order[moved.support], plain.support)
    np.testing.assert_array_equal(gram_pursuit(x[rows], y[rows], 17).support, plain.support)


@pytest.mark.parametrize("selection", SELECTIONS)
@pytest.mark.parametrize("unit", [False, True])
def test_a_pursuit_cut_short_is_the_one_that_stopped_there(selection: Selection, unit: bool) -> None:
    x, y = columns(), columns(count=1, seed=11)[:, 0]
    lengths = np.linalg.norm(x, axis=0) if unit else None
    long = gram_pursuit(x, y, 30, selection=selection, lengths=lengths)
    for atoms in (1, 7, 17, 30, 50):
        short = gram_pursuit(x, y, min(atoms, 30), selection=selection, lengths=lengths)
        np.testing.assert_array_equal(long.first(atoms).support, short.support)
        np.testing.assert_array_equal(long.first(atoms).coefficients, short.coefficients)
        assert long.first(atoms).energy == pytest.approx(short.energy, rel=1e-9)


# 10
def test_signed_and_abs_agree_where_no_correlation_is_negative() -> None:
    rng = np.random.default_rng(0)
    x = np.zeros((60, 12))
    for j in range(12):  # orthogonal and non-negative: disjoint rows
        x[5 * j : 5 * j + 5, j] = rng.uniform(0.5, 2, 5)
    y = x @ rng.uniform(0.1, 3, 12) + 0.01 * rng.uniform(size=60)
    one, other = gram_pursuit(x, y, 8, selection="abs"), gram_pursuit(x, y, 8, selection="signed")
    np.testing.assert_array_equal(one.support, other.support)
    np.testing.assert_array_equal(one.coefficients, other.coefficients)
    # Where some are, they differ: a useful negative coefficient is never chosen.
    y = x[:, 0] - 2 * x[:, 1]
    assert gram_pursuit(x, y, 1, selection="abs").support[0] == 1
    assert gram_pursuit(x, y, 1, selection="signed").support[0] == 0


def test_tied_atoms_go_by_the_lowest_index_and_copies_are_passed_over() -> None:
    x, y = columns(), columns(count=1, seed=8)[:, 0]
    first = int(gram_pursuit(x, y, 1).support[0])
    doubled = np.concatenate([x, x], axis=1)
    found = gram_pursuit(doubled, y, 30)
    assert found.support[0] == first
    assert len(set(found.support % 40)) == len(found.support) == 30
    np.testing.assert_array_equal(found.support, gram_pursuit(x, y, 30).support)
    zero = np.concatenate([np.zeros((400, 1)), x], axis=1)
    assert 0 not in gram_pursuit(zero, y, 41).support


def test_a_forbidden_atom_is_not_chosen() -> None:
    x = columns()
    found = gram_pursuit(x, x[:, 7], 39, forbidden=7)
    assert 7 not in found.support
    others = np.delete(np.arange(40), 7)
    np.testing.assert_array_equal(others[gram_pursuit(x[:, others], x[:, 7], 39).support], found.support)


# The bank and its conversion.


def test_widening_is_exact_for_every_finite_value() -> None:
    every = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    values = every[np.isfinite(every)]
    np.testing.assert_array_equal(half.widened(values).view(np.uint32), values.astype(np.float32).view(np.uint32))
    assert half.finite(values)
    for bad in (np.inf, -np.inf, np.nan):
        assert not half.finite(np.array([1.0, bad, 2.0], np.float16))


@pytest.mark.parametrize("size", [64, 8192, 20_000])
@pytest.mark.parametrize("kind", ["float32", "float16"])
@pytest.mark.parametrize("batch", [1, 2, 5])
def test_bank_products_are_those_of_float64(kind: str, size: int, batch: int) -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(21, size)).astype(np.float16)
    bank = Bank(rows if kind == "float16" else widened_rows(rows, "x"))
    pictures = [rng.normal(size=size).astype(np.float32) for _ in range(batch)]
    exact = np.stack(pictures).astype(np.float64) @ rows.astype(np.float64).T
    scale = np.linalg.norm(rows.astype(np.float64), axis=1) * np.sqrt(size)
    assert (np.abs(bank.correlate(pictures) - exact) <= 2e-6 * scale).all()
    some = np.array([20, 3, 4])
    assert (np.abs(bank.correlate_rows(pictures[0], some) - exact[0, some]) <= 2e-6 * scale[some]).all()
    weights = np.array([0.5, -2.0, 3.0])
    left = pictures[0].copy()
    bank.subtract(some, weights, left)
    expected = pictures[0] - weights @ rows[some].astype(np.float64)
    np.testing.assert_allclose(left, expected, atol=1e-5)


# The head.


def features(count: int = N, seed: int = 0) -> dict[str, np.ndarray]:
    """Low-dimensional variation of one pattern, ReLU-like, with noise; float16-exact float32 taps [count, C, h, w]."""
    pattern, rng = np.random.default_rng(99), np.random.default_rng(seed)
    weights = rng.normal(size=(count, 5))
    taps = {}
    for name, shape in SHAPES.items():
        axes, base = pattern.normal(size=(5, *shape)), pattern.normal(size=shape)
        noise = 0.15 * rng.normal(size=(count, *shape))
        values = np.maximum(base + 0.4 * np.tensordot(weights, axes, 1) + noise, 0)
        taps[name] = values.astype(np.float16).astype(np.float32)
    return taps


def source() -> Source:
    taps = tuple(TapInfo(name=n, channels=s[0], height=s[1], width=s[2]) for n, s in SHAPES.items())
    info = BackboneInfo(name="fake", graph_sha256="0" * 64, precision="f32", taps=taps)
    return Source(info, InputInfo(height=64, width=64), b"", "none")


def fit(taps: dict[str, np.ndarray] | None = None, held: np.ndarray | None = None, **asked: object) -> MethodFit:
    layers = asked.pop("layers", ("layer2", "layer3"))
    options = FitOptions(method="sgfr", layers=layers, settings=asked).resolved()  # type: ignore[arg-type]
    stored = {name: values.astype(np.float16) for name, values in (taps or features()).items()}
    count = len(stored["layer2"])
    train = np.setdiff1d(np.arange(count), held if held is not None else [])
    return fitter_of("sgfr").fit(Job(stored, source(), options, train, held, ()))


def head_of(fitted: MethodFit) -> SgfrHead:
    head = load_head("sgfr", fitted.spec, resident_arrays("sgfr", fitted.spec, fitted.arrays))
    assert isinstance(head, SgfrHead)
    return head


def flat(taps: dict[str, np.ndarray], name: str) -> np.ndarray:
    return taps[name].reshape(len(taps[name]), -1).astype(np.float64)


@pytest.mark.parametrize("selection", SELECTIONS)
@pytest.mark.parametrize("unit", [False, True])
def test_the_head_is_the_algorithm_in_float64(selection: Selection, unit: bool) -> None:
    good, seen = features(), features(6, seed=1)
    fitted = fit(atoms=5, samples=9, selection=selection, unit=unit)
    found = head_of(fitted).residuals(seen)
    for i in range(6):
        x3, x2 = flat(good, "layer3").T, flat(good, "layer2").T
        sampled = np.sort(direct(x3, flat(seen, "layer3")[i], 9, selection, unit).support)
        y = flat(seen, "layer2")[i]
        second = direct(x2[:, sampled], y, 5, selection, unit)
        rest = y - x2[:, sampled[second.support]] @ second.coefficients
        expected = np.linalg.norm(rest.reshape(SHAPES["layer2"]), axis=0)
        np.testing.assert_allclose(found.levels[0][i], expected, rtol=1e-4, atol=1e-5)
        third = direct(x3, flat(seen, "layer3")[i], 5, selection, unit)
        assert found.norms is not None
        assert found.norms[i] ** 2 == pytest.approx(third.energy, rel=1e-5)


# 5
def test_a_bank_picture_has_an_empty_map() -> None:
    good = features()
    found = head_of(fit()).residuals(good)
    for level, name in zip(found.levels, ("layer2", "layer3"), strict=True):
        assert level.max() < 1e-4 * np.abs(good[name]).max()


# 8
def test_sampling_all_is_sampling_none_and_sampling_itself_is_one_pursuit() -> None:
    seen = features(4, seed=2)
    everything = head_of(fit(samples=N, atoms=6)).residuals(seen)
    nothing = head_of(fit(sampling="none", atoms=6)).residuals(seen)
    for one, other in zip(everything.levels, nothing.levels, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
    fitted = fit(layers=("layer2",), sampling="none", atoms=6)
    own = replace(fitted, spec={**fitted.spec, "references": ["layer2"], "samples": 6})
    np.testing.assert_allclose(
        head_of(own).residuals(seen).levels[0], head_of(fitted).residuals(seen).levels[0], rtol=1e-5, atol=1e-6
    )


# 7
@pytest.mark.parametrize("count", [2, 5])
def test_a_batch_is_its_pictures(count: int) -> None:
    head, seen = head_of(fit(atoms=6)), features(count, seed=12)
    together = head.residuals(seen)
    assert together.norms is not None
    for i in range(count):
        alone = head.residuals({name: values[i : i + 1] for name, values in seen.items()})
        assert alone.norms is not None
        assert alone.norms[0] == pytest.approx(together.norms[i], rel=1e-5)
        for one, many in zip(alone.levels, together.levels, strict=True):
            np.testing.assert_allclose(one[0], many[i], rtol=1e-4, atol=1e-5)


# 9
def test_a_planted_patch_is_found_where_it_is() -> None:
    seen = features(1, seed=3)
    seen["layer2"][0, :, 4:7, 2:5] += 2
    seen["layer3"][0, :, 2:4, 1:3] += 2
    found = head_of(fit(atoms=8)).residuals(seen)
    y, x = np.unravel_index(found.levels[0][0].argmax(), (12, 10))
    assert 4 <= y < 7
    assert 2 <= x < 5
    y, x = np.unravel_index(found.levels[1][0].argmax(), (6, 5))
    assert 2 <= y < 4
    assert 1 <= x < 3


@pytest.mark.parametrize(
    ("sampling", "reference", "expected"),
    [
        ("next", "", ["layer3", ""]),
        ("next", "layer4", ["layer3", "layer4"]),
        ("last", "layer4", ["layer4", "layer4"]),
        ("last", "", ["layer3", ""]),
        ("none", "", ["", ""]),
    ],
)
def test_who_samples_whom(sampling: str, reference: str, expected: list[str]) -> None:
    fitted = fit(sampling=sampling, reference=reference)
    assert fitted.spec["references"] == expected
    head = head_of(fitted)
    assert set(head.taps) == {"layer2", "layer3"} | ({"layer4"} if reference else set())
    seen = features(2, seed=4)
    assert head.residuals({name: seen[name] for name in head.taps}).levels[0].shape == (2, 12, 10)
    assert references_of(("layer4",), ("layer4",), "next") == [None]


def test_float16_resident_gives_the_same_maps(monkeypatch: pytest.MonkeyPatch) -> None:
    fitted, seen = fit(), features(5, seed=5)
    wide = head_of(fitted).residuals(seen)
    asked = {**fitted.spec, "resident": "float16"}
    assert resident_arrays("sgfr", asked, fitted.arrays) is fitted.arrays
    narrow = load_head("sgfr", asked, fitted.arrays).residuals(seen)
    for one, other in zip(wide.levels, narrow.levels, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
    # Little memory: auto stays with float16, float32 is refused with the size.
    monkeypatch.setattr(sgfr, "available_bytes", lambda: 100_000)
    assert resident_arrays("sgfr", fitted.spec, fitted.arrays) is fitted.arrays
    with pytest.raises(ResourceError, match=r"bank needs 0\.0 GB of memory.*are free"):
        resident_arrays("sgfr", {**fitted.spec, "resident": "float32"}, fitted.arrays)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 3e38])
def test_features_that_are_not_finite_or_nothing_give_no_score(bad: float) -> None:
    head, seen = head_of(fit()), features(2, seed=6)
    seen["layer2"][1, 0, 0, 0] = bad
    with pytest.raises(HeadError, match="layer2 are not finite"):
        head.residuals(seen)
    seen["layer2"][:] = 0
    with pytest.raises(HeadError, match="layer2 are all zero"):
        head.residuals(seen)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"bank_layer2": np.zeros((N, 7), np.float16)}, "do not fit pictures of 720"),
        ({"gram_layer2": np.zeros((3, 3))}, "do not fit"),
        ({"gram_layer2": np.full((N, N), np.nan)}, "not finite"),
        ({"bank_layer2": np.zeros((N, 720))}, "not float16 or float32"),
        ({"bank_layer2": None}, "lacks the array 'bank_layer2'"),
        ({"bank_layer3": np.zeros((4, 300), np.float16), "gram_layer3": np.eye(4)}, "different numbers of pictures"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(change: dict[str, np.ndarray | None], says: str) -> None:
    fitted = fit()
    arrays = {name: array for name, array in {**fitted.arrays, **change}.items() if array is not None}
    with pytest.raises(HeadError, match=says):
        load_head("sgfr", fitted.spec, arrays)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"atoms": 0}, "contradict"),
        ({"selection": "best"}, "contradict"),
        ({"references": ["layer3"]}, "contradict"),
        ({"detection": "layer9"}, "contradict"),
        ({"atoms": "many"}, "incomplete"),
        ({"shape_layer2": [0, 1, 2]}, "no shape of a feature map"),
    ],
)
def test_settings_that_do_not_fit_are_refused(change: dict[str, object], says: str) -> None:
    fitted = fit()
    with pytest.raises(HeadError, match=says):
        load_head("sgfr", {**fitted.spec, **change}, fitted.arrays)


def test_a_bank_that_is_not_finite_is_refused() -> None:
    fitted = fit()
    fitted.arrays["bank_layer3"][3, 5] = np.inf
    with pytest.raises(HeadError, match="bank_layer3: the bank holds values that are not finite"):
        resident_arrays("sgfr", fitted.spec, fitted.arrays)


# The fit.


# 11
def test_leave_one_out_energies_from_the_gram_are_the_explicit_ones() -> None:
    stored = {name: values.astype(np.float16) for name, values in features().items()}
    grams = {name: gram(values, np.zeros(values[0].size)) for name, values in stored.items()}
    settings = SgfrSettings(atoms=7, samples=12)
    pursuits = Pursuits(grams, ("layer2", "layer3"), ("layer3", None), settings, np.arange(N))
    for name, mix in zip(("layer2", "layer3"), pursuits.mixes(np.arange(N)), strict=True):
        rows = stored[name].reshape(N, -1).astype(np.float64)
        np.testing.assert_allclose(leftover(mix, grams[name]), ((mix @ rows) ** 2).sum(axis=1), rtol=1e-6)
        np.testing.assert_array_equal(mix.diagonal(), 1)
        assert ((mix != 0).sum(axis=1) == 8).all()


def test_leave_one_out_residuals_are_those_of_a_head_fitted_without_the_picture() -> None:
    good = features()
    fitted = fit(atoms=6, samples=12)
    for i in (0, 11, N - 1):
        without = {name: np.delete(values, i, axis=0) for name, values in good.items()}
        found = head_of(fit(without, atoms=6, samples=12)).residuals({n: v[i : i + 1] for n, v in good.items()})
        for level, left_out in zip(found.levels, fitted.calibrating.levels, strict=True):
            np.testing.assert_allclose(left_out[i], level[0], rtol=1e-3, atol=1e-4)
        assert found.norms is not None
        assert fitted.calibrating.norms is not None
        assert fitted.calibrating.norms[i] == pytest.approx(found.norms[0], rel=1e-4)


def test_held_out_residuals_are_what_the_running_head_gives() -> None:
    good, held = features(), np.array([2, 7, 20])
    fitted = fit(held=held, atoms=6)
    assert len(fitted.arrays["bank_layer2"]) == N - 3
    assert len(fitted.scaling.levels[0]) == N - 3
    found = head_of(fitted).residuals({name: values[held] for name, values in good.items()})
    for level, apart in zip(found.levels, fitted.calibrating.levels, strict=True):
        np.testing.assert_allclose(apart, level, rtol=1e-3, atol=1e-4)


def test_levels_are_scaled_by_their_nominal_mean() -> None:
    fitted = fit()
    assert fitted.tail is not None
    means = [level.mean(dtype=np.float64) for level in fitted.scaling.levels]
    np.testing.assert_allclose(fitted.tail.level_scale, 1 / np.array(means))
    plain = fit(level_scale="none").tail
    assert plain is not None
    assert plain.level_scale == ()


def test_fewer_pictures_than_atoms_are_enough() -> None:
    few = {name: values[:5] for name, values in features().items()}
    fitted = fit(few)
    assert (fitted.spec["atoms"], fitted.spec["samples"]) == (5, 5)
    found = head_of(fitted).residuals(features(2, seed=7))
    assert all((level > 0).any() for level in found.levels)


@pytest.mark.parametrize("different", [0, 2])
def test_copies_of_one_picture_are_refused(different: int) -> None:
    taps = features()
    copies = {name: np.concatenate([np.repeat(v[:1], 8, axis=0), v[1 : 1 + different]]) for name, v in taps.items()}
    with pytest.raises(DataError, match="copies of one picture"):
        fit(copies)


def test_features_beyond_float16_are_refused() -> None:
    taps = features()
    taps["layer3"][2, 0, 0, 0] = np.inf
    with pytest.raises(DataError, match="not finite or above 65504"):
        fit(taps)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"atoms": "0"}, "sgfr: atoms: Input should be greater than or equal to 1"),
        ({"colour": "red"}, "sgfr: colour: there is no such setting .*atoms, samples"),
        ({"reference": "layer3"}, "layer3 is among the scored layers"),
        ({"selection": "best"}, "sgfr: selection"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, object], says: str) -> None:
    with pytest.raises(DataError, match=says):
        FitOptions(method="sgfr", settings=settings).resolved()


def test_calibrations_a_method_cannot_do_are_refused() -> None:
    with pytest.raises(DataError, match="sgfr cannot be calibrated by 'folds'; it knows loo, holdout"):
        FitOptions(method="sgfr", calibration="folds").resolved()
    assert FitOptions(method="sgfr").resolved().calibration == "loo"
    assert FitOptions().resolved().calibration == "folds"
