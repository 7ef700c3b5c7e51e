"""A procedural machined part on a conveyor belt: endless nominal pictures and defects whose pixels are known.

A brushed aluminium flange with a turned bore, six bolt holes, two dowel holes and an engraved part number. From part
to part vary: position, angle, the brushing, light (level, gradient, a highlight that wanders), the belt below, and
the sensor's grain. Everything is a pure function of (seed, index, size, defect), for one version of NumPy and OpenCV.

A defect is painted into the clean picture before light and grain, and only inside its mask: outside the mask a
defective picture equals the nominal one of the same seed and index to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from edge.cameras.config import DEFECT_KINDS, DefectKind
from edge.cameras.part_model import HOLES, PartModel, part_model

F32 = NDArray[np.float32]

# Independent random streams of one part, so that asking for a defect changes nothing else in the picture.
_NATURE, _CHANCE, _DEFECT = 0, 1, 2


@dataclass(frozen=True)
class PartPicture:
    """``picture``: uint8 BGR [H, W, 3]. ``defect``: the kind, or None. ``mask``: uint8 [H, W], 255 where the defect
    is, 0 elsewhere."""

    picture: NDArray[np.uint8]
    defect: DefectKind | None
    mask: NDArray[np.uint8]


def defect_of(seed: int, index: int, rate: float, kinds: tuple[DefectKind, ...] = DEFECT_KINDS) -> DefectKind | None:
    """The defect that part ``index`` of line ``seed`` has when a share ``rate`` of all parts is defective."""
    chance = _stream(seed, index, _CHANCE)
    if chance.random() >= rate:
        return None
    return kinds[int(chance.integers(len(kinds)))]


def render_part(
    seed: int, index: int, size: tuple[int, int] = (640, 480), defect: DefectKind | None = None
) -> PartPicture:
    """Draw part ``index`` of line ``seed``; ``size`` is (width, height) in pixels, each at least 96."""
    model = part_model(*size)
    nature = _stream(seed, index, _NATURE)
    place = _placement(nature, model)
    grey = _clean(nature, model, place)
    mask = np.zeros(grey.shape, np.uint8)
    tint = None
    if defect is not None:
        paint = _PAINTERS[defect](_stream(seed, index, _DEFECT), model, place, grey)
        if defect != "missing_hole":  # a scratch ends at a hole, a stain has none of it
            np.logical_and(paint.footprint, _is_open(model, place, paint.window), out=paint.footprint)
        mask[paint.window][paint.footprint] = 255
        grey[paint.window] = np.where(paint.footprint, paint.grey, grey[paint.window])
        tint = paint
    _light(nature, model, grey)
    _grain(nature, model, grey)
    plain = cv2.convertScaleAbs(np.maximum(grey, 0, out=grey))
    picture = cv2.merge([cv2.LUT(plain, colour) for colour in model.colours])
    if tint is not None and tint.brown is not None:
        patch = picture[tint.window]
        # Residue of oil is brownish: less blue, a little more red.
        factors = 1 + tint.brown[:, :, None] * np.array([-1.0, -0.1, 0.25], np.float32)
        brown = np.clip(patch * factors, 0, 255).astype(np.uint8)
        picture[tint.window] = np.where(tint.footprint[:, :, None], brown, patch)
    return PartPicture(np.asarray(picture, np.uint8), defect, mask)


def _stream(seed: int, index: int, which: int) -> Generator:
    return np.random.default_rng([seed, index, which])


def _placement(nature: Generator, model: PartModel) -> F32:
    """Affine map from the model's pixels to the picture's: a few pixels and about a degree, as a fixture leaves."""
    reach = 4.0 * model.scale
    dx, dy = np.clip(nature.normal(0.0, reach / 2, 2), -reach, reach)
    angle = float(np.clip(nature.normal(0.0, 0.6), -1.5, 1.5))
    matrix = cv2.getRotationMatrix2D((model.width / 2, model.height / 2), angle, 1.0)
    matrix[:, 2] += (dx, dy)
    return np.asarray(matrix, np.float32)


def _cut(texture: F32, nature: Generator, model: PartModel) -> F32:
    """A piece of a larger texture, from anywhere in it."""
    y = int(nature.integers(texture.shape[0] - model.height + 1))
    x = int(nature.integers(texture.shape[1] - model.width + 1))
    return texture[y : y + model.height, x : x + model.width]


def _clean(nature: Generator, model: PartModel, place: F32) -> F32:
    """Grey values [H, W] before light and grain: the belt, the part's shadow on it, the part. Belongs to the caller.

    In place wherever it can be: at this size a pass over fresh memory costs as much as the arithmetic.
    """
    size = (model.width, model.height)
    border = cv2.BORDER_REPLICATE
    warped = cv2.warpAffine(model.shape, place, size, flags=cv2.INTER_LINEAR, borderMode=border)
    surface, alpha, share, _ = cv2.split(warped)
    belt = _cut(model.belt, nature, model) * share
    metal = cv2.warpAffine(_cut(model.brushing, nature, model), place, size, flags=cv2.INTER_LINEAR, borderMode=border)
    metal *= share
    metal *= np.float32(nature.uniform(0.75, 1.25))
    metal += surface
    metal -= belt
    metal *= alpha
    metal += belt
    return np.asarray(metal, np.float32)


def _light(nature: Generator, model: PartModel, grey: F32) -> None:
    """Multiply by the light: level of the lamp, gradient across the picture, a broad highlight that wanders, and the
    lens's vignette."""
    level = np.clip(nature.normal(1.0, 0.03), 0.92, 1.08)
    gx, gy = np.clip(nature.normal(0.0, 0.03, 2), -0.07, 0.07)
    centre = nature.uniform(-0.3, 0.3)
    glow = nature.uniform(0.02, 0.06) * np.exp(-(((model.across - centre) / 0.5) ** 2))
    fall_x, fall_y = 1 - 0.05 * model.across**2, 1 - 0.05 * model.down**2
    # light[y, x] = fall_y * fall_x * (level + glow + gx * x + gy * y): two outer products.
    columns = np.stack([fall_y, fall_y * gy * model.down], axis=1).astype(np.float32)
    rows = np.stack([fall_x * (level + glow + gx * model.across), fall_x]).astype(np.float32)
    grey *= columns @ rows


