"""From an anomaly map to regions in source pixels."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from edge.alerts.messages import MAX_REGIONS, Region
from edge.preprocess import Roi


@dataclass(frozen=True, slots=True)
class Geometry:
    """How an anomaly map of ``map_height`` x ``map_width`` lies on its source picture: the region of interest
    (``x, y, width, height`` in source pixels; the whole picture where none was set) that was resized as a
    whole."""

    roi: Roi
    map_height: int
    map_width: int

    @classmethod
    def of(cls, picture_size: tuple[int, int], roi: Roi | None, map_size: tuple[int, int]) -> Geometry:
        """``picture_size`` and ``map_size`` are (height, width)."""
        whole = (0, 0, picture_size[1], picture_size[0])
        return cls(whole if roi is None else roi, map_size[0], map_size[1])

    @property
    def step_x(self) -> float:
        """Source pixels a map column."""
        return self.roi[2] / self.map_width

    @property
    def step_y(self) -> float:
        """Source pixels a map row."""
        return self.roi[3] / self.map_height


def find_regions(
    anomaly_map: NDArray[np.float32],
    pixel_threshold: float,
    geometry: Geometry,
    limit: int = MAX_REGIONS,
    min_area: float = 0.0,
) -> tuple[Region, ...]:
    """The 8-connected regions of map pixels above ``pixel_threshold``, strongest peak first.

    ``anomaly_map``: float32 [h, w], finite. Regions under ``min_area`` source pixels are left out, and all
    beyond the ``limit`` strongest. Boxes are rounded outwards to whole source pixels; the peak point is the
    centre of the strongest map pixel (the first in reading order where several are equal).

    Call it for anomalous frames. When no region remains (an image score can pass its threshold without any
    pixel passing the pixels' one), there is one region about the peak: the 8-connected pixels around it
    that are at least half-way from the map's median to the peak.

    Raises ValueError for a map of another shape than the geometry's, or that is not finite.
    """
    if anomaly_map.shape != (geometry.map_height, geometry.map_width):
        raise ValueError(f"a map of shape {anomaly_map.shape}, not ({geometry.map_height}, {geometry.map_width})")
    if not np.isfinite(anomaly_map).all():
        raise ValueError("an anomaly map that is not finite")
    found = _connected(anomaly_map, anomaly_map > pixel_threshold, geometry, limit, min_area)
    if found:
        return found
    peak = int(anomaly_map.argmax())
    top = float(anomaly_map.flat[peak])
    half = (float(np.median(anomaly_map)) + top) / 2
    mask = anomaly_map >= np.float32(min(half, top))
    _, labels = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
    return _connected(anomaly_map, labels == labels.flat[peak], geometry, 1, 0.0)


def _connected(
    anomaly_map: NDArray[np.float32], mask: NDArray[np.bool_], geometry: Geometry, limit: int, min_area: float
) -> tuple[Region, ...]:
    if not mask.any():
        return ()
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    inside = np.flatnonzero(mask)
    values, owners = anomaly_map.flat[inside], labels.flat[inside]
    # One sort instead of a pass over the map for every label: noise at a low threshold makes thousands of
    # them.
    order = np.lexsort((inside, -values, owners))
    first = np.flatnonzero(np.diff(owners[order], prepend=0))
    peaks = order[first]  # per label 1, 2, ...: its strongest pixel, the first in reading order
    pixel_area = geometry.step_x * geometry.step_y
    areas = stats[1:, cv2.CC_STAT_AREA] * pixel_area
    ranked = np.lexsort((inside[peaks], -values[peaks]))
    ranked = ranked[areas[ranked] >= min_area][:limit]
    return tuple(
        _region(
            stats[index + 1],
            float(areas[index]),
            float(values[peaks[index]]),
            int(inside[peaks[index]]),
            geometry,
        )
        for index in ranked
    )


def _region(stats: NDArray[np.int32], area: float, peak: float, at: int, geometry: Geometry) -> Region:
    left, top, width, height = (int(value) for value in stats[:4])
    x0, y0, roi_width, roi_height = geometry.roi
    row, column = divmod(at, geometry.map_width)
    # Integers: a product of floats could round a box one pixel beyond the picture.
    x = left * roi_width // geometry.map_width
    y = top * roi_height // geometry.map_height
    right = -(-(left + width) * roi_width // geometry.map_width)
    bottom = -(-(top + height) * roi_height // geometry.map_height)
    return Region(
        x=x0 + x,
        y=y0 + y,
        w=max(1, right - x),
        h=max(1, bottom - y),
        area=area,
        peak=peak,
        peak_x=x0 + (column + 0.5) * geometry.step_x,
        peak_y=y0 + (row + 0.5) * geometry.step_y,
    )
