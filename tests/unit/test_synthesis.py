"""Synthetic defects: noise, masks, textures, patches, and how often each is drawn."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from calibration import synthesis
from calibration.synthesis import (
    AUGMENTERS,
    FEW_TEXTURES,
    PRINTED,
    Corruptor,
    Preset,
    Textures,
    augment,
    blend,
    cutpaste,
    draw_texture,
    drawn_textures,
    perlin_mask,
    perlin_noise,
    read_textures,
)
from calibration.synthesis.augmenters import rotate
from edge.errors import DataError

SIZE = (48, 64)  # not square


def picture(seed: int = 0, size: tuple[int, int] = SIZE) -> NDArray[np.uint8]:
    """Smooth, with values from 1 on: 0 is what a rotation fills in."""
    noise = np.random.RandomState(seed).uniform(1, 255, (*size, 3)).astype(np.float32)
    return np.clip(cv2.GaussianBlur(noise, (0, 0), 1.5), 1, 255).astype(np.uint8)


def random(seed: int = 0) -> np.random.RandomState:
    return np.random.RandomState(seed)


# Perlin noise and masks.


@pytest.mark.parametrize("cells", [(1, 1), (4, 8), (32, 2), (5, 7)])
def test_perlin_noise_lies_in_its_range_and_is_zero_where_cells_meet(cells: tuple[int, int]) -> None:
    size = (cells[0] * 12, cells[1] * 8)
    noise = perlin_noise(size, cells, random(1))
    assert noise.dtype == np.float32
    assert noise.shape == size
    assert -1 <= noise.min() < -0.1
    assert 0.1 < noise.max() <= 1
    assert np.abs(noise[::12, ::8]).max() < 1e-6
    assert (perlin_noise(size, cells, random(1)) == noise).all()
    assert (perlin_noise(size, cells, random(2)) != noise).any()


def test_perlin_noise_is_smooth_also_where_cells_meet() -> None:
    noise = perlin_noise((256, 256), (4, 4), random(3))
    assert np.abs(np.diff(noise, axis=0)).max() < 0.1
    assert np.abs(np.diff(noise, axis=1)).max() < 0.1


def test_perlin_noise_takes_cells_that_do_not_divide_the_size() -> None:
    assert perlin_noise((50, 70), (3, 32), random()).shape == (50, 70)


def test_perlin_masks_are_of_all_kinds() -> None:
    draw = random(4)
    masks = [perlin_mask(SIZE, draw) for _ in range(200)]
    assert all(mask.shape == SIZE and mask.dtype == np.bool_ for mask in masks)
    shares = np.array([mask.mean() for mask in masks])
    assert (shares < 0.6).all()
    assert 0 < (shares == 0).mean() < 0.3  # an empty mask is no error, and seldom
    assert 0.01 < shares.mean() < 0.15
    assert perlin_mask(SIZE, random(5)).tolist() == perlin_mask(SIZE, random(5)).tolist()


# Blending.


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
def test_outside_the_mask_a_picture_is_unchanged_to_the_last_bit(dtype: Any) -> None:
    base, texture = picture(1).astype(dtype), picture(2).astype(dtype)
    before, mask = base.copy(), perlin_noise(SIZE, (4, 4), random(6)) > 0.2
    out = blend(base, texture, mask, 0.3)
    assert out.dtype == base.dtype
    assert (out[~mask] == before[~mask]).all()
    assert (base == before).all()
    np.testing.assert_allclose(
        out[mask], 0.7 * texture[mask] + 0.3 * base[mask], atol=0.51 if dtype == np.uint8 else 1e-4
    )
    assert (blend(base, texture, mask, 1.0) == before).all()
    assert (blend(base, texture, mask, 0.0)[mask] == texture[mask]).all()
    assert (blend(base, texture, np.zeros(SIZE, bool), 0.0) == before).all()


# CutPaste.


def test_the_codes_patches_are_mostly_black_and_of_a_fifth_of_the_picture() -> None:
    """Figures that a simulation of FAIR's code gave."""
    draw, white = random(7), np.full((128, 128, 3), 200, np.uint8)
    areas, black = [], []
    for _ in range(1500):
        out, mask = cutpaste(white, draw)
        areas.append(mask.mean())
        black.append((out[..., 0][mask] == 0).mean())
        assert (out[..., 0][~mask] == 200).all()
    assert np.mean(areas) == pytest.approx(0.24, abs=0.02)
    assert np.median(areas) == pytest.approx(0.19, abs=0.02)
    assert (np.array(areas) > 0.5).mean() == pytest.approx(0.14, abs=0.03)
    assert np.mean(black) == pytest.approx(0.81, abs=0.04)
    assert (np.array(black) > 0.996).mean() == pytest.approx(0.44, abs=0.06)  # the patch's corner pixel stays


