"""The tail that all heads share: upsampling, fusion, smoothing, score."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from edge.errors import HeadError
from edge.heads import Array
from edge.heads.tail import Tail, TailSpec


def levels_of(batch: int = 2, seed: int = 0) -> list[Array]:
    rng = np.random.default_rng(seed)
    return [rng.random((batch, n, n)).astype(np.float32) + 0.1 for n in (32, 16, 8)]


def plain(levels: list[Array], **settings: object) -> Array:
    return Tail(TailSpec.model_validate({"size": (64, 64), **settings})).apply(levels)[0]


def test_upsampling_is_bilinear_at_half_pixel_centres() -> None:
    level = levels_of()[2]
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(level)[:, None], (64, 64), mode="bilinear", align_corners=False
    )[:, 0].numpy()
    np.testing.assert_allclose(plain([level]), expected, atol=1e-5)


@pytest.mark.parametrize("size", [(64, 64), (33, 70), (8, 1)])
def test_upsampling_may_align_corners(size: tuple[int, int]) -> None:
    level = levels_of()[2]
    stacked = torch.from_numpy(level)[:, None]
    wanted = torch.nn.functional.interpolate(stacked, size, mode="bilinear", align_corners=True)
    got = plain([level], size=size, upsample="align_corners")
    np.testing.assert_allclose(got, wanted[:, 0].numpy(), atol=1e-5)
    np.testing.assert_array_equal(got[:, 0, 0], level[:, 0, 0])


def test_one_level_is_passed_on_and_equal_levels_give_the_same_map() -> None:
    level = levels_of()[0]
    alone = plain([level], fuse="mean")
    np.testing.assert_array_equal(plain([level], fuse="geometric"), alone)
    np.testing.assert_allclose(plain([level] * 3, fuse="geometric"), alone, rtol=1e-5)
    np.testing.assert_allclose(plain([level] * 3, fuse="mean"), alone, rtol=1e-6)


def test_fusion_rules_are_their_formulas() -> None:
    levels = levels_of()
    up = np.stack([plain([level]) for level in levels]).astype(np.float64)
    np.testing.assert_allclose(plain(levels, fuse="geometric"), up.prod(axis=0) ** (1 / 3), rtol=1e-5)
    np.testing.assert_allclose(plain(levels, fuse="mean"), up.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(plain(levels, fuse="sum"), up.sum(axis=0), rtol=1e-5)
    weighted = 0.5 * up[0] + 2 * up[1] + up[2]
    np.testing.assert_allclose(plain(levels, fuse="weights", weights=(0.5, 2, 1)), weighted, rtol=1e-5)
    scaled = (3 * up[0] + 2 * up[1] + up[2]) / 3
    np.testing.assert_allclose(plain(levels, fuse="mean", level_scale=(3, 2, 1)), scaled, rtol=1e-5)


@pytest.mark.parametrize("factor", [1e-3, 8.0, 1e6])
def test_scaling_one_level_scales_a_geometric_mean_by_its_root(factor: float) -> None:
    levels = levels_of()
    scaled = [levels[0], levels[1] * np.float32(factor), levels[2]]
    one, other = plain(levels, fuse="geometric"), plain(scaled, fuse="geometric")
    np.testing.assert_allclose(other, one * factor ** (1 / 3), rtol=1e-4)
    # The order of all pixels, and so every AUROC, stays what it was (up to rounding's near ties).
    assert np.corrcoef(one.ravel(), other.ravel())[0, 1] == pytest.approx(1, abs=1e-6)


def test_a_zero_in_one_level_does_not_kill_the_product() -> None:
    levels = levels_of()
    levels[1][:] = 0
    assert plain(levels, fuse="geometric").max() == 0
    kept = plain(levels, fuse="geometric", tiny=(1e-12,) * 3)
    assert kept.min() > 0
    assert np.isfinite(kept).all()
    # tiny changes nothing where no level is zero.
    np.testing.assert_allclose(
        plain(levels_of(), fuse="geometric", tiny=(1e-12,) * 3), plain(levels_of(), fuse="geometric"), rtol=1e-6
    )


def test_gauss_smoothing_is_truncated_at_four_sigma_and_reflects() -> None:
    level = levels_of(1)[0]
    result = plain([level], smooth="gauss", sigma=4.0)[0].astype(np.float64)
    source = plain([level])[0].astype(np.float64)
    offsets = np.arange(-16, 17)
    kernel = np.exp(-(offsets**2) / 32.0)
    kernel /= kernel.sum()
    padded = np.pad(source, 16, mode="symmetric")
    rows = np.apply_along_axis(lambda line: np.convolve(line, kernel, "valid"), 1, padded)
    expected = np.apply_along_axis(lambda line: np.convolve(line, kernel, "valid"), 0, rows)
    np.testing.assert_allclose(result, expected, rtol=1e-5)


def test_mean_smoothing_pads_with_zeros() -> None:
    ones = np.ones((1, 64, 64), np.float32)
    result = plain([ones], smooth="mean", kernel=21)[0]
    assert result[32, 32] == pytest.approx(1)
    assert result[0, 0] == pytest.approx((11 / 21) ** 2)
    assert result[0, 32] == pytest.approx(11 / 21)


@pytest.mark.parametrize("k", [1, 4, 5, 64])
def test_pooled_max_is_the_largest_mean_of_whole_windows(k: int) -> None:
    level = np.random.default_rng(5).random((2, 64, 64)).astype(np.float32)
    level[0, 0, 0] = 50
    spec = TailSpec(size=(64, 64), score="pooled_max", pooled_kernel=k)
    _, scores = Tail(spec).apply([level])
    expected = torch.nn.functional.avg_pool2d(torch.from_numpy(level)[:, None], k, stride=1)
    np.testing.assert_allclose(scores, expected.amax(dim=(1, 2, 3)).numpy(), rtol=1e-5)


def test_maps_go_into_out_and_levels_stay() -> None:
    levels = levels_of()
    copies = [level.copy() for level in levels]
    tail = Tail(TailSpec(size=(64, 48), smooth="gauss", sigma=2))
    out = np.full((2, 64, 48), -1, np.float32)
    maps, scores = tail.apply(levels, out)
    assert maps is out
    np.testing.assert_array_equal(scores, out.max(axis=(1, 2)))
    np.testing.assert_array_equal(out, tail.apply(levels)[0])
    for level, copy in zip(levels, copies, strict=True):
        np.testing.assert_array_equal(level, copy)


def test_wrong_counts_and_wrong_out_are_refused() -> None:
    levels = levels_of()
    with pytest.raises(HeadError, match="tiny are for 2 levels"):
        Tail(TailSpec(tiny=(1, 1))).apply(levels)
    with pytest.raises(HeadError, match="no level map"):
        Tail(TailSpec()).apply([])
    for out in (np.empty((2, 64, 64), np.float32), np.empty((2, 256, 256))):
        with pytest.raises(HeadError, match="maps go into"):
            Tail(TailSpec()).apply(levels, out)


@pytest.mark.parametrize(
    "settings",
    [
        {"fuse": "weights"},
        {"smooth": "gauss"},
        {"smooth": "mean", "kernel": 4},
        {"size": (0, 10)},
        {"score": "pooled_max", "pooled_kernel": 65, "size": (64, 64)},
        {"tiny": (0.0,)},
        {"level_scale": (-1.0,)},
        {"colour": "red"},
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        TailSpec.model_validate(settings)
