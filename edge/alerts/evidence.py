"""Heat maps to look at: the anomaly map over its picture, the regions, a caption and the colour scale.

A colour means the same in every picture: it is the ratio of the anomaly map to the pixel threshold. Below
half of the threshold the picture is left as it is; cold colours are below the threshold, warm ones above
it, and a thin line runs where the threshold lies. Stretching each map to its own maximum, as is common,
paints a good part red.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from edge.alerts.messages import Region
from edge.preprocess import Roi

Picture = NDArray[np.uint8]

RATIO_MAX = 3.0  # the end of the scale; everything above has its last colour
VISIBLE = 0.5
# ratio to the pixel threshold, opacity, colour (RGB)
_SCALE: tuple[tuple[float, float, tuple[int, int, int]], ...] = (
    (0.0, 0.0, (40, 70, 160)),
    (VISIBLE, 0.0, (40, 70, 160)),
    (0.75, 0.22, (56, 120, 200)),
    (1.0, 0.42, (80, 190, 210)),
    (1.001, 0.5, (255, 214, 70)),
    (1.5, 0.6, (255, 140, 20)),
    (2.0, 0.68, (226, 40, 30)),
    (3.0, 0.78, (140, 0, 90)),
)
_STEPS = 1024
_INK, _PAPER, _FAINT = (240, 240, 240), (24, 22, 20), (150, 150, 150)
_SMALLEST, _LARGEST = 640, 1280  # the longer side of the result, caption apart
_FACE = getattr(cv2, "FontFace", None)  # OpenCV 5 draws TrueType; 4 has its stroke font


def _lookup() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    at = np.linspace(0.0, RATIO_MAX, _STEPS)
    stops = [stop[0] for stop in _SCALE]
    alpha = np.interp(at, stops, [stop[1] for stop in _SCALE])
    bgr = np.stack([np.interp(at, stops, [stop[2][channel] for stop in _SCALE]) for channel in (2, 1, 0)], axis=1)
    return alpha.astype(np.float32), bgr.astype(np.float32)


_ALPHA, _BGR = _lookup()


def overlay(
    picture: Picture,
    anomaly_map: NDArray[np.float32],
    pixel_threshold: float,
    regions: Sequence[Region] = (),
    *,
    roi: Roi | None = None,
    title: str = "",
    detail: str = "",
    alarm: bool | None = None,
    side_by_side: bool = False,
) -> Picture:
    """Draw the evidence: uint8 BGR, the picture scaled so that its longer side is 640 to 1280 pixels, with
    a caption and the colour scale below it.

    ``picture``: uint8 BGR [H, W, 3]. ``anomaly_map``: float32 [h, w], finite, of ``roi`` (x, y, width,
    height in source pixels; None: of the whole picture). ``pixel_threshold`` > 0 is ratio 1 of the scale.
    ``alarm`` colours the caption's mark: True red, False green, None none. ``side_by_side`` puts the bare
    picture to the left.
    """
    if pixel_threshold <= 0:
        raise ValueError(f"the pixel threshold must be above 0. Got {pixel_threshold}")
    scale = _scale_of(picture)
    canvas = _resized(picture, scale)
    bare = canvas.copy() if side_by_side else None
    x, y, w, h = roi if roi is not None else (0, 0, picture.shape[1], picture.shape[0])
    left, top = round(x * scale), round(y * scale)
    right = min(max(left + 1, round((x + w) * scale)), canvas.shape[1])
    bottom = min(max(top + 1, round((y + h) * scale)), canvas.shape[0])
    _blend(canvas[top:bottom, left:right], anomaly_map / np.float32(pixel_threshold))
    unit = (max(canvas.shape[:2]) / _SMALLEST) ** 0.75
    if roi is not None:
        cv2.rectangle(canvas, (left, top), (right - 1, bottom - 1), _FAINT, 1, cv2.LINE_AA)
    for rank, region in reversed(list(enumerate(regions))):
        _draw_region(canvas, region, scale, unit, rank, pixel_threshold)
    if bare is not None:
        gap = np.full((canvas.shape[0], max(2, round(4 * unit)), 3), _PAPER, np.uint8)
        canvas = np.hstack([bare, gap, canvas])
    return np.vstack([canvas, _caption(canvas.shape[1], unit, title, detail, alarm)])


def encode_jpeg(picture: Picture, quality: int = 90) -> bytes:
    """A JPEG file of a uint8 BGR picture."""
    return _encode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, quality])


def encode_png(picture: Picture) -> bytes:
    """A PNG file of a uint8 BGR picture."""
    return _encode(".png", picture, [cv2.IMWRITE_PNG_COMPRESSION, 3])


def _encode(suffix: str, picture: Picture, options: list[int]) -> bytes:
    done, data = cv2.imencode(suffix, picture, options)
    if not done:
        raise ValueError(f"a picture of shape {picture.shape} cannot be encoded as {suffix}")
    return data.tobytes()


def _scale_of(picture: Picture) -> float:
    longer = max(picture.shape[:2])
    return min(max(1.0, _SMALLEST / longer), _LARGEST / longer)


def _resized(picture: Picture, scale: float) -> Picture:
    if scale == 1.0:
        return picture.copy()
    size = max(1, round(picture.shape[1] * scale)), max(1, round(picture.shape[0] * scale))
    return cv2.resize(picture, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)


def _blend(target: Picture, ratio: NDArray[np.float32]) -> None:
    """Blend the colours of ``ratio`` into ``target``, in place, and draw the line of ratio 1."""
    height, width = target.shape[:2]
    fine = cv2.resize(ratio, (width, height), interpolation=cv2.INTER_LINEAR)
    # The rest has opacity 0: most of a picture needs no arithmetic.
    x, y, w, h = cv2.boundingRect((fine > VISIBLE).astype(np.uint8))
    if w == 0:
        return
    fine, target = fine[y : y + h, x : x + w], target[y : y + h, x : x + w]
    steps = np.clip(fine * ((_STEPS - 1) / RATIO_MAX), 0, _STEPS - 1).astype(np.int32)
    alpha = _ALPHA[steps][..., None]
    # A third of the picture's brightness stays in the colour, so that the texture under it can be judged.
    grey = cv2.cvtColor(target, cv2.COLOR_BGR2GRAY).astype(np.float32)[..., None] / 255.0
    colour = _BGR[steps] * (0.66 + 0.34 * grey)
    np.copyto(target, np.clip(target * (1 - alpha) + colour * alpha + 0.5, 0, 255).astype(np.uint8))
    outlines, _ = cv2.findContours((fine > 1).astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    lines = np.ascontiguousarray(target)
    cv2.drawContours(lines, outlines, -1, (255, 255, 255), 1, cv2.LINE_AA)
    np.copyto(target, lines)


def _draw_region(canvas: Picture, region: Region, scale: float, unit: float, rank: int, pixel_threshold: float) -> None:
    """Corners instead of a closed box, which would hide thin scratches; the strongest with its ratio."""
    pad = 5 * unit
    x0, y0 = max(0, round(region.x * scale - pad)), max(0, round(region.y * scale - pad))
    x1 = min(canvas.shape[1] - 1, round((region.x + region.w) * scale + pad))
    y1 = min(canvas.shape[0] - 1, round((region.y + region.h) * scale + pad))
    arm = max(3, round(min(x1 - x0, y1 - y0, 60 * unit) / 4))
    for width, colour in ((max(3, round(3.2 * unit)), _PAPER), (max(1, round(1.4 * unit)), (255, 255, 255))):
        for cx, cy, dx, dy in ((x0, y0, 1, 1), (x1, y0, -1, 1), (x0, y1, 1, -1), (x1, y1, -1, -1)):
            cv2.line(canvas, (cx, cy), (cx + dx * arm, cy), colour, width, cv2.LINE_AA)
            cv2.line(canvas, (cx, cy), (cx, cy + dy * arm), colour, width, cv2.LINE_AA)
    if rank < 3:
        text, size = f"{region.peak / pixel_threshold:.1f}x", 13 * unit
        wide, pad = _text_width(text, size), round(4 * unit)
        high = round(size * 1.35)
        left = min(x0, canvas.shape[1] - wide - 2 * pad - 1)
        top = y0 - high - round(3 * unit) if y0 > high + 4 * unit else min(y1 + round(3 * unit), canvas.shape[0] - high)
        left, top = max(0, left), max(0, top)
        cv2.rectangle(canvas, (left, top), (left + wide + 2 * pad, top + high), _PAPER, cv2.FILLED)
        _text(canvas, text, (left + pad, top + round(size * 1.02)), size, _INK)


def _caption(width: int, unit: float, title: str, detail: str, alarm: bool | None) -> Picture:
    margin, high = round(12 * unit), round(58 * unit)
    strip: Picture = np.full((high, width, 3), _PAPER, np.uint8)
    bar_width = round(170 * unit)
    bar_left = width - margin - bar_width
    room = bar_left - 2 * margin if bar_left > width // 3 else width - 2 * margin
    left = margin
    if alarm is not None:
        radius = round(5 * unit)
        centre = (left + radius, round(20 * unit))
        cv2.circle(strip, centre, radius, (48, 48, 230) if alarm else (90, 190, 70), cv2.FILLED, cv2.LINE_AA)
        left += 2 * radius + round(7 * unit)
    _text(strip, title, (left, round(25 * unit)), 15 * unit, _INK, room - (left - margin))
    _text(strip, detail, (margin, round(46 * unit)), 12 * unit, _FAINT, room)
    if bar_left > width // 3:
        _draw_scale(strip, bar_left, bar_width, unit)
    return strip


def _draw_scale(strip: Picture, left: int, width: int, unit: float) -> None:
    top, bottom = round(22 * unit), round(31 * unit)
    _text(strip, "anomaly map / pixel threshold", (left, round(16 * unit)), 10 * unit, _FAINT, width)
    steps = np.linspace(0, _STEPS - 1, width).astype(np.int32)
    alpha = np.minimum(1.0, _ALPHA[steps] / 0.5)[:, None]
    row = _BGR[steps] * alpha + np.float32(70) * (1 - alpha)
    strip[top:bottom, left : left + width] = row.astype(np.uint8)
    for ratio, text in ((0.5, "0.5"), (1.0, "1"), (2.0, "2"), (3.0, "3+")):
        x = min(left + width - 1, left + round(ratio / RATIO_MAX * width))
        cv2.line(strip, (x, bottom), (x, bottom + round(4 * unit)), _FAINT, max(1, round(unit)), cv2.LINE_AA)
        size = 10 * unit
        wide = _text_width(text, size)
        at = left + width - wide if ratio == RATIO_MAX else x - wide // 2
        _text(strip, text, (at, round(48 * unit)), size, _FAINT)


def _text(
    canvas: Picture,
    text: str,
    at: tuple[int, int],
    size: float,
    colour: tuple[int, int, int],
    room: int | None = None,
) -> None:
    """Draw ``text`` with its baseline's left end at ``at``, ``size`` pixels high, cut to ``room`` pixels."""
    text = text.encode("ascii", "replace").decode()
    if room is not None:
        whole = text
        while text and _text_width(text if text == whole else f"{text}...", size) > room:
            text = text[:-1].rstrip()
        text = text if text == whole else f"{text}..."
    if not text:
        return
    if _FACE is not None:
        cv2.putText(canvas, text, at, colour, _FACE("sans"), max(6, round(size)), 500)
    else:
        cv2.putText(
            canvas,
            text,
            at,
            cv2.FONT_HERSHEY_SIMPLEX,
            size / 30,
            colour,
            max(1, round(size / 14)),
            cv2.LINE_AA,
        )


def _text_width(text: str, size: float) -> int:
    if _FACE is not None:
        box = cv2.getTextSize((10_000, 1000), text, (0, 0), _FACE("sans"), max(6, round(size)), 500)
        return int(box[2])
    return int(cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, size / 30, max(1, round(size / 14)))[0][0])
