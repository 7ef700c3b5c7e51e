"""What ``edge bench heads`` times, in a process of its own: ``python -m edge.bench.heads_worker SPEC`` prints one JSON
line with milliseconds by round.

``SPEC``: ``subject`` (fre, sgfr, omp), ``rounds``, and optionally ``bundle`` (its head on its arrays), ``shapes`` (of
random taps) and ``shape`` (of OMP's dictionary: features, pictures, atoms).
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_info

from edge.bundle import load_bundle
from edge.errors import ResourceError
from edge.heads import Array, Spec, aligned_empty, resident_arrays, single_thread
from edge.heads.bank import Bank, widened_rows
from edge.heads.fre import FreHead, pooled_shape
from edge.heads.omp import Pursuit, pursue
from edge.heads.sgfr import SgfrHead
from edge.memory import available_bytes, gigabytes

RESNET18 = {"layer1": (64, 64, 64), "layer2": (128, 32, 32), "layer3": (256, 16, 16)}  # at 256 x 256
WIDE_RESNET50 = {"layer2": (512, 32, 32), "layer3": (1024, 16, 16)}
PICTURES = 209  # good pictures of MVTec's bottle
COMPONENTS = 200
ATOMS, SAMPLES = 17, 40  # SGFR's settings for MVTec
OMP_FEATURES = 524_288  # WideResNet50's layer2

Parts = Sequence[NDArray[Any]]
Arrays = Mapping[str, NDArray[Any]]
Shapes = Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class Subject:
    """One way of running a head. parts: [n, D] arrays that one pass reads; passes: how often they must be passed."""

    name: str
    batch: int
    kernel: str
    resident_bytes: int
    passes: int
    parts: Parts
    run: Callable[[], object]


def run(spec: Mapping[str, Any]) -> dict[str, Any]:
    """One subject's figures, plain types. Raises ResourceError where memory does not do."""
    theirs = _scikit_learn() if spec["subject"] == "omp" else None
    single_thread()  # after every import that brings a BLAS of its own
    rounds = int(spec["rounds"])
    if spec["subject"] == "omp":
        features, pictures, atoms = spec.get("shape", (OMP_FEATURES, PICTURES, ATOMS))
        return {"blas": _blas(), "omp": time_omp(features, pictures, atoms, rounds, theirs)}
    fre = spec["subject"] == "fre"
    if "bundle" in spec:
        bundle = load_bundle(Path(spec["bundle"]))
        settings, arrays = bundle.manifest.spec, bundle.arrays
    else:
        shapes = spec.get("shapes", RESNET18 if fre else WIDE_RESNET50)
        settings, arrays = (random_fre if fre else random_sgfr)(shapes)
    subjects = (fre_subjects if fre else sgfr_subjects)(settings, arrays)
    return {"blas": _blas(), "rows": time_subjects(subjects, rounds)}


def time_subjects(subjects: Sequence[Subject], rounds: int) -> list[dict[str, Any]]:
    """Reads and heads in turn, after one round that warms up; the fastest read of a round is its floor."""
    heads: list[list[float]] = [[] for _ in subjects]
    reads: list[list[float]] = [[] for _ in subjects]
    for number in range(rounds + 1):
        for index, subject in enumerate(subjects):
            fastest, took = _fastest_read(subject.parts), _milliseconds(subject.run)
            if number:
                reads[index].append(fastest)
                heads[index].append(took)
    return [
        {
            "name": subject.name,
            "batch": subject.batch,
            "kernel": subject.kernel,
            "resident_bytes": subject.resident_bytes,
            "passes": subject.passes,
            "pass_bytes": sum(part.nbytes for part in subject.parts),
            "head_ms": heads[index],
            "pass_ms": reads[index],
        }
        for index, subject in enumerate(subjects)
    ]


# -- plain reads ----------------------------------------------------------------------------------------------


def read_largest(parts: Parts) -> None:
    """Row after row: the largest integer among the bytes."""
    for part in parts:
        for row in part:
            row.view(np.int32).max()


def read_products(parts: Parts) -> None:
    """Row after row: BLAS's scalar product of a row with itself."""
    for part in parts:
        for row in part:
            values = row.view(np.float32)
            np.dot(values, values)


def read_rows_abreast(parts: Parts) -> None:
    """Several rows abreast, by BLAS's matrix-vector product: more requests to memory are under way at a time."""
    for part in parts:
        values = part.view(np.float32)
        np.matmul(values, _ones(values.shape[1]))


READS: tuple[Callable[[Parts], None], ...] = (read_largest, read_products, read_rows_abreast)
_ONES: dict[int, Array] = {}


