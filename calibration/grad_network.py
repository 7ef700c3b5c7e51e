"""GRAD's network in torch: what is trained. Its folded weights go into the bundle's graph. Needs torch to import.

Source: GRAD (Huang et al., ICME 2025, arXiv 2504.00609) and the code of CRAD, from which it grew; the same arithmetic
in NumPy, with the names of the folded weights: :mod:`edge.heads.grad`.

Every position of a picture is reduced to two numbers (its local coordinates) and the picture as a whole to two more
(its global coordinates); what it should look like is read off learnt grids at these coordinates, and a small fusion
network makes features of both readings. What a defect looks like does not pass so narrow a gate.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from calibration.block_paste import BlockPaste
from calibration.training import Indices
from edge.errors import DataError
from edge.heads.grad import COSINE_WEIGHT, EPS, MSE_WEIGHT, STD_EPS

Shape = tuple[int, int, int]
Stage = Literal["abnormal", "normal", "single", "alternate"]
Stored = Mapping[str, NDArray[Any]]
Arrays = dict[str, NDArray[np.float32]]

MARGIN = 0.5  # of the contrast: half the gap between pasted and clean positions
FIRST_MIX = -0.2  # where the code starts w
_CHUNK = 16  # pictures whose features are float32 at a time
_FLAT = 1e-4  # of the features' size: a deviation below it is their rounding


@dataclass(frozen=True)
class Design:
    """The network's shape. channels, height, width: of the aligned features; local, whole: nodes a side of the two
    grids; kind: of the ``blocks`` of a branch; width: of their channels after a 1x1 reduction, None: 2 C, unreduced;
    expansion: inner channels of a mobile bottleneck in units of ``width``; abnormal: has the second branch; spread:
    see :class:`Coordinates`; border: keep coordinates within the outer nodes (not in the paper)."""

    channels: int
    height: int
    width_px: int
    local: int = 32
    whole: int = 4
    kind: Literal["mobile", "basic"] = "mobile"
    blocks: int = 3
    width: int | None = 128
    expansion: float = 2.0
    abnormal: bool = True
    spread: float = 0.5
    border: bool = False


class Coordinates(nn.Module):
    """Two numbers of every position and two of the whole picture, in (-1, 1): two layers of tanh each.

    spread: the standard deviation, about, that the outputs begin with on features of mean 0 and deviation 1; 0: all
    weights N(0, 0.01), as in the code. There all coordinates begin within a node or two of the middle, and the
    gradient to a coordinate is a difference of neighbouring nodes, that is nothing while all positions share them."""

    def __init__(self, design: Design, random: torch.Generator) -> None:
        super().__init__()
        channels, self.border = design.channels, design.border
        for name, nodes in (("local", design.local), ("pooled", design.whole)):
            first, second = nn.Conv2d(channels, channels, 1), nn.Conv2d(channels, 2, 1)
            deviations = (0.01, 0.01)
            if design.spread > 0:
                # tanh of a standard normal has a deviation of 0.63.
                deviations = (channels**-0.5, design.spread / (0.63 * channels**0.5))
            for layer, deviation in zip((first, second), deviations, strict=True):
                nn.init.normal_(layer.weight, 0.0, deviation, generator=random)
                nn.init.zeros_(layer.bias)
            self.add_module(f"{name}1", first)
            self.add_module(f"{name}2", second)
            self.register_buffer(f"{name}_limit", torch.tensor([1 - 1 / nodes if design.border else 1.0]))

    def forward(self, x: Tensor, jitter: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """[B, C, H, W] -> [B, 2, H, W] and [B, 2, 1, 1], column first; ``jitter`` is added to the local ones."""
        found = []
        for name, value in (("local", x), ("pooled", x.mean((2, 3), keepdim=True))):
            value = torch.tanh(self.get_submodule(f"{name}1")(value))
            value = torch.tanh(self.get_submodule(f"{name}2")(value))
            if name == "local" and jitter is not None:
                value = value + jitter
            if self.border:
                limit = self.get_buffer(f"{name}_limit")
                value = value.clamp(-limit, limit)
            found.append(value)
        return found[0], found[1]


class ResidualBlock(nn.Module):
    """ReLU(x + norm(3x3(ReLU(norm(3x3(x))))))."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        for index in (1, 2):
            self.add_module(f"conv{index}", nn.Conv2d(channels, channels, 3, padding=1, bias=False))
            self.add_module(f"norm{index}", nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        inner = torch.relu(self.norm1(self.conv1(x)))
        return torch.relu(x + self.norm2(self.conv2(inner)))

    def folded(self) -> Arrays:
        return _merged(self.conv1, self.norm1, "conv1") | _merged(self.conv2, self.norm2, "conv2")


class MobileBlock(nn.Module):
    """A bottleneck of MobileNetV3 with hard swish and a gate a channel, added to x. ``inner``: its wide channels."""

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.expand, self.norm1 = nn.Conv2d(channels, inner, 1, bias=False), nn.BatchNorm2d(inner)
        self.depthwise = nn.Conv2d(inner, inner, 3, padding=1, groups=inner, bias=False)
        self.norm2 = nn.BatchNorm2d(inner)
        gate = max(1, inner // 4)
        self.squeeze, self.excite = nn.Conv2d(inner, gate, 1), nn.Conv2d(gate, inner, 1)
        self.project, self.norm3 = nn.Conv2d(inner, channels, 1, bias=False), nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        inner = nn.functional.hardswish(self.norm1(self.expand(x)))
        inner = nn.functional.hardswish(self.norm2(self.depthwise(inner)))
        gate = torch.relu(self.squeeze(inner.mean((2, 3), keepdim=True)))
        inner = inner * nn.functional.hardsigmoid(self.excite(gate))
        return x + self.norm3(self.project(inner))

    def folded(self) -> Arrays:
        arrays = _merged(self.expand, self.norm1, "expand") | _merged(self.depthwise, self.norm2, "depthwise")
        for name in ("squeeze", "excite"):
            layer = self.get_submodule(name)
            arrays |= {f"{name}.weight": _single(layer.weight), f"{name}.bias": _single(layer.bias)}
        return arrays | _merged(self.project, self.norm3, "project")


class Branch(nn.Module):
    """Grids and fusion network. standardise: the samples, over the positions of every channel (the abnormal branch)."""

    def __init__(self, design: Design, standardise: bool, random: torch.Generator) -> None:
        super().__init__()
        self.design, self.standardise = design, standardise
        channels, positions = design.channels, design.height * design.width_px
        self.local_grid = nn.Parameter(torch.empty(1, channels, design.local, design.local))
        self.global_grid = nn.Parameter(torch.empty(design.whole**2, channels * positions))
        # Xavier, normal, of the code's layout [1, C, R, R]: fan-in C R^2, fan-out R^2.
        for grid, fan, nodes in (
            (self.local_grid, channels, design.local**2),
            (self.global_grid, channels * positions, design.whole**2),
        ):
            nn.init.normal_(grid, 0.0, math.sqrt(2 / ((fan + 1) * nodes)), generator=random)
        width = 2 * channels
        self.reduce = self.reduce_norm = None
        if design.width is not None:
            self.reduce = nn.Conv2d(width, design.width, 1, bias=False)
            self.reduce_norm = nn.BatchNorm2d(design.width)
            width = design.width
        inner = max(1, round(design.expansion * width))
        self.blocks = nn.ModuleList(
            MobileBlock(width, inner) if design.kind == "mobile" else ResidualBlock(width) for _ in range(design.blocks)
        )
        self.out = nn.Conv2d(width, channels, 1, bias=False)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0.0, 0.01, generator=random)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, local: Tensor, whole: Tensor) -> Tensor:
        """Coordinates -> [B, C, H, W]."""
        batch, design = len(local), self.design
        grid = self.local_grid.expand(batch, -1, -1, -1)
        places = local.permute(0, 2, 3, 1)
        near = nn.functional.grid_sample(grid, places, mode="bilinear", padding_mode="zeros", align_corners=False)
        far = (_hats(whole[:, :, 0, 0], design.whole) @ self.global_grid).reshape(near.shape)
        x = torch.cat([far, near], 1)
        if self.standardise:
            x = x - x.mean((2, 3), keepdim=True)
            # Not torch's std: on a CPU it takes as long as all else here.
            positions = x.shape[2] * x.shape[3]
            deviation = torch.linalg.vector_norm(x, dim=(2, 3), keepdim=True) / math.sqrt(positions - 1)
            x = x * (1 / (deviation + STD_EPS))
        if self.reduce is not None and self.reduce_norm is not None:
            x = self.reduce_norm(self.reduce(x))
        for block in self.blocks:
            x = block(x)
        return self.out(x)

    def grids(self) -> list[nn.Parameter]:
        return [self.local_grid, self.global_grid]

    def folded(self) -> Arrays:
        """The weights by the reference's names, less the branch's. Where nothing lies between the samples and the
        reduction, it is merged into the grids: a third of the memory to read, and no convolution."""
        local, whole = _double(self.local_grid)[0], _double(self.global_grid)
        arrays: Arrays = {}
        if self.reduce is not None and self.reduce_norm is not None:
            merged = _merged(self.reduce, self.reduce_norm, "reduce", np.float64)
            if self.standardise:
                arrays = {name: array.astype(np.float32) for name, array in merged.items()}
            else:
                far, near = np.split(merged["reduce.weight"][:, :, 0, 0], 2, axis=1)
                local = np.tensordot(near, local, 1)
                maps = whole.reshape(len(whole), far.shape[1], -1)
                whole = np.stack([far @ node for node in maps]).reshape(len(whole), -1)
                arrays["sum.bias"] = merged["reduce.bias"].astype(np.float32)
        arrays |= {"local_grid": local.astype(np.float32), "global_grid": whole.astype(np.float32)}
        for index, block in enumerate(self.blocks):
            arrays |= {f"block{index}.{name}": array for name, array in block.folded().items()}
        return arrays | {"out.weight": _single(self.out.weight)}


