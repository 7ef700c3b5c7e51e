"""The line file: every mistake at once, each with its key, its rule and what was found; secrets never."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.config import MAX_FILE_BYTES, LineFile, load_line, parse_line
from edge.errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PATH = Path("/somewhere/line.toml")
CAMERA = {"name": "a", "source": {"kind": "synthetic"}}


def mistakes(data: Any) -> list[str]:
    """The sentences about ``data``, without the file's name and the closing count."""
    with pytest.raises(ConfigError) as caught:
        parse_line(data, PATH)
    lines = str(caught.value).splitlines()
    count = len(lines) - 1
    assert lines[-1] == f"({count} mistake{'s' * (count > 1)}; nothing was started)"
    assert all(line.startswith(f"{PATH}: ") for line in lines[:-1])
    return [line.removeprefix(f"{PATH}: ") for line in lines[:-1]]


def line(**changes: Any) -> dict[str, Any]:
    return {"line": {"bundle": "b"}, "camera": [CAMERA], **changes}


def test_the_smallest_line_file_and_its_defaults() -> None:
    loaded = parse_line(line(), PATH)
    assert loaded.line.name == "line"
    assert loaded.pipeline.slots > loaded.pipeline.queue
    assert loaded.engine.threads == 1
    assert loaded.camera[0].policy == "latest"
    assert loaded.bundle_of(loaded.camera[0]) == Path("/somewhere/b")


def test_relative_paths_are_relative_to_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/eve")
    monkeypatch.setenv("BUNDLES", "/srv/bundles")
    content = """
        [line]
        bundle = "bundles/part"
        [engine]
        cache = "/var/cache/engines"
        [store]
        path = "~/alerts"
        [[camera]]
        name = "a"
        bundle = "$BUNDLES/a"
        source = { kind = "folder", path = "../pictures" }
    """
    path = tmp_path / "line.toml"
    path.write_text(content)
    loaded = load_line(path)
    assert loaded.line.bundle == tmp_path / "bundles/part"
    assert loaded.engine.cache == Path("/var/cache/engines")
    assert loaded.store.path == Path("/home/eve/alerts")
    assert loaded.camera[0].bundle == Path("/srv/bundles/a")
    assert loaded.camera[0].source.path == tmp_path / "../pictures"


def test_mistakes_of_one_key_and_of_keys_together_are_told_at_once() -> None:
    told = mistakes(
        {
            "line": {"name": "no spaces please"},
            "pipeline": {"slots": 4, "queue": 4, "frame_timeout_s": 0},
            "camera": [CAMERA, {**CAMERA, "policy": "sometimes"}, {"name": "b", "source": {"kind": "folder"}}],
        }
    )
    keys = [sentence.partition(": ")[0] for sentence in told]
    assert sorted(keys) == [
        "camera",
        "camera[0].bundle",
        "camera[1].bundle",
        "camera[1].policy",
        "camera[2].bundle",
        "camera[2].source.path",
        "line.name",
        "pipeline.frame_timeout_s",
        "pipeline.queue",
    ]
    said = "\n".join(told)
    assert "camera: the name 'a' is used 2 times; names must be unique" in said
    assert "camera[2].source.path: missing; this key is needed" in said
    assert "pipeline.queue: must be below pipeline.slots, which is 4. Got 4" in said
    assert "Got 'sometimes'" in said
    assert "Got 0" in said


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"pipelin": {}}, "pipelin: unknown key. Did you mean pipeline?"),
        ({"pipeline": {"slot": 3}}, "pipeline.slot: unknown key. Did you mean slots?"),
        ({"zebra": 1}, "zebra: unknown key."),
        ({"camera": []}, "camera: at least one [[camera]] is needed"),
        ({"alerts": {"n": 3, "m": 2}}, "alerts: n must not be above m (n of m frames). Got n = 3, m = 2"),
        ({"camera": [{**CAMERA, "roi": [0, 0, 0, 5]}]}, "camera[0].roi: must be x, y >= 0 and width, height >= 1"),
        ({"camera": [{**CAMERA, "name": "x" * 49}]}, "camera[0].name: String must match pattern"),
        ({"publish": {"endpoint": "tcp://0.0.0.0:5555"}}, "publish.endpoint: 'tcp://0.0.0.0:5555': other machines"),
        ({"pipeline": {"restart_window_s": float("inf")}}, "pipeline.restart_window_s: "),
    ],
)
def test_one_mistake(changes: dict[str, Any], told: str) -> None:
    found = mistakes(line(**changes))
    assert len(found) == 1
    assert found[0].startswith(told)


def test_an_unknown_kind_of_camera_names_the_kinds() -> None:
    found = mistakes(line(camera=[{"name": "a", "source": {"kind": "webcam"}}]))
    assert len(found) == 1
    assert found[0].startswith("camera[0].source.kind: must be one of ")
    assert all(kind in found[0] for kind in ("synthetic", "folder", "video", "rtsp", "mjpeg", "v4l2"))
    assert found[0].endswith("Got 'webcam'")
    assert "camera[0].source.kind" in mistakes(line(camera=[{"name": "a", "source": {}}]))[0]


