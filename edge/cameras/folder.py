"""Picture files as a camera: once, in a loop, or as they arrive."""

from __future__ import annotations

import time
from collections import deque
from pathlib import Path

from edge.cameras.base import Frame, Picture, Undecodable
from edge.cameras.config import FolderSource
from edge.cameras.pacing import Pacer
from edge.cameras.watch import FolderWatch, Listing, Version, scan, sort_key, version_of
from edge.errors import CameraConfigError, CameraError, EndOfStream, PictureError
from edge.pictures import read_picture

PATIENCE_S = 2.0  # for files that are empty or do not decode while a writer may still be at them
SCAN_SHARE = 0.1  # scanning a watched folder takes at most about this share of one core
MIN_SCAN_S = 0.05

_Read = Frame | Undecodable


class FolderCamera:
    """A :class:`~edge.cameras.base.Camera` over the picture files of a folder; ``Frame.name`` is the path below it.

    A damaged or empty file is an :class:`Undecodable`, once for each version of it and pass; a file that vanishes is
    skipped. ``open`` lists the folder, and decodes nothing. Opened again it goes on where it stood.
    """

    live = False
    overwritten = 0

    def __init__(self, spec: FolderSource) -> None:
        self._spec = spec
        self._folder = Path(spec.path).expanduser()
        self._watch = FolderWatch(spec.settle_s, PATIENCE_S)
        self._queue: deque[tuple[str, Version]] = deque()
        self._kept = _Kept(spec.max_preload_mb * 1024 * 1024 if spec.preload else 0)
        self._pacer: Pacer | None = None
        self._started = False
        self._scan_at = 0.0

    def open(self) -> None:
        listing = self._scan()
        if self._spec.mode != "watch" and not self._started:
            self._begin_pass(listing)
        self._started = True
        self._pacer = Pacer(self._spec.fps)

    def read(self, timeout_s: float) -> _Read | None:
        if self._pacer is None:
            raise CameraError(f"{self.describe()}: not open")
        deadline = time.monotonic() + timeout_s
        # The file is found first, and the pace kept then: an idle watch must not use up its turn.
        while True:
            if not self._queue:
                self._refill(deadline)
            if not self._queue:
                return None
            if not self._pacer.wait(max(0.0, deadline - time.monotonic())):
                return None
            read = self._take(*self._queue.popleft())
            if read is not None:
                return read

    def close(self) -> None:
        self._pacer = None

    def describe(self) -> str:
        return f"folder {self._folder} ({self._spec.mode})"

    def _scan(self) -> Listing:
        try:
            return scan(self._folder, self._spec.recursive)
        except FileNotFoundError:
            raise CameraError(f"folder {self._folder}: there is no such folder; create it or correct path") from None
        except NotADirectoryError:
            raise CameraConfigError(f"folder {self._folder}: this is a file; path must name a folder") from None
        except PermissionError:
            raise CameraError(f"folder {self._folder}: no permission to list it for this user") from None
        except OSError as error:
            raise CameraError(f"folder {self._folder}: cannot be listed ({error.strerror})") from None

    def _begin_pass(self, listing: Listing) -> None:
        if not listing:
            below = " or below it" if self._spec.recursive else ""
            raise CameraError(f"folder {self._folder}: holds no pictures{below} (.png .jpg .bmp .tif .webp)")
        self._kept.forget_all_but(listing)
        self._queue.extend(sorted(listing.items(), key=sort_key(self._spec.order)))

    def _refill(self, deadline: float) -> None:
        if self._spec.mode == "once":
            raise EndOfStream(f"{self.describe()}: all pictures were read")
        if self._spec.mode == "loop":
            self._begin_pass(self._scan())
            return
        while not self._queue:
            now = time.monotonic()
            wait = min(self._scan_at, deadline) - now
            if wait > 0:
                time.sleep(wait)
            now = time.monotonic()
            if now < self._scan_at:
                return
            ready = self._watch.observe(self._scan(), now)
            self._queue.extend(sorted(ready, key=sort_key(self._spec.order)))
            took = time.monotonic() - now
            self._scan_at = now + took + max(MIN_SCAN_S, took / SCAN_SHARE, self._spec.settle_s / 2)
            if time.monotonic() >= deadline:
                return

    def _take(self, name: str, version: Version) -> _Read | None:
        """Decode one file; None when it vanished, or is not complete after all."""
        path = self._folder / name
        watching = self._spec.mode == "watch"
        picture, why = self._kept.get(name, version), ""
        if picture is None:
            try:
                picture = read_picture(path, self._spec.max_pixels)
            except PictureError as error:
                why = str(error)
        now = _version_now(path)
        if now is None and (picture is None or watching):
            self._watch.changed(name)
            return None
        if watching:
            if now != version:  # it was written to while it was read
                self._watch.changed(name)
                return None
            if picture is None and self._watch.give_time(name, time.monotonic()):
                return None
            self._watch.delivered(name, version)
        if picture is None:
            return Undecodable(name, why, time.monotonic_ns(), time.time_ns())
        self._kept.put(name, version, picture)
        return Frame(picture, time.monotonic_ns(), time.time_ns(), name=name)


def _version_now(path: Path) -> Version | None:
    try:
        return version_of(path.stat())
    except OSError:
        return None


class _Kept:
    """Decoded pictures in memory, up to ``limit`` bytes. What does not fit is not kept: a loop visits all files
    equally often, so replacing one by another would gain nothing."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._bytes = 0
        self._pictures: dict[str, tuple[Version, Picture]] = {}

    def get(self, name: str, version: Version) -> Picture | None:
        kept = self._pictures.get(name)
        return kept[1] if kept is not None and kept[0] == version else None

    def put(self, name: str, version: Version, picture: Picture) -> None:
        if name in self._pictures:
            if self._pictures[name][0] == version:
                return
            self._drop(name)
        if self._bytes + picture.nbytes <= self._limit:
            picture.setflags(write=False)  # it will be handed out again
            self._pictures[name] = (version, picture)
            self._bytes += picture.nbytes

    def forget_all_but(self, listing: Listing) -> None:
        for name in [n for n in self._pictures if n not in listing]:
            self._drop(name)

    def _drop(self, name: str) -> None:
        self._bytes -= self._pictures.pop(name)[1].nbytes
