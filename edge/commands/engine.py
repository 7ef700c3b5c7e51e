"""``edge engine``: backbones."""

from __future__ import annotations

from pathlib import Path

import click


@click.group("engine")
def command() -> None:
    """Export backbones to ONNX; list what is known."""


@command.command("list")
def list_backbones() -> None:
    """The backbones this version knows, their taps and where their weights come from."""
    from rich.table import Table

    from edge.commands.tables import make_console
    from engines.catalog import BACKBONES

    table = Table("name", "what it is", "taps", "weights", "licence")
    for entry in BACKBONES.values():
        weights = "shipped" if not entry.needs_weights else "fetched, or --weights" if entry.address else "--weights"
        table.add_row(entry.name, entry.summary, ", ".join(entry.taps), weights, entry.licence)
    make_console().print(table)


@command.command("export")
@click.argument("name")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="ONNX file to write.")
@click.option("--weights", type=click.Path(path_type=Path), help="State dict (.pt needs torch once, .safetensors not).")
@click.option("--taps", help="Outputs and their order, comma-separated.")
@click.option(
    "--size", type=click.IntRange(32, 4096), default=256, show_default=True, help="Side of the input, pixels."
)
def export(name: str, out: Path, weights: Path | None, taps: str | None, size: int) -> None:
    """Write backbone NAME as ONNX: uint8 pictures in, normalisation inside, one output a tap."""
    from edge.commands.common import engine_errors
    from engines.export import export_backbone

    with engine_errors():
        data = export_backbone(name, weights, out, (size, size), tuple(taps.split(",")) if taps else None)
    click.echo(f"{out}: {name}, {len(data) / 1e6:.1f} MB")
