"""Pictures through the backbone, in order, on a few threads.

Each worker thread has an engine of its own on one thread and takes one picture at a time, exactly as the
daemon does; decoding and inference release the interpreter's lock. The results are those of one worker, to
the last bit.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from threading import Event
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from calibration import Progress, no_progress
from edge.errors import DataError, PictureError
from edge.heads import single_thread
from edge.pictures import read_picture
from edge.preprocess import prepare
from engines import Engine

Result = TypeVar("Result")
Taps = Mapping[str, NDArray[np.float32]]
Work = Callable[[Taps], Result]
Image = NDArray[np.uint8]

MAX_LISTED = 20


@dataclass(frozen=True)
class Worker(Generic[Result]):
    """An engine and what is done with its taps ([1, C, h, w] each, fresh arrays): used by one thread at a
    time."""

    engine: Engine
    work: Work[Result]


@dataclass(frozen=True)
class Reader(Generic[Result]):
    """What is done with a prepared picture (uint8 [h, w, 3] RGB of ``size``, a fresh array): used by one thread at
    a time."""

    size: tuple[int, int]
    work: Callable[[Image], Result]


def run_pictures(
    paths: Sequence[Path],
    workers: Sequence[Worker[Result]],
    *,
    skip_unreadable: bool = False,
    skipped: list[str] | None = None,
    progress: Progress = no_progress,
    what: str = "backbone",
) -> Iterator[tuple[int, Result]]:
    """Every picture through a worker's engine and work: see :func:`run_readers`. Closes no engine."""
    readers = [Reader(worker.engine.info.input_size, _through(worker)) for worker in workers]
    return run_readers(paths, readers, skip_unreadable=skip_unreadable, skipped=skipped, progress=progress, what=what)


def _through(worker: Worker[Result]) -> Callable[[Image], Result]:
    return lambda image: worker.work(worker.engine.infer(image[None]))


def run_readers(
    paths: Sequence[Path],
    readers: Sequence[Reader[Result]],
    *,
    skip_unreadable: bool = False,
    skipped: list[str] | None = None,
    progress: Progress = no_progress,
    what: str = "backbone",
) -> Iterator[tuple[int, Result]]:
    """Yields (index into ``paths``, result), in order.

    Unreadable pictures: all of them are found (no work is done after the first), then one DataError lists
    them; with ``skip_unreadable`` they are left out and their lines appended to ``skipped``.
    """
    single_thread()
    free: SimpleQueue[Reader[Result]] = SimpleQueue()
    for reader in readers:
        free.put(reader)
    hopeless = Event()

    def one(path: Path) -> Result | PictureError | None:
        reader = free.get()
        try:
            image = prepare(read_picture(path), reader.size)
            return None if hopeless.is_set() else reader.work(image)
        except PictureError as error:
            if not skip_unreadable:
                hopeless.set()
            return error
        finally:
            free.put(reader)

    errors: list[str] = []
    pending: deque[Future[Result | PictureError | None]] = deque()
    with ThreadPoolExecutor(len(readers)) as pool, ExitStack() as undo:
        # Leaving early (an error, a closed generator) must not run what is still queued.
        undo.callback(lambda: [future.cancel() for future in pending])
        ahead = iter(paths)
        for path in ahead:
            pending.append(pool.submit(one, path))
            if len(pending) >= 2 * len(readers):
                break
        for index in range(len(paths)):
            outcome = pending.popleft().result()
            upcoming = next(ahead, None)
            if upcoming is not None:
                pending.append(pool.submit(one, upcoming))
            if isinstance(outcome, PictureError):
                errors.append(str(outcome))
            elif outcome is not None and not (errors and not skip_unreadable):
                yield index, outcome
            progress(index + 1, len(paths), what)
    if errors and not skip_unreadable:
        more = f"\n... and {len(errors) - MAX_LISTED} more" if len(errors) > MAX_LISTED else ""
        raise DataError(
            f"{len(errors)} of {len(paths)} pictures cannot be read (--skip-unreadable leaves them out):\n"
            + "\n".join(errors[:MAX_LISTED])
            + more
        )
    if skipped is not None:
        skipped.extend(errors)