@pytest.mark.parametrize(
    "source",
    [
        {"kind": "rtsp", "url": "http://op:geheim4711@10.0.0.1/x"},
        {"kind": "rtsp", "url": "rtsp://op:geheim4711@10.0.0.1:port/x"},
        {"kind": "rtsp", "url": "rtsp://op:geheim4711@10.0.0.1/x", "password_file": "p"},
        {"kind": "rtsp", "url": "rtsp://op:geheim4711@10.0.0.1/x", "stall_s": -1},
        {"kind": "rtsp", "url": "rtsp://op@10.0.0.1/x", "password": "geheim4711"},
        {"kind": "folder", "url": "rtsp://op:geheim4711@10.0.0.1/x"},
        {"kind": "webcam", "url": "rtsp://op:geheim4711@10.0.0.1/x"},
        {"url": "rtsp://op:geheim4711@10.0.0.1/x"},
        {"kind": "rtsp", "url": ["rtsp://op:geheim4711@10.0.0.1/x"]},
        "rtsp://op:geheim4711@10.0.0.1/x",
    ],
)
def test_secrets_are_not_repeated(source: Any) -> None:
    assert "geheim4711" not in "\n".join(mistakes(line(camera=[{"name": "a", "source": source}])))


def test_the_loaded_line_does_not_print_secrets() -> None:
    url = "rtsp://op:geheim4711@10.0.0.1/x"
    loaded = parse_line(line(camera=[{"name": "a", "source": {"kind": "rtsp", "url": url}}]), PATH)
    assert "geheim4711" not in repr(loaded)
    assert "geheim4711" not in str(loaded.model_dump(mode="json"))


@pytest.mark.parametrize(
    ("write", "told"),
    [
        (lambda path: None, "no such line file"),
        (lambda path: path.mkdir(), "is a folder"),
        (lambda path: path.write_bytes(b"\xff\xfe"), "not UTF-8"),
        (lambda path: path.write_text("camera = ["), "not valid TOML"),
        (lambda path: path.write_text("a = 1\na = 2"), "not valid TOML"),
        (lambda path: path.write_bytes(b"#" * (MAX_FILE_BYTES + 1)), "not a line file"),
    ],
)
def test_files_that_are_no_line_file(tmp_path: Path, write: Any, told: str) -> None:
    path = tmp_path / "line.toml"
    write(path)
    with pytest.raises(ConfigError) as caught:
        load_line(path)
    assert str(path) in str(caught.value)
    assert told in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("path", ["~nobody-there/x", "$NOT_SET/x"])
def test_paths_with_an_unknown_user_or_variable_stay_as_they_are(path: str) -> None:
    assert parse_line(line(line={"bundle": path}), PATH).line.bundle == Path("/somewhere") / path


def test_a_path_with_a_nul_character_is_refused() -> None:
    with pytest.raises(ConfigError, match="NUL"):
        parse_line(line(line={"bundle": "~/x\0y"}), PATH)


SCALARS = st.one_of(
    st.text(max_size=12),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.booleans(),
    st.dates(),
    st.sampled_from(["~nobody-there/x", "a\x00b", "latest", "folder", "rtsp", "rtsp://[", "tcp://127.0.0.1:99", ""]),
)
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner))


def tables(*keys: str) -> st.SearchStrategy[Any]:
    """A table that mostly has keys which the line file knows."""
    return st.dictionaries(st.sampled_from(keys) | st.text(max_size=8), VALUES, max_size=6) | VALUES


SOURCES = tables("kind", "path", "url", "password_file", "size", "fps", "mode", "frames", "device", "stall_s")
CAMERAS = st.builds(
    lambda table, source, known: {**table, **known, "source": source} if isinstance(table, dict) else table,
    tables("name", "policy", "bundle", "roi", "source"),
    st.builds(lambda kind, rest: {**rest, "kind": kind} if isinstance(rest, dict) else rest, SCALARS, SOURCES)
    | st.just({"kind": "synthetic"})
    | st.builds(lambda path: {"kind": "folder", "path": path}, st.text(max_size=8)),
    st.just({}) | st.just({"name": "a"}),
)
FILES = st.fixed_dictionaries(
    {},
    optional={
        "line": tables("name", "bundle")
        | st.builds(lambda b: {"bundle": b}, st.text(max_size=6))
        | st.just({"bundle": "b"}),
        "pipeline": tables("slots", "queue", "batch", "heartbeat_s", "max_pixels"),
        "engine": tables("runtime", "threads", "cache"),
        "alerts": tables("n", "m", "each", "picture"),
        "store": tables("path", "max_days"),
        "publish": tables("endpoint", "replay", "hwm"),
        "camera": st.lists(CAMERAS, max_size=3) | VALUES,
        "other": VALUES,
    },
)


@given(FILES)
@settings(max_examples=100, deadline=None)
def test_whatever_is_in_it_a_file_loads_or_is_refused_in_sentences(data: dict[str, Any]) -> None:
    try:
        loaded = parse_line(data, PATH)
    except ConfigError as error:
        lines = str(error).splitlines()
        assert lines[-1].endswith("nothing was started)") or "NUL" in lines[0]
    else:
        assert isinstance(loaded, LineFile)
        assert all(loaded.bundle_of(camera).is_absolute() for camera in loaded.camera)


@given(st.text(max_size=200))
@settings(max_examples=100, deadline=None)
def test_whatever_text_it_is_a_file_loads_or_is_refused(text: str) -> None:
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return
    with pytest.raises(ConfigError):
        parse_line(data, PATH)