def _grain(nature: Generator, model: PartModel, grey: F32) -> None:
    """Add the sensor's noise, which grows with brightness."""
    grain = _cut(model.grain, nature, model)
    amount = nature.uniform(0.85, 1.15)
    noise = grey * np.float32(0.006 * amount)
    noise += np.float32(0.7 * amount)
    noise *= grain
    grey += noise


# --- Defects: each gives new grey values for a window of the picture, and the pixels in it that count ---------------

_Window = tuple[slice, slice]


@dataclass(frozen=True)
class _Paint:
    window: _Window
    grey: F32  # [h, w] of the window
    footprint: NDArray[np.bool_]  # [h, w]
    brown: F32 | None = None  # [h, w], 0 (grey) to about 0.1


_Painter = Callable[[Generator, PartModel, F32, F32], _Paint]


def _spot(defect: Generator, model: PartModel, place: F32, reach: float) -> tuple[float, float]:
    """A point on the open surface, in the picture's pixels, at least about ``reach`` away from holes and edge."""
    return _on_picture(place, *model.open_point(reach, float(defect.random())))


def _on_picture(place: F32, x: float, y: float) -> tuple[float, float]:
    spot = place @ np.array([x, y, 1.0], np.float32)
    return float(spot[0]), float(spot[1])


def _window(model: PartModel, x: float, y: float, reach: float) -> tuple[_Window, F32, F32]:
    """The square around (x, y) as far as it lies in the picture, and each pixel's offset (dx, dy) from its centre."""
    left, right = max(0, int(x - reach)), min(model.width, int(x + reach) + 2)
    top, bottom = max(0, int(y - reach)), min(model.height, int(y + reach) + 2)
    dy, dx = np.mgrid[top:bottom, left:right].astype(np.float32)
    return (slice(top, bottom), slice(left, right)), dx - np.float32(x), dy - np.float32(y)


def _is_open(model: PartModel, place: F32, window: _Window) -> NDArray[np.bool_]:
    """Which pixels of the window show the part's open surface."""
    corner = np.array([[0, 0, window[1].start], [0, 0, window[0].start]], np.float32)
    size = (window[1].stop - window[1].start, window[0].stop - window[0].start)
    return np.asarray(cv2.warpAffine(model.clearance, place - corner, size) > 0)


def _scratch(defect: Generator, model: PartModel, place: F32, clean: F32) -> _Paint:
    """A bright groove with a dark flank, slightly curved, fading at its ends."""
    length = model.scale * defect.uniform(45, 130)
    x, y = _spot(defect, model, place, 0.25 * length)
    window, dx, _ = _window(model, x, y, 0.62 * length + 6)
    angle, bend = defect.uniform(0, np.pi), defect.normal(0, 0.12)
    t = np.linspace(-0.5, 0.5, 33)
    along = np.array([np.cos(angle), np.sin(angle)])
    normal = np.array([-along[1], along[0]])
    corner = np.array([window[1].start, window[0].start])
    points = length * (t[:, None] * along + 0.5 * bend * (4 * t[:, None] ** 2 - 1) * normal) + (x, y) - corner
    width = model.scale * defect.uniform(0.9, 1.7)
    depth = defect.uniform(42, 72)
    groove = _stroke(dx.shape, points, t, width)
    flank = _stroke(dx.shape, points + normal * (width + 0.6), t, width)
    change = np.float32(depth) * groove - np.float32(0.65 * depth) * flank * (1 - groove)
    return _Paint(window, clean[window] + change, np.asarray(np.abs(change) > 5))


