"""FAIR's network in torch: what is trained. Its folded weights go into the bundle's graph. Needs torch to import.

Source: FAIR (Liu et al., Frequency-aware Image Restoration); the layers as in :func:`edge.heads.fair.restore`, the
training as its code has it (a U-Net whose skips are added, not concatenated; Adam; squared error plus 1 - SSIM).
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from calibration.synthesis import Corruptor
from calibration.training import Indices
from edge.heads.fair import CUTOFF, GREY, ORDER, SCALES, Filter, parameter_shapes, transfer

WINDOW, SIGMA = 11, 1.5  # of SSIM's Gaussian, pixels
SSIM_C = (0.01**2, 0.03**2)  # for pictures in [0, 1]


class Restorer(nn.Module):
    """Rebuilds a picture from its high frequencies: [B, inputs, H, W] -> RGB [B, 3, H, W], not clipped; H and W are
    multiples of 16. width: channels at full resolution. ``seed`` fixes the weights."""

    def __init__(self, width: int, inputs: int, seed: int) -> None:
        super().__init__()
        self.convolutions = nn.ModuleDict()
        self.norms = nn.ModuleDict()
        for name, shape in parameter_shapes(width, inputs).items():
            block, kind = name.rsplit(".", 1)
            if kind == "weight":
                after, before = shape[:2]
                last = block == "out"
                # Where a batch norm follows, the printed network's bias would do nothing.
                self.convolutions[_key(block)] = nn.Conv2d(before, after, 3, padding=1, bias=last)
                if not last:
                    self.norms[_key(block)] = nn.BatchNorm2d(after)
        random = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for convolution in self.convolutions.values():
                convolution.weight.normal_(0.0, 0.02, generator=random)
            self.convolutions["out"].bias.zero_()
            for norm in self.norms.values():
                norm.weight.normal_(1.0, 0.02, generator=random)

    def forward(self, x: Tensor) -> Tensor:
        kept: list[Tensor] = []
        for scale in range(1, SCALES + 1):
            if kept:
                x = functional.max_pool2d(x, 2)
            x = self._block(self._block(x, f"encoder{scale}.conv1"), f"encoder{scale}.conv2")
            kept.append(x)
        for scale in range(SCALES - 1, 0, -1):
            x = functional.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=True)
            x = self._block(x, f"decoder{scale}.up") + kept[scale - 1]
            x = self._block(self._block(x, f"decoder{scale}.conv1"), f"decoder{scale}.conv2")
        return self.convolutions["out"](x)

    def folded(self) -> dict[str, NDArray[np.float32]]:
        """The weights of :func:`edge.heads.fair.restore`: batch norms in evaluation, merged into the convolutions
        before them in double precision."""
        arrays: dict[str, NDArray[np.float32]] = {}
        for key, convolution in self.convolutions.items():
            weight = _double(convolution.weight)
            if key in self.norms:
                norm = self.norms[key]
                gamma, beta, mean, var = (
                    _double(value) for value in (norm.weight, norm.bias, norm.running_mean, norm.running_var)
                )
                scale = gamma / np.sqrt(var + norm.eps)
                weight, bias = weight * scale[:, None, None, None], beta - mean * scale
            else:
                bias = _double(convolution.bias)
            block = key.replace("_", ".")
            arrays[f"{block}.weight"] = np.ascontiguousarray(weight, np.float32)
            arrays[f"{block}.bias"] = bias.astype(np.float32)
        return arrays

    def _block(self, x: Tensor, name: str) -> Tensor:
        key = _key(name)
        return functional.relu(self.norms[key](self.convolutions[key](x)), inplace=True)


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Mean structural similarity of [B, C, H, W] in [0, 1], window 11, sigma 1.5, zeros around: a scalar <= 1.

    The code guesses the range of values from the picture's extremes; here it is 1, which it always is for the
    target."""
    mean_a, square_a, product = (_blur(x) for x in (a, a * a, a * b))
    mean_b, square_b = _blur(b), _blur(b * b)
    variances = square_a - mean_a * mean_a + square_b - mean_b * mean_b
    covariance = product - mean_a * mean_b
    c1, c2 = SSIM_C
    similar = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    return (similar / ((mean_a * mean_a + mean_b * mean_b + c1) * (variances + c2))).mean()


def loss_of(restored: Tensor, target: Tensor) -> Tensor:
    """Mean squared error plus 1 - SSIM."""
    return functional.mse_loss(restored, target) + (1.0 - ssim(restored, target))