class Mix(nn.Module):
    """The learnt scalar w of x_n + w x_a."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([FIRST_MIX]))


class GradNetwork(nn.Module):
    """Coordinates, both branches and w. ``seed`` fixes the weights; threshold: mean squared error up to which a
    position counts as rebuilt (of the refinement)."""

    def __init__(self, design: Design, threshold: float, seed: int) -> None:
        super().__init__()
        random = torch.Generator().manual_seed(seed)
        self.design, self.threshold = design, threshold
        self.coordinates = Coordinates(design, random)
        self.normal = Branch(design, False, random)
        self.abnormal = Branch(design, True, random) if design.abnormal else None
        self.mix = Mix()

    def rebuilt(self, local: Tensor, whole: Tensor) -> Tensor:
        """x_n + w x_a; gradients flow to what is not frozen."""
        rebuilt = self.normal(local, whole)
        if self.abnormal is not None:
            rebuilt = rebuilt + self.mix.weight * self.abnormal(local, whole)
        return rebuilt

    def forward(self, x: Tensor) -> Tensor:
        """x [B, C, H, W] -> its residual [B, H, W]."""
        rebuilt = self.rebuilt(*self.coordinates(x))
        return torch.abs(1 - similarity(x, rebuilt, self.threshold)) * torch.linalg.vector_norm(rebuilt - x, dim=1)

    def folded(self) -> Arrays:
        """The weights that :func:`engines.grad_graph.write_grad_graph` needs, but for ``features.*`` and
        ``threshold``."""
        arrays: Arrays = {}
        for name, tensor in self.coordinates.state_dict().items():
            arrays[f"coordinates.{name}"] = _single(tensor)
        for name, branch in (("normal", self.normal), ("abnormal", self.abnormal)):
            if branch is not None:
                arrays |= {f"{name}.{key}": array for key, array in branch.folded().items()}
        return arrays | {"mix": _single(self.mix.weight)}


class Features:
    """Cached taps as the network sees them: aligned to the first layer, concatenated, and (``standard``) of mean 0 and
    deviation 1 a channel over the training pictures; else as they are.

    The paper takes EfficientNet-B6's taps raw, and has its constants (block intensity, threshold) in their units. Those
    come from linear bottlenecks, roughly centred; a ResNet's come after a ReLU, all positive and with a few strong
    channels, so that any two features have a high cosine."""

    def __init__(self, stored: Stored, train: Indices, standard: bool) -> None:
        self.stored, self.layers = stored, tuple(stored)
        first = stored[self.layers[0]]
        self.height, self.width = first.shape[2:]
        self.channels = sum(array.shape[1] for array in stored.values())
        mean, square = np.zeros(self.channels), np.zeros(self.channels)
        for start in range(0, len(train), _CHUNK):
            x = self._aligned(train[start : start + _CHUNK]).numpy().astype(np.float64)
            mean += x.mean((2, 3)).sum(0)
            square += (x * x).mean((2, 3)).sum(0)
        mean, square = mean / len(train), square / len(train)
        if not (np.isfinite(mean).all() and np.isfinite(square).all()):
            raise DataError(
                "the backbone's features are not finite (NaN, infinite, or beyond float16): check its weights"
            )
        deviation = np.sqrt(np.maximum(square - mean**2, 0))
        first_row = {layer: array[train[0]] for layer, array in stored.items()}
        if all((stored[layer][row] == first).all() for layer, first in first_row.items() for row in train):
            raise DataError("the good pictures are copies of one another: take pictures of different good parts")
        if deviation.max() <= _FLAT * np.sqrt(square.max()):
            raise DataError("the backbone's features are the same everywhere in all pictures: nothing to learn from")
        if standard:
            # A channel that hardly ever varies would become the loudest.
            scale = 1 / np.maximum(deviation, 0.05 * deviation.mean())
            shift = -mean * scale
        else:
            scale, shift = np.ones_like(mean), np.zeros_like(mean)
        self.scale, self.shift = scale.astype(np.float32), shift.astype(np.float32)
        scaled = deviation * scale
        self.std = float(np.sqrt((scaled**2).mean()))
        """Of the scaled features around their channel's mean: the unit of a pasted block."""
        self.power = float((scaled**2 + (mean * scale + shift) ** 2).mean())
        """Mean square of the scaled features: the error of rebuilding nothing."""

    def batch(self, rows: Indices) -> Tensor:
        """x [B, C, H, W], float32."""
        scale, shift = (torch.from_numpy(array)[None, :, None, None] for array in (self.scale, self.shift))
        return self._aligned(rows) * scale + shift

    def folded(self) -> Arrays:
        return {"features.scale": self.scale, "features.shift": self.shift}

    def _aligned(self, rows: Indices) -> Tensor:
        parts = []
        for stored in self.stored.values():
            part = torch.from_numpy(np.ascontiguousarray(stored[rows])).to(torch.float32)
            if part.shape[2:] != (self.height, self.width):
                size = (self.height, self.width)
                part = nn.functional.interpolate(part, size=size, mode="bilinear", align_corners=True)
            parts.append(part)
        return torch.cat(parts, 1)


