"""The tail that all heads share: level maps -> upsample -> fuse -> smooth -> anomaly map -> maximum.

The methods differ here only in their :class:`TailSpec`; ``methods`` of the papers are settings, not code.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from edge.errors import HeadError
from edge.heads import Array, aligned_empty

GAUSS_TRUNCATE = 4.0  # standard deviations, as scipy.ndimage.gaussian_filter: sigma 4 gives 33 taps


class TailSpec(BaseModel):
    """Settings of the tail, stored in the bundle.

    size: [height, width] of the map in pixels.
    fuse: ``mean``, ``sum``, ``geometric`` ((prod_l M_l)^(1/n) as the mean of logs of M_l + tiny_l), or
        ``weights`` (sum of ``weights[l]`` M_l). One level is passed on as it is, whatever the rule.
    level_scale: every level is multiplied by its factor first (1 / its nominal mean, say); empty: not at all.
    tiny: per level, what keeps a zero in one level from killing a geometric mean (1e-12 x nominal mean).
    upsample: bilinear; ``half_pixel`` samples at the centres of pixels, ``align_corners`` puts the corner values of a
        level map on the corner pixels of the picture.
    smooth: ``none``, ``gauss`` (``sigma`` pixels, truncated at 4 sigma, symmetric reflection) or ``mean``
        (``kernel`` x ``kernel``, zero padding).
    score: ``max`` of the map, or ``pooled_max``: maximum of its ``pooled_kernel`` x ``pooled_kernel`` means.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    size: tuple[int, int] = (256, 256)
    upsample: Literal["half_pixel", "align_corners"] = "half_pixel"
    fuse: Literal["mean", "geometric", "sum", "weights"] = "geometric"
    weights: tuple[float, ...] = ()
    level_scale: tuple[float, ...] = ()
    tiny: tuple[float, ...] = ()
    smooth: Literal["none", "gauss", "mean"] = "none"
    sigma: float = Field(default=0.0, ge=0, le=64)
    kernel: int = Field(default=1, ge=1, le=255)
    score: Literal["max", "pooled_max"] = "max"
    pooled_kernel: int = Field(default=1, ge=1, le=255)

    @model_validator(mode="after")
    def _consistent(self) -> TailSpec:
        if not all(1 <= n <= 4096 for n in self.size):
            raise ValueError("size must be 1 to 4096 pixels a side")
        if self.fuse == "weights" and not self.weights:
            raise ValueError("fuse 'weights' needs weights, one a level")
        if self.smooth == "gauss" and self.sigma <= 0:
            raise ValueError("smooth 'gauss' needs sigma > 0 pixels")
        if self.smooth == "mean" and self.kernel % 2 == 0:
            raise ValueError("smooth 'mean' needs an odd kernel")
        if self.score == "pooled_max" and self.pooled_kernel > min(self.size):
            raise ValueError("pooled_kernel must not be larger than the map")
        if any(not value > 0 for value in (*self.level_scale, *self.tiny)):
            raise ValueError("level_scale and tiny must be positive")
        return self


class Tail:
    """Applies a :class:`TailSpec`. Owns scratch memory: one object a thread."""

    def __init__(self, spec: TailSpec) -> None:
        self.spec = spec
        self._scratch = aligned_empty(spec.size)
        radius = int(GAUSS_TRUNCATE * spec.sigma + 0.5)
        self._gauss = (2 * radius + 1, 2 * radius + 1)

    def apply(self, levels: Sequence[Array], out: Array | None = None) -> tuple[Array, NDArray[np.float64]]:
        """Level maps float32 [B, h, w] (>= 0) -> anomaly maps float32 [B, *size] and their score float64 [B].

        ``out`` receives the maps in place (C-contiguous float32 [B, *size]). ``levels`` are not changed.
        Raises HeadError when the number of levels does not fit the spec, or ``out`` does not fit the maps.
        """
        count = len(levels[0]) if levels else 0
        for name in ("weights", "level_scale", "tiny"):
            given = len(getattr(self.spec, name))
            if given not in (0, len(levels)):
                raise HeadError(f"the tail's {name} are for {given} levels, the head gives {len(levels)}")
        if not levels:
            raise HeadError("the head gives no level map")
        shape = (count, *self.spec.size)
        if out is None:
            out = np.empty(shape, np.float32)
        elif out.shape != shape or out.dtype != np.float32 or not out.flags.c_contiguous:
            raise HeadError(f"maps go into C-contiguous float32 {list(shape)}, not {out.dtype} {list(out.shape)}")
        scores = np.empty(count, np.float64)
        for i in range(count):
            self._fuse([level[i] for level in levels], out[i])
            self._smooth(out[i])
            scores[i] = self._score(out[i])
        return out, scores

    def _upsample(self, level: Array, index: int, out: Array) -> None:
        height, width = self.spec.size
        if self.spec.upsample == "align_corners":
            np.matmul(_corners(level.shape[0], height) @ level, _corners(level.shape[1], width).T, out=out)
        else:
            # INTER_LINEAR samples at half-pixel centres, as torch's bilinear with align_corners=False.
            cv2.resize(level, (width, height), dst=out, interpolation=cv2.INTER_LINEAR)
        if self.spec.level_scale:
            out *= np.float32(self.spec.level_scale[index])

    def _fuse(self, levels: list[Array], out: Array) -> None:
        spec = self.spec
        geometric = spec.fuse == "geometric" and len(levels) > 1
        for index, level in enumerate(levels):
            into = out if index == 0 else self._scratch
            self._upsample(level, index, into)
            if geometric:
                if spec.tiny:
                    into += np.float32(spec.tiny[index])
                with np.errstate(divide="ignore"):  # log 0 = -inf, exp(-inf) = 0: a true zero stays one
                    np.log(into, out=into)
            elif spec.fuse == "weights":
                into *= np.float32(spec.weights[index])
            if index > 0:
                out += into
        if len(levels) > 1 and spec.fuse in ("mean", "geometric"):
            out *= np.float32(1.0 / len(levels))
        if geometric:
            np.exp(out, out=out)

    def _smooth(self, out: Array) -> None:
        if self.spec.smooth == "gauss":
            cv2.GaussianBlur(out, self._gauss, self.spec.sigma, dst=self._scratch, borderType=cv2.BORDER_REFLECT)
            np.copyto(out, self._scratch)
        elif self.spec.smooth == "mean":
            size = (self.spec.kernel, self.spec.kernel)
            cv2.boxFilter(out, cv2.CV_32F, size, dst=self._scratch, borderType=cv2.BORDER_CONSTANT)
            np.copyto(out, self._scratch)

    def _score(self, out: Array) -> float:
        if self.spec.score == "max":
            return float(out.max())
        k = self.spec.pooled_kernel
        cv2.boxFilter(out, cv2.CV_32F, (k, k), dst=self._scratch, borderType=cv2.BORDER_CONSTANT)
        # The filter's anchor is k // 2: keep windows that lie wholly inside the map.
        first, last = k // 2, (k - 1) - k // 2
        inside = self._scratch[first : out.shape[0] - last, first : out.shape[1] - last]
        return float(inside.max())


@cache
def _corners(short: int, long: int) -> Array:
    """float32 [long, short]: a row of bilinear weights for each of ``long`` places from the first to the last of
    ``short`` values, both ends included. The map of several values on one place is the first of them, as torch's."""
    places = np.linspace(0.0, short - 1.0, long) if long > 1 else np.zeros(1)
    weights = np.maximum(0.0, 1.0 - np.abs(places[:, None] - np.arange(short)))
    return np.ascontiguousarray(weights, np.float32)
