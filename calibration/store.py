"""What is kept of every good picture, one array a name: in memory, or in a mapped file where memory does not do."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.errors import ResourceError
from edge.memory import available_bytes, gigabytes

_SHARE = 0.8  # of what the machine can give: the fit's own work needs the rest


class Store:
    """Rows of ``count`` pictures at most, of the first row's shapes and dtypes.

    overflow: the folder of a nameless file that takes what memory does not; None: such pictures are refused."""

    def __init__(self, count: int, overflow: Path | None = None) -> None:
        self._count = count
        self._overflow = overflow
        self._rows: dict[str, NDArray[Any]] = {}
        self._used = 0

    def add(self, picture: Mapping[str, NDArray[Any]]) -> None:
        """Append a picture. Raises ResourceError at the first one when all of them will not fit into memory (nor onto
        the disk)."""
        if not self._rows:
            needed = self._count * sum(values.nbytes for values in picture.values())
            free = available_bytes()
            fits = free is None or needed <= _SHARE * free
            if not fits and self._overflow is None:
                raise ResourceError(
                    f"the features of {self._count} good pictures need {gigabytes(needed)} of memory and"
                    f" {gigabytes(free or 0)} are free; take fewer pictures, fewer or deeper layers, or a smaller"
                    " --size"
                )
            self._rows = {
                name: self._empty((self._count, *values.shape), values.dtype, fits) for name, values in picture.items()
            }
        for name, values in picture.items():
            self._rows[name][self._used] = values
        self._used += 1

    def _empty(self, shape: tuple[int, ...], dtype: np.dtype[Any], fits: bool) -> NDArray[Any]:
        if fits or self._overflow is None:
            return np.empty(shape, dtype)
        size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        try:
            self._overflow.mkdir(parents=True, exist_ok=True)
            # Without a name: it is gone with the process, however that ends. The mapping outlives the descriptor.
            with tempfile.TemporaryFile(dir=self._overflow) as file:
                os.posix_fallocate(file.fileno(), 0, size)  # a hole would be a SIGBUS on a disk that is full later
                return np.memmap(file, dtype, "r+", shape=shape)
        except OSError as error:
            raise ResourceError(
                f"the features of {self._count} good pictures do not fit into memory, and {gigabytes(size)} not into"
                f" {self._overflow} ({error.strerror}); free space or choose another --out"
            ) from None

    def arrays(self) -> dict[str, NDArray[Any]]:
        """What was added, [n, ...] a name, without copying."""
        return {name: rows[: self._used] for name, rows in self._rows.items()}
