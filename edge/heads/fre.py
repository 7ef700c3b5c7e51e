"""FRE: distance to the principal subspace of the nominal features (Ndiour, Ahuja, Genc, Tickoo, BMVC 2023).

    u = average-pooled taps, flattened;  z = W (u - mu);  r = (u - mu) - W^T z
    level map = mean over channels of r^2;  norm = ||r||_2 of the detection layer

The printed signed channel mean cancels itself; squares are what the authors' code uses. The cost is reading W
(k x D float32), which is taken in blocks of rows that fit the second-level cache.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.heads import ALIGNMENT, Array, HeadError, Residuals, Spec, aligned_empty

_GROUP = 4  # pictures that share one pass over W
_BLOCK_BYTES = 1 << 20  # measured on a core with 2 MB of L2: 0.5 to 1.5 MB is flat, 2 MB a tenth slower


def pooled_shape(shape: tuple[int, int, int], pool: int) -> tuple[int, int, int]:
    """Shape [C, h, w] after average pooling: an odd last row or column is dropped, as torch does."""
    channels, height, width = shape
    return channels, height // pool, width // pool


def pool_mean(tap: Array, pool: int, out: Array | None = None) -> Array:
    """Average pooling of [C, H, W] float32 with kernel and stride ``pool``: [C, H // pool, W // pool].

    ``tap`` is never changed; ``out`` receives the result if given (and is written to in every case).
    Source: the authors' code pools every layer by 2 before flattening.
    """
    channels, height, width = pooled_shape(tap.shape, pool)
    if out is None:
        out = np.empty((channels, height, width), np.float32)
    if pool == 1:
        np.copyto(out, tap)
        return out
    cut = tap[:, : height * pool, : width * pool]
    # Rows first: adding whole contiguous rows is cheap, and halves what the strided column sums must touch.
    rows = cut[:, 0::pool, :] + cut[:, 1::pool, :]
    for i in range(2, pool):
        rows += cut[:, i::pool, :]
    np.add(rows[:, :, 0::pool], rows[:, :, 1::pool], out=out)
    for i in range(2, pool):
        out += rows[:, :, i::pool]
    out *= np.float32(1.0 / (pool * pool))
    return out


@dataclass(frozen=True)
class _Layer:
    name: str
    shape: tuple[int, int, int]  # of the tap
    pooled: tuple[int, int, int]
    mean: Array  # [D]
    basis: Array  # [k, D], orthonormal rows
    # Scratch: residuals in the making, their code, and what one block of rows takes away.
    work: Array  # [_GROUP, D]
    code: Array  # [k]
    share: Array  # [D]


class FreHead:
    """FRE over one or several layers.

    spec: ``layers`` (list of tap names), ``detection`` (the layer whose norm is the image-level distance),
    ``pool`` (int >= 1), ``shape_<layer>`` ([C, H, W] of the tap before pooling).
    arrays: ``mu_<layer>`` float32 [D], ``w_<layer>`` float32 [k, D] with orthonormal rows, D = C h w pooled.
    """

    method = "fre"

    def __init__(self, spec: Spec, arrays: Mapping[str, NDArray[Any]]) -> None:
        try:
            self.taps: tuple[str, ...] = tuple(str(name) for name in spec["layers"])
            self.detection = str(spec["detection"])
            self.pool = int(spec["pool"])
            shapes = {name: tuple(int(n) for n in spec[f"shape_{name}"]) for name in self.taps}
        except (KeyError, TypeError, ValueError) as error:
            raise HeadError(f"the FRE head's settings are incomplete or of the wrong type ({error})") from None
        if not self.taps or self.detection not in self.taps or self.pool < 1:
            raise HeadError(
                f"the FRE head's settings contradict themselves: layers {list(self.taps)}, detection layer"
                f" {self.detection!r}, pool {self.pool}"
            )
        self._layers = [_layer(name, shapes[name], self.pool, arrays) for name in self.taps]

    def residuals(self, taps: Mapping[str, Array]) -> Residuals:
        """See :class:`edge.heads.Head`. norms: ||r||_2 of the detection layer, in feature units.

        A picture's arithmetic is the same in every batch, to the last bit: matrix-vector products for each,
        which also beat a product with a matrix of four columns in OpenBLAS by a third.
        """
        levels: list[Array] = []
        norms: NDArray[np.float64] | None = None
        for layer in self._layers:
            tap = _checked(taps, layer)
            maps = np.empty((tap.shape[0], *layer.pooled[1:]), np.float32)
            with np.errstate(over="ignore", invalid="ignore"):  # judged below, once, on the sums
                for start in range(0, len(tap), _GROUP):
                    group = slice(start, start + _GROUP)
                    _residual_maps(layer, tap[group], self.pool, maps[group])
                energy = maps.sum(axis=(1, 2), dtype=np.float64) * layer.pooled[0]
            if not np.isfinite(energy).all():
                raise HeadError(
                    f"features of {layer.name} are not finite (NaN, infinite or far out of range): no score;"
                    " check the engine and its precision (edge doctor)"
                )
            levels.append(maps)
            if layer.name == self.detection:
                norms = np.sqrt(energy)
        return Residuals(levels, norms)


def _residual_maps(layer: _Layer, pictures: Array, pool: int, out: Array) -> None:
    work = layer.work[: len(pictures)]
    for picture, residual in zip(pictures, work, strict=True):
        pool_mean(picture, pool, out=residual.reshape(layer.pooled))
        residual -= layer.mean
    # The rows are orthogonal, so each block of them may take its share away at once, before the next is looked
    # at: W comes from memory once instead of twice, and once for the whole group.
    rows = max(4, _BLOCK_BYTES // (4 * layer.basis.shape[1]))
    for start in range(0, len(layer.basis), rows):
        block = layer.basis[start : start + rows]
        code = layer.code[start : start + rows]
        for residual in work:
            np.dot(block, residual, out=code)
            np.dot(code, block, out=layer.share)
            residual -= layer.share
    np.square(work, out=work)
    np.mean(work.reshape(len(pictures), *layer.pooled), axis=1, out=out)


def _checked(taps: Mapping[str, Array], layer: _Layer) -> Array:
    tap = taps.get(layer.name)
    if tap is None:
        raise HeadError(f"the engine gives no tap {layer.name!r}; it gives {', '.join(sorted(taps)) or 'none'}")
    if tap.ndim != 4 or tap.shape[1:] != layer.shape or tap.dtype != np.float32:
        raise HeadError(
            f"tap {layer.name} is {tap.dtype} {list(tap.shape)}, the bundle was fitted on"
            f" float32 [B, {', '.join(str(n) for n in layer.shape)}]"
        )
    return tap


def _layer(name: str, shape: tuple[int, ...], pool: int, arrays: Mapping[str, NDArray[Any]]) -> _Layer:
    if len(shape) != 3 or min(shape) < 1 or min(shape[1:]) < pool:
        raise HeadError(f"layer {name}: shape {list(shape)} cannot be pooled by {pool}")
    channels, height, width = shape
    pooled = pooled_shape((channels, height, width), pool)
    size = int(np.prod(pooled))
    try:
        mean, basis = arrays[f"mu_{name}"], arrays[f"w_{name}"]
    except KeyError as error:
        raise HeadError(f"the FRE head lacks the array {error}") from None
    if mean.shape != (size,) or basis.ndim != 2 or basis.shape[1] != size or basis.shape[0] < 1:
        raise HeadError(
            f"layer {name}: arrays of shape {list(mean.shape)} and {list(basis.shape)} do not fit"
            f" {size} pooled features"
        )
    if mean.dtype != np.float32 or basis.dtype != np.float32:
        raise HeadError(f"layer {name}: arrays are {mean.dtype} and {basis.dtype}, not float32")
    mean, basis = _aligned(mean), _aligned(basis)
    # Bounds no W of ours can break: rows of length 1. A sum is also NaN if anything in it is.
    lengths = np.einsum("ij,ij->i", basis, basis, dtype=np.float32)
    if not (np.isfinite(mean).all() and np.all(np.abs(lengths - 1) < 1e-2)):
        raise HeadError(f"layer {name}: the subspace's rows are not of length 1, or not finite")
    scratch = [aligned_empty((_GROUP, size)), aligned_empty((basis.shape[0],)), aligned_empty((size,))]
    return _Layer(name, (channels, height, width), pooled, mean, basis, *scratch)


def _aligned(array: Array) -> Array:
    if array.flags.c_contiguous and array.ctypes.data % ALIGNMENT == 0:
        return array
    copy = aligned_empty(array.shape)
    np.copyto(copy, array)
    return copy
