"""Fitting FAIR: a network that restores good pictures from their high frequencies, trained from nothing.

Source: FAIR (Liu et al., Frequency-aware Image Restoration) and its code. The one method that needs no weights of
others. The bundle gets one graph, picture to residual maps; thresholds are drawn by that very graph from pictures held
out of the training. The last epoch is kept, as the code does.
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
    PICTURES,
    Defaults,
    Job,
    MethodFit,
    OwnGraph,
    Restored,
    Settings,
    Stored,
    settings_of,
)
from calibration.options import FitOptions
from calibration.synthesis import FEW_TEXTURES, Corruptor, Preset, Textures, drawn_textures, read_textures
from calibration.training import Schedule, Trained, choose_device, import_torch, report_to, train
from edge.bundle import TapInfo
from edge.errors import DataError
from edge.heads.fair import COLOR_WEIGHT, CUTOFF, MEAN_KERNEL, ORDER, STEP, Filter, transfer
from edge.heads.tail import TailSpec
from engines.fair_graph import COLOR, GRADIENT, write_fair_graph

SMALLEST = 2 * STEP  # a batch norm needs several places at the coarsest scale

# The code has 1e-4 for 800 epochs, half a day of a processor. Measured in 12 epochs (209 bottles, 64 x 64, width 16):
# a loss of 0.105 at 1e-4, of 0.045 at 1e-3, of 0.040 at 3e-3. At 2e-3, 80 epochs at 256 x 256 (1,680 steps) gave an
# image AUROC of 0.987 on MVTec's bottle, one seed; more epochs were not tried.
LR = 2e-3


class FairSettings(Settings):
    """How the network is made and trained. Constants not named here are the code's."""

    width: int = Field(16, ge=1, le=256, description="channels at full resolution; printed: 128, 64, 32")
    epochs: int = Field(80, ge=1, le=100_000, description="times every picture is seen; printed: 800")
    batch: int = Field(8, ge=1, le=1024, description="pictures a step")
    lr: float = Field(LR, gt=0, le=1, description="learning rate of Adam; printed: 1e-4, for 800 epochs")
    decay: Literal["none", "steps", "cosine"] = Field("steps", description="steps: a fifth at 80 %, again at 90 %")
    warmup: int = Field(20, ge=0, description="steps in which the learning rate grows to its value")
    filter: Filter = Field("butterworth", description="what takes the low frequencies out")
    order: int = Field(ORDER, ge=1, le=16, description="of the Butterworth filter")
    cutoff: float = Field(CUTOFF, gt=0, le=0.7, description="of the filter, cycles per pixel; 30 in 256")
    cutpaste: Preset = Field("reference", description="pasted patches as the code has them, or as the paper says")
    textures: str = Field("drawn", description="of the corruptions: drawn, pictures (the good ones), or a folder")
    rotation: float = Field(0.3, ge=0, le=1, description="share of the pictures that are turned, by up to 90 degrees")
    precision: Literal["auto", "f32", "bf16"] = Field("auto", description="of the training; auto: bf16 where fast")
    seed: int | None = Field(None, ge=0, description="of weights, order and corruptions; none: the fit's")
    minutes: float | None = Field(None, gt=0, description="stop after so many minutes, to be resumed")
    resume: Path | None = Field(None, description="folder in which an unfinished training is kept")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where to train")


class FairFitter:
    """See :class:`calibration.methods.Fitter`."""

    method = "fair"
    needs_graph = False
    needs_pictures = True
    settings = FairSettings
    defaults = Defaults(
        layers=(),
        rule="max",
        calibration="holdout",
        calibrations=("holdout",),  # folds would be ten trainings
        tail=TailSpec(fuse="weights", weights=(1.0, COLOR_WEIGHT), smooth="mean", kernel=MEAN_KERNEL),
        mapped=True,
        probe={"epochs": 1},
    )

    def check(self, options: FitOptions) -> None:
        """Also that what an hour of training ends in can be had: torch and onnx, and a folder of textures."""
        if options.rule != "max":
            raise DataError(f"fair scores a picture by the maximum of its map; it has no rule {options.rule!r}")
        if options.layers:
            raise DataError(f"fair works on pictures alone; it has no layers {', '.join(options.layers)}")
        settings = settings_of(FairSettings, self.method, options.settings)
        if settings.textures not in ("drawn", "pictures") and not Path(settings.textures).is_dir():
            raise DataError(f"{settings.textures}: there is no such folder of textures (or say drawn, or pictures)")
        need_packages()

    def taps(self, options: FitOptions) -> tuple[str, ...]:
        return ()

    def keep(self, options: FitOptions, taps: Mapping[str, F32]) -> dict[str, NDArray[Any]]:
        return {}

    def fit(self, job: Job) -> MethodFit:
        """See :class:`calibration.methods.Fitter`; raises what :func:`calibration.training.train` raises as well."""
        settings = settings_of(FairSettings, self.method, job.options.settings)
        size = (job.source.input.height, job.source.input.width)
        _check_size(size)
        if job.source.backbone.precision != "f32":
            # Measured on a network of random weights: errors of a quarter, for 0.0026 beside a square is lost.
            raise DataError("fair's residuals need f32; leave out --precision (the training has its own precision)")
        weights, trained = _train(job, settings, size)
        graph = write_fair_graph(size, weights, _gain(settings, size), {})
        taps = tuple(TapInfo(name=name, channels=1, height=size[0], width=size[1]) for name in (GRADIENT, COLOR))
        scaling, calibrating = residual_maps(job, graph, taps)
        spec: dict[str, object] = {"levels": [tap.name for tap in taps]}
        spec |= {f"shape_{tap.name}": [1, tap.height, tap.width] for tap in taps}
        spec |= {"width": settings.width, "filter": settings.filter, "order": settings.order}
        spec |= {"cutoff": settings.cutoff, "cutpaste": settings.cutpaste, "rotation": settings.rotation}
        spec |= {"textures": settings.textures if settings.textures in ("drawn", "pictures") else "folder"}
        spec |= {"epochs": settings.epochs, "batch": settings.batch, "lr": settings.lr, "decay": settings.decay}
        spec |= {"seed": _seed(job, settings)}
        return MethodFit(
            spec=spec,
            arrays={},  # all weights are in the graph
            scaling=scaling,
            calibrating=calibrating,
            tail=_tail(job, size),
            own=OwnGraph(graph, taps),
            details={
                "epochs": settings.epochs,
                "loss": trained.history[-1],
                "held_out_gradient": float(calibrating.levels[0].mean(dtype=np.float64)),
                "held_out_color": float(calibrating.levels[1].mean(dtype=np.float64)),
                "network_parameters": sum(array.size for array in weights.values()),
                "training_seconds": trained.seconds,
                "resumed_at_step": trained.resumed_at,
            },
        )

    def restore(self, options: FitOptions, spec: Mapping[str, Any], arrays: Stored, refit: Stored | None) -> Restored:
        raise DataError("a trained head keeps nothing to refit from; run edge fit on the pictures again")


