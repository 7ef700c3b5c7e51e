"""The face that every runtime shows: an engine takes uint8 pictures and gives the taps as float32 maps."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from engines.errors import EngineError

MAX_GRAPH_BYTES = 1 << 30
MAX_THREADS = 256
PRECISIONS = ("f32", "bf16")

Images = NDArray[np.uint8]
Maps = dict[str, NDArray[np.float32]]
Dimension = int | None  # None: dynamic


@dataclass(frozen=True)
class Tap:
    """One output: ``name`` ("layer1" ...), and the shape of its maps, float32 [batch, channels, height,
    width]."""

    name: str
    channels: int
    height: int
    width: int


@dataclass(frozen=True)
class EngineInfo:
    """What runs: enough to say whether two scores came from the same arithmetic.

    ``runtime``: name and version; ``device``: the processor's full name; ``precision``: "f32" or "bf16";
    ``graph_sha256``: of the ONNX bytes; ``input_size``: (height, width) in pixels; ``taps``: in output order.
    """

    runtime: str
    device: str
    precision: str
    threads: int
    graph_sha256: str
    input_size: tuple[int, int]
    taps: tuple[Tap, ...]


class Engine(Protocol):
    """A backbone that runs. Not thread-safe: one engine, one thread at a time."""

    @property
    def info(self) -> EngineInfo: ...

    def infer(self, images: Images, out: Mapping[str, NDArray[np.float32]] | None = None) -> Maps:
        """The taps of ``images``, uint8 RGB [batch, height, width, 3] of ``info.input_size``.

        ``images`` is read where it lies if it is C-contiguous, also from read-only memory (a mapped slot);
        otherwise it is copied first. ``out``: one writable, C-contiguous float32 array [batch, channels,
        height, width] for every tap; the maps are written into them and they are returned. Without ``out``
        the arrays are fresh and the caller's own. The engine keeps no reference to either after the call.

        Raises EngineError for another dtype, rank, size or layout, a missing ``out``, or a closed engine.
        """
        ...

    def warm_up(self, batch: int) -> None:
        """Does now what would make the first call with a batch of this size (at least 1) a slow one."""
        ...

    def close(self) -> None:
        """Frees the runtime's memory. May be called again."""
        ...


def read_graph(graph: bytes | Path) -> tuple[bytes, str]:
    """The bytes of an ONNX graph and their SHA-256. Raises EngineError for a file that cannot be read."""
    data = graph if isinstance(graph, bytes) else _read(graph)
    if not data:
        raise EngineError("the graph is empty: export it again")
    return data, hashlib.sha256(data).hexdigest()


def _read(path: Path) -> bytes:
    try:
        if path.stat().st_size > MAX_GRAPH_BYTES:
            raise EngineError(f"graph {path}: larger than {MAX_GRAPH_BYTES >> 20} MiB, not a backbone")
        return path.read_bytes()
    except OSError as error:
        raise EngineError(f"graph {path}: cannot be read ({error.strerror})") from None


def check_options(precision: str, threads: int) -> None:
    """Raises EngineError unless ``precision`` is known and ``threads`` is 1 to MAX_THREADS."""
    if precision not in PRECISIONS:
        raise EngineError(f"precision {precision!r} is not known: choose one of {', '.join(PRECISIONS)}")
    if isinstance(threads, bool) or not isinstance(threads, int) or not 1 <= threads <= MAX_THREADS:
        raise EngineError(f"threads must be a whole number from 1 to {MAX_THREADS}. Got {threads!r}")


def read_taps(found: Sequence[tuple[str, Sequence[Dimension]]], taps: Sequence[str] | None) -> tuple[Tap, ...]:
    """The graph's outputs, given as (name, shape), as Taps: those of ``taps`` in this order, or all."""
    shapes = {name: tuple(shape) for name, shape in found}
    chosen = tuple(shapes) if taps is None else tuple(taps)
    missing = [name for name in chosen if name not in shapes]
    if missing or not chosen or len(set(chosen)) != len(chosen):
        wrong = f"no output {missing[0]!r}" if missing else "no outputs asked for, or one twice"
        raise EngineError(f"the graph has {wrong}; it has {', '.join(shapes)}")
    result = []
    for name in chosen:
        shape = shapes[name]
        fixed = [size for size in shape[1:] if size is not None]
        if len(shape) != 4 or len(fixed) != 3:
            raise EngineError(f"the graph's output {name!r} is not [batch, channels, height, width]: {shape}")
        result.append(Tap(name, *fixed))
    return tuple(result)


def read_input(name: str, is_uint8: bool, shape: Sequence[Dimension]) -> tuple[int, int]:
    """(height, width) of the graph's input. Raises EngineError unless it is uint8 [batch, h, w, 3]."""
    height, width = (shape[1], shape[2]) if len(shape) == 4 else (None, None)
    if not is_uint8 or height is None or width is None or shape[3] != 3:
        raise EngineError(
            f"the graph's input {name!r} is not uint8 [batch, height, width, 3] of fixed size: "
            "export it with `edge engine export`"
        )
    return height, width


def check_images(images: Images, info: EngineInfo) -> Images:
    """``images``, C-contiguous. Raises EngineError unless it is uint8 [batch, height, width, 3], batch >=
    1."""
    height, width = info.input_size
    given = images if isinstance(images, np.ndarray) else np.empty(0, dtype=object)
    if given.dtype != np.uint8 or given.ndim != 4 or not len(given) or given.shape[1:] != (height, width, 3):
        raise EngineError(
            f"images must be uint8 [batch, {height}, {width}, 3], batch at least 1. Got {_describe(images)}"
        )
    return np.ascontiguousarray(given)


def check_out(out: Mapping[str, NDArray[np.float32]] | None, info: EngineInfo, batch: int) -> Maps:
    """``out`` checked and in the order of the taps, or fresh arrays. Raises EngineError naming the wrong
    one."""
    if out is None:
        return {t.name: np.empty((batch, t.channels, t.height, t.width), np.float32) for t in info.taps}
    names = {tap.name for tap in info.taps}
    if out.keys() != names:
        raise EngineError(f"out must name the taps {sorted(names)}. Got {sorted(out)}")
    for tap in info.taps:
        array, shape = out[tap.name], (batch, tap.channels, tap.height, tap.width)
        good = isinstance(array, np.ndarray) and array.dtype == np.float32 and array.shape == shape
        if not good or not array.flags.c_contiguous or not array.flags.writeable or not array.flags.aligned:
            raise EngineError(
                f"out[{tap.name!r}] must be writable, C-contiguous float32 {shape}. Got {_describe(array)}"
            )
    return {tap.name: out[tap.name] for tap in info.taps}


def _describe(array: Any) -> str:
    if not isinstance(array, np.ndarray):
        return type(array).__name__
    layout = "" if array.flags.c_contiguous else ", not C-contiguous"
    return f"{array.dtype} {array.shape}{layout}{'' if array.flags.writeable else ', read-only'}"
