"""``edge eval``: a bundle judged on labelled pictures, or several of them side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edge.commands.fit import LAYOUTS


@click.command("eval")
@click.argument("bundles", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="BUNDLE...")
@click.option("--data", type=click.Path(path_type=Path), help="The data set's folder.")
@click.option("--layout", type=click.Choice(LAYOUTS), help="How it lies on disk.  [default: as the bundle was fitted]")
@click.option("--seed", type=click.IntRange(0), default=None, help="Seed of the layout's split.")
@click.option("--skip-unreadable", is_flag=True, help="Leave unreadable pictures out instead of stopping.")
@click.option("--json", "json_target", metavar="FILE|-", help="Write the whole report as JSON.")
@click.option(
    "--compare",
    is_flag=True,
    help="One table of several bundles, reports (written by --json) and folders of either, beside the published"
    " figures. Reports alone need no --data.",
)
@click.option("--markdown", "markdown_target", metavar="FILE|-", help="With --compare: the table as Markdown.")
@click.option(
    "--panels",
    type=click.Path(path_type=Path),
    help="With --compare: folder for pictures (JPEG), one a kind of defect: the truth and every bundle's map.",
)
@click.pass_context
def command(ctx: click.Context, bundles: tuple[Path, ...], compare: bool, **given: Any) -> None:
    """Score the test pictures one by one, as the daemon does, and print image AUROC, pixel AUROC, AUPRO and AP.

    An evaluation that contradicts the split the bundle was fitted by is refused.
    """
    if compare:
        _compare(ctx, bundles, **given)
        return
    if len(bundles) > 1:
        raise click.UsageError(f"{len(bundles)} bundles are given; --compare takes several")
    for name in ("markdown_target", "panels"):
        if given.pop(name) is not None:
            raise click.UsageError(f"--{name.removesuffix('_target')} goes with --compare")
    if given["data"] is None:
        raise click.UsageError("Missing option '--data'.")
    _evaluate(bundles[0], **given)


def _evaluate(
    bundle: Path, data: Path, layout: str | None, seed: int | None, skip_unreadable: bool, json_target: str | None
) -> None:
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


def _compare(
    ctx: click.Context,
    targets: tuple[Path, ...],
    data: Path | None,
    layout: str | None,
    seed: int | None,
    skip_unreadable: bool,
    json_target: str | None,
    markdown_target: str | None,
    panels: Path | None,
) -> None:
    from calibration.compare import compare, find
    from edge.commands.common import engine_errors, progress_bar, write_json
    from edge.commands.comparison import print_comparison, write_markdown

    if json_target == markdown_target == "-":
        raise click.UsageError("--json and --markdown cannot both write to standard output")
    found = find(targets)
    if data is None and found.bundles and not found.reports:
        raise click.UsageError(f"{found.bundles[0]} is a bundle, and evaluating it needs --data")
    if data is None and panels is not None:
        raise click.UsageError("--panels draws the bundles' maps: it needs --data")
    with engine_errors(), progress_bar() as progress:
        comparison = compare(found, data, layout, seed, skip_unreadable=skip_unreadable, progress=progress)
        drawn = 0
        if panels is not None and comparison.evaluated:
            from calibration.panels import write_panels

            drawn = len(write_panels(comparison.evaluated, panels, progress=progress))
    for note in comparison.notes:
        click.echo(f"edge: {note}", err=True)
    if json_target:
        write_json(json_target, comparison.as_json())
    if markdown_target:
        write_markdown(markdown_target, comparison)
    if "-" not in (json_target, markdown_target):
        print_comparison(comparison)
        if drawn:
            click.echo(f"{drawn} panels in {panels}")
    for failure in comparison.failures:
        click.echo(f"edge: {failure.message}", err=True)
    if comparison.failures:
        ctx.exit(comparison.failures[0].exit_code)


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
