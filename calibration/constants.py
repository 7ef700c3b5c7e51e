"""From residuals of unseen good pictures to the score's constants, the thresholds and what they promise."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from calibration import Progress, no_progress
from calibration.conformal import needed_for_promise, promise, threshold_for
from calibration.methods import How, MethodFit, Unseen
from calibration.snapshot import F64
from edge.bundle import CalibrationInfo
from edge.errors import DataError
from edge.heads import Residuals
from edge.heads.scorer import LogScale, Rule, ScoreSpec, image_score, score_parts
from edge.heads.tail import Tail, TailSpec

_BATCH = 8
TINY = 1e-12  # of a level's nominal mean: what a geometric mean adds to it
_LEAST_STD = 1e-6


@dataclass(frozen=True)
class Constants:
    """tail and score: the bundle's; scores: float64 [n] by name (``norm``, ``max``, ``score``), of the
    calibration pictures in their order; info: thresholds and promises."""

    tail: TailSpec
    score: ScoreSpec
    scores: dict[str, F64]
    info: CalibrationInfo


def calibrate(
    fitted: MethodFit,
    tail: TailSpec,
    rule: Rule,
    *,
    rate: float,
    exact: bool,
    how: How,
    seed: int,
    progress: Progress = no_progress,
) -> Constants:
    """Constants from ``fitted.scaling``, thresholds from ``fitted.calibrating``.

    The two differ for a held-out split, whose guarantee is exact only if nothing of the score's definition
    has seen the calibration pictures. A head without a norm has the rule "max" alone. Raises DataError as
    :func:`threshold_for`, and for a rule that the head cannot serve."""
    if rule != "max" and fitted.scaling.norms is None:
        raise DataError(f"score rule {rule!r} needs a head with a residual norm, which this method has not; use max")
    if tail.fuse == "geometric" and not tail.tiny:
        tiny = tuple(TINY * max(float(level.mean(dtype=np.float64)), TINY) for level in fitted.scaling.levels)
        tail = tail.model_copy(update={"tiny": tiny})
    same = fitted.calibrating is fitted.scaling or fitted.calibrating.levels is fitted.scaling.levels
    scaling = parts_of(fitted.scaling, tail, progress)
    parts = scaling if same else parts_of(fitted.calibrating, tail, progress)
    scales = {name: _log_scale(values, name) for name, values in scaling.items()}
    spec = ScoreSpec(rule=rule, norm=scales.get("norm"), max=scales["max"])
    count = len(parts["max"])
    pictures = [{name: float(values[i]) for name, values in parts.items()} for i in range(count)]
    scores = {**parts, "score": np.array([image_score(spec, picture) for picture in pictures])}
    image = threshold_for(_positive(scores["score"]), rate, seed)
    pixel = threshold_for(_positive(scores["max"]), rate, seed)
    info = CalibrationInfo(
        count=count,
        method=how,
        guarantee=promise(count, rate, exact, how),
        exact=exact and not image.extrapolated,
        false_alarm_rate=rate,
        threshold=image.value,
        pixel_threshold=pixel.value,
        extrapolated=image.extrapolated,
        interval=image.interval,
        rate_interval=image.rate_interval,
        needed_for_promise=needed_for_promise(rate),
        tail=image.tail,
        pixel_tail=pixel.tail,
    )
    return Constants(tail, spec, scores, info)


def parts_of(unseen: Unseen, tail: TailSpec, progress: Progress = no_progress) -> dict[str, F64]:
    """``max`` and (where the head has one) ``norm`` of every picture, float64 [n], by the arithmetic that the daemon
    uses."""
    runner = Tail(tail)
    count = len(unseen.levels[0])
    result = {name: np.empty(count) for name in (("max",) if unseen.norms is None else ("norm", "max"))}
    for start in range(0, count, _BATCH):
        rows = slice(start, start + _BATCH)
        norms = None if unseen.norms is None else unseen.norms[rows]
        residuals = Residuals([level[rows] for level in unseen.levels], norms)
        _, parts = score_parts(runner, residuals)
        for name, values in result.items():
            values[rows] = [part[name] for part in parts]
        progress(min(start + _BATCH, count), count, "calibration")
    return result


def _log_scale(values: F64, name: str) -> LogScale:
    typical = float(np.median(values))
    if not typical > 0:
        raise DataError(
            f"most good pictures are copies of one another (their held-out {name} is zero): no threshold can be"
            " drawn from them; take pictures of different good parts"
        )
    # A few copies give zero residuals: floored, so that their log does not rule mean and spread.
    floor = 1e-3 * typical
    logs = np.log(np.maximum(values, floor))
    return LogScale(mean=float(logs.mean()), std=max(float(logs.std(ddof=1)), _LEAST_STD), floor=floor)


def _positive(scores: F64) -> F64:
    return np.maximum(scores, 1e-3 * float(np.median(scores)))
