"""``edge run``: the daemon."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import click

from edge.errors import EdgeError


@click.command("run")
@click.argument("line", type=click.Path(path_type=Path))
@click.option("--check", is_flag=True, help="Check the line file and its bundles, start nothing.")
@click.option("--runtime", type=click.Path(path_type=Path), help="Folder of sockets and locks.")
@click.option("--state", type=click.Path(path_type=Path), help="Folder of the ledger and the alert store.")
@click.option(
    "--log-level", type=click.Choice(["debug", "info", "warning", "error"]), default="info", show_default=True
)
def command(line: Path, check: bool, runtime: Path | None, state: Path | None, log_level: str) -> None:
    """Watch every camera of the LINE file until told to stop (SIGTERM, Ctrl-C) or until every source has ended.

    SIGHUP reads the file anew; a broken one keeps the old line running. Exit codes: 0 stopped as asked, 3 the line
    file, 4 a bundle, 6 the machine (disk, port, permission), 7 already running, 8 no camera can work, 9 a stage
    crashed again and again.
    """
    logging.basicConfig(stream=sys.stderr, level=log_level.upper(), format="edge[%(name)s] %(levelname)s: %(message)s")
    if check:
        click.echo("\n".join(check_line(line)))
        return
    from edge.supervisor.daemon import Daemon

    code = Daemon(line, runtime, state).run()
    if code:
        raise _Stopped(code)


class _Stopped(EdgeError):
    """The daemon stopped by itself; the reason is in the log above."""

    def __init__(self, code: int) -> None:
        from edge.errors import Exit

        self.exit_code = Exit(code)
        super().__init__(f"the daemon stopped: {self.exit_code.name} ({code}); the reason stands above")


def check_line(path: Path) -> list[str]:
    """Check a line file and load every bundle it names; a line of text for each, and a closing one.

    Raises ConfigError, BundleError."""
    from edge.config import load_line
    from edge.supervisor.plan import read_model

    line = load_line(path)
    models = [read_model(bundle) for bundle in dict.fromkeys(line.bundle_of(camera) for camera in line.camera)]
    told = [f"{m.bundle}: {m.method}, {m.size[1]} x {m.size[0]}, {m.precision}" for m in models]
    return [*told, f"{path}: {len(line.camera)} cameras; nothing to object to"]
