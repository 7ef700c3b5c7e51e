"""Image and pixel metrics, exact: every threshold that exists, ties shared, one sort.

Definitions: image AUROC by ranks with ties counted half; pixel AUROC and pixel AP (step-wise, as
scikit-learn's ``average_precision_score``) over all pixels of all pictures pooled; AUPRO to a false-positive
rate of 0.3: mean overlap of all 8-connected defect regions of the set against the share of defect-free pixels
passed, linear between the thresholds, divided by 0.3 (Bergmann et al., MVTec AD, IJCV 2021).

The pixels are kept once, as uint64: the float32 value in an order-preserving code above, its region's number
below. A set of 583 pictures of 256 x 256 takes 306 MB and one in-place sort.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from edge.errors import DataError

FPR_LIMIT = 0.3
_CHUNK = 1 << 21
_SIGN = np.uint32(0x80000000)


@dataclass(frozen=True)
class PixelMetrics:
    """auroc, ap in [0, 1]; aupro in [0, 1], to a false-positive rate of 0.3. None where a class is
    missing."""

    auroc: float | None
    ap: float | None
    aupro: float | None


def image_auroc(scores: ArrayLike, is_defect: ArrayLike) -> float | None:
    """Area under the ROC curve of picture scores [n]: P(defect scores higher), ties counted one half.

    None when the good or the defective pictures are missing. Raises DataError for scores that are not
    finite."""
    values = np.asarray(scores, np.float64)
    defect = np.asarray(is_defect, bool)
    if not np.isfinite(values).all():
        raise DataError("a score is not finite: no metric can be computed")
    positives = int(defect.sum())
    negatives = len(defect) - positives
    if positives == 0 or negatives == 0:
        return None
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    mid_rank = np.cumsum(counts) - (counts - 1) / 2.0  # 1-based mean rank of each distinct value
    rank_sum = float(mid_rank[place][defect].sum())
    return (rank_sum - positives * (positives + 1) / 2.0) / (positives * negatives)


class PixelPool:
    """Collects anomaly maps and masks, then gives the pixel metrics once.

    Adding costs 8 bytes a pixel; :meth:`metrics` sorts in place and may be called once."""

    def __init__(self) -> None:
        self._parts: list[NDArray[np.uint64]] = []
        self._region_sizes: list[int] = []

    def add(self, anomaly_map: NDArray[np.float32], mask: NDArray[np.bool_] | None) -> None:
        """One picture: float32 [H, W] map and its mask of the same shape (None: a good picture, no defect
        pixel).

        Raises DataError for another shape or values that are not finite."""
        if mask is not None and mask.shape != anomaly_map.shape:
            raise DataError(f"mask {mask.shape} and anomaly map {anomaly_map.shape} differ in size")
        if not np.isfinite(anomaly_map).all():
            raise DataError("an anomaly map is not finite: no metric can be computed")
        coded = _ordered_code(anomaly_map).astype(np.uint64) << np.uint64(32)
        if mask is not None and mask.any():
            count, labels = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8, ltype=cv2.CV_32S)
            sizes = np.bincount(labels.ravel(), minlength=count)[1:]
            regions = labels.astype(np.uint64).ravel()
            regions[regions > 0] += np.uint64(len(self._region_sizes))
            coded |= regions
            self._region_sizes.extend(int(size) for size in sizes)
        self._parts.append(coded)

    def metrics(self) -> PixelMetrics:
        """The three metrics over everything added. None for each that needs a class of pixels not seen."""
        if not self._parts:
            return PixelMetrics(None, None, None)
        pixels = np.concatenate(self._parts)
        self._parts.clear()
        pixels.sort()
        defect_total = sum(self._region_sizes)
        good_total = len(pixels) - defect_total
        if defect_total == 0 or good_total == 0:
            return PixelMetrics(None, None, None)
        weights = np.zeros(len(self._region_sizes) + 1)
        weights[1:] = 1.0 / (np.array(self._region_sizes) * float(len(self._region_sizes)))
        auroc = ap = aupro = 0.0
        last = np.zeros(3)  # defect pixels, good pixels, overlap at the last threshold
        for curve in _curves(pixels, weights):
            curve = np.concatenate([last[:, None], curve], axis=1)
            last = curve[:, -1]
            defect, good, overlap = curve
            auroc += _trapezoid(good, defect) / (good_total * float(defect_total))
            ap += float(np.sum(np.diff(defect) * defect[1:] / (defect[1:] + good[1:]))) / defect_total
            aupro += _trapezoid_until(good / good_total, overlap, FPR_LIMIT)
        # Sums of a hundred million roundings may pass 1 by the last digits.
        return PixelMetrics(*(min(1.0, float(value)) for value in (auroc, ap, aupro / FPR_LIMIT)))


def pixel_metrics(maps: Sequence[NDArray[np.float32]], masks: Sequence[NDArray[np.bool_] | None]) -> PixelMetrics:
    """All at once: see :class:`PixelPool`."""
    pool = PixelPool()
    for anomaly_map, mask in zip(maps, masks, strict=True):
        pool.add(anomaly_map, mask)
    return pool.metrics()


def _ordered_code(values: NDArray[np.float32]) -> NDArray[np.uint32]:
    """float32 -> uint32 in the same order (flip the sign bit, or all bits of negatives); -0 as 0."""
    bits = (np.ascontiguousarray(values, np.float32).ravel() + np.float32(0)).view(np.uint32)
    return np.where(bits & _SIGN, ~bits, bits | _SIGN)


def _curves(pixels: NDArray[np.uint64], weights: NDArray[np.float64]) -> Iterator[NDArray[np.float64]]:
    """Cumulative [defect pixels, good pixels, mean region overlap] after each distinct value, from the
    highest down, chunk by chunk: float64 [3, m]. Pixels of equal value pass together, so they make one
    point."""
    total = np.zeros(3)
    for end in range(len(pixels), 0, -_CHUNK):
        start = max(0, end - _CHUNK)
        chunk = pixels[start:end][::-1]
        region = (chunk & np.uint64(0xFFFFFFFF)).astype(np.int64)
        value = chunk >> np.uint64(32)
        lower = pixels[start - 1] >> np.uint64(32) if start > 0 else None
        last_of_value = np.empty(len(chunk), bool)
        np.not_equal(value[:-1], value[1:], out=last_of_value[:-1])
        last_of_value[-1] = lower is None or bool(value[-1] != lower)
        sums = np.empty((3, len(chunk)))
        np.cumsum(region > 0, out=sums[0])
        np.subtract(np.arange(1, len(chunk) + 1), sums[0], out=sums[1])
        np.cumsum(weights[region], out=sums[2])
        sums += total[:, None]
        total = sums[:, -1].copy()
        if last_of_value.any():
            yield sums[:, last_of_value]


def _trapezoid(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    return float(np.sum(np.diff(x) * (y[1:] + y[:-1])) / 2.0)


def _trapezoid_until(x: NDArray[np.float64], y: NDArray[np.float64], limit: float) -> float:
    """Area under the piecewise line (x ascending) left of ``limit``."""
    if x[0] >= limit:
        return 0.0
    if x[-1] > limit:
        # First point beyond the limit: cut its segment there.
        stop = int(np.searchsorted(x, limit, side="right"))
        share = (limit - x[stop - 1]) / (x[stop] - x[stop - 1])
        y = np.append(y[:stop], y[stop - 1] + share * (y[stop] - y[stop - 1]))
        x = np.append(x[:stop], limit)
    return _trapezoid(x, y)
