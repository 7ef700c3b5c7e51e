"""The line file: TOML read into typed, frozen, validated models. All mistakes are told at once.

Checking a file touches no camera, no network and no device. Relative paths are relative to the file's folder.
"""

from __future__ import annotations

import difflib
import os
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from edge.alerts.config import AlertPolicy, PublishSettings, StoreSettings
from edge.cameras.config import CameraSource
from edge.errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MAX_FILE_BYTES = 1 << 20
MAX_CAMERAS = 64


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,47}$")]


class LineSettings(_Settings):
    """``[line]``"""

    name: Name = Field("line", description="name of the line, in health messages and logs")
    bundle: Path | None = Field(None, description="bundle of every camera that names none itself")


class PipelineSettings(_Settings):
    """``[pipeline]``: slots, time limits, batching."""

    slots: int = Field(6, ge=2, le=64, description="frames each camera may have under way")
    queue: int = Field(
        2, ge=1, le=32, description="frames of a `latest` camera that may wait; the oldest goes when a newer comes"
    )
    stage_slots: int = Field(4, ge=2, le=64, description="inputs, features and maps each that may be under way")
    batch: int = Field(1, ge=1, le=32, description="largest batch of the backbone, across cameras")
    batch_wait_ms: float = Field(0.0, ge=0, le=1000, description="how long the first frame of a batch waits")
    frame_timeout_s: float = Field(5.0, gt=0, le=600, description="a frame without verdict by then: not inspected")
    heartbeat_s: float = Field(10.0, ge=0.5, le=600, description="silence of a stage until it is killed")
    start_s: float = Field(120.0, ge=1, le=3600, description="how long a stage may take to get ready")
    grace_s: float = Field(5.0, ge=0, le=300, description="how long a stop may take to finish frames under way")
    restarts: int = Field(8, ge=0, le=1000, description="crashes of one stage within restart_window_s; then give up")
    restart_window_s: float = Field(300.0, gt=0, le=86_400, description="see restarts")
    max_pixels: int = Field(64_000_000, ge=1, le=2**31, description="larger frames are refused")


class EngineSettings(_Settings):
    """``[engine]``: how the backbone runs."""

    runtime: Literal["auto", "openvino", "onnxruntime"] = Field("auto", description="inference runtime")
    precision: Literal["bundle", "f32", "bf16"] = Field("bundle", description="`bundle`: as the bundle was fitted")
    threads: int = Field(1, ge=1, le=256, description="threads of the backbone's engine")
    cache: Path | None = Field(None, description="folder of compiled engines; default: the state folder's `engines`")


class CameraSettings(_Settings):
    """``[[camera]]``"""

    name: Name = Field(description="unique name; part of the topics")
    source: CameraSource
    bundle: Path | None = Field(None, description="this camera's own bundle")
    policy: Literal["latest", "every"] = Field(
        "latest", description="`latest`: live video, old frames give way; `every`: the source waits, nothing is dropped"
    )
    roi: tuple[int, int, int, int] | None = Field(None, description="x, y, width, height in source pixels")

    @field_validator("roi")
    @classmethod
    def _roi_is_a_rectangle(cls, roi: tuple[int, int, int, int] | None) -> tuple[int, int, int, int] | None:
        if roi is not None and (min(roi[:2]) < 0 or min(roi[2:]) < 1):
            raise ValueError("must be x, y >= 0 and width, height >= 1 in source pixels")
        return roi


class LineFile(_Settings):
    """A whole line file, made by :func:`parse_line`, which also checks how its keys fit together."""

    line: LineSettings = LineSettings()
    pipeline: PipelineSettings = PipelineSettings()
    engine: EngineSettings = EngineSettings()
    alerts: AlertPolicy = AlertPolicy()
    store: StoreSettings = StoreSettings()
    publish: PublishSettings = PublishSettings()
    camera: tuple[CameraSettings, ...] = Field(min_length=1, max_length=MAX_CAMERAS)

    def bundle_of(self, camera: CameraSettings) -> Path:
        """The bundle that scores ``camera``."""
        path = camera.bundle or self.line.bundle
        assert path is not None  # _disagreements
        return path


def load_line(path: Path) -> LineFile:
    """Read and check a line file.

    Raises ConfigError whose message has a line for each mistake: file, key, rule, and the value found.
    """
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ConfigError(f"{path}: larger than {MAX_FILE_BYTES} bytes; not a line file")
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such line file (deploy/line.example.toml is a start)") from None
    except IsADirectoryError:
        raise ConfigError(f"{path}: is a folder; name the line file in it") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not UTF-8 text") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from None
    return parse_line(data, path)


def parse_line(data: dict[str, Any], path: Path) -> LineFile:
    """Check a line file's content; ``path`` names it in errors and anchors relative paths."""
    # Not a validator of the model: that runs only once every key is right by itself, and all mistakes are told at once.
    mistakes = list(_disagreements(data))
    line = None
    try:
        line = LineFile.model_validate(data)
    except ValidationError as error:
        mistakes = [*_sentences(error), *mistakes]
    if line is None or mistakes:
        lines = [f"{path}: {text}" for text in mistakes]
        raise ConfigError("\n".join([*lines, f"({len(lines)} mistake{'s' * (len(lines) > 1)}; nothing was started)"]))
    return _anchored(line, path.resolve().parent)


