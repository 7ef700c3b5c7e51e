"""GRAD's arithmetic: NumPy reference, torch and the graph against each other, and the method's own oracles.

Oracles 8 to 12 of the method's description (pasted blocks, contrast, freezing, jitter in training, what a fit reaches)
are in ``test_block_paste.py`` and ``test_calibration_grad.py``; 1 to 7 and the batch of 11 are here.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edge.errors import HeadError
from edge.heads import grad as reference
from edge.heads import load_head
from engines import EngineError, open_engine
from engines import grad_graph as written
from engines.export import export_backbone
from engines.grad_graph import RESIDUAL, check_alignment, write_grad_graph
from engines.graph import read_constants

torch = pytest.importorskip("torch", reason="needs the extra fit")
pytest.importorskip("onnx", reason="needs the extra fit")

from calibration.grad_network import Design, GradNetwork, similarity  # noqa: E402

LAYERS = ("layer2", "layer3")
SIZE = (64, 96)  # not square: a swapped height and width must show
Weights = dict[str, NDArray[np.float32]]


def design(channels: int, height: int, width_px: int, **changes: Any) -> Design:
    small = {"local": 6, "whole": 3, "blocks": 2, "width": 12}
    return Design(channels, height, width_px, **{**small, **changes})


KINDS: dict[str, dict[str, Any]] = {
    "edge": {},
    "border": {"border": True, "spread": 2.0},
    "crad": {"abnormal": False},
    "literal": {"kind": "basic", "width": None},
    "one block": {"kind": "basic", "blocks": 1, "whole": 1},
}


def settled(network: GradNetwork, seed: int = 5) -> GradNetwork:
    """Evaluation mode, with batch norms, grids and biases that do something."""
    random = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for tensor, low in ((module.weight, 0.5), (module.bias, -0.2), (module.running_mean, -0.2)):
                tensor.data.copy_(low + torch.rand(tensor.shape, generator=random))
            module.running_var.copy_(0.5 + torch.rand(module.running_var.shape, generator=random))
        elif isinstance(module, torch.nn.Conv2d):
            module.weight.data.normal_(0, module.weight[0].numel() ** -0.5, generator=random)
            if module.bias is not None:
                module.bias.data.normal_(0, 0.3, generator=random)
    for name, tensor in network.named_parameters():
        if name.endswith("_grid"):
            tensor.data.normal_(0, 1, generator=random)
    return network.eval()


def weights_of(network: GradNetwork, seed: int = 3) -> Weights:
    rng = np.random.default_rng(seed)
    channels = network.design.channels
    weights = network.folded()
    weights["features.scale"] = rng.uniform(0.5, 2, channels).astype(np.float32)
    weights["features.shift"] = rng.normal(size=channels).astype(np.float32)
    weights["threshold"] = np.array([network.threshold], np.float32)
    return weights


def relative(got: NDArray[Any], wanted: NDArray[Any]) -> float:
    assert got.shape == wanted.shape
    return float(np.abs(got - wanted).max() / np.abs(wanted).max())


# Grids (oracles 1 to 4).


@pytest.mark.parametrize("nodes", [1, 4, 5, 8, 32])
def test_a_node_is_returned_exactly_and_midway_the_mean_of_two(nodes: int) -> None:
    grid = np.random.default_rng(0).normal(size=(3, nodes, nodes))
    at = (2 * np.arange(nodes) + 1) / nodes - 1
    columns, rows = np.meshgrid(at, at)
    np.testing.assert_allclose(reference.sample_local(grid, np.stack([columns, rows])[None])[0], grid, atol=1e-12)
    if nodes > 1:
        between = at[:-1] + 1 / nodes
        columns, rows = np.meshgrid(between, at)
        found = reference.sample_local(grid, np.stack([columns, rows])[None])[0]
        np.testing.assert_allclose(found, (grid[:, :, :-1] + grid[:, :, 1:]) / 2, atol=1e-12)
    flat = grid.transpose(1, 2, 0).reshape(nodes**2, 3)
    for index in range(nodes**2):
        row, column = divmod(index, nodes)
        point = np.array([at[column], at[row]]).reshape(1, 2, 1, 1)
        np.testing.assert_allclose(reference.sample_global(flat, point, (1, 1))[0, :, 0, 0], flat[index], atol=1e-12)


def test_the_padding_is_zero_and_begins_half_a_cell_beyond_the_outer_nodes() -> None:
    nodes = 4
    ones = np.ones((1, nodes, nodes))

    def at(column: float, row: float) -> float:
        return float(
            reference.sample_local(ones, np.array([float(column), float(row)]).reshape(1, 2, 1, 1))[0, 0, 0, 0]
        )

    assert at(1, 0) == at(-1, 0) == at(0, 1) == pytest.approx(0.5)
    assert at(1, 1) == at(-1, 1) == pytest.approx(0.25)
    assert at(1 + 1 / nodes, 0) == at(0, -1 - 1 / nodes) == at(1.4, 1.4) == pytest.approx(0, abs=1e-12)
    inside = np.random.default_rng(1).uniform(-1 + 1 / nodes, 1 - 1 / nodes, (1, 2, 9, 9))
    np.testing.assert_allclose(reference.sample_local(ones, inside), 1, atol=1e-12)


@pytest.mark.parametrize("nodes", [1, 4, 32])
def test_hat_weights_are_torchs_grid_sample(nodes: int) -> None:
    rng = np.random.default_rng(nodes)
    grid = rng.normal(size=(5, nodes, nodes)).astype(np.float32)
    local = rng.uniform(-1.5, 1.5, (3, 2, 7, 9)).astype(np.float32)
    wanted = torch.nn.functional.grid_sample(
        torch.from_numpy(grid)[None].expand(3, -1, -1, -1),
        torch.from_numpy(local).permute(0, 2, 3, 1),
        align_corners=False,
    ).numpy()
    # Coordinates in single precision times half the nodes: what a coordinate's last bit is worth.
    np.testing.assert_allclose(reference.sample_local(grid, local), wanted, atol=1e-6 * max(4, nodes))
    exact = reference.sample_local(grid.astype(np.float64), local.astype(np.float64))
    np.testing.assert_allclose(exact, wanted, atol=1e-6 * max(4, nodes))
    for row in range(3):
        point = local[row, :, 2, 3].reshape(1, 2, 1, 1)
        flat = grid.transpose(1, 2, 0).reshape(nodes**2, 5)
        found = reference.sample_global(flat, point, (1, 1))[0, :, 0, 0]
        np.testing.assert_allclose(found, wanted[row, :, 2, 3], atol=1e-6 * max(4, nodes))


def test_the_global_sample_knows_the_mean_alone() -> None:
    network = settled(GradNetwork(design(6, 4, 5, spread=2.0), 1.0, seed=0))
    weights = weights_of(network)
    x = np.random.default_rng(2).normal(size=(1, 6, 4, 5))
    order = np.random.default_rng(3).permutation(20)
    shuffled = x.reshape(1, 6, 20)[:, :, order].reshape(x.shape)
    flat = np.broadcast_to(x.mean(axis=(2, 3), keepdims=True), x.shape)
    samples, locals_ = [], []
    for picture in (x, shuffled, flat, x + 0.5):
        local, whole = reference.coordinates(picture, weights)
        samples.append(reference.sample_global(weights["abnormal.global_grid"], whole, (4, 5)))
        locals_.append(local)
    for other in samples[1:3]:
        np.testing.assert_allclose(other, samples[0], atol=1e-6)
    assert np.abs(samples[3] - samples[0]).max() > 1e-2
    # The local coordinates go with their positions.
    np.testing.assert_allclose(locals_[1].reshape(2, 20), locals_[0].reshape(2, 20)[:, order], atol=1e-6)


def test_standardised_samples_have_mean_0_and_deviation_1_and_a_constant_one_is_0() -> None:
    x = np.random.default_rng(4).normal(3, 5, (2, 3, 6, 7))
    x[1, 2] = 4.0
    found = reference.standardise(x)
    np.testing.assert_allclose(found.mean(axis=(2, 3)), 0, atol=1e-12)
    wanted = np.ones((2, 3))
    wanted[1, 2] = 0
    np.testing.assert_allclose(found.std(axis=(2, 3), ddof=1), wanted, atol=1e-4)


def test_a_border_keeps_coordinates_where_the_grid_of_ones_is_one() -> None:
    for border in (False, True):
        network = settled(GradNetwork(design(6, 4, 5, spread=2.0, border=border), 1.0, seed=0))
        x = 20 * np.random.default_rng(5).normal(size=(3, 6, 4, 5)).astype(np.float32)
        local, whole = reference.coordinates(x, weights_of(network))
        in_torch = network.coordinates(torch.from_numpy(x))
        for found, tensor in zip((local, whole), in_torch, strict=True):
            np.testing.assert_allclose(tensor.detach().numpy(), found, atol=1e-5)
        ones = reference.sample_local(np.ones((1, 6, 6)), local.astype(np.float64))
        assert (np.abs(ones - 1).max() < 1e-6) == border
        assert (np.abs(local).max() <= 1 - 1 / 6 + 1e-6) == border
        assert (np.abs(whole).max() <= 1 - 1 / 3 + 1e-6) == border


# The refinement (oracles 5 to 7).


def test_the_residual_is_the_length_of_what_the_refined_features_leave() -> None:
    rng = np.random.default_rng(6)
    x, rebuilt = rng.normal(size=(2, 3, 8, 5, 6))
    for threshold in (1e-6, 2.0, 1e6):
        s = reference.similarity(x, rebuilt, threshold)
        refined = s[:, None] * x + (1 - s[:, None]) * rebuilt
        found = reference.residual(x, rebuilt, threshold)
        np.testing.assert_allclose(found, np.linalg.norm(refined - x, axis=1), atol=1e-12)
        in_torch = similarity(torch.from_numpy(x), torch.from_numpy(rebuilt), threshold)
        np.testing.assert_allclose(in_torch.numpy(), s, atol=1e-12)
    assert (
        len(np.unique(np.round(reference.similarity(x, rebuilt, 2.0) - reference.similarity(x, rebuilt, 1e-6), 6))) == 2
    )


def test_a_perfect_reconstruction_leaves_nothing_and_none_at_all_leaves_it_to_the_indicator() -> None:
    x = np.random.default_rng(7).normal(size=(1, 8, 3, 3))
    np.testing.assert_allclose(reference.similarity(x, x.copy(), 1.0), 1, atol=1e-12)
    np.testing.assert_allclose(reference.residual(x, x.copy(), 1.0), 0, atol=1e-12)
    nothing = np.zeros_like(x)
    power = (x**2).mean(axis=1)
    for threshold in (0.5, 1.0, 2.0):
        s = reference.similarity(x, nothing, threshold)
        np.testing.assert_allclose(s, np.where(power <= threshold, 0.3, 0.0), atol=1e-12)
    length = np.linalg.norm(x, axis=1)
    np.testing.assert_allclose(reference.residual(x, nothing, 1e9), 0.7 * length, atol=1e-12)
    np.testing.assert_allclose(reference.residual(x, nothing, 1e-9), length, atol=1e-12)
    assert np.isfinite(reference.residual(nothing, nothing, 1.0)).all()


def test_the_indicator_flips_just_above_the_threshold() -> None:
    # The printed constant, 10, is where 0.05 mse rounds (half to even) to 0 for the last time.
    for error, wanted in ((9.999, 0.3), (10.0, 0.3), (10.001, 0.0), (40.0, 0.0), (0.0, 1.0)):
        x = np.zeros((1, 4, 1, 1))
        rebuilt = np.full_like(x, error**0.5)
        if error == 0:
            x += 1.0
            rebuilt += 1.0
        if error == 10.0:
            x, rebuilt = np.zeros((1, 10, 1, 1)), np.zeros((1, 10, 1, 1))
            rebuilt[0, 0] = 10.0  # 100 / 10, exact in binary
        for dtype in (np.float64, np.float32):
            s = reference.similarity(x.astype(dtype), rebuilt.astype(dtype), 10.0)
            assert s.item() == pytest.approx(wanted), error


@pytest.mark.parametrize("change", ["mix 0", "no branch"])
def test_without_the_abnormal_branch_it_is_crad(change: str) -> None:
    network = settled(GradNetwork(design(6, 4, 5), 1.0, seed=0))
    weights = weights_of(network)
    x = np.random.default_rng(8).normal(size=(2, 6, 4, 5)).astype(np.float32)
    both = reference.rebuild(x, weights)
    local, whole = reference.coordinates(x, weights)
    normal = reference.branch("normal", local, whole, weights)
    abnormal = reference.branch("abnormal", local, whole, weights)
    assert relative(both, normal + weights["mix"] * abnormal) < 1e-6
    assert relative(both, normal) > 1e-3
    if change == "mix 0":
        crad = {**weights, "mix": np.zeros(1, np.float32)}
    else:
        crad = {key: value for key, value in weights.items() if not key.startswith("abnormal.")}
    assert relative(reference.rebuild(x, crad), normal) < 1e-6


# The network, three times.


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_folded_weights_in_numpy_give_what_torch_gives(kind: str) -> None:
    network = settled(GradNetwork(design(10, 8, 6, **KINDS[kind]), 1.5, seed=1))
    x = np.random.default_rng(9).normal(size=(3, 10, 8, 6)).astype(np.float32)
    weights = network.folded()
    with torch.inference_mode():
        tensor = torch.from_numpy(x)
        rebuilt, wanted = network.rebuilt(*network.coordinates(tensor)), network(tensor)
    assert relative(reference.rebuild(x, weights), rebuilt.numpy()) < 1e-5
    assert relative(reference.residual(x, reference.rebuild(x, weights), 1.5), wanted.numpy()) < 1e-4
    # The reduction of the normal branch is merged into its grids; the standardised samples' cannot be.
    merged = KINDS[kind].get("width", 12) is not None
    assert ("normal.sum.bias" in weights) == merged
    assert "normal.reduce.weight" not in weights
    assert ("abnormal.reduce.weight" in weights) == (merged and kind != "crad")
    assert weights["normal.local_grid"].shape[0] == (12 if merged else 10)


@pytest.fixture(scope="module")
def backbone() -> bytes:
    return export_backbone("builtin", input_size=SIZE, taps=LAYERS)


def pictures(batch: int) -> NDArray[np.uint8]:
    return np.random.default_rng(3).integers(0, 256, (batch, *SIZE, 3), dtype=np.uint8)


def built(backbone: bytes, **changes: Any) -> tuple[GradNetwork, Weights]:
    taps = open_engine(backbone).info.taps
    network = settled(
        GradNetwork(design(sum(tap.channels for tap in taps), taps[0].height, taps[0].width, **changes), 1.0, seed=2)
    )
    return network, weights_of(network)


GRAPHS: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "edge": (LAYERS, {}),
    "border, crad": (LAYERS, {"border": True, "spread": 2.0, "abnormal": False}),
    "literal, one tap": (("layer2",), {"kind": "basic", "width": None, "blocks": 1}),
}


@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime"])
@pytest.mark.parametrize("kind", sorted(GRAPHS))
def test_the_graph_gives_what_numpy_and_torch_give_at_batch_1_and_4(runtime: str, kind: str) -> None:
    pytest.importorskip(runtime)
    layers, changes = GRAPHS[kind]
    backbone = export_backbone("builtin", input_size=SIZE, taps=layers)
    network, weights = built(backbone, **changes)
    images = pictures(4)
    maps = open_engine(backbone, runtime=runtime).infer(images)
    taps = [maps[layer] for layer in layers]
    x = reference.features(taps, weights)
    rebuilt = reference.rebuild(x, weights)
    errors = ((rebuilt - x) ** 2).mean(axis=1)
    # Between two errors far apart, so that no rounding decides which side a position is on; both sides occur.
    ordered = np.sort(errors.ravel())
    middle = len(ordered) // 4 + int(np.diff(ordered[len(ordered) // 4 : -len(ordered) // 4]).argmax())
    network.threshold = float(ordered[middle : middle + 2].mean())
    weights["threshold"] = np.array([network.threshold], np.float32)
    wanted = reference.level(taps, weights)
    with torch.inference_mode():
        assert relative(network(torch.from_numpy(x)).numpy(), wanted) < 1e-4
    graph = write_grad_graph(backbone, weights, layers, {"head": "grad"})
    engine = open_engine(graph, runtime=runtime)
    assert [(tap.name, tap.channels, tap.height, tap.width) for tap in engine.info.taps] == [(RESIDUAL, 1, 8, 12)]
    together = engine.infer(images)[RESIDUAL]
    assert relative(together[:, 0], wanted) < 1e-4
    assert engine.infer(images)[RESIDUAL].tobytes() == together.tobytes()
    for row in range(4):
        assert relative(engine.infer(images[row : row + 1])[RESIDUAL][0, 0], wanted[row]) < 1e-4


def test_constants_are_the_same_in_the_graph_and_the_reference() -> None:
    for name in ("MSE_WEIGHT", "COSINE_WEIGHT", "STD_EPS", "EPS"):
        assert getattr(reference, name) == getattr(written, name)


@pytest.mark.parametrize("size", [(224, 160), (72, 104)])
def test_shapes_and_the_backbones_constants_stay_what_they_are(size: tuple[int, int]) -> None:
    backbone = export_backbone("builtin", input_size=size, taps=LAYERS)
    taps = open_engine(backbone).info.taps
    network = GradNetwork(design(384, taps[0].height, taps[0].width, whole=2), 1.0, seed=0).eval()
    weights = weights_of(network)
    graph = write_grad_graph(backbone, weights, LAYERS, {"head": "grad"})
    (before, facts), (after, more) = read_constants(backbone), read_constants(graph)
    assert all(after[key].tobytes() == before[key].tobytes() for key in before)
    assert all(after[key].tobytes() == weights[key].tobytes() for key in weights if key.startswith("normal."))
    assert more == {**facts, "head": "grad"}
    assert write_grad_graph(backbone, weights, LAYERS, {"head": "grad"}) == graph
    level = open_engine(graph).infer(np.full((1, *size, 3), 90, np.uint8))[RESIDUAL]
    assert level.shape == (1, 1, taps[0].height, taps[0].width)
    assert np.isfinite(level).all()
    assert level.min() >= 0


def test_the_reference_aligns_as_torch_does() -> None:
    rng = np.random.default_rng(10)
    shallow, deep = rng.normal(size=(2, 3, 9, 13)), rng.normal(size=(2, 4, 5, 7))
    wanted = torch.nn.functional.interpolate(torch.from_numpy(deep), size=(9, 13), mode="bilinear", align_corners=True)
    found = reference.align([shallow, deep])
    assert (found[:, :3] == shallow).all()
    np.testing.assert_allclose(found[:, 3:], wanted.numpy(), atol=1e-12)
    with pytest.raises(HeadError, match="9x13 is larger than the first, 5x7"):
        reference.align([deep, shallow])


def test_nan_in_the_weights_is_nan_in_the_map_and_never_zero(backbone: bytes) -> None:
    _, clean = built(backbone)
    for key in ("normal.local_grid", "coordinates.pooled1.bias"):
        weights = {**clean, key: np.full_like(clean[key], np.nan)}
        for runtime in ("openvino", "onnxruntime"):
            pytest.importorskip(runtime)
            engine = open_engine(write_grad_graph(backbone, weights, LAYERS, {}), runtime=runtime)
            maps = engine.infer(pictures(1))
            spec = {"levels": [RESIDUAL], f"shape_{RESIDUAL}": list(maps[RESIDUAL].shape[1:])}
            with pytest.raises(HeadError, match="residual is not finite"):
                load_head("grad", spec, {}).residuals(maps)


def test_what_does_not_fit_is_one_clear_line(backbone: bytes) -> None:
    _, weights = built(backbone)
    wrong = {
        "lacks 'normal.out.weight'": {k: v for k, v in weights.items() if k != "normal.out.weight"},
        "normal.block0.expand.*does not fit": {
            **weights,
            "normal.block0.expand.weight": weights["coordinates.local1.weight"],
        },
        "normal.block1.depthwise.*does not fit": {
            **weights,
            "normal.block1.depthwise.bias": weights["normal.out.weight"],
        },
        "trained on 383 channels, the taps have 384": {**weights, "features.scale": weights["features.scale"][1:]},
        "global_grid, .*fits no map of 8x12": {
            **weights,
            "normal.global_grid": weights["normal.global_grid"][:, :-1],
        },
        "rebuilds 383 channels": {
            **{k: v for k, v in weights.items() if not k.startswith("abnormal.")},
            "normal.out.weight": weights["normal.out.weight"][1:],
        },
        "normal grids differ": {**weights, "normal.local_grid": weights["normal.local_grid"][1:]},
    }
    for message, arrays in wrong.items():
        with pytest.raises(EngineError, match=message) as caught:
            write_grad_graph(backbone, arrays, LAYERS, {})
        assert "\n" not in str(caught.value)
    with pytest.raises(EngineError, match="no tap 'layer4'; it has layer2"):
        write_grad_graph(backbone, weights, ("layer4",), {})
    with pytest.raises(EngineError, match="cannot be read"):
        write_grad_graph(b"no graph", weights, LAYERS, {})
    with pytest.raises(EngineError, match="layer2, 8x12, cannot be aligned to layer3, 4x6: name the layers"):
        write_grad_graph(backbone, weights, ("layer3", "layer2"), {})
    check_alignment({"a": (9, 9), "b": (5, 9)})


def test_weights_are_fixed_by_the_seed_alone() -> None:
    torch.manual_seed(1)
    first = GradNetwork(design(6, 4, 5), 1.0, seed=3).folded()
    torch.manual_seed(2)
    again = GradNetwork(design(6, 4, 5), 1.0, seed=3).folded()
    other = GradNetwork(design(6, 4, 5), 1.0, seed=4).folded()
    assert all((first[key] == again[key]).all() for key in first)
    for key in ("normal.local_grid", "abnormal.global_grid", "coordinates.local1.weight", "abnormal.out.weight"):
        assert (first[key] != other[key]).any()


def test_the_literal_network_has_the_described_size() -> None:
    """At B6's 272 channels and 32x32: 95.9 M in the fusion networks, 35.7 M in the grids (by formula: not built)."""
    network = GradNetwork(Design(8, 32, 32, local=8, whole=8, kind="basic", blocks=9, width=None), 1.0, seed=0)
    wide = 16  # 2 C
    fusion = sum(
        array.numel()
        for name, array in network.named_parameters()
        if name.startswith(("normal.", "abnormal.")) and "grid" not in name and ".norm" not in name
    )
    assert fusion == 2 * (9 * 2 * 9 * wide**2 + wide * 8)
    assert pytest.approx(95.9, abs=0.4) == 2 * (9 * 2 * 9 * 544**2 + 544 * 272) / 1e6
    grids = sum(array.numel() for name, array in network.named_parameters() if "grid" in name)
    assert grids == 2 * (8 * 64 + 64 * 8 * 1024)
