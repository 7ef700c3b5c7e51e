"""``edge fit``: from pictures of good parts to a bundle."""

from __future__ import annotations

from dataclasses import asdict
from fractions import Fraction
from pathlib import Path
from typing import Any

import click

METHODS = ["fair", "fre", "grad", "hfra", "sgfr"]  # as edge.heads has them, whose import --help need not wait for
AUTO = "auto"
LAYOUTS = ["folder", "mvtec", "mtd", "btad", "visa"]


class SettingType(click.ParamType):
    """``atoms=10``: a name and a value."""

    name = "setting"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        if isinstance(value, tuple):
            return value
        name, separator, content = str(value).partition("=")
        if not (separator and name.strip()):
            self.fail(f"{value!r} is no setting; write NAME=VALUE (--settings-of METHOD lists them)", param, ctx)
        return name.strip(), content.strip()


class RateType(click.ParamType):
    """``1/1000``, ``0.001``: a rate between 0 and 1."""

    name = "rate"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            rate = float(Fraction(str(value)))
        except (ValueError, ZeroDivisionError):
            self.fail(f"{value!r} is no rate; write 1/1000 or 0.001", param, ctx)
        if not 0 < rate < 1:
            self.fail(f"{value!r} is not between 0 and 1", param, ctx)
        return rate


