"""Backbones and how they run: ``open_engine(builtin_graph())`` gives an engine that maps pictures to taps.

Importing this package loads no runtime; ``open_engine`` loads the one it needs. Exporting
(``engines.export``) is for machines that fit, and loads onnx, and torch for torch files.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

from engines.errors import EngineError
from engines.runtime import Engine, EngineInfo, Tap
from engines.shipped import BUILTIN_SIZE, builtin_graph

RUNTIMES = ("openvino", "onnxruntime")

__all__ = [
    "BUILTIN_SIZE",
    "RUNTIMES",
    "Engine",
    "EngineError",
    "EngineInfo",
    "Tap",
    "builtin_graph",
    "open_engine",
]


def open_engine(
    graph: bytes | Path,
    *,
    runtime: str = "auto",
    precision: str = "f32",
    threads: int = 1,
    cache_dir: Path | None = None,
    taps: Sequence[str] | None = None,
) -> Engine:
    """Opens an ONNX graph (bytes or a file) that ``engines.export`` wrote.

    ``runtime``: "openvino", "onnxruntime", or "auto" (the first of them that is installed). ``precision``:
    "f32", or "bf16" where the processor has it (OpenVINO only). ``threads``: 1 to 256. ``cache_dir``: a
    folder for compiled blobs (OpenVINO; ONNX Runtime compiles nothing worth keeping). ``taps``: which
    outputs, in which order; all of the graph's by default.

    Raises EngineError, in one line, for a graph that is missing, damaged or not a backbone, an option that
    this machine cannot serve, and a runtime that is not installed.
    """
    if runtime == "auto":
        runtime = next((name for name in RUNTIMES if importlib.util.find_spec(name)), RUNTIMES[0])
    if runtime == "openvino":
        from engines.openvino_engine import OpenVINOEngine

        return OpenVINOEngine(graph, precision=precision, threads=threads, cache_dir=cache_dir, taps=taps)
    if runtime == "onnxruntime":
        from engines.onnxruntime_engine import OnnxRuntimeEngine

        return OnnxRuntimeEngine(graph, precision=precision, threads=threads, taps=taps)
    raise EngineError(f"runtime {runtime!r} is not known: choose auto, {' or '.join(RUNTIMES)}")
