"""HFRA's arithmetic: NumPy reference, torch and the graph against each other, and the method's own oracles.

Oracles of the method's description:

1   test_the_residual_is_one_minus_the_cosine_and_half_the_squared_distance_of_unit_features,
    test_the_residual_is_zero_only_for_positive_multiples
2   test_the_loss_is_the_mean_over_levels_of_the_mean_over_positions_and_flat_at_the_goal
3   test_printed_weights_give_the_printed_sum_also_after_the_blur
4   test_shapes_and_the_backbones_constants_stay_what_they_are (the encoder is a frozen graph: nothing can train it)
5   test_blocks_of_the_decoder
6   test_eight_pictures_are_learnt_by_heart_and_a_swapped_block_stands_out
7   test_cached_features_train_as_the_features_themselves_up_to_their_rounding
8   test_folded_weights_in_numpy_give_what_torch_gives, test_the_graph_gives_what_numpy_and_torch_give_at_batch_1_and_4
9   test_one_wide_level_learns_the_identity_and_one_narrow_channel_cannot
10  test_the_score_is_the_largest_value_of_the_map_exactly,
    test_printed_weights_give_the_printed_sum_also_after_the_blur

Interrupted and repeated trainings are in ``test_calibration_training.py``; reflection and sigma of the blur, for every
method, in ``test_heads_tail.py``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edge.errors import HeadError
from edge.heads import hfra as reference
from edge.heads import load_head
from edge.heads.tail import Tail, TailSpec
from engines import EngineError, open_engine
from engines.decoder_graph import level_factors, residual_name, write_decoder_graph
from engines.export import export_backbone
from engines.graph import GraphBuilder, read_constants

torch = pytest.importorskip("torch", reason="needs the extra fit")
pytest.importorskip("onnx", reason="needs the extra fit")

from calibration.hfra_network import Decoder, DecoderTask, loss_of, residual  # noqa: E402
from calibration.training import Schedule, train  # noqa: E402


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Two threads that wait for each other on a busy machine take ten times as long over layers this small."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


LAYERS = ("layer1", "layer2", "layer3")
SIZE = (64, 96)  # not square: a swapped height and width must show
SHAPES = {"layer1": (8, 16, 24), "layer2": (12, 8, 12), "layer3": (16, 4, 6)}
SIZES = {layer: shape[1:] for layer, shape in SHAPES.items()}


def features(count: int, seed: int = 0, shapes: dict[str, tuple[int, int, int]] = SHAPES) -> dict[str, NDArray[Any]]:
    """Features of one hidden code, so that the deepest level tells all about the others."""
    rng = np.random.default_rng(seed)
    deepest = list(shapes.values())[-1]
    code = rng.normal(size=(count, 4, *deepest[1:]))
    found = {}
    for index, (layer, shape) in enumerate(shapes.items()):
        mix = np.random.default_rng(100 + index).normal(size=(shape[0], 4))
        mixed = np.einsum("ck,bkhw->bchw", mix, code)
        found[layer] = reference.repeat(mixed, shape[1] // deepest[1]).astype(np.float16)
    return found


def settled(decoder: Any) -> Any:
    """Evaluation mode, with batch norms that do something."""
    random = torch.Generator().manual_seed(5)
    for module in decoder.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for tensor, low in ((module.weight, 0.5), (module.bias, -0.2), (module.running_mean, -0.2)):
                tensor.data.copy_(low + torch.rand(tensor.shape, generator=random))
            module.running_var.copy_(0.5 + torch.rand(module.running_var.shape, generator=random))
    return decoder.eval()


def relative(got: NDArray[Any], wanted: NDArray[Any]) -> float:
    assert got.shape == wanted.shape
    return float(np.abs(got - wanted).max() / np.abs(wanted).max())


# The residual.


def test_the_residual_is_one_minus_the_cosine_and_half_the_squared_distance_of_unit_features() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(2, 3, 7, 4, 5))
    got = reference.residual(a, b)
    unit_a, unit_b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b))
    np.testing.assert_allclose(got, 0.5 * ((unit_a - unit_b) ** 2).sum(axis=1), atol=1e-12)
    np.testing.assert_allclose(got, 1 - (unit_a * unit_b).sum(axis=1), atol=1e-12)
    assert 0 <= got.min() <= got.max() <= 2
    scale = rng.uniform(0.01, 100, (3, 1, 4, 5))
    np.testing.assert_allclose(reference.residual(a * scale, b), got, atol=1e-10)
    np.testing.assert_allclose(reference.residual(a, b * scale), got, atol=1e-10)
    np.testing.assert_allclose(residual(torch.from_numpy(a), torch.from_numpy(b)).numpy(), got, atol=1e-12)


def test_the_residual_is_zero_only_for_positive_multiples() -> None:
    a = np.random.default_rng(2).normal(size=(1, 6, 3, 3))
    np.testing.assert_allclose(reference.residual(a, 3 * a), 0, atol=1e-12)
    np.testing.assert_allclose(reference.residual(a, -a), 2, atol=1e-12)
    turned = a.copy()
    turned[0, 0, 1, 1] += 1.0
    found = reference.residual(a, turned)
    assert found[0, 1, 1] > 1e-3
    assert np.delete(found.ravel(), 4).max() < 1e-12
    assert reference.residual(a, 0 * a).tolist() == np.ones((1, 3, 3)).tolist()  # nothing was rebuilt


def test_the_loss_is_the_mean_over_levels_of_the_mean_over_positions_and_flat_at_the_goal() -> None:
    rng = np.random.default_rng(3)
    wanted = {layer: rng.normal(size=(2, *shape)) for layer, shape in SHAPES.items()}
    rebuilt = {layer: rng.normal(size=(2, *shape)) for layer, shape in SHAPES.items()}
    as_torch = [{layer: torch.from_numpy(x) for layer, x in side.items()} for side in (wanted, rebuilt)]
    by_hand = np.mean([reference.residual(wanted[layer], rebuilt[layer]).mean() for layer in SHAPES])
    assert float(loss_of(*as_torch)) == pytest.approx(by_hand, abs=1e-12)
    assert reference.loss([reference.residual(wanted[x], rebuilt[x]) for x in SHAPES]) == pytest.approx(by_hand)
    goal = {layer: torch.from_numpy(x).requires_grad_() for layer, x in wanted.items()}
    loss_of(as_torch[0], goal).backward()
    assert max(float(x.grad.abs().max()) for x in goal.values()) < 1e-12


# The decoder.


def test_blocks_of_the_decoder() -> None:
    x = np.array([[[[1.0, -2.0], [3.0, 4.0]]]])
    up = reference.repeat(x, 2)
    assert up[0, 0].tolist() == [[1, 1, -2, -2], [1, 1, -2, -2], [3, 3, 4, 4], [3, 3, 4, 4]]
    assert reference.leaky_relu(x).ravel().tolist() == [1.0, -0.2, 3.0, 4.0]
    rng = np.random.default_rng(4)
    image, weight, bias = rng.normal(size=(2, 3, 5, 6)), rng.normal(size=(4, 3, 3, 3)), rng.normal(size=4)
    wanted = torch.nn.functional.conv2d(*(torch.from_numpy(a) for a in (image, weight, bias)), padding=1).numpy()
    np.testing.assert_allclose(reference.conv(image, weight, bias), wanted, atol=1e-12)


@pytest.mark.parametrize("mid", [1.0, 0.5])
def test_folded_weights_in_numpy_give_what_torch_gives(mid: float) -> None:
    decoder = settled(Decoder(SHAPES, (2, 2), mid, seed=1))
    deepest = features(3)["layer3"].astype(np.float32)
    with torch.inference_mode():
        wanted = {layer: x.numpy() for layer, x in decoder(torch.from_numpy(deepest)).items()}
    weights = decoder.folded()
    got = reference.decode(deepest, weights, SIZES)
    assert set(got) == set(LAYERS)
    for layer in LAYERS:
        assert got[layer].dtype == np.float32
        assert relative(got[layer], wanted[layer]) < 1e-5
    assert weights["layer2.conv1.weight"].shape == (round(12 * mid), 16, 1, 1)
    assert weights["layer2.conv2.weight"].shape == (round(12 * mid), round(12 * mid), 3, 3)
    assert weights["layer2.out.weight"].shape == (12, 12, 1, 1)


def test_the_decoder_has_the_published_size_at_resnet18s_widths() -> None:
    shapes = {"layer1": (64, 64, 64), "layer2": (128, 32, 32), "layer3": (256, 16, 16)}
    sizes = {mid: sum(a.size for a in Decoder(shapes, (2, 2), mid, 0).folded().values()) for mid in (1.0, 0.5)}
    assert sizes[1.0] / 1e6 == pytest.approx(1.05, abs=0.01)
    assert sizes[0.5] / 1e6 == pytest.approx(0.38, abs=0.01)


def test_weights_are_fixed_by_the_seed_alone() -> None:
    torch.manual_seed(1)
    first = Decoder(SHAPES, (2, 2), 1.0, seed=3).folded()
    torch.manual_seed(2)
    again, other = Decoder(SHAPES, (2, 2), 1.0, seed=3).folded(), Decoder(SHAPES, (2, 2), 1.0, seed=4).folded()
    assert all((first[key] == again[key]).all() for key in first)
    assert (first["layer1.conv1.weight"] != other["layer1.conv1.weight"]).any()


# The graph.


@pytest.fixture(scope="module")
def backbone() -> bytes:
    return export_backbone("builtin", input_size=SIZE)


def widths(backbone: bytes) -> dict[str, tuple[int, int, int]]:
    engine = open_engine(backbone)
    return {tap.name: (tap.channels, tap.height, tap.width) for tap in engine.info.taps}


def pictures(batch: int) -> NDArray[np.uint8]:
    return np.random.default_rng(3).integers(0, 256, (batch, *SIZE, 3), dtype=np.uint8)


@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime"])
def test_the_graph_gives_what_numpy_and_torch_give_at_batch_1_and_4(backbone: bytes, runtime: str) -> None:
    pytest.importorskip(runtime)
    shapes = widths(backbone)
    decoder = settled(Decoder(shapes, (2, 2), 0.5, seed=2))
    weights = decoder.folded()
    graph = write_decoder_graph(backbone, weights, LAYERS, {"head": "hfra"})
    images = pictures(4)
    taps = open_engine(backbone, runtime=runtime).infer(images)
    rebuilt = reference.decode(taps["layer3"], weights, {layer: shape[1:] for layer, shape in shapes.items()})
    with torch.inference_mode():
        in_torch = decoder(torch.from_numpy(taps["layer3"]))
    engine = open_engine(graph, runtime=runtime)
    assert [tap.name for tap in engine.info.taps] == [residual_name(layer) for layer in LAYERS]
    together = engine.infer(images)
    for layer in LAYERS:
        name = residual_name(layer)
        wanted = reference.residual(taps[layer], rebuilt[layer])
        assert relative(residual(torch.from_numpy(taps[layer]), in_torch[layer]).numpy(), wanted) < 1e-4
        assert together[name].shape == (4, 1, *shapes[layer][1:])
        assert relative(together[name][:, 0], wanted) < 1e-4
        for row in range(4):
            alone = engine.infer(images[row : row + 1])[name]
            assert relative(alone[0, 0], wanted[row]) < 1e-4


@pytest.mark.parametrize("size", [(256, 256), (224, 224), (64, 64)])
def test_shapes_and_the_backbones_constants_stay_what_they_are(size: tuple[int, int]) -> None:
    backbone = export_backbone("builtin", input_size=size)
    shapes = widths(backbone)
    assert [shape[1:] for shape in shapes.values()] == [(size[0] // s, size[1] // s) for s in (4, 8, 16)]
    weights = Decoder(shapes, level_factors([s[1:] for s in shapes.values()]), 0.25, 0).folded()
    graph = write_decoder_graph(backbone, weights, LAYERS, {"head": "hfra"})
    (before, facts), (after, more) = read_constants(backbone), read_constants(graph)
    assert all(after[key].tobytes() == before[key].tobytes() for key in before)
    assert all(after[f"decoder.{key}"].tobytes() == weights[key].tobytes() for key in weights)
    assert more == {**facts, "head": "hfra"}
    assert write_decoder_graph(backbone, weights, LAYERS, {"head": "hfra"}) == graph
    engine = open_engine(graph)
    maps = engine.infer(np.zeros((1, *size, 3), np.uint8))
    assert [m.shape for m in maps.values()] == [(1, 1, *shape[1:]) for shape in shapes.values()]


def test_a_graph_that_is_extended_by_nothing_is_the_same_graph(backbone: bytes) -> None:
    builder, taps, facts = GraphBuilder.extend(backbone)
    for name, tap in taps.items():
        builder.output(tap, name)
    images = pictures(1)
    got, wanted = open_engine(builder.build("builtin", facts)).infer(images), open_engine(backbone).infer(images)
    assert all((got[name] == wanted[name]).all() for name in wanted)


def test_nan_in_the_weights_is_nan_in_the_maps_and_never_zero(backbone: bytes) -> None:
    weights = Decoder(widths(backbone), (2, 2), 0.25, 0).folded()
    weights["layer1.out.bias"][:] = np.nan
    for runtime in ("openvino", "onnxruntime"):
        pytest.importorskip(runtime)
        engine = open_engine(write_decoder_graph(backbone, weights, LAYERS, {}), runtime=runtime)
        maps = engine.infer(pictures(1))
        assert np.isnan(maps["residual_layer1"]).all()
        spec = {"levels": list(maps)} | {f"shape_{name}": list(m.shape[1:]) for name, m in maps.items()}
        with pytest.raises(HeadError, match="residual_layer1 is not finite"):
            load_head("hfra", spec, {}).residuals(maps)


def test_what_does_not_fit_is_one_clear_line(backbone: bytes) -> None:
    weights = Decoder(widths(backbone), (2, 2), 0.25, 0).folded()
    wrong = {
        "lacks 'layer1.conv2.bias'": {k: v for k, v in weights.items() if k != "layer1.conv2.bias"},
        "decoder's layer3.conv1": {**weights, "layer3.conv1.weight": weights["layer3.conv2.weight"]},
    }
    for message, arrays in wrong.items():
        with pytest.raises(EngineError, match=message):
            write_decoder_graph(backbone, arrays, LAYERS, {})
    with pytest.raises(EngineError, match="no tap 'layer4'; it has layer1"):
        write_decoder_graph(backbone, weights, ("layer4",), {})
    with pytest.raises(EngineError, match="cannot be read"):
        write_decoder_graph(b"no graph", weights, LAYERS, {})
    with pytest.raises(EngineError, match="25x25 is none of 13x13"):
        level_factors([(50, 50), (25, 25), (13, 13)])
    with pytest.raises(EngineError, match="from shallow to deep"):
        level_factors([(8, 8), (16, 16)])


# The run-time head and the tail.

SPEC = {"levels": ["residual_a", "residual_b"], "shape_residual_a": [1, 4, 6], "shape_residual_b": [1, 2, 3]}


def maps(batch: int) -> dict[str, NDArray[np.float32]]:
    rng = np.random.default_rng(7)
    return {
        "residual_a": rng.random((batch, 1, 4, 6), np.float32),
        "residual_b": rng.random((batch, 1, 2, 3), np.float32),
    }


def test_the_head_hands_the_maps_on_as_they_are() -> None:
    head, taps = load_head("hfra", SPEC, {}), maps(3)
    before = {name: tap.copy() for name, tap in taps.items()}
    found = head.residuals(taps)
    assert head.taps == ("residual_a", "residual_b")
    assert found.norms is None
    for name, level in zip(head.taps, found.levels, strict=True):
        assert np.shares_memory(level, taps[name])
        assert (level == before[name][:, 0]).all()
    assert (head.residuals(maps(0)).levels[0].shape) == (0, 4, 6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, -1e-3])
def test_what_is_no_level_map_is_refused(bad: float) -> None:
    taps = maps(2)
    taps["residual_b"][1, 0, 1, 2] = bad
    with pytest.raises(HeadError, match="map residual_b is not finite"):
        load_head("hfra", SPEC, {}).residuals(taps)


def test_maps_of_another_bundle_are_refused() -> None:
    head, taps = load_head("hfra", SPEC, {}), maps(2)
    with pytest.raises(HeadError, match="no map 'residual_b'; it gives residual_a"):
        head.residuals({"residual_a": taps["residual_a"]})
    with pytest.raises(HeadError, match=r"map residual_b is float32 \[2, 1, 4, 6\]"):
        head.residuals({**taps, "residual_b": taps["residual_a"]})
    with pytest.raises(HeadError, match="float64"):
        head.residuals({**taps, "residual_b": taps["residual_b"].astype(np.float64)})


@pytest.mark.parametrize(
    ("spec", "arrays", "says"),
    [
        ({}, {}, "incomplete"),
        ({"layers": ["layer3"], "pool": 2}, {"mu_layer3": np.zeros(3)}, "incomplete"),
        (SPEC, {"mu_layer3": np.zeros(3)}, "mu_layer3 came with it"),
        ({**SPEC, "shape_residual_b": [2, 2, 3]}, {}, "must be"),
        ({**SPEC, "levels": ["residual_a", "residual_a"]}, {}, "different levels"),
        ({**SPEC, "levels": []}, {}, "different levels"),
        ({"levels": ["gradient"], "shape_gradient": [1, 4, 6]}, {}, "'gradient' is no level map of hfra"),
    ],
)
def test_a_bundle_of_another_method_is_refused(spec: dict[str, Any], arrays: dict[str, Any], says: str) -> None:
    with pytest.raises(HeadError, match=says):
        load_head("hfra", spec, arrays)


def test_printed_weights_give_the_printed_sum_also_after_the_blur() -> None:
    sizes = [(64, 64), (32, 32), (16, 16)]
    weights = reference.printed_weights(sizes)
    tail = Tail(TailSpec(fuse="weights", weights=weights, smooth="gauss", sigma=4.0))
    fused, score = tail.apply([np.ones((1, *size), np.float32) for size in sizes])
    np.testing.assert_allclose(fused, 1 / 4096 + 1 / 1024 + 1 / 256, rtol=1e-5)
    assert score[0] == fused.max()
    uniform, _ = Tail(TailSpec(fuse="sum", smooth="gauss", sigma=4.0)).apply(
        [np.full((1, *size), 0.25, np.float32) for size in sizes]
    )
    np.testing.assert_allclose(uniform, 0.75, rtol=1e-5)


def test_the_score_is_the_largest_value_of_the_map_exactly() -> None:
    rng = np.random.default_rng(9)
    tail = Tail(TailSpec(fuse="sum", smooth="gauss", sigma=4.0))
    fused, score = tail.apply([rng.random((3, size, size), np.float32) for size in (64, 32, 16)])
    assert fused.shape == (3, 256, 256)
    assert [float(s) for s in score] == [float(m.max()) for m in fused]


# What training reaches.


def task_of(count: int, *, mid: float = 1.0, shapes: dict[str, tuple[int, int, int]] = SHAPES) -> DecoderTask:
    factors = level_factors([shape[1:] for shape in shapes.values()])
    return DecoderTask(Decoder(shapes, factors, mid, 0), features(count, shapes=shapes), np.arange(count), "cpu")


def test_eight_pictures_are_learnt_by_heart_and_a_swapped_block_stands_out() -> None:
    task = task_of(8)
    before = {layer: x.tobytes() for layer, x in task.features.items()}
    trained = train(task, Schedule(epochs=220, batch=8, lr=0.4))
    assert trained.history[-1] < 0.02 < trained.history[0]
    assert {layer: x.tobytes() for layer, x in task.features.items()} == before
    weights = task.module.folded()
    # Detail that the deepest level does not account for: there, a change is itself what the others are rebuilt from
    # (and is rebuilt, see below).
    planted = {layer: x[:1].astype(np.float32) for layer, x in task.features.items()}
    rebuilt = reference.decode(planted["layer3"], weights, SIZES)
    for layer in LAYERS[:2]:
        s = SHAPES[layer][1] // 4
        planted[layer][0, :, s : 2 * s, 2 * s : 4 * s] = task.features[layer][5, :, s : 2 * s, 2 * s : 4 * s]
        level = reference.residual(planted[layer], rebuilt[layer])[0]
        row, column = np.unravel_index(level.argmax(), level.shape)
        assert s <= row < 2 * s, layer
        assert 2 * s <= column < 4 * s, layer


def test_one_wide_level_learns_the_identity_and_one_narrow_channel_cannot() -> None:
    shapes = {"layer3": (32, 6, 6)}
    rng = np.random.default_rng(0)
    losses = {}
    for mid in (1.0, 1 / 32):
        task = task_of(16, mid=mid, shapes=shapes)
        task.features = {"layer3": rng.normal(size=(16, *shapes["layer3"])).astype(np.float16)}
        losses[mid] = train(task, Schedule(epochs=60, batch=8, lr=0.4)).history[-1]
    assert losses[1.0] < 0.4
    assert losses[1 / 32] > 0.7


def test_cached_features_train_as_the_features_themselves_up_to_their_rounding() -> None:
    cached = task_of(8)
    direct = task_of(8)
    rng = np.random.default_rng(1)
    exact = {
        layer: x.astype(np.float32) * (1 + rng.uniform(-2e-4, 2e-4, x.shape)) for layer, x in cached.features.items()
    }
    direct.features = {layer: x.astype(np.float32) for layer, x in exact.items()}
    cached.features = {layer: x.astype(np.float16) for layer, x in exact.items()}
    schedule = Schedule(epochs=5, batch=4, lr=0.05)
    first, second = train(cached, schedule).history, train(direct, schedule).history
    np.testing.assert_allclose(first, second, rtol=5e-3)
