"""The synthetic line as a camera, and as a data set: known parts, known defects."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import cv2

from edge.cameras.base import Frame, Picture
from edge.cameras.config import DEFECT_KINDS, DefectKind, SyntheticSource
from edge.cameras.machined_part import PartPicture, defect_of, render_part
from edge.cameras.pacing import Pacer
from edge.errors import CameraError, EndOfStream, ResourceError


def truth(spec: SyntheticSource, index: int) -> DefectKind | None:
    """The defect in frame ``index`` (its ``Frame.name``) of the camera that ``spec`` describes; None: nominal."""
    return defect_of(spec.seed, _part(spec, index), spec.defect_rate, spec.defects)


def render_frame(spec: SyntheticSource, index: int) -> PartPicture:
    """Frame ``index`` of the camera that ``spec`` describes, with its ground truth."""
    return render_part(spec.seed, _part(spec, index), spec.size, truth(spec, index))


def _part(spec: SyntheticSource, index: int) -> int:
    return index if spec.prerender is None else index % spec.prerender


class SyntheticCamera:
    """A :class:`~edge.cameras.base.Camera` that draws its parts. ``Frame.name`` is the index, from 0."""

    def __init__(self, spec: SyntheticSource) -> None:
        self._spec = spec
        self._kept: dict[int, Picture] = {}
        self._next = 0
        self._pacer: Pacer | None = None

    live = False
    overwritten = 0

    def open(self) -> None:
        self._pacer = Pacer(self._spec.fps)

    def read(self, timeout_s: float) -> Frame | None:
        if self._pacer is None:
            raise CameraError(f"{self.describe()}: not open")
        if self._spec.frames is not None and self._next >= self._spec.frames:
            raise EndOfStream(f"{self.describe()}: all {self._spec.frames} frames were read")
        if not self._pacer.wait(timeout_s):
            return None
        index = self._next
        self._next += 1
        picture = self._picture(index)
        return Frame(picture, time.monotonic_ns(), time.time_ns(), name=str(index))

    def _picture(self, index: int) -> Picture:
        if self._spec.prerender is None:
            return render_frame(self._spec, index).picture
        part = _part(self._spec, index)
        # Drawn when first due, not all at once in open(): a stage must not be silent for seconds.
        if part not in self._kept:
            picture = render_frame(self._spec, part).picture
            picture.setflags(write=False)
            self._kept[part] = picture
        return self._kept[part]

    def close(self) -> None:
        self._pacer = None

    def describe(self) -> str:
        width, height = self._spec.size
        return f"synthetic line, seed {self._spec.seed}, {width} x {height}"


def write_part_dataset(
    folder: Path,
    good: int = 200,
    test_good: int = 40,
    test_defects: int = 10,
    seed: int = 0,
    size: tuple[int, int] = (640, 480),
    kinds: tuple[DefectKind, ...] = DEFECT_KINDS,
    on_picture: Callable[[], None] | None = None,
) -> int:
    """Write parts as a data set in MVTec AD's layout; gives the number of pictures.

    ``train/good`` (``good``), ``test/good`` (``test_good``), ``test/<kind>`` (``test_defects`` of each kind) and
    ``ground_truth/<kind>/NNN_mask.png`` (0 or 255). No part occurs twice. ``on_picture`` is called after each.
    Raises ResourceError when the folder cannot be written.
    """
    plan: list[tuple[str, DefectKind | None, int]] = [("train/good", None, i) for i in range(good)]
    plan += [("test/good", None, i) for i in range(test_good)]
    plan += [(f"test/{kind}", kind, i) for kind in kinds for i in range(test_defects)]
    for part, (place, kind, number) in enumerate(plan):
        drawn = render_part(seed, part, size, kind)
        _write(folder / place / f"{number:03d}.png", drawn.picture)
        if kind is not None:
            _write(folder / "ground_truth" / kind / f"{number:03d}_mask.png", drawn.mask)
        if on_picture is not None:
            on_picture()
    return len(plan)


def _write(path: Path, picture: Picture) -> None:
    ok, data = cv2.imencode(".png", picture, [cv2.IMWRITE_PNG_COMPRESSION, 1])  # grain hardly compresses
    if not ok:
        raise ResourceError(f"{path}: the picture could not be encoded")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data.tobytes())
    except OSError as error:
        raise ResourceError(
            f"{path}: cannot be written ({error.strerror}); free space or choose another folder"
        ) from None
