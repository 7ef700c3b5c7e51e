"""The papers' own figures, and which of them stands beside one's own."""

from __future__ import annotations

from collections import defaultdict

import pytest

from calibration.compare import categories_of
from calibration.published import CATEGORIES, Published, all_published, identify, published

SPEEDS = {"seconds_per_image", "fps", "train_seconds"}
SHARES = {"image_auroc", "image_ap", "pixel_auroc", "pixel_ap", "aupro30"}
METHODS = {"fair", "fre", "grad", "hfra", "sgfr"}


def test_every_figure_has_its_place_and_a_plausible_value() -> None:
    rows = all_published()
    assert {row.method for row in rows} == METHODS
    for row in rows:
        assert row.metric in SHARES | SPEEDS
        means = {"mean"} | set(categories_of(row.dataset)) if row.dataset in CATEGORIES else set()
        assert row.category in set(CATEGORIES[row.dataset]) | means, row
        assert row.paper
        assert row.table
        assert row.rank in (0, 1, 2)
        assert (row.value > 0) if row.metric in SPEEDS else (1 < row.value <= 100), row
        assert row.resolution in (None, 256)
        assert row.rank < 2 or row.setting, row  # an ablation says of what
    places = [(r.method, r.paper, r.table, r.dataset, r.category, r.metric, r.backbone, r.setting) for r in rows]
    speeds = [(*place, r.hardware) for place, r in zip(places, rows, strict=True)]
    assert len(set(speeds)) == len(rows)


def test_printed_means_are_those_of_their_rows_except_where_a_note_says_otherwise() -> None:
    tables: dict[tuple[str | None, ...], dict[str, Published]] = defaultdict(dict)
    for row in all_published():
        tables[row.paper, row.table, row.dataset, row.metric, row.backbone, row.setting, row.hardware][row.category] = (
            row
        )
    checked, noted = 0, 0
    for table in tables.values():
        for name, parts in categories_of(next(iter(table.values())).dataset).items():
            if name not in table or not set(table) >= parts:
                continue
            mean = sum(table[part].value for part in parts) / len(parts)
            if abs(mean - table[name].value) > 0.06:
                assert "misprint" in (table[name].note or ""), (table[name], mean)
                noted += 1
            checked += 1
    assert checked >= 20
    assert noted == 1


def test_the_same_backbone_comes_before_the_headline_and_ablations_last() -> None:
    def values(*what: str | None) -> list[tuple[float, str | None, str | None]]:
        return [(row.value, row.backbone, row.setting) for row in published(*what)]  # type: ignore[arg-type]

    bottle = ("MVTec AD", "bottle")
    assert values("fre", *bottle, "aupro30", "resnet18") == [(95.8, "ResNet18", "3 layers")]
    assert values("fre", *bottle, "aupro30", "builtin") == [(96.0, "ResNet50", "3 layers")]
    assert values("fre", *bottle, "image_auroc", "resnet18") == [(100.0, "EfficientNet-B5", None)]
    assert values("sgfr", *bottle, "aupro30", "resnet18") == [(96.1, "WideResNet50", None)]
    for name in ("wide_resnet50_2", "WideResNet50", "WideResNet50-2"):
        assert values("hfra", "MNIST", "mean", "image_auroc", name) == [(99.0, "WideResNet50", None)]
    assert values("hfra", "MNIST", "mean", "image_auroc", "resnet18") == [(98.5, "ResNet18", None)]
    assert values("fair", "MVTec AD", "mean", "image_auroc") == [(98.6, None, None)]
    # Another network of a similar name is another network.
    assert values("fre", "MVTec AD", "mean", "image_auroc", "resnet50v2") == [(98.6, "EfficientNet-B5", None)]
    # A table that names no backbone stands beside any.
    assert values("fre", "MTD", "all", "image_auroc", "resnet18") == [(99.2, None, None)]
    assert values("sgfr", *bottle, "image_auroc", "resnet18") == []
    assert values("nothing", *bottle, "image_auroc") == []


def test_misprints_carry_a_note() -> None:
    for category in ("capsules", "macaroni2", "fryum", "mean"):
        (row,) = published("fair", "VisA", category, "pixel_auroc")
        assert "misprint" in (row.note or "")
    (row,) = published("hfra", "MVTec AD", "metal_nut", "aupro30", "resnet18")
    assert "doubtful" in (row.note or "")


@pytest.mark.parametrize(
    ("layout", "folder", "wanted"),
    [
        ("mvtec", "bottle", ("MVTec AD", "bottle")),
        ("mvtec", "drink_can", ("GoodsAD", "drink_can")),
        ("mvtec", "my_parts", ("my_parts", "")),
        ("mtd", "anything", ("MTD", "all")),
        ("btad", "02", ("BTAD", "02")),
        ("visa", "pcb3", ("VisA", "pcb3")),
        ("folder", "bottle", ("bottle", "")),  # a folder of one's own bottles is not MVTec's
    ],
)
def test_a_data_set_is_known_by_layout_and_folder(layout: str, folder: str, wanted: tuple[str, str]) -> None:
    assert identify(layout, folder) == wanted
