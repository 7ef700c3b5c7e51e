"""``edge bench heads``: how long a head takes, against a plain read of what it must read; OMP against scikit-learn's.

A head uses every value it keeps once or twice, so memory bandwidth bounds it. The floor of a head is the time of the
fastest of three plain reads of the very bytes that it must read, in the same process, in turn with it, times the
passes: FRE's subspace twice for a map (nothing can be rebuilt before the code knows all features; where blocks of rows
stay in the second-level cache the second pass need not come from memory, so that the ratio may be below 1) and once for
a score; of SGFR's banks all rows where the pursuit is over all, else the sampled rows, and the chosen ones again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge.bench.processes import BenchError, run_worker
from edge.bench.spread import Spread, ratios, spread

if TYPE_CHECKING:
    from rich.console import Console

METHODS = ("fre", "sgfr")
FLOOR_TARGET = 1.5
OMP_TARGET = 50.0
ROUNDS = 7
TIMEOUT_S = 1800.0

ReportProgress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Row:
    """One way of running one head. ``read_bytes``: what one run must read, each pass counted; ``ratio``: head over
    floor, round by round; ``once``: over a single pass, where the floor has two."""

    name: str
    batch: int
    kernel: str
    resident_bytes: int
    passes: int
    read_bytes: int
    head_ms: Spread
    floor_ms: Spread
    ratio: Spread
    once: Spread

    @property
    def judged(self) -> bool:
        """Several pictures at once are bound by arithmetic, and float16 by its widening: told, not judged."""
        return self.batch == 1 and "float16" not in self.kernel

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "batch": self.batch,
            "kernel": self.kernel,
            "resident_bytes": self.resident_bytes,
            "passes": self.passes,
            "read_bytes": self.read_bytes,
            "head_ms": self.head_ms.as_json(),
            "floor_ms": self.floor_ms.as_json(),
            "ratio": self.ratio.as_json(),
            "ratio_to_one_pass": self.once.as_json(),
        }


@dataclass(frozen=True)
class Omp:
    """Gram OMP of one picture (inner products with all columns, then the pursuit) against scikit-learn's on the same
    float32 dictionary, C-ordered and column-major; ``theirs_ms`` and ``ratios`` are empty where scikit-learn is not
    installed. ``same_atoms``: both chose the same."""

    features: int
    pictures: int
    atoms: int
    ours_ms: Spread
    floor_ms: Spread
    theirs_ms: dict[str, Spread]
    ratios: dict[str, Spread]
    same_atoms: bool | None

    def as_json(self) -> dict[str, Any]:
        return {
            "features": self.features,
            "pictures": self.pictures,
            "atoms": self.atoms,
            "ours_ms": self.ours_ms.as_json(),
            "floor_ms": self.floor_ms.as_json(),
            "scikit_learn_ms": {order: figure.as_json() for order, figure in self.theirs_ms.items()},
            "ratios": {order: figure.as_json() for order, figure in self.ratios.items()},
            "same_atoms": self.same_atoms,
            "target": OMP_TARGET,
        }


@dataclass(frozen=True)
class Heads:
    """All subjects of one run."""

    blas: str
    rows: tuple[Row, ...]
    omp: Omp | None

    @property
    def judged(self) -> dict[str, Spread]:
        figures = {f"{row.name} x {row.batch}, ratio": row.ratio for row in self.rows}
        if self.omp is not None:
            figures |= {f"OMP, {order}, ratio": figure for order, figure in self.omp.ratios.items()}
        return figures

    @property
    def met(self) -> bool:
        return all(row.ratio.median <= FLOOR_TARGET for row in self.rows if row.judged) and (
            self.omp is None or all(figure.median >= OMP_TARGET for figure in self.omp.ratios.values())
        )

    def as_json(self) -> dict[str, Any]:
        return {
            "blas": self.blas,
            "threads": 1,
            "rows": [row.as_json() for row in self.rows],
            "floor_target": FLOOR_TARGET,
            "omp": None if self.omp is None else self.omp.as_json(),
            "met": self.met,
        }


def measure(methods: Sequence[str], bundle: Path | None, rounds: int, progress: ReportProgress) -> Heads:
    """Every subject in a fresh process, its parts in turn, ``rounds`` times after one that only warms up.

    bundle: measure its head on its arrays, in place of random ones of ``methods``. Raises BenchError for a method
    whose network is a graph (there is no head to speak of) and for a worker that fails."""
    unknown = [method for method in methods if method not in METHODS]
    if unknown:
        raise BenchError(_no_head(unknown[0]))
    subjects: list[dict[str, Any]] = [{"subject": method} for method in methods]
    if bundle is not None:
        subjects = [{"subject": _method_of(bundle), "bundle": str(bundle)}]
    elif "sgfr" in methods:
        subjects.append({"subject": "omp"})
    rows: list[Row] = []
    omp, blas = None, ""
    for done, subject in enumerate(subjects):
        progress(done, len(subjects), "heads")
        found = run_worker("edge.bench.heads_worker", {**subject, "rounds": rounds}, TIMEOUT_S)
        blas = found["blas"]
        rows += [row_of(raw) for raw in found.get("rows", ())]
        if "omp" in found:
            omp = omp_of(found["omp"])
    progress(len(subjects), len(subjects), "heads")
    return Heads(blas, tuple(rows), omp)


def row_of(raw: Mapping[str, Any]) -> Row:
    """A row from what the worker timed: milliseconds by round of the head and of one pass over its bytes."""
    passes = int(raw["passes"])
    head, once = raw["head_ms"], raw["pass_ms"]
    floor = [passes * value for value in once]
    return Row(
        raw["name"],
        raw["batch"],
        raw["kernel"],
        raw["resident_bytes"],
        passes,
        passes * raw["pass_bytes"],
        spread(head),
        spread(floor),
        spread(ratios(head, floor)),
        spread(ratios(head, once)),
    )


def omp_of(raw: Mapping[str, Any]) -> Omp:
    """OMP's figures from the worker's milliseconds by round."""
    ours, theirs = raw["ours_ms"], raw["theirs_ms"]
    return Omp(
        raw["features"],
        raw["pictures"],
        raw["atoms"],
        spread(ours),
        spread(raw["floor_ms"]),
        {order: spread(values) for order, values in theirs.items()},
        {order: spread(ratios(values, ours)) for order, values in theirs.items()},
        raw["same_atoms"],
    )


def _method_of(bundle: Path) -> str:
    from edge.bundle import load_bundle

    method = load_bundle(bundle).manifest.method
    if method not in METHODS:
        raise BenchError(f"{bundle}: {_no_head(method)}")
    return method


def _no_head(method: str) -> str:
    return f"the whole network of {method} is the engine's; of heads that read arrays there are {', '.join(METHODS)}"


def heads_table(console: Console, result: Heads) -> None:
    """The figures as people read them."""
    from rich.table import Table

    if result.rows:
        table = Table("head", "kernel")
        for name in ("pictures", "resident MB", "read MB", "passes", "ms", "IQR", "floor ms", "ratio", "to one pass"):
            table.add_column(name, justify="right")
        for row in result.rows:
            table.add_row(
                row.name,
                row.kernel,
                str(row.batch),
                f"{row.resident_bytes / 1e6:.0f}",
                f"{row.read_bytes / 1e6:.0f}",
                str(row.passes),
                f"{row.head_ms.median:.2f}",
                f"{row.head_ms.iqr:.2f}",
                f"{row.floor_ms.median:.2f}",
                f"{row.ratio.median:.2f}",
                f"{row.once.median:.2f}",
            )
        console.print(table)
        judged = [row for row in result.rows if row.judged]
        met = all(row.ratio.median <= FLOOR_TARGET for row in judged)
        worst = max((row.ratio.median for row in judged), default=0.0)
        console.print(
            f"one picture, float32: at most {worst:.2f} times the floor (at most {FLOOR_TARGET:g}: {_met(met)});"
            " floor: the fastest of three plain reads of the same bytes, one thread"
        )
    if result.omp is not None:
        _print_omp(console, result.omp)
    console.print(f"BLAS: {result.blas}, one thread", highlight=False)


def _print_omp(console: Console, omp: Omp) -> None:
    console.print(
        f"OMP, {omp.features} x {omp.pictures} float32, {omp.atoms} atoms: {omp.ours_ms.median:.1f} ms by inner"
        f" products ({omp.ours_ms.median / omp.floor_ms.median:.2f} times a plain read of the dictionary,"
        f" {omp.floor_ms.median:.1f} ms)"
    )
    for order, figure in omp.ratios.items():
        console.print(
            f"scikit-learn's orthogonal_mp, {order}: {omp.theirs_ms[order].median:.0f} ms,"
            f" {figure.median:.1f} ({figure.min:.1f} to {figure.max:.1f}) times as long"
            f" (at least {OMP_TARGET:g}: {_met(figure.median >= OMP_TARGET)})"
        )
    if not omp.ratios:
        console.print("scikit-learn is not installed (it is in the extra dev): nothing to compare with")
    elif not omp.same_atoms:
        console.print("they chose other atoms than ours: compare with care", style="bold yellow")


def _met(met: bool) -> str:
    return "met" if met else "MISSED"
