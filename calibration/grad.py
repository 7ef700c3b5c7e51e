"""Fitting GRAD: grids that hold what good pictures look like, trained in two stages on cached taps.

Source: GRAD (Huang et al., ICME 2025, arXiv 2504.00609) and the code of CRAD, from which it grew. The backbone is
frozen and nothing is augmented, so every picture passes it once. Stage one trains the coordinates and the abnormal
branch on features with a false block pasted in; stage two the normal branch and the weight of the abnormal one in the
sum, with all else frozen to the bit. The bundle gets one graph, picture to residual map; thresholds are drawn by that
very graph from pictures held out of the training. One model serves several products: fit it on their pictures together.

What differs from the paper and its code, and why, stands beside the code: in :mod:`calibration.grad_network` (scale of
the features, start of the coordinates, contrast, what freezing means), in :mod:`calibration.block_paste` (intensity)
and in :class:`GradSettings`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from calibration.block_paste import BlockPaste
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
    settings_of,
)
from calibration.options import FitOptions
from calibration.training import Schedule, Trained, choose_device, import_torch, report_to, train
from edge.bundle import TapInfo
from edge.errors import DataError
from edge.heads.tail import TailSpec
from engines import EngineError
from engines.grad_graph import RESIDUAL, check_alignment, write_grad_graph

if TYPE_CHECKING:
    from calibration.grad_network import Features, GradNetwork, Recipe, Stage, Study

POOLED_KERNEL = 32  # of the score in CRAD's evaluation

PRESETS: dict[str, dict[str, Any]] = {
    "edge": {"kind": "mobile", "blocks": 3, "width": 128, "local": 32, "whole": 4, "abnormal": True},
    "literal": {"kind": "basic", "blocks": 9, "width": None, "local": 8, "whole": 8, "abnormal": True},
    "crad": {"kind": "mobile", "blocks": 3, "width": 128, "local": 32, "whole": 4, "abnormal": False},
}
"""edge: small enough for a CPU. literal: the fusion network of the released checkpoint, 50 times the work; for a GPU.
crad: as edge, without the abnormal branch (and so without pasted blocks); scored as in CRAD's evaluation."""


