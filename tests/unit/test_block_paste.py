"""Feature block paste: masks, blur and what is added where (oracle 8 of the method's description)."""

from __future__ import annotations

from typing import Literal

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calibration.block_paste import SIGMA, BlockPaste, blur

Walk = Literal["code", "paper"]


def pieces(mask: np.ndarray, neighbours: int) -> int:
    return int(cv2.connectedComponents(mask.astype(np.uint8), connectivity=neighbours)[0]) - 1


def dilated(mask: np.ndarray) -> np.ndarray:
    """By one position, diagonals included."""
    return cv2.dilate(mask.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0


def random(seed: int = 0) -> np.random.RandomState:
    return np.random.RandomState(seed)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), half=st.integers(0, 14))
def test_a_mask_is_one_piece_that_contains_the_centre(seed: int, half: int) -> None:
    walks: tuple[tuple[Walk, int, int], ...] = (("code", 4, 100), ("paper", 8, 2 * half))
    for walk, neighbours, steps in walks:
        mask = BlockPaste(walk=walk).mask(random(seed), half)
        assert mask.shape == (2 * half + 1, 2 * half + 1)
        assert mask.dtype == bool
        assert mask[half, half]
        assert pieces(mask, neighbours) == 1
        assert mask.sum() <= steps + 1


def test_the_codes_walk_fills_small_boxes_and_the_papers_is_thinner() -> None:
    code, paper = (
        np.mean([BlockPaste(walk=walk).mask(random(seed), 3).mean() for seed in range(200)])
        for walk in ("code", "paper")
    )
    assert code > 0.5
    assert 2 / 49 < paper < 0.3 * code
    assert BlockPaste().mask(random(), 1).all()
    for walk in ("code", "paper"):
        assert BlockPaste(walk=walk).mask(random(), 0).tolist() == [[True]]


def test_a_block_lies_wholly_inside_and_everywhere() -> None:
    paste = BlockPaste(half=(0.5, 10.0))
    sides = set()
    for seed in range(400):
        block = paste.draw(random(seed), 24, 32)
        rows, columns = np.nonzero(block.mask)
        sides.add(max(np.ptp(rows), np.ptp(columns)) + 1)
    assert min(sides) == 1
    assert max(sides) <= 19  # 2 * 9 + 1
    # Centres lie everywhere: shown by blocks of one position.
    marked = np.zeros((6, 8), int)
    for seed in range(600):
        mask = BlockPaste(half=(0.5, 0.9)).draw(random(seed), 6, 8).mask
        assert mask.sum() == 1
        marked += mask
    assert marked.min() > 0
    assert marked.max() < 40  # of 12.5 expected
    # A map smaller than the largest block gets what fits.
    for seed in range(30):
        assert BlockPaste(half=(9.0, 10.0)).draw(random(seed), 5, 9).mask.any(axis=1).sum() <= 5
    assert BlockPaste().draw(random(), 1, 1).mask.tolist() == [[True]]


@pytest.mark.parametrize("walk", ["code", "paper"])
def test_values_are_the_intensity_blurred_and_stay_near_the_mask(walk: Walk) -> None:
    paste = BlockPaste(half=(0.5, 4.0), intensity=(8.0, 16.0), walk=walk)
    seen = []
    for seed in range(60):
        block = paste.draw(random(seed), 32, 32)
        inner = block.mask[2:-2, 2:-2].sum() == block.mask.sum()
        near = dilated(block.mask)
        assert (block.values[~near] == 0).all()
        assert (block.values[near] > 0).all()
        if inner:  # away from the border the blur keeps the sum: intensity times marked positions
            seen.append(block.values.sum(dtype=np.float64) / block.mask.sum())
    assert len(seen) > 20
    assert 8 <= min(seen) < 9.5
    assert 14.5 < max(seen) <= 16


def test_the_blur_is_the_gaussian_with_reflection() -> None:
    values = random().rand(9, 7).astype(np.float32)
    kernel = np.exp(-0.5 * (np.arange(-1, 2) / SIGMA) ** 2)
    kernel /= kernel.sum()
    wanted = cv2.filter2D(values.astype(np.float64), -1, np.outer(kernel, kernel), borderType=cv2.BORDER_REFLECT_101)
    np.testing.assert_allclose(blur(values), wanted, atol=1e-6)
    np.testing.assert_allclose(blur(np.full((4, 5), 3.0, np.float32)), 3.0, rtol=1e-6)
    torch = pytest.importorskip("torch", reason="needs the extra fit")
    padded = torch.nn.functional.pad(torch.from_numpy(values)[None, None], (1, 1, 1, 1), mode="reflect")
    weight = torch.from_numpy(np.outer(kernel, kernel).astype(np.float32))[None, None]
    np.testing.assert_allclose(torch.nn.functional.conv2d(padded, weight)[0, 0].numpy(), blur(values), atol=1e-6)
    assert blur(np.ones((1, 1), np.float32)).tolist() == [[1.0]]


def test_features_change_under_the_block_alone_and_the_seed_fixes_it() -> None:
    features = random(1).normal(size=(4, 3, 16, 20)).astype(np.float16)
    before = features.copy()
    std = np.array([1.0, 2.0, 0.5])
    pasted, masks = BlockPaste().paste(features, std, random(2))
    assert (features == before).all()
    assert pasted.shape == features.shape
    assert pasted.dtype == np.float32
    assert masks.shape == (4, 16, 20)
    assert len({mask.tobytes() for mask in masks}) == 4  # one of its own for every picture
    for added, mask in zip(pasted - features, masks, strict=True):
        near = dilated(mask)
        assert (added[:, ~near] == 0).all()
        assert (added[:, mask] > 0).all()
        # The same shape in every channel, in its channel's deviations.
        np.testing.assert_allclose(added[1], 2 * added[0], atol=1e-3)
        np.testing.assert_allclose(added[2], 0.5 * added[0], atol=1e-3)
    again, same = BlockPaste().paste(features, std, random(2))
    other, _ = BlockPaste().paste(features, std, random(3))
    assert (again == pasted).all()
    assert (same == masks).all()
    assert (other != pasted).any()
    one, _ = BlockPaste().paste(features, 2.0, random(2))
    np.testing.assert_allclose((one - features)[:, 0], (pasted - features)[:, 1], atol=1e-2)
