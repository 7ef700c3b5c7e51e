"""The state of an unfinished training on disk: readable by anybody, never half of one, never pickle.

    training.json          what is being trained, how far it is, and the name, size and SHA-256 of ...
    state-<step>.safetensors   ... the parameters, buffers and the optimiser's state after that step
    lock                   held while a process trains here

The state is written and synchronised first, then ``training.json`` is replaced in one step, then the older state is
removed: whenever the process dies, the JSON names a whole state or there is none.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors import numpy as safetensors_numpy

from edge.errors import DataError, ResourceError
from engines.files import write_atomically

FORMAT_VERSION = 1
RECORD, LOCK = "training.json", "lock"
MAX_RECORD = 1 << 20
MAX_STATE = 4 << 30

Arrays = dict[str, NDArray[Any]]


class _Record(BaseModel):
    """``training.json``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: int = FORMAT_VERSION
    identity: dict[str, Any]
    step: int = Field(ge=0)
    history: tuple[float, ...]
    file: str = Field(pattern=r"^state-[0-9]+\.safetensors$")
    size: int = Field(ge=8, le=MAX_STATE)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


@dataclass(frozen=True)
class State:
    """A training after ``step`` steps. history: the mean loss of every finished epoch; what the unfinished one has
    summed up so far is among the arrays, in double precision."""

    step: int
    history: tuple[float, ...]
    arrays: Arrays


class Checkpoints:
    """The folder of one training. ``identity``: plain values (JSON) that fix what is trained on what; a state of
    another identity is refused, not mixed in."""

    def __init__(self, folder: Path, identity: Mapping[str, Any]) -> None:
        self.folder = folder
        self.identity: dict[str, Any] = json.loads(json.dumps(dict(identity)))

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Makes the folder and keeps others out. Raises ResourceError where another process trains here, or the
        folder cannot be made; DataError where something else has its name."""
        try:
            if self.folder.exists() and not _is_ours(self.folder):
                raise DataError(f"{self.folder}: holds something else than a training; choose another folder for it")
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = (self.folder / LOCK).open("wb")
        except OSError as error:
            raise ResourceError(f"{self.folder}: cannot be used for the training ({error.strerror or error})") from None
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise ResourceError(
                    f"{self.folder}: another process trains here; wait for it, or choose another"
                ) from None
            for left in self.folder.glob(".*.tmp"):  # of a process that was killed while it wrote
                left.unlink(missing_ok=True)
            yield

    def load(self) -> State | None:
        """The last state kept, or None. Raises DataError, naming the remedy, for one that is damaged or belongs to
        another training."""
        record = self._record()
        if record is None:
            return None
        path = self.folder / record.file
        try:
            data = path.read_bytes() if path.stat().st_size == record.size else b""
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror}); {self._remedy()}") from None
        if hashlib.sha256(data).hexdigest() != record.sha256:
            raise DataError(f"{path}: was changed or cut short (its hash differs); {self._remedy()}")
        try:
            arrays = safetensors_numpy.load(data)
        except (SafetensorError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path}: holds no readable arrays ({error}); {self._remedy()}") from None
        return State(record.step, record.history, arrays)

    def save(self, state: State) -> None:
        """Keep ``state`` in place of the one before, durably. Raises ResourceError where the disk refuses; the state
        before is then still whole."""
        arrays = {name: np.asarray(array, order="C") for name, array in state.arrays.items()}
        data = safetensors_numpy.save(arrays)
        name = f"state-{state.step}.safetensors"
        record = _Record(
            identity=self.identity,
            step=state.step,
            history=state.history,
            file=name,
            size=len(data),
            sha256=hashlib.sha256(data).hexdigest(),
        )
        try:
            write_atomically(self.folder / name, data)
            write_atomically(self.folder / RECORD, (record.model_dump_json(indent=1) + "\n").encode())
            for other in self.folder.glob("state-*.safetensors"):
                if other.name != name:
                    other.unlink()
        except OSError as error:
            raise ResourceError(
                f"{self.folder}: the training's state cannot be written ({error.strerror or error}); free space and"
                " start the same command again: it goes on from the last state kept"
            ) from None

    def _record(self) -> _Record | None:
        path = self.folder / RECORD
        try:
            with path.open("rb") as file:
                text = file.read(MAX_RECORD)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror}); {self._remedy()}") from None
        try:
            record = _Record.model_validate_json(text)
        except ValidationError:
            raise DataError(f"{path}: damaged, or of another version; {self._remedy()}") from None
        if record.format_version != FORMAT_VERSION:
            raise DataError(f"{path}: format version {record.format_version} is not known; {self._remedy()}")
        if record.identity != self.identity:
            keys = sorted(set(record.identity) | set(self.identity))
            changed = [key for key in keys if record.identity.get(key) != self.identity.get(key)]
            raise DataError(f"{path}: an unfinished training with other {', '.join(changed)}; {self._remedy()}")
        return record

    def _remedy(self) -> str:
        return f"remove {self.folder} to train from the start, or choose another folder"


def discard(folder: Path) -> None:
    """Delete a training's folder: it has ended, and its result is written. Anything else of that name is left
    alone."""
    if _is_ours(folder):
        shutil.rmtree(folder, ignore_errors=True)


def _is_ours(folder: Path) -> bool:
    if not folder.is_dir():
        return False
    names = {path.name for path in folder.iterdir()}
    return not names or RECORD in names or LOCK in names
