"""Fitting SGFR: the bank of good feature maps, its Gram matrices, and every good picture's residual without itself.

Leave-one-out is free: a picture of the bank has its inner products in the Gram matrix, and forbidding its own atom is
leaving it out. The features are rounded to float16 first, so that the bank on disk, the Gram matrices and a later refit
see the same numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from calibration.methods import (
    F32,
    F64,
    Defaults,
    Indices,
    Job,
    MethodFit,
    Restored,
    Settings,
    Stored,
    Unseen,
    settings_of,
)
from calibration.options import FitOptions
from calibration.snapshot import gram, residual_squares
from edge.errors import DataError
from edge.heads.omp import Selection, lengths_of, pursue
from edge.heads.tail import TailSpec

EPS = 1e-6
"""The paper's, taken relative to ||y||: absolute, it would never be reached by features of this length."""
ALIKE = 1e-4  # of ||x||: a residual below it is a copy's


class SgfrSettings(Settings):
    """The defaults are the paper's for MVTec AD. It uses 80 / 40 for BTAD and 10 / 7 for MTD."""

    atoms: int = Field(default=17, ge=1, description="good pictures that may rebuild a picture")
    samples: int = Field(default=40, ge=1, description="good pictures that the sampling layer proposes")
    sampling: Literal["next", "last", "none"] = Field(
        default="next", description="a layer is sampled by the next deeper tap, by the last one, or not at all"
    )
    reference: str = Field(default="", description="a further, deeper tap used for sampling only (layer4)")
    selection: Selection = Field(default="abs", description="by |x^T e|, or by x^T e as the paper prints it")
    unit: bool = Field(default=False, description="divide by the atoms' lengths for the choice")
    level_scale: Literal["nominal", "none"] = Field(
        default="nominal", description="levels count by their mean over good pictures, or as they come"
    )
    resident: Literal["auto", "float32", "float16"] = Field(
        default="auto", description="the bank in memory: float16 takes half and is slower; auto: by what is free"
    )


class SgfrFitter:
    """See :class:`calibration.methods.Fitter`."""

    method = "sgfr"
    needs_graph = True
    needs_pictures = False
    defaults = Defaults(
        layers=("layer2", "layer3"),
        rule="max",
        calibration="loo",
        calibrations=("loo", "holdout"),
        tail=TailSpec(fuse="mean", smooth="gauss", sigma=4.0),
    )
    settings: type[Settings] = SgfrSettings

    def check(self, options: FitOptions) -> None:
        settings = self._settings(options)
        if settings.reference in options.scored_layers:
            raise DataError(f"sgfr: reference: {settings.reference} is among the scored layers already")

    def taps(self, options: FitOptions) -> tuple[str, ...]:
        reference = self._settings(options).reference
        return (*options.scored_layers, reference) if reference else options.scored_layers

    def keep(self, options: FitOptions, taps: Mapping[str, F32]) -> dict[str, NDArray[Any]]:
        with np.errstate(over="ignore"):  # the Gram matrix refuses infinities, naming them
            return {name: taps[name][0].astype(np.float16) for name in self.taps(options)}

    def fit(self, job: Job) -> MethodFit:
        options, settings = job.options, self._settings(job.options)
        taps, layers = self.taps(options), options.scored_layers
        grams: dict[str, F64] = {}
        for done, tap in enumerate(taps):
            job.progress(done, 2 * len(taps), "algebra")
            values = job.stored[tap]
            known = job.known.get(f"gram_{tap}")
            grams[tap] = gram(values, np.zeros(values[0].size)) if known is None else np.asarray(known)
        references = references_of(layers, taps, settings.sampling)
        pursuits = Pursuits(grams, layers, references, settings, job.train)
        scaling, mixes = self._unseen(job, pursuits, job.train, len(taps))
        self._refuse_copies(mixes, grams, layers)
        calibrating = scaling if job.held is None else self._unseen(job, pursuits, job.held, len(taps))[0]
        assert options.tail is not None  # resolved
        tail = options.tail
        if settings.level_scale == "nominal" and len(layers) > 1 and not tail.level_scale:
            means = [float(level.mean(dtype=np.float64)) for level in scaling.levels]
            tail = tail.model_copy(update={"level_scale": tuple(1.0 / mean for mean in means)})
        spec: dict[str, object] = {
            "layers": list(layers),
            "references": [reference or "" for reference in references],
            "detection": _detection(options),
            "atoms": min(settings.atoms, settings.samples, len(job.train)),
            "samples": min(settings.samples, len(job.train)),
            "selection": settings.selection,
            "unit": settings.unit,
            "eps": EPS,
            "resident": settings.resident,
        }
        arrays: dict[str, NDArray[Any]] = {}
        everything = job.held is None
        for tap in taps:
            values = job.stored[tap] if everything else job.stored[tap][job.train]
            arrays[f"bank_{tap}"] = values.reshape(len(values), -1)
            arrays[f"gram_{tap}"] = grams[tap] if everything else grams[tap][np.ix_(job.train, job.train)]
            spec[f"shape_{tap}"] = list(job.source.shape(tap))
        job.progress(1, 1, "algebra")
        details: dict[str, object] = {
            "atoms": spec["atoms"],
            "samples": spec["samples"],
            "sampled_by": dict(zip(layers, spec["references"], strict=True)),  # type: ignore[call-overload]
            "bank_bytes": sum(array.nbytes for name, array in arrays.items() if name.startswith("bank_")),
        }
        return MethodFit(spec, arrays, scaling, calibrating, tail=tail, details=details)

    def restore(self, options: FitOptions, spec: Mapping[str, Any], arrays: Stored, refit: Stored | None) -> Restored:
        # The bank is all that a refit needs, if it holds every picture that was fitted.
        stored: dict[str, NDArray[Any]] = {}
        known: dict[str, NDArray[Any]] = {}
        for tap in self.taps(options):
            if f"bank_{tap}" not in arrays:
                raise DataError(f"a refit cannot add the tap {tap}; run edge fit on the pictures again")
            rows = arrays[f"bank_{tap}"]
            stored[tap] = rows.reshape(len(rows), *spec[f"shape_{tap}"])
            known[f"gram_{tap}"] = arrays[f"gram_{tap}"]
        return Restored(stored, known)

    @staticmethod
    def _settings(options: FitOptions) -> SgfrSettings:
        return settings_of(SgfrSettings, "sgfr", options.settings)

    @staticmethod
    def _unseen(job: Job, pursuits: Pursuits, pictures: Indices, taps: int) -> tuple[Unseen, list[F64]]:
        mixes = pursuits.mixes(pictures)
        levels, norms = [], np.zeros(len(pictures))
        layers = job.options.scored_layers
        for done, (layer, mix) in enumerate(zip(layers, mixes, strict=True)):
            job.progress(taps + done, 2 * taps, "algebra")
            squares = residual_squares(job.stored[layer], mix)
            levels.append(np.sqrt(squares))
            if layer == _detection(job.options):
                norms = np.sqrt(squares.sum(axis=(1, 2), dtype=np.float64))
        return Unseen(levels, norms), mixes

    @staticmethod
    def _refuse_copies(mixes: Sequence[F64], grams: Mapping[str, F64], layers: Sequence[str]) -> None:
        for mix, layer in zip(mixes, layers, strict=True):
            energies = leftover(mix, grams[layer])
            squares = np.maximum(grams[layer].diagonal().max(), np.finfo(np.float64).tiny)
            if not float(np.median(energies)) > ALIKE**2 * squares:
                raise DataError(
                    "the good pictures do not differ from each other at all (copies of one picture?): every one is"
                    " rebuilt from the others without a residual; take pictures of different good parts"
                )