@dataclass(frozen=True)
class Recipe:
    """How it is trained. grid_lr: in units of the networks' learning rate; jitter: deviation of what is added to the
    local coordinates in every other batch; decay: AdamW's, on the grids as well."""

    grid_lr: float = 100.0
    jitter: float = 0.05
    decay: float = 0.01
    paste: BlockPaste = field(default_factory=BlockPaste)


class GradTask:
    """One stage, for :func:`calibration.training.train`.

    ``abnormal`` trains coordinates and the abnormal branch on pasted blocks, ``normal`` the normal branch and w on the
    features as they are, ``single`` (no abnormal branch: CRAD) coordinates and the normal branch. What a stage does
    not train is no part of its ``module``: it has no gradient and stays in evaluation mode, so it keeps every bit,
    batch statistics included. ``alternate`` has all parts, and takes even epochs for the abnormal and odd ones for the
    normal stage, as the figure of the paper has it; it counts its steps in a buffer, to be resumed in the right one.
    """

    def __init__(
        self,
        network: GradNetwork,
        features: Features,
        train: Indices,
        stage: Stage,
        recipe: Recipe,
        device: str,
        batch: int,
    ) -> None:
        self.network, self.features, self.train, self.stage, self.recipe = network, features, train, stage, recipe
        self.rows, self.epoch_steps = len(train), math.ceil(len(train) / batch)
        self.device = torch.device(device)
        network.to(self.device)  # channels first: the grids' samples are, and copies cost more than the order gains
        network.eval().requires_grad_(False)
        self.module = nn.ModuleDict({name: network.get_submodule(name) for name in PARTS[stage]})
        self.module.requires_grad_(True)
        if stage == "alternate":
            self.module.register_buffer("steps", torch.zeros(1, dtype=torch.int64))
        grids = [grid for part in self.module.values() if isinstance(part, Branch) for grid in part.grids()]
        marked = {id(grid) for grid in grids}
        nets = [value for value in self.module.parameters() if id(value) not in marked]
        # The schedule sets a group's lr to its own, times the factor.
        groups = [{"params": nets, "factor": 1.0}, {"params": grids, "factor": recipe.grid_lr}]
        self.optimizer = torch.optim.AdamW(groups, lr=0.0, weight_decay=recipe.decay)

    def loss(self, rows: Indices, random: np.random.RandomState) -> Tensor:
        x = self.features.batch(self.train[rows]).to(self.device)
        stage = self.stage
        if stage == "alternate":
            steps = self.module.get_buffer("steps")
            stage = "normal" if int(steps) // self.epoch_steps % 2 else "abnormal"
            steps += 1
            for name, part in self.module.items():
                part.requires_grad_(name in PARTS[stage]).train(name in PARTS[stage])
        return self._abnormal(x, random) if stage == "abnormal" else self._normal(x, random)

    def _normal(self, x: Tensor, random: np.random.RandomState) -> Tensor:
        network = self.network
        local, whole = network.coordinates(x, self._jitter(x, random))
        rebuilt = network.rebuilt(local, whole)
        return reconstruction_loss(x, x, rebuilt, network.threshold)

    def _abnormal(self, x: Tensor, random: np.random.RandomState) -> Tensor:
        network, features = self.network, self.features
        blocks = [self.recipe.paste.draw(random, features.height, features.width) for _ in range(len(x))]
        values, mask = (np.stack([getattr(block, name) for block in blocks]) for name in ("values", "mask"))
        pasted = x + torch.from_numpy(values * np.float32(features.std)).to(x)[:, None]
        local, whole = network.coordinates(pasted, self._jitter(x, random))
        assert network.abnormal is not None
        abnormal = network.abnormal(local, whole)
        # The normal branch has learnt nothing yet: alone, w x_a is what there is of a reconstruction. Its goal is the
        # clean x, so that coordinates learn to see through a block.
        rebuilt = network.mix.weight.detach() * abnormal
        contrast = contrast_loss(abnormal[:, 0], torch.from_numpy(mask).to(x.device))
        return contrast + reconstruction_loss(x, pasted, rebuilt, network.threshold)

    def _jitter(self, x: Tensor, random: np.random.RandomState) -> Tensor | None:
        if self.recipe.jitter <= 0 or random.rand() >= 0.5:
            return None
        noise = random.normal(0.0, self.recipe.jitter, (len(x), 2, *x.shape[2:]))
        return torch.from_numpy(noise.astype(np.float32)).to(x.device)


