"""The table of ``edge eval --compare``, for the terminal and as Markdown."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from engines.files import write_atomically

if TYPE_CHECKING:
    from calibration.compare import Comparison, Row, Spread
    from calibration.published import Published

HEADER = (
    "data",
    "method",
    "backbone",
    "px",
    "image AUROC",
    "pixel AUROC",
    "AUPRO to 0.3",
    "pixel AP",
    "fit s",
    "engine ms",
    "head ms",
    "bundle MB",
    "published",
)
NUMBERS = slice(3, 12)  # the columns that are set to the right
_SHORT = {"image_auroc": "image AUROC", "pixel_auroc": "pixel AUROC", "aupro": "AUPRO", "ap": "pixel AP"}
_MEANS = {"mean": "mean of {}", "mean_texture": "mean of {} textures", "mean_object": "mean of {} objects"}
LEGEND = (
    "Accuracy in per cent, several seeds as mean (least to largest). engine, head ms: one picture on one thread,"
    " median; a method whose whole network is the graph has its cost in the engine's."
)


class Notes:
    """Numbered footnotes, each once."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def mark(self, note: str | None) -> str:
        """The reference to a note, " [1]"; nothing for None."""
        if note is None:
            return ""
        if note not in self.lines:
            self.lines.append(note)
        return f" [{self.lines.index(note) + 1}]"

    def numbered(self) -> list[str]:
        return [f"[{number}] {line}" for number, line in enumerate(self.lines, 1)]


def table(rows: Sequence[Row]) -> tuple[list[tuple[str, ...]], list[str]]:
    """The cells of every row under :data:`HEADER`, and the footnotes that they refer to."""
    notes = Notes()
    return [_cells(row, notes) for row in rows], notes.numbered()


def markdown(comparison: Comparison) -> str:
    """A table as GitHub shows it, with its notes below."""
    rows, notes = table(comparison.rows)
    lines = ["| " + " | ".join(HEADER) + " |"]
    rules = ["---"] * len(HEADER)
    rules[NUMBERS] = ["---:"] * len(rules[NUMBERS])
    lines.append("|" + "|".join(rules) + "|")
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    below = [LEGEND, *notes, *(f"Missing: {failure.message}" for failure in comparison.failures)]
    return "\n".join(lines) + "\n\n" + "\n".join(f"{line}  " for line in below) + "\n"


def write_markdown(target: str, comparison: Comparison) -> None:
    """Write :func:`markdown` to a file (atomically), or to stdout where ``target`` is ``-``."""
    if target == "-":
        sys.stdout.write(markdown(comparison))
    else:
        write_atomically(Path(target), markdown(comparison).encode())


def print_comparison(comparison: Comparison) -> None:
    """The table for the terminal. Published figures stand in lines of their own, in the columns of the same figures: a
    last column of sentences would be broken into words."""
    from rich.table import Table

    from edge.commands.tables import make_console

    if not comparison.rows:
        return
    console = make_console()
    notes = Notes()
    # 140 columns must do for all of it, seeds and published backbones too: what may break breaks where it reads well.
    shown = Table(*(name.replace(" ", "\n", 1) for name in HEADER[:-1]), padding=(0, 1, 0, 0))
    for column in shown.columns[NUMBERS]:
        column.justify = "right"
    for row in comparison.rows:
        data, method, *cells = _cells(row, Notes())[:-1]
        data = data.replace(f" {row.category}", f"\n{row.category}") if row.category else data
        method = method.replace(" (", "\n(").replace(", mean of", ",\nmean of")
        shown.add_row(data, method, *(cell.replace(" (", "\n").removesuffix(")") for cell in cells))
        for source, figures in _runs(row.published, notes).items():
            given = [f"{figures[name]:.1f}" if name in figures else "" for name in row.metrics]
            shown.add_row("", "published", (source.told + source.marks).strip(), source.size, *given, style="dim")
        shown.add_section()
    console.print(shown)
    for line in (LEGEND, *notes.numbered()):
        console.print(line, markup=False, highlight=False)


def _cells(row: Row, notes: Notes) -> tuple[str, ...]:
    over_categories = row.category in _MEANS
    method = row.method.upper() + (f" ({row.variant})" if row.variant else "")
    if len(row.seeds) > 1:
        method += f", mean of {len(row.seeds)} seeds"
    backbone = row.backbone or "none"
    if row.precision != "f32":
        backbone += f", {row.precision}"
    height, width = row.input_size
    return (
        _data(row),
        method,
        backbone,
        str(height) if height == width else f"{height} x {width}",
        *(_accuracy(spread, not over_categories) for spread in row.metrics.values()),
        _plain(row.fit_seconds, 1),
        _plain(row.engine_ms, 1),
        _plain(row.head_ms, 1),
        _plain(row.bundle_bytes, 1e-6),
        _published(row.published, notes),
    )


def _data(row: Row) -> str:
    if row.category in _MEANS:
        from calibration.compare import categories_of

        return f"{row.dataset}, {_MEANS[row.category].format(len(categories_of(row.dataset)[row.category]))}"
    return row.dataset if row.category in ("", "all") else f"{row.dataset} {row.category}"


def _accuracy(spread: Spread | None, with_range: bool) -> str:
    if spread is None:
        return "-"
    text = f"{100 * spread.mean:.2f}"
    if spread.count > 1 and with_range:
        text += f" ({100 * spread.low:.2f}-{100 * spread.high:.2f})"
    return text


def _plain(spread: Spread | None, factor: float) -> str:
    """Three digits: more would claim what a busy machine does not give."""
    if spread is None:
        return "-"
    value = spread.mean * factor
    return f"{value:.0f}" if value >= 99.95 else f"{value:.1f}" if value >= 9.995 else f"{value:.2f}"


@dataclass(frozen=True)
class Source:
    """Where published figures come from. told: backbone and what else tells the run apart; marks: " [1]"."""

    told: str
    size: str
    marks: str

    def __str__(self) -> str:
        inside = ", ".join(part for part in (self.told, f"{self.size} px" if self.size else "") if part)
        return (f" ({inside})" if inside else "") + self.marks


def _runs(figures: dict[str, tuple[Published, ...]], notes: Notes) -> dict[Source, dict[str, float]]:
    """What one run of a paper gave stands together: its source -> figure by name, per cent."""
    runs: dict[Source, dict[str, float]] = {}
    for name, found in figures.items():
        for figure in found:
            told = ", ".join(part for part in (figure.backbone, figure.setting) if part)
            source = Source(told, str(figure.resolution or ""), notes.mark(figure.note))
            runs.setdefault(source, {})[name] = figure.value
    return runs


def _published(figures: dict[str, tuple[Published, ...]], notes: Notes) -> str:
    """ "image AUROC 100.0 (EfficientNet-B5) [1]; AUPRO 95.8 (ResNet18, 3 layers, 256 px)"."""
    runs = _runs(figures, notes)
    told = (", ".join(f"{_SHORT[name]} {value:.1f}" for name, value in run.items()) + str(s) for s, run in runs.items())
    return "; ".join(told) or "-"
