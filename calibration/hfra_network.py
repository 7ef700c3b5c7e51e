"""HFRA's decoder in torch: what is trained. Its folded weights go into the bundle's graph. Needs torch to import.

Source: HFRA (Chen, Chen, Mao, Jiang; arXiv 2405.09148); the layers as in :mod:`engines.decoder_graph`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from calibration.training import Indices
from engines.decoder_graph import BLOCKS, EPS, SLOPE

Shape = tuple[int, int, int]


class Level(nn.Module):
    """1x1, 3x3, 1x1, each with batch norm and LeakyReLU; then a bare 1x1. ``inner``: channels of the first two."""

    def __init__(self, before: int, inner: int, channels: int) -> None:
        super().__init__()
        # A batch norm follows, so these have no bias.
        self.conv1 = nn.Conv2d(before, inner, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, channels, 1, bias=False)
        self.norm3 = nn.BatchNorm2d(channels)
        self.out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.leaky_relu(self.norm1(self.conv1(x)), SLOPE)
        x = nn.functional.leaky_relu(self.norm2(self.conv2(x)), SLOPE)
        x = nn.functional.leaky_relu(self.norm3(self.conv3(x)), SLOPE)
        return self.out(x)


class Decoder(nn.Module):
    """Rebuilds all levels from the deepest.

    shapes: layer -> [C, h, w], shallow to deep; factors: as :func:`engines.decoder_graph.level_factors`; mid: the
    share of a level's channels that its first two convolutions have, in (0, 1]. ``seed`` fixes the weights."""

    def __init__(self, shapes: Mapping[str, Shape], factors: Sequence[int], mid: float, seed: int) -> None:
        super().__init__()
        self.layers = tuple(shapes)
        self.factors = tuple(factors)
        before = shapes[self.layers[-1]][0]
        for layer in reversed(self.layers):
            channels = shapes[layer][0]
            self.add_module(layer, Level(before, max(1, round(mid * channels)), channels))
            before = channels
        random = torch.Generator().manual_seed(seed)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, SLOPE, mode="fan_out", generator=random)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, deepest: Tensor) -> dict[str, Tensor]:
        """[B, C, h, w] -> the reconstruction of every level, by layer."""
        rebuilt: dict[str, Tensor] = {}
        x = deepest
        for index, layer in enumerate(reversed(self.layers)):
            if index:
                x = nn.functional.interpolate(x, scale_factor=float(self.factors[index - 1]), mode="nearest")
            x = rebuilt[layer] = self.get_submodule(layer)(x)
        return rebuilt

    def folded(self) -> dict[str, NDArray[np.float32]]:
        """The weights of :func:`engines.decoder_graph.write_decoder_graph`: batch norms in evaluation, merged into
        the convolutions before them in double precision."""
        arrays: dict[str, NDArray[np.float32]] = {}
        for layer in self.layers:
            level = self.get_submodule(layer)
            for index, block in enumerate(BLOCKS, 1):
                norm = level.get_submodule(f"norm{index}")
                gamma, beta, mean, var = (
                    _double(value) for value in (norm.weight, norm.bias, norm.running_mean, norm.running_var)
                )
                scale = gamma / np.sqrt(var + norm.eps)
                weight = _double(level.get_submodule(block).weight) * scale[:, None, None, None]
                arrays[f"{layer}.{block}.weight"] = weight.astype(np.float32)
                arrays[f"{layer}.{block}.bias"] = (beta - mean * scale).astype(np.float32)
            arrays[f"{layer}.out.weight"] = _double(level.out.weight).astype(np.float32)
            arrays[f"{layer}.out.bias"] = _double(level.out.bias).astype(np.float32)
        return arrays


def residual(feature: Tensor, rebuilt: Tensor) -> Tensor:
    """1 - cosine over the channels, [B, h, w]: the channel sum of phi in equation 6 (both features normalised at each
    position, as STFPM's code does). In [0, 2] up to rounding; 1 where a feature has length 0."""
    dot = (feature * rebuilt).sum(1)
    lengths = torch.linalg.vector_norm(feature, dim=1) * torch.linalg.vector_norm(rebuilt, dim=1)
    return 1.0 - dot / (lengths + EPS)


def loss_of(features: Mapping[str, Tensor], rebuilt: Mapping[str, Tensor]) -> Tensor:
    """Mean over the levels of the mean over pictures and positions of the residual (equations 7 and 8)."""
    return torch.stack([residual(features[layer], rebuilt[layer]).mean() for layer in rebuilt]).mean()


class DecoderTask:
    """The decoder over cached features, for :func:`calibration.training.train`.

    features: layer -> [N, C, h, w] (float16, may be memory-mapped: a step reads its rows alone); train: the rows to
    learn from. The optimiser is the printed one: SGD, momentum 0.9, weight decay 1e-4."""

    def __init__(self, decoder: Decoder, features: Mapping[str, NDArray[Any]], train: Indices, device: str) -> None:
        self.features, self.train, self.rows = features, train, len(train)
        self.device = torch.device(device)
        # Channels last: a third of the time a step on a CPU, where reductions over channels then read in order.
        self.module = decoder.to(self.device, memory_format=torch.channels_last)
        # lr is set by the schedule before every step.
        self.optimizer = torch.optim.SGD(self.module.parameters(), lr=0.0, momentum=0.9, weight_decay=1e-4)

    def loss(self, rows: Indices, random: np.random.RandomState) -> Tensor:
        chosen = self.train[rows]
        batch = {
            layer: torch.from_numpy(np.ascontiguousarray(self.features[layer][chosen]))
            .to(self.device)
            .to(torch.float32, memory_format=torch.channels_last)
            for layer in self.module.layers
        }
        return loss_of(batch, self.module(batch[self.module.layers[-1]]))


def _double(tensor: Tensor) -> NDArray[np.float64]:
    return np.asarray(tensor.detach().cpu().contiguous().numpy(), np.float64)
