"""What every method owes, whatever it is: one suite over the registry.

A method joins by an entry in :data:`CASES`: how to fit it on a handful of taps, and its arithmetic in float64.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from calibration.conformal import folds_of
from calibration.constants import calibrate
from calibration.methods import FITTERS, Fitter, Job, MethodFit, Settings, Source, Unseen, fitter_of, methods
from calibration.options import FitOptions
from edge.bundle import BackboneInfo, Bundle, InputInfo, Manifest, Provenance, SplitInfo, TapInfo, load_bundle
from edge.bundle import write_bundle as write
from edge.commands.fit import METHODS as COMMAND_METHODS
from edge.errors import BundleError, DataError, HeadError
from edge.heads import METHODS, Residuals, load_head, resident_arrays, single_thread
from edge.heads.scorer import RULES, Scorer
from edge.heads.tail import TailSpec

SHAPES = {"layer2": (8, 16, 12), "layer3": (12, 8, 6)}
LAYERS = tuple(SHAPES)
GOOD = 24
Taps = dict[str, np.ndarray]


def taps_of(count: int, seed: int) -> Taps:
    """Feature maps of one low-dimensional family, ReLU-like, with noise: float32 [count, C, h, w]."""
    pattern, rng = np.random.default_rng(0), np.random.default_rng(seed)
    weights = rng.normal(size=(count, 4))
    taps = {}
    for name, shape in SHAPES.items():
        axes, base = pattern.normal(size=(4, *shape)), pattern.normal(size=shape)
        noise = 0.2 * rng.normal(size=(count, *shape))
        taps[name] = np.maximum(base + 0.5 * np.tensordot(weights, axes, 1) + noise, 0).astype(np.float32)
    return taps


def source_of(taps: dict[str, tuple[int, int, int]]) -> Source:
    infos = tuple(TapInfo(name=n, channels=s[0], height=s[1], width=s[2]) for n, s in taps.items())
    sha = hashlib.sha256(b"graph").hexdigest()
    info = BackboneInfo(name="fake", graph_sha256=sha, precision="f32", taps=infos)
    return Source(info, InputInfo(height=64, width=48), b"graph", "none")


def fit_of(method: str, held: bool = False, seed: int = 1) -> MethodFit:
    """A closed-form fit, as the real one does it, from taps."""
    fitter = fitter_of(method)
    options = FitOptions(method=method, layers=LAYERS, variance=0.9).resolved()
    good = taps_of(GOOD, seed)
    rows = [fitter.keep(options, {name: tap[i : i + 1] for name, tap in good.items()}) for i in range(GOOD)]
    stored = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    apart = np.arange(3, 9) if held else None
    train = np.arange(GOOD) if apart is None else np.setdiff1d(np.arange(GOOD), apart)
    folds = tuple(train[part] for part in folds_of(len(train), 4, 0))
    return fitter.fit(Job(stored, source_of(SHAPES), options, train, apart, folds))


def fre_reference(fitted: MethodFit, taps: Taps) -> Residuals:
    levels, norms = [], None
    for name in LAYERS:
        tap = taps[name].astype(np.float64)
        count, channels, height, width = tap.shape
        pooled = tap.reshape(count, channels, height // 2, 2, width // 2, 2).mean(axis=(3, 5))
        centred = pooled.reshape(count, -1) - fitted.arrays[f"mu_{name}"].astype(np.float64)
        basis = fitted.arrays[f"w_{name}"].astype(np.float64)
        rest = (centred - centred @ basis.T @ basis).reshape(pooled.shape)
        levels.append((rest**2).mean(axis=1))
        norms = np.sqrt((rest**2).sum(axis=(1, 2, 3)))
    return Residuals(levels, norms)  # type: ignore[arg-type]


def sgfr_reference(fitted: MethodFit, taps: Taps) -> Residuals:
    """Word by word: residuals in full dimension, least squares in each step."""

    def pursue(columns: np.ndarray, y: np.ndarray, atoms: int) -> np.ndarray:
        chosen: list[int] = []
        rest = y
        for _ in range(atoms):
            values = np.abs(columns.T @ rest)
            values[chosen] = -1
            chosen.append(int(values.argmax()))
            rest = y - columns[:, chosen] @ np.linalg.lstsq(columns[:, chosen], y, rcond=None)[0]
        return np.sort(chosen)

    spec = fitted.spec
    atoms, samples = int(str(spec["atoms"])), int(str(spec["samples"]))
    banks = {name: fitted.arrays[f"bank_{name}"].astype(np.float64).T for name in LAYERS}
    levels: list[np.ndarray] = []
    norms = np.empty(len(taps["layer2"]))
    for name in LAYERS:
        maps = []
        for i, tap in enumerate(taps[name].astype(np.float64)):
            columns = banks[name]
            if name == "layer2":
                columns = columns[:, pursue(banks["layer3"], taps["layer3"][i].astype(np.float64).ravel(), samples)]
            columns = columns[:, pursue(columns, tap.ravel(), atoms)]
            rest = tap.ravel() - columns @ np.linalg.lstsq(columns, tap.ravel(), rcond=None)[0]
            maps.append(np.linalg.norm(rest.reshape(tap.shape), axis=0))
            norms[i] = np.linalg.norm(rest)
        levels.append(np.stack(maps))
    return Residuals(levels, norms)  # type: ignore[arg-type]


def graph_fit(method: str, held: bool = False, seed: int = 1) -> MethodFit:
    """The network is the bundle's graph; what remains of the head is what this suite can see. Its training has tests
    of its own."""
    maps = GRAPH_MAPS[method](GOOD, seed)
    spec: dict[str, object] = {"levels": list(maps)}
    spec |= {f"shape_{name}": list(tap.shape[1:]) for name, tap in maps.items()}
    unseen = Unseen([tap[:, 0] for tap in maps.values()], None)
    return MethodFit(spec, {}, unseen, unseen)


def graph_maps(**names: str) -> Callable[[int, int], Taps]:
    """Level maps as a graph gives them: their name -> like which of the layers."""

    def inputs(count: int, seed: int) -> Taps:
        taps = taps_of(count, seed)
        return {name: np.abs(taps[layer][:, :1]) + np.float32(0.1) for name, layer in names.items()}

    return inputs


GRAPH_MAPS = {
    "fair": graph_maps(gradient="layer2", color="layer2"),
    "grad": graph_maps(residual="layer2"),
    "hfra": graph_maps(residual_layer2="layer2", residual_layer3="layer3"),
}


def graph_reference(fitted: MethodFit, taps: Taps) -> Residuals:
    return Residuals([tap[:, 0] for tap in taps.values()], None)


@dataclass(frozen=True)
class Case:
    """fit(method, held, seed); reference(fitted, taps) in float64; inputs(count, seed): what the engine would give."""

    fit: Callable[..., MethodFit]
    reference: Callable[[MethodFit, Taps], Residuals]
    inputs: Callable[[int, int], Taps] = taps_of


CASES = {
    "fair": Case(graph_fit, graph_reference, GRAPH_MAPS["fair"]),
    "fre": Case(fit_of, fre_reference),
    "grad": Case(graph_fit, graph_reference, GRAPH_MAPS["grad"]),
    "hfra": Case(graph_fit, graph_reference, GRAPH_MAPS["hfra"]),
    "sgfr": Case(fit_of, sgfr_reference),
}
CLOSED_FORM = [method for method, case in CASES.items() if case.fit is fit_of]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    single_thread()


@pytest.fixture(scope="module", params=sorted(CASES))
def method(request: pytest.FixtureRequest) -> str:
    single_thread()
    return str(request.param)


@pytest.fixture(scope="module")
def fitted(method: str) -> MethodFit:
    return CASES[method].fit(method)


def run(method: str, fitted: MethodFit, taps: Taps) -> Residuals:
    return load_head(method, fitted.spec, resident_arrays(method, fitted.spec, fitted.arrays)).residuals(taps)


def make_bundle(path: Path, method: str, fitted: MethodFit) -> Bundle:
    options = FitOptions(method=method).resolved()
    assert options.rule is not None
    tail = (fitted.tail or options.tail or TailSpec()).model_copy(update={"size": (64, 48)})
    rule = options.rule if fitted.scaling.norms is not None else "max"
    constants = calibrate(fitted, tail, rule, rate=0.05, exact=False, how="folds", seed=0)
    taps = {name: tap.shape[1:] for name, tap in CASES[method].inputs(1, 0).items()}
    source = source_of(taps)  # type: ignore[arg-type]
    manifest = Manifest(
        method=method,
        spec=fitted.spec,
        backbone=source.backbone,
        input=source.input,
        tail=constants.tail,
        score=constants.score,
        calibration=constants.info,
        provenance=Provenance(created="now", tool="t", runtime="r", pictures=GOOD, pictures_sha256="0" * 64),
        split=SplitInfo(layout="folder", fitted=()),
    )
    write(path, manifest, fitted.arrays, constants.scores, b"graph", fitted.refit or None)
    return load_bundle(path)


def same(one: Residuals, other: Residuals) -> None:
    for a, b in zip(one.levels, other.levels, strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(one.norms, other.norms)


def test_the_registries_agree_and_every_method_is_in_this_suite() -> None:
    assert set(METHODS) == set(FITTERS) == set(CASES) == set(COMMAND_METHODS)
    assert methods() == tuple(sorted(METHODS))
    with pytest.raises(HeadError, match="unknown method 'magic'"):
        load_head("magic", {}, {})
    with pytest.raises(DataError, match="unknown method 'magic'"):
        fitter_of("magic")


def test_a_fitter_declares_itself_wholly(method: str) -> None:
    fitter: Fitter = fitter_of(method)
    assert fitter.method == method
    assert fitter.defaults.rule in RULES
    assert fitter.defaults.calibration in fitter.defaults.calibrations
    assert issubclass(fitter.settings, Settings)
    assert all(field.description and not field.is_required() for field in fitter.settings.model_fields.values())
    options = FitOptions(method=method).resolved()
    assert fitter.needs_pictures or set(options.scored_layers) <= set(fitter.taps(options))
    with pytest.raises(DataError, match=f"{method}: colour: there is no such setting"):
        FitOptions(method=method, settings={"colour": "red"}).resolved()


@pytest.mark.parametrize("method", CLOSED_FORM)
@pytest.mark.parametrize("held", [False, True])
def test_a_second_fit_is_the_same(method: str, held: bool) -> None:
    first, second = fit_of(method, held), fit_of(method, held)
    assert first.spec == second.spec
    assert first.tail == second.tail
    assert set(first.arrays) == set(second.arrays)
    for name, array in first.arrays.items():
        np.testing.assert_array_equal(array, second.arrays[name])
    same(
        Residuals(first.calibrating.levels, first.calibrating.norms),
        Residuals(second.calibrating.levels, second.calibrating.norms),
    )
    assert len(first.calibrating.levels[0]) == (6 if held else GOOD)


@pytest.mark.parametrize("method", CLOSED_FORM)
def test_a_refit_starts_from_the_same_features(method: str, tmp_path: Path) -> None:
    first = fit_of(method)
    bundle = make_bundle(tmp_path / "b", method, first)
    fitter, options = fitter_of(method), FitOptions(method=method, layers=LAYERS, variance=0.9).resolved()
    restored = fitter.restore(options, bundle.manifest.spec, bundle.arrays, bundle.refit_arrays())
    folds = tuple(folds_of(GOOD, 4, 0))
    job = Job(restored.stored, source_of(SHAPES), options, np.arange(GOOD), None, folds, restored.known)
    again = fitter.fit(job)
    assert again.spec == first.spec
    for name, array in first.arrays.items():
        np.testing.assert_array_equal(array, again.arrays[name])


def test_input_is_only_read_and_the_head_is_not_changed(method: str, fitted: MethodFit) -> None:
    taps = CASES[method].inputs(3, 2)
    before = {name: tap.copy() for name, tap in taps.items()}
    arrays = {name: array.copy() for name, array in fitted.arrays.items()}
    for array in (*taps.values(), *fitted.arrays.values()):
        array.flags.writeable = False
    head = load_head(method, fitted.spec, resident_arrays(method, fitted.spec, fitted.arrays))
    first = head.residuals(taps)
    kept = Residuals([level.copy() for level in first.levels], None if first.norms is None else first.norms.copy())
    head.residuals(CASES[method].inputs(2, 7))
    same(first, kept)  # a result is the caller's: later pictures do not write into it
    same(head.residuals(taps), kept)
    for name, tap in taps.items():
        np.testing.assert_array_equal(tap, before[name])
    for name, array in fitted.arrays.items():
        np.testing.assert_array_equal(array, arrays[name])


def test_one_picture_gives_finite_maps_that_are_not_negative(method: str, fitted: MethodFit) -> None:
    taps = CASES[method].inputs(1, 3)
    found = run(method, fitted, taps)
    for level, (_, _, height, width) in zip(found.levels, [tap.shape for tap in taps.values()], strict=True):
        assert level.dtype == np.float32
        assert level.ndim == 3
        assert level.shape[0] == 1
        assert level.shape[1] in (height, height // 2)
        assert level.shape[2] in (width, width // 2)
        assert np.isfinite(level).all()
        assert (level >= 0).all()
    assert found.norms is None or (found.norms.shape == (1,) and found.norms[0] >= 0)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_gives_no_score(method: str, fitted: MethodFit, bad: float) -> None:
    for name in CASES[method].inputs(1, 0):
        taps = CASES[method].inputs(2, 4)
        taps[name][1, 0, 2, 2] = bad
        with pytest.raises(HeadError, match="finite"):
            run(method, fitted, taps)


def test_taps_that_do_not_fit_are_refused(method: str, fitted: MethodFit) -> None:
    taps = CASES[method].inputs(1, 5)
    first = next(iter(taps))
    for change in (
        {name: tap for name, tap in taps.items() if name != first},
        {**taps, first: taps[first][:, :, 1:]},
        {**taps, first: taps[first].astype(np.float64)},
        {**taps, first: taps[first][0]},
    ):
        with pytest.raises(HeadError) as raised:
            run(method, fitted, change)
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize("count", [2, 3, 7])
def test_a_result_does_not_depend_on_the_batch(method: str, fitted: MethodFit, count: int) -> None:
    taps = CASES[method].inputs(count, 6)
    together = run(method, fitted, taps)
    for i in range(count):
        alone = run(method, fitted, {name: tap[i : i + 1] for name, tap in taps.items()})
        for one, many in zip(alone.levels, together.levels, strict=True):
            np.testing.assert_allclose(one[0], many[i], rtol=1e-4, atol=1e-5 * many.max())
        if alone.norms is not None:
            assert together.norms is not None
            assert alone.norms[0] == pytest.approx(together.norms[i], rel=1e-5)


def test_two_pictures_far_apart_in_memory_are_as_good_as_two_in_a_row(method: str, fitted: MethodFit) -> None:
    """The head stage reads a pair of slots in place: each contiguous, the pair not."""
    taps = CASES[method].inputs(3, 8)
    in_a_row = run(method, fitted, {name: np.ascontiguousarray(tap[::2]) for name, tap in taps.items()})
    same(run(method, fitted, {name: tap[::2] for name, tap in taps.items()}), in_a_row)


def test_float32_is_near_the_reference_in_float64(method: str, fitted: MethodFit) -> None:
    taps = CASES[method].inputs(5, 8)
    found, expected = run(method, fitted, taps), CASES[method].reference(fitted, taps)
    for level, exact in zip(found.levels, expected.levels, strict=True):
        np.testing.assert_allclose(level, exact, rtol=1e-3, atol=1e-5 * exact.max())
    assert (found.norms is None) == (expected.norms is None)
    if found.norms is not None:
        np.testing.assert_allclose(found.norms, expected.norms, rtol=1e-5)


@pytest.mark.parametrize("name", ["b", "b.zip"])
def test_a_bundle_brings_the_head_back(method: str, fitted: MethodFit, tmp_path: Path, name: str) -> None:
    bundle = make_bundle(tmp_path / name, method, fitted)
    taps = CASES[method].inputs(3, 9)
    same(bundle.make_head().residuals(taps), run(method, fitted, taps))
    assert set(bundle.arrays) == set(fitted.arrays)
    for key, array in bundle.arrays.items():
        assert not array.flags.writeable
        np.testing.assert_array_equal(array, fitted.arrays[key])
    one, two = bundle.make_head(), bundle.make_head()  # one a thread, over the same arrays
    same(one.residuals(taps), two.residuals(taps))
    scored = Scorer(bundle).score(taps)
    assert all(result.score > 0 and 0 < result.p_value <= 1 for result in scored)


def test_a_bundle_of_one_method_with_the_arrays_of_another_is_refused(method: str, tmp_path: Path) -> None:
    fitted = CASES[method].fit(method)
    for other in sorted(set(CASES) - {method}):
        foreign = CASES[other].fit(other)
        if fitted.arrays or foreign.arrays:  # two heads inside their graphs have none to mix up
            mixed = MethodFit(fitted.spec, foreign.arrays, fitted.scaling, fitted.calibrating)
            with pytest.raises((BundleError, HeadError)):
                make_bundle(tmp_path / other, method, mixed)
        relabelled = MethodFit(foreign.spec, fitted.arrays, fitted.scaling, fitted.calibrating)
        with pytest.raises((BundleError, HeadError)):
            make_bundle(tmp_path / other, method, relabelled)