PARTS: dict[Stage, tuple[str, ...]] = {
    "abnormal": ("coordinates", "abnormal"),
    "normal": ("normal", "mix"),
    "single": ("coordinates", "normal"),
    "alternate": ("coordinates", "abnormal", "normal", "mix"),
}
"""What a stage trains."""


def similarity(x: Tensor, rebuilt: Tensor, threshold: float) -> Tensor:
    """[B, C, H, W] twice -> [B, H, W]; see :func:`edge.heads.grad.similarity`. No gradient through the indicator."""
    error = ((rebuilt.detach() - x.detach()) ** 2).mean(1)
    indicator = 1 - torch.round((error * (0.5 / threshold)).clamp(max=1))
    lengths = torch.linalg.vector_norm(x, dim=1) * torch.linalg.vector_norm(rebuilt, dim=1)
    return MSE_WEIGHT * indicator + COSINE_WEIGHT * (x * rebuilt).sum(1) / (lengths + EPS)


def reconstruction_loss(wanted: Tensor, seen: Tensor, rebuilt: Tensor, threshold: float) -> Tensor:
    """Mean square of (refined - wanted), refined = s seen + (1 - s) rebuilt with s their similarity."""
    s = similarity(seen, rebuilt, threshold)[:, None]
    return ((rebuilt - wanted + s * (seen - rebuilt)) ** 2).mean()


