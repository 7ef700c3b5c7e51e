"""Compiled blobs: honest keys, damage, eviction; and the engine that uses them."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engines import builtin_graph, open_engine
from engines.cache import MAGIC, BlobCache
from engines.openvino_engine import OpenVINOEngine

IMAGES = np.random.default_rng(5).integers(0, 256, (2, 256, 256, 3), dtype=np.uint8)
HEAD = len(MAGIC) + 32
KEY = {"graph": "a", "threads": "1"}


def aged(path: Path, seconds: int) -> None:
    at = path.stat().st_mtime - seconds
    os.utime(path, (at, at))


def test_a_blob_comes_back_under_its_key_only(tmp_path: Path) -> None:
    cache = BlobCache(tmp_path / "new" / "folder")
    assert cache.get(KEY) is None
    cache.put(KEY, b"compiled")
    assert cache.get(dict(reversed(KEY.items()))) == b"compiled"
    assert cache.get({**KEY, "threads": "2"}) is None


@pytest.mark.parametrize(
    "damage",
    [
        lambda d: b"",
        lambda d: d[:10],
        lambda d: d[:-1],
        lambda d: d + b"x",
        lambda d: d[:-1] + bytes([d[-1] ^ 1]),
        lambda d: b"X" + d[1:],
    ],
)
def test_a_damaged_blob_is_not_served(tmp_path: Path, damage: Any, caplog: pytest.LogCaptureFixture) -> None:
    cache = BlobCache(tmp_path)
    cache.put(KEY, b"compiled")
    cache.path(KEY).write_bytes(damage(cache.path(KEY).read_bytes()))
    assert cache.get(KEY) is None
    assert "damaged" in caplog.text
    cache.put(KEY, b"compiled")
    assert cache.get(KEY) == b"compiled"


def test_the_least_recently_used_blobs_go_first(tmp_path: Path) -> None:
    cache = BlobCache(tmp_path, max_bytes=3 * (HEAD + 100))
    keys = [{"graph": str(i)} for i in range(4)]
    for age, key in zip((300, 200, 100), keys, strict=False):
        cache.put(key, bytes(100))
        aged(cache.path(key), age)
    cache.get(keys[0])  # the oldest becomes the newest
    cache.put(keys[3], bytes(100))
    assert [cache.get(key) is not None for key in keys] == [True, False, True, True]
    cache.put({"graph": "huge"}, bytes(1000))
    assert cache.get({"graph": "huge"}) is None
    assert len(list(tmp_path.iterdir())) == 3


def test_what_a_killed_writer_left_behind_goes_when_it_is_old(tmp_path: Path) -> None:
    old, fresh, other = tmp_path / ".a.blob.x.tmp", tmp_path / ".b.blob.y.tmp", tmp_path / "notes.txt"
    for path in (old, fresh, other):
        path.write_bytes(b"half")
    for path in (old, other):
        aged(path, 7200)
    BlobCache(tmp_path).put(KEY, b"compiled")
    assert (old.exists(), fresh.exists(), other.exists()) == (False, True, True)


def test_a_place_that_cannot_be_written_costs_a_log_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("in the way")
    cache = BlobCache(tmp_path / "file" / "cache")
    cache.put(KEY, b"compiled")
    assert "cannot be kept" in caplog.text
    assert cache.get(KEY) is None


def test_a_full_disk_leaves_nothing_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    BlobCache(tmp_path).put(KEY, b"compiled")
    assert list(tmp_path.iterdir()) == []


class Counting(OpenVINOEngine):
    """Counts the graphs that were really compiled."""

    compiled: int

    def __init__(self, *args: Any, **options: Any) -> None:
        self.compiled = 0
        super().__init__(*args, **options)

    def _model(self, batch: int) -> Any:
        self.compiled += 1
        return super()._model(batch)


def maps(engine: OpenVINOEngine) -> dict[str, bytes]:
    return {tap: array.tobytes() for tap, array in engine.infer(IMAGES).items()}


def test_a_hit_compiles_nothing_and_gives_the_same_bits(tmp_path: Path) -> None:
    wanted = maps(OpenVINOEngine(builtin_graph()))
    for expected in (1, 0, 0):
        engine = Counting(builtin_graph(), cache_dir=tmp_path)
        assert engine.compiled == expected
        assert maps(engine) == wanted
        assert engine.info == OpenVINOEngine(builtin_graph()).info
    assert len(list(tmp_path.iterdir())) == 1


def test_every_option_that_changes_the_blob_is_in_the_key(tmp_path: Path) -> None:
    other = builtin_graph() + b"\x3a\x00"  # an empty second `graph` field merges into the first: same meaning
    for options in ({}, {"threads": 2}, {"taps": ["layer1"]}, {"taps": ["layer3", "layer1"]}):
        assert Counting(builtin_graph(), cache_dir=tmp_path, **options).compiled == 1
        assert Counting(builtin_graph(), cache_dir=tmp_path, **options).compiled == 0
    assert Counting(other, cache_dir=tmp_path).compiled == 1


def rehashed(payload: bytes) -> bytes:
    return MAGIC + hashlib.sha256(payload).digest() + payload


@pytest.mark.parametrize(
    "damage",
    [
        lambda d: d[: len(d) // 2],
        lambda d: d[:5000] + bytes([d[5000] ^ 255]) + d[5001:],
        lambda d: rehashed(b"an intact blob that OpenVINO refuses"),
    ],
    ids=["cut short", "one bit", "refused"],
)
def test_a_damaged_blob_is_rebuilt(tmp_path: Path, damage: Any) -> None:
    wanted = maps(Counting(builtin_graph(), cache_dir=tmp_path))
    (path,) = tmp_path.iterdir()
    path.write_bytes(damage(path.read_bytes()))
    again = Counting(builtin_graph(), cache_dir=tmp_path)
    assert again.compiled == 1
    assert maps(again) == wanted
    assert Counting(builtin_graph(), cache_dir=tmp_path).compiled == 0


def test_an_unusable_cache_folder_does_not_stop_the_engine(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    engine = open_engine(builtin_graph(), runtime="openvino", cache_dir=tmp_path / "file")
    assert engine.infer(IMAGES)["layer1"].shape == (2, 64, 64, 64)
