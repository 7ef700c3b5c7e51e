"""``edge eval``: a bundle judged on labelled pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edge.commands.fit import LAYOUTS


@click.command("eval")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--data", required=True, type=click.Path(path_type=Path), help="The data set's folder.")
@click.option("--layout", type=click.Choice(LAYOUTS), help="How it lies on disk.  [default: as the bundle was fitted]")
@click.option("--seed", type=click.IntRange(0), default=None, help="Seed of the layout's split.")
@click.option("--skip-unreadable", is_flag=True, help="Leave unreadable pictures out instead of stopping.")
@click.option("--json", "json_target", metavar="FILE|-", help="Write the whole report as JSON.")
def command(
    bundle: Path, data: Path, layout: str | None, seed: int | None, skip_unreadable: bool, json_target: str | None
) -> None:
    """Score the test pictures one by one, as the daemon does, and print image AUROC, pixel AUROC, AUPRO and AP.

    An evaluation that contradicts the split the bundle was fitted by is refused.
    """
    from calibration.evaluate import evaluate
    from edge.bundle import load_bundle
    from edge.commands.common import engine_errors, progress_bar, write_json

    loaded = load_bundle(bundle)
    with engine_errors(), progress_bar() as progress:
        report = evaluate(
            loaded,
            data,
            layout or loaded.manifest.split.layout,
            seed,
            skip_unreadable=skip_unreadable,
            progress=progress,
        )
    if json_target:
        write_json(json_target, report.as_json())
    if json_target != "-":
        _print(report)


def _print(report: Any) -> None:
    from rich.table import Table

    from edge.commands.common import percent
    from edge.commands.tables import make_console

    console = make_console()
    console.print(
        f"{report.bundle} on {report.data} ({report.layout}), {len(report.pictures)} pictures, {report.seconds:.1f} s"
    )
    figures = Table("image AUROC", "pixel AUROC", "AUPRO to 0.3", "pixel AP")
    figures.add_row(*(percent(v) for v in (report.image_auroc, report.pixel_auroc, report.aupro, report.ap)))
    console.print(figures)
    kinds = Table("kind", "pictures", "image AUROC", "above threshold")
    for kind in report.kinds:
        kinds.add_row(kind.kind, str(kind.count), percent(kind.image_auroc), f"{percent(kind.found, 1)} %")
    console.print(kinds)
    rules = ", ".join(f"{name} {percent(value)}" for name, value in report.rules.items())
    console.print(f"image AUROC by score rule: {rules}")