def test_the_papers_patches_cover_over_half_of_the_picture_and_bring_no_black() -> None:
    draw, base = random(8), picture(3, (96, 64))
    for _ in range(50):
        out, mask = cutpaste(base, draw, "paper")
        assert 0.5 < mask.mean() < 0.9
        assert (out[~mask] == base[~mask]).all()
        assert out.min() >= 1
        assert (out[mask] != base[mask]).any()


@pytest.mark.parametrize("preset", ["reference", "paper"])
def test_cutpaste_keeps_what_it_is_given_and_follows_the_seed(preset: Preset) -> None:
    base = picture(4)
    before = base.copy()
    first, mask = cutpaste(base, random(9), preset)
    again, same = cutpaste(base, random(9), preset)
    assert (base == before).all()
    assert (first == again).all()
    assert (mask == same).all()
    assert not np.shares_memory(first, base)
    assert cutpaste(base.astype(np.float32), random(9), preset)[0].dtype == np.float32


# Augmenters and textures.


@pytest.mark.parametrize("name", sorted(AUGMENTERS))
def test_an_augmenter_gives_a_picture_of_its_kind_and_changes_only_its_copy(name: str) -> None:
    changed = 0
    for seed in range(12):
        base = picture(seed)
        before = base.copy()
        out = AUGMENTERS[name](base, random(seed))
        assert out.shape == base.shape
        assert out.dtype == np.uint8
        assert (base == before).all()
        assert (AUGMENTERS[name](base, random(seed)) == out).all()
        changed += int((out != before).any())
    assert changed >= 3
    plain = np.full((8, 8, 3), 77, np.uint8)  # nothing to stretch or equalize
    assert AUGMENTERS[name](plain, random()).shape == plain.shape


def test_three_augmenters_of_ten_or_twelve_are_drawn() -> None:
    assert len(PRINTED) == 10
    assert len(FEW_TEXTURES) == 12
    assert {"shift_hue", "drop_channel"} == set(FEW_TEXTURES) - set(PRINTED)
    assert (augment(picture(), random(1), ["invert"]) == 255 - picture()).all()
    assert len({augment(picture(), random(seed)).tobytes() for seed in range(20)}) == 20


def test_drawn_textures_are_fixed_by_the_seed_and_differ() -> None:
    textures = drawn_textures(SIZE, 3, 40)
    assert textures.shape == (40, *SIZE, 3)
    assert textures.dtype == np.uint8
    assert (drawn_textures(SIZE, 3, 40) == textures).all()
    assert len({texture.tobytes() for texture in textures}) == 40
    assert (drawn_textures(SIZE, 4, 1) != textures[:1]).any()
    assert np.median(textures.reshape(40, -1).std(axis=1)) > 10
    assert draw_texture((32, 32), random()).flags.c_contiguous


def test_textures_of_a_folder_and_of_the_pictures_themselves(tmp_path: Path) -> None:
    (tmp_path / "deeper").mkdir()
    for index in range(4):
        cv2.imwrite(str(tmp_path / ("deeper" if index % 2 else ".") / f"{index}.png"), picture(index, (30, 40)))
    (tmp_path / "notes.txt").write_text("no picture")
    textures = read_textures(tmp_path, SIZE)
    assert textures.shape == (4, *SIZE, 3)
    assert len(read_textures(tmp_path, SIZE, max_bytes=2 * SIZE[0] * SIZE[1] * 3)) == 2
    stored = np.stack([np.full((8, 8, 3), value, np.uint8) for value in (10, 20, 30)])
    drawn = {int(Textures(stored, np.array([0, 2]), ("invert",)).draw(random(seed))[0, 0, 0]) for seed in range(20)}
    assert drawn == {245, 225}  # row 1 is never used
    assert stored[0, 0, 0, 0] == 10


