"""Where tensors lie inside a slot: computed the same way by who writes and by who reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

ALIGN = 64  # a cache line; vector loads of the engine's first element stay aligned


@dataclass(frozen=True)
class Span:
    """One float32 tensor in a slot: ``shape`` [C, h, w] (without the batch axis), ``offset`` in bytes."""

    name: str
    shape: tuple[int, int, int]
    offset: int


def feature_layout(taps: Sequence[tuple[str, int, int, int]]) -> tuple[tuple[Span, ...], int]:
    """Spans of the taps (name, channels, height, width) in a feature slot, and the slot's size in bytes."""
    spans, offset = [], 0
    for name, channels, height, width in taps:
        spans.append(Span(name, (channels, height, width), offset))
        offset += -(-channels * height * width * 4 // ALIGN) * ALIGN
    return tuple(spans), offset
