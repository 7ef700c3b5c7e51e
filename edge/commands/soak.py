"""``edge soak``: a long run of the real daemon under SIGKILL, with every promise checked."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import click

from edge.errors import EdgeError


@click.command("soak")
@click.option("--minutes", type=click.FloatRange(0.2, 100_000), default=10.0, show_default=True)
@click.option(
    "--fps", type=click.FloatRange(0.5, 240), default=30.0, show_default=True, help="Frames a second, each camera."
)
@click.option(
    "--kill-every", type=click.FloatRange(1), default=20.0, show_default=True, help="Seconds between SIGKILLs."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Order in which the stages are killed.")
@click.option("--bundle", type=click.Path(path_type=Path), help="Bundle.  [default: fitted on the synthetic line]")
@click.option("--pictures", type=click.Path(path_type=Path), help="Loop over this folder.  [default: synthetic line]")
@click.option("--json", "json_target", metavar="FILE|-", help="Write the report as JSON.")
def command(
    minutes: float,
    fps: float,
    kill_every: float,
    seed: int,
    bundle: Path | None,
    pictures: Path | None,
    json_target: str | None,
) -> None:
    """Run two looping cameras, SIGKILL a stage in turn, and check: the ledger adds up, every frame has one end, no
    alert is lost or told under a new id, memory and descriptors are flat. Exit code 1 on any violation."""
    from edge.bench.soak import Soak, SoakReport
    from edge.commands.common import write_json

    quiet = json_target == "-"
    with tempfile.TemporaryDirectory(prefix="edge-soak-") as name:
        folder = Path(name)
        if bundle is None:
            bundle = _fit(folder)
        line = _line_file(bundle.resolve(), pictures, fps)
        report = Soak(folder, line, SoakReport(seed, minutes, fps), kill_every).run(
            lambda text: click.echo(text, err=quiet)
        )
    if json_target:
        write_json(json_target, report.as_json())
    if not quiet:
        _print(report)
    if report.violations:
        raise EdgeError(f"{len(report.violations)} violations: {'; '.join(report.violations[:5])}")


def _fit(folder: Path) -> Path:
    from calibration.datasets import good_folder
    from calibration.fit import fit_bundle
    from edge.cameras.synthetic import write_part_dataset
    from edge.commands.common import engine_errors
    from engines import builtin_graph

    write_part_dataset(folder / "parts", good=80, test_good=0, test_defects=0)
    with engine_errors():
        fit_bundle(
            good_folder(folder / "parts" / "train"), folder / "bundle", graph=builtin_graph(), backbone="builtin"
        )
    return folder / "bundle"


def _line_file(bundle: Path, pictures: Path | None, fps: float) -> str:
    import json

    from edge.bench.soak import CAMERAS

    source = 'kind = "synthetic"\nprerender = 60\ndefect_rate = 0.1\n'
    if pictures is not None:
        path = json.dumps(str(pictures.resolve()))
        source = f'kind = "folder"\npath = {path}\nmode = "loop"\nrecursive = true\npreload = true\n'
    text = f'[line]\nname = "soak"\nbundle = {json.dumps(str(bundle))}\n[pipeline]\nrestarts = 1000\n'
    text += '[alerts]\neach = "frame"\ncooldown_s = 0.5\n[store]\nmax_picture_mb = 50\n'
    for name in CAMERAS:
        text += f'[[camera]]\nname = "{name}"\n[camera.source]\n{source}fps = {fps}\n'
    return text


def _print(report: Any) -> None:
    from rich.table import Table

    from edge.commands.tables import balance_table, make_console

    console = make_console()
    console.print(balance_table(report.balance))
    table = Table("process", "RSS early MB", "late", "descriptors early", "late")
    for name, row in report.resources.items():
        table.add_row(name, *(f"{row[key]:g}" for key in ("rss_mb_early", "rss_mb_late", "fds_early", "fds_late")))
    console.print(table)
    times = [kill.recovered_s for kill in report.kills if kill.recovered_s is not None]
    worst = f", frames again after {max(times):.1f} s at worst" if times else ""
    console.print(f"{report.alerts} alerts, {report.verdicts} verdicts seen; {len(report.kills)} kills{worst}")
    console.print("no violation" if not report.violations else "\n".join(report.violations))