def contrast_loss(d: Tensor, mask: Tensor) -> Tensor:
    """Mean over pictures of: mean over pasted positions of max(0, 0.5 - d), plus mean over clean ones of
    max(0, 0.5 + d). d: [B, H, W], the abnormal branch's first channel; mask: bool [B, H, W].

    As in the code, which pulls d below -0.5 on clean positions; the paper's equation 4 (d undefined) has another sign
    there. The code divides by one picture's mask area over a whole batch; here every picture is averaged by itself."""
    pasted = mask.to(d.dtype)
    clean = 1 - pasted
    terms = []
    for chosen, apart in ((pasted, MARGIN - d), (clean, MARGIN + d)):
        total = (torch.relu(apart) * chosen).sum((1, 2))
        terms.append(total / chosen.sum((1, 2)).clamp(min=1))
    return (terms[0] + terms[1]).mean()


@dataclass(frozen=True)
class Study:
    """What a trained network does on good pictures. errors: mean squared error of every position, [n, H, W]; local:
    deviation of the two local coordinates; used: share of the local grid's nodes that some position is nearest to;
    share: root mean square of w x_a in that of the whole reconstruction."""

    errors: NDArray[np.float32]
    local: tuple[float, float]
    used: float
    share: float


def study(network: GradNetwork, features: Features, rows: Indices, batch: int) -> Study:
    """See :class:`Study`. Needs the network in evaluation mode for figures of its own, and puts it there."""
    network.eval()
    device = next(network.parameters()).device
    nodes = network.design.local
    errors, seen = [], np.zeros((nodes, nodes), bool)
    sums, squares, count = np.zeros(2), np.zeros(2), 0
    abnormal_power = power = 0.0
    with torch.inference_mode():
        for start in range(0, len(rows), batch):
            x = features.batch(rows[start : start + batch]).to(device)
            local, whole = network.coordinates(x)
            rebuilt = network.rebuilt(local, whole)
            errors.append(((rebuilt - x) ** 2).mean(1).cpu().numpy())
            if network.abnormal is not None:
                abnormal_power += float((network.mix.weight * network.abnormal(local, whole)).pow(2).sum())
            power += float(rebuilt.pow(2).sum())
            places = local.permute(1, 0, 2, 3).reshape(2, -1).cpu().numpy().astype(np.float64)
            sums, squares, count = sums + places.sum(1), squares + (places**2).sum(1), count + places.shape[1]
            column, row = np.clip(np.round(((places + 1) * nodes - 1) / 2), 0, nodes - 1).astype(int)
            seen[row, column] = True
    mean = sums / count
    deviation = np.sqrt(np.maximum(squares / count - mean**2, 0))
    share = math.sqrt(abnormal_power / power) if power > 0 else 0.0
    return Study(np.concatenate(errors), (float(deviation[0]), float(deviation[1])), float(seen.mean()), share)