def _stroke(shape: tuple[int, ...], points: NDArray[np.float64], t: NDArray[np.float64], width: float) -> F32:
    """Coverage 0..1 of a line through ``points`` that fades towards its ends (``t`` from -0.5 to 0.5)."""
    canvas = np.zeros(shape, np.uint8)
    fixed = np.round(points * 16).astype(np.int32)
    for start, end, at in zip(fixed[:-1], fixed[1:], t[:-1], strict=True):
        strength = 255 * min(1.0, 0.35 + 3.2 * (0.5 - abs(at)))
        cv2.line(canvas, start.tolist(), end.tolist(), strength, max(1, round(width)), cv2.LINE_AA, 4)
    return np.asarray(cv2.GaussianBlur(canvas, (3, 3), 0.55), np.float32) / np.float32(255)


def _dent(defect: Generator, model: PartModel, place: F32, clean: F32) -> _Paint:
    """A shallow dimple: the slope that faces the lamp is brighter, the one that turns away darker."""
    radius = model.scale * defect.uniform(9, 18)
    x, y = _spot(defect, model, place, 1.3 * radius)
    window, dx, dy = _window(model, x, y, 2.2 * radius)
    angle, squeeze = defect.uniform(0, np.pi), defect.uniform(0.7, 1.0)
    u = (dx * np.float32(np.cos(angle)) + dy * np.float32(np.sin(angle))) / np.float32(radius)
    v = (dy * np.float32(np.cos(angle)) - dx * np.float32(np.sin(angle))) / np.float32(radius * squeeze)
    bowl = np.exp(-1.6 * (u * u + v * v))
    slope = (dx + dy) / np.float32(radius * np.sqrt(2))  # the lamp stands at the upper left
    depth = defect.uniform(75, 115)
    shade = np.float32(depth) * slope * bowl - np.float32(0.12 * depth) * bowl
    return _Paint(window, clean[window] + shade, np.asarray(bowl > 0.045))


def _stain(defect: Generator, model: PartModel, place: F32, clean: F32) -> _Paint:
    """A dried splash of oil: an irregular, cloudy, brownish patch with a darker rim."""
    radius = model.scale * defect.uniform(16, 32)
    x, y = _spot(defect, model, place, 0.9 * radius)
    window, dx, dy = _window(model, x, y, 2.0 * radius)
    bearing = np.arctan2(dy, dx)
    edge = np.full_like(dx, radius)
    for lobe in range(2, 9):
        wave = np.cos(np.float32(lobe) * bearing + np.float32(defect.uniform(0, 2 * np.pi)))
        edge += np.float32(radius * defect.normal(0, 0.22 / lobe)) * wave
    depth = np.hypot(dx, dy) / np.maximum(edge, np.float32(0.3 * radius))  # 0 at the centre, 1 at the rim
    body = np.clip((np.float32(1.0) - depth) * np.float32(4.5), 0, 1)
    clouds = cv2.GaussianBlur(defect.standard_normal(dx.shape, np.float32), (0, 0), max(0.5, 0.22 * radius))
    body *= np.clip(1 + np.float32(0.25) * clouds / np.float32(max(float(clouds.std()), 1e-6)), 0.3, 1.5)
    rim = np.exp(-(((depth - np.float32(0.9)) / np.float32(0.07)) ** 2))
    darkness = np.float32(defect.uniform(0.14, 0.26)) * body + np.float32(0.06) * rim
    footprint = np.asarray(darkness > 0.025)
    brown = np.asarray(np.float32(0.45) * darkness, np.float32)
    return _Paint(window, np.asarray(clean[window] * (1 - darkness), np.float32), footprint, brown)


def _missing_hole(defect: Generator, model: PartModel, place: F32, clean: F32) -> _Paint:
    """One bolt hole was never drilled: the brushed face goes on where it should be."""
    x, y, radius = HOLES[int(defect.integers(len(HOLES)))]
    centre = _on_picture(place, *model.to_pixels(x, y))
    window, dx, dy = _window(model, *centre, model.scale * (radius + 3))
    inside = np.hypot(dx, dy) <= model.scale * (radius + 1.5)
    # What the face would look like below the hole is unknown; the face beside it, inwards, is as good.
    shift = round(model.scale * (2 * radius + 10)) * (1 if x < 0 else -1)
    beside = slice(window[1].start + shift, window[1].stop + shift)
    return _Paint(window, clean[window[0], beside].copy(), np.asarray(inside))


_PAINTERS: dict[DefectKind, _Painter] = {
    "scratch": _scratch,
    "dent": _dent,
    "stain": _stain,
    "missing_hole": _missing_hole,
}
