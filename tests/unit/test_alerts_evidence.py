"""Heat-map overlays: what their colours promise."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from edge.alerts.evidence import encode_jpeg, encode_png, overlay
from edge.alerts.regions import Geometry, find_regions
from edge.pictures import decode_picture

GREY = np.full((800, 1000, 3), 120, np.uint8)


def flat(value: float) -> np.ndarray:
    return np.full((256, 256), value, np.float32)


def middle(picture: np.ndarray) -> list[int]:
    return [int(value) for value in picture[400, 500]]


def test_far_below_the_threshold_the_picture_is_untouched() -> None:
    drawn = overlay(GREY, flat(0.5), 1.0)
    assert np.array_equal(drawn[:800], GREY)
    assert drawn.shape[0] > 800
    assert drawn.dtype == np.uint8


def test_cold_below_and_warm_above_the_threshold() -> None:
    blue, _, red = middle(overlay(GREY, flat(0.9), 1.0))
    assert blue > red
    for ratio in (1.1, 2.0, 3.0, 50.0):
        blue, _, red = middle(overlay(GREY, flat(ratio), 1.0))
        assert red > blue


@pytest.mark.parametrize("ratio", [0.7, 1.3, 2.6])
def test_a_colour_means_the_ratio_and_not_the_picture_maximum(ratio: float) -> None:
    alone = overlay(GREY, flat(ratio * 7), 7.0)
    beside_a_peak = flat(ratio)
    beside_a_peak[:20, :20] = 50.0
    assert middle(alone) == middle(overlay(GREY, beside_a_peak, 1.0))


def test_the_end_of_the_scale() -> None:
    assert middle(overlay(GREY, flat(3.0), 1.0)) == middle(overlay(GREY, flat(1e9), 1.0))


def test_only_the_region_of_interest_is_painted() -> None:
    drawn = overlay(GREY, flat(2.0), 1.0, roi=(100, 200, 300, 400))
    outside = np.ones((800, 1000), bool)
    outside[198:602, 98:402] = False
    assert np.array_equal(drawn[:800][outside], GREY[outside])
    assert not np.array_equal(drawn[400, 250], GREY[400, 250])


@pytest.mark.parametrize(
    ("size", "longer"), [((8, 8), 640), ((256, 100), 640), ((700, 900), 900), ((3000, 4000), 1280)]
)
def test_size(size: tuple[int, int], longer: int) -> None:
    source = np.zeros((*size, 3), np.uint8)
    anomaly_map = flat(0)
    anomaly_map[0, 0] = anomaly_map[255, 255] = 3
    found = find_regions(anomaly_map, 1.0, Geometry.of(size, None, (256, 256)))
    drawn = overlay(source, anomaly_map, 1.0, found, title="t" * 500, detail="ü" * 500, alarm=True)
    caption = overlay(source, flat(0), 1.0).shape[0] - round(size[0] * longer / max(size))
    assert max(drawn.shape[0] - caption, drawn.shape[1]) == longer
    assert not source.any()  # the source is not drawn into


def test_side_by_side_keeps_the_bare_picture() -> None:
    drawn = overlay(GREY, flat(2.0), 1.0, side_by_side=True)
    assert drawn.shape[1] > 2000
    assert np.array_equal(drawn[:800, :1000], GREY)


def test_title_and_mark_are_drawn() -> None:
    plain = overlay(GREY, flat(0), 1.0)
    assert not np.array_equal(plain, overlay(GREY, flat(0), 1.0, title="cam1"))
    alarm, calm = (overlay(GREY, flat(0), 1.0, alarm=value)[800:].astype(int) for value in (True, False))
    assert (alarm[..., 2] - alarm[..., 1]).max() > 100
    assert (calm[..., 1] - calm[..., 2]).max() > 50


def test_a_threshold_of_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="above 0"):
        overlay(GREY, flat(0), 0.0)


def test_encoded_files_decode() -> None:
    noise = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 255, (64, 96, 3), dtype=np.uint8), (0, 0), 2)
    assert np.array_equal(decode_picture(encode_png(noise), "png"), noise)
    lossy = decode_picture(encode_jpeg(noise, 95), "jpeg")
    assert np.abs(lossy.astype(int) - noise).mean() < 3
    assert len(encode_jpeg(noise, 20)) < len(encode_jpeg(noise, 95))