def _ones(size: int) -> Array:
    if size not in _ONES:
        _ONES[size] = np.ones(size, np.float32)
    return _ONES[size]


def _fastest_read(parts: Parts) -> float:
    with np.errstate(all="ignore"):  # pairs of float16 taken for float32 may be any number
        return min(_milliseconds(partial(read, parts)) for read in READS)


# -- heads ----------------------------------------------------------------------------------------------------


def fre_subjects(spec: Spec, arrays: Arrays) -> list[Subject]:
    """An FRE head with maps and, where the score alone is cheaper, without."""
    arrays = resident_arrays("fre", spec, arrays)
    head = FreHead(spec, arrays)
    kinds = ("enc", "dec") if head.encoder == "ae" else ("w",)
    parts = [arrays[f"{kind}_{name}"] for name in head.taps for kind in kinds]
    found = []
    for batch in (1, 4):
        taps = random_taps(spec, head.taps, batch)
        passes = 2 // len(kinds)  # an untied auto-encoder has a matrix for each
        kernel, size = "sgemv on float32, blocks of rows", _bytes(arrays)
        found.append(Subject("fre, map", batch, kernel, size, passes, parts, partial(head.residuals, taps)))
        if head.encoder == "pca":
            name, own = f"fre, score only ({head.detection})", [arrays[f"w_{head.detection}"]]
            found.append(Subject(name, batch, kernel, size, 1, own, partial(head.norms, taps)))
    return found


def sgfr_subjects(spec: Spec, arrays: Arrays) -> list[Subject]:
    """An SGFR head on its banks as float32, where memory allows, and as they are stored."""
    wide = resident_arrays("sgfr", {**spec, "resident": "auto"}, arrays)
    found = []
    for resident in [wide] if wide is arrays else [wide, arrays]:
        head = SgfrHead(spec, resident)
        half = any(array.dtype == np.float16 for array in resident.values())
        for batch in (1, 4):
            kernel = "sgemv" if batch == 1 else "sgemm"
            kernel = f"float16 widened, {kernel}" if half else f"{kernel} on float32"
            taps = random_taps(spec, head.taps, batch)
            parts = _sgfr_parts(spec, resident, batch)
            found.append(Subject("sgfr", batch, kernel, _bytes(resident), 1, parts, partial(head.residuals, taps)))
    return found


def _sgfr_parts(spec: Spec, arrays: Arrays, batch: int) -> Parts:
    """What pictures make SGFR read: once the banks that are pursued whole; and for each picture as many rows as are
    sampled, and the chosen ones again (which ones they are does not matter to a read: the first will do)."""
    layers, references = list(spec["layers"]), list(spec["references"])
    whole = {reference or layer for layer, reference in zip(layers, references, strict=True)}
    atoms, samples = int(spec["atoms"]), int(spec["samples"])
    own = [arrays[f"bank_{layer}"][:samples] for layer in layers if layer not in whole]
    own += [arrays[f"bank_{layer}"][:atoms] for layer in layers]
    return [arrays[f"bank_{name}"] for name in sorted(whole)] + own * batch


def random_fre(shapes: Shapes, components: int = COMPONENTS) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Spec and arrays of an FRE head on ``shapes`` (tap -> [C, H, W]), pool 2: orthonormal rows."""
    random = np.random.default_rng(0)
    spec: dict[str, Any] = {"layers": list(shapes), "detection": list(shapes)[-1], "pool": 2}
    arrays: dict[str, NDArray[Any]] = {}
    for name, (channels, height, width) in shapes.items():
        size = int(np.prod(pooled_shape((channels, height, width), 2)))
        rows = random.standard_normal((min(components, size // 4), size), np.float32)
        # Orthonormal by the Cholesky factor of their inner products: cheaper than a QR of the long side.
        inner = (rows @ rows.T).astype(np.float64)
        arrays[f"w_{name}"] = aligned_empty(rows.shape)
        arrays[f"w_{name}"][:] = np.linalg.inv(np.linalg.cholesky(inner)).astype(np.float32) @ rows
        arrays[f"mu_{name}"] = random.standard_normal(size, np.float32)
        spec[f"shape_{name}"] = [channels, height, width]
    return spec, arrays


def random_sgfr(shapes: Shapes, pictures: int = PICTURES) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Spec and arrays of an SGFR head on the two deepest of ``shapes``, the upper sampled by the lower; banks in
    float16, as a bundle holds them."""
    layers = list(shapes)[-2:]
    spec: dict[str, Any] = {"layers": layers, "references": [layers[1], ""], "detection": layers[1]}
    spec |= {"atoms": ATOMS, "samples": SAMPLES, "selection": "abs", "unit": False, "eps": 1e-6}
    arrays: dict[str, NDArray[Any]] = {}
    for name in layers:
        rows = nominal_rows(pictures, int(np.prod(shapes[name])))
        arrays[f"bank_{name}"] = rows.astype(np.float16)
        arrays[f"gram_{name}"] = (rows @ rows.T).astype(np.float64)
        spec[f"shape_{name}"] = list(shapes[name])
    return spec, arrays


