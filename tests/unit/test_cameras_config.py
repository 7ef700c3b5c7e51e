"""The camera models: bounds, and that nothing they print holds a credential."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote

import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.cameras import CameraSource, open_camera
from edge.cameras.config import (
    FolderSource,
    MjpegSource,
    RtspSource,
    SyntheticSource,
    V4l2Source,
    VideoSource,
)
from edge.cameras.credentials import public_url, scrub, url_with_password
from edge.errors import CameraConfigError

SOURCES: pydantic.TypeAdapter[CameraSource] = pydantic.TypeAdapter(CameraSource)
KINDS = [SyntheticSource, FolderSource, VideoSource, RtspSource, MjpegSource, V4l2Source]
SECRET = "geheim-4711"


def errors_of(data: dict[str, Any]) -> pydantic.ValidationError:
    with pytest.raises(pydantic.ValidationError) as caught:
        SOURCES.validate_python(data)
    return caught.value


@pytest.mark.parametrize(
    "data",
    [
        {"kind": "synthetic"},
        {"kind": "folder", "path": "/no/such/folder", "mode": "watch"},
        {"kind": "video", "path": "/no/such/file", "fps": 12.5},
        {"kind": "video", "path": "/no/such/file", "fps": "native"},
        {"kind": "rtsp", "url": "rtsp://op:pw@camera.invalid:8554/main", "transport": "udp"},
        {"kind": "rtsp", "url": "rtsp://[fe80::1]:554/main"},
        {"kind": "mjpeg", "url": "https://op@camera.invalid/video", "password_file": "/no/such/file"},
        {"kind": "v4l2", "device": 0},
        {"kind": "v4l2", "device": "/dev/v4l/by-id/usb-A_B-video-index0", "width": 1280, "height": 720},
    ],
    ids=lambda d: f"{d['kind']}-{len(d)}",
)
def test_valid_sources_make_a_camera_without_touching_anything(data: dict[str, Any]) -> None:
    camera = open_camera(SOURCES.validate_python(data))
    assert camera.live == (data["kind"] in ("rtsp", "mjpeg", "v4l2"))
    assert camera.overwritten == 0
    assert camera.describe()
    camera.close()  # one that never opened


@pytest.mark.parametrize(
    ("data", "field"),
    [
        ({"kind": "synthetic", "defect_rate": 1.5}, "defect_rate"),
        ({"kind": "synthetic", "defects": ["rust"]}, "defects"),
        ({"kind": "synthetic", "defects": []}, "defects"),
        ({"kind": "synthetic", "size": [640, 8]}, "size"),
        ({"kind": "synthetic", "fps": 0}, "fps"),
        ({"kind": "folder"}, "path"),
        ({"kind": "folder", "path": ".", "mode": "forever"}, "mode"),
        ({"kind": "folder", "path": ".", "colour": 1}, "colour"),
        ({"kind": "video", "path": "a.avi", "fps": "fast"}, "fps"),
        ({"kind": "rtsp", "url": "http://camera/"}, "url"),
        ({"kind": "rtsp", "url": "rtsp:///path"}, "url"),
        ({"kind": "rtsp", "url": "rtsp://camera:0/"}, "url"),
        ({"kind": "rtsp", "url": "rtsp://camera/a b"}, "url"),
        ({"kind": "rtsp", "url": "rtsp://camera/", "stall_s": 0}, "stall_s"),
        ({"kind": "rtsp", "url": "rtsp://camera/", "password_file": "/x"}, "password_file"),
        ({"kind": "rtsp", "url": "rtsp://a:b@camera/", "password_file": "/x"}, "password_file"),
        ({"kind": "mjpeg", "url": "file:///etc/passwd"}, "url"),
        ({"kind": "v4l2", "device": "/etc/passwd"}, "device"),
        ({"kind": "v4l2", "width": 640}, ""),
        ({"kind": "v4l2", "fourcc": "mjpeg"}, "fourcc"),
    ],
)
def test_a_wrong_value_is_refused_at_its_field(data: dict[str, Any], field: str) -> None:
    locations = [error["loc"] for error in errors_of(data).errors()]
    assert any(field in location for location in locations) or not field, locations


@pytest.mark.parametrize("kind", KINDS)
def test_every_field_is_documented_and_frozen(kind: type[pydantic.BaseModel]) -> None:
    for name, field in kind.model_fields.items():
        assert name == "kind" or field.description, f"{kind.__name__}.{name}"
    assert kind.model_config["frozen"]
    assert kind.model_config["extra"] == "forbid"


@pytest.mark.parametrize(
    "data",
    [
        {"kind": "rtsp", "url": f"rtsp://op:{SECRET}@camera:x/cam"},
        {"kind": "rtsp", "url": f"rtsp://op:{SECRET}/@camera/cam"},
        {"kind": "rtsp", "url": f"http://op:{SECRET}@camera/cam"},
        {"url": f"rtsp://op:{SECRET}@camera/cam"},
        {"kind": "rstp", "url": f"rtsp://op:{SECRET}@camera/cam"},
        {"kind": "rtsp", "url": f"rtsp://op:{SECRET}@camera/cam", "password": SECRET},
        {"kind": "folder", "path": ".", "url": f"rtsp://op:{SECRET}@camera/cam"},
        {"kind": "rtsp", "url": f"rtsp://op:{SECRET}@camera/cam", "password_file": "/x", "stall_s": -1},
    ],
)
def test_validation_errors_do_not_quote_a_password(data: dict[str, Any]) -> None:
    error = errors_of(data)
    assert SECRET not in str(error) + repr(error.errors()) + error.json()


def test_a_source_never_shows_its_url_but_can_be_sent_on() -> None:
    source = RtspSource(kind="rtsp", url=f"rtsp://op:{SECRET}@camera/cam?token={SECRET}")  # type: ignore[arg-type]
    shown = [repr(source), str(source), repr(source.model_dump()), source.model_dump_json()]
    shown += [open_camera(source).describe(), repr(open_camera(source))]
    assert not [text for text in shown if SECRET in text]
    revealed = json.loads(source.model_dump_json(context={"reveal_secrets": True}))
    assert SOURCES.validate_python(revealed) == source
    assert source != source.model_copy(update={"url": pydantic.SecretStr("rtsp://op:other@camera/cam")})


@given(st.text(min_size=1, max_size=40), st.text(min_size=1, max_size=10).filter(str.strip))
def test_scrub_removes_any_percent_encoded_login(password: str, user: str) -> None:
    user, password = f"u{user}", f"pw{password}"
    url = f"rtsp://{quote(user, safe='')}:{quote(password, safe='')}@camera:554/cam"
    text = scrub(f"[Errno 5] failed: '{url}' after 3 s")
    assert text == "[Errno 5] failed: 'rtsp://***@camera:554/cam' after 3 s"


@given(st.text(min_size=1, max_size=40))
def test_scrub_removes_a_known_secret_however_it_is_written(secret: str) -> None:
    forms = [secret, quote(secret, safe="")]
    text = scrub(" <-> ".join(forms), secret)
    rest = text.replace("***", "").replace(" <-> ", "")
    assert not any(form in rest for form in forms)


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("http://cam/v?usr=admin&pwd=x1y2&res=1", "http://cam/v?usr=admin&pwd=***&res=1"),
        ("rtsp://cam/user=admin&password=x1y2/0", "rtsp://cam/user=admin&password=***/0"),
        ("rtsp://a:b@c@cam/", "rtsp://***@cam/"),
        ("{'password': 'x1y2', 'kind': 'rtsp'}", "{'password': '***', 'kind': 'rtsp'}"),
        ("connection refused", "connection refused"),
        ("rtsp://cam/a@b", "rtsp://cam/a@b"),
    ],
)
def test_scrub_by_example(text: str, clean: str) -> None:
    assert scrub(text) == clean


def test_public_url_keeps_what_finds_the_camera() -> None:
    assert public_url("rtsp://a:b@10.0.0.9:554/main?key=x") == "rtsp://10.0.0.9:554/main?..."


def test_password_file(tmp_path: Any) -> None:
    file = tmp_path / "camera.pw"
    file.write_bytes("p@ss/wörd\nsecond line".encode())
    url = url_with_password("rtsp://op@camera:554/cam", file)
    assert url == "rtsp://op:p%40ss%2Fw%C3%B6rd@camera:554/cam"
    assert url_with_password("rtsp://camera/cam", None) == "rtsp://camera/cam"


def test_password_file_from_the_service_manager(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pw").write_text("x")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    source = MjpegSource.model_validate(
        {"kind": "mjpeg", "url": "http://op@camera/", "password_file": "$CREDENTIALS_DIRECTORY/pw"}
    )
    assert url_with_password(source.url.get_secret_value(), source.password_file) == "http://op:x@camera/"


@pytest.mark.parametrize("content", [None, b"", b"\n", b"x" * 5000])
def test_a_useless_password_file_is_named(tmp_path: Any, content: bytes | None) -> None:
    file = tmp_path / "pw"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(CameraConfigError, match=str(file)):
        url_with_password("rtsp://op@camera/cam", file)
