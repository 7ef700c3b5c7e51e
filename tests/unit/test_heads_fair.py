"""FAIR's arithmetic: NumPy reference, torch and the graph against each other, and the method's own oracles.

Oracles of the method's description that are tested elsewhere: noise, masks and how often each corruption is drawn in
``test_synthesis.py``; that it learns, and finds what was painted on, in ``test_calibration_fair.py``.
"""

from __future__ import annotations

import itertools
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from edge.errors import HeadError
from edge.heads import fair as reference
from edge.heads import load_head
from edge.heads.fair import Filter
from edge.heads.tail import Tail
from engines import EngineError, open_engine
from engines.fair_graph import COLOR, GRADIENT, write_fair_graph
from engines.graph import read_constants

torch = pytest.importorskip("torch", reason="needs the extra fit")
pytest.importorskip("onnx", reason="needs the extra fit")

from calibration.fair import FairFitter  # noqa: E402
from calibration.fair_network import HighPass, Restorer, loss_of, ssim  # noqa: E402

SIZE = (64, 96)  # not square: a swapped height and width must show
FILTERS: tuple[Filter, ...] = ("butterworth", "gaussian", "ideal", "sobel")
GAINS: tuple[Filter, ...] = FILTERS[:3]
RUNTIMES = ("openvino", "onnxruntime")


def noise(*shape: int, seed: int = 0) -> NDArray[np.float64]:
    return np.random.default_rng(seed).uniform(0, 1, shape)


def pictures(batch: int, size: tuple[int, int] = SIZE) -> NDArray[np.uint8]:
    """Noise of all scales."""
    rng = np.random.default_rng(3)
    total = sum(
        cv2.resize(rng.uniform(0, 64, (batch * (size[0] >> k), size[1] >> k, 3)), (size[1], batch * size[0]))
        for k in range(4)
    )
    return np.asarray(total).reshape(batch, *size, 3).astype(np.uint8)


def settled(restorer: Any) -> Any:
    """Evaluation mode, with weights and batch norms that do something."""
    random = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for module in restorer.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                for tensor, low in ((module.weight, 0.5), (module.bias, -0.2), (module.running_mean, -0.2)):
                    tensor.copy_(low + torch.rand(tensor.shape, generator=random))
                module.running_var.copy_(0.5 + torch.rand(module.running_var.shape, generator=random))
            elif isinstance(module, torch.nn.Conv2d):
                module.weight.normal_(0, (2 / module.weight[0].numel()) ** 0.5, generator=random)
        # Centred on grey, and not far from it: pictures, as a trained one gives.
        restorer.convolutions["out"].weight.mul_(0.1)
        restorer.convolutions["out"].bias.copy_(torch.tensor([0.4, 0.5, 0.6]))
    return restorer.eval()


# The high pass.


