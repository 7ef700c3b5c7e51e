"""Layouts of data sets, made small in a temporary folder, and the real ones where they are at hand."""

from __future__ import annotations

import csv
from pathlib import Path

import cv2
import numpy as np
import pytest

from calibration.datasets import good_folder, load_split, read_mask, seeded
from edge.errors import DataError


def picture(path: Path, value: int = 100) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), np.full((8, 10, 3), value, np.uint8))
    return path


def mask(path: Path, *values: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), np.array([values], np.uint8).repeat(2, axis=0))
    return path


def mvtec(root: Path) -> Path:
    for i in range(3):
        picture(root / f"train/good/{i}.png")
    picture(root / "test/good/0.png")
    picture(root / "test/crack/0.png")
    mask(root / "ground_truth/crack/0_mask.png", 0, 255)
    return root


def test_mvtec(tmp_path: Path) -> None:
    split = load_split(mvtec(tmp_path), "mvtec")
    assert [split.name(path) for path in split.good] == [f"train/good/{i}.png" for i in range(3)]
    crack, good = split.test
    assert (crack.kind, crack.is_defect) == ("crack", True)
    assert crack.mask == tmp_path / "ground_truth/crack/0_mask.png"
    assert (good.kind, good.is_defect, good.mask) == ("good", False, None)
    assert split.has_masks


def test_mvtec_without_ground_truth_has_no_masks_but_a_lost_mask_is_an_error(tmp_path: Path) -> None:
    root = mvtec(tmp_path)
    (root / "ground_truth/crack/0_mask.png").unlink()
    with pytest.raises(DataError, match="its mask is not in"):
        load_split(root, "mvtec")
    (root / "ground_truth/crack").rmdir()
    (root / "ground_truth").rmdir()
    assert not load_split(root, "mvtec").has_masks


def test_mtd_splits_the_free_tiles_by_seed_and_leaves_masks_out(tmp_path: Path) -> None:
    for i in range(20):
        picture(tmp_path / f"MT_Free/Imgs/exp1_num_{i}.jpg")
        mask(tmp_path / f"MT_Free/Imgs/exp1_num_{i}.png", 0, 0)
    picture(tmp_path / "MT_Crack/Imgs/a.jpg")
    mask(tmp_path / "MT_Crack/Imgs/a.png", 0, 255)
    split = load_split(tmp_path, "mtd", 3)
    good_tests = [item for item in split.test if not item.is_defect]
    assert (len(split.good), len(good_tests), split.seed) == (16, 4, 3)
    assert {item.path for item in good_tests}.isdisjoint(split.good)
    assert all(path.suffix == ".jpg" for path in split.good)
    (crack,) = [item for item in split.test if item.is_defect]
    assert (crack.kind, crack.mask) == ("crack", tmp_path / "MT_Crack/Imgs/a.png")
    assert load_split(tmp_path, "mtd", 3) == split
    assert load_split(tmp_path, "mtd", 4).good != split.good
    assert load_split(tmp_path, "mtd").seed == 0


def test_a_seeded_choice_is_pinned() -> None:
    # Published figures name their seed: the choice may never change.
    assert sorted(seeded([f"{i}.jpg" for i in range(10)], 0)) == [
        f"{i}.jpg" for i in SEED_0
    ]  # fmt: skip
    assert len(seeded([str(i) for i in range(952)], 1)) == 762


SEED_0 = [0, 1, 2, 3, 4, 5, 8, 9]


def test_btad_pairs_masks_by_stem(tmp_path: Path) -> None:
    picture(tmp_path / "train/ok/1.bmp")
    picture(tmp_path / "test/ok/2.bmp")
    picture(tmp_path / "test/ko/3.bmp")
    mask(tmp_path / "ground_truth/ko/3.png", 0, 1)
    split = load_split(tmp_path, "btad")
    (ko,) = [item for item in split.test if item.is_defect]
    assert ko.mask is not None
    assert ko.mask.name == "3.png"
    assert read_mask(ko.mask, (2, 2), split.mask_limit).tolist() == [[False, True], [False, True]]


def test_visa_by_its_official_split(tmp_path: Path) -> None:
    rows = []
    for i in range(3):
        picture(tmp_path / f"candle/Data/Images/Normal/{i}.JPG")
        rows.append(("candle", "train" if i < 2 else "test", "normal", f"candle/Data/Images/Normal/{i}.JPG", ""))
    picture(tmp_path / "candle/Data/Images/Anomaly/0.JPG")
    mask(tmp_path / "candle/Data/Masks/Anomaly/0.png", 0, 3)
    rows.append(("candle", "test", "anomaly", "candle/Data/Images/Anomaly/0.JPG", "candle/Data/Masks/Anomaly/0.png"))
    rows.append(("pcb1", "train", "normal", "pcb1/none.JPG", ""))
    table = tmp_path / "split_csv/1cls.csv"
    table.parent.mkdir()
    with table.open("w", newline="") as file:
        csv.writer(file).writerows([("object", "split", "label", "image", "mask"), *rows])
    split = load_split(tmp_path / "candle", "visa")
    assert (len(split.good), len(split.test)) == (2, 2)
    (defect,) = [item for item in split.test if item.is_defect]
    assert defect.mask is not None
    assert read_mask(defect.mask, (2, 2), split.mask_limit).any()
    assert split.name(split.good[0]) == "Data/Images/Normal/0.JPG"
    (tmp_path / "candle/Data/Images/Normal/1.JPG").unlink()
    with pytest.raises(DataError, match="1 of its files are not there"):
        load_split(tmp_path / "candle", "visa")


