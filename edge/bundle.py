"""Bundles: what ``edge fit`` writes and ``edge run`` loads. A folder, or the same files in a .zip.

    bundle.json              the manifest: versions, settings, thresholds, provenance, SHA-256 and size of every file
    head.safetensors         the head's arrays
    backbone.onnx            the graph that gives the taps
    calibration.safetensors  scores of held-out good pictures, in the order of the split's list
    refit.safetensors        optional: what a refit needs beyond the head's arrays (features, Gram matrices)

Never pickle. Every size is bounded before it is read, every hash verified before it is parsed, and the
manifest carries a checksum of itself: what was damaged, cut short or edited is refused with one line.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edge import tensors
from edge.bundle_files import BundleFiles, Parts, open_files, write_files
from edge.errors import BundleError, HeadError, ResourceError
from edge.heads import Head, aligned_empty, load_head, resident_arrays
from edge.heads.calibrated import Calibrated, GpdTail
from edge.heads.scorer import ScoreSpec
from edge.heads.tail import TailSpec
from edge.memory import available_bytes, gigabytes

__all__ = ["FORMAT_VERSION", "Bundle", "Manifest", "load_bundle", "load_graph", "write_bundle"]

FORMAT_VERSION = 1
MANIFEST = "bundle.json"
HEAD, GRAPH = "head.safetensors", "backbone.onnx"
CALIBRATION, REFIT = "calibration.safetensors", "refit.safetensors"
REQUIRED = (HEAD, GRAPH, CALIBRATION)
MAX_MANIFEST = 64 * 2**20  # 300,000 fitted pictures' names and hashes
MAX_FILE = 16 * 2**30
MAX_GRAPH = 2 * 2**30  # protobuf's own limit

Arrays = Mapping[str, NDArray[Any]]
Sha256 = Field(pattern=r"^[0-9a-f]{64}$")


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TapInfo(_Model):
    """A tap the head reads: [channels, height, width] for one picture."""

    name: str
    channels: int = Field(ge=1)
    height: int = Field(ge=1)
    width: int = Field(ge=1)


class BackboneInfo(_Model):
    """The network and how it must run: another precision gives other scores."""

    name: str
    graph_sha256: str = Sha256
    precision: str
    taps: tuple[TapInfo, ...] = Field(min_length=1)


class InputInfo(_Model):
    """Pixels of the prepared picture (uint8 RGB)."""

    height: int = Field(ge=16, le=4096)
    width: int = Field(ge=16, le=4096)


class CalibrationInfo(_Model):
    """What the thresholds promise. Scores above ``threshold`` are alarms; rates are per inspected picture."""

    count: int = Field(ge=1)
    method: Literal["folds", "loo", "holdout"]
    guarantee: str  # a sentence for people
    exact: bool  # finite-sample guarantee for exchangeable pictures
    false_alarm_rate: float = Field(gt=0, lt=1)
    threshold: float
    pixel_threshold: float
    extrapolated: bool
    interval: tuple[float, float] | None = None  # 95%, of the threshold, where extrapolated
    rate_interval: tuple[float, float] | None = None  # 95%, of the false-alarm rate at the threshold
    needed_for_promise: int = Field(ge=1)
    tail: GpdTail | None = None
    pixel_tail: GpdTail | None = None


class FittedPicture(_Model):
    """A good picture that shaped this bundle: name relative to the data's folder, SHA-256 of the file."""

    name: str
    sha256: str = Sha256


class SplitInfo(_Model):
    """Which pictures were fitted (calibration's included), and by which layout and seed they were chosen."""

    layout: str
    seed: int | None = None
    fitted: tuple[FittedPicture, ...]


class Provenance(_Model):
    """Where the bundle comes from."""

    created: str  # UTC, ISO 8601
    tool: str  # "edge-inspect 0.1.0"
    runtime: str  # the engine that gave the features
    pictures: int = Field(ge=1)
    pictures_sha256: str = Sha256  # over the sorted hashes of the fitted pictures
    # Wall time of the whole fit, pictures to thresholds; None where that is not known: older bundles, a refit, a
    # training that was interrupted.
    fit_seconds: float | None = Field(default=None, ge=0)


class FileInfo(_Model):
    """A file beside the manifest."""

    size: int = Field(ge=0, le=MAX_FILE)
    sha256: str = Sha256


class Manifest(_Model):
    """``bundle.json``. ``checksum`` is the SHA-256 of the canonical JSON without itself."""

    format_version: Literal[1] = 1
    method: str
    spec: dict[str, Any]
    backbone: BackboneInfo
    input: InputInfo
    tail: TailSpec
    score: ScoreSpec
    calibration: CalibrationInfo
    provenance: Provenance
    split: SplitInfo
    files: dict[str, FileInfo] = Field(default_factory=dict)
    checksum: str = ""


