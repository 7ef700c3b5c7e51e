"""Reading picture files, bounded: the one place where encoded pictures become arrays."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from edge.errors import PictureError

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"})
MAX_PIXELS = 64_000_000  # a 64-megapixel inspection camera; a 30,000 x 30,000 picture is refused
MAX_BYTES = 512 * 1024 * 1024

Picture = NDArray[np.uint8]


def is_picture(path: Path) -> bool:
    """True for a visible file whose suffix is a known picture format (dot files are writers' temporaries)."""
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def read_picture(path: Path, max_pixels: int = MAX_PIXELS) -> Picture:
    """Decode a picture file to uint8 BGR [H, W, 3], C-contiguous. EXIF orientation is ignored: a camera's
    pixels are taken as they lie.

    Raises PictureError: missing, not readable, empty, damaged, or larger than ``max_pixels``.
    """
    try:
        size = path.stat().st_size
        if size == 0:
            raise PictureError(f"{path}: the file is empty (0 bytes); remove it or copy it again")
        if size > MAX_BYTES:
            raise PictureError(f"{path}: {size} bytes is over the limit of {MAX_BYTES}; not a camera's picture")
        data = path.read_bytes()
    except FileNotFoundError:
        raise PictureError(f"{path}: no such picture") from None
    except OSError as error:
        raise PictureError(f"{path}: cannot be read ({error.strerror})") from None
    return decode_picture(data, str(path), max_pixels)


def decode_picture(data: bytes, name: str, max_pixels: int = MAX_PIXELS) -> Picture:
    """Decode an encoded picture held in memory; ``name`` stands in the error. See :func:`read_picture`."""
    declared = declared_size(data)
    # The header is believed before the decoder may allocate: OpenCV would try 2.7 GB for a 30,000 x 30,000 PNG.
    if declared is not None and declared[0] * declared[1] > max_pixels:
        raise PictureError(
            f"{name}: {declared[1]} x {declared[0]} pixels is over the limit of {max_pixels / 1e6:.0f} megapixels;"
            " scale it down or raise max_pixels"
        )
    try:
        picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error:
        picture = None
    if picture is None:
        raise PictureError(f"{name}: not a readable picture (damaged, cut short, or an unknown format)")
    if picture.shape[0] * picture.shape[1] > max_pixels:
        raise PictureError(f"{name}: more than {max_pixels / 1e6:.0f} megapixels; scale it down")
    return np.ascontiguousarray(picture)


def declared_size(data: bytes) -> tuple[int, int] | None:
    """Height and width that a PNG, JPEG or BMP header declares; None where the format is another."""
    if data[:8] == b"\x89PNG\r\n\x1a\n" and len(data) >= 24:
        return int.from_bytes(data[20:24], "big"), int.from_bytes(data[16:20], "big")
    if data[:2] == b"BM" and len(data) >= 26:
        height = int.from_bytes(data[22:26], "little", signed=True)
        return abs(height), abs(int.from_bytes(data[18:22], "little", signed=True))
    if data[:2] == b"\xff\xd8":
        return _jpeg_size(data)
    return None


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    at = 2
    while at + 9 < len(data):
        if data[at] != 0xFF:
            return None
        marker = data[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
            continue
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return int.from_bytes(data[at + 5 : at + 7], "big"), int.from_bytes(data[at + 7 : at + 9], "big")
        if marker == 0xD9 or marker == 0xDA:
            return None
        if marker == 0x01 or 0xD0 <= marker <= 0xD8:
            at += 2
            continue
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return None