class HighPass(nn.Module):
    """Pictures as the network gets them: uint8 RGB [B, H, W, 3] -> float32 [B, 1, H, W] (``sobel``: 2 channels).
    The same filters as :func:`edge.heads.fair.seen`."""

    def __init__(
        self, size: tuple[int, int], kind: Filter = "butterworth", order: int = ORDER, cutoff: float = CUTOFF
    ) -> None:
        super().__init__()
        self.kind = kind
        self.register_buffer("grey", torch.tensor(GREY) / 255.0)
        if kind != "sobel":
            gain = transfer(size, kind, order, cutoff)[:, : size[1] // 2 + 1]
            self.register_buffer("gain", torch.from_numpy(gain.astype(np.float32)))
        else:
            across = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]])
            self.register_buffer("kernels", torch.stack([across, across.T])[:, None])

    def forward(self, pictures: Tensor) -> Tensor:
        luma = (pictures.to(torch.float32) @ self.grey)[:, None]
        if self.kind == "sobel":
            return functional.conv2d(functional.pad(luma, (1, 1, 1, 1), mode="reflect"), self.kernels)
        return torch.fft.irfft2(torch.fft.rfft2(luma) * self.gain, s=luma.shape[-2:])


class FairTask:
    """The network over corrupted pictures, for :func:`calibration.training.train`.

    pictures: uint8 [N, H, W, 3] RGB (may be memory-mapped: a step reads its rows alone); train: the rows to learn
    from. bfloat16: convolutions in half the bits; parameters, batch statistics and the loss stay in float32."""

    def __init__(
        self,
        restorer: Restorer,
        high_pass: HighPass,
        pictures: NDArray[np.uint8],
        train: Indices,
        corrupt: Corruptor,
        device: str,
        bfloat16: bool,
    ) -> None:
        self.pictures, self.train, self.rows, self.corrupt = pictures, train, len(train), corrupt
        self.device, self.bfloat16 = torch.device(device), bfloat16
        self.high_pass = high_pass.to(self.device)
        self.module = restorer.to(self.device, memory_format=torch.channels_last)
        # lr is set by the schedule before every step. Not fused: that pairs values by their place in memory, and
        # after a resume the moments lie channels first.
        self.optimizer = torch.optim.Adam(self.module.parameters(), lr=0.0)

    def loss(self, rows: Indices, random: np.random.RandomState) -> Tensor:
        pairs = [self.corrupt(self.pictures[row], random) for row in self.train[rows]]
        clean, dirty = (
            torch.from_numpy(np.stack(side)).to(self.device)
            for side in ([pair.target for pair in pairs], [pair.picture for pair in pairs])
        )
        target = clean.permute(0, 3, 1, 2).to(torch.float32).contiguous() / 255.0
        x = self.high_pass(dirty).contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16):
            restored = self.module(x)
        return loss_of(restored.to(torch.float32).contiguous(), target)


def choose_bfloat16(precision: str, device: str) -> bool:
    """Whether to train in bfloat16. ``auto``: where the processor or the GPU has instructions for it; elsewhere it is
    slower than float32."""
    if precision != "auto":
        return precision == "bf16"
    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    has = getattr(torch.cpu, "_is_avx512_bf16_supported", None)  # no public question for it as of torch 2.13
    return bool(has is not None and has())


def _blur(x: Tensor) -> Tensor:
    """Gaussian mean of [..., H, W] in both directions, zeros around."""
    return _band(x.shape[-2], x.device, x.dtype) @ x @ _band(x.shape[-1], x.device, x.dtype)


@cache
def _band(length: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """The window at every place as a symmetric matrix [length, length]: its product takes a third of the time of a
    convolution of one channel, on a CPU."""
    apart = np.abs(np.arange(length)[:, None] - np.arange(length))
    gauss = np.exp(-(np.arange(-(WINDOW // 2), WINDOW // 2 + 1) ** 2) / (2 * SIGMA**2))
    band = np.where(apart <= WINDOW // 2, np.exp(-(apart**2) / (2 * SIGMA**2)), 0.0) / gauss.sum()
    return torch.from_numpy(band).to(device, dtype)


def _key(block: str) -> str:
    return block.replace(".", "_")  # torch takes no dots in a module's name


def _double(tensor: Tensor) -> NDArray[np.float64]:
    return np.asarray(tensor.detach().cpu().contiguous().numpy(), np.float64)
