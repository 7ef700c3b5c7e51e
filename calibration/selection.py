"""``edge fit --method auto``: which head, for these pictures on this device.

Some good pictures are kept back and given drawn defects. Every candidate is fitted on the rest, timed on one core, and
judged by how well its scores tell the drawn defects from the good pictures that it has not seen either. No real defect
and no test picture takes part. The choice is conservative: the usual head stays unless another one leads by more than
the noise of so few pictures.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from calibration import Progress, no_progress
from calibration.conformal import MIN_PICTURES
from calibration.datasets import Split
from calibration.features import Reader, run_readers
from calibration.fit import fit_bundle
from calibration.methods import Indices, fitter_of, methods
from calibration.metrics import image_auroc
from calibration.options import FitOptions
from calibration.synthetic_defects import KINDS, PASTES, draw_defect, paste_block
from calibration.training import TrainingInterrupted
from edge.bundle import Bundle, load_bundle
from edge.errors import DataError, ResourceError
from edge.heads.scorer import Scorer
from engines import open_engine

USUAL = "fre"
"""The head that another one has to beat: closed form, fitted in seconds, the default of ``edge fit``."""

JUDGED_SHARE, JUDGED_MOST = 0.2, 60
PROBED_PICTURES = 20
TIMED, WARM_UP = 15, 3
RESAMPLES = 400
STANDARD_ERRORS = 2.0

Graphs = Callable[[FitOptions], bytes | None]
"""The backbone's ONNX bytes with the taps that these options read; None for a method without a backbone."""


@dataclass(frozen=True)
class Trial:
    """One candidate. seconds: its fit; milliseconds: one picture through engine, head and map on one core (median);
    auroc: kind of drawn defect -> image AUROC against the good pictures kept back; mean: of them. pasted: the same for
    blocks pasted into the features, of heads that take features (others have them inside their graph): shown, but not
    in the mean, which all heads must share. left_out: why there are no figures, where there are none."""

    method: str
    seconds: float | None = None
    milliseconds: float | None = None
    auroc: Mapping[str, float] | None = None
    mean: float | None = None
    pasted: Mapping[str, float] | None = None
    left_out: str | None = None


@dataclass(frozen=True)
class Selection:
    """chosen: a method; why: one line for people; judged: good pictures kept back; budget_ms: None: any."""

    chosen: str
    why: str
    trials: tuple[Trial, ...]
    judged: int
    budget_ms: float | None


def select_method(
    good: Split,
    scratch: Path,
    *,
    graphs: Graphs,
    backbone: str,
    options: FitOptions,
    budget_ms: float | None = None,
    candidates: Sequence[str] | None = None,
    trial_minutes: float = 15.0,
    input_size: tuple[int, int] = (256, 256),
    precision: str = "f32",
    runtime: str = "auto",
    skip_unreadable: bool = False,
    tell: Callable[[Trial], None] = lambda trial: None,
    look: Callable[[Bundle], None] = lambda bundle: None,
    progress: Progress = no_progress,
) -> Selection:
    """Try ``candidates`` (default: all methods) on ``good.good`` and choose one.

    options: seed and rate; what only one method knows is left at its default. trial_minutes: a head whose training
    takes longer is left out. scratch: folder for bundles that are thrown away. tell: every trial as it ends. look:
    every bundle that was judged, before it is thrown away.

    Raises DataError: too few pictures; none that can be read; no candidate within the budget or fitted at all; and
    whatever the fit of the usual head raises."""
    if budget_ms is not None and not budget_ms > 0:
        raise DataError(f"the budget must be more than 0 ms, not {budget_ms}")
    names = tuple(dict.fromkeys(candidates or methods()))
    for name in names:
        fitter_of(name)  # an unknown one now, not after an hour
    fitted, judges = _kept_back(len(good.good), options.seed)
    images = _prepared([good.good[i] for i in judges], input_size, skip_unreadable, progress)
    drawn = _draw(images, options.seed)
    rest = replace(good, good=tuple(good.good[i] for i in fitted), test=())
    # The usual head first: the others are measured against it.
    names = tuple(sorted(names, key=lambda name: (name != USUAL, name)))
    trials: list[Trial] = []
    scores: dict[str, _Scores] = {}

    def fit(method: str, pictures: Split, folder: Path, settings: Mapping[str, object]) -> Bundle:
        own = FitOptions(
            method=method,
            settings=settings,
            false_alarms=options.false_alarms,
            seed=options.seed,
            keep_refit=False,
        )
        fit_bundle(
            pictures,
            folder,
            graph=graphs(own.resolved()),
            backbone=backbone,
            options=own,
            input_size=input_size,
            precision=precision,
            runtime=runtime,
            skip_unreadable=skip_unreadable,
            progress=lambda done, total, what: progress(done, total, f"{method}: {what}"),
        )
        return load_bundle(folder)

    for name in names:
        with tempfile.TemporaryDirectory(prefix=".trial-", dir=scratch) as folder:
            trial, found = _try(name, rest, Path(folder), fit, images, drawn, budget_ms, trial_minutes, runtime)
            if found is not None:
                look(load_bundle(Path(folder) / "bundle"))
        trials.append(trial)
        if found is not None:
            scores[name] = found
        tell(trial)
    chosen, why = choose(trials, scores, options.seed)
    return Selection(chosen, why, tuple(trials), len(images), budget_ms)


