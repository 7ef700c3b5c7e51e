"""What is kept of every good picture, in memory, one array a name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.errors import ResourceError
from edge.memory import available_bytes, gigabytes

_SHARE = 0.8  # of what the machine can give: the fit's own work needs the rest


class Store:
    """Rows of ``count`` pictures at most, of the first row's shapes and dtypes."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._rows: dict[str, NDArray[Any]] = {}
        self._used = 0

    def add(self, picture: Mapping[str, NDArray[Any]]) -> None:
        """Append a picture. Raises ResourceError at the first one when all of them will not fit into memory."""
        if not self._rows:
            needed = self._count * sum(values.nbytes for values in picture.values())
            free = available_bytes()
            if free is not None and needed > _SHARE * free:
                raise ResourceError(
                    f"the features of {self._count} good pictures need {gigabytes(needed)} of memory and"
                    f" {gigabytes(free)} are free; take fewer pictures, fewer or deeper layers, or a smaller --size"
                )
            self._rows = {
                name: np.empty((self._count, *values.shape), values.dtype) for name, values in picture.items()
            }
        for name, values in picture.items():
            self._rows[name][self._used] = values
        self._used += 1

    def arrays(self) -> dict[str, NDArray[Any]]:
        """What was added, [n, ...] a name, without copying."""
        return {name: rows[: self._used] for name, rows in self._rows.items()}
