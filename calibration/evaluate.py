"""``edge eval``: a bundle judged on pictures with known defects."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from calibration import Progress, no_progress
from calibration.datasets import SEEDED, Split, TestItem, file_sha256, load_split, read_mask
from calibration.features import Taps, Worker, run_pictures
from calibration.methods import fitter_of
from calibration.metrics import PixelPool, image_auroc
from calibration.published import identify
from calibration.timing import Timing, time_scoring
from edge.bundle import REFIT, Bundle, Manifest, load_bundle
from edge.errors import DataError
from edge.heads.scorer import RULES, Scored, Scorer, image_score
from engines import open_engine

TEXTURES = frozenset({"carpet", "grid", "leather", "tile", "wood"})  # of MVTec AD; its tables print both means


@dataclass(frozen=True)
class PictureScore:
    """One test picture. name: relative to the data's folder; parts: ``norm``, ``max`` and the bundle's
    score."""

    name: str
    kind: str
    is_defect: bool
    score: float
    p_value: float
    anomalous: bool
    parts: dict[str, float]


@dataclass(frozen=True)
class KindScore:
    """One kind of picture. found: share above the threshold (for "good": the false alarms); image_auroc
    against the good pictures, None for them."""

    kind: str
    count: int
    image_auroc: float | None
    found: float
    median_score: float


@dataclass(frozen=True)
class Fitted:
    """What was evaluated, from the bundle's manifest, and what it costs.

    backbone: its name, None for a method without one; input_size: (height, width) in pixels; settings: the method's
    own, by which two bundles of one method differ; training_seed: None for a method that is not trained. bundle_sha256:
    the manifest's checksum, which covers every file. bundle_bytes: all files; refit_bytes: those of them that only a
    refit needs. fit_seconds: None where the bundle does not know. timing: of one picture on one thread."""

    method: str
    backbone: str | None
    precision: str
    runtime: str
    input_size: tuple[int, int]
    settings: dict[str, Any]
    training_seed: int | None
    pictures: int
    bundle_sha256: str
    bundle_bytes: int
    refit_bytes: int
    fit_seconds: float | None
    timing: Timing | None


@dataclass(frozen=True)
class EvalReport:
    """The figures of one evaluation; see :mod:`calibration.metrics` for the definitions. None where a
    figure does not exist (no masks, no good pictures). rules: image AUROC by each score rule, side by
    side. unmasked: defective pictures without a mask, left out of the pixel figures. texture: MVTec's
    class, None elsewhere. dataset, category: see :func:`calibration.published.identify`."""

    bundle: Path
    data: Path
    layout: str
    seed: int | None
    image_auroc: float | None
    pixel_auroc: float | None
    aupro: float | None
    ap: float | None
    rules: dict[str, float | None]
    threshold: float
    found: float | None
    false_alarms: float | None
    accepted_false_alarms: float
    kinds: tuple[KindScore, ...]
    pictures: tuple[PictureScore, ...]
    unmasked: int
    skipped: tuple[str, ...]
    texture: bool | None
    seconds: float
    dataset: str
    category: str
    fitted: Fitted

    def as_json(self) -> dict[str, Any]:
        """Plain types for ``--json``."""
        content = asdict(self)
        content["bundle"], content["data"] = str(self.bundle), str(self.data)
        return content


def evaluate(
    bundle: Bundle | Path | str,
    data: Path | str,
    layout: str = "folder",
    seed: int | None = None,
    *,
    runtime: str = "auto",
    workers: int = 2,
    skip_unreadable: bool = False,
    progress: Progress = no_progress,
) -> EvalReport:
    """Score the test pictures of ``data`` one by one, as the daemon does, and compute the metrics.

    ``seed``: of a seeded layout; left out, it is the bundle's if the bundle was fitted by the same layout.
    Raises DataError for an evaluation that contradicts the bundle's split (test pictures that were
    fitted), missing or unreadable pictures and masks; BundleError; EngineError."""
    started = time.perf_counter()
    if not isinstance(bundle, Bundle):
        bundle = load_bundle(bundle)
    remembered = bundle.manifest.split
    if seed is None and layout in SEEDED and layout == remembered.layout:
        seed = remembered.seed
    split = load_split(data, layout, seed)
    check_split(bundle, split)
    if not split.test:
        raise DataError(f"{data}: no pictures to test with")
    return _run(bundle, split, started, runtime, workers, skip_unreadable, progress)


def check_split(bundle: Bundle, split: Split) -> None:
    """Refuse an evaluation that contradicts the split which the bundle was fitted by. Files are compared by
    content, so that a moved or renamed data set is still recognised.

    Raises DataError: a test picture was fitted; or the same pictures under another layout or seed."""
    remembered = bundle.manifest.split
    fitted = {picture.sha256 for picture in remembered.fitted}
    same_pictures = any(file_sha256(path) in fitted for path in split.good)
    seeds = remembered.seed, split.seed
    if same_pictures and remembered.layout == split.layout and seeds[0] != seeds[1]:
        raise DataError(
            f"{bundle.path}: fitted with --layout {remembered.layout} --seed {seeds[0]}, and the evaluation is over"
            f" the same pictures with --seed {seeds[1]}: its test would hold fitted pictures; use --seed {seeds[0]}"
        )
    names = {picture.name for picture in remembered.fitted}
    own_split = remembered.layout == split.layout and {split.name(path) for path in split.good} == names
    if same_pictures and own_split:
        # The very split of the fit: a test file equal to a fitted one is then a duplicate inside the data
        # set.
        overlap = [item.path for item in split.test if split.name(item.path) in names]
    else:
        overlap = [item.path for item in split.test if file_sha256(item.path) in fitted]
    if overlap:
        how = f"--layout {remembered.layout}" + (f" --seed {seeds[0]}" if seeds[0] is not None else "")
        hint = " (--seed at the fit holds a fifth of the good pictures back)" if split.layout == "folder" else ""
        raise DataError(
            f"{bundle.path}: {len(overlap)} of the {len(split.test)} test pictures were fitted, first {overlap[0]};"
            f" it was fitted with {how}: evaluate the same way, or on other pictures{hint}"
        )
    seeded = remembered.seed is not None or split.seed is not None
    if same_pictures and remembered.layout != split.layout and seeded:
        raise DataError(
            f"{bundle.path}: fitted with --layout {remembered.layout}, and the evaluation is over the same pictures"
            f" with --layout {split.layout}; use the layout it was fitted with"
        )


def _run(
    bundle: Bundle,
    split: Split,
    started: float,
    runtime: str,
    workers: int,
    skip_unreadable: bool,
    progress: Progress,
) -> EvalReport:
    manifest = bundle.manifest
    pool, unmasked = PixelPool(), 0
    skipped: list[str] = []
    pictures: list[PictureScore] = []
    with ExitStack() as undo:
        crew: list[Worker[Scored]] = []
        scorers: list[Scorer] = []
        for _ in range(max(1, min(workers, len(split.test)))):
            scorer = Scorer(bundle)
            engine = open_engine(
                bundle.graph,
                runtime=runtime,
                precision=manifest.backbone.precision,
                threads=1,
                taps=scorer.taps,
            )
            undo.callback(engine.close)
            crew.append(Worker(engine, _scoring(scorer)))
            scorers.append(scorer)
        threshold, size = scorer.threshold, scorer.size
        paths = [item.path for item in split.test]
        for index, scored in run_pictures(
            paths, crew, skip_unreadable=skip_unreadable, skipped=skipped, progress=progress, what="scoring"
        ):
            item = split.test[index]
            pictures.append(_picture(split, item, scored, threshold, manifest.score))
            if not split.has_masks:
                continue
            if item.is_defect and item.mask is None:
                unmasked += 1
                continue
            mask = read_mask(item.mask, size, split.mask_limit) if item.mask is not None else None
            pool.add(scored.map, mask)
        # Not before: the workers are done, and nothing else of this process runs.
        fitted = _fitted(manifest, crew[0].engine.info.runtime, time_scoring(crew[0].engine, scorers[0], paths))
    progress(0, 1, "metrics")
    pixels = pool.metrics()
    progress(1, 1, "metrics")
    defect = [picture.is_defect for picture in pictures]
    rules: dict[str, float | None] = {
        str(rule): image_auroc([picture.parts[rule] for picture in pictures], defect)
        for rule in RULES
        if pictures and rule in pictures[0].parts
    }
    dataset, category = identify(split.layout, split.root.resolve().name)
    return EvalReport(
        bundle=bundle.path,
        data=split.root,
        layout=split.layout,
        seed=split.seed,
        image_auroc=image_auroc([picture.score for picture in pictures], defect),
        pixel_auroc=pixels.auroc,
        aupro=pixels.aupro,
        ap=pixels.ap,
        rules=rules,
        threshold=threshold,
        found=_share([p for p in pictures if p.is_defect]),
        false_alarms=_share([p for p in pictures if not p.is_defect]),
        accepted_false_alarms=manifest.calibration.false_alarm_rate,
        kinds=_kinds(pictures),
        pictures=tuple(pictures),
        unmasked=unmasked,
        skipped=tuple(skipped),
        texture=split.root.resolve().name in TEXTURES if split.layout == "mvtec" else None,
        seconds=time.perf_counter() - started,
        dataset=dataset,
        category=category,
        fitted=fitted,
    )


_UNTOLD = frozenset({"seed", "resume", "minutes", "device", "resident"})  # change no figure, or are told elsewhere


def _fitted(manifest: Manifest, runtime: str, timing: Timing | None) -> Fitted:
    fitter = fitter_of(manifest.method)
    spec, files = manifest.spec, manifest.files
    told = ("layers", "detection", "variance", "pool", *fitter.settings.model_fields)
    seed = spec.get("seed")
    return Fitted(
        method=manifest.method,
        backbone=manifest.backbone.name if fitter.needs_graph else None,
        precision=manifest.backbone.precision,
        runtime=runtime,
        input_size=(manifest.input.height, manifest.input.width),
        settings={name: spec[name] for name in told if name in spec and name not in _UNTOLD}
        | {"score": manifest.score.rule},
        training_seed=seed if isinstance(seed, int) else None,
        pictures=manifest.provenance.pictures,
        bundle_sha256=manifest.checksum,
        bundle_bytes=sum(file.size for file in files.values()),
        refit_bytes=files[REFIT].size if REFIT in files else 0,
        fit_seconds=manifest.provenance.fit_seconds,
        timing=timing,
    )


def _scoring(scorer: Scorer) -> Any:
    def work(taps: Taps) -> Scored:
        return scorer.score(taps)[0]

    return work


def _picture(split: Split, item: TestItem, scored: Scored, threshold: float, spec: Any) -> PictureScore:
    parts = dict(scored.parts)
    if spec.norm is not None and spec.max is not None and "norm" in parts:
        parts["combined"] = image_score(spec, scored.parts, "combined")
    return PictureScore(
        name=split.name(item.path),
        kind=item.kind,
        is_defect=item.is_defect,
        score=scored.score,
        p_value=scored.p_value,
        anomalous=scored.score > threshold,
        parts=parts,
    )


def _kinds(pictures: Sequence[PictureScore]) -> tuple[KindScore, ...]:
    good = [picture for picture in pictures if not picture.is_defect]
    table = []
    for kind in sorted({picture.kind for picture in pictures}, key=lambda kind: (kind != "good", kind)):
        own = [picture for picture in pictures if picture.kind == kind]
        auroc = None
        if own[0].is_defect and good:
            both = own + good
            auroc = image_auroc([p.score for p in both], [p.is_defect for p in both])
        scores = sorted(picture.score for picture in own)
        middle = (scores[(len(scores) - 1) // 2] + scores[len(scores) // 2]) / 2
        table.append(KindScore(kind, len(own), auroc, _share(own) or 0.0, middle))
    return tuple(table)


def _share(pictures: Sequence[PictureScore]) -> float | None:
    return sum(picture.anomalous for picture in pictures) / len(pictures) if pictures else None