def test_a_folder_without_textures_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.png").write_bytes(b"not a picture")
    for folder, says in (("none", "no such folder"), ("empty", "holds no pictures"), ("bad", "a texture is unusable")):
        with pytest.raises(DataError, match=says) as caught:
            read_textures(tmp_path / folder, SIZE)
        assert "\n" not in str(caught.value)
        assert folder in str(caught.value)


# What FAIR makes of them.


def test_corruptions_come_as_often_as_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    """10,000 draws; what is drawn has tests of its own."""
    base, draw, turned = np.full((8, 8, 3), 200, np.uint8), random(10), []
    corrupt = Corruptor(Textures(np.zeros((1, 8, 8, 3), np.uint8), None, ("invert",)))
    monkeypatch.setattr(synthesis.corruptor, "rotate", lambda x, degrees: turned.append(degrees) or x)
    monkeypatch.setattr(synthesis.corruptor, "perlin_mask", lambda size, random: np.ones(size, bool))
    kinds = Counter(corrupt(base, draw).kind for _ in range(10_000))
    assert kinds["clean"] == pytest.approx(5000, abs=200)
    assert kinds["cutpaste"] == pytest.approx(2500, abs=200)
    assert kinds["perlin"] == pytest.approx(2500, abs=200)
    assert len(turned) == pytest.approx(3000, abs=200)
    assert -90 <= min(turned) < -85
    assert 85 < max(turned) <= 90


def test_a_share_of_zero_to_four_fifths_shows_through(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[float] = []
    monkeypatch.setattr(
        synthesis.corruptor, "blend", lambda picture, texture, mask, share: kept.append(share) or picture
    )
    corrupt, draw = Corruptor(Textures(drawn_textures(SIZE, 0, 2)), rotation=0), random(11)
    for _ in range(600):
        corrupt(picture(), draw)
    assert 0 <= min(kept) < 0.05
    assert 0.75 < max(kept) <= 0.8
    assert np.mean(kept) == pytest.approx(0.4, abs=0.06)


@pytest.mark.parametrize("preset", ["reference", "paper"])
def test_a_corrupted_picture_differs_from_its_target_only_in_its_mask(preset: Preset) -> None:
    corrupt = Corruptor(Textures(drawn_textures(SIZE, 0, 4)), preset, rotation=0.5)
    draw, base = random(12), picture(5)
    before, changed = base.copy(), Counter[str]()
    for _ in range(60):
        pair = corrupt(base, draw)
        assert pair.picture.shape == pair.target.shape == base.shape
        assert pair.picture.dtype == pair.target.dtype == np.uint8
        assert (pair.picture[~pair.mask] == pair.target[~pair.mask]).all()
        if pair.kind == "clean":
            assert not pair.mask.any()
        changed[pair.kind] += int((pair.picture != pair.target).any())
        changed["turned"] += int((pair.target != base).any())
    assert (base == before).all()
    assert changed["clean"] == 0
    assert min(changed["cutpaste"], changed["perlin"], changed["turned"]) > 3


def test_the_same_stream_gives_the_same_pair() -> None:
    corrupt, base = Corruptor(Textures(drawn_textures(SIZE, 0, 4))), picture(6)
    pairs = [[corrupt(base, random(seed)) for seed in range(20)] for _ in range(2)]
    for one, other in zip(*pairs, strict=True):
        assert one.kind == other.kind
        assert (one.picture == other.picture).all()
        assert (one.target == other.target).all()
        assert (one.mask == other.mask).all()


def test_a_rotation_turns_about_the_centre_and_fills_with_black() -> None:
    base = np.zeros((9, 9, 3), np.uint8)
    base[4, 4], base[4, 8] = 200, 100
    quarter = rotate(base, 90)
    assert quarter[4, 4].tolist() == [200] * 3
    assert quarter[0, 4].tolist() == [100] * 3
    assert rotate(np.full((9, 9, 3), 200, np.uint8), 45)[0, 0].max() == 0