class GradSettings(Settings):
    """How GRAD is built and trained. None: the preset's.

    Other than in the paper and its code, with what was seen on MVTec's bottle (ResNet18, one seed each; judged by
    pieces of other good pictures pasted into held-out ones, which are the pictures that thresholds are drawn from too):

    * threshold: the code's 10 is in the units of EfficientNet-B6. Where good positions exceed it now and then, their
      residual jumps, and the scores of good pictures get a long tail. Of five thresholds tried on one model: with the
      99 % quantile of the good errors the largest held-out score was 14 and the threshold for 1/1000 31; with twice the
      largest good error 5.5 and 14, and the false defects found rose from 45 to 73 % (image AUROC 0.990 to 0.995).
      Never to exceed it did as well (70 %). On a model trained twice as long it was 10, 51 and 43 %. While it trains,
      the threshold is the features' mean square.
    * batch and epochs: the code sees 3,600 pictures of all categories 50 times, 16 at a time on each of 4 GPUs. One
      category's 200 pictures are few steps that way; 504 steps of 4 pictures gave image AUROC 0.995, 1,008 gave 0.992,
      which one seed cannot tell apart. Batch 16 was not tried with this network.

    The rest was tried with a smaller network (2 blocks) at half the resolution, 9 epochs, and the indicator never
    failing:

    * spread (:class:`calibration.grad_network.Coordinates`): the code's start recovers (the deviation of the local
      coordinates grew to 0.2, the figures were the same), but its global coordinates stay together, 0.005.
    * features (:class:`calibration.grad_network.Features`): on raw ones 56 of 1,024 nodes of a local grid were used,
      all global coordinates were the same and the error was four times as large; image AUROC 0.980 against 0.988,
      pixel AP 0.51 against 0.45.
    * intensity of the blocks: 2 to 4 and 4 to 8 deviations gave the same.
    * loss: the refined one, as in the code; on the plain squared error the image AUROC was 0.970 against 0.988.
    """

    preset: Literal["edge", "literal", "crad"] = Field("edge", description="size of the network; crad: one branch")
    abnormal_epochs: int | None = Field(
        None, ge=1, le=100_000, description="times every picture is seen in stage one; none: 4, but 160 steps at least"
    )
    epochs: int | None = Field(
        None, ge=1, le=100_000, description="times every picture is seen in stage two; none: 8, but 320 steps at least"
    )
    batch: int = Field(4, ge=2, le=4096, description="pictures a step")
    lr: float = Field(1e-3, gt=0, le=1, description="learning rate of the networks (AdamW)")
    grid_lr: float = Field(0.1, gt=0, le=10, description="learning rate of the grids")
    clip: float = Field(0.1, gt=0, description="largest 2-norm of the whole gradient")
    blocks: int | None = Field(None, ge=0, le=64, description="blocks of a fusion network")
    width: int | None = Field(None, ge=4, le=4096, description="channels of a fusion network")
    expansion: float = Field(2.0, gt=0, le=16, description="inner channels of a mobile block, in units of width")
    local_grid: int | None = Field(None, ge=2, le=256, description="nodes a side of the local grids")
    global_grid: int | None = Field(None, ge=1, le=32, description="nodes a side of the global grids")
    features: Literal["standard", "raw"] = Field("standard", description="standard: mean 0, deviation 1 a channel")
    spread: float = Field(0.5, ge=0, le=2, description="deviation the coordinates begin with; 0: as in the code")
    border: bool = Field(False, description="keep coordinates off the fading edge of the grids")
    jitter: float = Field(0.05, ge=0, le=1, description="deviation added to local coordinates in every other batch")
    half: float = Field(10.0, gt=0.5, le=64, description="upper end of a pasted block's half size, positions")
    weakest: float = Field(2.0, gt=0, le=100, description="least intensity of a pasted block, deviations")
    strongest: float = Field(4.0, gt=0, le=100, description="largest intensity of a pasted block, deviations")
    walk: Literal["code", "paper"] = Field("code", description="how a pasted block's mask is drawn")
    alternate: bool = Field(False, description="stages by turns, epoch by epoch, instead of one after the other")
    threshold: float = Field(
        2.0, gt=0, description="squared error of a rebuilt position, in units of the largest of a good picture"
    )
    prune: float = Field(0.01, ge=0, le=1, description="share of the reconstruction below which a branch is left out")
    seed: int | None = Field(None, ge=0, description="of the weights and the order; none: the fit's")
    minutes: float | None = Field(None, gt=0, description="stop after so many minutes, to be resumed")
    resume: Path | None = Field(None, description="folder in which an unfinished training is kept")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where to train")


class GradFitter:
    """See :class:`calibration.methods.Fitter`."""

    method = "grad"
    needs_graph = True
    needs_pictures = True  # the held-out ones go through the finished graph
    settings = GradSettings
    defaults = Defaults(
        layers=("layer2", "layer3"),
        rule="max",
        calibration="holdout",
        calibrations=("holdout",),  # folds would be ten trainings
        tail=TailSpec(upsample="align_corners", fuse="sum", smooth="mean", kernel=21),
        mapped=True,
        probe={"abnormal_epochs": 1, "epochs": 1},
    )

    def check(self, options: FitOptions) -> None:
        """Also that what an hour of training ends in can be had: torch and onnx."""
        if options.rule != "max":
            raise DataError(f"grad scores a picture by the maximum of its map; it has no rule {options.rule!r}")
        settings = settings_of(GradSettings, self.method, options.settings)
        if settings.strongest < settings.weakest:
            raise DataError(f"grad: strongest: a block's largest intensity is below its least, {settings.weakest:g}")
        if settings.alternate and not PRESETS[settings.preset]["abnormal"]:
            raise DataError("grad: alternate: the preset crad has one stage only")
        need_packages()

    def taps(self, options: FitOptions) -> tuple[str, ...]:
        return options.scored_layers

    def keep(self, options: FitOptions, taps: Mapping[str, F32]) -> dict[str, NDArray[Any]]:
        """float16 [C, H, W]; what lies beyond its range is infinite, and said when the features are measured."""
        with np.errstate(over="ignore"):
            return {name: tap[0].astype(np.float16) for name, tap in taps.items()}

    def fit(self, job: Job) -> MethodFit:
        """See :class:`calibration.methods.Fitter`; raises what :func:`calibration.training.train` raises as well."""
        import_torch()
        from calibration.grad_network import study

        settings = settings_of(GradSettings, self.method, job.options.settings)
        layers = job.options.scored_layers
        shapes = {layer: job.source.shape(layer) for layer in layers}
        try:
            check_alignment({layer: shape[1:] for layer, shape in shapes.items()})
        except EngineError as error:
            raise DataError(str(error)) from None
        network, features, trained = _train(job, settings)
        found = study(network, features, job.train, settings.batch)
        network.threshold = settings.threshold * float(found.errors.max())
        pruned = network.abnormal is not None and found.share < settings.prune
        mix = float(network.mix.weight.detach()) if network.abnormal is not None else 0.0
        if pruned:
            network.abnormal = None
        weights: dict[str, F32] = network.folded() | features.folded()
        weights["threshold"] = np.array([network.threshold], np.float32)
        graph = write_grad_graph(job.source.graph, weights, layers, {"head": self.method, "layers": ",".join(layers)})
        _, height, width = shapes[layers[0]]
        taps = (TapInfo(name=RESIDUAL, channels=1, height=height, width=width),)
        scaling, calibrating = residual_maps(job, graph, taps)
        return MethodFit(
            spec=_spec(job, settings, network, features, mix, taps),
            arrays={},  # all weights are in the graph
            scaling=scaling,
            calibrating=calibrating,
            tail=_tail(job, settings),
            own=OwnGraph(graph, taps),
            details=_details(network, found, trained, mix, pruned, weights),
        )

    def restore(self, options: FitOptions, spec: Mapping[str, Any], arrays: Stored, refit: Stored | None) -> Restored:
        raise DataError("a trained head keeps nothing to refit from; run edge fit on the pictures again")


