"""What heads inside their graph share: the packages their fit needs, and level maps of good pictures for thresholds."""

from __future__ import annotations

import numpy as np

from calibration.methods import F32, PICTURES, Indices, Job, Unseen
from calibration.training import import_torch
from edge.bundle import TapInfo
from edge.errors import DataError
from engines import EngineError, open_engine
from engines.graph import import_onnx

SCALING_PICTURES = 64  # of the training's own: enough for a median that only describes them


def need_packages() -> None:
    """Raises DataError where torch or onnx is not installed: asked before the pictures, not after the training."""
    import_torch()
    try:
        import_onnx()
    except EngineError as error:
        raise DataError(str(error)) from None


def residual_maps(job: Job, graph: bytes, taps: tuple[TapInfo, ...]) -> tuple[Unseen, Unseen]:
    """Level maps of some of the fitted pictures, to set the score's constants with, and of the held ones (of all fitted
    ones where none were held), to draw thresholds from: :attr:`MethodFit.scaling` and ``calibrating``."""
    held = job.held if job.held is not None else job.train
    few = job.train[:: max(1, len(job.train) // SCALING_PICTURES)]
    calibrating = Unseen(level_maps(job, graph, taps, held, "held-out pictures"), None)
    return Unseen(level_maps(job, graph, taps, few, "fitted pictures"), None), calibrating


def level_maps(job: Job, graph: bytes, taps: tuple[TapInfo, ...], rows: Indices, what: str) -> list[F32]:
    """float32 [len(rows), h, w] a tap (of one channel), as the daemon will compute them: picture by picture, in the
    bundle's precision, on the runtime of the fit. ``what`` is done, for the progress."""
    used = job.source.runtime.split()[0]
    runtime = "auto" if used == "none" else used  # no backbone ran
    names = [tap.name for tap in taps]
    engine = open_engine(graph, runtime=runtime, precision=job.source.backbone.precision, threads=1, taps=names)
    try:
        maps = [np.empty((len(rows), tap.height, tap.width), np.float32) for tap in taps]
        for done, row in enumerate(rows):
            found = engine.infer(job.stored[PICTURES][row][None])
            for level, name in zip(maps, names, strict=True):
                level[done] = found[name][0, 0]
            job.progress(done + 1, len(rows), what)
        return maps
    finally:
        engine.close()
