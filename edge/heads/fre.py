"""FRE: distance to the principal subspace of the nominal features (Ndiour, Ahuja, Genc, Tickoo, BMVC 2023).

    u = average-pooled taps, flattened;  z = W (u - mu);  r = (u - mu) - W^T z
    level map = mean over channels of r^2;  norm = ||r||_2 of the detection layer

The printed signed channel mean cancels itself; squares are what the authors' code uses. The cost is reading W
(k x D float32), which is taken in blocks of rows that fit the second-level cache.

The paper's two auto-encoders are the same with a trained W: tied, z = W (u - mu) + s; untied, with a decoder of its
own, r = (u - mu) - D^T (E (u - mu) + s). Their rows are not orthogonal, so all of z must be known before any of r is:
their matrices come from memory twice, once to encode and once to decode.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edge.heads import ALIGNMENT, Array, HeadError, Residuals, Spec, aligned_empty
from edge.heads.half import finite, widened

Encoder = Literal["pca", "tied", "ae"]
ENCODERS: tuple[Encoder, ...] = ("pca", "tied", "ae")

_ARRAYS = {"pca": ("mu", "w"), "tied": ("mu", "w", "shift"), "ae": ("mu", "enc", "dec", "shift")}
_GROUP = 4  # pictures that share one pass over W
_BLOCK_BYTES = 1 << 20  # measured on a core with 2 MB of L2: 0.5 to 1.5 MB is flat, 2 MB a tenth slower
_PART = 65_536  # values whose squares are summed in float32 before float64 takes over


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


def linear_residual(
    pooled: NDArray[Any],
    mean: NDArray[Any],
    encode: NDArray[Any],
    decode: NDArray[Any],
    shift: NDArray[Any] | float = 0.0,
) -> NDArray[Any]:
    """What a linear auto-encoder leaves of pooled features: [n, D] -> [n, D], in the arrays' own precision.

    ``encode`` and ``decode``: [k, D] (the encoder, the transposed decoder); ``mean`` [D]: the decoder's bias;
    ``shift`` [k]: the code of the mean. The reference of every faster path; the fit's held-out residuals."""
    centred = pooled - mean
    residual: NDArray[Any] = centred - (centred @ encode.T + shift) @ decode
    return residual


