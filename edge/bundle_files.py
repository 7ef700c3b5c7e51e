"""The files of a bundle: bounded reading from a folder or a .zip, atomic writing of either.

Knows sizes, hashes and renames; what the files mean is :mod:`edge.bundle`'s.
"""

from __future__ import annotations

import ctypes
import hashlib
import mmap
import os
import shutil
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Protocol

from edge.errors import BundleError, ResourceError

Parts = Sequence["bytes | memoryview"]
"""A file's content in pieces, written one after the other."""

_CHUNK = 1 << 20
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


class BundleFiles(Protocol):
    """Flat files by name. ``size`` is None for a file that is not there."""

    def size(self, name: str) -> int | None: ...

    def read(self, name: str, limit: int) -> bytes:
        """At most ``limit`` bytes of the file, whatever its size claims."""
        ...

    def sha256(self, name: str, limit: int) -> str:
        """Hash of at most ``limit`` bytes, without keeping them."""
        ...

    def view(self, name: str, limit: int) -> bytes | memoryview:
        """As :meth:`read`, but a folder's file is mapped: what is not touched takes no memory. A file that is
        replaced meanwhile stays as it was; one that is edited in place does not (bundles never are)."""
        ...


class _Files(ABC):
    def __init__(self, path: Path) -> None:
        self._path = path

    @abstractmethod
    def size(self, name: str) -> int | None: ...

    @abstractmethod
    def _open(self, name: str) -> IO[bytes]: ...

    def read(self, name: str, limit: int) -> bytes:
        with self._open(name) as file:
            return file.read(limit)

    def view(self, name: str, limit: int) -> bytes | memoryview:
        return self.read(name, limit)

    def sha256(self, name: str, limit: int) -> str:
        digest = hashlib.sha256()
        with self._open(name) as file:
            while limit > 0 and (chunk := file.read(min(_CHUNK, limit))):
                digest.update(chunk)
                limit -= len(chunk)
        return digest.hexdigest()


class _FolderFiles(_Files):
    def size(self, name: str) -> int | None:
        path = self._path / name
        return path.stat().st_size if path.is_file() else None

    def _open(self, name: str) -> IO[bytes]:
        return (self._path / name).open("rb")

    def view(self, name: str, limit: int) -> bytes | memoryview:
        with self._open(name) as file:
            size = min(limit, os.fstat(file.fileno()).st_size)
            # An empty file cannot be mapped.
            return memoryview(mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ)) if size else b""


class _ZipFiles(_Files):
    def __init__(self, path: Path, archive: zipfile.ZipFile) -> None:
        super().__init__(path)
        self._archive = archive
        # Names are only ever compared: nothing is extracted, so a path in a name leads nowhere.
        self._entries = {info.filename: info for info in archive.infolist()}

    def size(self, name: str) -> int | None:
        info = self._entries.get(name)
        return None if info is None else info.file_size

    def _open(self, name: str) -> IO[bytes]:
        return self._archive.open(self._entries[name])


@contextmanager
def open_files(path: Path) -> Iterator[BundleFiles]:
    """The files of the bundle at ``path``. Raises BundleError: missing, not a bundle, not readable,
    damaged."""
    try:
        if path.is_dir():
            yield _FolderFiles(path)
            return
        if not path.exists():
            raise BundleError(f"{path}: no such bundle; make one with: edge fit --out {path}")
        if not zipfile.is_zipfile(path):
            raise BundleError(f"{path}: not a bundle (neither a folder nor a whole .zip); was it cut short?")
        with zipfile.ZipFile(path) as archive:
            yield _ZipFiles(path, archive)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise BundleError(f"{path}: the .zip is damaged or cut short ({error}); copy it again") from None
    except OSError as error:
        raise BundleError(f"{path}: cannot be read ({error.strerror or error})") from None


def check_target(path: Path, marker: str = "bundle.json") -> None:
    """Raises what :func:`write_files` would for a target that cannot be written, as far as it can be known
    before there is anything to write."""
    _refuse_foreign(path, marker, _is_zip(path))
    folder = path.absolute().parent
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise ResourceError(f"{path}: {folder} may not be written to; choose another --out")


def write_files(path: Path, contents: Mapping[str, Parts], marker: str) -> None:
    """Write a folder (a .zip where ``path`` ends so) with exactly these files, atomically and durably.

    Something already at ``path`` is replaced only if it is a bundle (a .zip file, or a folder that is empty
    or holds ``marker``). Raises BundleError when it is something else, ResourceError when the disk refuses.
    """
    as_zip = _is_zip(path)
    _refuse_foreign(path, marker, as_zip)
    # Beside the target: a rename is atomic only within one file system.
    partial = path.parent / f".{path.name}.partial-{os.getpid()}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            if as_zip:
                _write_zip(partial, contents)
            else:
                _write_folder(partial, contents)
            _replace(partial, path)
            _sync(path.parent)
        finally:
            # Left over after a failure; after an exchange, the bundle that was replaced.
            if partial.is_dir():
                shutil.rmtree(partial, ignore_errors=True)
            else:
                partial.unlink(missing_ok=True)
    except OSError as error:
        raise ResourceError(
            f"{path}: the bundle cannot be written ({error.strerror or error});"
            " free space or choose another --out; nothing was changed"
        ) from None


def _is_zip(path: Path) -> bool:
    return path.suffix.lower() == ".zip"


def _refuse_foreign(path: Path, marker: str, as_zip: bool) -> None:
    try:
        if not path.exists():
            return
        if as_zip:
            ours = path.is_file() and zipfile.is_zipfile(path)
        else:
            ours = path.is_dir() and ((path / marker).is_file() or not any(path.iterdir()))
    except OSError as error:
        raise ResourceError(f"{path}: cannot be looked at ({error.strerror}); choose another --out") from None
    if not ours:
        raise BundleError(f"{path}: exists and is not a bundle; choose another --out or remove it yourself")


def _write_folder(partial: Path, contents: Mapping[str, Parts]) -> None:
    shutil.rmtree(partial, ignore_errors=True)  # of an earlier process with our id
    partial.mkdir()
    for name, parts in contents.items():
        with (partial / name).open("wb") as file:
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
    _sync(partial)


def _write_zip(partial: Path, contents: Mapping[str, Parts]) -> None:
    with partial.open("wb") as file:
        # Stored: floating-point arrays hardly shrink, and loading would pay for it on the device.
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            for name, parts in contents.items():
                with archive.open(name, "w", force_zip64=sum(map(len, parts)) > zipfile.ZIP64_LIMIT) as entry:
                    for part in parts:
                        entry.write(part)
        file.flush()
        os.fsync(file.fileno())


def _replace(partial: Path, path: Path) -> None:
    if not path.is_dir():
        os.replace(partial, path)
    elif not _exchange(partial, path):
        # No atomic exchange on this file system: an instant without the bundle, never half of one.
        aside = path.parent / f".{path.name}.old-{os.getpid()}"
        os.rename(path, aside)
        try:
            os.rename(partial, path)
        except OSError:
            os.rename(aside, path)
            raise
        shutil.rmtree(aside, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two folders in one step (Linux renameat2); False where that does not exist."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):
        return False
    result = renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE)
    return int(result) == 0


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
