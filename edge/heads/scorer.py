"""From taps to a score: the one arithmetic that fit, evaluation, inspection and the daemon use.

Three rules give the image score; all their parts are returned with every score:

* ``norm``: the head's own norm (FRE: the residual's length in the detection layer);
* ``max``: the maximum of the fused anomaly map;
* ``combined``: the larger of the two on one scale. Each is standardised on the log scale with the mean and
  the standard deviation that held-out good pictures gave it, z = (log s - mean) / std, and the score is
  exp(std_norm max(z_norm, z_max)): about how many times a typical good picture's residual. The monotone exp
  keeps the score positive, so that a relative difference between two runs means something; it changes no
  order.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from edge.errors import HeadError
from edge.heads import Array, Residuals
from edge.heads.calibrated import Calibrated
from edge.heads.tail import Tail

if TYPE_CHECKING:
    from edge.bundle import Bundle

Rule = Literal["norm", "max", "combined"]
RULES: tuple[Rule, ...] = ("norm", "max", "combined")


class LogScale(BaseModel):
    """Location and spread of a part's log over held-out good pictures."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mean: float
    std: float = Field(gt=0)
    floor: float = Field(gt=0)  # a part below this counts as this: the log of a zero residual must not rule

    def z(self, value: float) -> float:
        """Standardised log of ``value`` (>= 0)."""
        return (math.log(max(value, self.floor)) - self.mean) / self.std


class ScoreSpec(BaseModel):
    """The image score's rule and the constants of its parts (absent where the head has no norm)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rule: Rule = "combined"
    norm: LogScale | None = None
    max: LogScale | None = None


def image_score(spec: ScoreSpec, parts: Mapping[str, float], rule: Rule | None = None) -> float:
    """The score of one picture (>= 0) from its parts ``norm`` and ``max``, by ``rule`` (default: the spec's).

    Raises HeadError when a part or its constants, which the rule needs, are missing."""
    rule = rule or spec.rule
    if rule != "combined":
        if rule not in parts:
            raise HeadError(f"score rule {rule!r} needs a part which this head does not give; use 'max'")
        return parts[rule]
    if spec.norm is None or spec.max is None or "norm" not in parts:
        raise HeadError("score rule 'combined' needs a head with a norm and its constants; use 'max'")
    z = max(spec.norm.z(parts["norm"]), spec.max.z(parts["max"]))
    # Far beyond any defect; keeps exp finite for whatever comes.
    return math.exp(min(spec.norm.std * z, 500.0))


@dataclass(frozen=True)
class Judged:
    """One picture's verdict. score: >= 0, larger is more anomalous; p_value in [0, 1]; parts: the rules' values by
    name."""

    score: float
    p_value: float
    parts: dict[str, float]


@dataclass(frozen=True)
class Scored(Judged):
    """With its anomaly map: float32 [256, 256] (the bundle's size), >= 0, a view into ``out`` where the caller gave
    one."""

    map: Array


@runtime_checkable
class Screening(Protocol):
    """A head that has its norm without a map. gate: share of the threshold below which that is enough, or None."""

    gate: float | None

    def norms(self, taps: Mapping[str, Array]) -> NDArray[np.float64]:
        """:attr:`edge.heads.Residuals.norms` up to rounding, cheaper; raises HeadError as the residuals do."""
        ...


class Scorer:
    """Head, tail, score rule and calibration of one bundle. One object a thread; arrays are shared."""

    def __init__(self, bundle: Bundle) -> None:
        manifest = bundle.manifest
        self.head = bundle.make_head()
        self.tail = Tail(manifest.tail)
        self.spec = manifest.score
        self.calibrated = Calibrated(bundle.calibration["score"], manifest.calibration.tail)
        self.size: tuple[int, int] = manifest.tail.size
        self.taps: tuple[str, ...] = self.head.taps
        self.threshold: float = manifest.calibration.threshold
        """A picture is anomalous when its score is larger; so is a pixel, against :attr:`pixel_threshold`."""
        gate = self.head.gate if isinstance(self.head, Screening) and self.spec.rule == "norm" else None
        self.gate: float | None = None if gate is None else gate * self.threshold
        """Score below which :meth:`screen` makes no map; None: it makes all."""
        self.pixel_threshold: float = manifest.calibration.pixel_threshold

    def score(self, taps: Mapping[str, Array], out: Array | None = None) -> list[Scored]:
        """Score B pictures from their taps (name -> float32 [B, C, h, w]).

        ``out``: float32 [B, *size], C-contiguous, receives the anomaly maps in place. A picture's result does
        not depend on the batch it came in. Raises HeadError for taps that do not fit or are not finite."""
        residuals = self.head.residuals(taps)
        maps, parts = score_parts(self.tail, residuals, out)
        return [self._judge(values, map_) for values, map_ in zip(parts, maps, strict=True)]

    def screen(self, taps: Mapping[str, Array]) -> list[Judged | None]:
        """The verdicts of pictures whose score lies below the gate, at a fraction of the cost of a map; None for the
        others, which :meth:`score` must see, and for all where there is no gate.

        Such a score differs from that of :meth:`score` by rounding; the gate lies far enough below the threshold that
        no verdict can. Raises HeadError as :meth:`score` does."""
        count = len(next(iter(taps.values()))) if taps else 0
        if self.gate is None or not isinstance(self.head, Screening):
            return [None] * count
        return [self._screened(float(norm)) for norm in self.head.norms(taps)]

    def _screened(self, norm: float) -> Judged | None:
        parts = {"norm": norm}
        score = image_score(self.spec, parts)
        if self.gate is None or score >= self.gate:
            return None
        return Judged(score, self.calibrated.p_value(score), parts)

    def _judge(self, parts: dict[str, float], map_: Array) -> Scored:
        score = image_score(self.spec, parts)
        return Scored(score, self.calibrated.p_value(score), parts, map_)


def score_parts(tail: Tail, residuals: Residuals, out: Array | None = None) -> tuple[Array, list[dict[str, float]]]:
    """Anomaly maps [B, *size] and, per picture, the parts ``max`` and (where the head has one) ``norm``."""
    maps, maxima = tail.apply(residuals.levels, out)
    parts = [{"max": float(value)} for value in maxima]
    if residuals.norms is not None:
        for part, norm in zip(parts, residuals.norms, strict=True):
            part["norm"] = float(norm)
    if not np.isfinite(maxima).all():
        raise HeadError("the anomaly map is not finite: no score; check the engine and its precision")
    return maps, parts
