"""Exact snapshot PCA: principal axes of few pictures of very many features, without torch.

With N << D the principal axes are combinations of the pictures: K = X X^T (N x N, float64, X centred),
K = V L V^T, W = L_k^(-1/2) V_k^T X. And so is every residual of a model fitted on part of the pictures: one
matrix C (N x N) of coefficients gives the held-out residuals of all folds as R = C X, a single product, from
K alone. All products run over chunks of columns, so that memory is the float16 features plus a few chunks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.errors import DataError
from edge.heads.half import finite, widened

Features = NDArray[np.float16]  # [N, C, h, w], pooled
F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

_CHUNK_VALUES = 1 << 23  # float64 values a chunk may hold: 64 MB
_RANK_LIMIT = 1e-9  # of the largest eigenvalue: what float16 features leave of a zero is far above


@dataclass(frozen=True)
class Subspace:
    """mean float32 [D]; basis float32 [k, D] with orthonormal rows; eigenvalues of K, descending."""

    mean: F32
    basis: F32
    eigenvalues: F64


@dataclass(frozen=True)
class HeldOut:
    """Residuals of pictures under models fitted without them: maps float32 [N, h, w] (mean over channels
    of r^2), norms float64 [N] (||r||_2)."""

    maps: F32
    norms: F64


def count_components(eigenvalues: F64, variance: float) -> int:
    """Components to keep: the smallest count whose cumulative share is > ``variance`` (scikit-learn's rule,
    ``searchsorted(side="right") + 1``), at most the numerical rank.

    ``eigenvalues``: descending, [N]. Raises DataError when they are all zero."""
    rank = int(np.sum(eigenvalues > _RANK_LIMIT * eigenvalues[0])) if eigenvalues[0] > 0 else 0
    if rank == 0:
        raise DataError(
            "the good pictures do not differ from each other at all (copies of one picture?): there is no"
            " variation to learn; take pictures of different good parts"
        )
    kept = eigenvalues[:rank]
    share = np.cumsum(kept) / np.sum(kept)
    return min(rank, int(np.searchsorted(share, variance, side="right")) + 1)


def eigenvalues(gram_matrix: F64) -> F64:
    """Eigenvalues of a Gram matrix, descending, not below 0: float64 [N]."""
    return _eigen(gram_matrix)[0]


def recentre(gram_matrix: F64) -> F64:
    """The Gram matrix of the same pictures centred by their own mean, whatever centre they had before."""
    rows = gram_matrix.mean(axis=1, keepdims=True)
    centred: F64 = gram_matrix - rows - rows.T + gram_matrix.mean()
    return centred


def mean_of(features: Features) -> F64:
    """Mean picture, float64 [D]."""
    flat = features.reshape(len(features), -1)
    mean = np.empty(flat.shape[1], np.float64)
    for columns in _chunks(flat):
        mean[columns] = _wide(flat[:, columns]).mean(axis=0, dtype=np.float64)
    return mean


def gram(features: Features, mean: F64) -> F64:
    """K = (X - mean)(X - mean)^T, float64 [N, N]: ``features`` [N, ...] flattened, accumulated in float64.

    Raises DataError when features are not finite (float16 ends at 65504)."""
    flat = features.reshape(len(features), -1)
    if not finite(np.ascontiguousarray(flat)):
        raise DataError("some features are not finite or above 65504 (float16's end); check the backbone's weights")
    total = np.zeros((len(flat), len(flat)))
    for columns in _chunks(flat):
        block = _wide(flat[:, columns]).astype(np.float64)
        block -= mean[columns]
        total += block @ block.T
    return total


def fit_subspace(features: Features, mean: F64, gram_matrix: F64, variance: float) -> Subspace:
    """The principal subspace that keeps ``variance`` (share in (0, 1)) of the pictures' variance.

    ``gram_matrix`` is that of the features centred by ``mean``."""
    flat = features.reshape(len(features), -1)
    values, vectors = _eigen(gram_matrix)
    k = count_components(values, variance)
    mix = (vectors[:, :k] / np.sqrt(values[:k])).T  # [k, N]
    basis = np.empty((k, flat.shape[1]), np.float32)
    for columns in _chunks(flat):
        block = _wide(flat[:, columns]).astype(np.float64)
        block -= mean[columns]
        basis[:, columns] = mix @ block
    return Subspace(mean.astype(np.float32), basis, values)


def held_out(
    features: Features, mean: F64, gram_matrix: F64, folds: Sequence[NDArray[np.intp]], variance: float
) -> HeldOut:
    """Every picture's residual under the model fitted on all folds but its own. ``folds`` partition the
    pictures (or some of them: a picture in no fold is never held out, and its residual is that of
    coefficients zero)."""
    flat = features.reshape(len(features), -1)
    _, channels, height, width = features.shape
    mix = held_out_mix(gram_matrix, folds, variance).astype(np.float32)
    # The rows of the mix add to zero: any centre gives the same residual, and this one cancels least.
    sums = residual_squares(features, mix, mean).reshape(len(flat), -1)
    norms = np.sqrt(sums.sum(axis=1, dtype=np.float64))
    return HeldOut((sums / np.float32(channels)).reshape(-1, height, width), norms)


def residual_squares(features: Features, mix: NDArray[np.floating[Any]], centre: F64 | None = None) -> F32:
    """Sums over channels of squares of the combinations sum_j mix_ij (x_j - centre): float32 [n, h, w] for ``mix``
    [n, N] and ``features`` [N, C, h, w], all products in float32."""
    flat = features.reshape(len(features), -1)
    height, width = features.shape[2:]
    pixels = height * width
    mix = mix.astype(np.float32, copy=False)
    sums = np.zeros((len(mix), pixels), np.float32)
    for columns in _chunks(flat, multiple_of=pixels):
        block = _wide(flat[:, columns])
        if centre is not None:
            block -= centre[columns].astype(np.float32)
        residual = mix @ block
        np.square(residual, out=residual)
        sums += residual.reshape(len(mix), -1, pixels).sum(axis=1)
    return sums.reshape(-1, height, width)


def held_out_mix(gram_matrix: F64, folds: Sequence[NDArray[np.intp]], variance: float) -> F64:
    """C, float64 [N, N], with residual_i = sum_j C_ij x_j under the model fitted without i's fold.

    For a fold's training set T (n pictures, centred by their own mean m_T): K_T = J K[T,T] J = V L V^T. A
    held-out x has the centred inner products k = J (K[T, x] - K[T,T] 1 / n), its reconstruction is the
    combination J V_k L_k^-1 V_k^T k of T, and its residual x - m_T minus that."""
    count = len(gram_matrix)
    mix = np.zeros((count, count))
    for test in folds:
        train = np.setdiff1d(np.arange(count), test)
        inner = gram_matrix[np.ix_(train, train)]
        values, vectors = _eigen(recentre(inner))
        k = count_components(values, variance)
        basis = vectors[:, :k]
        cross = gram_matrix[np.ix_(train, test)] - inner.mean(axis=1, keepdims=True)
        cross -= cross.mean(axis=0)
        rebuilt = basis @ ((basis.T @ cross) / values[:k, None])  # [n, test]
        rebuilt -= rebuilt.mean(axis=0)
        mix[np.ix_(test, train)] = -rebuilt.T - 1.0 / len(train)
        mix[test, test] += 1.0
    return mix


def _eigen(matrix: F64) -> tuple[F64, F64]:
    values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
    return np.maximum(values[::-1], 0.0), vectors[:, ::-1]


def _wide(part: NDArray[np.float16]) -> F32:
    return widened(np.ascontiguousarray(part))


def _chunks(flat: NDArray[np.float16], multiple_of: int = 1) -> Iterator[slice]:
    step = max(1, _CHUNK_VALUES // max(1, len(flat)) // multiple_of) * multiple_of
    for start in range(0, flat.shape[1], step):
        yield slice(start, min(start + step, flat.shape[1]))
