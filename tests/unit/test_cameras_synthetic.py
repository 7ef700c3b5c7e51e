"""The synthetic line: the same for everybody, different from part to part, and honest about its defects."""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.cameras import open_camera
from edge.cameras.base import Frame
from edge.cameras.config import DEFECT_KINDS, DefectKind, SyntheticSource
from edge.cameras.machined_part import _stream, defect_of, render_part
from edge.cameras.synthetic import render_frame, truth, write_part_dataset
from edge.errors import CameraError, EndOfStream, ResourceError

SMALL = (160, 120)


def source(**changes: object) -> SyntheticSource:
    fields = {"kind": "synthetic", "size": SMALL, "fps": None, **changes}
    return SyntheticSource.model_validate(fields)


def frames(spec: SyntheticSource, count: int) -> list[Frame]:
    camera = open_camera(spec)
    camera.open()
    got = [camera.read(1.0) for _ in range(count)]
    assert all(isinstance(frame, Frame) for frame in got)
    return got  # type: ignore[return-value]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 10**9), st.sampled_from((None, *DEFECT_KINDS)))
def test_a_part_is_a_function_of_seed_index_and_defect(seed: int, index: int, kind: DefectKind | None) -> None:
    one, again = (render_part(seed, index, SMALL, kind) for _ in range(2))
    assert np.array_equal(one.picture, again.picture)
    assert np.array_equal(one.mask, again.mask)
    assert one.picture.shape == (120, 160, 3)
    assert one.picture.dtype == np.uint8
    assert one.picture.flags.c_contiguous


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 10**6), st.sampled_from(DEFECT_KINDS))
def test_the_mask_is_where_the_defect_changes_the_picture(seed: int, index: int, kind: DefectKind) -> None:
    nominal = render_part(seed, index, (640, 480))
    part = render_part(seed, index, (640, 480), kind)
    assert part.defect == kind
    assert set(np.unique(part.mask)) == {0, 255}
    inside = part.mask == 255
    changed = (part.picture != nominal.picture).any(axis=2)
    assert not changed[~inside].any(), "pixels outside the mask differ"
    assert changed[inside].mean() > 0.9, "the mask covers what the defect left alone"
    assert 40 <= inside.sum() <= 0.05 * inside.size
    difference = np.abs(part.picture.astype(int) - nominal.picture.astype(int)).max(axis=2)
    assert difference[inside].mean() > 6, "nobody would see it"


def test_chance_and_nature_of_a_part_have_nothing_to_do_with_each_other() -> None:
    """Were both drawn from one stream, defective parts would be recognised by their light or place."""
    draws = {float(_stream(1, 2, which).random()) for which in range(3)}
    assert len(draws) == 3


def test_a_nominal_part_has_an_empty_mask() -> None:
    part = render_part(3, 4, SMALL)
    assert part.defect is None
    assert not part.mask.any()


def test_nominal_parts_vary_but_stay_in_place() -> None:
    parts = [render_part(5, i, (640, 480)).picture for i in range(12)]
    assert len({hashlib.sha256(p.tobytes()).hexdigest() for p in parts}) == 12
    levels = [float(p.mean()) for p in parts]
    assert 0.5 < np.std(levels) < 10, "light varies, a little"
    centres = []
    for picture in parts:
        bright = cv2.GaussianBlur(picture[:, :, 1], (0, 0), 2) > 110
        ys, xs = np.nonzero(bright)
        centres.append((xs.mean(), ys.mean()))
    spread = np.std(centres, axis=0)
    assert (spread > 0.3).all()
    assert (spread < 4).all()


@pytest.mark.parametrize("size", [(96, 96), (1280, 720), (300, 500)])
def test_other_sizes_show_the_whole_part(size: tuple[int, int]) -> None:
    for kind in DEFECT_KINDS:
        part = render_part(1, 1, size, kind)
        assert part.picture.shape == (size[1], size[0], 3)
        assert part.mask.any()


def test_truth_is_known_without_drawing_and_has_the_rate_asked_for() -> None:
    spec = source(defect_rate=0.2, defects=("dent", "stain"), seed=9)
    kinds = Counter(truth(spec, i) for i in range(4000))
    assert set(kinds) == {None, "dent", "stain"}
    assert kinds[None] == pytest.approx(3200, abs=100)
    assert kinds["dent"] == pytest.approx(400, abs=80)
    assert {defect_of(0, i, 0.0) for i in range(100)} == {None}
    assert None not in {defect_of(0, i, 1.0) for i in range(100)}


def test_a_frame_is_the_part_of_its_name() -> None:
    spec = source(defect_rate=0.5, seed=2)
    for frame in frames(spec, 8):
        drawn = render_frame(spec, int(frame.name))
        assert np.array_equal(frame.picture, drawn.picture)
        assert drawn.defect == truth(spec, int(frame.name))


def test_prerendered_parts_repeat_and_so_does_their_truth() -> None:
    spec = source(prerender=3, defect_rate=0.5)
    got = frames(spec, 7)
    assert [f.name for f in got] == [str(i) for i in range(7)]
    assert got[0].picture is got[3].picture is got[6].picture
    assert not np.array_equal(got[0].picture, got[1].picture)
    assert not got[0].picture.flags.writeable
    assert truth(spec, 1) == truth(spec, 4) == truth(spec, 7)


def test_a_bounded_line_ends_and_goes_on_where_it_stood() -> None:
    camera = open_camera(source(frames=3))
    with pytest.raises(CameraError, match="not open"):
        camera.read(0)
    camera.open()
    first = camera.read(0)
    camera.close()
    camera.open()
    rest = [camera.read(0) for _ in range(2)]
    assert [f.name for f in (first, *rest) if isinstance(f, Frame)] == ["0", "1", "2"]
    with pytest.raises(EndOfStream):
        camera.read(0)


def test_a_frame_that_is_not_due_is_none() -> None:
    camera = open_camera(source(fps=0.5))
    camera.open()
    assert isinstance(camera.read(0), Frame)
    assert camera.read(0.01) is None


def test_the_data_set_has_the_layout_and_its_masks_fit(tmp_path: Path) -> None:
    seen = []
    count = write_part_dataset(tmp_path, 3, 2, 2, seed=1, size=SMALL, on_picture=lambda: seen.append(1))
    assert count == len(seen) == 3 + 2 + 2 * len(DEFECT_KINDS)
    names = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*.png")}
    assert {"train/good/002.png", "test/good/001.png", "test/dent/001.png"} <= names
    assert len(names) == count + 2 * len(DEFECT_KINDS)
    for kind in DEFECT_KINDS:
        mask = cv2.imread(str(tmp_path / "ground_truth" / kind / "000_mask.png"), cv2.IMREAD_UNCHANGED)
        assert mask.shape == (120, 160)
        assert set(np.unique(mask)) == {0, 255}
    pictures = [p.read_bytes() for p in tmp_path.rglob("*.png") if "ground_truth" not in p.parts]
    assert len(set(pictures)) == count, "a part occurs twice"


def test_a_data_set_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "train").write_text("in the way")
    with pytest.raises(ResourceError, match="cannot be written"):
        write_part_dataset(tmp_path, 1, 0, 0, size=SMALL)
