"""``edge eval --compare``: evaluations of several bundles as one table, beside what the papers report.

A row is a data set, a method and a backbone. Evaluations that differ by nothing but a seed (of the split or of the
training) are one row: their mean, with the least and the largest. Where all categories of a known data set are there, a
row with their unweighted mean follows, as the papers have it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from calibration import Progress, no_progress
from calibration.evaluate import TEXTURES, EvalReport, evaluate
from calibration.published import CATEGORIES, MEAN, Published, published
from edge.bundle import MANIFEST, load_bundle
from edge.errors import DataError, EdgeError, Exit
from engines import EngineError

MAX_REPORT = 256 * 2**20  # a million pictures' scores

METRICS = {"image_auroc": "image_auroc", "pixel_auroc": "pixel_auroc", "aupro": "aupro30", "ap": "pixel_ap"}
"""Figures of an evaluation, as shares -> the papers' metric of the same definition."""


class _Stored(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class StoredTiming(_Stored):
    """:class:`calibration.timing.Timing`."""

    engine_ms: float
    head_ms: float


class StoredFitted(_Stored):
    """What the table needs of :class:`calibration.evaluate.Fitted`."""

    method: str
    backbone: str | None
    precision: str
    input_size: tuple[int, int]
    settings: dict[str, Any]
    training_seed: int | None
    bundle_sha256: str
    bundle_bytes: int
    fit_seconds: float | None
    timing: StoredTiming | None


class Result(_Stored):
    """What the table needs of :class:`calibration.evaluate.EvalReport`, fresh or read from its JSON."""

    bundle: str
    data: str
    dataset: str
    category: str
    seed: int | None
    image_auroc: float | None = Field(ge=0, le=1)
    pixel_auroc: float | None = Field(ge=0, le=1)
    aupro: float | None = Field(ge=0, le=1)
    ap: float | None = Field(ge=0, le=1)
    fitted: StoredFitted

    @property
    def name(self) -> str:
        return Path(self.bundle).name

    @property
    def seeds(self) -> tuple[int | None, int | None]:
        """Of the split and of the training."""
        return self.seed, self.fitted.training_seed

    @property
    def where(self) -> str:
        """What tells this data set from others: two folders of one name are one set only where it is a known one."""
        return f"{self.dataset}/{self.category}" if self.category else self.data

    @property
    def figures(self) -> tuple[float | None, ...]:
        return tuple(getattr(self, name) for name in METRICS)


@dataclass(frozen=True)
class Spread:
    """Mean of a figure over seeds (or categories), its least and its largest."""

    mean: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, values: Iterable[float | None]) -> Spread | None:
        """None where a value is missing: a mean over some seeds would pass for one over all."""
        found = list(values)
        known = [value for value in found if value is not None]
        if not known or len(known) < len(found):
            return None
        return cls(math.fsum(known) / len(known), min(known), max(known), len(known))


@dataclass(frozen=True)
class Row:
    """A line of the table.

    category: "" for a data set that the papers do not have; "mean", "mean_texture", "mean_object" over categories.
    variant: what tells the row from others of the same method and backbone. seeds: pairs of split and training seed.
    metrics: by the names of :data:`METRICS`, shares; times and size: see :class:`calibration.evaluate.Fitted`.
    published: by the same names, per cent."""

    dataset: str
    category: str
    method: str
    variant: str
    backbone: str | None
    precision: str
    input_size: tuple[int, int]
    seeds: tuple[tuple[int | None, int | None], ...]
    metrics: dict[str, Spread | None]
    fit_seconds: Spread | None
    engine_ms: Spread | None
    head_ms: Spread | None
    bundle_bytes: Spread | None
    published: dict[str, tuple[Published, ...]]
    bundles: tuple[str, ...]


@dataclass(frozen=True)
class Failure:
    """What could not be compared, in one line that names it."""

    message: str
    exit_code: Exit


@dataclass(frozen=True)
class Comparison:
    """rows: the table. failures: what is missing from it. notes: what was left alone, for people. evaluated: the fresh
    evaluations, in the order of the bundles."""

    rows: tuple[Row, ...]
    failures: tuple[Failure, ...]
    notes: tuple[str, ...]
    evaluated: tuple[EvalReport, ...]

    def as_json(self) -> dict[str, Any]:
        """Plain types for ``--json``."""
        return {
            "rows": [asdict(row) for row in self.rows],
            "failures": [failure.message for failure in self.failures],
        }


@dataclass(frozen=True)
class Found:
    """What the folders hold. loose: reports that were not named themselves; a file there may be something else."""

    bundles: tuple[Path, ...]
    reports: tuple[Path, ...]
    loose: frozenset[Path]
    failures: tuple[Failure, ...]


class NotAReport(DataError):
    """A JSON file of something else."""


