"""The fit, general over methods: SGFR from pictures to a bundle, methods that bring their own graph or need no
backbone, memory, and FRE's numbers as they were before there was a second method."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from click.testing import CliRunner

from calibration import methods, store
from calibration.evaluate import evaluate
from calibration.fit import fit_bundle, refit_bundle
from calibration.methods import PICTURES, Defaults, Job, MethodFit, OwnGraph, Restored, Settings, Unseen
from calibration.options import FitOptions
from calibration.store import Store
from edge import bundle as bundle_module
from edge import memory
from edge.bundle import TapInfo, load_bundle
from edge.commands.fit import command as fit_command
from edge.errors import BundleError, DataError, ResourceError
from edge.heads.tail import TailSpec
from engines import builtin_graph

GOOD = 10


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root, rng = tmp_path_factory.mktemp("parts"), np.random.default_rng(0)
    for folder in ("good", "streak"):
        (root / folder).mkdir()
    for i in range(GOOD + 3):
        image = np.full((80, 90, 3), 90 + rng.integers(-6, 7), np.uint8)
        cv2.circle(image, (45 + int(rng.integers(-2, 3)), 40), 25, (170, 175, 180), -1)
        noise = rng.normal(0, 3, image.shape)
        image = np.clip(image + noise, 0, 255).astype(np.uint8)
        if i >= GOOD:
            cv2.line(image, (35, 30 + i), (60, 45), (20, 20, 20), 4)
        cv2.imwrite(str(root / ("streak" if i >= GOOD else "good") / f"{i:02}.png"), image)
    return root


SGFR = FitOptions(method="sgfr", false_alarms=0.1, settings={"atoms": 4, "samples": 6})


@pytest.fixture(scope="module")
def bundle(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sgfr") / "bundle"
    good = sorted((data / "good").iterdir())
    fit_bundle(good, out, graph=builtin_graph(), backbone="builtin", options=SGFR)
    return out


def test_sgfr_from_pictures_to_a_verdict(data: Path, bundle: Path) -> None:
    loaded = load_bundle(bundle)
    assert loaded.manifest.method == "sgfr"
    assert loaded.manifest.calibration.method == "loo"
    assert loaded.manifest.calibration.count == GOOD
    assert not loaded.manifest.calibration.exact
    assert "loo: approximate" in loaded.manifest.calibration.guarantee
    assert loaded.arrays["bank_layer2"].dtype == np.float16
    report = evaluate(loaded, data / "streak", "folder")
    assert all(picture.anomalous for picture in report.pictures)
    assert not (bundle / "refit.safetensors").exists()  # the bank is all that a refit needs


def test_a_folders_bank_is_mapped_and_a_zips_is_read(data: Path, bundle: Path, tmp_path: Path) -> None:
    good = sorted((data / "good").iterdir())
    fit_bundle(good, tmp_path / "b.zip", graph=builtin_graph(), backbone="builtin", options=SGFR)
    folder, packed = load_bundle(bundle), load_bundle(tmp_path / "b.zip")
    for name, array in folder.arrays.items():
        np.testing.assert_array_equal(array, packed.arrays[name])
    assert folder.manifest.files["head.safetensors"] == packed.manifest.files["head.safetensors"]
    mapped = Path("/proc/self/maps")
    if mapped.exists():
        lines = mapped.read_text()
        assert str(bundle / "head.safetensors") in lines
        assert str(tmp_path / "b.zip") not in lines


def test_a_zip_larger_than_memory_is_refused_with_its_size(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = sorted((data / "good").iterdir())
    fit_bundle(good, tmp_path / "b.zip", graph=builtin_graph(), backbone="builtin", options=SGFR)
    monkeypatch.setattr(bundle_module, "available_bytes", lambda: 1_000_000)
    with pytest.raises(ResourceError, match=r"head.safetensors has 0\.0 GB and 0\.0 GB of memory are free; unpack"):
        load_bundle(tmp_path / "b.zip")


def test_sgfr_refits_from_its_bank(bundle: Path, tmp_path: Path) -> None:
    refit_bundle(bundle, tmp_path / "same", options=SGFR)
    first, second = load_bundle(bundle), load_bundle(tmp_path / "same")
    assert first.manifest.calibration == second.manifest.calibration
    assert first.manifest.tail == second.manifest.tail
    for name, array in first.arrays.items():
        np.testing.assert_array_equal(array, second.arrays[name])
    fewer = FitOptions(method="sgfr", layers=("layer3",), settings={"atoms": 2})
    report = refit_bundle(bundle, tmp_path / "fewer", options=fewer)
    assert report.details["atoms"] == 2
    with pytest.raises(DataError, match="cannot add the tap layer1"):
        refit_bundle(bundle, tmp_path / "x", options=FitOptions(method="sgfr", layers=("layer1", "layer2")))
    with pytest.raises(DataError, match="a bundle of sgfr; a refit cannot make it fre"):
        refit_bundle(bundle, tmp_path / "x", options=FitOptions())
    assert not (tmp_path / "x").exists()


def test_a_holdout_keeps_pictures_out_of_the_bank(data: Path, tmp_path: Path) -> None:
    options = FitOptions(method="sgfr", calibration="holdout", false_alarms=0.3)
    good = sorted((data / "good").iterdir())
    fit_bundle(good, tmp_path / "b", graph=builtin_graph(), backbone="builtin", options=options)
    loaded = load_bundle(tmp_path / "b")
    assert len(loaded.arrays["bank_layer3"]) == GOOD - 3
    assert len(loaded.calibration["score"]) == 3
    assert loaded.manifest.calibration.exact


# FRE is what it was.


def test_fre_gives_the_numbers_it_gave_when_it_was_alone(data: Path, tmp_path: Path) -> None:
    """Recorded before fitting became general; to the last digits that another BLAS may move."""
    good = sorted((data / "good").iterdir())
    options = FitOptions(layers=("layer2", "layer3"), false_alarms=0.1)
    fit_bundle(good, tmp_path / "b", graph=builtin_graph(), backbone="builtin", options=options)
    manifest, arrays = load_bundle(tmp_path / "b").manifest, load_bundle(tmp_path / "b").arrays
    found = {
        "threshold": manifest.calibration.threshold,
        "pixel_threshold": manifest.calibration.pixel_threshold,
        "mean": float(arrays["mu_layer2"].sum(dtype=np.float64)),
        "size": float(np.abs(arrays["w_layer3"]).sum(dtype=np.float64)),
        "components": float(len(arrays["w_layer2"])),
    }
    assert found == pytest.approx(RECORDED, rel=1e-4)


RECORDED = {
    "threshold": 1.181011117648879,
    "pixel_threshold": 0.0008641367312520742,
    "mean": 4141.975576363069,
    "size": 846.9390235720358,
    "components": 9.0,
}


# What other methods may need.


class BlindSettings(Settings):
    """None."""


class BlindFitter:
    """Works on pictures alone and brings a graph of its own: the level map is the darkness of the picture."""

    method = "blind"
    needs_graph = False
    needs_pictures = True
    defaults = Defaults((), "max", "holdout", ("holdout",), TailSpec())
    settings: type[Settings] = BlindSettings
    seen: Job | None = None

    def check(self, options: FitOptions) -> None: ...

    def taps(self, options: FitOptions) -> tuple[str, ...]:
        return ()

    def keep(self, options: FitOptions, taps: Mapping[str, Any]) -> dict[str, Any]:
        raise AssertionError("there are no taps")

    def fit(self, job: Job) -> MethodFit:
        BlindFitter.seen = job
        assert job.held is not None
        maps = 1 + job.stored[PICTURES].astype(np.float32).mean(axis=3) / 255
        own = OwnGraph(b"own graph", (TapInfo(name="layer3", channels=1, height=16, width=16),))
        scaling, held = Unseen([maps[job.train]], None), Unseen([maps[job.held]], None)
        return MethodFit({}, {}, scaling, held, own=own, details={"loss": 0.5})

    def restore(self, options: FitOptions, spec: Mapping[str, Any], arrays: Any, refit: Any) -> Restored:
        raise DataError("it cannot be refitted")


def test_a_method_may_take_pictures_and_bring_its_own_graph(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(methods.FITTERS, "blind", f"{__name__}:BlindFitter")
    good = sorted((data / "good").iterdir())
    options = FitOptions(method="blind", false_alarms=0.3)
    report = fit_bundle(good, tmp_path / "b", graph=None, backbone="none", input_size=(32, 40), options=options)
    assert report.details == {"loss": 0.5}
    job = BlindFitter.seen
    assert job is not None
    assert job.stored[PICTURES].shape == (GOOD, 32, 40, 3)
    assert job.stored[PICTURES].dtype == np.uint8
    manifest = json.loads((tmp_path / "b/bundle.json").read_text())
    assert (tmp_path / "b/backbone.onnx").read_bytes() == b"own graph"
    assert manifest["backbone"]["taps"] == [{"name": "layer3", "channels": 1, "height": 16, "width": 16}]
    assert manifest["score"]["norm"] is None
    with pytest.raises(BundleError, match="unknown method 'blind'"):  # no head of that name
        load_bundle(tmp_path / "b")
    asked = FitOptions(method="blind", rule="norm")
    with pytest.raises(DataError, match="score rule 'norm' needs a head with a residual norm"):
        fit_bundle(good, tmp_path / "c", graph=None, backbone="none", options=asked)
    with pytest.raises(DataError, match="sgfr works on a backbone's features"):
        fit_bundle(good, tmp_path / "c", graph=None, backbone="none", options=SGFR)
    assert not (tmp_path / "c").exists()


def test_features_larger_than_memory_are_refused_at_the_first_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "available_bytes", lambda: 10_000_000_000)
    with pytest.raises(
        ResourceError, match=r"2000 good pictures need 8\.0 GB of memory and 10\.0 GB are free"
    ) as raised:
        # A view of one number: nothing of that size is made.
        Store(2000).add({"layer1": np.broadcast_to(np.float32(0), (1_000_001,))})
    assert "\n" not in str(raised.value)
    small = Store(3)
    small.add({"a": np.arange(2)})
    small.add({"a": np.arange(2, 4)})
    np.testing.assert_array_equal(small.arrays()["a"], [[0, 1], [2, 3]])


def test_free_memory_is_the_machines_or_the_groups(tmp_path: Path) -> None:
    meminfo, group = tmp_path / "meminfo", tmp_path / "group"
    assert memory.available_bytes(meminfo, group) is None
    meminfo.write_text("MemTotal: 9 kB\nMemAvailable:    2000 kB\n")
    assert memory.available_bytes(meminfo, group) == 2_048_000
    group.mkdir()
    (group / "memory.max").write_text("max\n")
    (group / "memory.current").write_text("500000\n")
    assert memory.available_bytes(meminfo, group) == 2_048_000
    (group / "memory.max").write_text("1500000\n")
    assert memory.available_bytes(meminfo, group) == 1_000_000
    assert memory.gigabytes(1_440_000_000) == "1.4 GB"


def test_the_command_knows_methods_and_their_settings(data: Path, tmp_path: Path) -> None:
    runner = CliRunner()
    listed = runner.invoke(fit_command, ["--settings-of", "sgfr"])
    assert listed.exit_code == 0
    assert "atoms = 17: " in listed.output
    wrong = runner.invoke(fit_command, ["--good", str(data), "--out", "b", "--set", "atoms"])
    assert wrong.exit_code == 2
    assert "NAME=VALUE" in wrong.output
    asked = ["--good", str(data / "good"), "--out", str(tmp_path / "b"), "--method", "sgfr", "--set"]
    unknown = runner.invoke(fit_command, [*asked, "colour=red"])
    assert isinstance(unknown.exception, DataError)
    done = runner.invoke(fit_command, [*asked, "atoms=3", "--json", "-"])
    assert done.exit_code == 0, done.output
    report = json.loads(done.output)
    assert report["details"]["atoms"] == 3
    assert report["details"]["sampled_by"] == {"layer2": "layer3", "layer3": ""}
