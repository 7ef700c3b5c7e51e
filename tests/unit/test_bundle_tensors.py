"""Arrays as views of a file: the library reads what we write, we read what it writes, and damage is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors import numpy as library

from edge import tensors

ARRAYS = {
    "half": np.arange(15, dtype=np.float16).reshape(3, 5),
    "double": np.eye(3),
    "bytes": np.arange(7, dtype=np.uint8),
    "nothing": np.zeros((0, 4), np.float32),
    "scalar": np.array(2.5, np.float32),
    "turned": np.arange(12, dtype=np.int64).reshape(3, 4).T,
}


def test_both_ways_through_the_library() -> None:
    written = b"".join(bytes(part) for part in tensors.encode(ARRAYS))
    theirs, ours = library.load(written), tensors.decode(library.save({k: v.copy() for k, v in ARRAYS.items()}))
    again = tensors.decode(written)
    for read in (theirs, ours, again):
        assert set(read) == set(ARRAYS)
        for name, array in ARRAYS.items():
            assert read[name].dtype == array.dtype
            np.testing.assert_array_equal(read[name], array)
    assert tensors.decode(b"".join(bytes(part) for part in tensors.encode({}))) == {}


def test_nothing_is_copied_and_nothing_can_be_written() -> None:
    bank = np.arange(1000, dtype=np.float16)
    header, body = tensors.encode({"bank": bank})
    assert np.shares_memory(np.frombuffer(body, np.uint8), bank)
    whole = np.frombuffer(header + bytes(body), np.uint8)
    view = tensors.decode(whole.data)["bank"]
    assert np.shares_memory(view, whole)
    assert not view.flags.writeable


def file_of(header: object, body: bytes = bytes(8)) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


ONE = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "no header"),
        (b"\xff" * 20, "longer than the file"),
        (file_of(b"{"), "not JSON"),
        (file_of([]), "not a table"),
        (file_of({"a": 1}), "no known type"),
        (file_of({"a": {**ONE, "dtype": "F31"}}), "no known type"),
        (file_of({"a": {**ONE, "shape": [-2]}}), "no sound shape"),
        (file_of({"a": {**ONE, "shape": [True, 2]}}), "no sound shape"),
        (file_of({"a": {**ONE, "shape": "2"}}), "no sound shape"),
        (file_of({"a": {**ONE, "data_offsets": [0]}}), "no sound shape"),
        (file_of({"a": {**ONE, "shape": [3]}}), "does not lie where"),
        (file_of({"a": {**ONE, "shape": [2**62, 2**62]}}), "does not lie where"),
        (file_of({"a": ONE}, bytes(4)), "does not lie where"),
        (file_of({"a": ONE}, bytes(9)), "belong to no array"),
        (file_of({"a": ONE, "b": ONE}), "does not lie where"),
        (file_of({"a": {**ONE, "data_offsets": [4, 12]}}, bytes(12)), "does not lie where"),
    ],
)
def test_what_is_no_whole_file_is_refused(data: bytes, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        tensors.decode(data)


def test_metadata_is_passed_over() -> None:
    assert set(tensors.decode(file_of({"__metadata__": {"format": "np"}, "a": ONE}))) == {"a"}