def find(targets: Sequence[Path]) -> Found:
    """The bundles and reports that ``targets`` name: bundles (folder or .zip), reports (.json), and folders that hold
    some of either. Each once, in order."""
    bundles: dict[Path, None] = {}
    reports: dict[Path, None] = {}
    named: set[Path] = set()
    failures = []
    for target in targets:
        if not target.exists():
            failures.append(Failure(f"{target}: no such bundle, report or folder", Exit.BAD_BUNDLE))
        elif _is_bundle(target):
            bundles[target] = None
        elif target.is_file():
            reports[target] = None
            named.add(target)
        else:
            inside = sorted(path for path in target.iterdir() if not path.name.startswith("."))
            own = [path for path in inside if _is_bundle(path)]
            written = [path for path in inside if path.suffix == ".json" and path.is_file()]
            if not own and not written:
                failures.append(Failure(f"{target}: holds no bundle and no report of edge eval", Exit.BAD_BUNDLE))
            bundles.update(dict.fromkeys(own))
            reports.update(dict.fromkeys(written))
    return Found(tuple(bundles), tuple(reports), frozenset(set(reports) - named), tuple(failures))


def compare(
    found: Found,
    data: Path | None = None,
    layout: str | None = None,
    seed: int | None = None,
    *,
    skip_unreadable: bool = False,
    progress: Progress = no_progress,
) -> Comparison:
    """Evaluate the bundles on ``data`` (None: only the reports), each as :func:`calibration.evaluate.evaluate` does,
    and join them with the reports. ``layout``: None for each bundle's own. What fails becomes a :class:`Failure`; the
    others go on."""
    failures, notes = list(found.failures), []
    results: list[Result] = []
    for path in found.reports:
        try:
            results.append(read_result(path))
        except NotAReport as error:
            if path in found.loose:
                notes.append(str(error))
            else:
                failures.append(Failure(str(error), error.exit_code))
        except EdgeError as error:
            failures.append(Failure(str(error), error.exit_code))
    evaluated: list[EvalReport] = []
    for path in found.bundles if data is not None else ():
        assert data is not None
        try:
            bundle = load_bundle(path)
            report = evaluate(
                bundle,
                data,
                layout or bundle.manifest.split.layout,
                seed,
                skip_unreadable=skip_unreadable,
                progress=progress,
            )
        except (EdgeError, EngineError) as error:
            failures.append(_failure(path, error))
            continue
        evaluated.append(report)
        results.append(Result.model_validate(report.as_json()))
    if data is None:
        told = {result.name for result in results}
        silent = [path for path in found.bundles if path.name not in told]
        if silent:
            notes.append(f"{silent[0]}: not evaluated, as are {len(silent) - 1} others: that needs --data")
    return Comparison(tuple(make_rows(results)), tuple(failures), tuple(notes), tuple(evaluated))


def read_result(path: Path) -> Result:
    """A report that ``edge eval --json`` wrote. Raises DataError, one line; :class:`NotAReport` for JSON of another
    kind."""
    try:
        if path.stat().st_size > MAX_REPORT:
            raise DataError(f"{path}: {path.stat().st_size} bytes are more than any report of edge eval has")
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError):
        raise DataError(f"{path}: damaged or cut short; write it again with edge eval --json") from None
    if not isinstance(content, dict) or "image_auroc" not in content:
        raise NotAReport(f"{path}: not a report of edge eval")
    if "fitted" not in content:
        raise DataError(f"{path}: written by an older version, without the method; evaluate the bundle again")
    try:
        return Result.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise DataError(f"{path}: {where}: {first['msg']}; write it again with edge eval --json") from None


def make_rows(results: Sequence[Result]) -> list[Row]:
    """Group results into rows. Of two results of one bundle on the same data the later counts."""
    latest = {(result.fitted.bundle_sha256, result.where, result.seed): result for result in results}
    alike: dict[Any, list[Result]] = {}
    for result in latest.values():
        fitted = result.fitted
        key = result.where, fitted.method, fitted.backbone or "", fitted.precision, fitted.input_size
        alike.setdefault(key, []).append(result)
    rows = [row for group in alike.values() for row in _split(group)]
    rows += _means(rows)
    return sorted(rows, key=_order)


def _order(row: Row) -> tuple[Any, ...]:
    is_mean = row.category.startswith(MEAN)
    return row.dataset, is_mean, row.category, row.method, row.backbone or "", row.input_size, row.variant


