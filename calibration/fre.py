"""Fitting FRE: a subspace a layer, and the residuals of pictures that it has not seen.

Everything starts from the pooled features rounded to float16, which is what a bundle keeps: a refit from the
bundle and the fit that wrote it see the same numbers. The rounding moves a score by far less than a part in a
thousand.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibration import Progress, no_progress
from calibration.methods import Defaults, Indices, Job, MethodFit, Restored, Settings, Stored, Unseen, settings_of
from calibration.options import FitOptions
from calibration.snapshot import F32, F64, Features, fit_subspace, gram, held_out, mean_of, recentre
from edge.errors import DataError
from edge.heads.fre import pool_mean
from edge.heads.tail import TailSpec


class FreSettings(Settings):
    """FRE has no settings beyond the options."""


class FreFitter:
    """See :class:`calibration.methods.Fitter`."""

    method = "fre"
    needs_graph = True
    needs_pictures = False
    defaults = Defaults(
        layers=("layer1", "layer2", "layer3"),
        rule="combined",
        calibration="folds",
        calibrations=("folds", "holdout"),
        tail=TailSpec(),
    )
    settings: type[Settings] = FreSettings

    def check(self, options: FitOptions) -> None:
        settings_of(FreSettings, self.method, options.settings)
        layers = options.scored_layers
        if options.detection not in layers:
            raise DataError(f"the detection layer {options.detection!r} is not among {', '.join(layers)}")
        if not 0 < options.variance < 1:
            raise DataError(f"the retained variance must lie between 0 and 1, not {options.variance}")
        if options.pool < 1:
            raise DataError(f"pool must be at least 1, not {options.pool}")

    def taps(self, options: FitOptions) -> tuple[str, ...]:
        return options.scored_layers

    def keep(self, options: FitOptions, taps: Mapping[str, F32]) -> dict[str, Features]:
        return pooled_features(taps, options.pool)

    def fit(self, job: Job) -> MethodFit:
        options = job.options
        layers = options.scored_layers
        return fit(
            {layer: job.stored[layer] for layer in layers},
            {layer: job.source.shape(layer) for layer in layers},
            detection=options.detection,
            pool=options.pool,
            variance=options.variance,
            folds=job.folds,
            held=job.held,
            grams={layer: job.known[f"gram_{layer}"] for layer in layers} if job.known else None,
            progress=job.progress,
        )

    def restore(self, options: FitOptions, spec: Mapping[str, Any], arrays: Stored, refit: Stored | None) -> Restored:
        if refit is None:
            raise DataError("it was fitted without what a refit needs; run edge fit on the pictures again")
        layers = options.scored_layers
        missing = [layer for layer in layers if f"features_{layer}" not in refit]
        if missing or options.pool != spec.get("pool"):
            raise DataError(f"a refit cannot add layers ({missing}) or change the pooling; run edge fit again")
        stored = {layer: refit[f"features_{layer}"] for layer in layers}
        return Restored(stored, {f"gram_{layer}": refit[f"gram_{layer}"] for layer in layers})


def pooled_features(taps: Mapping[str, F32], pool: int) -> dict[str, Features]:
    """One picture's taps (float32 [1, C, H, W]) -> pooled float16 [C, h, w] by name."""
    with np.errstate(over="ignore"):  # the Gram matrix refuses infinities, naming them
        return {name: pool_mean(tap[0], pool).astype(np.float16) for name, tap in taps.items()}


def fit(
    features: Mapping[str, Features],
    shapes: Mapping[str, tuple[int, int, int]],
    *,
    detection: str,
    pool: int,
    variance: float,
    folds: Sequence[Indices],
    held: Indices | None,
    grams: Mapping[str, F64] | None = None,
    progress: Progress = no_progress,
) -> MethodFit:
    """Fit FRE on ``features`` (layer -> float16 [N, C, h, w], pooled by ``pool`` from taps of ``shapes``).

    folds: a partition of the pictures that are not held, for the residuals of unseen pictures; held:
    indices of pictures kept out of the fit altogether, or None. grams: those of an earlier fit of the same
    features. Raises DataError: no variation among the pictures, features that are not finite, an
    impossible variance."""
    if not 0 < variance < 1:
        raise DataError(f"the retained variance must lie between 0 and 1, not {variance}")
    spec: dict[str, object] = {
        "layers": list(features),
        "detection": detection,
        "pool": pool,
        "variance": variance,
    }
    arrays: dict[str, NDArray[Any]] = {}
    refit: dict[str, NDArray[Any]] = {}
    components: dict[str, int] = {}
    scaling: list[F32] = []
    calibrating: list[F32] = []
    norms: dict[str, tuple[F64, F64]] = {}
    for done, (layer, values) in enumerate(features.items()):
        progress(done, len(features), "algebra")
        train = np.setdiff1d(np.arange(len(values)), held if held is not None else [])
        centre = mean_of(values)
        matrix = grams[layer] if grams is not None else gram(values, centre)
        refit[f"features_{layer}"], refit[f"gram_{layer}"] = values, matrix
        part = values if held is None else values[train]
        part_matrix = recentre(matrix[np.ix_(train, train)])
        subspace = fit_subspace(part, centre if held is None else mean_of(part), part_matrix, variance)
        arrays[f"mu_{layer}"], arrays[f"w_{layer}"] = subspace.mean, subspace.basis
        spec[f"shape_{layer}"] = list(shapes[layer])
        spec[f"components_{layer}"] = components[layer] = len(subspace.basis)
        # Fold indices count all pictures; the fit part counts its own.
        own = [np.searchsorted(train, fold) for fold in folds]
        unseen = held_out(part, centre, part_matrix, own, variance)
        scaling.append(unseen.maps)
        if held is None:
            calibrating, norms[layer] = scaling, (unseen.norms, unseen.norms)
        else:
            apart = held_out(values, centre, matrix, [held], variance)
            calibrating.append(apart.maps[held])
            norms[layer] = (unseen.norms, apart.norms[held])
    progress(len(features), len(features), "algebra")
    first, second = norms[detection]
    return MethodFit(
        spec,
        arrays,
        Unseen(scaling, first),
        Unseen(calibrating, second),
        refit,
        details={"components": components},
    )
