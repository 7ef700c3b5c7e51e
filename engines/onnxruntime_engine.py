"""Backbones on ONNX Runtime, on the CPU: the second opinion, and for machines that OpenVINO does not
serve."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.errors import EngineError, brief
from engines.runtime import (
    EngineInfo,
    Images,
    Maps,
    check_images,
    check_options,
    check_out,
    read_graph,
    read_input,
    read_taps,
)


def import_onnxruntime() -> Any:
    """The ``onnxruntime`` package. Raises EngineError where it is not installed or does not load."""
    try:
        import onnxruntime
    except ImportError as error:
        raise EngineError(
            f'onnxruntime cannot be imported ({brief(error)}): install the extra "onnxruntime" '
            "(edge-inspect[onnxruntime]), or choose the runtime openvino"
        ) from None
    return onnxruntime


class OnnxRuntimeEngine:
    """An Engine on ONNX Runtime. f32 only; a graph's unasked taps are computed all the same (export
    fewer)."""

    info: EngineInfo

    def __init__(
        self,
        graph: bytes | Path,
        *,
        precision: str = "f32",
        threads: int = 1,
        taps: Sequence[str] | None = None,
    ) -> None:
        """Opens ``graph``. See ``engines.open_engine`` for the arguments."""
        check_options(precision, threads)
        if precision != "f32":
            raise EngineError(f"onnxruntime runs in f32 only here: choose openvino for {precision}")
        data, digest = read_graph(graph)
        ort = import_onnxruntime()
        ort.disable_telemetry_events()
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 4  # what matters comes as an exception
        # Waiting threads would spin on the cores that the other stages need.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session: Any = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its many error classes share no base but Exception
            raise EngineError(f"the graph is not a readable ONNX file ({brief(error)}): export it again") from None
        sources = self._session.get_inputs()
        if len(sources) != 1:
            raise EngineError(f"the graph has {len(sources)} inputs instead of one: not a backbone of ours")
        (source,) = sources
        outputs = [(output.name, _shape(output)) for output in self._session.get_outputs()]
        self._input = source.name
        self._binding: Any = self._session.io_binding()
        self.info = EngineInfo(
            runtime=f"onnxruntime {ort.__version__}",
            device=_processor(),
            precision=precision,
            threads=threads,
            graph_sha256=digest,
            input_size=read_input(source.name, source.type == "tensor(uint8)", _shape(source)),
            taps=read_taps(outputs, taps),
        )

    def infer(self, images: Images, out: Mapping[str, NDArray[np.float32]] | None = None) -> Maps:
        """See ``Engine.infer``."""
        if self._session is None:
            raise EngineError("the engine is closed: open it again")
        images = check_images(images, self.info)
        maps = check_out(out, self.info, len(images))
        binding = self._binding
        binding.bind_input(self._input, "cpu", 0, np.uint8, images.shape, images.ctypes.data)
        for name, array in maps.items():
            binding.bind_output(name, "cpu", 0, np.float32, array.shape, array.ctypes.data)
        try:
            self._session.run_with_iobinding(binding)
        except Exception as error:  # see above
            raise EngineError(f"onnxruntime failed on a batch of {len(images)}: {brief(error)}") from None
        finally:
            binding.clear_binding_inputs()
            binding.clear_binding_outputs()
        return maps

    def warm_up(self, batch: int) -> None:
        """See ``Engine.warm_up``."""
        self.infer(np.zeros((batch, *self.info.input_size, 3), np.uint8))

    def close(self) -> None:
        """See ``Engine.close``."""
        self._session = self._binding = None


def _shape(port: Any) -> tuple[int | None, ...]:
    return tuple(size if isinstance(size, int) else None for size in port.shape or ())


def _processor() -> str:
    """The processor's full name, as Linux gives it, or what Python knows."""
    try:
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
