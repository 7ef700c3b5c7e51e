"""Level maps of good pictures through a finished graph: what the thresholds of a head inside its graph come from."""

from __future__ import annotations

import numpy as np

from calibration.methods import F32, PICTURES, Indices, Job
from edge.bundle import TapInfo
from engines import open_engine


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