@click.command("fit")
@click.option("--good", required=True, type=click.Path(path_type=Path), help="Folder of good pictures, or a data set.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Bundle to write (a folder, or .zip).")
@click.option(
    "--method",
    type=click.Choice([*METHODS, AUTO]),
    default="fre",
    show_default=True,
    help="The head; auto: try them on defects drawn on good pictures, and choose.",
)
@click.option(
    "--budget-ms", type=click.FloatRange(0, min_open=True), help="auto: milliseconds a picture may take on one core."
)
@click.option("--candidates", help="auto: heads to try, comma-separated.  [default: all]")
@click.option(
    "--trial-minutes",
    type=click.FloatRange(0, min_open=True),
    default=15.0,
    show_default=True,
    help="auto: longest training tried.",
)
@click.option(
    "--set",
    "settings",
    metavar="NAME=VALUE",
    multiple=True,
    type=SettingType(),
    help="A setting of the method's own; repeatable.",
)
@click.option(
    "--settings-of",
    type=click.Choice(METHODS),
    is_eager=True,
    expose_value=False,
    callback=lambda ctx, _, method: print_settings(ctx, method),
    help="List what --set may set for a method, and exit.",
)
@click.option("--layout", type=click.Choice(LAYOUTS), help="How the data set lies on disk; default: a plain folder.")
@click.option("--seed", type=click.IntRange(0), default=None, help="Seed of the layout's split.")
@click.option("--backbone", default="builtin", show_default=True, help="Name from `edge engine list`.")
@click.option("--weights", type=click.Path(path_type=Path), help="The backbone's state dict (.pt or .safetensors).")
@click.option("--layers", help="Taps to use, comma-separated.  [default: the method's; fre: layer1,layer2,layer3]")
@click.option("--detection", default="layer3", show_default=True, help="Tap whose residual norm scores the picture.")
@click.option(
    "--score",
    type=click.Choice(["combined", "norm", "max"]),
    help="Image score: the residual norm, the map's maximum, or the larger of both, standardised.  [default: the"
    " method's; fre: combined]",
)
@click.option("--variance", type=float, default=0.97, show_default=True, help="fre: share of variance kept.")
@click.option("--pool", type=click.IntRange(1, 8), default=2, show_default=True, help="fre: average pooling of taps.")
@click.option("--false-alarms", type=RateType(), default="1/1000", show_default=True, help="Accepted rate a frame.")
@click.option(
    "--calibration",
    type=click.Choice(["folds", "loo", "holdout"]),
    help="Folds and leave-one-out use every picture twice; a hold-out keeps a fifth unseen and gives the exact"
    " guarantee.  [default: the method's]",
)
@click.option(
    "--fps", type=click.FloatRange(0.001, 10_000), default=30.0, show_default=True, help="For alarms an hour."
)
@click.option("--precision", type=click.Choice(["f32", "bf16"]), default="f32", show_default=True)
@click.option(
    "--size", type=click.IntRange(32, 2048), default=256, show_default=True, help="Side of the input, pixels."
)
@click.option("--skip-unreadable", is_flag=True, help="Leave unreadable pictures out instead of stopping.")
@click.option("--no-refit-data", is_flag=True, help="Leave out what a refit needs; a third smaller.")
@click.option("--json", "json_target", metavar="FILE|-", help="Also write the report as JSON.")
def command(good: Path, out: Path, json_target: str | None, **given: Any) -> None:
    """Fit a BUNDLE on pictures of good parts. Takes seconds and needs no defects.

    The threshold follows from the rate of false alarms you accept. Methods that train take minutes; interrupted, they
    go on by the same command.
    """
    from calibration.checkpoints import discard
    from calibration.datasets import good_folder, load_split
    from calibration.fit import fit_bundle
    from calibration.methods import fitter_of
    from calibration.options import FitOptions
    from edge.commands.common import engine_errors, progress_bar, write_json

    size = (given["size"], given["size"])
    split = load_split(good, given["layout"], given["seed"]) if given["layout"] else good_folder(good)
    chosen = None
    if given["method"] == AUTO:
        chosen = select(split, out, size, given)
        given["method"] = chosen.chosen
    elif given["budget_ms"] is not None or given["candidates"]:
        raise click.UsageError("--budget-ms and --candidates belong to --method auto")
    settings = dict(given["settings"])
    if "resume" in fitter_of(given["method"]).settings.model_fields:
        settings.setdefault("resume", str(out.parent / f"{out.name}.training"))
    asked = FitOptions(
        method=given["method"],
        layers=tuple(given["layers"].split(",")) if given["layers"] else None,
        detection=given["detection"],
        rule=given["score"],
        variance=given["variance"],
        pool=given["pool"],
        settings=settings,
        false_alarms=given["false_alarms"],
        calibration=given["calibration"],
        keep_refit=not given["no_refit_data"],
    )
    options = asked.resolved()
    with engine_errors(), progress_bar() as progress:
        graph = graph_of(given["backbone"], given["weights"], size, options)
        report = fit_bundle(
            split,
            out,
            graph=graph,
            backbone=given["backbone"],
            options=options,
            input_size=size,
            precision=given["precision"],
            skip_unreadable=given["skip_unreadable"],
            frames_per_second=given["fps"],
            progress=progress,
        )
    if "resume" in settings:
        discard(Path(settings["resume"]))  # the bundle is written: there is nothing to go on with
    if json_target:
        write_json(json_target, report.as_json() | ({"selection": asdict(chosen)} if chosen else {}))
    if json_target != "-":
        print_report(report)


def graph_of(backbone: str, weights: Path | None, size: tuple[int, int], options: Any) -> bytes | None:
    """The backbone's ONNX with the taps that the options' method reads; None for a method without one."""
    from calibration.methods import fitter_of
    from engines.export import export_backbone

    fitter = fitter_of(options.method)
    if not fitter.needs_graph:
        return None
    return export_backbone(backbone, weights, input_size=size, taps=fitter.taps(options))


