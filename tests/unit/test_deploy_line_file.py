"""deploy/line.example.toml shows every key with its true default, and loads."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydantic import BaseModel

from edge import config
from edge.alerts.config import AlertPolicy, PublishSettings, StoreSettings
from edge.cameras.config import FolderSource, MjpegSource, RtspSource, SyntheticSource, V4l2Source, VideoSource

EXAMPLE = Path(__file__).resolve().parents[2] / "deploy" / "line.example.toml"
TABLES: list[tuple[str, type[BaseModel]]] = [
    ("[line]", config.LineSettings),
    ("[pipeline]", config.PipelineSettings),
    ("[engine]", config.EngineSettings),
    ("[alerts]", AlertPolicy),
    ("[store]", StoreSettings),
    ("[publish]", PublishSettings),
    ('kind = "synthetic"', SyntheticSource),
    ('kind = "folder"', FolderSource),
    ('kind = "video"', VideoSource),
    ('kind = "rtsp"', RtspSource),
    ('kind = "mjpeg"', MjpegSource),
    ('kind = "v4l2"', V4l2Source),
]


def test_the_example_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", "/run/credentials/edge")
    line = config.load_line(EXAMPLE)
    assert {camera.source.kind for camera in line.camera} == {
        "synthetic", "rtsp", "folder", "video", "mjpeg", "v4l2",
    }  # fmt: skip
    belt = next(camera for camera in line.camera if camera.name == "belt")
    assert isinstance(belt.source, RtspSource)
    assert belt.source.password_file == Path("/run/credentials/edge/belt")
    assert line.line.bundle == EXAMPLE.parent / "bottle.bundle"


@pytest.mark.parametrize(("anchor", "model"), TABLES, ids=[model.__name__ for _, model in TABLES])
def test_every_key_stands_there_with_its_default(anchor: str, model: type[BaseModel]) -> None:
    text = EXAMPLE.read_text()
    start = text.index(anchor)
    if anchor.startswith("kind"):
        start = text.rindex("[camera.source]", 0, start)
    following = re.search(r"\n(\[|# -)", text[start + 1 :])
    table = text[start : start + 1 + following.start()] if following else text[start:]
    for name, field in model.model_fields.items():
        found = re.search(rf"^(# )?{name} =(.*)$", table, re.MULTILINE)
        assert found, f"{name} is missing from {anchor}"
        if found[1] and field.default is not None and not field.is_required():
            value = config.tomllib.loads(f"x ={found[2]}")["x"]
            default = list(field.default) if isinstance(field.default, tuple) else field.default
            assert value == default, name
