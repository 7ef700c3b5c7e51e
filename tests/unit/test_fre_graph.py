"""FRE as one graph: oracle 11 of the method's page, for every encoder, in both runtimes; and the command."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray

from calibration.fit import fit_bundle
from calibration.options import FitOptions
from edge.bundle import load_bundle
from edge.commands.engine import command as engine_command
from edge.heads import load_head, single_thread
from engines import EngineError, builtin_graph, open_engine
from engines.export import export_backbone
from engines.fre_graph import level_name, write_fre_graph
from engines.graph import read_constants

pytest.importorskip("onnx", reason="needs the extra fit")

SIZE = (72, 104)  # layer3 is 5 x 7: pooling drops a row and a column
LAYERS = ("layer1", "layer2", "layer3")
KEPT = 7


@pytest.fixture(scope="module")
def backbone() -> bytes:
    single_thread()
    return export_backbone("builtin", input_size=SIZE)


@pytest.fixture(scope="module")
def shapes(backbone: bytes) -> dict[str, tuple[int, int, int]]:
    return {tap.name: (tap.channels, tap.height, tap.width) for tap in open_engine(backbone).info.taps}


def pictures(batch: int, seed: int = 3) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (batch, *SIZE, 3), dtype=np.uint8)


def head_of(
    encoder: str, shapes: dict[str, tuple[int, int, int]], pool: int = 2
) -> tuple[dict[str, Any], dict[str, Any]]:
    rng = np.random.default_rng(0)
    spec: dict[str, Any] = {"layers": list(LAYERS), "detection": "layer3", "pool": pool, "encoder": encoder}
    arrays: dict[str, Any] = {}
    for layer, (channels, height, width) in shapes.items():
        size = channels * (height // pool) * (width // pool)
        spec[f"shape_{layer}"] = [channels, height, width]
        arrays[f"mu_{layer}"] = rng.uniform(0, 0.5, size).astype(np.float32)
        rows = np.linalg.qr(rng.normal(size=(size, KEPT)))[0].T.astype(np.float32)
        other = (rows + 0.3 * rng.normal(size=rows.shape) / np.sqrt(size)).astype(np.float32)
        shift = rng.normal(size=KEPT).astype(np.float32)
        arrays |= {
            "pca": {f"w_{layer}": rows},
            "tied": {f"w_{layer}": other, f"shift_{layer}": shift},
            "ae": {f"enc_{layer}": other, f"dec_{layer}": rows, f"shift_{layer}": shift},
        }[encoder]
    return spec, arrays


# 11
@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime"])
@pytest.mark.parametrize("encoder", ["pca", "tied", "ae"])
def test_backbone_and_head_in_one_graph_are_the_head_in_numpy(
    backbone: bytes, shapes: dict[str, tuple[int, int, int]], encoder: str, runtime: str
) -> None:
    pytest.importorskip(runtime)
    spec, arrays = head_of(encoder, shapes)
    images = pictures(4)
    taps = open_engine(backbone, runtime=runtime).infer(images)
    wanted = load_head("fre", spec, arrays).residuals(taps)
    engine = open_engine(write_fre_graph(backbone, spec, arrays, {"head": "fre"}), runtime=runtime)
    assert [tap.name for tap in engine.info.taps] == [level_name(layer) for layer in LAYERS]
    together = {name: maps.copy() for name, maps in engine.infer(images).items()}
    for layer, level in zip(LAYERS, wanted.levels, strict=True):
        maps = together[level_name(layer)]
        assert maps.shape == (4, 1, *level.shape[1:])
        np.testing.assert_allclose(maps[:, 0], level, rtol=1e-4)
    norm = np.sqrt(together["level_layer3"].sum(axis=(1, 2, 3), dtype=np.float64) * shapes["layer3"][0])
    np.testing.assert_allclose(norm, wanted.norms, rtol=1e-4)
    for row in range(4):
        alone = engine.infer(images[row : row + 1])
        for name, maps in together.items():
            np.testing.assert_allclose(alone[name][0], maps[row], rtol=1e-4)


@pytest.mark.parametrize("pool", [1, 3])
def test_any_pooling_and_float16_matrices(backbone: bytes, shapes: dict[str, tuple[int, int, int]], pool: int) -> None:
    spec, arrays = head_of("pca", shapes, pool)
    halved = {name: array.astype(np.float16) if array.ndim == 2 else array for name, array in arrays.items()}
    images = pictures(2)
    wanted = load_head("fre", spec, halved).residuals(open_engine(backbone).infer(images))
    graph = write_fre_graph(backbone, spec, halved, {})
    maps = open_engine(graph).infer(images)
    for layer, level in zip(LAYERS, wanted.levels, strict=True):
        np.testing.assert_allclose(maps[level_name(layer)][:, 0], level, rtol=1e-4)


def test_the_subspace_is_in_the_graph_once_and_the_backbone_as_it_was(
    backbone: bytes, shapes: dict[str, tuple[int, int, int]]
) -> None:
    spec, arrays = head_of("pca", shapes)
    graph = write_fre_graph(backbone, spec, arrays, {"head": "fre"})
    assert graph == write_fre_graph(backbone, spec, arrays, {"head": "fre"})
    (before, facts), (after, more) = read_constants(backbone), read_constants(graph)
    assert all(after[key].tobytes() == before[key].tobytes() for key in before)
    assert sum(a.nbytes for a in after.values()) - sum(a.nbytes for a in before.values()) == sum(
        a.nbytes for a in arrays.values()
    )
    assert more == {**facts, "head": "fre"}


def test_what_does_not_fit_is_one_clear_line(
    backbone: bytes, shapes: dict[str, tuple[int, int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, arrays = head_of("tied", shapes)
    for message, change in {
        "lacks 'shift_layer2'": {"shift_layer2": None},
        "layer1: a subspace of .* fitted on another backbone": {"mu_layer1": np.zeros(3, np.float32)},
    }.items():
        broken = {name: array for name, array in {**arrays, **change}.items() if array is not None}
        with pytest.raises(EngineError, match=message):
            write_fre_graph(backbone, spec, broken, {})
    with pytest.raises(EngineError, match="no tap 'layer9'"):
        write_fre_graph(backbone, {**spec, "layers": ["layer9"]}, arrays, {})
    with pytest.raises(EngineError, match="cannot be read"):
        write_fre_graph(b"no graph", spec, arrays, {})
    monkeypatch.setattr("engines.fre_graph.MAX_BYTES", 1000)
    with pytest.raises(EngineError, match="too large for one ONNX file"):
        write_fre_graph(backbone, spec, arrays, {})


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root, rng = tmp_path_factory.mktemp("fre"), np.random.default_rng(0)
    (root / "good").mkdir()
    for i in range(8):
        cv2.imwrite(str(root / "good" / f"{i}.png"), rng.integers(60, 200, (64, 64, 3)).astype(np.uint8))
    options = FitOptions(layers=("layer2", "layer3"), keep_refit=False)
    graph = builtin_graph()
    fit_bundle(sorted((root / "good").iterdir()), root / "b", graph=graph, backbone="builtin", options=options)
    return root / "b"


def test_the_command_exports_a_bundle_whole(bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "whole.onnx"
    done = CliRunner().invoke(engine_command, ["export", "--bundle", str(bundle), "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert "level_layer2, level_layer3" in done.output
    loaded = load_bundle(bundle)
    images = np.random.default_rng(1).integers(0, 256, (2, 256, 256, 3), dtype=np.uint8)
    taps = open_engine(loaded.graph).infer(images)
    wanted, got = loaded.make_head().residuals(taps), open_engine(out.read_bytes()).infer(images)
    for layer, level in zip(("layer2", "layer3"), wanted.levels, strict=True):
        np.testing.assert_allclose(got[level_name(layer)][:, 0], level, rtol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--out", "x.onnx"], "name a backbone, or a --bundle"),
        (["resnet18", "--bundle", "b", "--out", "x.onnx"], "not both"),
        (["--bundle", "b", "--taps", "layer1", "--out", "x.onnx"], "a bundle's backbone is what it is"),
    ],
)
def test_the_command_refuses_what_contradicts_itself(arguments: list[str], says: str) -> None:
    done = CliRunner().invoke(engine_command, ["export", *arguments])
    assert done.exit_code == 2
    assert says in done.output
