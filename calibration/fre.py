"""Fitting FRE: a subspace a layer, and the residuals of pictures that it has not seen.

Everything starts from the pooled features rounded to float16, which is what a bundle keeps: a refit from the
bundle and the fit that wrote it see the same numbers. The rounding moves a score by far less than a part in a
thousand.

``encoder=tied`` and ``encoder=ae`` are the auto-encoders, trained by gradient (:mod:`calibration.fre_autoencoder`)
with as many components as the principal subspace keeps. Their thresholds come from pictures held out of the training;
the constants of the score come from the principal subspaces of the folds of the others, which is what both converge to:
the pictures they were trained on would leave next to nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from calibration import Progress, no_progress
from calibration.checkpoints import Checkpoints
from calibration.methods import Defaults, Indices, Job, MethodFit, Restored, Settings, Stored, Unseen, settings_of
from calibration.options import FitOptions
from calibration.snapshot import (
    F32,
    F64,
    Features,
    count_components,
    eigenvalues,
    fit_subspace,
    gram,
    held_out,
    mean_of,
    recentre,
)
from calibration.training import Schedule, Trained, import_torch, report_to, train
from edge.errors import DataError
from edge.heads.fre import Encoder, linear_residual, pool_mean
from edge.heads.tail import TailSpec

Shape = tuple[int, int, int]


class FreSettings(Settings):
    """How the subspace is found and kept. Epochs and what follows them concern the auto-encoders alone; the defaults
    are the authors'."""

    encoder: Encoder = Field("pca", description="closed form (pca), or trained: tied or untied (ae) auto-encoder")
    storage: Literal["float32", "float16"] = Field(
        "float32", description="of the subspace in the bundle; float16 takes half, scores move by a thousandth at most"
    )
    gate: float | None = Field(
        None, gt=0, lt=1, description="share of the threshold below which a running line makes no map (pca, score norm)"
    )
    epochs: int = Field(250, ge=1, le=100_000, description="times every picture is seen")
    batch: int = Field(64, ge=1, le=4096, description="pictures a step")
    lr: float = Field(1e-3, gt=0, le=100, description="learning rate of Adam, falling as half a cosine")
    seed: int | None = Field(None, ge=0, description="of the weights and the order; none: the fit's")
    minutes: float | None = Field(None, gt=0, description="stop after so many minutes, to be resumed")
    resume: Path | None = Field(None, description="folder in which an unfinished training is kept")


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
        settings = settings_of(FreSettings, self.method, options.settings)
        layers = options.scored_layers
        if options.detection not in layers:
            raise DataError(f"the detection layer {options.detection!r} is not among {', '.join(layers)}")
        if not 0 < options.variance < 1:
            raise DataError(f"the retained variance must lie between 0 and 1, not {options.variance}")
        if options.pool < 1:
            raise DataError(f"pool must be at least 1, not {options.pool}")
        if settings.gate is not None and (options.rule != "norm" or settings.encoder != "pca"):
            raise DataError(
                "fre: gate: only the score norm of the encoder pca can be had without a map; add --score norm, or leave"
                " the gate out"
            )
        if settings.encoder != "pca":
            if options.calibration != "holdout":  # folds would be ten trainings
                raise DataError(
                    f"fre: encoder={settings.encoder} is trained, and calibrated by pictures held out of the training:"
                    " add --calibration holdout"
                )
            import_torch()

    def taps(self, options: FitOptions) -> tuple[str, ...]:
        return options.scored_layers

    def keep(self, options: FitOptions, taps: Mapping[str, F32]) -> dict[str, Features]:
        return pooled_features(taps, options.pool)

    def fit(self, job: Job) -> MethodFit:
        """See :class:`calibration.methods.Fitter`; raises what :func:`calibration.training.train` raises as well."""
        options = job.options
        settings = settings_of(FreSettings, self.method, options.settings)
        layers = options.scored_layers
        if settings.encoder == "pca":
            fitted = fit(
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
            if settings.gate is not None:
                fitted.spec["gate"] = settings.gate
        else:
            fitted = fit_autoencoder(job, settings)
        if settings.storage == "float16":
            _halve(fitted.arrays)
        return fitted

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


def fit_autoencoder(job: Job, settings: FreSettings) -> MethodFit:
    """Fit a trained encoder on ``job``, whose held-out pictures give the thresholds. Raises DataError where there are
    none, and as :func:`fit` and :func:`calibration.training.train` do."""
    options, train_rows, held = job.options, job.train, job.held
    if held is None:
        raise DataError(f"fre: encoder={settings.encoder} needs pictures held out of the training")
    layers = options.scored_layers
    means: dict[str, F64] = {}
    components: dict[str, int] = {}
    scaling: list[F32] = []
    norms: dict[str, F64] = {}
    for layer in layers:
        part = job.stored[layer][train_rows]
        means[layer] = mean_of(part)
        matrix = gram(part, means[layer])
        components[layer] = count_components(eigenvalues(matrix), options.variance)
        own = [np.searchsorted(train_rows, fold) for fold in job.folds]
        unseen = held_out(part, means[layer], matrix, own, options.variance)
        scaling.append(unseen.maps)
        norms[layer] = unseen.norms
    by_layer, trained = _train(job, settings, means, components)
    arrays: dict[str, NDArray[Any]] = {
        f"{kind}_{layer}": array for layer, found in by_layer.items() for kind, array in found.items()
    }
    spec: dict[str, object] = {
        "layers": list(layers),
        "detection": options.detection,
        "pool": options.pool,
        "variance": options.variance,
        "encoder": settings.encoder,
        "epochs": settings.epochs,
        "batch": settings.batch,
        "lr": settings.lr,
        "seed": _seed(job, settings),
    }
    calibrating: list[F32] = []
    held_norms = np.zeros(len(held))
    for layer, found in by_layer.items():
        spec[f"shape_{layer}"] = list(job.source.shape(layer))
        spec[f"components_{layer}"] = components[layer]
        squares = _squares(job.stored[layer][held], found)
        calibrating.append(squares.mean(axis=1))
        if layer == options.detection:
            held_norms = np.sqrt(squares.sum(axis=(1, 2, 3), dtype=np.float64))
    details: dict[str, object] = {
        "components": components,
        "encoder": settings.encoder,
        "epochs": settings.epochs,
        "variance_left": trained.history[-1],
        "training_seconds": trained.seconds,
        "resumed_at_step": trained.resumed_at,
    }
    return MethodFit(
        spec, arrays, Unseen(scaling, norms[options.detection]), Unseen(calibrating, held_norms), details=details
    )


def _train(
    job: Job, settings: FreSettings, means: Mapping[str, F64], components: Mapping[str, int]
) -> tuple[dict[str, dict[str, F32]], Trained]:
    """The trained arrays by layer."""
    import_torch()
    from calibration.fre_autoencoder import AutoencoderTask, trained_arrays

    features = {layer: job.stored[layer] for layer in means}
    seed = _seed(job, settings)
    tied = settings.encoder == "tied"
    task = AutoencoderTask(features, means, job.train, components, tied=tied, seed=seed)
    schedule = Schedule(
        epochs=settings.epochs,
        batch=settings.batch,
        lr=settings.lr,
        seed=seed,
        warmup=0,
        decay="cosine",
        clip=None,  # Adam's steps have the same length whatever the gradient's
        minutes=settings.minutes,
    )
    checkpoints = None
    if settings.resume is not None:
        checkpoints = Checkpoints(settings.resume, _identity(job, settings, components))
    trained = train(task, schedule, checkpoints, report_to(job.progress))
    return trained_arrays(task, means), trained


def _identity(job: Job, settings: FreSettings, components: Mapping[str, int]) -> dict[str, object]:
    """What must be the same for a training to go on."""
    digest = hashlib.sha256()
    for layer in components:
        for row in job.train:
            digest.update(job.stored[layer][row].tobytes())
    return {
        "method": FreFitter.method,
        "encoder": settings.encoder,
        "backbone": job.source.backbone.graph_sha256,
        "components": dict(components),
        "pool": job.options.pool,
        "pictures": digest.hexdigest(),
        "seed": _seed(job, settings),
        "batch": settings.batch,
    }


def _seed(job: Job, settings: FreSettings) -> int:
    return job.options.seed if settings.seed is None else settings.seed


def _squares(pictures: Features, arrays: Mapping[str, F32]) -> F32:
    """Squares of the residuals, float32 [n, C, h, w], picture by picture: memory is one."""
    encode, decode = arrays.get("enc", arrays.get("w")), arrays.get("dec", arrays.get("w"))
    assert encode is not None
    assert decode is not None
    squares = np.empty(pictures.shape, np.float32)
    for picture, square in zip(pictures, squares, strict=True):
        flat = picture.reshape(1, -1).astype(np.float32)
        residual = linear_residual(flat, arrays["mu"], encode, decode, arrays["shift"])
        np.square(residual.reshape(square.shape), out=square)
    return squares


def _halve(arrays: dict[str, NDArray[Any]]) -> None:
    """Matrices to float16, in place of those of float32; means and shifts are small, and stay."""
    for name, array in arrays.items():
        if array.ndim == 2:
            arrays[name] = array.astype(np.float16)
