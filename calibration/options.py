"""What a fit may be asked for, checked before any picture is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from calibration.methods import How, fitter_of
from edge.errors import DataError
from edge.heads.scorer import RULES, Rule
from edge.heads.tail import TailSpec

HOLDOUT_SHARE = 0.2


@dataclass(frozen=True)
class FitOptions:
    """What a fit may be asked for. None: the method's own default, filled in by :meth:`resolved`.

    layers: the taps whose residuals make the map. detection: the layer whose residual norm scores the picture
    (methods with a norm). variance, pool: FRE's. settings: the method's own, by name
    (:class:`calibration.methods.Settings`).
    false_alarms: accepted rate of false alarms an inspected picture, in (0, 1). calibration: "folds" or "loo" (all
    pictures fitted, each scored once by a model without it) or "holdout" (a fifth is kept out: exact guarantee).
    seed: of folds, hold-out, bootstrap and training. tail: settings of the anomaly map."""

    method: str = "fre"
    layers: tuple[str, ...] | None = None
    detection: str = "layer3"
    rule: Rule | None = None
    variance: float = 0.97
    pool: int = 2
    settings: Mapping[str, object] = field(default_factory=dict)
    false_alarms: float = 1e-3
    calibration: How | None = None
    folds: int = 10
    holdout: float = HOLDOUT_SHARE
    seed: int = 0
    keep_refit: bool = True
    tail: TailSpec | None = None

    def resolved(self) -> FitOptions:
        """These options with the method's defaults in place of None, checked.

        Raises DataError, one line, for a combination that cannot work."""
        fitter = fitter_of(self.method)
        defaults = fitter.defaults
        options = replace(
            self,
            layers=defaults.layers if self.layers is None else self.layers,
            rule=self.rule or defaults.rule,
            calibration=self.calibration or defaults.calibration,
            tail=self.tail or defaults.tail,
        )
        layers = options.layers or ()
        if len(set(layers)) != len(layers) or (not layers and defaults.layers):
            raise DataError(f"layers must be one or several different taps, not {list(layers)}")
        if options.rule not in RULES:
            raise DataError(f"unknown score rule {options.rule!r}; known are {', '.join(RULES)}")
        if not 0 < self.false_alarms < 1:
            raise DataError(f"the accepted rate of false alarms must lie between 0 and 1: {self.false_alarms}")
        if self.folds < 2 or not 0 < self.holdout < 1:
            raise DataError("it takes folds at least 2 in number, and a hold-out share between 0 and 1")
        if options.calibration not in defaults.calibrations:
            raise DataError(
                f"{self.method} cannot be calibrated by {options.calibration!r};"
                f" it knows {', '.join(defaults.calibrations)}"
            )
        fitter.check(options)
        return options

    @property
    def scored_layers(self) -> tuple[str, ...]:
        """:attr:`layers` once resolved."""
        return self.layers or ()
