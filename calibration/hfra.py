"""Fitting HFRA: a decoder that rebuilds the good pictures' features, trained on cached taps.

Source: HFRA (Chen, Chen, Mao, Jiang; arXiv 2405.09148). The backbone is frozen and nothing is augmented, so every
picture passes it once. The bundle gets one graph, picture to residual maps; thresholds are drawn by that very graph
from pictures held out of the training. The last epoch is kept: choosing one by the held-out pictures, as STFPM does,
would make them part of the fit and end the exact guarantee.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from calibration.checkpoints import Checkpoints
from calibration.graph_maps import need_packages, residual_maps
from calibration.methods import (
    F32,
    Defaults,
    Job,
    MethodFit,
    OwnGraph,
    Restored,
    Settings,
    Stored,
    Unseen,
    settings_of,
)
from calibration.options import FitOptions
from calibration.training import Schedule, Trained, choose_device, import_torch, report_to, train
from edge.bundle import TapInfo
from edge.errors import DataError
from edge.heads.hfra import printed_weights
from edge.heads.tail import TailSpec
from engines import EngineError
from engines.decoder_graph import level_factors, residual_name, write_decoder_graph

Shape = tuple[int, int, int]


class HfraSettings(Settings):
    """How the decoder is trained. Optimiser and constants not named here are the printed ones."""

    epochs: int = Field(40, ge=1, le=100_000, description="times every picture is seen")
    batch: int = Field(16, ge=1, le=4096, description="pictures a step")
    lr: float = Field(0.4, gt=0, le=100, description="learning rate of SGD, as printed")
    decay: Literal["none", "cosine"] = Field("none", description="course of the learning rate after the warm-up")
    warmup: int = Field(50, ge=0, description="steps in which the learning rate grows to its value")
    clip: float = Field(1.0, gt=0, description="largest 2-norm of the whole gradient")
    mid: float = Field(1.0, gt=0, le=1, description="share of a level's channels in its first two convolutions")
    weights: Literal["uniform", "printed"] = Field("uniform", description="of the levels; printed: 1 / (w h)")
    seed: int | None = Field(None, ge=0, description="of the weights and the order; none: the fit's")
    minutes: float | None = Field(None, gt=0, description="stop after so many minutes, to be resumed")
    resume: Path | None = Field(None, description="folder in which an unfinished training is kept")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where to train")


class HfraFitter:
    """See :class:`calibration.methods.Fitter`."""

    method = "hfra"
    needs_graph = True
    needs_pictures = True  # the held-out ones go through the finished graph
    settings = HfraSettings
    defaults = Defaults(
        layers=("layer1", "layer2", "layer3"),
        rule="max",
        calibration="holdout",
        calibrations=("holdout",),  # folds would be ten trainings
        tail=TailSpec(fuse="sum", smooth="gauss", sigma=4.0),
        mapped=True,
        probe={"epochs": 1},
    )

    def check(self, options: FitOptions) -> None:
        """Also that what an hour of training ends in can be had: torch and onnx."""
        if options.rule != "max":
            raise DataError(f"hfra scores a picture by the maximum of its map; it has no rule {options.rule!r}")
        settings_of(HfraSettings, self.method, options.settings)
        need_packages()

    def taps(self, options: FitOptions) -> tuple[str, ...]:
        return options.scored_layers

    def keep(self, options: FitOptions, taps: Mapping[str, F32]) -> dict[str, NDArray[Any]]:
        """float16 [C, H, W]: a cosine moves by less than a millionth."""
        with np.errstate(over="ignore"):  # an infinity makes the first loss not finite, which is said then
            return {name: tap[0].astype(np.float16) for name, tap in taps.items()}

    def fit(self, job: Job) -> MethodFit:
        """See :class:`calibration.methods.Fitter`; raises what :func:`calibration.training.train` raises as well."""
        settings = settings_of(HfraSettings, self.method, job.options.settings)
        layers = job.options.scored_layers
        shapes = {layer: job.source.shape(layer) for layer in layers}
        decoder, trained = _train(job, settings, shapes)
        metadata = {"head": self.method, "layers": ",".join(layers)}
        graph = write_decoder_graph(job.source.graph, decoder, layers, metadata)
        levels = tuple(residual_name(layer) for layer in layers)
        taps = tuple(
            TapInfo(name=level, channels=1, height=shape[1], width=shape[2])
            for level, shape in zip(levels, shapes.values(), strict=True)
        )
        scaling, calibrating = residual_maps(job, graph, taps)
        spec: dict[str, object] = {"levels": list(levels), "weights": settings.weights, "mid": settings.mid}
        spec |= {f"shape_{tap.name}": [1, tap.height, tap.width] for tap in taps}
        spec |= {"epochs": settings.epochs, "batch": settings.batch, "lr": settings.lr, "decay": settings.decay}
        spec |= {"seed": _seed(job, settings)}
        return MethodFit(
            spec=spec,
            arrays={},  # all weights are in the graph
            scaling=scaling,
            calibrating=calibrating,
            tail=_tail(job, settings, shapes),
            own=OwnGraph(graph, taps),
            details={
                "epochs": settings.epochs,
                "loss": trained.history[-1],
                "held_out_loss": _mean(calibrating),
                "decoder_parameters": sum(array.size for array in decoder.values()),
                "training_seconds": trained.seconds,
                "resumed_at_step": trained.resumed_at,
            },
        )

    def restore(self, options: FitOptions, spec: Mapping[str, Any], arrays: Stored, refit: Stored | None) -> Restored:
        raise DataError("a trained head keeps nothing to refit from; run edge fit on the pictures again")


def _train(job: Job, settings: HfraSettings, shapes: Mapping[str, Shape]) -> tuple[dict[str, F32], Trained]:
    """The folded weights of a trained decoder."""
    import_torch()
    from calibration.hfra_network import Decoder, DecoderTask

    seed = _seed(job, settings)
    try:
        factors = level_factors([shape[1:] for shape in shapes.values()])
    except EngineError as error:
        raise DataError(str(error)) from None
    features = {layer: job.stored[layer] for layer in shapes}
    decoder = Decoder(shapes, factors, settings.mid, seed)
    task = DecoderTask(decoder, features, job.train, choose_device(settings.device))
    schedule = Schedule(
        epochs=settings.epochs,
        batch=settings.batch,
        lr=settings.lr,
        seed=seed,
        warmup=settings.warmup,
        decay=settings.decay,
        clip=settings.clip,
        minutes=settings.minutes,
    )
    checkpoints = None
    if settings.resume is not None:
        checkpoints = Checkpoints(settings.resume, _identity(job, settings, features))
    trained = train(task, schedule, checkpoints, report_to(job.progress))
    return decoder.folded(), trained


def _identity(job: Job, settings: HfraSettings, features: Stored) -> dict[str, object]:
    """What must be the same for a training to go on. Epochs, learning rate and the like may change: a training is
    prolonged that way, or goes on more slowly after it diverged."""
    digest = hashlib.sha256()
    for rows in features.values():
        for row in job.train:
            digest.update(rows[row].tobytes())
    return {
        "method": HfraFitter.method,
        "backbone": job.source.backbone.graph_sha256,
        "layers": list(features),
        "pictures": digest.hexdigest(),
        "seed": _seed(job, settings),
        "batch": settings.batch,
        "mid": settings.mid,
    }


def _seed(job: Job, settings: HfraSettings) -> int:
    return job.options.seed if settings.seed is None else settings.seed


def _tail(job: Job, settings: HfraSettings, shapes: Mapping[str, Shape]) -> TailSpec:
    """The options' tail; where nothing else was asked for, with a map of the input's size, as printed."""
    tail = job.options.tail or HfraFitter.defaults.tail
    if tail == HfraFitter.defaults.tail:
        tail = tail.model_copy(update={"size": (job.source.input.height, job.source.input.width)})
    if settings.weights == "uniform":
        return tail
    weights = printed_weights([shape[1:] for shape in shapes.values()])
    return TailSpec.model_validate({**tail.model_dump(), "fuse": "weights", "weights": weights})


def _mean(unseen: Unseen) -> float:
    return float(np.mean([level.mean(dtype=np.float64) for level in unseen.levels]))
