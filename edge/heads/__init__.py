"""Heads: run-time arithmetic that turns backbone taps into residuals. The door of the package.

A head knows neither files, cameras nor threads: taps in, level maps (and for some methods a norm) out. What
all methods share (upsampling, fusion, smoothing, calibration) lies in :mod:`edge.heads.tail` and
:mod:`edge.heads.scorer`. Fit, evaluation and the daemon use this one arithmetic.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from edge.errors import HeadError

__all__ = [
    "METHODS",
    "Array",
    "Head",
    "HeadError",
    "Residuals",
    "Spec",
    "aligned_empty",
    "load_head",
    "resident_arrays",
    "single_thread",
]

Array = NDArray[np.float32]
Spec = Mapping[str, Any]
"""Flat settings of a head: strings, numbers and lists of them, as stored in the bundle's manifest."""

METHODS: dict[str, str] = {
    "fair": "edge.heads.graph_maps:FairHead",
    "fre": "edge.heads.fre:FreHead",
    "grad": "edge.heads.graph_maps:GradHead",
    "hfra": "edge.heads.graph_maps:HfraHead",
    "sgfr": "edge.heads.sgfr:SgfrHead",
}
"""Method name -> "module:class". Imported when used, so that a device pays only for the method it runs."""

ALIGNMENT = 64  # a cache line, and the width of an AVX-512 register


@dataclass(frozen=True)
class Residuals:
    """What a head finds in B pictures.

    levels: one float32 [B, h, w] map a level, every value finite and >= 0, unit and size free per level.
    norms: float64 [B], the method's own image-level distance (>= 0), or None where it has none.
    """

    levels: list[Array]
    norms: NDArray[np.float64] | None


class Head(Protocol):
    """One method's run-time arithmetic. Not safe for use from two threads at once (it owns scratch
    memory)."""

    method: str
    taps: tuple[str, ...]

    def residuals(self, taps: Mapping[str, Array]) -> Residuals:
        """Distances of B pictures to what the nominal pictures span.

        ``taps``: name -> float32 [B, C, h, w], at least the names in :attr:`taps`; read only, never changed.
        Raises HeadError for a missing tap, another shape or dtype, and features that are not finite.
        """
        ...


def load_head(method: str, spec: Spec, arrays: Mapping[str, NDArray[Any]]) -> Head:
    """Build the head of ``method`` from a bundle's ``spec`` and arrays (shared, not copied, where they are
    float32 and aligned). Raises HeadError for an unknown method or arrays that do not fit the spec."""
    return _head_class(method)(spec, arrays)


def resident_arrays(method: str, spec: Spec, arrays: Mapping[str, NDArray[Any]]) -> Mapping[str, NDArray[Any]]:
    """The arrays in the form that the method's heads work with and share; ``arrays`` itself for most methods.

    Raises HeadError for an unknown method or damaged arrays, ResourceError where memory does not do."""
    convert = getattr(_head_class(method), "resident", None)
    return arrays if convert is None else convert(spec, arrays)


def _head_class(method: str) -> Any:
    where = METHODS.get(method)
    if where is None:
        raise HeadError(
            f"unknown method {method!r}; this version knows {', '.join(sorted(METHODS))}"
            " (a newer edge-inspect may know it)"
        )
    module, name = where.split(":")
    return getattr(import_module(module), name)


def single_thread() -> None:
    """Limit BLAS and OpenCV to one thread in this process, for good.

    A BLAS call that is split over threads adds in another order, so scores would depend on the machine's
    cores; and a head is bound by memory bandwidth, where a second thread buys little. Parallelism is by
    process.
    """
    threadpool_limits(limits=1, user_api="blas")
    cv2.setNumThreads(1)


def aligned_empty(shape: tuple[int, ...], dtype: Any = np.float32) -> NDArray[Any]:
    """An uninitialised C-contiguous array that starts on a cache line.

    Same alignment in every process, so that BLAS kernels take the same path and give the same last bit.
    """
    dtype = np.dtype(dtype)
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    raw = np.empty(size + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + size].view(dtype).reshape(shape)
