"""``edge fit``: from good pictures to a bundle."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibration import Progress, no_progress
from calibration.assemble import FitReport, Work, assemble
from calibration.conformal import MIN_PICTURES
from calibration.datasets import Split, file_sha256
from calibration.features import Reader, run_readers
from calibration.methods import PICTURES, Fitter, Source, fitter_of
from calibration.options import FitOptions
from calibration.store import Store
from edge.bundle import BackboneInfo, FittedPicture, InputInfo, SplitInfo, TapInfo, load_bundle
from edge.bundle_files import check_target
from edge.errors import DataError
from edge.heads import single_thread
from engines import Engine, open_engine

__all__ = ["FitOptions", "FitReport", "fit_bundle", "refit_bundle"]


def fit_bundle(
    good: Split | Sequence[Path],
    out: Path | str,
    *,
    graph: bytes | None,
    backbone: str,
    options: FitOptions | None = None,
    input_size: tuple[int, int] = (256, 256),
    precision: str = "f32",
    runtime: str = "auto",
    workers: int = 2,
    skip_unreadable: bool = False,
    frames_per_second: float = 30.0,
    progress: Progress = no_progress,
) -> FitReport:
    """Fit a bundle on good pictures and write it atomically to ``out`` (a folder, or a .zip).

    good: a split (its ``good`` pictures; the bundle remembers the split) or paths. graph: the backbone's ONNX
    bytes, named ``backbone``; not used by a method that works on pictures alone, which then get ``input_size`` (h, w).
    Deterministic: the same pictures and options give the same arrays and thresholds.

    Raises DataError (pictures too few, unreadable, all alike; options that cannot work), EngineError,
    ResourceError (memory, disk) and BundleError (see :func:`edge.bundle.write_bundle`). Nothing is written in any of
    these cases.
    """
    options = (options or FitOptions()).resolved()
    fitter = fitter_of(options.method)
    if graph is None and fitter.needs_graph:
        raise DataError(f"{options.method} works on a backbone's features: name one with --backbone")
    if not fitter.needs_graph:
        graph, backbone = None, "none"
    out = Path(out)
    split = good if isinstance(good, Split) else _split_of(good)
    _enough(len(split.good))
    check_target(out)  # now, not after an hour of pictures
    single_thread()
    started = time.perf_counter()
    skipped: list[str] = []
    store = Store(len(split.good), overflow=out.absolute().parent if fitter.defaults.mapped else None)
    kept: list[Path] = []
    with ExitStack() as undo:
        crew: list[Reader[dict[str, NDArray[Any]]]] = []
        network = None
        for _ in range(max(1, min(workers, len(split.good)))):
            engine = None
            taps = fitter.taps(options)
            if graph is not None and taps:
                engine = open_engine(graph, runtime=runtime, precision=precision, threads=1, taps=taps)
                undo.callback(engine.close)
            network = network or _source(graph, backbone, precision, input_size, engine)
            crew.append(Reader((network.input.height, network.input.width), _keeping(fitter, options, engine)))
        assert network is not None
        for index, picture in run_readers(
            split.good, crew, skip_unreadable=skip_unreadable, skipped=skipped, progress=progress
        ):
            store.add(picture)
            kept.append(split.good[index])
    _enough(len(kept))
    fitted = tuple(FittedPicture(name=split.name(p), sha256=file_sha256(p)) for p in kept)
    source = SplitInfo(layout=split.layout, seed=split.seed, fitted=fitted)
    seconds = {"backbone": time.perf_counter() - started}
    work = Work(network, store.arrays(), {}, source, options, tuple(skipped), seconds)
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
    bundle kept no features, lacks a layer or is another method's, else as :func:`fit_bundle`."""
    options = options.resolved()
    fitter = fitter_of(options.method)
    old = load_bundle(bundle)
    manifest = old.manifest
    if manifest.method != options.method:
        raise DataError(f"{bundle}: it is a bundle of {manifest.method}; a refit cannot make it {options.method}")
    try:
        restored = fitter.restore(options, manifest.spec, old.arrays, old.refit_arrays())
    except DataError as error:
        raise DataError(f"{bundle}: {error}") from None
    single_thread()
    by_name = {tap.name: tap for tap in manifest.backbone.taps}
    taps = tuple(by_name[name] for name in fitter.taps(options))
    network = Source(
        manifest.backbone.model_copy(update={"taps": taps}),
        manifest.input,
        old.graph,
        manifest.provenance.runtime,
    )
    work = Work(network, restored.stored, restored.known, manifest.split, options, (), {})
    return assemble(Path(out), work, frames_per_second, progress)


def _keeping(fitter: Fitter, options: FitOptions, engine: Engine | None) -> Any:
    def work(image: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
        kept: dict[str, NDArray[Any]] = {}
        if engine is not None:
            kept.update(fitter.keep(options, engine.infer(image[None])))
        if fitter.needs_pictures:
            kept[PICTURES] = image
        return kept

    return work


def _source(
    graph: bytes | None, backbone: str, precision: str, input_size: tuple[int, int], engine: Engine | None
) -> Source:
    """What is known of the network: from its engine, or (where none runs at the fit) as it was asked for."""
    if engine is None:
        # The method's own graph and taps take these places (MethodFit.own).
        tap = TapInfo(name="image", channels=3, height=input_size[0], width=input_size[1])
        sha256 = hashlib.sha256(graph or b"").hexdigest()
        info = BackboneInfo(name=backbone, graph_sha256=sha256, precision=precision, taps=(tap,))
        return Source(info, InputInfo(height=input_size[0], width=input_size[1]), graph or b"", "none at the fit")
    info = BackboneInfo(
        name=backbone,
        graph_sha256=engine.info.graph_sha256,
        precision=engine.info.precision,
        taps=tuple(TapInfo(**asdict(tap)) for tap in engine.info.taps),
    )
    height, width = engine.info.input_size
    return Source(info, InputInfo(height=height, width=width), graph or b"", engine.info.runtime)


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
