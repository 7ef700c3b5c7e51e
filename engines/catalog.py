"""Which backbones there are, what their taps are called, and where their weights officially come from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from engines.errors import EngineError

DEFAULT_TAPS = ("layer1", "layer2", "layer3")
_FOUR = (*DEFAULT_TAPS, "layer4")


@dataclass(frozen=True)
class Backbone:
    """One entry of the catalog.

    ``taps`` are all names a graph of this backbone can have, shallow to deep; ``default_taps`` those
    exported unless others are asked for. ``detection_layer`` is the tap whose residual gives the image score
    by default. ``address`` is the official place of the weights (None: there is none to fetch);
    ``sha256_prefix`` is the beginning of the file's SHA-256, as torchvision embeds it in the file name.
    """

    name: str
    summary: str
    licence: str
    taps: tuple[str, ...] = _FOUR
    default_taps: tuple[str, ...] = DEFAULT_TAPS
    detection_layer: str = "layer3"
    needs_weights: bool = True
    address: str | None = None
    sha256_prefix: str | None = None


def _torchvision(name: str, summary: str, file: str) -> Backbone:
    return Backbone(
        name,
        summary,
        "BSD-3-Clause (torchvision)",
        address=f"https://download.pytorch.org/models/{file}",
        sha256_prefix=file.rsplit("-", 1)[1].removesuffix(".pth"),
    )


_ALL = (
    Backbone(
        "builtin",
        "0.5 M parameters, distilled from ResNet18's layers 1-3; shipped, nothing to fetch",
        "Apache-2.0",
        taps=DEFAULT_TAPS,
        needs_weights=False,
    ),
    # The first torchvision weights (IMAGENET1K_V1), which the papers' tables were measured with.
    _torchvision("resnet18", "torchvision ResNet18, IMAGENET1K_V1", "resnet18-f37072fd.pth"),
    _torchvision("resnet50", "torchvision ResNet50, IMAGENET1K_V1", "resnet50-0676ba61.pth"),
    _torchvision("wide_resnet50_2", "torchvision WideResNet50-2, IMAGENET1K_V1", "wide_resnet50_2-95faca4d.pth"),
    Backbone("resnet50v2", "Gluon ResNet50 v2 (pre-activation), of the ONNX model zoo", "Apache-2.0"),
)
BACKBONES: dict[str, Backbone] = {entry.name: entry for entry in _ALL}


def names() -> tuple[str, ...]:
    """The names of all backbones, the built-in first."""
    return tuple(BACKBONES)


def backbone(name: str) -> Backbone:
    """The entry called ``name``. Raises EngineError, listing the names there are."""
    try:
        return BACKBONES[name]
    except KeyError:
        raise EngineError(f"no backbone is called {name!r}: choose one of {', '.join(BACKBONES)}") from None


def select_taps(name: str, taps: Sequence[str] | None) -> tuple[str, ...]:
    """``taps`` in the order asked for, or the default ones. Raises EngineError for an unknown or doubled
    one."""
    entry = backbone(name)
    if taps is None:
        return entry.default_taps
    chosen = tuple(taps)
    unknown = [tap for tap in chosen if tap not in entry.taps]
    if unknown or not chosen or len(set(chosen)) != len(chosen):
        wrong = f"{unknown[0]!r} is not one" if unknown else "none given, or one given twice"
        raise EngineError(f"taps of {name}: {wrong}; choose among {', '.join(entry.taps)}, each once")
    return chosen