def random_taps(spec: Spec, names: Sequence[str], batch: int) -> dict[str, Array]:
    """Feature maps like :func:`nominal_rows`, of pictures that no bank holds."""
    taps = {}
    for name in names:
        shape = tuple(int(n) for n in spec[f"shape_{name}"])
        taps[name] = nominal_rows(batch, int(np.prod(shape)), seed=7).reshape(batch, *shape)
    return taps


def nominal_rows(count: int, size: int, seed: int = 0) -> Array:
    """float32 [count, size], non-negative, alike but for a few common directions and noise: what the feature maps of
    good pictures are to a pursuit."""
    pattern = np.random.default_rng(1).standard_normal((9, size), np.float32)
    random = np.random.default_rng(seed)
    rows = aligned_empty((count, size))
    for row in rows:
        weights = np.concatenate([[1.0], 0.4 * random.standard_normal(8)]).astype(np.float32)
        np.maximum(weights @ pattern + np.float32(0.3) * random.standard_normal(size, np.float32), 0, out=row)
    return rows


# -- orthogonal matching pursuit ------------------------------------------------------------------------------


def time_omp(features: int, pictures: int, atoms: int, rounds: int, theirs: Any) -> dict[str, Any]:
    """Ours (inner products, then the pursuit) and ``theirs`` (scikit-learn's function, or None) in turn, on float32
    [features, pictures] in both orders of memory."""
    needed, free = 4 * features * pictures * (5 if theirs else 3), available_bytes()
    if free is not None and needed > free:
        raise ResourceError(f"the comparison needs {gigabytes(needed)} of memory and {gigabytes(free)} are free")
    rows = widened_rows(nominal_rows(pictures, features).astype(np.float16), "dictionary")
    picture = nominal_rows(1, features, seed=7)[0]
    gram, energy, bank = (rows @ rows.T).astype(np.float64), float(picture @ picture), Bank(rows)
    orders = {"column-major": np.asfortranarray(rows.T), "C-ordered": np.ascontiguousarray(rows.T)} if theirs else {}

    def ours() -> Pursuit:
        return pursue(gram, bank.correlate([picture])[0], energy, atoms)

    own: list[float] = []
    floor: list[float] = []
    other: dict[str, list[float]] = {order: [] for order in orders}
    for number in range(rounds + 1):
        read, took = _fastest_read([rows]), _milliseconds(ours)
        times = {
            order: _milliseconds(partial(theirs, dictionary, picture, n_nonzero_coefs=atoms))
            for order, dictionary in orders.items()
        }
        if number:
            own.append(took)
            floor.append(read)
            for order, value in times.items():
                other[order].append(value)
    same = None
    if theirs:
        expected = np.flatnonzero(theirs(orders["column-major"], picture, n_nonzero_coefs=atoms))
        same = set(expected.tolist()) == set(ours().support.tolist())
    found = {"features": features, "pictures": pictures, "atoms": atoms, "same_atoms": same}
    return {**found, "ours_ms": own, "floor_ms": floor, "theirs_ms": other}


def _scikit_learn() -> Any:
    """scikit-learn's ``orthogonal_mp``; None where it is not installed (it is no dependency)."""
    try:
        from sklearn.linear_model import orthogonal_mp
    except ImportError:
        return None
    return orthogonal_mp


def _blas() -> str:
    """NumPy's BLAS, as far as it says."""
    for info in threadpool_info():
        if info.get("user_api") == "blas" and "numpy" in info.get("filepath", ""):
            return f"{info['internal_api']} {info['version']} {info.get('architecture') or ''}".strip()
    return "unknown"


def _bytes(arrays: Arrays) -> int:
    return sum(array.nbytes for array in arrays.values())


def _milliseconds(what: Callable[[], object]) -> float:
    begun = time.perf_counter()
    what()
    return (time.perf_counter() - begun) * 1e3


def main() -> None:
    print(json.dumps(run(json.loads(sys.argv[1]))))


if __name__ == "__main__":
    main()
