"""Descriptors: round trip, pinned bytes, and whatever is no descriptor raises DescriptorError and nothing else."""

from __future__ import annotations

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.wire.descriptor import Descriptor, DescriptorError, Verdict
from edge.wire.pool import SlotRef

u64 = st.integers(0, 2**64 - 1)
slots = st.builds(SlotRef, st.integers(0, 2**32 - 1), st.integers(0, 1023), u64)
numbers = st.floats(allow_nan=False, allow_infinity=False)
verdicts = st.builds(
    Verdict, numbers, st.floats(0, 1), numbers, st.dictionaries(st.text(max_size=32), numbers, max_size=8)
)
descriptors = st.builds(
    Descriptor,
    ticket=st.integers(1, 2**64 - 1),
    camera=st.integers(0, 63),
    seq=u64,
    mono_ns=u64,
    wall_ns=u64,
    height=st.integers(1, 65535),
    width=st.integers(1, 65535),
    frame=slots,
    payload=st.none() | slots,
    verdict=st.none() | verdicts,
    name=st.text(max_size=60).filter(lambda s: len(s.encode("utf-8", "surrogatepass")) <= 255 and s.isprintable()),
)

PLAIN = Descriptor(65536, 1, 2, 3, 4, 480, 640, SlotRef(1, 2, 4))


@given(descriptors)
def test_round_trip(descriptor: Descriptor) -> None:
    assert Descriptor.unpack(descriptor.pack()) == descriptor


def test_the_bytes_are_pinned() -> None:
    assert PLAIN.pack().hex() == "9d01ce000100000102030 4cd01e0cd0280930102 04c0c080a0".replace(" ", "")


@given(st.binary(max_size=200))
def test_any_bytes_parse_or_raise_the_one_error(data: bytes) -> None:
    try:
        Descriptor.unpack(data)
    except DescriptorError:
        pass


anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=5)
    | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(descriptors, st.integers(0, 12), anything)
def test_one_field_replaced_by_anything_parses_or_raises_the_one_error(
    descriptor: Descriptor, position: int, value: object
) -> None:
    row = msgpack.unpackb(descriptor.pack())
    row[position] = value
    try:
        Descriptor.unpack(msgpack.packb(row))
    except DescriptorError:
        pass


@pytest.mark.parametrize(
    ("position", "value"),
    [
        (0, 2),
        (1, 0),
        (1, True),
        (2, 64),
        (6, 0),
        (7, 65536),
        (8, [1, 2]),
        (8, [1, 1024, 2]),
        (9, [1, 2, -1]),
        (10, [float("nan"), 0.5, 1.0]),
        (10, [1.0, 1.5, 1.0]),
        (12, "x" * 256),
        (12, None),
    ],
)
def test_values_out_of_bounds_are_refused(position: int, value: object) -> None:
    row = msgpack.unpackb(PLAIN.pack())
    row[position] = value
    with pytest.raises(DescriptorError):
        Descriptor.unpack(msgpack.packb(row))


def test_a_large_message_is_refused_before_it_is_parsed() -> None:
    with pytest.raises(DescriptorError, match="over the limit"):
        Descriptor.unpack(b"\x00" * 4096)