@dataclass(frozen=True)
class _Layer:
    name: str
    shape: tuple[int, int, int]  # of the tap
    pooled: tuple[int, int, int]
    mean: Array  # [D]
    encode: Array  # [k, D]
    decode: Array  # [k, D]; ``encode`` itself but for an untied auto-encoder
    shift: Array | None  # [k]; None: the rows are orthonormal
    # Scratch: residuals in the making, their codes, and what one block of rows takes away.
    work: Array  # [_GROUP, D]
    codes: Array  # [_GROUP, k]
    share: Array  # [D]

    @property
    def blocks(self) -> list[slice]:
        """Rows that fit the second-level cache together."""
        rows = max(4, _BLOCK_BYTES // (4 * self.encode.shape[1]))
        return [slice(start, start + rows) for start in range(0, len(self.encode), rows)]


class FreHead:
    """FRE over one or several layers.

    spec: ``layers`` (list of tap names), ``detection`` (the layer whose norm is the image-level distance),
    ``pool`` (int >= 1), ``shape_<layer>`` ([C, H, W] of the tap before pooling), ``encoder`` ("pca" where absent,
    "tied", "ae"), ``gate`` (of pca: share of the threshold below which :meth:`norms` is enough; absent: none).
    arrays: ``mu_<layer>`` float32 [D], D = C h w pooled, and by encoder, in float32 or float16,
    pca: ``w_<layer>`` [k, D] with orthonormal rows;
    tied: ``w_<layer>`` [k, D], ``shift_<layer>`` float32 [k];
    ae: ``enc_<layer>`` and ``dec_<layer>`` [k, D] (encoder, transposed decoder), ``shift_<layer>`` float32 [k].
    """

    method = "fre"

    def __init__(self, spec: Spec, arrays: Mapping[str, NDArray[Any]]) -> None:
        try:
            self.taps: tuple[str, ...] = tuple(str(name) for name in spec["layers"])
            self.detection = str(spec["detection"])
            self.pool = int(spec["pool"])
            self.encoder: Encoder = spec.get("encoder", "pca")
            self.gate = None if spec.get("gate") is None else float(spec["gate"])
            shapes = {name: tuple(int(n) for n in spec[f"shape_{name}"]) for name in self.taps}
        except (KeyError, TypeError, ValueError) as error:
            raise HeadError(f"the FRE head's settings are incomplete or of the wrong type ({error})") from None
        known = self.encoder in ENCODERS
        if not self.taps or self.detection not in self.taps or self.pool < 1 or not known:
            raise HeadError(
                f"the FRE head's settings contradict themselves: layers {list(self.taps)}, detection layer"
                f" {self.detection!r}, pool {self.pool}, encoder {self.encoder!r}"
            )
        if self.gate is not None and not (0 < self.gate < 1 and self.encoder == "pca"):
            raise HeadError(f"the FRE head's gate must lie between 0 and 1 and belong to a pca, not {self.gate}")
        expected = {f"{kind}_{name}" for kind in _ARRAYS[self.encoder] for name in self.taps}
        foreign = sorted(set(arrays) - expected)
        if foreign:
            raise HeadError(f"the FRE head with encoder {self.encoder!r} has no use for the array {foreign[0]!r}")
        self._layers = [_layer(name, shapes[name], self.pool, self.encoder, arrays) for name in self.taps]

    @staticmethod
    def resident(spec: Spec, arrays: Mapping[str, NDArray[Any]]) -> Mapping[str, NDArray[Any]]:
        """The arrays with float16 matrices widened: float16 is a form of storage alone, as no product at hand reads it
        as fast as memory gives it (:mod:`edge.heads.half` takes two to three times as long)."""
        return {
            name: _wide(name, array) if array.dtype == np.float16 and array.ndim == 2 else array
            for name, array in arrays.items()
        }

    def residuals(self, taps: Mapping[str, Array]) -> Residuals:
        """See :class:`edge.heads.Head`. norms: ||r||_2 of the detection layer, in feature units.

        A picture's arithmetic is the same in every batch, to the last bit: matrix-vector products for each,
        which also beat a product with a matrix of four columns in OpenBLAS by a third.
        """
        levels: list[Array] = []
        norms: NDArray[np.float64] | None = None
        for layer in self._layers:
            maps, energies = self._maps(layer, _checked(taps, layer))
            levels.append(maps)
            if layer.name == self.detection:
                norms = np.sqrt(energies)
        return Residuals(levels, norms)

    def norms(self, taps: Mapping[str, Array]) -> NDArray[np.float64]:
        """||r||_2 of the detection layer without its map, float64 [B]: as :meth:`residuals` gives it, up to rounding.

        By Pythagoras, ||u - mu||^2 - ||W (u - mu)||^2, clamped at 0: W is read once and never decoded. The
        subtraction leaves its rounding: |error of the square| <= 2e-6 ||u - mu||^2, so that a norm is right to
        1e-6 (||u - mu|| / ||r||)^2 of itself, one part in ten thousand where a hundredth of the energy is left over.
        (Rows that were stored as float16 are orthonormal to 2e-5 only: ten times that.) Auto-encoders have no such
        identity: there this is the long way, without the other layers. Raises HeadError as :meth:`residuals` does, for
        all taps."""
        norms = np.zeros(0)
        for layer in self._layers:
            tap = _checked(taps, layer)
            if layer.name != self.detection:
                # They say nothing here, unless they are broken; then their sum of squares is not finite either.
                with np.errstate(over="ignore", invalid="ignore"):
                    _refuse_unless_finite(layer, np.array([_square(picture.reshape(-1)) for picture in tap]))
            elif layer.shift is None:
                norms = np.sqrt(np.maximum(self._energies(layer, tap), 0.0))
            else:
                norms = np.sqrt(self._maps(layer, tap)[1])
        return norms

    def _maps(self, layer: _Layer, tap: Array) -> tuple[Array, NDArray[np.float64]]:
        """The level maps, and ||r||^2 of each picture."""
        maps = np.empty((tap.shape[0], *layer.pooled[1:]), np.float32)
        with np.errstate(over="ignore", invalid="ignore"):  # judged below, once, on the sums
            for start in range(0, len(tap), _GROUP):
                group = slice(start, start + _GROUP)
                _residual_maps(layer, tap[group], self.pool, maps[group])
            energies = maps.sum(axis=(1, 2), dtype=np.float64) * layer.pooled[0]
        _refuse_unless_finite(layer, energies)
        return maps, energies

    def _energies(self, layer: _Layer, tap: Array) -> NDArray[np.float64]:
        """||u - mu||^2 - ||W (u - mu)||^2 of each picture; below 0 by rounding alone."""
        energies = np.empty(len(tap))
        with np.errstate(over="ignore", invalid="ignore"):
            for start in range(0, len(tap), _GROUP):
                work = _centred(layer, tap[start : start + _GROUP], self.pool)
                codes = _encode(layer, work).astype(np.float64)
                for place, (residual, code) in enumerate(zip(work, codes, strict=True), start):
                    energies[place] = _square(residual) - float(code @ code)
        _refuse_unless_finite(layer, energies)
        return energies


def _centred(layer: _Layer, pictures: Array, pool: int) -> Array:
    work = layer.work[: len(pictures)]
    for picture, residual in zip(pictures, work, strict=True):
        pool_mean(picture, pool, out=residual.reshape(layer.pooled))
        residual -= layer.mean
    return work


def _residual_maps(layer: _Layer, pictures: Array, pool: int, out: Array) -> None:
    work = _centred(layer, pictures, pool)
    if layer.shift is None:
        _deflate(layer, work)
    else:
        _subtract_rebuilt(layer, work, layer.shift)
    np.square(work, out=work)
    np.mean(work.reshape(len(pictures), *layer.pooled), axis=1, out=out)


def _deflate(layer: _Layer, work: Array) -> None:
    # The rows are orthogonal, so each block of them may take its share away at once, before the next is looked
    # at: W comes from memory once instead of twice, and once for the whole group.
    code = layer.codes[0]
    for rows in layer.blocks:
        block = layer.encode[rows]
        for residual in work:
            np.dot(block, residual, out=code[rows])
            np.dot(code[rows], block, out=layer.share)
            residual -= layer.share


def _encode(layer: _Layer, work: Array) -> Array:
    codes = layer.codes[: len(work)]
    for rows in layer.blocks:
        for residual, code in zip(work, codes, strict=True):
            np.dot(layer.encode[rows], residual, out=code[rows])
    return codes


def _subtract_rebuilt(layer: _Layer, work: Array, shift: Array) -> None:
    codes = _encode(layer, work)
    codes += shift
    for rows in layer.blocks:
        for residual, code in zip(work, codes, strict=True):
            np.dot(code[rows], layer.decode[rows], out=layer.share)
            residual -= layer.share


def _square(vector: Array) -> float:
    parts = (vector[start : start + _PART] for start in range(0, len(vector), _PART))
    return sum(float(part @ part) for part in parts)


def _refuse_unless_finite(layer: _Layer, sums: NDArray[np.float64]) -> None:
    if not np.isfinite(sums).all():
        raise HeadError(
            f"features of {layer.name} are not finite (NaN, infinite or far out of range): no score;"
            " check the engine and its precision (edge doctor)"
        )


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


def _layer(
    name: str, shape: tuple[int, ...], pool: int, encoder: Encoder, arrays: Mapping[str, NDArray[Any]]
) -> _Layer:
    if len(shape) != 3 or min(shape) < 1 or min(shape[1:]) < pool:
        raise HeadError(f"layer {name}: shape {list(shape)} cannot be pooled by {pool}")
    channels, height, width = shape
    pooled = pooled_shape((channels, height, width), pool)
    size = int(np.prod(pooled))
    try:
        mean, *matrices = (arrays[f"{kind}_{name}"] for kind in _ARRAYS[encoder])
    except KeyError as error:
        raise HeadError(f"the FRE head lacks the array {error}") from None
    shift = None if encoder == "pca" else matrices.pop()
    for matrix in matrices:
        if mean.shape != (size,) or matrix.ndim != 2 or matrix.shape[1] != size or matrix.shape[0] < 1:
            raise HeadError(
                f"layer {name}: arrays of shape {list(mean.shape)} and {list(matrix.shape)} do not fit"
                f" {size} pooled features"
            )
        if mean.dtype != np.float32 or matrix.dtype not in (np.float32, np.float16):
            raise HeadError(f"layer {name}: arrays are {mean.dtype} and {matrix.dtype}, not float32")
    rows = len(matrices[0])
    if len(matrices[-1]) != rows or (shift is not None and (shift.shape != (rows,) or shift.dtype != np.float32)):
        raise HeadError(f"layer {name}: encoder, decoder and shift do not belong together")
    wide = [_aligned(_wide(name, matrix) if matrix.dtype == np.float16 else matrix) for matrix in matrices]
    mean = _aligned(mean)
    if shift is None:
        # Bounds no W of ours can break: rows of length 1. A sum is also NaN if anything in it is.
        lengths = np.einsum("ij,ij->i", wide[0], wide[0], dtype=np.float32)
        if not (np.isfinite(mean).all() and np.all(np.abs(lengths - 1) < 1e-2)):
            raise HeadError(f"layer {name}: the subspace's rows are not of length 1, or not finite")
    elif not all(np.isfinite(array).all() for array in (mean, shift, *wide)):
        raise HeadError(f"layer {name}: the auto-encoder is not finite")
    scratch = [aligned_empty((_GROUP, size)), aligned_empty((_GROUP, rows)), aligned_empty((size,))]
    return _Layer(name, (channels, height, width), pooled, mean, wide[0], wide[-1], shift, *scratch)


def _wide(name: str, matrix: NDArray[Any]) -> Array:
    rows = np.ascontiguousarray(matrix)
    if not finite(rows):
        raise HeadError(f"{name}: the subspace's rows are not finite")
    wide = widened(rows)
    wide.flags.writeable = False
    return wide


def _aligned(array: Array) -> Array:
    if array.flags.c_contiguous and array.ctypes.data % ALIGNMENT == 0:
        return array
    copy = aligned_empty(array.shape)
    np.copyto(copy, array)
    return copy