def _train(job: Job, settings: GradSettings) -> tuple[GradNetwork, Features, dict[str, Trained]]:
    """The trained network, in evaluation mode; and by stage how it went."""
    from calibration.grad_network import Design, Features, GradNetwork, GradTask

    seed = _seed(job, settings)
    stored = {layer: job.stored[layer] for layer in job.options.scored_layers}
    features = Features(stored, job.train, settings.features == "standard")
    preset = PRESETS[settings.preset]
    design = Design(
        channels=features.channels,
        height=features.height,
        width_px=features.width,
        kind=preset["kind"],
        local=settings.local_grid or preset["local"],
        whole=settings.global_grid or preset["whole"],
        blocks=preset["blocks"] if settings.blocks is None else settings.blocks,
        width=settings.width or preset["width"],
        expansion=settings.expansion,
        abnormal=preset["abnormal"],
        spread=settings.spread,
        border=settings.border,
    )
    # While it trains, a position counts as rebuilt once that is better than rebuilding nothing.
    network = GradNetwork(design, features.power, seed)
    device = choose_device(settings.device)
    trained: dict[str, Trained] = {}
    for stage, schedule in stages(settings, len(job.train), seed):
        if settings.minutes is not None:
            # What the stages before have used of the budget; a step is taken in any case.
            spent = sum(run.seconds for run in trained.values()) / 60
            schedule = replace(schedule, minutes=max(settings.minutes - spent, 1e-9))
        task = GradTask(network, features, job.train, stage, _recipe(settings), device, settings.batch)
        checkpoints = _checkpoints(job, settings, stage, network, stored)
        what = "training" if stage == "single" else f"training, {stage}"
        trained[stage] = train(task, schedule, checkpoints, report_to(job.progress, what))
    return network.eval(), features, trained


