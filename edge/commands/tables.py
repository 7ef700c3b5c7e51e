"""Tables that more than one command prints."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console
from rich.table import Table

from edge.wire.ledger import Counts


def make_console() -> Console:
    """A console for tables: as wide as the terminal, and wide enough for every column where there is none."""
    console = Console()
    return console if console.is_terminal else Console(width=140)


def balance_table(counts: Mapping[str, Counts]) -> Table:
    """A row a camera: captured = scored + not inspected (by reason) + open."""
    reasons = [r for r in next(iter(counts.values())).not_inspected if any(c.not_inspected[r] for c in counts.values())]
    table = Table("camera", *(["captured", "scored", *reasons, "open", "balance"]))
    for column in table.columns[1:]:
        column.justify = "right"
    for name, c in counts.items():
        cells = [c.captured, c.scored, *(c.not_inspected[r] for r in reasons), c.open]
        table.add_row(name, *map(str, cells), "adds up" if c.balanced else "DOES NOT ADD UP")
    return table
