"""How long a bundle takes for a picture, engine and head apart: what a comparison of methods prints.

The evaluation itself has several workers at once, so that times taken inside it would lie.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edge.errors import PictureError
from edge.heads import single_thread
from edge.heads.scorer import Scorer
from edge.pictures import read_picture
from edge.preprocess import prepare
from engines import Engine

MAX_PICTURES = 20
WARM_UP = 3


@dataclass(frozen=True)
class Timing:
    """Wall milliseconds a picture, median over ``pictures`` of them. engine: the graph, from prepared pixels to taps;
    head: from taps to map and score (head and tail). A method whose whole network is the graph has its cost in
    ``engine_ms``."""

    engine_ms: float
    head_ms: float
    pictures: int


def time_scoring(engine: Engine, scorer: Scorer, paths: Sequence[Path]) -> Timing | None:
    """Time up to :data:`MAX_PICTURES` pictures, spread evenly over ``paths``, one by one after a warm-up, with outputs
    bound in place as the daemon has them. ``engine``: on one thread. None where no picture can be read."""
    single_thread()
    images = []
    for path in paths[:: max(1, -(-len(paths) // MAX_PICTURES))]:
        try:
            images.append(prepare(read_picture(path), engine.info.input_size)[None])
        except PictureError:
            continue
    if not images:
        return None
    taps = engine.infer(images[0])
    maps = np.empty((1, *scorer.size), np.float32)
    for index in range(WARM_UP):
        scorer.score(engine.infer(images[index % len(images)], taps), maps)
    walls = np.empty((len(images), 2))
    for wall, image in zip(walls, images, strict=True):
        start = time.perf_counter()
        engine.infer(image, taps)
        middle = time.perf_counter()
        scorer.score(taps, maps)
        wall[:] = middle - start, time.perf_counter() - middle
    engine_ms, head_ms = np.median(walls, axis=0) * 1e3
    return Timing(float(engine_ms), float(head_ms), len(images))