@dataclass(frozen=True)
class _Scores:
    """good: [n]; drawn: kind -> [n], of the same n pictures."""

    good: NDArray[np.float64]
    drawn: Mapping[str, NDArray[np.float64]]
    pasted: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)

    def mean(self, rows: Indices | slice = slice(None)) -> float:
        return statistics.fmean(self.auroc(rows).values())

    def auroc(self, rows: Indices | slice = slice(None)) -> dict[str, float]:
        return {kind: _auroc(self.good[rows], values[rows]) for kind, values in self.drawn.items()}


def _auroc(good: NDArray[np.float64], defects: NDArray[np.float64]) -> float:
    labels = [False] * len(good) + [True] * len(defects)
    figure = image_auroc(np.concatenate([good, defects]).tolist(), labels)
    assert figure is not None  # there are both
    return figure


def choose(trials: Sequence[Trial], scores: Mapping[str, _Scores], seed: int) -> tuple[str, str]:
    """The method, and why. The best mean wins if it leads the usual head (or, without it, the quickest) by more than
    two standard errors of the difference, over resampled pictures; pairing them takes out what the pictures share.

    Raises DataError where no trial has figures."""
    judged = {trial.method: trial for trial in trials if trial.mean is not None}
    if not judged:
        reasons = "; ".join(f"{trial.method}: {trial.left_out}" for trial in trials)
        raise DataError(f"no head can be chosen ({reasons}): allow more milliseconds, or choose a smaller backbone")
    quickest = min(judged.values(), key=lambda trial: trial.milliseconds or 0.0).method
    usual = USUAL if USUAL in judged else quickest
    best = max(judged.values(), key=lambda trial: (trial.mean, trial.method == usual)).method
    if best == usual:
        return usual, f"none that fits tells drawn defects better than {usual}"
    lead = scores[best].mean() - scores[usual].mean()
    rng = np.random.RandomState(seed)
    count = len(scores[best].good)
    leads = []
    for _ in range(RESAMPLES):
        rows = rng.randint(0, count, count)
        leads.append(scores[best].mean(rows) - scores[usual].mean(rows))
    error = float(np.std(leads))
    line = f"{best} leads {usual} by {100 * lead:.2f} points, standard error {100 * error:.2f}"
    if lead > STANDARD_ERRORS * error:
        return best, line
    return usual, f"{line}: too little to leave {usual}"


Fit = Callable[[str, Split, Path, Mapping[str, object]], Bundle]


def _try(
    method: str,
    pictures: Split,
    folder: Path,
    fit: Fit,
    images: NDArray[np.uint8],
    drawn: Mapping[str, NDArray[np.uint8]],
    budget_ms: float | None,
    trial_minutes: float,
    runtime: str,
) -> tuple[Trial, _Scores | None]:
    probe = fitter_of(method).defaults.probe
    settings: dict[str, object] = {}
    started = time.perf_counter()
    try:
        if probe:
            # What a picture costs does not depend on how long a network was trained: asked before the hour.
            few = replace(pictures, good=pictures.good[:PROBED_PICTURES])
            needed = milliseconds(fit(method, few, folder / "probe", dict(probe)), images[0], runtime)
            if budget_ms is not None and needed > budget_ms:
                return Trial(method, None, needed, left_out=_over(needed, budget_ms)), None
            settings["minutes"] = trial_minutes
            started = time.perf_counter()
        bundle = fit(method, pictures, folder / "bundle", settings)
        seconds = time.perf_counter() - started
        needed = milliseconds(bundle, images[0], runtime)
        if budget_ms is not None and needed > budget_ms:
            return Trial(method, seconds, needed, left_out=_over(needed, budget_ms)), None
        found = _score(bundle, images, drawn, runtime)
    except TrainingInterrupted as stopped:
        if time.perf_counter() - started < 60 * trial_minutes:
            raise  # somebody wants us to end
        return Trial(method, left_out=f"{stopped}"), None
    except (DataError, ResourceError) as error:
        if method == USUAL:
            raise
        return Trial(method, left_out=str(error)), None
    pasted = {kind: _auroc(found.good, values) for kind, values in found.pasted.items()}
    return Trial(method, seconds, needed, found.auroc(), found.mean(), pasted or None), found