def _anchored(model: Any, base: Path) -> Any:
    """A copy of ``model`` whose relative paths are relative to ``base``."""
    if isinstance(model, Path):
        # $CREDENTIALS_DIRECTORY and the like are filled in first: they name absolute folders.
        # os.path's, for Path.expanduser raises where the user of ~user is unknown; here the path then names no file.
        if "\0" in str(model):
            raise ConfigError(f"a path must not hold a NUL character. Got {str(model)[:80]!r}")
        return base / os.path.expanduser(os.path.expandvars(model))
    if isinstance(model, tuple):
        return tuple(_anchored(item, base) for item in model)
    if isinstance(model, BaseModel):
        changes = {name: _anchored(getattr(model, name), base) for name in type(model).model_fields}
        return model.model_copy(update={k: v for k, v in changes.items() if v is not getattr(model, k)})
    return model


def _disagreements(data: Mapping[str, Any]) -> Iterator[str]:
    """Keys that are right by themselves and wrong together. ``data`` is as it was read: what is of another type is
    passed over here, the models refuse it."""
    cameras = [c if isinstance(c, Mapping) else {} for c in _as_list(data.get("camera"))]
    names = Counter(name for camera in cameras if isinstance(name := camera.get("name"), str))
    for name, count in names.items():
        if count > 1:
            yield f"camera: the name {name!r} is used {count} times; names must be unique"
    line, pipeline = data.get("line", {}), data.get("pipeline", {})
    if isinstance(line, Mapping) and line.get("bundle") is None:
        for index, camera in enumerate(cameras):
            if camera and camera.get("bundle") is None:
                yield f"camera[{index}].bundle: missing; set it, or line.bundle for every camera without one"
    if isinstance(pipeline, Mapping):
        fields = PipelineSettings.model_fields
        queue, slots = (pipeline.get(key, fields[key].default) for key in ("queue", "slots"))
        if type(queue) is type(slots) is int and queue >= slots > 1:
            yield f"pipeline.queue: must be below pipeline.slots, which is {slots}. Got {queue}"


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else []


def _sentences(error: ValidationError) -> Iterator[str]:
    for item in error.errors(include_url=False):
        where = _where(item["loc"])
        kind = item["type"]
        if kind == "extra_forbidden":
            key = str(item["loc"][-1])
            near = difflib.get_close_matches(key, _known_keys(LineFile), n=1)
            yield f"{where}: unknown key.{f' Did you mean {near[0]}?' if near else ''}"
        elif kind == "too_short" and item["loc"] == ("camera",):
            # pydantic also says so when there are cameras and all of them are wrong.
            if not item["input"]:
                yield "camera: at least one [[camera]] is needed"
        elif kind == "missing":
            yield f"{where}: missing; this key is needed"
        elif kind in ("union_tag_not_found", "union_tag_invalid"):
            yield f"{where}.kind: must be one of {_kinds()}{_shown(item.get('ctx', {}).get('tag'))}"
        else:
            message = re.sub(r"^(Value error, |Input )", "", item["msg"])
            message = re.sub(r"\bshould\b", "must", message, count=1)
            yield f"{where + ': ' if where else ''}{message}{_got(item)}"


def _where(loc: tuple[Any, ...]) -> str:
    """``camera[0].source.fps``; the tag that pydantic puts after a union's field is left out."""
    kinds = set(_kinds().replace("'", "").split(", "))
    text = ""
    for index, part in enumerate(loc):
        if isinstance(part, int):
            text += f"[{part}]"
        elif not (part in kinds and index and loc[index - 1] == "source"):
            text += f".{part}" if text else str(part)
    return text


def _got(item: Any) -> str:
    value = item.get("input")
    if value is None or isinstance(value, (dict, list, BaseModel)):
        return ""
    # A URL may carry a password, so values under such keys are not repeated.
    if any(str(part) in ("url", "password", "password_file") for part in item["loc"]):
        return ""
    return _shown(value)


def _shown(value: Any) -> str:
    if value is None or (isinstance(value, str) and "://" in value and "@" in value):  # a URL in the wrong place
        return ""
    return f". Got {str(value)[:80]!r}" if isinstance(value, str) else f". Got {str(value)[:80]}"


def _kinds() -> str:
    return ", ".join(f"'{kind}'" for kind in sorted(_source_kinds()))


def _source_kinds() -> Iterator[str]:
    for model in _models(CameraSource):
        yield from get_args(model.model_fields["kind"].annotation)


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """Every settings model inside an annotation such as ``tuple[A | B, ...]`` or ``Annotated[...]``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif get_origin(annotation) is not None or get_origin(annotation) is Union:
        for part in get_args(annotation):
            yield from _models(part)


def _known_keys(model: type[BaseModel]) -> set[str]:
    keys = set(model.model_fields)
    for field in model.model_fields.values():
        for inner in _models(field.annotation):
            keys |= _known_keys(inner)
    return keys
