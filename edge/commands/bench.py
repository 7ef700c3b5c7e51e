"""``edge bench``: figures of this machine, with spread, processor and versions."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

GOOD_PARTS = 200  # "a few hundred": the head's cost grows with the subspace they span

_rounds = click.option(
    "--rounds", type=click.IntRange(1, 1000), default=None, help="Alternating rounds; more narrow the spread."
)
_json = click.option("--json", "json_target", metavar="FILE|-", help="Write everything as JSON.")


class SizeType(click.ParamType):
    """``640x480``: width and height in pixels."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        width, x, height = str(value).lower().partition("x")
        if not x or not (width.isdecimal() and height.isdecimal()):
            self.fail(f"{value!r} is no size; write WIDTHxHEIGHT, as in 640x480", param, ctx)
        size = int(width), int(height)
        if not all(96 <= side <= 4096 for side in size):
            self.fail(f"{value!r}: each side must have 96 to 4096 pixels", param, ctx)
        return size


@click.group("bench")
def command() -> None:
    """Measure on this machine: each comparison in one run, its sides in turn, in fresh processes.

    A figure whose rounds lie too far apart is marked UNSTABLE: measure again on a quieter machine.
    """


@command.command("start-up")
@_rounds
@_json
def start_up_command(rounds: int | None, json_target: str | None) -> None:
    """Time `edge --help` against an interpreter that does nothing, and say what it imports."""
    from edge.bench import start_up
    from edge.bench.tables import start_up_table

    report = _Report("start-up", json_target)
    report.give(start_up.measure(rounds or 15), start_up_table)


