"""How long an engine takes: for ``edge bench engines`` and ``edge doctor``."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from engines.runtime import Engine


@dataclass(frozen=True)
class Timing:
    """Milliseconds a batch: wall time (median, 10th and 90th percentile) and process CPU (mean)."""

    batch: int
    repeats: int
    median_ms: float
    p10_ms: float
    p90_ms: float
    cpu_ms: float


def time_engine(engine: Engine, batch: int = 1, repeats: int = 50, seed: int = 0) -> Timing:
    """Times ``repeats`` calls on random pictures, outputs bound in place, after warming up."""
    height, width = engine.info.input_size
    images = np.random.default_rng(seed).integers(0, 256, (batch, height, width, 3), dtype=np.uint8)
    out = engine.infer(images)
    walls = np.empty(repeats)
    cpu = time.process_time()
    for index in range(repeats):
        start = time.perf_counter()
        engine.infer(images, out)
        walls[index] = time.perf_counter() - start
    cpu = time.process_time() - cpu
    p10, median, p90 = np.percentile(walls * 1e3, (10, 50, 90))
    return Timing(batch, repeats, float(median), float(p10), float(p90), cpu / repeats * 1e3)
