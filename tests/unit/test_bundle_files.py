"""Bundles: what is written comes back, and every kind of damage is refused with one clear line."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

from edge import bundle_files
from edge.bundle import Bundle, Manifest, load_bundle, write_bundle
from edge.errors import BundleError, ResourceError

GRAPH = b"graph bytes"
C, H, W = 4, 8, 8
D = C * 16


def manifest_of(**changes: Any) -> Manifest:
    content: dict[str, Any] = {
        "method": "fre",
        "spec": {"layers": ["layer3"], "detection": "layer3", "pool": 2, "shape_layer3": [C, H, W]},
        "backbone": {
            "name": "tiny",
            "graph_sha256": hashlib.sha256(GRAPH).hexdigest(),
            "precision": "f32",
            "taps": [{"name": "layer3", "channels": C, "height": H, "width": W}],
        },
        "input": {"height": 256, "width": 256},
        "tail": {"tiny": [1e-12]},
        "score": {
            "rule": "combined",
            "norm": {"mean": 0.0, "std": 0.1, "floor": 1e-3},
            "max": {"mean": -1.0, "std": 0.2, "floor": 1e-6},
        },
        "calibration": {
            "count": 5,
            "method": "folds",
            "guarantee": "none",
            "exact": False,
            "false_alarm_rate": 0.2,
            "threshold": 5.0,
            "pixel_threshold": 0.5,
            "extrapolated": False,
            "needed_for_promise": 4,
        },
        "provenance": {
            "created": "2026-01-01T00:00:00+00:00",
            "tool": "edge-inspect",
            "runtime": "none",
            "pictures": 5,
            "pictures_sha256": "0" * 64,
        },
        "split": {"layout": "folder", "seed": None, "fitted": [{"name": "a.png", "sha256": "1" * 64}]},
        **changes,
    }
    return Manifest.model_validate(content)


def arrays_of() -> dict[str, np.ndarray]:
    basis, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(D, 3)))
    return {
        "mu_layer3": np.linspace(0, 1, D, dtype=np.float32),
        "w_layer3": np.ascontiguousarray(basis.T, np.float32),
    }


CALIBRATION = {"score": np.arange(1.0, 6.0), "norm": np.arange(5.0), "max": np.arange(5.0)}
REFIT = {"features_layer3": np.ones((5, C, 4, 4), np.float16), "gram_layer3": np.eye(5)}


def write(path: Path, **changes: Any) -> Path:
    write_bundle(path, manifest_of(**changes), arrays_of(), CALIBRATION, GRAPH, REFIT)
    return path


@pytest.fixture(params=["bundle", "bundle.zip"])
def path(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    return write(tmp_path / request.param)


def test_what_is_written_comes_back(path: Path) -> None:
    bundle = load_bundle(path)
    assert bundle.graph == GRAPH
    for name, array in arrays_of().items():
        np.testing.assert_array_equal(bundle.arrays[name], array)
        assert bundle.arrays[name].ctypes.data % 64 == 0
        assert not bundle.arrays[name].flags.writeable
    np.testing.assert_array_equal(bundle.calibration["score"], CALIBRATION["score"])
    refit = bundle.refit_arrays()
    assert refit is not None
    assert refit["features_layer3"].dtype == np.float16
    np.testing.assert_array_equal(refit["gram_layer3"], REFIT["gram_layer3"])
    plain = manifest_of()
    assert bundle.manifest.model_copy(update={"files": {}, "checksum": ""}) == plain
    assert bundle.make_head().taps == ("layer3",)


def test_a_bundle_may_leave_the_refit_out(tmp_path: Path) -> None:
    write_bundle(tmp_path / "b", manifest_of(), arrays_of(), CALIBRATION, GRAPH)
    assert not (tmp_path / "b/refit.safetensors").exists()
    assert load_bundle(tmp_path / "b").refit_arrays() is None


def test_writing_leaves_nothing_beside_and_replaces_only_bundles(tmp_path: Path) -> None:
    target = write(tmp_path / "deep/er/b")
    write(target, method="fre", provenance={**manifest_of().provenance.model_dump(), "tool": "second"})
    assert load_bundle(target).manifest.provenance.tool == "second"
    assert [entry.name for entry in target.parent.iterdir()] == ["b"]
    mine = tmp_path / "photos"
    mine.mkdir()
    (mine / "holiday.jpg").write_bytes(b"precious")
    with pytest.raises(BundleError, match="exists and is not a bundle"):
        write(mine)
    assert [entry.name for entry in mine.iterdir()] == ["holiday.jpg"]
    (tmp_path / "text.zip").write_text("not a zip")
    with pytest.raises(BundleError, match="exists and is not a bundle"):
        write(tmp_path / "text.zip")


@pytest.mark.parametrize("exchange", [True, False])
def test_replacing_works_with_and_without_an_atomic_exchange(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchange: bool
) -> None:
    target = write(tmp_path / "b")
    if not exchange:
        monkeypatch.setattr(bundle_files, "_exchange", lambda one, other: False)
    write(target, backbone={**manifest_of().backbone.model_dump(), "name": "second"})
    assert load_bundle(target).manifest.backbone.name == "second"
    assert [entry.name for entry in tmp_path.iterdir()] == ["b"]


def test_a_full_disk_keeps_the_old_bundle_and_leaves_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = load_bundle(path).manifest

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(bundle_files.os, "fsync", full)
    with pytest.raises(ResourceError, match=r"No space left on device.*nothing was changed"):
        write(path, backbone={**manifest_of().backbone.model_dump(), "name": "second"})
    monkeypatch.undo()
    assert load_bundle(path).manifest == before
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def refused(path: Path, says: str) -> None:
    with pytest.raises(BundleError, match=says) as raised:
        load_bundle(path)
    assert "\n" not in str(raised.value)
    assert str(path) in str(raised.value)


def rewrite(path: Path, change: Callable[[dict[str, Any]], None], sign: bool = True) -> None:
    """Edit bundle.json; ``sign`` makes its checksum right again, as a forger would."""
    from edge.bundle import _checksum

    file = path / "bundle.json"
    content = json.loads(file.read_text())
    change(content)
    if sign:
        content["checksum"] = _checksum(content)
    file.write_text(json.dumps(content))


def test_missing_and_foreign_things_are_refused(tmp_path: Path) -> None:
    refused(tmp_path / "absent", "no such bundle")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "not a bundle \\(no bundle.json")
    (tmp_path / "photo.jpg").write_bytes(b"\xff\xd8 not a zip")
    refused(tmp_path / "photo.jpg", "not a bundle")
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("readme.txt", "hello")
    refused(tmp_path / "other.zip", "not a bundle \\(no bundle.json")
    (tmp_path / "odd").mkdir()
    for text in ("[]", "3", '{"format_version": "one"}'):
        (tmp_path / "odd/bundle.json").write_text(text)
        refused(tmp_path / "odd", "not a bundle's manifest")


@pytest.mark.parametrize("name", ["head.safetensors", "backbone.onnx", "calibration.safetensors", "refit.safetensors"])
def test_each_file_missing_cut_short_or_changed(tmp_path: Path, name: str) -> None:
    whole = write(tmp_path / "whole")

    def copy() -> Path:
        shutil.rmtree(tmp_path / "b", ignore_errors=True)
        return Path(shutil.copytree(whole, tmp_path / "b"))

    data = (whole / name).read_bytes()
    (copy() / name).unlink()
    refused(tmp_path / "b", f"{name} is missing")
    (copy() / name).write_bytes(data[:-3])
    refused(tmp_path / "b", f"{name} is cut short: {len(data) - 3} bytes of {len(data)}")
    (copy() / name).write_bytes(data + b"x")
    refused(tmp_path / "b", f"{name} is too long")
    (copy() / name).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    refused(tmp_path / "b", f"{name} was changed or damaged")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_a_zip_cut_short(tmp_path: Path, share: float) -> None:
    path = write(tmp_path / "b.zip")
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    refused(path, "not a bundle|damaged or cut short")


def test_a_zip_with_any_byte_flipped_is_refused_or_whole(tmp_path: Path) -> None:
    path = write(tmp_path / "b.zip")
    data, before = path.read_bytes(), load_bundle(path)
    for at in range(0, len(data), 97):
        path.write_bytes(data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :])
        try:  # any other exception fails the test
            bundle = load_bundle(path)
        except BundleError:
            continue
        # A byte that carries nothing (a time stamp, an attribute).
        assert bundle.manifest == before.manifest
        assert bundle.graph == before.graph


def test_a_zip_that_unpacks_to_far_more_than_it_says(tmp_path: Path) -> None:
    folder = write(tmp_path / "b")
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for file in folder.iterdir():
            archive.write(file, file.name)
        archive.writestr("extra.bin", bytes(50_000_000))  # not listed: never read
    assert load_bundle(tmp_path / "bomb.zip").graph == GRAPH
    with zipfile.ZipFile(tmp_path / "bomb2.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bundle.json", bytes(80_000_000))
    refused(tmp_path / "bomb2.zip", "far more than any manifest")


def test_an_edited_manifest_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "b")
    rewrite(path, lambda content: content["calibration"].update(threshold=99.0), sign=False)
    refused(path, "was edited or damaged")


@pytest.mark.parametrize("text", ["", "{", "\x00\x01", '{"format_version": 1', "[" * 100_000])
def test_a_broken_manifest_is_refused(tmp_path: Path, text: str) -> None:
    path = write(tmp_path / "b")
    (path / "bundle.json").write_text(text)
    refused(path, "damaged or cut short|not a bundle's manifest")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda m: m.update(format_version=2), "newer than this program's 1; update"),
        (lambda m: m.update(method="sgfr9"), "unknown method 'sgfr9'"),
        (lambda m: m["spec"].update(pool=1), "do not fit"),
        (lambda m: m["spec"].pop("layers"), "incomplete"),
        (lambda m: m["calibration"].update(count=4), "does not hold the 4 scores"),
        (lambda m: m["calibration"].pop("threshold"), "calibration.threshold: Field required"),
        (lambda m: m["backbone"]["taps"][0].update(name="other"), "taps the backbone lacks: layer3"),
        (lambda m: m["backbone"].update(graph_sha256="2" * 64), "not the backbone it was fitted with"),
        (lambda m: m["files"].pop("backbone.onnx"), "does not list backbone.onnx"),
        (lambda m: m["files"].update({"../../x": {"size": 1, "sha256": "0" * 64}}), "unknown file"),
        (lambda m: m["files"]["head.safetensors"].update(size=1 << 60), "size"),
        (lambda m: m.update(surprise=1), "surprise"),
    ],
)
def test_manifests_that_do_not_fit(tmp_path: Path, change: Callable[[dict[str, Any]], None], says: str) -> None:
    path = write(tmp_path / "b")
    rewrite(path, change)
    refused(path, says)


def test_files_that_are_no_arrays_are_refused_even_with_the_right_hash(tmp_path: Path) -> None:
    path = write(tmp_path / "b")
    junk = b"\xff" * 64
    (path / "head.safetensors").write_bytes(junk)
    info = {"size": len(junk), "sha256": hashlib.sha256(junk).hexdigest()}
    rewrite(path, lambda m: m["files"].update({"head.safetensors": info}))
    refused(path, "holds no readable arrays")


@pytest.mark.parametrize("bad", [np.array([1.0, 2.0, np.nan, 4.0, 5.0]), np.arange(5, dtype=np.float32)])
def test_calibration_scores_that_cannot_judge(tmp_path: Path, bad: np.ndarray) -> None:
    write_bundle(tmp_path / "b", manifest_of(), arrays_of(), {**CALIBRATION, "score": bad}, GRAPH)
    refused(tmp_path / "b", "not finite|does not hold")


def test_safetensors_only(path: Path, tmp_path: Path) -> None:
    if path.is_dir():
        for file in path.glob("*.safetensors"):
            assert safetensors_numpy.load_file(file)
        assert {file.suffix for file in path.iterdir()} == {".json", ".safetensors", ".onnx"}


def test_a_loaded_bundle_survives_its_replacement(tmp_path: Path) -> None:
    path = write(tmp_path / "b")
    bundle: Bundle = load_bundle(path)
    before = bundle.arrays["w_layer3"].copy()
    shutil.rmtree(path)
    np.testing.assert_array_equal(bundle.arrays["w_layer3"], before)
    with pytest.raises(BundleError, match="no such bundle"):
        bundle.refit_arrays()
