"""Arrays in the safetensors format without copying them: as views of a mapped file, and as parts to write one by one.

The format: eight bytes of header length, a JSON header (name -> dtype, shape, offsets), the arrays back to back. The
library reads and writes whole files as one string of bytes; a bank of a gigabyte would be in memory three times.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

_NAMES = {
    "BOOL": np.bool_,
    "U8": np.uint8,
    "I8": np.int8,
    "U16": np.uint16,
    "I16": np.int16,
    "F16": np.float16,
    "U32": np.uint32,
    "I32": np.int32,
    "F32": np.float32,
    "U64": np.uint64,
    "I64": np.int64,
    "F64": np.float64,
}
DTYPES: dict[str, np.dtype[Any]] = {name: np.dtype(kind).newbyteorder("<") for name, kind in _NAMES.items()}
_CODES = {dtype: name for name, dtype in DTYPES.items()}
_MAX_HEADER = 100_000_000  # the format's own limit
_METADATA = "__metadata__"


def encode(arrays: Mapping[str, NDArray[Any]]) -> list[bytes | memoryview]:
    """The parts of a safetensors file, in order: the header, then every array's memory (copied only where it is not
    C-contiguous). Wide numbers first, so that each array lies at a multiple of its item's size."""
    ordered = sorted(arrays.items(), key=lambda item: (-item[1].dtype.itemsize, item[0]))
    header: dict[str, Any] = {}
    parts: list[bytes | memoryview] = [b""]
    at = 0
    for name, array in ordered:
        array = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
        header[name] = {
            "dtype": _CODES[array.dtype],
            "shape": list(array.shape),
            "data_offsets": [at, at + array.nbytes],
        }
        at += array.nbytes
        if array.nbytes:
            parts.append(array.reshape(-1).view(np.uint8).data)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    parts[0] = len(text).to_bytes(8, "little") + text
    return parts


def decode(data: bytes | memoryview) -> dict[str, NDArray[Any]]:
    """Read-only arrays that are views of ``data``, which they keep alive. Raises ValueError, saying what is wrong, for
    anything that is not a whole and exact safetensors file."""
    view = memoryview(data).toreadonly().cast("B")
    if len(view) < 8:
        raise ValueError("no header")
    length = int.from_bytes(view[:8], "little")
    if length > min(_MAX_HEADER, len(view) - 8):
        raise ValueError("header longer than the file")
    try:
        header = json.loads(bytes(view[8 : 8 + length]))
    except (ValueError, RecursionError):
        raise ValueError("header is not JSON") from None
    if not isinstance(header, dict):
        raise ValueError("header is not a table of arrays")
    body = view[8 + length :]
    entries = [_entry(name, entry) for name, entry in header.items() if name != _METADATA]
    entries.sort(key=lambda entry: entry[3:])
    at = 0
    result: dict[str, NDArray[Any]] = {}
    for name, dtype, shape, begin, end in entries:
        if begin != at or end - begin != math.prod(shape) * dtype.itemsize or end > len(body):
            raise ValueError(f"array {name!r} does not lie where the header says")
        result[name] = np.frombuffer(body[begin:end], dtype).reshape(shape)
        at = end
    if at != len(body):
        raise ValueError("bytes that belong to no array")
    return result


def _entry(name: str, entry: Any) -> tuple[str, np.dtype[Any], tuple[int, ...], int, int]:
    if not isinstance(entry, dict) or entry.get("dtype") not in DTYPES:
        raise ValueError(f"array {name!r} is of no known type")
    shape, offsets = _sizes(entry.get("shape")), _sizes(entry.get("data_offsets"))
    if shape is None or offsets is None or len(offsets) != 2:
        raise ValueError(f"array {name!r} has no sound shape or place")
    return name, DTYPES[entry["dtype"]], shape, offsets[0], offsets[1]


def _sizes(values: Any) -> tuple[int, ...] | None:
    """``values`` if it is a list of integers >= 0 (True is none), else None."""
    sound = isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)
    return tuple(values) if sound else None
