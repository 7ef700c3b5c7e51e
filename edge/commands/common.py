"""What several commands share: progress bars, engine faults as errors of the contract, JSON out."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edge.errors import EdgeError, Exit, ResourceError
from engines.errors import EngineError

ReportProgress = Callable[[int, int, str], None]


class EngineTrouble(EdgeError):
    """The backbone cannot be exported or run: weights, graph, runtime or processor."""

    exit_code = Exit.BAD_BUNDLE


@contextmanager
def engine_errors() -> Iterator[None]:
    """Turn an EngineError, which knows no exit codes, into one of the contract."""
    try:
        yield
    except EngineError as error:
        raise EngineTrouble(str(error)) from None


@contextmanager
def progress_bar(quiet: bool = False) -> Iterator[ReportProgress]:
    """A bar on stderr for ``progress(done, total, what)`` callbacks; silent where stderr is no terminal."""
    if quiet or not sys.stderr.isatty():
        yield lambda done, total, what: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn("{task.description:<24}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        tasks: dict[str, Any] = {}

        def report(done: int, total: int, what: str) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total)
            bar.update(tasks[what], completed=done, total=total)

        yield report


def write_json(target: str, content: Any) -> None:
    """Write ``content`` to a file (atomically), or to stdout where ``target`` is ``-``."""
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    if target == "-":
        sys.stdout.write(text)
        return
    path = Path(target)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text)
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise ResourceError(f"{path}: cannot be written ({error.strerror})") from None


def percent(value: float | None, digits: int = 2) -> str:
    """A share as per cent for tables; an empty cell where there is none."""
    return "-" if value is None else f"{100 * value:.{digits}f}"