@command.command("wire")
@_rounds
@click.option("--frames", type=click.IntRange(1), default=400, show_default=True, help="Frames a block.")
@click.option("--size", type=SizeType(), default="1920x1080", show_default=True, help="Of a frame.")
@click.option("--slots", type=click.IntRange(2, 64), default=6, show_default=True, help="Frames under way at most.")
@_json
def wire_command(rounds: int | None, frames: int, size: tuple[int, int], slots: int, json_target: str | None) -> None:
    """Hand frames from one process to another: slots and descriptors against ZeroMQ."""
    from edge.bench import wire
    from edge.bench.tables import wire_table
    from edge.commands.common import progress_bar

    settings = wire.Settings(
        *size, slots=slots, warm=max(slots, frames // 8), frames=frames, rounds=rounds or wire.Settings.rounds
    )
    report = _Report("wire", json_target)
    with progress_bar() as progress:
        result = wire.measure(settings, progress)
    report.give(result, wire_table)


@command.command("pipeline")
@_rounds
@click.option("--bundle", type=click.Path(path_type=Path), help="Bundle to run.  [default: fitted on the line itself]")
@click.option("--cameras", type=click.IntRange(1, 8), default=2, show_default=True, help="Synthetic cameras.")
@click.option("--size", type=SizeType(), default="640x480", show_default=True, help="Of their pictures.")
@click.option("--frames", type=click.IntRange(10), default=600, show_default=True, help="Frames scored a round.")
@click.option("--fps", type=click.FloatRange(0.1, 1000), default=15.0, show_default=True, help="A camera, when paced.")
@click.option("--seconds", type=click.FloatRange(0), default=20.0, show_default=True, help="Paced phase; 0: none.")
@click.option(
    "--defects", type=click.FloatRange(0, 1), default=0.0, show_default=True, help="Share of defective parts."
)
@click.option(
    "--good",
    type=click.IntRange(20, 5000),
    default=GOOD_PARTS,
    show_default=True,
    help="Parts the bundle is fitted on.",
)
@_json
def pipeline_command(
    rounds: int | None,
    bundle: Path | None,
    cameras: int,
    size: tuple[int, int],
    frames: int,
    fps: float,
    seconds: float,
    defects: float,
    good: int,
    json_target: str | None,
) -> None:
    """Run the daemon against the bare loop of preprocess, engine and head in one process, on the same pictures.

    Then measure capture-to-verdict latency with cameras that keep a rate, policy `latest`.
    """
    from edge.bench import pipeline
    from edge.bench.tables import pipeline_table
    from edge.bundle import load_bundle
    from edge.commands.common import engine_errors, progress_bar

    settings = pipeline.Settings(
        cameras=cameras,
        width=size[0],
        height=size[1],
        frames=frames,
        rounds=rounds or pipeline.Settings.rounds,
        fps=fps,
        seconds=seconds,
        defect_rate=defects,
    )
    if bundle is not None:
        load_bundle(bundle)  # one clear line now, not a daemon that does not start
    report = _Report("pipeline", json_target)
    with (
        tempfile.TemporaryDirectory(prefix="edge-bench-") as folder,
        engine_errors(),
        progress_bar() as progress,
    ):
        result = pipeline.measure(bundle or _fit(Path(folder), size, good), settings, progress)
    report.give(result, pipeline_table)


@command.command("heads")
@_rounds
@click.option(
    "--method",
    "methods",
    type=click.Choice(["fre", "sgfr"]),
    multiple=True,
    help="Head to measure on random arrays of real size; repeatable.  [default: both]",
)
@click.option("--bundle", type=click.Path(path_type=Path), help="Measure this bundle's head on its own arrays instead.")
@_json
def heads_command(rounds: int | None, methods: tuple[str, ...], bundle: Path | None, json_target: str | None) -> None:
    """Time heads against a plain read of what they must read, and OMP against scikit-learn's.

    One thread. Takes a minute and 3 GB of memory; with scikit-learn absent (extra dev) that comparison is left out.
    """
    from edge.bench import heads
    from edge.commands.common import progress_bar

    if bundle is not None and methods:
        raise click.UsageError("--bundle names the head by itself; leave --method out")
    report = _Report("heads", json_target)
    with progress_bar() as progress:
        result = heads.measure(methods or heads.METHODS, bundle, rounds or heads.ROUNDS, progress)
    report.give(result, heads.heads_table)


def _fit(folder: Path, size: tuple[int, int], good: int) -> Path:
    """A bundle of the built-in backbone, fitted on parts of the synthetic line that its cameras do not show."""
    from calibration.datasets import good_folder
    from calibration.fit import fit_bundle
    from calibration.options import FitOptions
    from edge.cameras.synthetic import write_part_dataset
    from engines import builtin_graph

    write_part_dataset(folder / "parts", good=good, test_good=0, test_defects=0, size=size)
    options = FitOptions(keep_refit=False)
    split = good_folder(folder / "parts" / "train")
    fit_bundle(split, folder / "bundle", graph=builtin_graph(), backbone="builtin", options=options)
    return folder / "bundle"


class _Report:
    """What every figure needs besides: machine and versions, taken before the run, and the marks of distrust."""

    def __init__(self, name: str, json_target: str | None) -> None:
        from edge.bench.machine import machine, versions

        self._name, self._json_target = name, json_target
        self._machine, self._versions = machine(), versions()

    def give(self, result: Any, table: Callable[[Any, Any], None]) -> None:
        """Write the JSON where it was asked for; print for people unless it took stdout."""
        from edge.bench.machine import warnings
        from edge.bench.spread import unstable
        from edge.commands.common import write_json

        told, noted = unstable(result.judged), warnings(self._machine)
        if self._json_target:
            head = {"bench": self._name, "machine": self._machine, "versions": self._versions}
            write_json(self._json_target, {**head, "warnings": noted, "unstable": told, **result.as_json()})
        if self._json_target != "-":
            from rich.console import Console

            from edge.bench.tables import print_foot

            console = Console()
            if not console.is_terminal:  # a file has no width; tables and versions stay on their lines
                console = Console(width=160)
            table(console, result)
            print_foot(console, self._machine, self._versions, noted, told)
