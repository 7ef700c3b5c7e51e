"""From what was kept of the pictures to a written bundle: what a fit and a refit share."""

from __future__ import annotations

import hashlib
import time
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from calibration import Progress, no_progress
from calibration.conformal import MIN_PICTURES, alarms_per_hour, folds_of
from calibration.constants import Constants, calibrate
from calibration.methods import Indices, Job, Source, Stored, fitter_of
from calibration.options import FitOptions
from edge.bundle import Manifest, Provenance, SplitInfo, write_bundle
from edge.errors import DataError

UNUSUAL = 5


@dataclass(frozen=True)
class Work:
    """Everything after the pictures: what a fit and a refit share. options: resolved; stored, known: see
    :class:`calibration.methods.Job`."""

    source: Source
    stored: Stored
    known: Stored
    split: SplitInfo
    options: FitOptions
    skipped: tuple[str, ...]
    seconds: dict[str, float]


@dataclass(frozen=True)
class FitReport:
    """What a fit did, for people and ``--json``.

    seconds: wall time by part (``backbone``, ``algebra``, ``calibration``, ``write``); threshold and the rest
    as in the manifest's calibration; alarms_per_hour: at ``frames_per_second``, before n-of-m; details: the
    method's own figures (FRE: components kept a layer); unusual: the good pictures that look least good to a
    model without them (name, score), worth a look: a defect among them blinds the model to its like; duplicates:
    good pictures whose file is a copy of another's.
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
    details: dict[str, object]
    unusual: tuple[tuple[str, float], ...]
    duplicates: int
    size_bytes: int
    seconds: dict[str, float]

    def as_json(self) -> dict[str, Any]:
        """Plain types for ``--json``."""
        return {**asdict(self), "out": str(self.out)}


def assemble(out: Path, work: Work, frames_per_second: float, progress: Progress = no_progress) -> FitReport:
    """Fit the head, calibrate it, write the bundle atomically. Raises as :func:`calibration.fit.fit_bundle`."""
    options, source = work.options, work.source
    fitter = fitter_of(options.method)
    names = [picture.name for picture in work.split.fitted]
    train, held = _hold_out(len(names), options)
    clock = _Clock(dict(work.seconds))
    fitted = fitter.fit(
        Job(
            stored=work.stored,
            source=source,
            options=options,
            train=train,
            held=held,
            folds=tuple(train[part] for part in folds_of(len(train), options.folds, options.seed)),
            known=work.known,
            progress=progress,
        )
    )
    clock.lap("algebra")
    assert options.tail is not None  # resolved
    assert options.rule is not None
    assert options.calibration is not None
    constants = calibrate(
        fitted,
        fitted.tail or options.tail,
        options.rule,
        rate=options.false_alarms,
        exact=held is not None,
        how=options.calibration,
        seed=options.seed,
        progress=progress,
    )
    clock.lap("calibration")
    graph, backbone = source.graph, source.backbone
    if fitted.own is not None:
        graph = fitted.own.graph
        changes = {"graph_sha256": hashlib.sha256(graph).hexdigest(), "taps": fitted.own.taps}
        backbone = backbone.model_copy(update=changes)
    manifest = Manifest(
        method=options.method,
        spec=fitted.spec,
        backbone=backbone,
        input=source.input,
        tail=constants.tail,
        score=constants.score,
        calibration=constants.info,
        provenance=_provenance(work, _fit_seconds(clock.seconds, fitted.details)),
        split=work.split,
    )
    refit = fitted.refit if options.keep_refit and fitted.refit else None
    written = write_bundle(out, manifest, fitted.arrays, constants.scores, graph, refit)
    clock.lap("write")
    calibrated = names if held is None else [names[i] for i in held]
    return _report(
        out, work, written, fitted.details, _unusual(constants, calibrated), clock.seconds, frames_per_second
    )


def _report(
    out: Path,
    work: Work,
    manifest: Manifest,
    details: dict[str, object],
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
        details=details,
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


def _hold_out(count: int, options: FitOptions) -> tuple[Indices, Indices | None]:
    everything = np.arange(count)
    if options.calibration != "holdout":
        return everything, None
    held_count = max(MIN_PICTURES, round(options.holdout * count))
    if count - held_count < MIN_PICTURES:
        raise DataError(
            f"{count} good pictures are too few to hold {held_count} out; take more pictures, or calibrate by folds"
            " or leave-one-out where the method can"
        )
    # Another stream than the folds', so that the two choices have nothing to do with each other.
    order = np.random.RandomState(options.seed + 1_000_003).permutation(count)
    held = np.sort(order[:held_count])
    return np.setdiff1d(everything, held), held


def _unusual(constants: Constants, names: list[str]) -> tuple[tuple[str, float], ...]:
    scores = constants.scores["score"]
    first = np.argsort(-scores, kind="stable")[:UNUSUAL]
    return tuple((names[i], float(scores[i])) for i in first)


def _fit_seconds(seconds: dict[str, float], details: dict[str, object]) -> float | None:
    """The time of the whole fit, or None where this run did not do the whole of it: a refit, which passes no picture
    through the backbone, and a training that went on from a checkpoint."""
    resumed = details.get("resumed_at_step", 0)
    if "backbone" not in seconds or any(resumed.values() if isinstance(resumed, dict) else (resumed,)):
        return None
    return sum(seconds.values())


def _provenance(work: Work, fit_seconds: float | None) -> Provenance:
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
        fit_seconds=fit_seconds,
    )