class Pursuits:
    """Reconstructions of pictures of known inner products by the pictures ``train``, themselves excepted."""

    def __init__(
        self,
        grams: Mapping[str, F64],
        layers: Sequence[str],
        references: Sequence[str | None],
        settings: SgfrSettings,
        train: Indices,
    ) -> None:
        self._grams, self._layers, self._references = grams, layers, references
        self._settings, self._train = settings, train
        self._inner = {name: matrix[np.ix_(train, train)] for name, matrix in grams.items()}

    def mixes(self, pictures: Indices) -> list[F64]:
        """For each layer C, float64 [len(pictures), N]: e_i = sum_j C_ij x_j, with C_ii = 1."""
        result = [np.zeros((len(pictures), len(self._grams[layer]))) for layer in self._layers]
        atoms = min(self._settings.atoms, self._settings.samples)
        for place, picture in enumerate(pictures):
            sampled: dict[str, Indices] = {}
            for mix, layer, reference in zip(result, self._layers, self._references, strict=True):
                places = None
                if reference is not None:
                    if reference not in sampled:
                        chosen = self._pursue(reference, int(picture), None, self._settings.samples)[0]
                        sampled[reference] = np.sort(chosen)
                    places = sampled[reference]
                support, coefficients = self._pursue(layer, int(picture), places, atoms)
                mix[place, self._train[support]] = -coefficients
                mix[place, picture] = 1.0
        return result

    def _pursue(self, tap: str, picture: int, places: Indices | None, atoms: int) -> tuple[Indices, F64]:
        """Support (places in ``train``) and coefficients, from all of ``train`` or from ``places``."""
        settings, matrix, inner = self._settings, self._grams[tap], self._inner[tap]
        own = np.flatnonzero(self._train == picture)
        rows = self._train
        if places is not None:
            inner, rows = inner[np.ix_(places, places)], rows[places]
        found = pursue(
            inner,
            matrix[rows, picture],
            float(matrix[picture, picture]),
            atoms,
            selection=settings.selection,
            lengths=lengths_of(inner) if settings.unit else None,
            eps=EPS,
            forbidden=int(own[0]) if places is None and len(own) else None,
        )
        return found.support if places is None else places[found.support], found.coefficients


def leftover(mix: F64, matrix: F64) -> F64:
    """||sum_j C_ij x_j||^2 of each row of ``mix``, float64 [n], from the Gram matrix alone."""
    energies: F64 = np.maximum(np.einsum("ij,ij->i", mix @ matrix, mix), 0.0)
    return energies


def references_of(layers: Sequence[str], taps: Sequence[str], sampling: str) -> list[str | None]:
    """For each layer the tap it is sampled by. ``taps``: the layers and what lies deeper, in this order."""
    if sampling == "none":
        return [None] * len(layers)
    result: list[str | None] = []
    for layer in layers:
        place = len(taps) - 1 if sampling == "last" else list(taps).index(layer) + 1
        result.append(taps[place] if place < len(taps) and taps[place] != layer else None)
    return result


def _detection(options: FitOptions) -> str:
    layers = options.scored_layers
    return options.detection if options.detection in layers else layers[-1]
