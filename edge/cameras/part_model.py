"""The unchanging half of the machined part: its geometry and textures, computed once for each picture size.

Measures are in units of a 640 x 480 picture, from its centre; ``scale`` turns them into pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]

BELT_TINT = (1.02, 1.03, 0.92)  # blue, green, red: green-black rubber
METAL_TINT = (1.03, 1.00, 0.985)  # slightly cold aluminium

PLATE = (250.0, 175.0, 46.0)  # half width, half height, corner radius
BORE, COUNTERBORE = 62.0, 96.0  # radii
HOLES: tuple[tuple[float, float, float], ...] = tuple(  # bolt holes: x, y, radius of the countersink
    (x, y, 25.0) for y in (-128.0, 128.0) for x in (-196.0, 0.0, 196.0)
)
DRILL = 0.68  # radius of a hole's cylinder as a share of its countersink
DOWELS: tuple[tuple[float, float, float], ...] = ((-150.0, 0.0, 9.0), (150.0, 0.0, 9.0))
LABEL, LABEL_AT = "F-2207", (132.0, 62.0)

FACE, CHAMFER = 168.0, 7.0  # grey value of the face; width of the broken edge
_DRAWN = 20240229  # seed of the textures: every line has the same material, each part another piece of it
_SPARE = 192  # how much larger than a picture the textures are, in pixels


@dataclass(frozen=True, eq=False)
class PartModel:
    """Layers of one picture size, all read-only and float32 unless said otherwise.

    ``shape`` [H, W, 4]: what moves with the part, in one array since four channels are warped as fast as one: grey
    value of the part 0..255; coverage 0..1; share of brushing on the part, and factor for the belt's light beside it
    (its shadow); nothing. ``brushing``, ``belt``, ``grain``: textures in grey values, larger than the picture.
    ``across`` [W], ``down`` [H]: coordinates -1..1. ``clearance`` [H, W]: distance in pixels to the nearest hole,
    engraving or edge; 0 off the part. ``openness`` [N] int32: flat indices of the pixels of the open surface, the
    freest first. ``colours`` [3, 256] uint8: blue, green, red for each grey value.
    """

    width: int
    height: int
    scale: float
    shape: F32
    brushing: F32
    belt: F32
    grain: F32
    across: F32
    down: F32
    clearance: F32
    openness: NDArray[np.int32]
    colours: NDArray[np.uint8]

    def to_pixels(self, x: float, y: float) -> tuple[float, float]:
        return self.width / 2 + self.scale * x, self.height / 2 + self.scale * y

    def open_point(self, reach: float, share: float) -> tuple[float, float]:
        """(x, y) of a pixel at least ``reach`` pixels away from every hole, engraving and edge; ``share``, 0 to
        below 1, says which of them. A reach that hardly a pixel has is lowered to what the freest tenth has."""
        freest = self.openness.size // 10
        count = max(int(np.count_nonzero(self.clearance >= max(reach, 1.0))), freest, 1)
        y, x = divmod(int(self.openness[int(share * count)]), self.width)
        return float(x), float(y)


@lru_cache(maxsize=4)
def part_model(width: int, height: int) -> PartModel:
    """Build the layers for pictures of ``width`` x ``height`` pixels (about 0.4 s at 640 x 480, then cached)."""
    scale = min(width / 640, height / 480)
    rows, columns = np.indices((height, width), np.float32)
    x = (columns - np.float32(width / 2)) / np.float32(scale)
    y = (rows - np.float32(height / 2)) / np.float32(scale)
    pixel = 1.0 / scale
    textures = np.random.default_rng(_DRAWN)

    plate = -_rounded_box(x, y, *PLATE)  # > 0 inside
    radius = np.hypot(x, y)
    alpha = _ramp(plate, pixel) * _ramp(radius - BORE, pixel)

    surface = np.full((height, width), FACE, np.float32)
    towards_lamp = _lamp(plate)
    surface += _band(plate, 0, CHAMFER, pixel) * (46 * towards_lamp)
    surface, brushed = _turned_bore(surface, radius, x, y, pixel)
    for hole_x, hole_y, hole_r in HOLES:
        surface, brushed = _hole(surface, brushed, x - hole_x, y - hole_y, hole_r, DRILL, pixel)
    for hole_x, hole_y, hole_r in DOWELS:
        surface, brushed = _hole(surface, brushed, x - hole_x, y - hole_y, hole_r, 0.85, pixel)
    engraved = _label(width, height, scale)
    surface += _relief(engraved)

    obstacle = (plate < CHAMFER) | (radius < COUNTERBORE + 6) | (cv2.dilate(engraved, None, iterations=3) > 0.1)
    for hole_x, hole_y, hole_r in (*HOLES, *DOWELS):
        obstacle |= np.hypot(x - hole_x, y - hole_y) < hole_r + 3
    clearance = cv2.distanceTransform((~obstacle).astype(np.uint8), cv2.DIST_L2, 5)

    through = alpha.copy()
    offset = np.array([[1, 0, 9 * scale], [0, 1, 11 * scale]], np.float32)
    cast = cv2.warpAffine(through, offset, (width, height))
    shadow = 1 - np.float32(0.55) * _blur(cast, 7 * scale)

    layers = {
        "shape": np.dstack([surface, alpha, np.where(alpha > 0.5, brushed, shadow), np.zeros_like(alpha)]),
        "brushing": _brushing_texture(textures, width, height, scale),
        "belt": _belt_texture(textures, width, height, scale),
        "grain": textures.normal(0, 1.6, (height + _SPARE, width + _SPARE)),
        "across": np.linspace(-1, 1, width),
        "down": np.linspace(-1, 1, height),
        "clearance": clearance,
    }
    fixed = {name: np.ascontiguousarray(layer, np.float32) for name, layer in layers.items()}
    for layer in fixed.values():
        layer.setflags(write=False)
    face = np.flatnonzero(clearance)
    openness = face[np.argsort(-clearance.ravel()[face], kind="stable")].astype(np.int32)
    return PartModel(width=width, height=height, scale=scale, openness=openness, colours=_colours(), **fixed)


def _colours() -> NDArray[np.uint8]:
    """The belt is dark and the metal bright, so that a grey value alone tells well enough what is what."""
    grey = np.arange(256)
    metal = np.clip((grey - 50) / 50, 0, 1)
    tints = [belt + (face - belt) * metal for belt, face in zip(BELT_TINT, METAL_TINT, strict=True)]
    return np.clip(np.round(np.stack(tints) * grey), 0, 255).astype(np.uint8)


def _ramp(inside: F32, pixel: float) -> F32:
    """Coverage 0..1 from a signed distance: one pixel of antialiasing."""
    return np.clip(inside / np.float32(pixel) + np.float32(0.5), 0, 1)


def _band(distance: F32, start: float, stop: float, pixel: float) -> F32:
    return _ramp(distance - np.float32(start), pixel) * _ramp(np.float32(stop) - distance, pixel)


def _rounded_box(x: F32, y: F32, half_width: float, half_height: float, corner: float) -> F32:
    """Signed distance to a rounded rectangle, negative inside (the usual closed form)."""
    qx = np.abs(x) - np.float32(half_width - corner)
    qy = np.abs(y) - np.float32(half_height - corner)
    outside = np.hypot(np.maximum(qx, 0), np.maximum(qy, 0))
    return np.asarray(outside + np.minimum(np.maximum(qx, qy), 0) - np.float32(corner), np.float32)


def _lamp(height: F32) -> F32:
    """-1..1: how far a slope that rises with ``height`` faces the lamp at the upper left."""
    gy, gx = np.gradient(height)
    steep = np.maximum(np.hypot(gx, gy), np.float32(1e-6))
    return np.asarray((gx + gy) / (steep * np.float32(np.sqrt(2))), np.float32)


def _turned_bore(surface: F32, radius: F32, x: F32, y: F32, pixel: float) -> tuple[F32, F32]:
    """A counterbore with turning marks, a step around it and a chamfer at the bore."""
    ring = _band(radius, BORE, COUNTERBORE, pixel)
    bearing = np.arctan2(y, x)
    # Turned metal shines in two opposite sectors; the marks are rings a few pixels apart.
    sheen = np.float32(16) * np.cos(2 * bearing + np.float32(0.9))
    marks = np.float32(5) * np.cos(radius * np.float32(2 * np.pi / 5.5))
    turned = np.float32(FACE - 30) + sheen + marks
    surface = surface + ring * (turned - surface)
    towards_lamp = (x + y) / np.maximum(radius * np.float32(np.sqrt(2)), np.float32(1e-3))
    surface = surface + _band(radius, COUNTERBORE - 3.5, COUNTERBORE + 1, pixel) * (np.float32(52) * towards_lamp)
    surface = surface + _band(radius, BORE - 1, BORE + 5, pixel) * (np.float32(44) * towards_lamp)
    return np.asarray(surface, np.float32), np.asarray(1 - ring, np.float32)


def _hole(surface: F32, brushed: F32, dx: F32, dy: F32, outer: float, drill: float, pixel: float) -> tuple[F32, F32]:
    """A countersunk blind hole: a cone lit from the upper left, a dark cylinder, a lit crescent at its far wall."""
    radius = np.hypot(dx, dy)
    inner = outer * drill
    towards_lamp = (dx + dy) / np.maximum(radius * np.float32(np.sqrt(2)), np.float32(1e-3))
    cone = _ramp(np.float32(outer) - radius, pixel)
    surface = surface + cone * (np.float32(FACE - 26) + np.float32(50) * towards_lamp - surface)
    cylinder = _ramp(np.float32(inner) - radius, pixel)
    depth = np.clip((dx + dy) / np.float32(inner * 2), -1, 1)
    surface = surface + cylinder * (np.float32(30) + np.float32(34) * np.maximum(depth, 0) ** 2 - surface)
    return np.asarray(surface, np.float32), np.asarray(brushed * (1 - cone), np.float32)


def _label(width: int, height: int, scale: float) -> F32:
    """Engraved part number, 0..1."""
    canvas = np.zeros((height, width), np.uint8)
    corner = (round(width / 2 + scale * LABEL_AT[0]), round(height / 2 + scale * LABEL_AT[1]))
    cv2.putText(
        canvas, LABEL, corner, cv2.FONT_HERSHEY_SIMPLEX, 0.62 * scale, 255, max(1, round(2 * scale)), cv2.LINE_AA
    )
    return np.asarray(_blur(canvas.astype(np.float32) / np.float32(255), 0.6 * scale), np.float32)


def _relief(engraved: F32) -> F32:
    """Shading of a groove: darker in it, one edge lit."""
    gy, gx = np.gradient(engraved)
    return np.asarray(np.float32(-38) * engraved - np.float32(45) * (gx + gy), np.float32)


def _blur(layer: F32, sigma: float) -> F32:
    return np.asarray(cv2.GaussianBlur(layer, (0, 0), max(0.3, sigma)), np.float32)


def _noise(textures: np.random.Generator, height: int, width: int, sigma_x: float, sigma_y: float) -> F32:
    """Smooth noise with standard deviation 1."""
    raw = textures.standard_normal((height, width), np.float32)
    smooth = cv2.GaussianBlur(raw, (0, 0), sigmaX=max(0.3, sigma_x), sigmaY=max(0.3, sigma_y))
    return np.asarray((smooth - smooth.mean()) / smooth.std(), np.float32)


def _belt_texture(textures: np.random.Generator, width: int, height: int, scale: float) -> F32:
    """Dark rubber: fine tooth, cloudy wear, faint ribs along the direction of travel."""
    h, w = height + _SPARE, width + _SPARE
    tooth = _noise(textures, h, w, 0.8 * scale, 0.8 * scale)
    wear = _noise(textures, h, w, 30 * scale, 12 * scale)
    ribs = np.cos(np.arange(h, dtype=np.float32) * np.float32(2 * np.pi / (12 * scale)))[:, None]
    return np.asarray(np.float32(44) + 3.2 * tooth + 2.6 * wear + 1.8 * ribs, np.float32)


def _brushing_texture(textures: np.random.Generator, width: int, height: int, scale: float) -> F32:
    """Lines along x of many lengths, in grey values around 0."""
    h, w = height + _SPARE, width + _SPARE
    long = _noise(textures, h, w, 60 * scale, 0.5 * scale)
    short = _noise(textures, h, w, 14 * scale, 0.4 * scale)
    broad = _noise(textures, h, w, 120 * scale, 5 * scale)
    return np.asarray(4.2 * long + 3.4 * short + 2.2 * broad, np.float32)
