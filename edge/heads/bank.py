"""A bank of N feature maps, one row an image, and the three products that a pursuit needs of it.

Resident as float32, every product is one stream over the rows it touches. Rows then lie one cache line more than
their length apart: lengths are powers of two, and rows a power of two apart fall into the same cache sets (measured:
padding makes the product with all rows of 131,072 as fast as reading them; without, up to three times slower).

Resident as float16 (a mapped file, say), blocks of a second-level cache's size are widened
(:func:`edge.heads.half.widen`) and multiplied before the next is touched: half the memory, two to three times the time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.heads import ALIGNMENT, Array, HeadError, aligned_empty
from edge.heads.half import finite, widen

F64 = NDArray[np.float64]
Indices = NDArray[np.intp]

_COLUMNS = 8192  # a float32 sum of so many terms, the rest in float64: correlations to 5e-8, at full speed
_PART = 65_536  # of a product of two rows: fewer calls, and still good to 2e-7
_BLOCK_VALUES = 1 << 18  # float32 values widened at a time: 1 MB
_PAD = ALIGNMENT // 4
_BATCH = 3  # from so many pictures on, one matrix product beats products with vectors in OpenBLAS


class Bank:
    """Owns scratch memory: one object a thread; ``rows`` are shared."""

    def __init__(self, rows: NDArray[Any]) -> None:
        """``rows``: float32 [N, D] (rows contiguous; :func:`widened_rows` lays them out well) or float16 [N, D],
        C-contiguous; finite."""
        self.rows = rows
        self.count, self.size = rows.shape
        self._half = rows.dtype == np.float16
        self._scratch = aligned_empty((max(_BLOCK_VALUES, self.count) if self._half else 0,))

    def correlate(self, pictures: Sequence[Array]) -> F64:
        """x_n^T y of every row and picture (float32 [D] each): float64 [B, N]. The rows are read once."""
        total = np.zeros((len(pictures), self.count))
        step = self._step(self.count) if self._half else _COLUMNS
        for start in range(0, self.size, step):
            columns = slice(start, start + step)
            block = self._all_rows(columns)
            if len(pictures) < _BATCH:
                for sums, picture in zip(total, pictures, strict=True):
                    sums += block @ picture[columns]
            else:
                total += (block @ np.stack([picture[columns] for picture in pictures], axis=1)).T
        return total

    def correlate_rows(self, picture: Array, rows: Indices) -> F64:
        """x_n^T y of some rows and one picture: float64 [len(rows)]."""
        total = np.zeros(len(rows))
        if not self._half:
            # Part after part: that of the picture stays in the cache for all rows.
            for start in range(0, self.size, _PART):
                part = picture[start : start + _PART]
                for place, row in enumerate(rows):
                    total[place] += self.rows[row, start : start + _PART] @ part
            return total
        step = self._step(len(rows))
        for start in range(0, self.size, step):
            columns = slice(start, start + step)
            total += self._some_rows(rows, columns) @ picture[columns]
        return total

    def subtract(self, rows: Indices, coefficients: F64, picture: Array) -> None:
        """picture -= sum_k coefficients[k] x_rows[k], in place; float32 [D]."""
        if not len(rows):
            return
        factors = coefficients.astype(np.float32)
        step = self._step(len(rows))
        for start in range(0, self.size, step):
            columns = slice(start, start + step)
            picture[columns] -= factors @ self._some_rows(rows, columns)

    def _step(self, rows: int) -> int:
        return min(self.size, max(64, _BLOCK_VALUES // max(1, rows) // 64 * 64))

    def _all_rows(self, columns: slice) -> Array:
        part = self.rows[:, columns]
        return self._widened(part) if self._half else part

    def _some_rows(self, rows: Indices, columns: slice) -> Array:
        part = self.rows[rows, columns]  # gathered, in blocks that stay in the cache
        return self._widened(part) if self._half else part

    def _widened(self, part: NDArray[Any]) -> Array:
        if part.size > len(self._scratch):
            self._scratch = aligned_empty((part.size,))
        block: Array = self._scratch[: part.size].reshape(part.shape)
        widen(part, block)
        return block


def dot(one: Array, other: Array) -> float:
    """one^T other of float32 [D], in parts that are summed in float64."""
    if len(one) <= _PART:
        return float(one @ other)
    return sum(float(one[a : a + _PART] @ other[a : a + _PART]) for a in range(0, len(one), _PART))


def widened_bytes(rows: NDArray[Any]) -> int:
    """Memory that :func:`widened_rows` takes."""
    return int(rows.shape[0] * (rows.shape[1] + _PAD) * 4)


def widened_rows(rows: NDArray[Any], name: str) -> Array:
    """float16 [N, D] rows as float32, padded as this module wants them, read-only. Raises HeadError for values that
    are not finite."""
    count, size = rows.shape
    result = aligned_empty((count, size + _PAD))[:, :size]
    step = max(1, _BLOCK_VALUES)
    for source, target in zip(rows, result, strict=True):
        if not finite(source):
            raise HeadError(f"{name}: the bank holds values that are not finite")
        for start in range(0, size, step):
            widen(source[start : start + step], target[start : start + step])
    result.flags.writeable = False
    return result
