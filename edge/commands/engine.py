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
@click.argument("name", required=False)
@click.option("--out", required=True, type=click.Path(path_type=Path), help="ONNX file to write.")
@click.option(
    "--bundle", type=click.Path(path_type=Path), help="Write this bundle's backbone and FRE head as one graph."
)
@click.option("--weights", type=click.Path(path_type=Path), help="State dict (.pt needs torch once, .safetensors not).")
@click.option("--taps", help="Outputs and their order, comma-separated.")
@click.option("--size", type=click.IntRange(32, 4096), help="Side of the input, pixels.  [default: 256]")
def export(
    name: str | None, out: Path, bundle: Path | None, weights: Path | None, taps: str | None, size: int | None
) -> None:
    """Write backbone NAME as ONNX: uint8 pictures in, normalisation inside, one output a tap.

    Or, with --bundle, a bundle's backbone and FRE head: uint8 pictures in, one level map a layer out.
    """
    if bundle is not None:
        if name is not None:
            raise click.UsageError("a backbone's NAME or a --bundle, not both")
        if weights is not None or taps is not None or size is not None:
            raise click.UsageError("a bundle's backbone is what it is: leave --weights, --taps and --size out")
        _export_bundle(bundle, out)
        return
    if name is None:
        raise click.UsageError("name a backbone, or a --bundle to export whole")
    from edge.commands.common import engine_errors
    from engines.export import export_backbone

    side = size or 256
    with engine_errors():
        data = export_backbone(name, weights, out, (side, side), tuple(taps.split(",")) if taps else None)
    click.echo(f"{out}: {name}, {len(data) / 1e6:.1f} MB")


def _export_bundle(bundle: Path, out: Path) -> None:
    from edge.bundle import load_bundle
    from edge.commands.common import engine_errors
    from edge.errors import BundleError, ResourceError
    from engines.files import write_atomically
    from engines.fre_graph import level_name, write_fre_graph

    loaded = load_bundle(bundle)
    spec = loaded.manifest.spec
    if loaded.manifest.method != "fre":
        raise BundleError(
            f"{bundle}: a bundle of {loaded.manifest.method}; only an FRE head can be added to its backbone"
        )
    with engine_errors():
        data = write_fre_graph(loaded.graph, spec, loaded.arrays, {"head": "fre"})
    try:
        write_atomically(out, data)
    except OSError as error:
        raise ResourceError(f"{out}: cannot be written ({error.strerror})") from None
    levels = ", ".join(level_name(layer) for layer in spec["layers"])
    click.echo(f"{out}: {loaded.manifest.backbone.name} and its FRE head, {levels}, {len(data) / 1e6:.1f} MB")