def _check_size(size: tuple[int, int]) -> None:
    if size[0] % STEP or size[1] % STEP or min(size) < SMALLEST:
        raise DataError(
            f"fair needs an input whose sides are multiples of {STEP}, {SMALLEST} or more: not {size[0]}x{size[1]}"
        )


def _train(job: Job, settings: FairSettings, size: tuple[int, int]) -> tuple[dict[str, F32], Trained]:
    """The folded weights of a trained network."""
    import_torch()
    from calibration.fair_network import FairTask, HighPass, Restorer, choose_bfloat16

    seed = _seed(job, settings)
    device = choose_device(settings.device)
    bfloat16 = choose_bfloat16(settings.precision, device)
    textures = _textures(job, settings, size)
    schedule = Schedule(
        epochs=settings.epochs,
        batch=settings.batch,
        lr=settings.lr,
        seed=seed,
        warmup=settings.warmup,
        decay=settings.decay,
        clip=None,
        minutes=settings.minutes,
    )
    checkpoints = None
    if settings.resume is not None:
        checkpoints = Checkpoints(settings.resume, _identity(job, settings, textures, bfloat16))
    restorer = Restorer(settings.width, 2 if settings.filter == "sobel" else 1, seed)
    high_pass = HighPass(size, settings.filter, settings.order, settings.cutoff)
    corrupt = Corruptor(textures, settings.cutpaste, settings.rotation)
    task = FairTask(restorer, high_pass, job.stored[PICTURES], job.train, corrupt, device, bfloat16)
    trained = train(task, schedule, checkpoints, report_to(job.progress))
    return restorer.folded(), trained


def _textures(job: Job, settings: FairSettings, size: tuple[int, int]) -> Textures:
    if settings.textures == "pictures":
        return Textures(job.stored[PICTURES], job.train, FEW_TEXTURES)
    if settings.textures == "drawn":
        return Textures(drawn_textures(size, _seed(job, settings)))
    return Textures(read_textures(Path(settings.textures), size))


def _identity(job: Job, settings: FairSettings, textures: Textures, bfloat16: bool) -> dict[str, object]:
    """What must be the same for a training to go on. Epochs, learning rate and the like may change: a training is
    prolonged that way, or goes on more slowly after it diverged."""
    fixed = ("width", "batch", "filter", "order", "cutoff", "cutpaste", "rotation", "textures")
    rows = job.stored[PICTURES]
    digest = hashlib.sha256(str(rows.shape[1:]).encode())
    for row in job.train:
        digest.update(rows[row].tobytes())
    identity: dict[str, object] = {"method": FairFitter.method, "pictures": digest.hexdigest()}
    if settings.textures not in ("drawn", "pictures"):
        identity["texture_pictures"] = hashlib.sha256(textures.pictures.tobytes()).hexdigest()
    identity |= {"seed": _seed(job, settings), "precision": "bf16" if bfloat16 else "f32"}
    return identity | {name: getattr(settings, name) for name in fixed}


def _gain(settings: FairSettings, size: tuple[int, int]) -> NDArray[np.float64] | None:
    return None if settings.filter == "sobel" else transfer(size, settings.filter, settings.order, settings.cutoff)


def _seed(job: Job, settings: FairSettings) -> int:
    return job.options.seed if settings.seed is None else settings.seed


def _tail(job: Job, size: tuple[int, int]) -> TailSpec:
    """The options' tail; where nothing else was asked for, with a map of the input's size, as printed."""
    tail = job.options.tail or FairFitter.defaults.tail
    return tail.model_copy(update={"size": size}) if tail == FairFitter.defaults.tail else tail
