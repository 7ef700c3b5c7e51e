"""What a fit may be asked for, checked before any picture is read."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from calibration import fre
from edge.errors import DataError
from edge.heads.scorer import RULES, Rule
from edge.heads.tail import TailSpec

DEFAULT_LAYERS = ("layer1", "layer2", "layer3")
HOLDOUT_SHARE = 0.2


@dataclass(frozen=True)
class FitOptions:
    """What a fit may be asked for; the defaults are the documented ones.

    false_alarms: accepted rate of false alarms an inspected picture, in (0, 1). calibration: "folds" (all
    pictures fitted, each scored once by a model without it) or "holdout" (a fifth is kept out: exact
    guarantee). seed: of folds, hold-out and bootstrap. tail: settings of the anomaly map."""

    method: str = fre.METHOD
    layers: tuple[str, ...] = DEFAULT_LAYERS
    detection: str = "layer3"
    rule: Rule = "combined"
    variance: float = fre.DEFAULT_VARIANCE
    pool: int = fre.DEFAULT_POOL
    false_alarms: float = 1e-3
    calibration: Literal["folds", "holdout"] = "folds"
    folds: int = 10
    holdout: float = HOLDOUT_SHARE
    seed: int = 0
    keep_refit: bool = True
    tail: TailSpec = field(default_factory=TailSpec)

    def check(self) -> None:
        """Raises DataError, one line, for a combination that cannot work."""
        if self.method != fre.METHOD:
            raise DataError(f"unknown method {self.method!r}; this version fits {fre.METHOD}")
        if not self.layers or len(set(self.layers)) != len(self.layers):
            raise DataError(f"layers must be one or several different taps, not {list(self.layers)}")
        if self.detection not in self.layers:
            raise DataError(f"the detection layer {self.detection!r} is not among {', '.join(self.layers)}")
        if self.rule not in RULES:
            raise DataError(f"unknown score rule {self.rule!r}; known are {', '.join(RULES)}")
        if not 0 < self.variance < 1:
            raise DataError(f"the retained variance must lie between 0 and 1, not {self.variance}")
        if not 0 < self.false_alarms < 1:
            raise DataError(f"the accepted rate of false alarms must lie between 0 and 1: {self.false_alarms}")
        if self.pool < 1 or self.folds < 2 or not 0 < self.holdout < 1:
            raise DataError("pool must be at least 1, folds at least 2, the hold-out share between 0 and 1")
        if self.calibration not in ("folds", "holdout"):
            raise DataError(f"unknown calibration {self.calibration!r}; known are folds and holdout")