def _split(group: Sequence[Result]) -> list[Row]:
    """The rows of one data set, method and backbone: one for all seeds of the same settings."""
    told = {name for result in group for name in result.fitted.settings}
    differing = sorted(name for name in told if len({_shown(result.fitted.settings.get(name)) for result in group}) > 1)
    by_settings: dict[str, list[Result]] = {}
    for result in group:
        variant = ", ".join(f"{name} {_shown(result.fitted.settings.get(name))}" for name in differing)
        by_settings.setdefault(variant, []).append(result)
    rows = []
    for variant, members in by_settings.items():
        # The same seed twice is no second seed: either the same fit again, or one that differs by what is not told.
        distinct = {(result.seeds, result.figures): result for result in reversed(members)}
        rounds: list[dict[Any, Result]] = []
        for result in reversed(distinct.values()):
            free = next((taken for taken in rounds if result.seeds not in taken), None)
            if free is None:
                free = {}
                rounds.append(free)
            free[result.seeds] = result
        for taken in rounds:
            names = ", ".join(result.name for result in taken.values())
            apart = ", ".join(part for part in (variant, names) if part) if len(rounds) > 1 else variant
            rows.append(_row(list(taken.values()), apart))
    return rows


def _row(results: Sequence[Result], variant: str) -> Row:
    first, fitted = results[0], results[0].fitted
    timings = [result.fitted.timing for result in results]
    row = Row(
        dataset=first.dataset,
        category=first.category,
        method=fitted.method,
        variant=variant,
        backbone=fitted.backbone,
        precision=fitted.precision,
        input_size=fitted.input_size,
        seeds=tuple(result.seeds for result in results),
        metrics={name: Spread.of(getattr(result, name) for result in results) for name in METRICS},
        fit_seconds=Spread.of(result.fitted.fit_seconds for result in results),
        engine_ms=Spread.of(timing.engine_ms if timing else None for timing in timings),
        head_ms=Spread.of(timing.head_ms if timing else None for timing in timings),
        bundle_bytes=Spread.of(result.fitted.bundle_bytes for result in results),
        published={},
        bundles=tuple(result.name for result in results),
    )
    return replace(row, published=_published(row))


def _published(row: Row) -> dict[str, tuple[Published, ...]]:
    """For every figure that the row has: another's figure beside an empty cell would compare nothing."""
    found = {
        name: published(row.method, row.dataset, row.category, metric, row.backbone)
        for name, metric in METRICS.items()
        if row.metrics[name] is not None
    }
    return {name: figures for name, figures in found.items() if figures}


def categories_of(dataset: str) -> dict[str, frozenset[str]]:
    """What a mean over categories of a known data set runs over: all of them, and of MVTec AD textures and objects."""
    everything = frozenset(CATEGORIES[dataset])
    if dataset != "MVTec AD":
        return {MEAN: everything}
    return {MEAN: everything, "mean_texture": TEXTURES, "mean_object": everything - TEXTURES}


def _means(rows: Sequence[Row]) -> list[Row]:
    """A row over the categories of every known data set that is complete; of MVTec AD also textures and objects."""
    found = []
    for dataset, categories in CATEGORIES.items():
        same: dict[Any, list[Row]] = {}
        for row in rows:
            if row.dataset == dataset and row.category in categories:
                key = row.method, row.variant, row.backbone, row.precision, row.input_size
                same.setdefault(key, []).append(row)
        for members in same.values():
            for name, wanted in categories_of(dataset).items():
                chosen = [row for row in members if row.category in wanted]
                if len(wanted) > 1 and {row.category for row in chosen} == wanted:
                    found.append(_mean(name, chosen))
    return found


def _mean(name: str, rows: Sequence[Row]) -> Row:
    def over(pick: Callable[[Row], Spread | None]) -> Spread | None:
        return Spread.of(spread.mean if spread is not None else None for spread in map(pick, rows))

    row = replace(
        rows[0],
        category=name,
        metrics={metric: over(lambda row, metric=metric: row.metrics[metric]) for metric in METRICS},  # type: ignore[misc]
        fit_seconds=over(lambda row: row.fit_seconds),
        engine_ms=over(lambda row: row.engine_ms),
        head_ms=over(lambda row: row.head_ms),
        bundle_bytes=over(lambda row: row.bundle_bytes),
        seeds=min((row.seeds for row in rows), key=len),
        bundles=tuple(bundle for row in rows for bundle in row.bundles),
    )
    return replace(row, published=_published(row))


def _is_bundle(path: Path) -> bool:
    return path.suffix == ".zip" if path.is_file() else (path / MANIFEST).is_file()


def _failure(path: Path, error: EdgeError | EngineError) -> Failure:
    line = str(error).splitlines()[0]
    code = error.exit_code if isinstance(error, EdgeError) else Exit.BAD_BUNDLE
    return Failure(line if str(path) in line else f"{path}: {line}", code)


def _shown(value: object) -> str:
    if isinstance(value, (list, tuple)):
        return "+".join(str(part) for part in value)
    return f"{value:g}" if isinstance(value, float) else str(value)