def stages(settings: GradSettings, rows: int, seed: int) -> list[tuple[Stage, Schedule]]:
    """The trainings one after the other, for so many pictures. The learning rate falls at 80 % of each, where the
    code's falls (after 40 of 50 epochs), in two steps."""
    schedule = Schedule(
        epochs=1,
        batch=settings.batch,
        lr=settings.lr,
        seed=seed,
        warmup=0,
        decay="steps",
        clip=settings.clip,
        minutes=settings.minutes,
    )
    an_epoch = -(-rows // settings.batch)
    first, second = (
        replace(schedule, epochs=asked or max(least, -(-steps // an_epoch)))
        for asked, least, steps in ((settings.abnormal_epochs, 4, 160), (settings.epochs, 8, 320))
    )
    if not PRESETS[settings.preset]["abnormal"]:
        return [("single", second)]
    if settings.alternate:
        return [("alternate", replace(first, epochs=first.epochs + second.epochs))]
    return [("abnormal", first), ("normal", second)]


def _recipe(settings: GradSettings) -> Recipe:
    from calibration.grad_network import Recipe

    paste = BlockPaste((0.5, settings.half), (settings.weakest, settings.strongest), settings.walk)
    return Recipe(grid_lr=settings.grid_lr / settings.lr, jitter=settings.jitter, paste=paste)


def _checkpoints(
    job: Job, settings: GradSettings, stage: Stage, network: GradNetwork, stored: Stored
) -> Checkpoints | None:
    """The second stage's lie inside the first one's folder: that one is finished then, and takes no more than reading
    when the training goes on."""
    if settings.resume is None:
        return None
    identity = _identity(job, settings, stored) | {"stage": stage}
    folder = settings.resume
    if stage == "normal":
        # What it builds on. A first stage that was prolonged meanwhile is another.
        digest = hashlib.sha256()
        for name in ("coordinates", "abnormal"):
            for tensor in network.get_submodule(name).state_dict().values():
                digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        identity["first_stage"] = digest.hexdigest()
        folder = folder / stage
    return Checkpoints(folder, identity)


def _identity(job: Job, settings: GradSettings, stored: Stored) -> dict[str, object]:
    """What must be the same for a training to go on. Epochs, learning rates and the like may change: a training is
    prolonged that way, or goes on more slowly after it diverged."""
    digest = hashlib.sha256()
    for rows in stored.values():
        for row in job.train:
            digest.update(rows[row].tobytes())
    free = {"abnormal_epochs", "epochs", "lr", "grid_lr", "clip", "threshold", "prune", "minutes", "resume", "device"}
    return {
        "method": GradFitter.method,
        "backbone": job.source.backbone.graph_sha256,
        "layers": list(stored),
        "pictures": digest.hexdigest(),
        "seed": _seed(job, settings),
        **settings.model_dump(mode="json", exclude=free | {"seed"}),
    }


def _seed(job: Job, settings: GradSettings) -> int:
    return job.options.seed if settings.seed is None else settings.seed


def _tail(job: Job, settings: GradSettings) -> TailSpec:
    """The options' tail; where nothing else was asked for, with a map of the input's size, and CRAD's score for it."""
    tail = job.options.tail or GradFitter.defaults.tail
    if tail != GradFitter.defaults.tail:
        return tail
    size = (job.source.input.height, job.source.input.width)
    changes: dict[str, object] = {"size": size}
    if settings.preset == "crad":
        changes |= {"score": "pooled_max", "pooled_kernel": min(POOLED_KERNEL, *size)}
    return TailSpec.model_validate({**tail.model_dump(), **changes})


def _spec(
    job: Job,
    settings: GradSettings,
    network: GradNetwork,
    features: Features,
    mix: float,
    taps: tuple[TapInfo, ...],
) -> dict[str, object]:
    design = network.design
    spec: dict[str, object] = {"levels": [tap.name for tap in taps]}
    spec |= {f"shape_{tap.name}": [1, tap.height, tap.width] for tap in taps}
    spec |= {"preset": settings.preset, "kind": design.kind, "blocks": design.blocks, "width": design.width or 0}
    spec |= {"local_grid": design.local, "global_grid": design.whole, "border": design.border, "mix": mix}
    spec |= {"abnormal": network.abnormal is not None, "features": settings.features}
    # In the units of the features that the network sees.
    spec |= {"threshold": network.threshold, "feature_power": features.power, "feature_std": features.std}
    plan = stages(settings, len(job.train), _seed(job, settings))
    spec |= {f"epochs_{stage}": schedule.epochs for stage, schedule in plan} | {"batch": settings.batch}
    spec |= {"lr": settings.lr, "grid_lr": settings.grid_lr, "seed": _seed(job, settings)}
    return spec


def _details(
    network: GradNetwork, found: Study, trained: Mapping[str, Trained], mix: float, pruned: bool, weights: Stored
) -> dict[str, object]:
    """For the report: the losses by stage, what the abnormal branch is worth, and how far the coordinates spread."""
    return {
        "loss": {stage: run.history[-1] for stage, run in trained.items()},
        "mix": mix,
        "abnormal_share": found.share,
        "abnormal_pruned": pruned,
        "coordinate_deviation": list(found.local),
        "local_nodes_used": found.used,
        "error": float(found.errors.mean(dtype=np.float64)),
        "largest_error": float(found.errors.max()),
        "threshold": network.threshold,
        "head_parameters": sum(array.size for array in weights.values()),
        "training_seconds": sum(run.seconds for run in trained.values()),
        "resumed_at_step": {stage: run.resumed_at for stage, run in trained.items()},
    }
