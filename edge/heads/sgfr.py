"""SGFR: reconstruction from few good feature maps (Hotta, Zhang, Hagihara, Akashi, IET Image Processing 2025).

    M = atoms that OMP chooses for y_ref in X_ref (at most ``samples``)          subspace-guided sampling
    S, c = OMP of y in the columns M of X (at most ``atoms``);  e = y - X_S c
    level map = ||e||_2 over channels

Columns are the flattened feature maps of the good pictures. The paper is silent on the last line and prints the
selection with its sign; absolute value, as in the works it cites, is the default here (signed leaves residuals a
fifth to a half longer). All pursuits run on inner products (:mod:`edge.heads.omp`): a frame costs one pass over the
sampling bank, one over the sampled rows, one over the chosen ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.errors import ResourceError
from edge.heads import Array, HeadError, Residuals, Spec, aligned_empty
from edge.heads.bank import F64, Bank, Indices, dot, widened_bytes, widened_rows
from edge.heads.omp import SELECTIONS, Pursuit, Selection, lengths_of, pursue
from edge.memory import available_bytes, gigabytes

RESIDENT = ("auto", "float32", "float16")
_MEMORY_SHARE = 0.5  # of what is free may go to a bank in float32 unasked

LEAST_EPS = 1e-3
"""Pursuits on float32 inner products end here at the latest: ||e||^2 by Pythagoras carries their error, about
1e-7 ||y||^2. A residual this small is a copy of a bank picture; good ones leave a tenth to a third."""


@dataclass(frozen=True)
class _Tap:
    """A tap's bank. ``bank`` and ``work`` are this head's own; the arrays beneath are shared."""

    name: str
    shape: tuple[int, int, int]
    bank: Bank
    gram: F64  # [N, N]
    lengths: F64 | None  # ||x_n||, for selection by them
    work: Array  # [D]: residual in the making


class SgfrHead:
    """SGFR over one or several layers, each sampled by another tap or by none.

    spec: ``layers`` (scored taps), ``references`` (for each layer the tap it is sampled by, or ""), ``detection`` (the
    layer whose ||e|| is the image-level distance), ``atoms``, ``samples`` (ints >= 1), ``selection`` ("abs" or
    "signed"), ``unit`` (selection divides by ||x_n||), ``eps`` (stop at ||e|| <= eps ||y||), ``resident`` ("auto",
    "float32", "float16"), ``shape_<tap>`` ([C, H, W]).
    arrays: for each tap ``bank_<tap>`` float16 or float32 [N, D] with D = C H W, ``gram_<tap>`` float64 [N, N].
    """

    method = "sgfr"

    def __init__(self, spec: Spec, arrays: Mapping[str, NDArray[Any]]) -> None:
        try:
            self.layers = tuple(str(name) for name in spec["layers"])
            self.references = tuple(str(name) for name in spec["references"])
            self.detection = str(spec["detection"])
            self.atoms, self.samples = int(spec["atoms"]), int(spec["samples"])
            self.selection: Selection = spec["selection"]
            self.unit, self.eps = bool(spec["unit"]), float(spec["eps"])
            self.taps: tuple[str, ...] = tuple(dict.fromkeys(name for name in (*self.layers, *self.references) if name))
            shapes = {name: tuple(int(n) for n in spec[f"shape_{name}"]) for name in self.taps}
        except (KeyError, TypeError, ValueError) as error:
            raise HeadError(f"the SGFR head's settings are incomplete or of the wrong type ({error})") from None
        fits = len(self.references) == len(self.layers) > 0 and self.detection in self.layers
        if not fits or min(self.atoms, self.samples) < 1 or self.selection not in SELECTIONS or not 0 <= self.eps < 1:
            raise HeadError(
                f"the SGFR head's settings contradict themselves: layers {list(self.layers)}, references"
                f" {list(self.references)}, detection layer {self.detection!r}, {self.atoms} atoms of {self.samples},"
                f" selection {self.selection!r}, eps {self.eps}"
            )
        self._taps = {name: _tap(name, shapes[name], self.unit, arrays) for name in self.taps}
        if len({tap.bank.count for tap in self._taps.values()}) != 1:
            raise HeadError("the SGFR head's banks hold different numbers of pictures")
        # A layer that is sampled needs no inner products beyond the sampled rows, unless others are sampled by it.
        roots = {ref or layer for layer, ref in zip(self.layers, self.references, strict=True)}
        self._whole = tuple(name for name in self.taps if name in roots)

    @staticmethod
    def resident(spec: Spec, arrays: Mapping[str, NDArray[Any]]) -> Mapping[str, NDArray[Any]]:
        """The arrays with banks as they are worked with: float32 where memory allows (``resident`` "auto": half of
        what is free), else as stored. Raises ResourceError when "float32" was asked for and does not fit."""
        how = spec.get("resident", "auto")
        banks = {name: a for name, a in arrays.items() if name.startswith("bank_") and a.dtype == np.float16}
        if how == "float16" or not banks or any(bank.ndim != 2 for bank in banks.values()):
            return arrays
        needed, free = sum(map(widened_bytes, banks.values())), available_bytes()
        if free is not None and needed > (_MEMORY_SHARE if how == "auto" else 1.0) * free:
            if how == "auto":
                return arrays
            raise ResourceError(
                f"the bank needs {gigabytes(needed)} of memory as float32 and {gigabytes(free)} are free;"
                " fit with --set resident=float16, or on fewer pictures"
            )
        return {**arrays, **{name: widened_rows(bank, name) for name, bank in banks.items()}}

    def residuals(self, taps: Mapping[str, Array]) -> Residuals:
        """See :class:`edge.heads.Head`. norms: ||e||_2 of the detection layer, in feature units.

        Three pictures and more share one matrix product a bank, whose sums differ in their last bits from those of a
        picture alone: maps agree to about 1e-5 of their maximum."""
        pictures = {name: _flat(taps, self._taps[name]) for name in self.taps}
        energies = {name: _energies(name, rows) for name, rows in pictures.items()}
        correlations = {name: self._taps[name].bank.correlate(pictures[name]) for name in self._whole}
        count = len(pictures[self.layers[0]])
        levels = [np.empty((count, *self._taps[name].shape[1:]), np.float32) for name in self.layers]
        norms = np.empty(count)
        for i in range(count):
            pursuits: dict[str, Pursuit] = {}  # of the sampling taps, over their whole banks
            for level, layer, reference in zip(levels, self.layers, self.references, strict=True):
                if reference and reference not in pursuits:
                    inner, energy = correlations[reference][i], energies[reference][i]
                    pursuits[reference] = self._pursue(self._taps[reference], inner, energy, self.samples)
                tap, picture = self._taps[layer], pictures[layer][i]
                if reference:
                    rows = np.sort(pursuits[reference].support)  # in the bank's order: ties go to its first
                    known = correlations.get(layer)
                    inner = tap.bank.correlate_rows(picture, rows) if known is None else known[i][rows]
                    found = self._pursue(tap, inner, energies[layer][i], self.atoms, rows)
                    support = rows[found.support]
                else:
                    if layer in pursuits and self.atoms <= self.samples:  # it was pursued already, and further
                        found = pursuits[layer].first(self.atoms)
                    else:
                        found = self._pursue(tap, correlations[layer][i], energies[layer][i], self.atoms)
                    support = found.support
                length = _residual_map(tap, picture, support, found.coefficients, level[i])
                if layer == self.detection:
                    norms[i] = length
        return Residuals(levels, norms)

    def _pursue(self, tap: _Tap, inner: F64, energy: float, atoms: int, rows: Indices | None = None) -> Pursuit:
        gram = tap.gram if rows is None else tap.gram[np.ix_(rows, rows)]
        lengths = tap.lengths if rows is None or tap.lengths is None else tap.lengths[rows]
        eps = max(self.eps, LEAST_EPS)
        return pursue(gram, inner, energy, atoms, selection=self.selection, lengths=lengths, eps=eps)


def _residual_map(tap: _Tap, picture: Array, support: Indices, coefficients: F64, out: Array) -> float:
    """Writes the L2 norms over channels of y - X_S c; returns the norm of it all."""
    work = tap.work
    np.copyto(work, picture)
    tap.bank.subtract(support, coefficients, work)
    np.square(work, out=work)
    sums = work.reshape(tap.shape[0], -1).sum(axis=0)
    np.sqrt(sums, out=out.reshape(-1))
    return float(np.sqrt(sums.sum(dtype=np.float64)))


def _flat(taps: Mapping[str, Array], tap: _Tap) -> list[Array]:
    given = taps.get(tap.name)
    if given is None:
        raise HeadError(f"the engine gives no tap {tap.name!r}; it gives {', '.join(sorted(taps)) or 'none'}")
    if given.ndim != 4 or given.shape[1:] != tap.shape or given.dtype != np.float32:
        raise HeadError(
            f"tap {tap.name} is {given.dtype} {list(given.shape)}, the bundle was fitted on"
            f" float32 [B, {', '.join(str(n) for n in tap.shape)}]"
        )
    return [np.ascontiguousarray(picture).reshape(-1) for picture in given]


def _energies(name: str, pictures: list[Array]) -> list[float]:
    with np.errstate(over="ignore", invalid="ignore"):
        energies = [dot(picture, picture) for picture in pictures]
    if not np.isfinite(energies).all():
        raise HeadError(
            f"features of {name} are not finite (NaN, infinite or far out of range): no score;"
            " check the engine and its precision (edge doctor)"
        )
    if not all(energies):
        # Nothing is rebuilt perfectly from nothing: it would pass as the best part ever seen.
        raise HeadError(f"features of {name} are all zero: no score; check the engine and its precision (edge doctor)")
    return energies


def _tap(name: str, shape: tuple[int, ...], unit: bool, arrays: Mapping[str, NDArray[Any]]) -> _Tap:
    if len(shape) != 3 or min(shape) < 1:
        raise HeadError(f"tap {name}: {list(shape)} is no shape of a feature map")
    size = int(np.prod(shape))
    try:
        rows, gram = arrays[f"bank_{name}"], arrays[f"gram_{name}"]
    except KeyError as error:
        raise HeadError(f"the SGFR head lacks the array {error}") from None
    if rows.ndim != 2 or rows.shape[1] != size or rows.shape[0] < 1 or gram.shape != (len(rows),) * 2:
        raise HeadError(
            f"tap {name}: arrays of shape {list(rows.shape)} and {list(gram.shape)} do not fit pictures of {size}"
            " features"
        )
    if rows.dtype not in (np.float16, np.float32) or gram.dtype != np.float64:
        raise HeadError(f"tap {name}: arrays are {rows.dtype} and {gram.dtype}, not float16 or float32 and float64")
    squares = gram.diagonal()
    if not np.isfinite(gram).all() or not (squares >= 0).all():
        raise HeadError(f"tap {name}: the Gram matrix is not finite, or no Gram matrix")
    lengths = lengths_of(gram) if unit else None
    channels, height, width = shape
    return _Tap(name, (channels, height, width), Bank(rows), gram, lengths, aligned_empty((size,)))
