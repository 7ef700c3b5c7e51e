"""Fitting FRE: a subspace a layer, and the residuals of pictures that it has not seen.

Everything starts from the pooled features rounded to float16, which is what a bundle keeps: a refit from the
bundle and the fit that wrote it see the same numbers. The rounding moves a score by far less than a part in a
thousand.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from calibration import Progress, no_progress
from calibration.snapshot import F32, F64, Features, fit_subspace, gram, held_out, mean_of, recentre
from edge.errors import DataError
from edge.heads.fre import pool_mean

METHOD = "fre"
DEFAULT_VARIANCE = 0.97
DEFAULT_POOL = 2

Indices = NDArray[np.intp]


@dataclass(frozen=True)
class Unseen:
    """Residuals of pictures under models fitted without them.

    levels: float32 [n, h, w] a layer; norms: float64 [n] of the detection layer."""

    levels: list[F32]
    norms: F64


@dataclass(frozen=True)
class MethodFit:
    """What fitting gives: the head's spec and arrays; residuals to set the score's constants with (of the
    fitted pictures, by folds) and to calibrate with (the same, or those of a held-out split); the Gram
    matrices."""

    spec: dict[str, object]
    arrays: dict[str, F32]
    scaling: Unseen
    calibrating: Unseen
    grams: dict[str, F64]


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
    arrays: dict[str, F32] = {}
    kept: dict[str, F64] = {}
    scaling: list[F32] = []
    calibrating: list[F32] = []
    norms: dict[str, tuple[F64, F64]] = {}
    for done, (layer, values) in enumerate(features.items()):
        progress(done, len(features), "algebra")
        train = np.setdiff1d(np.arange(len(values)), held if held is not None else [])
        centre = mean_of(values)
        kept[layer] = matrix = grams[layer] if grams is not None else gram(values, centre)
        part = values if held is None else values[train]
        part_matrix = recentre(matrix[np.ix_(train, train)])
        subspace = fit_subspace(part, centre if held is None else mean_of(part), part_matrix, variance)
        arrays[f"mu_{layer}"], arrays[f"w_{layer}"] = subspace.mean, subspace.basis
        spec[f"shape_{layer}"] = list(shapes[layer])
        spec[f"components_{layer}"] = len(subspace.basis)
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
    return MethodFit(spec, arrays, Unseen(scaling, first), Unseen(calibrating, second), kept)