@pytest.mark.parametrize("kind", GAINS)
def test_a_gain_is_zero_at_zero_one_at_the_top_and_symmetric(kind: Filter) -> None:
    for size in ((256, 256), SIZE):
        gain = reference.transfer(size, kind)
        assert gain.shape == size
        assert gain[0, 0] == 0
        assert ((gain >= 0) & (gain <= 1)).all()
        assert gain[size[0] // 2, size[1] // 2] > 0.99
        np.testing.assert_allclose(gain, np.roll(gain[::-1], 1, axis=0), atol=1e-15)
        np.testing.assert_allclose(gain, np.roll(gain[:, ::-1], 1, axis=1), atol=1e-15)
        spectrum = np.fft.fft2(noise(*size)) * gain
        assert np.abs(np.fft.ifft2(spectrum).imag).max() < 1e-15


def test_gains_have_their_printed_values() -> None:
    size = (256, 256)
    for order in (1, 2, 3, 5):
        assert reference.transfer(size, "butterworth", order)[0, 30] == pytest.approx(0.5, abs=1e-12)
    butterworth = reference.transfer(size)
    assert butterworth[60, 0] == pytest.approx(0.941, abs=5e-4)
    assert butterworth[0, 128] == pytest.approx(0.997, abs=5e-4)
    assert reference.transfer(size, "gaussian")[30, 0] == pytest.approx(1 - np.exp(-0.5), abs=1e-12)
    ideal = reference.transfer(size, "ideal")
    assert ideal[0, 30] == ideal[18, 24] == ideal[29, 3] == 0  # 18, 24 lies on the circle
    assert ideal[0, 31] == ideal[22, 21] == ideal[128, 128] == 1
    # By cycles per pixel: the same frequency is the same in a larger picture and along either side.
    wide = reference.transfer((128, 512), "butterworth")
    assert wide[15, 0] == pytest.approx(0.5, abs=1e-12)
    assert wide[0, 60] == pytest.approx(0.5, abs=1e-12)
    with pytest.raises(ValueError, match="sobel has no gain"):
        reference.transfer(size, "sobel")


@pytest.mark.parametrize("kind", GAINS)
def test_the_high_pass_takes_constants_out_is_linear_and_follows_a_shift(kind: Filter) -> None:
    gain = reference.transfer(SIZE, kind)
    x, y = noise(2, 1, *SIZE)
    assert np.abs(reference.high_pass(np.full((1, *SIZE), 0.7), gain)).max() < 1e-12
    assert np.abs(reference.high_pass(x, gain).mean()) < 1e-15
    mixed = reference.high_pass(2 * x - 3 * y, gain)
    np.testing.assert_allclose(mixed, 2 * reference.high_pass(x, gain) - 3 * reference.high_pass(y, gain), atol=1e-13)
    moved = reference.high_pass(np.roll(x, (5, -9), (-2, -1)), gain)
    np.testing.assert_allclose(moved, np.roll(reference.high_pass(x, gain), (5, -9), (-2, -1)), atol=1e-13)


@pytest.mark.parametrize("kind", GAINS)
def test_a_cosine_passes_with_the_gain_of_its_frequency_and_real_and_shifted_transforms_agree(kind: Filter) -> None:
    gain, (height, width) = reference.transfer(SIZE, kind), SIZE
    y, x = np.mgrid[:height, :width]
    for down, across in ((3, 0), (0, 11), (7, 13), (20, 40)):
        wave = np.cos(2 * np.pi * (down * y / height + across * x / width))
        np.testing.assert_allclose(reference.high_pass(wave, gain), gain[down, across] * wave, atol=1e-12)
    image = noise(*SIZE)
    shifted = np.fft.fftshift(np.fft.fft2(image)) * np.fft.fftshift(gain)
    np.testing.assert_allclose(
        reference.high_pass(image, gain), np.fft.ifft2(np.fft.ifftshift(shifted)).real, atol=1e-12
    )


def test_a_kernel_of_31_taps_is_the_default_filter_to_a_thousandth() -> None:
    """What a device without matrix products would do; our graph has the exact filter."""
    size = (256, 256)
    gain = reference.transfer(size)
    kernel = np.fft.fftshift(np.fft.ifft2(1 - gain).real)[128 - 15 : 128 + 16, 128 - 15 : 128 + 16]
    kernel /= kernel.sum()
    image = noise(*size)
    padded = np.pad(image, 15, mode="wrap")
    low = cv2.filter2D(padded, -1, kernel, borderType=cv2.BORDER_CONSTANT)[15:-15, 15:-15]
    np.testing.assert_allclose(image - low, reference.high_pass(image, gain), atol=1e-3)


def test_sobel_is_opencvs() -> None:
    image = noise(1, 1, *SIZE)
    got = reference.sobel(image)
    np.testing.assert_allclose(got[0, 0], cv2.Sobel(image[0, 0], cv2.CV_64F, 1, 0, ksize=3), atol=1e-12)
    np.testing.assert_allclose(got[0, 1], cv2.Sobel(image[0, 0], cv2.CV_64F, 0, 1, ksize=3), atol=1e-12)


def test_grey_is_opencvs() -> None:
    image = pictures(1)
    got = reference.grey(image.transpose(0, 3, 1, 2) / 255)
    wanted = cv2.cvtColor(image[0].astype(np.float32) / 255, cv2.COLOR_RGB2GRAY)
    np.testing.assert_allclose(got[0, 0], wanted, atol=1e-6)


@pytest.mark.parametrize("kind", FILTERS)
def test_torch_filters_as_numpy_does(kind: Filter) -> None:
    images = pictures(2)
    got = HighPass(SIZE, kind, 3, 0.1)(torch.from_numpy(images)).numpy()
    wanted = reference.seen(images.transpose(0, 3, 1, 2) / 255, kind, 3, 0.1)
    assert got.shape == wanted.shape == (2, 2 if kind == "sobel" else 1, *SIZE)
    np.testing.assert_allclose(got, wanted, atol=2e-6)


# Residuals and the loss.


def test_ssim_is_one_for_equal_pictures_symmetric_and_never_more() -> None:
    a, b = (torch.from_numpy(noise(2, 3, 32, 40, seed=seed)) for seed in (1, 2))
    assert float(ssim(a, a)) == pytest.approx(1, abs=1e-12)
    assert float(loss_of(a, a)) == pytest.approx(0, abs=1e-12)
    assert float(ssim(a, b)) == pytest.approx(float(ssim(b, a)), abs=1e-12)
    assert -1 <= float(ssim(a, b)) < 0.2
    assert float(loss_of(a, b)) == pytest.approx(float(((a - b) ** 2).mean()) + 1 - float(ssim(a, b)))


def test_ssim_is_the_formula_with_an_eleven_pixel_window_and_zeros_around() -> None:
    a, b = noise(2, 24, 30, seed=3)
    window = cv2.getGaussianKernel(11, 1.5)
    window = window @ window.T

    def mean(x: NDArray[np.float64]) -> NDArray[np.float64]:
        return cv2.filter2D(x, -1, window, borderType=cv2.BORDER_CONSTANT)

    variance_a, variance_b = mean(a * a) - mean(a) ** 2, mean(b * b) - mean(b) ** 2
    covariance = mean(a * b) - mean(a) * mean(b)
    above = (2 * mean(a) * mean(b) + 1e-4) * (2 * covariance + 9e-4)
    wanted = above / ((mean(a) ** 2 + mean(b) ** 2 + 1e-4) * (variance_a + variance_b + 9e-4))
    got = ssim(torch.from_numpy(a)[None, None], torch.from_numpy(b)[None, None])
    assert float(got) == pytest.approx(wanted.mean(), abs=1e-10)


def test_equal_pictures_leave_nothing() -> None:
    a = noise(2, 3, *SIZE)
    np.testing.assert_allclose(reference.gms(a, a), 1, atol=1e-9)
    assert reference.gradient_residual(a, a).max() < 1e-9
    assert reference.color_residual(a, a).max() == 0
    b = noise(2, 3, *SIZE, seed=1)
    gms = reference.gms(a, b)
    assert 0 < gms.min() < gms.max() <= 1
    np.testing.assert_array_equal(gms, reference.gms(b, a))


def test_the_gradient_residual_is_the_mean_of_two_scales() -> None:
    """Against torch's operators."""
    a, b = (torch.from_numpy(noise(2, 3, *SIZE, seed=seed)) for seed in (4, 5))
    prewitt = torch.tensor([[1.0, 0, -1]] * 3, dtype=torch.float64) / 3
    kernels = torch.stack([prewitt, prewitt.T])[:, None]
    maps = []
    for scale in (1, 2):
        sides = [torch.nn.functional.avg_pool2d(x, scale).flatten(0, 1)[:, None] for x in (a, b)]
        squares = [
            torch.nn.functional.conv2d(x, kernels, padding=1).square().sum(1, keepdim=True) + 1e-12 for x in sides
        ]
        similar = (2 * (squares[0] * squares[1]).sqrt() + 0.0026) / (squares[0] + squares[1] + 0.0026 + 1e-12)
        similar = similar.reshape(2, 3, *similar.shape[2:])
        maps.append(torch.nn.functional.interpolate(similar, SIZE, mode="bilinear", align_corners=False))
    wanted = 1 - torch.stack(maps).mean((0, 2))
    np.testing.assert_allclose(reference.gradient_residual(a.numpy(), b.numpy()), wanted.numpy(), atol=1e-12)


def test_lab_has_its_known_colours() -> None:
    def of(*color: float) -> list[float]:
        return reference.lab(np.array(color, np.float64).reshape(1, 3, 1, 1))[0, :, 0, 0].tolist()

    assert of(1, 1, 1) == pytest.approx([100, 0, 0], abs=1e-2)
    assert of(0, 0, 0) == pytest.approx([0, 0, 0], abs=1e-2)
    assert of(1, 0, 0) == pytest.approx([53.2, 80.1, 67.2], abs=0.1)
    for value in (0.001, 0.04, 0.05, 0.2, 0.5, 0.9):
        assert of(value, value, value)[1:] == pytest.approx([0, 0], abs=1e-2)
    image = pictures(1)
    opencv = cv2.cvtColor(image[0].astype(np.float32) / 255, cv2.COLOR_RGB2Lab)
    ours = reference.lab(image.transpose(0, 3, 1, 2) / 255)[0].transpose(1, 2, 0)
    np.testing.assert_allclose(ours, opencv, atol=0.6)  # OpenCV interpolates in tables


def test_colour_is_seen_brightness_is_not_and_what_lies_outside_is_clipped() -> None:
    grey = np.repeat(noise(1, 1, 8, 8), 3, axis=1) * 0.8
    assert reference.color_residual(grey, grey * 1.2).max() < 1e-12
    red = np.broadcast_to(np.array([1.0, 0, 0]).reshape(1, 3, 1, 1), (1, 3, 4, 4))
    white = np.ones((1, 3, 4, 4))
    np.testing.assert_allclose(reference.color_residual(red, white), 80.1**2 + 67.2**2, rtol=2e-3)
    np.testing.assert_array_equal(reference.color_residual(red * 3 - 1, white), reference.color_residual(red, white))


def test_the_mean_filter_of_ones_counts_the_zeros_around() -> None:
    spec = FairFitter.defaults.tail.model_copy(update={"size": (48, 64)})
    levels = [np.ones((1, 48, 64), np.float32), np.zeros((1, 48, 64), np.float32)]
    amap = Tail(spec).apply(levels)[0][0]
    assert amap[24, 32] == pytest.approx(1)
    assert amap[0, 32] == amap[24, 0] == pytest.approx(11 * 21 / 441)
    assert amap[0, 0] == amap[-1, -1] == pytest.approx(11 * 11 / 441)
    amap, scores = Tail(spec).apply([levels[1], levels[0] * 900])
    assert scores[0] == pytest.approx(900 * 3e-4)  # k of the colour


# The network.


@pytest.mark.parametrize(("width", "published"), [(128, 69_046), (64, 17_271), (32, 4_322)])
def test_the_network_has_the_published_number_of_parameters(width: int, published: int) -> None:
    shapes = reference.parameter_shapes(width, 1)
    count = sum(int(np.prod(shape)) for shape in shapes.values())
    norms = sum(2 * shape[0] for name, shape in shapes.items() if name.endswith("bias") and name != "out.bias")
    assert (count + norms) / 1000 == pytest.approx(published, abs=0.5)


def test_torch_trains_these_parameters_but_the_biases_that_a_norm_takes_away() -> None:
    restorer = Restorer(8, 1, 0)
    shapes = reference.parameter_shapes(8, 1)
    idle = sum(shape[0] for name, shape in shapes.items() if name.endswith("bias") and name != "out.bias")
    trained = sum(parameter.numel() for parameter in restorer.parameters())
    assert trained == sum(int(np.prod(shape)) for shape in shapes.values()) - idle + 2 * idle
    assert {name: array.shape for name, array in restorer.folded().items()} == shapes


@pytest.mark.parametrize("inputs", [1, 2])
def test_folded_weights_in_numpy_give_what_torch_gives(inputs: int) -> None:
    restorer = settled(Restorer(4, inputs, 1))
    x = noise(2, inputs, 32, 48) - 0.5
    with torch.inference_mode():
        wanted = restorer.double()(torch.from_numpy(x)).numpy()
    weights = restorer.folded()
    assert all(array.dtype == np.float32 for array in weights.values())
    got = reference.restore(x, {name: array.astype(np.float64) for name, array in weights.items()})
    assert got.shape == wanted.shape == (2, 3, 32, 48)
    assert got.std() > 0.01
    np.testing.assert_allclose(got, wanted, atol=1e-6)


def test_skips_are_added_and_fine_detail_passes_without_the_bottleneck() -> None:
    weights = settled(Restorer(4, 1, 1)).folded()
    for scale in range(1, 5):
        for kind in ("weight", "bias"):
            weights[f"decoder{scale}.up.{kind}"][:] = 0  # nothing comes from below any more
    x = np.zeros((1, 1, 32, 32), np.float32)
    x[0, 0, 13, 17] = 1
    detail = reference.restore(x, weights) - reference.restore(0 * x, weights)
    assert np.unravel_index(np.abs(detail[0]).sum(axis=0).argmax(), (32, 32))[0] in range(9, 18)
    assert np.abs(detail).max() > 1e-3
    with torch.inference_mode():
        doubled = torch.nn.functional.interpolate(
            torch.from_numpy(noise(1, 2, 5, 7)), scale_factor=2.0, mode="bilinear", align_corners=True
        )
    np.testing.assert_allclose(reference.double(noise(1, 2, 5, 7)), doubled.numpy(), atol=1e-12)


def test_weights_are_fixed_by_the_seed_alone() -> None:
    torch.manual_seed(1)
    first = Restorer(4, 1, seed=3).folded()
    torch.manual_seed(2)
    again, other = Restorer(4, 1, seed=3).folded(), Restorer(4, 1, seed=4).folded()
    assert all((first[key] == again[key]).all() for key in first)
    assert (first["encoder1.conv1.weight"] != other["encoder1.conv1.weight"]).any()


# The graph.


def written(size: tuple[int, int], weights: Any, kind: Filter = "butterworth") -> bytes:
    gain = None if kind == "sobel" else reference.transfer(size, kind)
    return write_fair_graph(size, weights, gain, {"made": "here"})


@pytest.mark.parametrize(("runtime", "kind"), list(itertools.product(RUNTIMES, FILTERS)))
def test_the_graph_gives_what_numpy_gives_at_batch_1_and_3(runtime: str, kind: Filter) -> None:
    pytest.importorskip(runtime)
    weights = settled(Restorer(4, 2 if kind == "sobel" else 1, 2)).folded()
    engine = open_engine(written(SIZE, weights, kind), runtime=runtime)
    images = pictures(3)
    gradient, color = reference.levels(images, {key: w.astype(np.float64) for key, w in weights.items()}, kind)
    assert gradient.max() > 0.2
    assert color.max() > 100
    assert [(tap.name, tap.channels, tap.height, tap.width) for tap in engine.info.taps] == [
        (GRADIENT, 1, *SIZE),
        (COLOR, 1, *SIZE),
    ]
    together = engine.infer(images)
    for rows in (slice(0, 3), slice(1, 2)):
        found = together if rows == slice(0, 3) else engine.infer(np.ascontiguousarray(images[rows]))
        np.testing.assert_allclose(found[GRADIENT][:, 0], gradient[rows], atol=1e-3)
        np.testing.assert_allclose(3e-4 * found[COLOR][:, 0], 3e-4 * color[rows], atol=1e-3)
        assert found[GRADIENT].min() >= 0
        assert found[COLOR].min() >= 0


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_black_white_and_plain_pictures_give_finite_maps(runtime: str) -> None:
    pytest.importorskip(runtime)
    weights = settled(Restorer(4, 1, 2)).folded()
    engine = open_engine(written(SIZE, weights), runtime=runtime)
    for value in (0, 1, 90, 255):
        images = np.full((1, *SIZE, 3), value, np.uint8)
        found = engine.infer(images)
        gradient, color = reference.levels(images, {key: w.astype(np.float64) for key, w in weights.items()})
        np.testing.assert_allclose(found[GRADIENT][:, 0], gradient, atol=1e-3)
        np.testing.assert_allclose(3e-4 * found[COLOR][:, 0], 3e-4 * color, atol=1e-3)


def test_equal_calls_give_equal_bytes_and_the_weights_are_in_them() -> None:
    weights = settled(Restorer(4, 1, 2)).folded()
    graph = written(SIZE, weights)
    assert written(SIZE, weights) == graph
    constants, facts = read_constants(graph)
    assert facts == {"head": "fair", "made": "here"}
    assert all(constants[name].tobytes() == array.tobytes() for name, array in weights.items())


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_what_is_not_finite_never_becomes_a_map(runtime: str) -> None:
    pytest.importorskip(runtime)
    weights = settled(Restorer(4, 1, 2)).folded()
    bad = {**weights, "encoder2.conv1.bias": np.full(8, np.nan, np.float32)}
    with pytest.raises(EngineError, match=r"network's encoder2.conv1.bias is not finite"):
        written(SIZE, bad)
    # Finite weights whose sums are not: the clipping before the colours must not hide it.
    huge = {**weights, "out.weight": weights["out.weight"] * np.float32(1e38), "out.bias": np.full(3, 3e38, np.float32)}
    maps = open_engine(written(SIZE, huge), runtime=runtime).infer(pictures(1))
    assert not np.isfinite(maps[GRADIENT]).all()
    spec = {"levels": list(maps)} | {f"shape_{name}": list(m.shape[1:]) for name, m in maps.items()}
    with pytest.raises(HeadError, match="map gradient is not finite"):
        load_head("fair", spec, {}).residuals(maps)


def test_what_does_not_fit_is_one_clear_line() -> None:
    weights = Restorer(4, 1, 0).folded()
    wrong: dict[str, tuple[tuple[int, int], Any, Any]] = {
        "multiples of 16, not 40x64": ((40, 64), weights, reference.transfer((40, 64))),
        "symmetric gain for 64x96": (SIZE, weights, np.triu(np.ones(SIZE))),
        r"symmetric gain for 64x96, not \[32, 32\]": (SIZE, weights, reference.transfer((32, 32))),
        "lacks 'decoder2.up.bias'": (SIZE, {k: w for k, w in weights.items() if k != "decoder2.up.bias"}, None),
        "does not fit 2 channels": (SIZE, weights, None),
    }
    for message, (size, arrays, gain) in wrong.items():
        if message.startswith("lacks"):
            gain = reference.transfer(size)
        with pytest.raises(EngineError, match=message) as caught:
            write_fair_graph(size, arrays, gain, {})
        assert "\n" not in str(caught.value)