def select(split: Any, out: Path, size: tuple[int, int], given: dict[str, Any]) -> Any:
    """Choose the method (:func:`calibration.selection.select_method`) and print the table it was chosen from."""
    from calibration.options import FitOptions
    from calibration.selection import select_method
    from edge.bundle_files import check_target
    from edge.commands.common import engine_errors, progress_bar

    own = ("settings", "layers", "score", "calibration")
    if any(given[name] for name in own):
        raise click.UsageError(
            "--set, --layers, --score and --calibration belong to one method; auto keeps the defaults"
        )
    check_target(out)
    with engine_errors(), progress_bar() as progress:
        chosen = select_method(
            split,
            out.absolute().parent,
            graphs=lambda options: graph_of(given["backbone"], given["weights"], size, options),
            backbone=given["backbone"],
            options=FitOptions(false_alarms=given["false_alarms"]),
            budget_ms=given["budget_ms"],
            candidates=given["candidates"].split(",") if given["candidates"] else None,
            trial_minutes=given["trial_minutes"],
            input_size=size,
            precision=given["precision"],
            skip_unreadable=given["skip_unreadable"],
            progress=progress,
        )
    print_selection(chosen)
    return chosen


def print_selection(chosen: Any) -> None:
    """The trials of a choice (:class:`calibration.selection.Selection`) as a table, and its reason; on stderr, so that
    ``--json -`` stays alone."""
    from rich.console import Console
    from rich.table import Table

    from edge.commands.common import percent

    kinds = next((list(trial.auroc) for trial in chosen.trials if trial.auroc), [])
    pastes = next((list(trial.pasted) for trial in chosen.trials if trial.pasted), [])
    table = Table("head", "fit s", "ms", *kinds, "mean", *pastes, "")
    for trial in chosen.trials:
        times = [f"{value:.1f}" if value is not None else "-" for value in (trial.seconds, trial.milliseconds)]
        figures = [percent(trial.auroc[kind]) if trial.auroc else "-" for kind in kinds]
        beside = [percent(trial.pasted[kind]) if trial.pasted else "-" for kind in pastes]
        table.add_row(trial.method, *times, *figures, percent(trial.mean), *beside, trial.left_out or "")
    console = Console(stderr=True)
    console = console if console.is_terminal else Console(stderr=True, width=160)
    console.print(f"image AUROC on defects drawn on {chosen.judged} good pictures that no head was fitted on:")
    console.print(table)
    console.print(f"chosen: {chosen.chosen} ({chosen.why})")


def print_settings(ctx: click.Context, method: str | None) -> None:
    """What ``--set`` may set, with defaults; then leaves the program."""
    if method is None or ctx.resilient_parsing:
        return
    from calibration.methods import fitter_of

    fields = fitter_of(method).settings.model_fields
    if not fields:
        click.echo(f"{method} has no settings of its own")
    for name, field in fields.items():
        default = repr(field.default) if isinstance(field.default, str) else field.default
        click.echo(f"{name} = {default}: {field.description}")
    ctx.exit()


def print_report(report: Any) -> None:
    """The report of a fit (:class:`calibration.fit.FitReport`), for people."""
    total = sum(report.seconds.values())
    parts = ", ".join(f"{name} {seconds:.1f}" for name, seconds in report.seconds.items())
    rate = Fraction(report.false_alarms).limit_denominator(100_000)
    click.echo(f"{report.out}: {report.method}, {report.pictures} good pictures, {report.size_bytes / 1e6:.0f} MB")
    click.echo(f"  fitted in    {total:.1f} s ({parts})")
    click.echo(f"  threshold    {report.threshold:.4g}" + _interval(report))
    click.echo(
        f"  false alarms {rate} a frame = {report.alarms_per_hour:.0f} an hour at {report.frames_per_second:g} frames/s"
    )
    click.echo(f"  promise      {report.guarantee}")
    if report.skipped:
        click.echo(f"  left out     {len(report.skipped)} unreadable: {', '.join(report.skipped[:5])}")
    if report.duplicates:
        click.echo(f"  note         {report.duplicates} pictures are copies of others; they promise nothing more")
    worst = ", ".join(f"{name} ({score:.2f})" for name, score in report.unusual[:3])
    click.echo(f"  look at      {worst}: the good pictures that look least good")


def _interval(report: Any) -> str:
    if not report.extrapolated or report.interval is None:
        return ""
    return f", extrapolated (95%: {report.interval[0]:.4g} to {report.interval[1]:.4g})"
