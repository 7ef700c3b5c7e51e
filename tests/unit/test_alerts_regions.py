"""Regions of an anomaly map in source pixels."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from edge.alerts.regions import Geometry, find_regions

WHOLE = Geometry.of((256, 256), None, (256, 256))


def empty(height: int = 256, width: int = 256) -> np.ndarray:
    return np.zeros((height, width), np.float32)


def test_a_box_in_source_pixels() -> None:
    anomaly_map = empty()
    anomaly_map[10:20, 30:60] = 2.0
    anomaly_map[12, 40] = 5.0
    (region,) = find_regions(anomaly_map, 1.0, Geometry.of((1080, 1920), None, (256, 256)))
    assert (region.x, region.y) == (225, 42)  # 30 * 7.5, floor(10 * 4.21875)
    assert (region.x + region.w, region.y + region.h) == (450, 85)  # 60 * 7.5, ceil(20 * 4.21875)
    assert region.area == pytest.approx(300 * 7.5 * 4.21875)
    assert (region.peak, region.peak_x, region.peak_y) == (5.0, 40.5 * 7.5, 12.5 * 4.21875)


def test_a_region_of_interest_shifts_and_scales() -> None:
    anomaly_map = empty()
    anomaly_map[0, 0] = anomaly_map[255, 255] = 2.0
    first, last = find_regions(anomaly_map, 1.0, Geometry.of((1080, 1920), (100, 50, 512, 128), (256, 256)))
    assert (first.x, first.y, first.w, first.h) == (100, 50, 2, 1)
    assert (last.x, last.y, last.w, last.h) == (610, 177, 2, 1)
    assert first.area == 1.0


def test_corners_connect() -> None:
    anomaly_map = empty()
    anomaly_map[5, 5] = anomaly_map[6, 6] = anomaly_map[5, 7] = 2.0
    assert len(find_regions(anomaly_map, 1.0, WHOLE)) == 1


def test_strongest_first_bounded_and_ties_in_reading_order() -> None:
    anomaly_map = empty()
    for at in range(40):
        anomaly_map[4 * at + 2, 8] = 2.0 + at % 20
    found = find_regions(anomaly_map, 1.0, WHOLE, limit=5)
    assert [(region.peak, region.y) for region in found] == [(21, 78), (21, 158), (20, 74), (20, 154), (19, 70)]
    assert len(find_regions(anomaly_map, 1.0, WHOLE)) == 16


def test_small_regions_are_left_out() -> None:
    anomaly_map = empty()
    anomaly_map[10, 10] = 9.0
    anomaly_map[100:102, 100:102] = 2.0
    (region,) = find_regions(anomaly_map, 1.0, WHOLE, min_area=4)
    assert (region.x, region.area) == (100, 4.0)


def test_the_threshold_itself_does_not_pass() -> None:
    anomaly_map = empty()
    anomaly_map[3, 3] = 1.0
    anomaly_map[9, 9] = np.nextafter(np.float32(1), np.float32(2))
    (region,) = find_regions(anomaly_map, 1.0, WHOLE)
    assert (region.x, region.y) == (9, 9)


def test_without_a_pixel_over_the_threshold_the_peak_has_a_region() -> None:
    anomaly_map = empty()
    anomaly_map[50:60, 50:60] = 0.6
    anomaly_map[55, 55] = 0.9
    anomaly_map[200:210, 200:210] = 0.8  # not connected to the peak
    (region,) = find_regions(anomaly_map, 1.0, WHOLE)
    assert (region.x, region.y, region.w, region.h, region.area) == (50, 50, 10, 10, 100.0)
    assert (region.peak_x, region.peak_y) == (55.5, 55.5)


def test_a_flat_map_is_one_region() -> None:
    (region,) = find_regions(empty() + 0.5, 1.0, WHOLE)
    assert (region.x, region.y, region.w, region.h) == (0, 0, 256, 256)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_maps_that_are_not_finite_are_refused(bad: float) -> None:
    anomaly_map = empty()
    anomaly_map[0, 0] = bad
    with pytest.raises(ValueError, match="finite"):
        find_regions(anomaly_map, 1.0, WHOLE)
    with pytest.raises(ValueError, match="shape"):
        find_regions(empty(8, 8), 1.0, WHOLE)


def brute_force(anomaly_map: np.ndarray, threshold: float) -> list[tuple[float, int, set[tuple[int, int]]]]:
    """Flood fill by hand: (peak, first pixel of it in reading order, pixels), strongest first."""
    left = {(int(y), int(x)) for y, x in zip(*np.nonzero(anomaly_map > threshold), strict=True)}
    found = []
    while left:
        front, members = [left.pop()], set()
        while front:
            y, x = front.pop()
            members.add((y, x))
            near = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & left
            left -= near
            front += near
        peak = max(float(anomaly_map[pixel]) for pixel in members)
        first = min(y * anomaly_map.shape[1] + x for y, x in members if anomaly_map[y, x] == peak)
        found.append((peak, first, members))
    return sorted(found, key=lambda item: (-item[0], item[1]))


@given(
    arrays(np.float32, (9, 11), elements=st.sampled_from([0.0, 1.0, 2.0, 3.0])),
    st.integers(1, 200),
    st.integers(1, 200),
    st.integers(0, 50),
    st.integers(0, 50),
)
def test_against_flood_fill(anomaly_map: np.ndarray, height: int, width: int, x: int, y: int) -> None:
    geometry = Geometry.of((300, 300), (x, y, width, height), (9, 11))
    found = find_regions(anomaly_map, 1.5, geometry, limit=1000)
    for region in found:
        assert x <= region.x < region.x + region.w <= x + width
        assert y <= region.y < region.y + region.h <= y + height
        assert region.x <= region.peak_x <= region.x + region.w
        assert region.y <= region.peak_y <= region.y + region.h
    expected = brute_force(anomaly_map, 1.5)
    if expected:
        step = (width / 11) * (height / 9)
        assert [region.peak for region in found] == [item[0] for item in expected]
        assert [region.area for region in found] == pytest.approx([len(item[2]) * step for item in expected])
        assert [region.peak_x for region in found] == pytest.approx(
            [x + (item[1] % 11 + 0.5) * width / 11 for item in expected]
        )
    else:
        assert len(found) == 1