def test_visa_prepared_folders(tmp_path: Path) -> None:
    picture(tmp_path / "train/good/0.JPG")
    picture(tmp_path / "test/good/1.JPG")
    picture(tmp_path / "test/bad/2.JPG")
    mask(tmp_path / "ground_truth/bad/2.png", 0, 1)
    assert load_split(tmp_path, "visa").has_masks


def test_folder_with_good_defects_and_some_masks(tmp_path: Path) -> None:
    for i in range(5):
        picture(tmp_path / f"good/{i}.png")
    picture(tmp_path / "scratch/a.png")
    picture(tmp_path / "scratch/b.png")
    mask(tmp_path / "masks/scratch/a.png", 0, 1)
    split = load_split(tmp_path, "folder")
    assert [item.kind for item in split.test] == ["good"] * 5 + ["scratch"] * 2
    assert [item.mask is not None for item in split.test[5:]] == [True, False]
    assert read_mask(tmp_path / "masks/scratch/a.png", (2, 2), split.mask_limit).any()
    held_back = load_split(tmp_path, "folder", 7)
    assert (len(held_back.good), sum(not item.is_defect for item in held_back.test)) == (4, 1)


def test_folder_itself_holds_the_good_pictures(tmp_path: Path) -> None:
    for i in range(3):
        picture(tmp_path / f"{i}.png")
    (tmp_path / "notes.txt").write_text("not a picture")
    (tmp_path / ".hidden.png").write_bytes(b"")
    assert len(load_split(tmp_path, "folder").good) == 3
    assert len(good_folder(tmp_path).good) == 3


@pytest.mark.parametrize(
    ("layout", "seed", "says"),
    [
        ("mvtec", None, "no folder .*train/good"),
        ("mtd", None, "no folder .*MT_Free"),
        ("btad", None, "no folder .*train/ok"),
        ("visa", None, "official split"),
        ("folder", None, "no pictures in it"),
        ("mvtec", 1, "--seed has no meaning"),
        ("coco", None, "unknown layout 'coco'; known are mvtec"),
    ],
)
def test_each_mistake_has_one_clear_line(tmp_path: Path, layout: str, seed: int | None, says: str) -> None:
    with pytest.raises(DataError, match=says) as raised:
        load_split(tmp_path, layout, seed)
    assert "\n" not in str(raised.value)


def test_missing_folder_and_file_instead_of_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such data folder"):
        load_split(tmp_path / "absent", "folder")
    with pytest.raises(DataError, match="is a file"):
        good_folder(picture(tmp_path / "a.png"))


def test_a_set_without_defects_is_named(tmp_path: Path) -> None:
    picture(tmp_path / "train/good/0.png")
    picture(tmp_path / "test/good/0.png")
    with pytest.raises(DataError, match="no defective pictures"):
        load_split(tmp_path, "mvtec")


def test_masks_are_resized_to_the_nearest_pixel_and_thresholded(tmp_path: Path) -> None:
    path = mask(tmp_path / "m.png", 0, 127, 128, 255)
    assert read_mask(path, (2, 4), 127).tolist() == [[False, False, True, True]] * 2
    assert read_mask(path, (2, 8), 0)[0].tolist() == [False, False] + [True] * 6
    assert read_mask(path, (2, 4), None)[0].tolist() == [False, False, True, True]
    classes = mask(tmp_path / "c.png", 0, 1, 2, 0)
    assert read_mask(classes, (2, 4), None)[0].tolist() == [False, True, True, False]


@pytest.mark.data
def test_real_sets_have_their_published_counts(data_dir: Path) -> None:
    bottle = load_split(data_dir / "mvtec/bottle", "mvtec")
    assert (len(bottle.good), len(bottle.test), sum(i.mask is not None for i in bottle.test)) == (209, 83, 63)
    transistor = load_split(data_dir / "mvtec/transistor", "mvtec")
    assert (len(transistor.good), len(transistor.test), transistor.has_masks) == (213, 100, False)
    mtd = load_split(data_dir / "mtd", "mtd", 0)
    assert (len(mtd.good), sum(item.is_defect for item in mtd.test), len(mtd.test)) == (762, 392, 582)
