"""Heads whose whole network is the bundle's graph: what the engine gives are the level maps already.

Nothing is left to compute but the shared tail; what remains is to refuse what is no level map.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.heads import Array, HeadError, Residuals, Spec


class GraphMapsHead:
    """Checks the maps and hands them on.

    spec: ``levels`` (list of the graph's outputs, shallow to deep), ``shape_<level>`` ([1, h, w]).
    arrays: none, the weights are in the graph."""

    method = "graph_maps"
    levels = re.compile(r".+")
    """Names that the method's level maps have: another method's graph is refused, and not scored as this one's."""

    def __init__(self, spec: Spec, arrays: Mapping[str, NDArray[Any]]) -> None:
        try:
            self.taps: tuple[str, ...] = tuple(str(name) for name in spec["levels"])
            self._shapes = {name: tuple(int(n) for n in spec[f"shape_{name}"]) for name in self.taps}
        except (KeyError, TypeError, ValueError) as error:
            raise HeadError(
                f"the {self.method} head's settings are incomplete or of the wrong type ({error})"
            ) from None
        if not self.taps or len(set(self.taps)) != len(self.taps):
            raise HeadError(f"the {self.method} head needs one or several different levels, not {list(self.taps)}")
        foreign = [name for name in self.taps if not self.levels.fullmatch(name)]
        if foreign:
            raise HeadError(f"{foreign[0]!r} is no level map of {self.method}: the bundle is another method's")
        if any(len(shape) != 3 or shape[0] != 1 or min(shape) < 1 for shape in self._shapes.values()):
            raise HeadError(f"the {self.method} head's level maps must be [1, h, w]: {self._shapes}")
        if arrays:
            names = ", ".join(sorted(arrays)[:3])
            raise HeadError(
                f"the {self.method} head has its weights in the graph, but {names} came with it: they belong to"
                " another method; fit the bundle again"
            )

    def residuals(self, taps: Mapping[str, Array]) -> Residuals:
        """See :class:`edge.heads.Head`. The levels are views of ``taps``; there are no norms."""
        return Residuals([self._level(taps, name) for name in self.taps], None)

    def _level(self, taps: Mapping[str, Array], name: str) -> Array:
        tap, shape = taps.get(name), self._shapes[name]
        if tap is None:
            raise HeadError(f"the engine gives no map {name!r}; it gives {', '.join(sorted(taps)) or 'none'}")
        if tap.ndim != 4 or tap.shape[1:] != shape or tap.dtype != np.float32:
            raise HeadError(
                f"map {name} is {tap.dtype} {list(tap.shape)}, the bundle was fitted on"
                f" float32 [B, {', '.join(str(n) for n in shape)}]"
            )
        level = tap[:, 0]
        # One pass each: the least is NaN where anything is NaN, and the most is infinite where anything is.
        if level.size and not (level.min() >= 0 and np.isfinite(level.max())):
            raise HeadError(
                f"map {name} is not finite (NaN, infinite) or negative: no score; check the engine and its precision"
            )
        return level


class FairHead(GraphMapsHead):
    """FAIR: ``gradient`` and ``color``, how far the restored picture is from the one seen (see
    :mod:`edge.heads.fair`)."""

    method = "fair"
    levels = re.compile("gradient|color")


class GradHead(GraphMapsHead):
    """GRAD: ``residual``, the length of what the refined reconstruction leaves of a feature (see
    :mod:`edge.heads.grad`)."""

    method = "grad"
    levels = re.compile("residual")


class HfraHead(GraphMapsHead):
    """HFRA: ``residual_<layer>``, 1 minus the cosine between a feature and its reconstruction (see
    :mod:`edge.heads.hfra`)."""

    method = "hfra"
    levels = re.compile("residual_.+")
