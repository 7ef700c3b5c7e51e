"""Orthogonal matching pursuit in N dimensions: from inner products alone, without the columns.

    y ~ X_S c, greedily: S += argmax_j |x_j^T (y - X_S c)|, then c by least squares on S

Needs G = X^T X, b = X^T y and ||y||^2 (Rubinstein, Zibulevsky, Elad 2008, Batch-OMP). The Cholesky factor of
G[S, S] grows by one row a step. Its rows are kept extended to all N atoms, V = L^-1 G[S, :], so that a step costs one
product with V: entry j of the diagonal left over is the squared distance of x_j to the span of S, and the
correlations lose beta V[k]. All in float64; float32 would pick other atoms where columns are nearly alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]
Indices = NDArray[np.intp]

Selection = Literal["abs", "signed"]
SELECTIONS: tuple[Selection, ...] = ("abs", "signed")

DEPENDENT = 1e-10
"""An atom whose squared distance to the span of the chosen ones is below this share of its own square says nothing
new: it is passed over, as no least squares could give it a coefficient worth the name."""
TIED = 1e-10
"""Correlations this close to the largest count as equal: the lowest index wins, whatever the last bits are."""


@dataclass(frozen=True)
class Pursuit:
    """support: indices of atoms in the order they were chosen [k]; coefficients: float64 [k], in that order; energy:
    ||y - X_S c||^2 >= 0, by Pythagoras (so not below about 1e-15 ||y||^2, or b's own error if that is larger)."""

    support: Indices
    coefficients: F64
    energy: float
    betas: F64 | None = None  # by how much each atom shortened e, signed [k]
    upper: F64 | None = None  # L^T of G[S, S], [k, k]

    def first(self, atoms: int) -> Pursuit:
        """The pursuit that would have stopped after at most ``atoms``: greedy, it begins with the same choices."""
        if atoms >= len(self.support) or self.betas is None or self.upper is None:
            return self
        betas, upper = self.betas[:atoms], self.upper[:atoms, :atoms]
        energy = self.energy + float(self.betas[atoms:] @ self.betas[atoms:])
        return Pursuit(self.support[:atoms], _solve(upper, betas), energy, betas, upper)


def pursue(
    gram: F64,
    correlations: F64,
    energy: float,
    atoms: int,
    *,
    selection: Selection = "abs",
    lengths: F64 | None = None,
    eps: float = 1e-6,
    forbidden: int | None = None,
) -> Pursuit:
    """Orthogonal matching pursuit of one vector y.

    gram: float64 [N, N]; correlations: b = X^T y, float64 [N]; energy: ||y||^2; atoms: at most this many are chosen.
    selection: ``abs`` picks the largest |x_j^T e|; ``signed`` the largest x_j^T e, as the paper's equation 3 is
    printed. lengths: ||x_j|| [N]; correlations are divided by them for the choice (``unit``), else not.
    eps: stops when ||e|| <= eps ||y||. forbidden: an atom that may not be chosen (leave-one-out).
    """
    count = len(correlations)
    atoms = min(atoms, count)
    rows = np.empty((atoms, count))  # V
    betas = np.empty(atoms)
    support = np.empty(atoms, np.intp)
    left = np.array(correlations, np.float64)  # x_j^T e
    square = gram.diagonal().copy()  # squared distance of x_j to the span of S
    least = DEPENDENT * square
    barred = np.where(square > 0, 0.0, -np.inf)
    if forbidden is not None:
        barred[forbidden] = -np.inf
    stop = energy * eps * eps
    rest = float(energy)
    chosen = 0
    while chosen < atoms and rest > stop:
        index = _pick(left, barred, selection, lengths)
        if index is None:
            break
        barred[index] = -np.inf
        if not square[index] > least[index]:
            continue
        row = rows[chosen]
        np.copyto(row, gram[index])
        if chosen:
            row -= rows[:chosen, index] @ rows[:chosen]
        # The pivot by the same sum as its row: V's upper triangle is then L^T to the last bit.
        pivot = row[index]
        if not pivot > least[index]:
            continue
        row /= np.sqrt(pivot)
        beta = left[index] / row[index]
        left -= beta * row
        square -= row * row
        rest -= beta * beta
        betas[chosen], support[chosen] = beta, index
        chosen += 1
    support, betas = support[:chosen].copy(), betas[:chosen]
    upper = rows[:chosen, support]  # V[:, S] = L^T
    return Pursuit(support, _solve(upper, betas), max(rest, 0.0), betas, upper)


def _solve(upper: F64, betas: F64) -> F64:
    """c with upper c = betas: the last unknown first."""
    coefficients = np.empty(len(betas))
    for k in range(len(betas) - 1, -1, -1):
        coefficients[k] = (betas[k] - upper[k, k + 1 :] @ coefficients[k + 1 :]) / upper[k, k]
    return coefficients


def _pick(left: F64, barred: F64, selection: Selection, lengths: F64 | None) -> int | None:
    values = np.abs(left) if selection == "abs" else left.copy()
    if lengths is not None:
        values /= lengths
    values += barred
    largest = float(values.max())
    if largest == -np.inf:
        return None
    return int(np.argmax(values >= largest - TIED * abs(largest)))


def lengths_of(gram: F64) -> F64:
    """||x_j|| of every atom, > 0 also for one that is zero: float64 [N]."""
    lengths: F64 = np.sqrt(np.maximum(gram.diagonal(), np.finfo(np.float64).tiny))
    return lengths