@dataclass(frozen=True)
class Bundle:
    """A loaded, verified bundle. Arrays are read-only.

    arrays: the head's, as stored: half-precision ones of a folder are views of the mapped file; calibration:
    ``score``, ``max`` and (where the head has one) ``norm``, float64 [n].
    """

    path: Path
    manifest: Manifest
    arrays: Arrays
    calibration: Arrays
    graph: bytes

    def make_head(self) -> Head:
        """A new head over the shared arrays (one a thread). Raises BundleError naming the bundle, ResourceError
        where memory does not do for its arrays."""
        return self._head(self._resident)

    @cached_property
    def _resident(self) -> Arrays:
        """Converted once, when the first head is made: the supervisor loads bundles and makes none."""
        try:
            return resident_arrays(self.manifest.method, self.manifest.spec, self.arrays)
        except HeadError as error:
            raise BundleError(f"{self.path}: {error}") from None
        except ResourceError as error:
            raise ResourceError(f"{self.path}: {error}") from None

    def _head(self, arrays: Arrays) -> Head:
        try:
            return load_head(self.manifest.method, self.manifest.spec, arrays)
        except HeadError as error:
            raise BundleError(f"{self.path}: {error}") from None

    def refit_arrays(self) -> Arrays | None:
        """What a refit needs beyond the head's arrays, verified now; None where it was left out."""
        if REFIT not in self.manifest.files:
            return None
        with open_files(self.path) as files:
            return _arrays(self.path, REFIT, _verified(self.path, files, REFIT, self.manifest.files[REFIT]))


def load_bundle(path: Path | str) -> Bundle:
    """Load and verify a bundle: sizes, hashes, the manifest, and that the head can be built from its arrays.

    Raises BundleError, one line naming the file and the remedy: missing, not a bundle, a newer format,
    edited, cut short, an unknown method, arrays of the wrong shape. Raises ResourceError where it is larger than the
    memory that is free (a .zip; a folder's large arrays are mapped).
    """
    path = Path(path)
    with open_files(path) as files:
        manifest = _manifest(path, files)
        for name in REQUIRED:
            if name not in manifest.files:
                raise BundleError(f"{path}: the manifest does not list {name}; fit the bundle again")
        # Everything is verified before anything is parsed; what a refit needs is hashed, not kept.
        data: dict[str, bytes | memoryview] = {
            name: _verified(path, files, name, manifest.files[name]) for name in REQUIRED
        }
        for name in sorted(set(manifest.files) - set(REQUIRED)):
            if name != REFIT:
                raise BundleError(f"{path}: the manifest lists an unknown file {name!r}; fit the bundle again")
            _verify(path, files, name, manifest.files[name])
    graph = bytes(data.pop(GRAPH))
    if len(graph) > MAX_GRAPH or hashlib.sha256(graph).hexdigest() != manifest.backbone.graph_sha256:
        raise BundleError(f"{path}: {GRAPH} is not the backbone it was fitted with; fit the bundle again")
    arrays = _arrays(path, HEAD, data.pop(HEAD))
    calibration = _arrays(path, CALIBRATION, data.pop(CALIBRATION))
    bundle = Bundle(path, manifest, arrays, calibration, graph)
    _fits(bundle)
    return bundle


def load_graph(path: Path | str) -> bytes:
    """The backbone's ONNX graph alone, verified; for the process that runs the engine and needs no head.

    Raises BundleError like :func:`load_bundle`."""
    path = Path(path)
    with open_files(path) as files:
        manifest = _manifest(path, files)
        if GRAPH not in manifest.files:
            raise BundleError(f"{path}: the manifest does not list {GRAPH}; fit the bundle again")
        return bytes(_verified(path, files, GRAPH, manifest.files[GRAPH]))


def write_bundle(
    path: Path | str,
    manifest: Manifest,
    arrays: Arrays,
    calibration: Arrays,
    graph: bytes,
    refit: Arrays | None = None,
) -> Manifest:
    """Write a bundle atomically (a folder; a .zip where ``path`` ends so): after a crash or a full disk there
    is the old bundle or the new one, never half of one. An older bundle of the same name is replaced;
    anything else of that name is left alone.

    ``manifest.files`` and ``checksum`` are filled in; the manifest as written is returned. Raises BundleError
    when something else has the name, ResourceError when the disk is full or may not be written."""
    path = Path(path)
    contents: dict[str, Parts] = {
        HEAD: tensors.encode(arrays),
        GRAPH: [graph],
        CALIBRATION: tensors.encode(calibration),
    }
    if refit is not None:
        contents[REFIT] = tensors.encode(refit)
    files = {name: _info(parts) for name, parts in contents.items()}
    manifest = manifest.model_copy(update={"files": files, "checksum": ""})
    manifest = manifest.model_copy(update={"checksum": _checksum(manifest.model_dump(mode="json"))})
    contents[MANIFEST] = [(json.dumps(manifest.model_dump(mode="json"), indent=1) + "\n").encode()]
    write_files(path, contents, MANIFEST)
    return manifest


