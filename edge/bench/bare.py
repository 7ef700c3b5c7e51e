"""The loop that the pipeline is held against: ``python -m edge.bench.bare SPEC`` does preprocess, engine and head on
the synthetic cameras' pictures in one process, with nothing in between.

It is the best such loop that these parts allow: pictures drawn beforehand, outputs bound in place, the engine and BLAS
on one thread each. No ledger, no messages, no copy of a frame.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from edge.bundle import load_bundle
from edge.cameras.config import SyntheticSource
from edge.cameras.synthetic import render_frame
from edge.heads import single_thread
from edge.heads.scorer import Scorer
from edge.preprocess import prepare
from engines import open_engine


def run(spec: dict[str, Any]) -> dict[str, Any]:
    """Score ``warm`` and then ``frames`` pictures, the cameras in turn. Wall and CPU nanoseconds of the latter."""
    cv2.setNumThreads(1)
    single_thread()
    sources = [SyntheticSource.model_validate(source) for source in spec["sources"]]
    pictures = [render_frame(source, index).picture for index in range(sources[0].prerender or 1) for source in sources]
    bundle = load_bundle(Path(spec["bundle"]))
    scorer = Scorer(bundle)
    engine = open_engine(
        bundle.graph,
        precision=bundle.manifest.backbone.precision,
        threads=1,
        cache_dir=Path(spec["cache"]),
        taps=scorer.taps,
    )
    height, width = engine.info.input_size
    image = np.empty((1, height, width, 3), np.uint8)
    taps = engine.infer(image)
    heat = np.empty((1, *scorer.size), np.float32)
    warm, frames = int(spec["warm"]), int(spec["frames"])
    wall = cpu = anomalous = 0
    for index in range(warm + frames):
        if index == warm:
            wall, cpu = time.monotonic_ns(), time.process_time_ns()
        prepare(pictures[index % len(pictures)], (height, width), out=image[0])
        scored = scorer.score(engine.infer(image, taps), heat)[0]
        anomalous += scored.score > scorer.threshold
    wall, cpu = time.monotonic_ns() - wall, time.process_time_ns() - cpu
    engine.close()
    return {"wall_ns": wall, "cpu_ns": cpu, "anomalous": anomalous, "engine": engine.info.runtime}


def main() -> None:
    print(json.dumps(run(json.loads(sys.argv[1]))))


if __name__ == "__main__":
    main()
