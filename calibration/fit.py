"""``edge fit``: from good pictures to a bundle."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibration import Progress, fre, no_progress
from calibration.conformal import MIN_PICTURES, alarms_per_hour, folds_of
from calibration.constants import Constants, calibrate
from calibration.datasets import Split
from calibration.features import Worker, run_pictures
from calibration.options import FitOptions
from calibration.snapshot import F64, Features
from edge.bundle import (
    BackboneInfo,
    FittedPicture,
    InputInfo,
    Manifest,
    Provenance,
    SplitInfo,
    TapInfo,
    load_bundle,
    write_bundle,
)
from edge.errors import DataError
from edge.heads import single_thread
from engines import open_engine

UNUSUAL = 5


@dataclass(frozen=True)
class _Source:
    """The network that gave the features."""

    backbone: BackboneInfo
    input: InputInfo
    graph: bytes
    runtime: str

    def shape(self, layer: str) -> tuple[int, int, int]:
        tap = next(tap for tap in self.backbone.taps if tap.name == layer)
        return tap.channels, tap.height, tap.width


@dataclass(frozen=True)
class _Work:
    """Everything after the pictures: what a fit and a refit share."""

    source: _Source
    features: dict[str, Features]
    grams: dict[str, F64] | None
    split: SplitInfo
    options: FitOptions
    skipped: tuple[str, ...]
    seconds: dict[str, float]


@dataclass(frozen=True)
class FitReport:
    """What a fit did, for people and ``--json``.

    seconds: wall time by part (``backbone``, ``algebra``, ``calibration``, ``write``); threshold and the rest as in
    the manifest's calibration; alarms_per_hour: at ``frames_per_second``, before n-of-m; components: kept a layer;
    unusual: the good pictures that look least good to a model without them (name, score), worth a look: a defect
    among them blinds the model to its like; duplicates: good pictures whose file is a copy of another's.
    """

    out: Path
    method: str
    pictures: int
    skipped: tuple[str, ...]
    threshold: float
    pixel_threshold: float
    false_alarms: float
    extrapolated: bool
    interval: tuple[float, float] | None
    rate_interval: tuple[float, float] | None
    needed_for_promise: int
    guarantee: str
    alarms_per_hour: float
    frames_per_second: float
    components: dict[str, int]
    unusual: tuple[tuple[str, float], ...]
    duplicates: int
    size_bytes: int
    seconds: dict[str, float]


def fit_bundle(
    good: Split | Sequence[Path],
    out: Path | str,
    *,
    graph: bytes,
    backbone: str,
    options: FitOptions | None = None,
    precision: str = "f32",
    runtime: str = "auto",
    workers: int = 2,
    skip_unreadable: bool = False,
    frames_per_second: float = 30.0,
    progress: Progress = no_progress,
) -> FitReport:
    """Fit a bundle on good pictures and write it atomically to ``out`` (a folder, or a .zip).

    good: a split (its ``good`` pictures; the bundle remembers the split) or paths. graph: the backbone's ONNX bytes,
    named ``backbone``. Deterministic: the same pictures and options give the same arrays and thresholds.

    Raises DataError (pictures too few, unreadable, all alike; options that cannot work), EngineError, ResourceError
    and BundleError (see :func:`edge.bundle.write_bundle`). Nothing is written in any of these cases.
    """
    options = options or FitOptions()
    options.check()
    split = good if isinstance(good, Split) else _split_of(good)
    _enough(len(split.good))
    single_thread()
    started = time.perf_counter()
    skipped: list[str] = []
    with ExitStack() as undo:
        engines = []
        for _ in range(max(1, min(workers, len(split.good)))):
            engine = open_engine(graph, runtime=runtime, precision=precision, threads=1, taps=options.layers)
            undo.callback(engine.close)
            engines.append(engine)
        info = engines[0].info
        crew = [Worker(e, lambda taps: fre.pooled_features(taps, options.pool)) for e in engines]
        store: dict[str, Features] = {}
        kept: list[Path] = []
        for index, picture in run_pictures(
            split.good, crew, skip_unreadable=skip_unreadable, skipped=skipped, progress=progress
        ):
            for name, values in picture.items():
                if name not in store:
                    store[name] = np.empty((len(split.good), *values.shape), np.float16)
                store[name][len(kept)] = values
            kept.append(split.good[index])
    _enough(len(kept))
    features = {name: store[name][: len(kept)] for name in options.layers}
    fitted = tuple(FittedPicture(name=split.name(p), sha256=file_sha256(p)) for p in kept)
    source = SplitInfo(layout=split.layout, seed=split.seed, fitted=fitted)
    network = _Source(
        BackboneInfo(
            name=backbone,
            graph_sha256=info.graph_sha256,
            precision=info.precision,
            taps=tuple(TapInfo(**asdict(tap)) for tap in info.taps),
        ),
        InputInfo(height=info.input_size[0], width=info.input_size[1]),
        graph,
        info.runtime,
    )
    seconds = {"backbone": time.perf_counter() - started}
    work = _Work(network, features, None, source, options, tuple(skipped), seconds)
    return _finish(Path(out), work, frames_per_second, progress)


def refit_bundle(
    bundle: Path | str,
    out: Path | str,
    *,
    options: FitOptions,
    frames_per_second: float = 30.0,
    progress: Progress = no_progress,
) -> FitReport:
    """Fit again from the features a bundle kept: another variance, rule, rate or calibration in a second, without
    pictures or backbone. With the same options the arrays and thresholds are the same to the last bit.

    ``options.layers`` may be fewer than the bundle's; its pool is the bundle's. Raises DataError when the bundle
    kept no features or lacks a layer, else as :func:`fit_bundle`."""
    options.check()
    old = load_bundle(bundle)
    kept = old.refit_arrays()
    if kept is None:
        raise DataError(
            f"{bundle}: it was fitted without what a refit needs; run edge fit on the pictures again"
        )
    missing = [name for name in options.layers if f"features_{name}" not in kept]
    if missing or options.pool != old.manifest.spec.get("pool"):
        raise DataError(
            f"{bundle}: a refit cannot add layers ({missing}) or change the pooling; run edge fit again"
        )
    single_thread()
    manifest = old.manifest
    by_name = {tap.name: tap for tap in manifest.backbone.taps}
    taps = tuple(by_name[name] for name in options.layers)
    network = _Source(
        manifest.backbone.model_copy(update={"taps": taps}),
        manifest.input,
        old.graph,
        manifest.provenance.runtime,
    )
    features = {name: kept[f"features_{name}"] for name in options.layers}
    grams = {name: kept[f"gram_{name}"] for name in options.layers}
    work = _Work(network, features, grams, manifest.split, options, (), {})
    return _finish(Path(out), work, frames_per_second, progress)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes. Raises DataError when it cannot be read."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    return digest.hexdigest()


def _finish(out: Path, work: _Work, frames_per_second: float, progress: Progress) -> FitReport:
    options, source = work.options, work.source
    names = [picture.name for picture in work.split.fitted]
    train, held = _hold_out(len(names), options)
    folds = [train[part] for part in folds_of(len(train), options.folds, options.seed)]
    clock = _Clock(dict(work.seconds))
    fitted = fre.fit(
        work.features,
        {layer: source.shape(layer) for layer in options.layers},
        detection=options.detection,
        pool=options.pool,
        variance=options.variance,
        folds=folds,
        held=held,
        grams=work.grams,
        progress=progress,
    )
    clock.lap("algebra")
    constants = calibrate(
        fitted,
        options.tail,
        options.rule,
        rate=options.false_alarms,
        exact=held is not None,
        how=options.calibration,
        seed=options.seed,
        progress=progress,
    )
    clock.lap("calibration")
    manifest = Manifest(
        method=options.method,
        spec=fitted.spec,
        backbone=source.backbone,
        input=source.input,
        tail=constants.tail,
        score=constants.score,
        calibration=constants.info,
        provenance=_provenance(work),
        split=work.split,
    )
    refit: dict[str, NDArray[Any]] | None = None
    if options.keep_refit:
        refit = {f"features_{layer}": values for layer, values in work.features.items()}
        refit |= {f"gram_{layer}": values for layer, values in fitted.grams.items()}
    written = write_bundle(out, manifest, fitted.arrays, constants.scores, source.graph, refit)
    clock.lap("write")
    calibrated = names if held is None else [names[i] for i in held]
    return _report(
        out, work, written, fitted.spec, _unusual(constants, calibrated), clock.seconds, frames_per_second
    )


def _report(
    out: Path,
    work: _Work,
    manifest: Manifest,
    spec: dict[str, object],
    unusual: tuple[tuple[str, float], ...],
    seconds: dict[str, float],
    frames_per_second: float,
) -> FitReport:
    info = manifest.calibration
    fitted = manifest.split.fitted
    return FitReport(
        out=out,
        method=manifest.method,
        pictures=len(fitted),
        skipped=work.skipped,
        threshold=info.threshold,
        pixel_threshold=info.pixel_threshold,
        false_alarms=info.false_alarm_rate,
        extrapolated=info.extrapolated,
        interval=info.interval,
        rate_interval=info.rate_interval,
        needed_for_promise=info.needed_for_promise,
        guarantee=info.guarantee,
        alarms_per_hour=alarms_per_hour(info.false_alarm_rate, frames_per_second),
        frames_per_second=frames_per_second,
        components={layer: int(str(spec[f"components_{layer}"])) for layer in work.options.layers},
        unusual=unusual,
        duplicates=len(fitted) - len({picture.sha256 for picture in fitted}),
        size_bytes=sum(file.size for file in manifest.files.values()),
        seconds=seconds,
    )


class _Clock:
    def __init__(self, seconds: dict[str, float]) -> None:
        self.seconds = seconds
        self._last = time.perf_counter()

    def lap(self, what: str) -> None:
        now = time.perf_counter()
        self.seconds[what] = now - self._last
        self._last = now


def _split_of(paths: Sequence[Path]) -> Split:
    """Loose pictures: named relative to the folder they share."""
    paths = tuple(Path(path) for path in paths)
    root = Path(os.path.commonpath([path.parent for path in paths])) if paths else Path(".")
    return Split(root, "folder", None, paths, ())


def _enough(count: int) -> None:
    if count < MIN_PICTURES:
        raise DataError(
            f"{count} good pictures are too few: at least {MIN_PICTURES} are needed to score each by a model that"
            " has not seen it; 30 begin to be useful, 200 are good"
        )


def _hold_out(count: int, options: FitOptions) -> tuple[fre.Indices, fre.Indices | None]:
    everything = np.arange(count)
    if options.calibration == "folds":
        return everything, None
    held_count = max(MIN_PICTURES, round(options.holdout * count))
    if count - held_count < MIN_PICTURES:
        raise DataError(
            f"{count} good pictures are too few to hold {held_count} out; use the calibration by folds"
            " or take more pictures"
        )
    # Another stream than the folds', so that the two choices have nothing to do with each other.
    order = np.random.RandomState(options.seed + 1_000_003).permutation(count)
    held = np.sort(order[:held_count])
    return np.setdiff1d(everything, held), held


def _unusual(constants: Constants, names: list[str]) -> tuple[tuple[str, float], ...]:
    scores = constants.scores["score"]
    first = np.argsort(-scores, kind="stable")[:UNUSUAL]
    return tuple((names[i], float(scores[i])) for i in first)


def _provenance(work: _Work) -> Provenance:
    hashes = sorted(picture.sha256 for picture in work.split.fitted)
    try:
        version = metadata.version("edge-inspect")
    except metadata.PackageNotFoundError:
        version = "unknown (not installed)"
    return Provenance(
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        tool=f"edge-inspect {version}",
        runtime=work.source.runtime,
        pictures=len(hashes),
        pictures_sha256=hashlib.sha256("".join(hashes).encode()).hexdigest(),
    )
