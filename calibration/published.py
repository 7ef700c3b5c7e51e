"""What the papers of the five methods report of themselves, to stand beside one's own figures.

Sources, by ``paper``: SGFR: Hotta et al., IET Image Processing 2025, arXiv 2309.13904. FRE: Ndiour et al., BMVC 2023.
HFRA: Chen et al., arXiv 2405.09148. GRAD: Huang et al., ICME 2025, arXiv 2504.00609; "GRAD (IEEE TIP 2025)" is its
journal extension, doi 10.1109/TIP.2025.3644787, of which only figures of the running text could be read. FAIR: Liu et
al., and the README of its code.

Only a method's own results are here, not its paper's runs of others; only data sets that a user may have; and of a
figure that two tables print, one. ``published.json`` has one line a table, metric and backbone. Means that disagree
with their rows, and figures that look like misprints, say so in ``note``.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

MEAN = "mean"

CATEGORIES: MappingProxyType[str, tuple[str, ...]] = MappingProxyType(
    {
        "MVTec AD": (
            "bottle",
            "cable",
            "capsule",
            "carpet",
            "grid",
            "hazelnut",
            "leather",
            "metal_nut",
            "pill",
            "screw",
            "tile",
            "toothbrush",
            "transistor",
            "wood",
            "zipper",
        ),
        "MTD": ("all",),
        "BTAD": ("01", "02", "03"),
        "VisA": (
            "candle",
            "capsules",
            "cashew",
            "chewinggum",
            "fryum",
            "macaroni1",
            "macaroni2",
            "pcb1",
            "pcb2",
            "pcb3",
            "pcb4",
            "pipe_fryum",
        ),
        "GoodsAD": ("cigarette_box", "drink_bottle", "drink_can", "food_bottle", "food_box", "food_package"),
        "MNIST": tuple("0123456789"),  # one digit good, nine anomalous
    }
)
"""Data set -> its categories. Their unweighted mean is the category ``mean``; MTD is one category, ``all``."""

_LAYOUTS = {"mvtec": ("MVTec AD", "GoodsAD"), "btad": ("BTAD",), "visa": ("VisA",)}


@dataclass(frozen=True)
class Published:
    """One printed figure.

    metric: ``image_auroc``, ``image_ap``, ``pixel_auroc``, ``pixel_ap``, ``aupro30`` (to a false-positive rate of 0.3),
    all in per cent; ``seconds_per_image``, ``fps`` (images/s), ``train_seconds``. backbone, resolution (side of the
    input, pixels): None where the paper names none, or has none. setting: what distinguishes the row in its table.
    rank: 0 the paper's headline, 1 its like with another backbone, 2 an ablation."""

    method: str
    paper: str
    table: str
    dataset: str
    category: str
    metric: str
    value: float
    backbone: str | None = None
    resolution: int | None = None
    setting: str | None = None
    rank: int = 0
    hardware: str | None = None
    note: str | None = None


@cache
def all_published() -> tuple[Published, ...]:
    """Every figure of ``published.json``, in its order."""
    groups: list[dict[str, Any]] = json.loads(Path(__file__).with_name("published.json").read_text(encoding="utf-8"))
    rows = []
    for group in groups:
        values, notes = group.pop("values"), group.pop("notes", {})
        common = group.pop("note", None)
        for category, value in values.items():
            note = "; ".join(part for part in (notes.get(category), common) if part) or None
            rows.append(Published(category=category, value=value, note=note, **group))
    return tuple(rows)


def published(
    method: str, dataset: str, category: str, metric: str, backbone: str | None = None
) -> tuple[Published, ...]:
    """The printed figures that stand best beside one's own: with the same backbone where the paper has it (its
    ablations last), else the paper's headline; several where the paper has several that fit equally well, none where it
    has nothing.

    ``method``: "fre", ...; ``dataset``, ``category``: a key and a value of :data:`CATEGORIES`, or "mean"; ``backbone``:
    its name here ("wide_resnet50_2") or in the papers ("WideResNet50")."""
    rows = [
        row
        for row in all_published()
        if (row.method, row.dataset, row.category, row.metric) == (method, dataset, category, metric)
    ]
    wanted = _plain(backbone)
    same = [row for row in rows if wanted and _plain(row.backbone) == wanted]
    chosen = same or [row for row in rows if row.rank < 2]
    best = min((row.rank for row in chosen), default=0)
    return tuple(row for row in chosen if row.rank == best)


def identify(layout: str, folder: str) -> tuple[str, str]:
    """Data set and category of a split by its layout and the name of its folder, as the papers' tables call them;
    the folder's own name and "" for a data set that none of them has."""
    if layout == "mtd":
        return "MTD", "all"
    for dataset in _LAYOUTS.get(layout, ()):
        if folder in CATEGORIES[dataset]:
            return dataset, folder
    return folder, ""


def _plain(backbone: str | None) -> str:
    """ "wide_resnet50_2", "WideResNet50-2" and "WideResNet50" are one network."""
    plain = re.sub("[^a-z0-9]", "", (backbone or "").lower())
    return "wideresnet50" if plain == "wideresnet502" else plain
