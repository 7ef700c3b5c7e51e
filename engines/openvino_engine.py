"""Backbones on OpenVINO, on the CPU."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.cache import BlobCache
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

_DEVICE = "CPU"

# The batch sizes compiled for each precision, each when first needed; a batch runs as pieces of these sizes,
# largest first. All are static, for dynamic shapes cost up to 25 % (2 cores, built-in: bf16 25 %, f32 6 %).
# f32 has the one form of a single picture: a score then cannot depend on the company a picture came in, and a
# true batch of 4 would save 6 % at most. In bf16 it saves up to 29 %, and 8 no more than 4.
_FORMS = {"f32": (1,), "bf16": (4, 1)}


def import_openvino() -> Any:
    """The ``openvino`` package, without its telemetry.

    ``import openvino`` loads its model converter (openvino.tools.ovc), which sends an event to a web
    analytics service and writes an identifier into the home folder, unless somebody has opted out by hand;
    it is also more than half of the import's time. The package itself treats the converter as optional, so
    it is hidden while openvino is imported. Raises EngineError where openvino is not installed or does not
    load.
    """
    converter = "openvino.tools.ovc"
    hide = "openvino" not in sys.modules and converter not in sys.modules
    if hide:
        sys.modules[converter] = None  # type: ignore[assignment]  # "import it" now raises ImportError
    try:
        import openvino
    except ImportError as error:
        raise EngineError(
            f"openvino cannot be imported ({brief(error)}): install edge-inspect again, "
            'or its extra "onnxruntime" and choose that runtime'
        ) from None
    finally:
        if hide:
            del sys.modules[converter]
    return openvino


class OpenVINOEngine:
    """An Engine on OpenVINO: bound input and outputs, explicit precision, one stream, no thread pinning."""

    info: EngineInfo

    def __init__(
        self,
        graph: bytes | Path,
        *,
        precision: str = "f32",
        threads: int = 1,
        cache_dir: Path | None = None,
        taps: Sequence[str] | None = None,
    ) -> None:
        """Opens ``graph`` and compiles it for one picture. See ``engines.open_engine`` for the arguments."""
        check_options(precision, threads)
        self._graph, digest = read_graph(graph)
        self._ov = import_openvino()
        self._core = self._ov.Core()
        self._core.set_property({"CACHE_DIR": ""})  # only our own cache, whose keys we know
        device = str(self._core.get_property(_DEVICE, "FULL_DEVICE_NAME")).strip()
        abilities = self._core.get_property(_DEVICE, "OPTIMIZATION_CAPABILITIES")
        if precision == "bf16" and "BF16" not in abilities:
            raise EngineError(f"this processor ({device}) has no bf16 arithmetic: choose precision f32")
        self._forms = _FORMS[precision]
        self._config = {
            "INFERENCE_PRECISION_HINT": precision,  # left to itself, OpenVINO takes bf16 where it can
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "INFERENCE_NUM_THREADS": threads,
            # Every process would pin its threads to the same first cores, and the stages share the machine.
            "ENABLE_CPU_PINNING": False,
        }
        self._taps = None if taps is None else tuple(taps)
        self._cache = None if cache_dir is None else BlobCache(cache_dir)
        version = str(self._ov.get_version())
        self._key = {
            "graph": digest,
            "taps": "*" if self._taps is None else ",".join(self._taps),
            "runtime": f"openvino {version}",
            "device": device,
            "abilities": ",".join(sorted(abilities)),
            "config": repr(sorted(self._config.items())),
        }
        self._requests: dict[int, Any] = {}
        compiled = self._compile(1)
        (source,) = compiled.inputs
        outputs = [(output.get_any_name(), _shape(output)) for output in compiled.outputs]
        self.info = EngineInfo(
            runtime=f"openvino {version.split('-')[0]}",
            device=device,
            precision=precision,
            threads=threads,
            graph_sha256=digest,
            input_size=read_input(source.get_any_name(), True, _shape(source)),
            taps=read_taps(outputs, self._taps),
        )
        self._requests[1] = compiled.create_infer_request()

    def infer(self, images: Images, out: Mapping[str, NDArray[np.float32]] | None = None) -> Maps:
        """See ``Engine.infer``. In f32 a picture's maps have the same bits in a batch of any size."""
        if not self._requests:
            raise EngineError("the engine is closed: open it again")
        images = check_images(images, self.info)
        maps = check_out(out, self.info, len(images))
        tensor = self._ov.Tensor
        for start, size in pieces(len(images), self._forms):
            request = self._request(size)
            piece = slice(start, start + size)
            # Both ends are bound anew on every call (microseconds): a request holds addresses, not
            # references, so it must never run on what an earlier caller has meanwhile unmapped.
            request.set_input_tensor(tensor(_writable_alias(images[piece]), shared_memory=True))
            for index, tap in enumerate(self.info.taps):
                request.set_output_tensor(index, tensor(maps[tap.name][piece], shared_memory=True))
            try:
                request.infer(share_outputs=True)
            except RuntimeError as error:
                raise EngineError(f"openvino failed on a batch of {size}: {brief(error)}") from None
        return maps

    def warm_up(self, batch: int) -> None:
        """See ``Engine.warm_up``."""
        self.infer(np.zeros((batch, *self.info.input_size, 3), np.uint8))

    def close(self) -> None:
        """See ``Engine.close``."""
        self._requests.clear()
        self._graph = b""

    def _request(self, size: int) -> Any:
        if size not in self._requests:
            self._requests[size] = self._compile(size).create_infer_request()
        return self._requests[size]

    def _compile(self, batch: int) -> Any:
        key = {**self._key, "batch": str(batch)}
        blob = None if self._cache is None else self._cache.get(key)
        if blob is not None:
            try:
                return self._core.import_model(blob, _DEVICE, self._config)
            except RuntimeError:
                pass  # an intact blob that this runtime refuses: compile anew and replace it
        try:
            compiled = self._core.compile_model(self._model(batch), _DEVICE, self._config)
        except RuntimeError as error:
            raise EngineError(f"openvino cannot compile the graph ({brief(error)})") from None
        if self._cache is not None:
            exported = compiled.export_model()
            self._cache.put(key, exported.getvalue() if isinstance(exported, io.BytesIO) else bytes(exported))
        return compiled

    def _model(self, batch: int) -> Any:
        """The graph with the asked taps only (the rest is then not computed) and a fixed batch size."""
        try:
            model = self._core.read_model(self._graph)
        except RuntimeError as error:
            raise EngineError(f"the graph is not a readable ONNX file ({brief(error)}): export it again") from None
        if len(model.inputs) != 1:
            raise EngineError(f"the graph has {len(model.inputs)} inputs instead of one: not a backbone of ours")
        (source,) = model.inputs
        is_uint8 = source.get_element_type() == self._ov.Type.u8
        height, width = read_input(source.get_any_name(), is_uint8, _shape(source))
        taps = read_taps([(o.get_any_name(), _shape(o)) for o in model.outputs], self._taps)
        if self._taps is not None:
            results = [model.output(tap.name).get_node().input_value(0) for tap in taps]
            model = self._ov.Model(results, model.get_parameters(), model.get_friendly_name())
        model.reshape({0: [batch, height, width, 3]})
        return model


def _shape(port: Any) -> tuple[int | None, ...]:
    shape = port.get_partial_shape()
    if shape.rank.is_dynamic:
        return ()
    return tuple(None if size.is_dynamic else size.get_length() for size in shape)


def pieces(batch: int, forms: Sequence[int]) -> Iterator[tuple[int, int]]:
    """(start, size) of the pieces that ``batch`` pictures are run in, each size one of ``forms``."""
    start = 0
    for size in forms:
        while batch - start >= size:
            yield start, size
            start += size


class _Writable:
    """Shows a read-only array's memory as writable."""

    def __init__(self, array: Images) -> None:
        self.array = array  # keeps the memory alive
        address = array.__array_interface__["data"][0]
        self.__array_interface__ = {**array.__array_interface__, "data": (address, False)}


def _writable_alias(images: Images) -> Images:
    """``images`` itself, or the same memory marked writable: openvino refuses to bind a read-only array (a
    slot
    mapped PROT_READ) although it only reads its inputs."""
    return images if images.flags.writeable else np.asarray(_Writable(images))
