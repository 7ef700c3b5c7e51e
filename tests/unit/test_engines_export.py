"""Exported graphs against torch: an independent forward pass that works on the same state dict."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file

from engines import EngineError, builtin_graph, catalog, open_engine
from engines.export import export_backbone, main
from engines.graph import read_constants

torch = pytest.importorskip("torch", reason="needs the extra fit")
pytest.importorskip("onnx", reason="needs the extra fit")
pytest.importorskip("onnxruntime", reason="needs the extra onnxruntime")
F = torch.nn.functional

SIZE = (64, 96)  # not square: a swapped height and width must show
MEAN = torch.tensor([0.485, 0.456, 0.406])
STD = torch.tensor([0.229, 0.224, 0.225])


class Reference:
    """Evaluates networks on a state dict, making up random weights for the keys it does not have yet."""

    def __init__(self, state: dict[str, Any] | None = None) -> None:
        self.state: dict[str, Any] = {} if state is None else state
        self.random = torch.Generator().manual_seed(7)

    def normal(self, *shape: int) -> Any:
        return torch.randn(*shape, generator=self.random)

    def conv(self, x: Any, key: str, out: int, k: int, stride: int = 1, bias: bool = False) -> Any:
        if f"{key}.weight" not in self.state:
            fan = x.shape[1] * k * k
            self.state[f"{key}.weight"] = self.normal(out, x.shape[1], k, k) * (2 / fan) ** 0.5
            if bias:
                self.state[f"{key}.bias"] = self.normal(out) * 0.1
        return F.conv2d(x, self.state[f"{key}.weight"], self.state.get(f"{key}.bias"), stride, k // 2)

    def norm(self, x: Any, key: str) -> Any:
        if f"{key}.weight" not in self.state:
            n = x.shape[1]
            self.state[f"{key}.weight"] = 0.5 + 0.2 * self.normal(n)
            self.state[f"{key}.bias"] = 0.2 * self.normal(n)
            self.state[f"{key}.running_mean"] = 0.2 * self.normal(n)
            self.state[f"{key}.running_var"] = 0.5 + self.normal(n) ** 2
            self.state[f"{key}.num_batches_tracked"] = torch.tensor(3)
        parts = (self.state[f"{key}.{p}"] for p in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(x, *parts)

    def resnet(self, x: Any, kind: str, counts: tuple[int, ...], wide: int = 1) -> list[Any]:
        x = F.max_pool2d(F.relu(self.norm(self.conv(x, "conv1", 64, 7, 2), "bn1")), 3, 2, 1)
        taps = []
        for stage, count in enumerate(counts):
            planes = 64 * 2**stage
            for index in range(count):
                key = f"layer{stage + 1}.{index}"
                stride = 2 if stage and not index else 1
                if kind == "basic":
                    y = F.relu(self.norm(self.conv(x, f"{key}.conv1", planes, 3, stride), f"{key}.bn1"))
                    y = self.norm(self.conv(y, f"{key}.conv2", planes, 3), f"{key}.bn2")
                else:
                    y = F.relu(self.norm(self.conv(x, f"{key}.conv1", planes * wide, 1), f"{key}.bn1"))
                    y = self.conv(y, f"{key}.conv2", planes * wide, 3, stride)
                    y = F.relu(self.norm(y, f"{key}.bn2"))
                    y = self.norm(self.conv(y, f"{key}.conv3", planes * 4, 1), f"{key}.bn3")
                if x.shape != y.shape:
                    x = self.conv(x, f"{key}.downsample.0", y.shape[1], 1, stride)
                    x = self.norm(x, f"{key}.downsample.1")
                x = F.relu(x + y)
            taps.append(x)
        return taps

    def resnet_v2(self, x: Any, counts: tuple[int, ...]) -> list[Any]:
        x = F.relu(self.norm(self.conv(self.norm(x, "bn0"), "conv1", 64, 7, 2), "bn1"))
        x = F.max_pool2d(x, 3, 2, 1)
        taps = []
        for stage, count in enumerate(counts):
            planes = 64 * 2**stage
            for index in range(count):
                key = f"layer{stage + 1}.{index}"
                stride = 2 if stage and not index else 1
                r = F.relu(self.norm(x, f"{key}.bn1"))
                y = F.relu(self.norm(self.conv(r, f"{key}.conv1", planes, 1), f"{key}.bn2"))
                y = F.relu(self.norm(self.conv(y, f"{key}.conv2", planes, 3, stride), f"{key}.bn3"))
                y = self.conv(y, f"{key}.conv3", planes * 4, 1)
                x = y + (x if index else self.conv(r, f"{key}.downsample", planes * 4, 1, stride))
            taps.append(x)
        return taps

    def builtin(self, x: Any) -> list[Any]:
        x = F.relu(self.conv(x, "stem", 16, 3, 2, bias=True))
        taps = []
        for stage, width in ((1, 32), (2, 64), (3, 128)):
            x = F.relu(self.conv(x, f"stage{stage}.down", width, 3, 2, bias=True))
            key = f"stage{stage}.block0"
            y = F.relu(self.conv(x, f"{key}.conv1", width, 3, bias=True))
            x = F.relu(x + self.conv(y, f"{key}.conv2", width, 3, bias=True))
            taps.append(self.conv(x, f"tap{stage}", 2 * width, 1, bias=True))
        return taps


Forward = Callable[[Reference, Any], list[Any]]
NETWORKS: dict[str, Forward] = {
    "builtin": lambda r, x: r.builtin(x),
    "resnet18": lambda r, x: r.resnet(x, "basic", (2, 2, 2, 2)),
    "resnet50": lambda r, x: r.resnet(x, "bottleneck", (3, 4, 6)),
    "wide_resnet50_2": lambda r, x: r.resnet(x, "bottleneck", (3, 4), wide=2),
    "resnet50v2": lambda r, x: r.resnet_v2(x, (3, 4, 6)),
}


def pictures(batch: int, size: tuple[int, int] = SIZE) -> NDArray[np.uint8]:
    return np.random.default_rng(3).integers(0, 256, (batch, *size, 3), dtype=np.uint8)


def normalised(images: NDArray[np.uint8]) -> Any:
    return ((torch.from_numpy(images) / 255.0 - MEAN) / STD).permute(0, 3, 1, 2)


def forward(network: Forward, reference: Reference, images: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
    with torch.inference_mode():
        return [tap.numpy() for tap in network(reference, normalised(images))]


def save_random(name: str, folder: Path) -> tuple[Path, Reference]:
    """Random weights of backbone ``name`` as a torch file."""
    reference = Reference()
    forward(NETWORKS[name], reference, pictures(1))
    path = folder / f"{name}.pth"
    torch.save(reference.state, path)
    return path, reference


def relative(got: NDArray[np.float32], wanted: NDArray[np.float32]) -> float:
    assert got.shape == wanted.shape
    return float(np.abs(got - wanted).max() / np.abs(wanted).max())


def test_every_backbone_has_a_reference() -> None:
    assert set(NETWORKS) == set(catalog.names())


@pytest.mark.parametrize("name", NETWORKS)
def test_random_weights_give_what_torch_gives_at_batch_1_and_4(name: str, tmp_path: Path) -> None:
    path, reference = save_random(name, tmp_path)
    images = pictures(4)
    wanted = forward(NETWORKS[name], reference, images)
    taps = [f"layer{i + 1}" for i in range(len(wanted))]
    graph = export_backbone(name, path, input_size=SIZE, taps=taps)
    for runtime in ("openvino", "onnxruntime"):
        engine = open_engine(graph, runtime=runtime)
        assert [tap.name for tap in engine.info.taps] == taps
        assert engine.info.input_size == SIZE
        together = engine.infer(images)
        for row in range(4):
            alone = engine.infer(images[row : row + 1])
            for tap, torch_map in zip(taps, wanted, strict=True):
                assert relative(alone[tap][0], torch_map[row]) < 1e-5
                assert relative(together[tap][row], alone[tap][0]) < 1e-5
        engine.close()


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "file"),
    [("resnet18", "resnet18_tv_l123"), ("resnet50v2", "resnet50v2_onnxzoo_l123")],
)
def test_real_weights_give_what_their_definitions_give(name: str, file: str, data_dir: Path) -> None:
    path = data_dir / "weights" / f"{file}.pt"
    spec = importlib.util.spec_from_file_location("definitions", data_dir / "weights" / "definitions.py")
    assert spec is not None
    assert spec.loader is not None
    definitions = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(definitions)
    state = torch.load(path, weights_only=True)
    network = definitions.MAKE[file]().eval()
    network.load_state_dict({key: value.float() for key, value in state.items()}, strict=False)
    images = pictures(2, (256, 256))
    with torch.inference_mode():
        wanted = [tap.numpy() for tap in network(normalised(images))]
    engine = open_engine(export_backbone(name, path))
    got = engine.infer(images)
    for tap, torch_map in zip(catalog.DEFAULT_TAPS, wanted, strict=True):
        assert relative(got[tap], torch_map) < 1e-5
    with pytest.raises(EngineError, match=r"no 'layer4\.0\.\S+', which the asked taps of"):
        export_backbone(name, path, taps=["layer4"])


@pytest.mark.data
def test_the_shipped_graph_is_the_export_of_the_trained_weights(data_dir: Path, tmp_path: Path) -> None:
    path = data_dir / "weights" / "builtin.safetensors"
    out, record = tmp_path / "b.onnx", tmp_path / "p.json"
    command = ["builtin", "--weights", str(path), "--out", str(out), "--record", str(record)]
    assert main(command) == 0
    assert out.read_bytes() == builtin_graph()
    shipped = Path(catalog.__file__).parent / "builtin" / "provenance.json"
    assert json.loads(record.read_text()) == json.loads(shipped.read_text())


def test_the_shipped_graph_is_what_its_provenance_says_and_runs_as_torch_does() -> None:
    graph = builtin_graph()
    provenance = json.loads((Path(catalog.__file__).parent / "builtin" / "provenance.json").read_text())
    assert provenance["graph_sha256"] == hashlib.sha256(graph).hexdigest()
    constants, metadata = read_constants(graph)
    assert metadata["backbone"] == "builtin"
    assert metadata["taps"] == "layer1,layer2,layer3"
    assert metadata["weights_sha256"] == provenance["weights_sha256"]
    state = {key: torch.from_numpy(array.copy()) for key, array in constants.items()}
    images = pictures(1, (256, 256))
    wanted = forward(NETWORKS["builtin"], Reference(state), images)
    got = open_engine(graph).infer(images)
    for tap, torch_map in zip(catalog.DEFAULT_TAPS, wanted, strict=True):
        assert relative(got[tap], torch_map) < 1e-5


def test_the_builtin_needs_no_weights_at_any_size_and_shallow_taps_make_a_smaller_graph() -> None:
    graph = export_backbone("builtin", input_size=(64, 96), taps=["layer2"])
    assert not any(key.startswith(("stage3", "tap1", "tap3")) for key in read_constants(graph)[0])
    (tap,) = open_engine(graph).info.taps
    assert (tap.name, tap.channels, tap.height, tap.width) == ("layer2", 128, 8, 12)


def test_equal_weights_give_equal_bytes_from_torch_and_safetensors_but_other_hashes(tmp_path: Path) -> None:
    path, reference = save_random("builtin", tmp_path)
    again = export_backbone("builtin", path)
    assert export_backbone("builtin", path, tmp_path / "deep" / "b.onnx") == again
    assert (tmp_path / "deep" / "b.onnx").read_bytes() == again
    other = tmp_path / "b.safetensors"
    save_file({key: value.numpy() for key, value in reference.state.items()}, other)
    first, second = read_constants(again), read_constants(export_backbone("builtin", other))
    assert first[0].keys() == second[0].keys()
    assert all((first[0][key] == second[0][key]).all() for key in first[0])
    assert second[1]["weights_sha256"] == hashlib.sha256(other.read_bytes()).hexdigest()


def test_a_missing_and_a_misshaped_key_are_named(tmp_path: Path) -> None:
    path, reference = save_random("resnet18", tmp_path)
    for key, value, message in [
        ("layer2.1.bn2.running_var", None, r"no 'layer2\.1\.bn2\.running_var'"),
        ("layer3.0.downsample.0.weight", torch.zeros(256, 64, 1, 1), r"shape \(256, 64, 1, 1\).*256, 128"),
        ("bn1.running_var", -torch.ones(64), "negative"),
    ]:
        state = dict(reference.state)
        if value is None:
            del state[key]
        else:
            state[key] = value
        torch.save(state, path)
        with pytest.raises(EngineError, match=message) as caught:
            export_backbone("resnet18", path, input_size=SIZE)
        assert "\n" not in str(caught.value)


def test_weights_of_another_backbone_are_refused(tmp_path: Path) -> None:
    path, _ = save_random("resnet18", tmp_path)
    with pytest.raises(EngineError, match="belong to another backbone"):
        export_backbone("resnet50", path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "resnet19"}, "no backbone is called 'resnet19': choose one of builtin, resnet18"),
        ({"name": "builtin", "taps": ["layer4"]}, "'layer4' is not one; choose among layer1, layer2, layer3"),
        ({"name": "builtin", "taps": []}, "none given"),
        ({"name": "builtin", "taps": ["layer1", "layer1"]}, "twice"),
        ({"name": "builtin", "input_size": (16, 256)}, "input size 16x256"),
        ({"name": "resnet50v2"}, "no official address.*--weights FILE"),
    ],
)
def test_wrong_arguments_are_one_clear_line(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(EngineError, match=message) as caught:
        export_backbone(**arguments)
    assert "\n" not in str(caught.value)


def test_an_unwritable_place_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(EngineError, match="cannot be written to"):
        export_backbone("builtin", out=tmp_path / "file" / "b.onnx")


def test_without_onnx_the_shipped_graph_still_comes_and_another_names_the_extra(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    assert export_backbone("builtin") == builtin_graph()
    with pytest.raises(EngineError, match='extra "fit"'):
        export_backbone("builtin", input_size=(64, 64))


def test_the_command_prints_one_line_for_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["resnet18", "--weights", str(tmp_path / "absent.pth"), "--out", str(tmp_path / "o.onnx")])
    assert code == 1
    error = capsys.readouterr().err
    assert error.startswith("error: weights ")
    assert error.count("\n") == 1
    assert not (tmp_path / "o.onnx").exists()