def milliseconds(bundle: Bundle, image: NDArray[np.uint8], runtime: str = "auto") -> float:
    """Median time of one prepared picture (uint8 [h, w, 3]) through engine, head and map, on one core, warmed up."""
    scorer = Scorer(bundle)
    engine = open_engine(
        bundle.graph, runtime=runtime, precision=bundle.manifest.backbone.precision, threads=1, taps=scorer.taps
    )
    try:
        spent = []
        for _ in range(WARM_UP + TIMED):
            started = time.perf_counter()
            scorer.score(engine.infer(image[None]))
            spent.append(time.perf_counter() - started)
    finally:
        engine.close()
    return 1e3 * statistics.median(spent[WARM_UP:])


def _score(bundle: Bundle, images: NDArray[np.uint8], drawn: Mapping[str, NDArray[np.uint8]], runtime: str) -> _Scores:
    scorer = Scorer(bundle)
    engine = open_engine(
        bundle.graph, runtime=runtime, precision=bundle.manifest.backbone.precision, threads=1, taps=scorer.taps
    )
    try:

        def scores(pictures: NDArray[np.uint8]) -> NDArray[np.float64]:
            return np.array([scorer.score(engine.infer(picture[None]))[0].score for picture in pictures])

        found = _Scores(scores(images), {kind: scores(pictures) for kind, pictures in drawn.items()})
        if not bundle.arrays:  # the graph gives level maps already
            return found
        taps = [engine.infer(image[None]) for image in images]
        scale = {name: float(np.mean([one[name].std() for one in taps])) for name in taps[0]}
        pasted = {}
        for number, kind in enumerate(PASTES):
            chance = [np.random.RandomState([number, index]) for index in range(len(taps))]
            blocks = [paste_block(kind, one, scale, own) for one, own in zip(taps, chance, strict=True)]
            pasted[kind] = np.array([scorer.score(block)[0].score for block in blocks])
        return replace(found, pasted=pasted)
    finally:
        engine.close()


def _over(needed: float, budget_ms: float) -> str:
    return f"{needed:.1f} ms a picture, more than {budget_ms:g}"


def _kept_back(count: int, seed: int) -> tuple[Indices, Indices]:
    judges = min(JUDGED_MOST, max(MIN_PICTURES, round(JUDGED_SHARE * count)))
    if count - judges < 2 * MIN_PICTURES:
        raise DataError(f"{count} good pictures are too few to keep {judges} back for a choice; name a method instead")
    # Another stream than those of folds and hold-outs (calibration.assemble).
    order = np.random.RandomState(seed + 2_000_003).permutation(count)
    return np.sort(order[judges:]), np.sort(order[:judges])


def _prepared(
    paths: Sequence[Path], size: tuple[int, int], skip_unreadable: bool, progress: Progress
) -> NDArray[np.uint8]:
    readers = [Reader(size, lambda image: image)]
    skipped: list[str] = []
    found = run_readers(
        paths, readers, skip_unreadable=skip_unreadable, skipped=skipped, progress=progress, what="pictures kept back"
    )
    images = [image for _, image in found]
    if len(images) < MIN_PICTURES:
        raise DataError(f"only {len(images)} of the {len(paths)} pictures kept back for a choice can be read")
    return np.stack(images)


def _draw(images: NDArray[np.uint8], seed: int) -> dict[str, NDArray[np.uint8]]:
    """The same pictures once more for every kind of defect; a defect is fixed by seed, kind and picture alone."""
    drawn = {}
    for number, kind in enumerate(KINDS):
        chance = [np.random.RandomState([seed, number, index]) for index in range(len(images))]
        drawn[kind] = np.stack([draw_defect(kind, image, own) for image, own in zip(images, chance, strict=True)])
    return drawn