def _checksum(content: dict[str, Any]) -> str:
    content = {key: value for key, value in content.items() if key != "checksum"}
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()


def _manifest(path: Path, files: BundleFiles) -> Manifest:
    size = files.size(MANIFEST)
    if size is None:
        raise BundleError(f"{path}: not a bundle (no {MANIFEST} in it); make one with: edge fit --out {path}")
    if size > MAX_MANIFEST:
        raise BundleError(f"{path}: {MANIFEST} has {size} bytes, far more than any manifest; not a bundle")
    try:
        content = json.loads(files.read(MANIFEST, MAX_MANIFEST))
    except (ValueError, RecursionError):
        raise BundleError(f"{path}: {MANIFEST} is damaged or cut short; copy or fit the bundle again") from None
    if not isinstance(content, dict) or not isinstance(content.get("format_version"), int):
        raise BundleError(f"{path}: {MANIFEST} is not a bundle's manifest; make one with: edge fit")
    if content["format_version"] > FORMAT_VERSION:
        raise BundleError(
            f"{path}: format version {content['format_version']} is newer than this program's {FORMAT_VERSION};"
            " update edge-inspect"
        )
    if content.get("checksum") != _checksum(content):
        raise BundleError(
            f"{path}: {MANIFEST} was edited or damaged (its checksum differs); change settings by fitting again"
        )
    try:
        return Manifest.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise BundleError(f"{path}: {MANIFEST}: {where}: {first['msg']}; fit the bundle again") from None


def _verify(path: Path, files: BundleFiles, name: str, info: FileInfo) -> None:
    size = files.size(name)
    if size is None:
        raise BundleError(f"{path}: {name} is missing; copy or fit the bundle again")
    if size != info.size:
        kind = "cut short" if size < info.size else "too long"
        raise BundleError(f"{path}: {name} is {kind}: {size} bytes of {info.size}; copy or fit the bundle again")
    if files.sha256(name, info.size) != info.sha256:
        raise BundleError(f"{path}: {name} was changed or damaged (its hash differs); copy or fit it again")


def _verified(path: Path, files: BundleFiles, name: str, info: FileInfo) -> bytes | memoryview:
    """The file's bytes: the very ones that were hashed, not a second reading of them."""
    size = files.size(name)
    if size != info.size:
        _verify(path, files, name, info)
    free = available_bytes()
    if path.is_file() and free is not None and info.size > free:
        raise ResourceError(
            f"{path}: {name} has {gigabytes(info.size)} and {gigabytes(free)} of memory are free;"
            " unpack the .zip into a folder, whose files need not fit"
        )
    data = files.view(name, info.size)
    if len(data) != info.size or hashlib.sha256(data).hexdigest() != info.sha256:
        raise BundleError(f"{path}: {name} was changed or damaged (its hash differs); copy or fit it again")
    return data


def _info(parts: Parts) -> FileInfo:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return FileInfo(size=sum(map(len, parts)), sha256=digest.hexdigest())


def _arrays(path: Path, name: str, data: bytes | memoryview) -> dict[str, NDArray[Any]]:
    try:
        loaded = tensors.decode(data)
    except ValueError as error:
        raise BundleError(f"{path}: {name} holds no readable arrays ({error}); fit it again") from None
    result: dict[str, NDArray[Any]] = {}
    for key in sorted(loaded):
        array = loaded.pop(key)
        if array.dtype == np.float16:
            # The form of storage, of large arrays: heads widen what they need, when they need it.
            result[key] = array
            continue
        kept = aligned_empty(array.shape, array.dtype)
        np.copyto(kept, array)
        kept.flags.writeable = False
        result[key] = kept
    return result


def _fits(bundle: Bundle) -> None:
    """Refuse at the door what would fail on the first frame."""
    manifest = bundle.manifest
    head = bundle._head(bundle.arrays)
    missing = set(head.taps) - {tap.name for tap in manifest.backbone.taps}
    if missing:
        raise BundleError(f"{bundle.path}: the head reads taps the backbone lacks: {', '.join(sorted(missing))}")
    scores = bundle.calibration.get("score")
    if scores is None or scores.shape != (manifest.calibration.count,) or scores.dtype != np.float64:
        raise BundleError(f"{bundle.path}: {CALIBRATION} does not hold the {manifest.calibration.count} scores")
    try:
        Calibrated(scores, manifest.calibration.tail)
    except HeadError as error:
        raise BundleError(f"{bundle.path}: {error}") from None
