"""Image and pixel metrics against their definitions, their oracles and scikit-learn."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from calibration import metrics
from calibration.metrics import PixelMetrics, image_auroc, pixel_metrics
from edge.errors import DataError

SIZE = 32


def masks_of(count: int, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    masks = []
    for _ in range(count):
        mask = np.zeros((SIZE, SIZE), bool)
        for _ in range(rng.integers(1, 4)):
            y, x, h, w = rng.integers(0, SIZE - 8, 2).tolist() + rng.integers(1, 7, 2).tolist()
            mask[y : y + h, x : x + w] = True
        masks.append(mask)
    return masks


def random_maps(count: int, seed: int = 1, levels: int | None = None) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    if levels is None:
        return [rng.random((SIZE, SIZE), np.float32) for _ in range(count)]
    return [(rng.integers(0, levels, (SIZE, SIZE)) / levels).astype(np.float32) for _ in range(count)]


def aupro_by_hand(maps: list[np.ndarray], masks: list[np.ndarray], limit: float = 0.3) -> float:
    """The definition, threshold by threshold."""
    values = np.stack(maps)
    truth = np.stack(masks)
    regions = []
    for i, mask in enumerate(masks):
        count, labels = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
        regions += [(i, labels == number) for number in range(1, count)]
    points = [(0.0, 0.0)]
    for threshold in np.unique(values)[::-1]:
        passed = values >= threshold
        fpr = float(passed[~truth].mean())
        pro = float(np.mean([passed[i][region].mean() for i, region in regions]))
        points.append((fpr, pro))
    x, y = np.array(points).T
    at_limit = np.interp(limit, x, y)
    keep = x <= limit
    x, y = np.append(x[keep], limit), np.append(y[keep], at_limit)
    return float(np.sum(np.diff(x) * (y[1:] + y[:-1]) / 2) / limit)


@pytest.mark.parametrize("levels", [None, 7, 2])
def test_pixel_metrics_are_scikit_learns_and_the_definitions(levels: int | None) -> None:
    maps, masks = random_maps(4, levels=levels), masks_of(4)
    for map_, mask in zip(maps, masks, strict=True):
        map_[mask] += np.float32(0.25)
    result = pixel_metrics(maps, masks)
    truth, values = np.stack(masks).ravel(), np.stack(maps).ravel()
    assert result.auroc == pytest.approx(roc_auc_score(truth, values), abs=1e-12)
    assert result.ap == pytest.approx(average_precision_score(truth, values), abs=1e-12)
    assert result.aupro == pytest.approx(aupro_by_hand(maps, masks), abs=1e-9)


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    maps, masks = random_maps(3, levels=11), masks_of(3)
    whole = pixel_metrics(maps, masks)
    monkeypatch.setattr(metrics, "_CHUNK", 37)
    parts = pixel_metrics(maps, masks)
    for one, two in ((whole.auroc, parts.auroc), (whole.ap, parts.ap), (whole.aupro, parts.aupro)):
        assert one == pytest.approx(two, abs=1e-12)


def test_perfect_inverted_and_constant_maps() -> None:
    masks = masks_of(3)
    perfect = [mask.astype(np.float32) for mask in masks]
    assert pixel_metrics(perfect, masks) == PixelMetrics(1.0, pytest.approx(1.0), pytest.approx(1.0))
    inverted = pixel_metrics([1 - map_ for map_ in perfect], masks)
    assert inverted.auroc == 0.0
    assert inverted.aupro == pytest.approx(0.0)
    constant = pixel_metrics([np.full((SIZE, SIZE), 3, np.float32)] * 3, masks)
    assert constant.auroc == pytest.approx(0.5)
    assert constant.ap == pytest.approx(np.stack(masks).mean())


def test_a_random_map_has_aupro_near_0_15() -> None:
    maps, masks = random_maps(40, seed=3), masks_of(40, seed=4)
    result = pixel_metrics(maps, masks)
    assert result.aupro == pytest.approx(0.15, abs=0.03)
    assert result.auroc == pytest.approx(0.5, abs=0.02)


def test_half_a_region_above_all_background() -> None:
    mask = np.zeros((SIZE, SIZE), bool)
    mask[4:8, 4:8] = True
    values = np.random.default_rng(0).random((SIZE, SIZE)).astype(np.float32)
    values[4:8, 4:8] = -1
    values[4:6, 4:8] = 2
    result = pixel_metrics([values], [mask])
    assert result.aupro is not None
    assert result.aupro == pytest.approx(0.5, abs=1e-6)  # the other half lies below every background pixel


def test_regions_touching_at_a_corner_are_one() -> None:
    mask = np.zeros((SIZE, SIZE), bool)
    mask[2:4, 2:4] = mask[4:6, 4:6] = True
    values = np.zeros((SIZE, SIZE), np.float32)
    values[2:4, 2:4] = 2  # found; the other half of the region below the background
    values[4:6, 4:6] = -1
    assert pixel_metrics([values], [mask]).aupro == pytest.approx(0.5)
    mask[20, 20] = True  # a region of its own, wholly found: (0.5 + 1) / 2
    values[20, 20] = 2
    assert pixel_metrics([values], [mask]).aupro == pytest.approx(0.75)


def test_every_region_counts_the_same_whatever_its_size() -> None:
    mask = np.zeros((SIZE, SIZE), bool)
    mask[0:10, 0:10] = True
    mask[30, 30] = True
    values = np.zeros((SIZE, SIZE), np.float32)
    values[30, 30] = 1
    values[0:10, 0:10] = -1
    assert pixel_metrics([values], [mask]).aupro == pytest.approx(0.5)


@pytest.mark.parametrize("transform", [np.exp, lambda x: 7 * x - 3, lambda x: np.sqrt(x) / 1000])
def test_increasing_transforms_and_duplicates_change_nothing(transform) -> None:  # type: ignore[no-untyped-def]
    maps, masks = random_maps(3, levels=64), masks_of(3)  # 64ths: no two values that rounding could merge
    for map_, mask in zip(maps, masks, strict=True):
        map_[mask] += np.float32(0.25)
    plain = pixel_metrics(maps, masks)
    for other in (
        pixel_metrics([transform(map_).astype(np.float32) for map_ in maps], masks),
        pixel_metrics(maps * 2, masks * 2),
    ):
        assert other.auroc == pytest.approx(plain.auroc)
        assert other.ap == pytest.approx(plain.ap)
        assert other.aupro == pytest.approx(plain.aupro)


def test_good_pictures_count_as_background_and_zeros_have_no_sign() -> None:
    maps, masks = random_maps(2), [masks_of(1)[0], None]
    result = pixel_metrics(maps, masks)
    truth = np.stack([masks[0], np.zeros((SIZE, SIZE), bool)]).ravel()
    assert result.auroc == pytest.approx(roc_auc_score(truth, np.stack(maps).ravel()))
    signed = np.zeros((SIZE, SIZE), np.float32)
    signed[:16] = -0.0
    assert pixel_metrics([signed], masks_of(1)).auroc == pytest.approx(0.5)


def test_without_defect_pixels_there_is_no_figure() -> None:
    assert pixel_metrics(random_maps(2), [None, np.zeros((SIZE, SIZE), bool)]) == PixelMetrics(None, None, None)
    assert pixel_metrics([], []) == PixelMetrics(None, None, None)


def test_nan_and_wrong_sizes_are_refused() -> None:
    broken = random_maps(1)[0]
    broken[0, 0] = np.nan
    with pytest.raises(DataError, match="not finite"):
        pixel_metrics([broken], [None])
    with pytest.raises(DataError, match="differ in size"):
        pixel_metrics(random_maps(1), [np.zeros((3, 3), bool)])
    with pytest.raises(DataError, match="not finite"):
        image_auroc([1.0, np.inf], [True, False])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(-5, 5), st.booleans()), min_size=2, max_size=40))
def test_image_auroc_is_scikit_learns_with_ties(pairs: list[tuple[int, bool]]) -> None:
    scores, truth = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    if all(truth) or not any(truth):
        assert image_auroc(scores, truth) is None
    else:
        assert image_auroc(scores, truth) == pytest.approx(roc_auc_score(truth, scores), abs=1e-12)
