"""FRE's linear auto-encoders in torch: what is trained. Their weights go into the bundle as arrays. Needs torch.

    z = W (u - mean) + a;  u_hat = D^T z + mean + b;  loss = ||u - u_hat||^2

Source: FRE (Ndiour, Ahuja, Genc, Tickoo, BMVC 2023) and its authors' code: Adam, learning rate 1e-3, batch 64, 250
epochs, Xavier uniform weights, as many components as the PCA keeps; tied: D = W. The biases of that code are -W mean
and the feature mean in closed form; here they start there and training moves a and b, which start at 0: the same
network, without the mean in every gradient. Features of 65,536 values would otherwise drown the rest in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from calibration.snapshot import F32, F64, Features
from calibration.training import Indices


class LinearAutoencoder(nn.Module):
    """One layer's: centred features [B, D] -> their reconstruction. ``seed`` fixes the weights."""

    def __init__(self, size: int, components: int, tied: bool, seed: int) -> None:
        super().__init__()
        random = torch.Generator().manual_seed(seed)
        self.encoder = nn.Parameter(torch.empty(components, size))
        nn.init.xavier_uniform_(self.encoder, generator=random)
        self.decoder: nn.Parameter | None = None
        if not tied:
            self.decoder = nn.Parameter(torch.empty(components, size))
            nn.init.xavier_uniform_(self.decoder, generator=random)
        self.code_bias = nn.Parameter(torch.zeros(components))
        self.bias = nn.Parameter(torch.zeros(size))

    def forward(self, centred: Tensor) -> Tensor:
        code = nn.functional.linear(centred, self.encoder, self.code_bias)
        return torch.addmm(self.bias, code, self.encoder if self.decoder is None else self.decoder)

    def arrays(self, mean: F64) -> dict[str, F32]:
        """What the head computes with (:class:`edge.heads.fre.FreHead`), without the layer's name: ``mu`` is the
        decoder's whole bias, and ``shift`` the code that the encoder gives it."""
        bias, encoder = _double(self.bias), _double(self.encoder)
        found = {"mu": mean + bias, "shift": encoder @ bias + _double(self.code_bias)}
        if self.decoder is None:
            found["w"] = encoder
        else:
            found |= {"enc": encoder, "dec": _double(self.decoder)}
        return {name: array.astype(np.float32) for name, array in found.items()}


class AutoencoderTask:
    """The auto-encoders of all layers, for :func:`calibration.training.train`: side by side, as none has a weight in
    common with another and Adam takes each weight by itself.

    features: layer -> pooled float16 [N, C, h, w]; means: their mean over ``train`` [D]; the loss is the share of the
    variance that is not rebuilt, averaged over the layers."""

    def __init__(
        self,
        features: Mapping[str, Features],
        means: Mapping[str, F64],
        train: Indices,
        components: Mapping[str, int],
        *,
        tied: bool,
        seed: int,
    ) -> None:
        self.features, self.train, self.rows = features, train, len(train)
        self.module = nn.ModuleDict(
            {
                layer: LinearAutoencoder(means[layer].size, components[layer], tied, seed + index)
                for index, layer in enumerate(features)
            }
        )
        self._means = {layer: torch.from_numpy(mean.astype(np.float32)) for layer, mean in means.items()}
        self._energies = {layer: self._energy(layer) for layer in features}
        # lr is set by the schedule before every step.
        self.optimizer = torch.optim.Adam(self.module.parameters(), lr=0.0)

    def loss(self, rows: Indices, random: np.random.RandomState) -> Tensor:
        """See :class:`calibration.training.Trainable`."""
        parts = []
        for layer, model in self.module.items():
            centred = self._centred(layer, self.train[rows])
            parts.append((centred - model(centred)).square().sum(1).mean() / self._energies[layer])
        return torch.stack(parts).mean()

    def _centred(self, layer: str, rows: Indices) -> Tensor:
        chosen = np.ascontiguousarray(self.features[layer][rows]).reshape(len(rows), -1)
        return torch.from_numpy(chosen).to(torch.float32) - self._means[layer]

    def _energy(self, layer: str) -> float:
        """Mean of ||u - mean||^2 over the pictures that are learnt from."""
        return float(np.mean([float(self._centred(layer, self.train[[i]]).square().sum()) for i in range(self.rows)]))


def trained_arrays(task: AutoencoderTask, means: Mapping[str, F64]) -> dict[str, dict[str, F32]]:
    """Layer -> the arrays of its head."""
    return {layer: model.arrays(means[layer]) for layer, model in task.module.items()}


def _double(tensor: Any) -> NDArray[np.float64]:
    return np.asarray(tensor.detach().cpu().contiguous().numpy(), np.float64)