def _hats(coordinate: Tensor, nodes: int) -> Tensor:
    """[B, 2] -> [B, nodes * nodes]: the bilinear weight of every node, row-major."""
    place = ((coordinate + 1) * nodes - 1) / 2
    hats = (1 - (place[:, :, None] - torch.arange(nodes, device=place.device)).abs()).clamp(min=0)
    return (hats[:, 1, :, None] * hats[:, 0, None, :]).reshape(len(place), -1)


def _merged(conv: nn.Conv2d, norm: nn.BatchNorm2d, name: str, dtype: Any = np.float32) -> dict[str, NDArray[Any]]:
    """Convolution and batch norm as one, merged in double precision."""
    gamma, beta, mean, var = (_double(value) for value in (norm.weight, norm.bias, norm.running_mean, norm.running_var))
    scale = gamma / np.sqrt(var + norm.eps)
    weight = _double(conv.weight) * scale[:, None, None, None]
    return {f"{name}.weight": weight.astype(dtype), f"{name}.bias": (beta - mean * scale).astype(dtype)}


def _double(tensor: Tensor | None) -> NDArray[np.float64]:
    assert tensor is not None
    return np.asarray(tensor.detach().cpu().contiguous().numpy(), np.float64)


def _single(tensor: Tensor) -> NDArray[np.float32]:
    return np.array(tensor.detach().cpu().contiguous().numpy(), np.float32)
