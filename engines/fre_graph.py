"""A backbone that goes on into FRE's head: one graph from the picture to the level maps.

Source: FRE (Ndiour, Ahuja, Genc, Tickoo, BMVC 2023); the arithmetic of :class:`edge.heads.fre.FreHead`: average
pooling, flatten, subtract the mean, one product to encode and one to decode, square, mean over the channels. The daemon
runs the head in NumPy, which adds in a fixed order and reads the subspace once; this is for runtimes that take a graph
whole.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.errors import EngineError
from engines.graph import GraphBuilder, Value

MAX_BYTES = 2**31 - 2**20  # protobuf's limit, less what is not constants

Arrays = Mapping[str, NDArray[Any]]


def level_name(layer: str) -> str:
    """The output that holds the level map of tap ``layer``."""
    return f"level_{layer}"


def write_fre_graph(backbone: bytes, spec: Mapping[str, Any], arrays: Arrays, metadata: Mapping[str, str]) -> bytes:
    """The ONNX of ``backbone`` (a graph of ours that has the head's taps) with the FRE head behind it.

    ``spec``, ``arrays``: the head's, as in a bundle (:class:`edge.heads.fre.FreHead`). Outputs, in the order of the
    layers: ``level_<layer>``, float32 [batch, 1, h, w], the mean over the channels of the squared residual. The norm of
    a layer is the root of the sum of its map times its channels. ``metadata`` is added to the backbone's. Raises
    EngineError: a graph that is not ours or lacks a tap, arrays that are missing or do not fit, more than a graph can
    hold."""
    layers, pool = [str(name) for name in spec["layers"]], int(spec["pool"])
    builder, taps, facts = _Builder.extend(backbone)
    assert isinstance(builder, _Builder)
    missing = [layer for layer in layers if layer not in taps]
    if missing:
        raise EngineError(f"the backbone has no tap {missing[0]!r}; it has {', '.join(taps)}")
    if 4 * sum(array.size for array in arrays.values()) + len(backbone) > MAX_BYTES:
        raise EngineError("the subspace is too large for one ONNX file (2 GB): fewer layers, or more pooling")
    for layer in layers:
        mean, encode, decode, shift = _matrices(str(spec.get("encoder", "pca")), arrays, layer)
        pooled = builder.average_pool(taps[layer], f"{level_name(layer)}.pooled", pool)
        size = pooled.channels * pooled.height * pooled.width
        if mean.shape != (size,) or any(m.ndim != 2 or m.shape[1] != size for m in (encode, decode)):
            raise EngineError(
                f"layer {layer}: a subspace of {list(encode.shape)} does not fit {size} pooled features: the bundle was"
                " fitted on another backbone"
            )
        name = level_name(layer)
        builder.output(builder.fre_level(pooled, name, mean, encode, decode, shift), name)
    return builder.build(f"{facts.get('backbone', 'backbone')}-fre", {**facts, **metadata})


def _matrices(encoder: str, arrays: Arrays, layer: str) -> Sequence[Any]:
    """mean [D], encoder [k, D], decoder [k, D] (may be the same object), shift [k] or None; float32."""
    try:
        mean = np.asarray(arrays[f"mu_{layer}"], np.float32)
        if encoder == "ae":
            encode = np.asarray(arrays[f"enc_{layer}"], np.float32)
            decode = np.asarray(arrays[f"dec_{layer}"], np.float32)
        else:
            encode = decode = np.asarray(arrays[f"w_{layer}"], np.float32)
        shift = None if encoder == "pca" else np.asarray(arrays[f"shift_{layer}"], np.float32)
    except KeyError as error:
        raise EngineError(f"the head lacks {error}: fit the bundle again") from None
    return mean, encode, decode, shift


class _Builder(GraphBuilder):
    """The operators that only this head needs."""

    def average_pool(self, x: Value, name: str, size: int) -> Value:
        """Mean over blocks of ``size`` x ``size``; an odd last row or column is dropped."""
        if size == 1:
            return x
        self._node("AveragePool", [x.name], name, kernel_shape=[size, size], strides=[size, size])
        return Value(name, x.channels, x.height // size, x.width // size)

    def fre_level(
        self,
        x: Value,
        key: str,
        mean: NDArray[np.float32],
        encode: NDArray[np.float32],
        decode: NDArray[np.float32],
        shift: NDArray[np.float32] | None,
    ) -> Value:
        """Mean over the channels of (x - mean - decode^T (encode (x - mean) + shift))^2."""
        self._node("Flatten", [x.name], f"{key}.flat", axis=1)
        self._node("Sub", [f"{key}.flat", self._constant(f"{key}.mean", mean)], f"{key}.centred")
        rows = self._constant(f"{key}.encode", encode)
        back = rows if decode is encode else self._constant(f"{key}.decode", decode)
        # Gemm takes the matrix transposed: one constant serves both products.
        inputs = [f"{key}.centred", rows]
        if shift is not None:
            inputs.append(self._constant(f"{key}.shift", shift))
        self._node("Gemm", inputs, f"{key}.code", transB=1)
        self._node("MatMul", [f"{key}.code", back], f"{key}.rebuilt")
        self._node("Sub", [f"{key}.centred", f"{key}.rebuilt"], f"{key}.residual")
        self._node("Mul", [f"{key}.residual", f"{key}.residual"], f"{key}.squares")
        # 0: the batch as it comes.
        self._node("Constant", [], f"{key}.shape", value_ints=[0, x.channels, x.height, x.width])
        self._node("Reshape", [f"{key}.squares", f"{key}.shape"], f"{key}.maps")
        self._node("ReduceMean", [f"{key}.maps"], key, axes=[1], keepdims=1)
        return Value(key, 1, x.height, x.width)
