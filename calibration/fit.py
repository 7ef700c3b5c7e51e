"""``edge fit``: from good pictures to a bundle."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

import numpy as np

from calibration import Progress, fre, no_progress
from calibration.assemble import FitReport, Source, Work, assemble
from calibration.conformal import MIN_PICTURES
from calibration.datasets import Split, file_sha256
from calibration.features import Worker, run_pictures
from calibration.options import FitOptions
from calibration.snapshot import Features
from edge.bundle import BackboneInfo, FittedPicture, InputInfo, SplitInfo, TapInfo, load_bundle
from edge.bundle_files import check_target
from edge.errors import DataError
from edge.heads import single_thread
from engines import open_engine

__all__ = ["FitOptions", "FitReport", "fit_bundle", "refit_bundle"]


def fit_bundle(
    good: Split | Sequence[Path],
    out: Path | str,
    *,
    graph: bytes,
    backbone: str,
    options: FitOptions | None = None,
    precision: str = "f32",
    runtime: str = "auto",
    workers: int = 2,
    skip_unreadable: bool = False,
    frames_per_second: float = 30.0,
    progress: Progress = no_progress,
) -> FitReport:
    """Fit a bundle on good pictures and write it atomically to ``out`` (a folder, or a .zip).

    good: a split (its ``good`` pictures; the bundle remembers the split) or paths. graph: the backbone's ONNX
    bytes, named ``backbone``. Deterministic: the same pictures and options give the same arrays and
    thresholds.

    Raises DataError (pictures too few, unreadable, all alike; options that cannot work), EngineError,
    ResourceError and BundleError (see :func:`edge.bundle.write_bundle`). Nothing is written in any of these
    cases.
    """
    options = options or FitOptions()
    options.check()
    out = Path(out)
    split = good if isinstance(good, Split) else _split_of(good)
    _enough(len(split.good))
    check_target(out)  # now, not after an hour of pictures
    single_thread()
    started = time.perf_counter()
    skipped: list[str] = []
    with ExitStack() as undo:
        engines = []
        for _ in range(max(1, min(workers, len(split.good)))):
            engine = open_engine(graph, runtime=runtime, precision=precision, threads=1, taps=options.layers)
            undo.callback(engine.close)
            engines.append(engine)
        info = engines[0].info
        crew = [Worker(e, lambda taps: fre.pooled_features(taps, options.pool)) for e in engines]
        store: dict[str, Features] = {}
        kept: list[Path] = []
        for index, picture in run_pictures(
            split.good, crew, skip_unreadable=skip_unreadable, skipped=skipped, progress=progress
        ):
            for name, values in picture.items():
                if name not in store:
                    store[name] = np.empty((len(split.good), *values.shape), np.float16)
                store[name][len(kept)] = values
            kept.append(split.good[index])
    _enough(len(kept))
    features = {name: store[name][: len(kept)] for name in options.layers}
    fitted = tuple(FittedPicture(name=split.name(p), sha256=file_sha256(p)) for p in kept)
    source = SplitInfo(layout=split.layout, seed=split.seed, fitted=fitted)
    network = Source(
        BackboneInfo(
            name=backbone,
            graph_sha256=info.graph_sha256,
            precision=info.precision,
            taps=tuple(TapInfo(**asdict(tap)) for tap in info.taps),
        ),
        InputInfo(height=info.input_size[0], width=info.input_size[1]),
        graph,
        info.runtime,
    )
    seconds = {"backbone": time.perf_counter() - started}
    work = Work(network, features, None, source, options, tuple(skipped), seconds)
    return assemble(out, work, frames_per_second, progress)


def refit_bundle(
    bundle: Path | str,
    out: Path | str,
    *,
    options: FitOptions,
    frames_per_second: float = 30.0,
    progress: Progress = no_progress,
) -> FitReport:
    """Fit again from the features a bundle kept: another variance, rule, rate or calibration in a second,
    without pictures or backbone. With the same options the arrays and thresholds are the same to the last
    bit.

    ``options.layers`` may be fewer than the bundle's; its pool is the bundle's. Raises DataError when the
    bundle kept no features or lacks a layer, else as :func:`fit_bundle`."""
    options.check()
    old = load_bundle(bundle)
    kept = old.refit_arrays()
    if kept is None:
        raise DataError(f"{bundle}: it was fitted without what a refit needs; run edge fit on the pictures again")
    missing = [name for name in options.layers if f"features_{name}" not in kept]
    if missing or options.pool != old.manifest.spec.get("pool"):
        raise DataError(f"{bundle}: a refit cannot add layers ({missing}) or change the pooling; run edge fit again")
    single_thread()
    manifest = old.manifest
    by_name = {tap.name: tap for tap in manifest.backbone.taps}
    taps = tuple(by_name[name] for name in options.layers)
    network = Source(
        manifest.backbone.model_copy(update={"taps": taps}),
        manifest.input,
        old.graph,
        manifest.provenance.runtime,
    )
    features = {name: kept[f"features_{name}"] for name in options.layers}
    grams = {name: kept[f"gram_{name}"] for name in options.layers}
    work = Work(network, features, grams, manifest.split, options, (), {})
    return assemble(Path(out), work, frames_per_second, progress)


def _split_of(paths: Sequence[Path]) -> Split:
    """Loose pictures: named relative to the folder they share."""
    paths = tuple(Path(path) for path in paths)
    root = Path(os.path.commonpath([path.parent for path in paths])) if paths else Path(".")
    return Split(root, "folder", None, paths, ())


def _enough(count: int) -> None:
    if count < MIN_PICTURES:
        raise DataError(
            f"{count} good pictures are too few: at least {MIN_PICTURES} are needed to score each by a model that"
            " has not seen it; 30 begin to be useful, 200 are good"
        )
