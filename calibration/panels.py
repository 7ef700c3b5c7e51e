"""Pictures to look at: what several bundles see in the same test pictures, side by side.

One panel a picture: the picture with the outline of its true defect, then every bundle's anomaly map in the colours of
``edge inspect``, where a colour is the ratio to that bundle's own pixel threshold, so that methods whose maps have
different units can be compared. The pictures are not picked by hand: of every kind the one with the median score of the
first bundle.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from calibration import Progress, no_progress
from calibration.datasets import Split, file_sha256, load_split
from calibration.evaluate import EvalReport, PictureScore
from edge.alerts.evidence import encode_jpeg, overlay
from edge.bundle import load_bundle
from edge.errors import DataError, ResourceError
from edge.heads.scorer import Scorer
from edge.pictures import read_picture
from edge.preprocess import prepare
from engines import open_engine

TILE = 640  # the longer side of a tile, pixels, caption apart
NARROWEST = 460
MOST_COLUMNS = 4
_GAP = 6
_PAPER = (24, 22, 20)
_OUTLINE = (255, 255, 255)  # between two dark lines, so that it shows on any ground

Picture = NDArray[np.uint8]


@dataclass(frozen=True)
class Seen:
    """What one bundle makes of one picture. map: float32 [h, w]; fitted: the bundle was fitted on this very picture (a
    good one, under another seed), so that its map says nothing."""

    map: NDArray[np.float32]
    score: float
    threshold: float
    pixel_threshold: float
    fitted: bool


def choose(pictures: Sequence[PictureScore]) -> tuple[PictureScore, ...]:
    """Of the good pictures and of every kind of defect the one with the median score (of an even number the lower of
    the two in the middle; ties by name), good first."""
    chosen = []
    for kind in sorted({picture.kind for picture in pictures}, key=lambda kind: (kind != "good", kind)):
        own = sorted((picture for picture in pictures if picture.kind == kind), key=lambda p: (p.score, p.name))
        chosen.append(own[(len(own) - 1) // 2])
    return tuple(chosen)


def write_panels(reports: Sequence[EvalReport], out: Path, *, progress: Progress = no_progress) -> list[Path]:
    """Write a panel (JPEG) for each picture that :func:`choose` takes by the first report; all reports are of the same
    data. Returns the files.

    Raises ResourceError where the folder cannot be written, DataError for data that changed since the evaluation."""
    first = reports[0]
    split = load_split(first.data, first.layout, first.seed)
    chosen = choose(first.pictures)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResourceError(f"{out}: cannot be made ({error.strerror})") from None
    paths = [split.root / picture.name for picture in chosen]
    seen: list[list[Seen]] = []
    for done, report in enumerate(reports):
        seen.append(_look(report.bundle, paths))
        progress(done + 1, len(reports), "panels")
    names = _names(reports)
    written = []
    for index, (picture, path) in enumerate(zip(chosen, paths, strict=True)):
        panel = draw_panel(
            read_picture(path),
            _mask(split, path),
            picture.name,
            picture.kind,
            [(name, looks[index]) for name, looks in zip(names, seen, strict=True)],
        )
        target = out / f"{picture.kind}-{path.stem}.jpg"
        try:
            target.write_bytes(encode_jpeg(panel))
        except OSError as error:
            target.unlink(missing_ok=True)
            raise ResourceError(f"{target}: cannot be written ({error.strerror})") from None
        written.append(target)
    return written


def draw_panel(
    picture: Picture, mask: NDArray[np.bool_] | None, name: str, kind: str, seen: Sequence[tuple[str, Seen]]
) -> Picture:
    """The panel: uint8 BGR. ``picture``: uint8 BGR [H, W, 3]; ``mask``: bool [H, W], its true defect, or None;
    ``seen``: every bundle's name and what it saw, in the order of the tiles."""
    scale = TILE / max(picture.shape[:2])
    size = max(1, round(picture.shape[1] * scale)), max(1, round(picture.shape[0] * scale))
    picture = cv2.resize(picture, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    if mask is not None and mask.any():
        detail = f"{kind}, outlined"
    else:
        detail = kind if kind == "good" else f"{kind}, no mask"
    nothing = np.zeros((1, 1), np.float32)
    tiles = [overlay(_widened(_outlined(picture, mask)), nothing, 1.0, title=Path(name).name, detail=detail)]
    for title, look in seen:
        if look.fitted:
            detail = "fitted on this picture"
        else:
            detail = f"score {look.score:.3g}, threshold {look.threshold:.3g}"
        alarm = look.score > look.threshold
        map_ = _widened(cv2.resize(look.map, size, interpolation=cv2.INTER_LINEAR))
        tiles.append(overlay(_widened(picture), map_, look.pixel_threshold, title=title, detail=detail, alarm=alarm))
    return _grid(tiles)


def _look(path: Path, pictures: Sequence[Path]) -> list[Seen]:
    bundle = load_bundle(path)
    manifest = bundle.manifest
    fitted = {picture.sha256 for picture in manifest.split.fitted}
    scorer = Scorer(bundle)
    engine = open_engine(bundle.graph, precision=manifest.backbone.precision, threads=1, taps=scorer.taps)
    found = []
    try:
        for picture in pictures:
            image = prepare(read_picture(picture), engine.info.input_size)
            (scored,) = scorer.score(engine.infer(image[None]))
            known = file_sha256(picture) in fitted
            found.append(Seen(scored.map.copy(), scored.score, scorer.threshold, scorer.pixel_threshold, known))
    finally:
        engine.close()
    return found


def _mask(split: Split, path: Path) -> NDArray[np.bool_] | None:
    item = next((item for item in split.test if item.path == path), None)
    if item is None:
        raise DataError(f"{path}: not among the test pictures any more; evaluate again")
    if item.mask is None:
        return None
    grey = read_picture(item.mask)[:, :, 0]
    limit = split.mask_limit
    if limit is None:
        limit = 127 if int(grey.max()) > 127 else 0
    return np.asarray(grey > limit)


def _names(reports: Sequence[EvalReport]) -> list[str]:
    """ "FRE, resnet18"; with the bundle's name where two would be called the same."""
    names = [", ".join(part for part in (r.fitted.method.upper(), r.fitted.backbone) if part) for r in reports]
    return [
        name if names.count(name) == 1 else f"{name}, {report.bundle.name}"
        for name, report in zip(names, reports, strict=True)
    ]


def _outlined(picture: Picture, mask: NDArray[np.bool_] | None) -> Picture:
    drawn = picture.copy()
    if mask is None:
        return drawn
    height, width = picture.shape[:2]
    fine = cv2.resize(mask.astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST)
    lines, _ = cv2.findContours(fine, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    for thickness, colour in ((5, _PAPER), (2, _OUTLINE)):
        cv2.drawContours(drawn, lines, -1, colour, thickness, cv2.LINE_AA)
    return drawn


def _widened(image: NDArray[Any]) -> NDArray[Any]:
    """A narrow picture (or map) between bars, so that the caption below it has room."""
    missing = max(0, NARROWEST - image.shape[1])
    left = missing // 2
    bars = _PAPER if image.ndim == 3 else 0.0
    return cv2.copyMakeBorder(image, 0, 0, left, missing - left, cv2.BORDER_CONSTANT, value=bars)


def _grid(tiles: Sequence[Picture]) -> Picture:
    """Tiles of one size in rows, as even as it goes."""
    rows = -(-len(tiles) // MOST_COLUMNS)
    columns = -(-len(tiles) // rows)
    height, width = tiles[0].shape[:2]
    panel: Picture = np.full(
        (rows * height + (rows - 1) * _GAP, columns * width + (columns - 1) * _GAP, 3), _PAPER, np.uint8
    )
    for index, tile in enumerate(tiles):
        top, left = index // columns * (height + _GAP), index % columns * (width + _GAP)
        panel[top : top + height, left : left + width] = tile
    return panel
