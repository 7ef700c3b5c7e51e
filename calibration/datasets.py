"""Data sets as they lie on disk: which pictures are good, which are tested, where the masks are.

Layouts: ``mvtec`` (train/good, test/KIND, ground_truth/KIND), ``mtd`` (MT_*/Imgs), ``btad`` (train/ok,
test/ok|ko, ground_truth/ko), ``visa`` (split_csv/1cls.csv, or prepared folders), ``folder`` (good/ or the
folder itself, every other subfolder a kind of defect, masks/ optional).
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from edge.errors import DataError
from edge.pictures import is_picture, read_picture

GOOD_SHARE = 0.8  # of the good pictures are fitted where a seed splits them (DifferNet's protocol on MTD)
_MASK_FOLDERS = ("masks", "mask", "ground_truth")


@dataclass(frozen=True)
class TestItem:
    """One picture of the test: ``kind`` is "good" or the defect's name; ``mask`` the file of its defect
    pixels, None for good pictures and where there is none."""

    __test__ = False  # not a pytest class

    path: Path
    kind: str
    is_defect: bool
    mask: Path | None = None


@dataclass(frozen=True)
class Split:
    """The pictures of a data set: ``good`` to fit on, ``test`` to judge with. Paths lie under ``root``.

    mask_limit: mask pixels above it are defect; None: above 127, or above 0 in masks that have nothing
    higher."""

    root: Path
    layout: str
    seed: int | None
    good: tuple[Path, ...]
    test: tuple[TestItem, ...]
    mask_limit: int | None = None

    @property
    def has_masks(self) -> bool:
        """True if any defective picture has a mask."""
        return any(item.mask is not None for item in self.test)

    def name(self, path: Path) -> str:
        """The picture's name as the bundle remembers it: relative to ``root``, with forward slashes."""
        return path.relative_to(self.root).as_posix()


def load_split(root: Path | str, layout: str, seed: int | None = None) -> Split:
    """Read the layout's split of the data set at ``root``; order of files is by name, so it is reproducible.

    ``seed`` chooses the good pictures of ``mtd`` (default 0) and, if given, of ``folder``: 80% are fitted,
    the rest tested. Raises DataError: missing folder, unknown layout, no pictures, a seed where the split
    is fixed."""
    root = Path(root)
    reader = LAYOUTS.get(layout)
    if reader is None:
        raise DataError(f"unknown layout {layout!r}; known are {', '.join(LAYOUTS)}")
    if seed is not None and layout not in SEEDED:
        raise DataError(f"--seed has no meaning for layout {layout}: its split is fixed; leave it out")
    _need_folder(root, "data folder")
    return reader(root, seed)


def good_folder(root: Path | str) -> Split:
    """Only good pictures, no test: ``root``/good where it exists, else ``root`` itself."""
    root = Path(root)
    _need_folder(root, "folder of good pictures")
    folder = root / "good" if (root / "good").is_dir() else root
    return Split(root, "folder", None, tuple(_need_pictures(folder)), ())


def read_mask(path: Path, size: tuple[int, int], limit: int | None = 127) -> NDArray[np.bool_]:
    """A mask file as bool [height, width] = ``size``: nearest-neighbour resize, then > ``limit`` (see
    Split)."""
    grey = read_picture(path)[:, :, 0]
    if limit is None:
        limit = 127 if int(grey.max()) > 127 else 0
    height, width = size
    small = cv2.resize(np.ascontiguousarray(grey), (width, height), interpolation=cv2.INTER_NEAREST)
    return np.asarray(small > limit)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes. Raises DataError when it cannot be read."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    return digest.hexdigest()


def seeded(names: Iterable[str], seed: int, share: float = GOOD_SHARE) -> set[str]:
    """A random ``share`` of ``names``, the same on every machine and in every version: ordered by a hash
    of seed and name, so that it needs no generator's stream."""
    ordered = sorted(names, key=lambda name: hashlib.sha256(f"{seed}:{name}".encode()).digest())
    return set(ordered[: round(share * len(ordered))])


def _mvtec(root: Path, seed: int | None) -> Split:
    good = _need_pictures(root / "train" / "good", root, "mvtec")
    test = _kinds(root / "test", {"good"}, root / "ground_truth", "mvtec")
    return Split(root, "mvtec", seed, tuple(good), tuple(test), mask_limit=127)


def _btad(root: Path, seed: int | None) -> Split:
    good = _need_pictures(root / "train" / "ok", root, "btad")
    test = _kinds(root / "test", {"ok"}, root / "ground_truth", "btad")
    return Split(root, "btad", seed, tuple(good), tuple(test), mask_limit=0)


def _mtd(root: Path, seed: int | None) -> Split:
    seed = 0 if seed is None else seed
    # Pictures are .jpg, masks .png of the same stem in the same folder, also (all black) beside the good
    # ones.
    free = [p for p in _need_pictures(root / "MT_Free" / "Imgs", root, "mtd") if not _is_png(p)]
    chosen = seeded((path.name for path in free), seed)
    test = [TestItem(path, "good", False) for path in free if path.name not in chosen]
    for folder in sorted(root.glob("MT_*")):
        if folder.name == "MT_Free" or not folder.is_dir():
            continue
        kind = folder.name.removeprefix("MT_").lower()
        for path in _pictures(folder / "Imgs"):
            if not _is_png(path):
                test.append(TestItem(path, kind, True, _need_mask(path, folder / "Imgs", "mtd")))
    _need_defects(test, root, "mtd")
    good = tuple(path for path in free if path.name in chosen)
    return Split(root, "mtd", seed, good, tuple(test), mask_limit=127)


def _visa(root: Path, seed: int | None) -> Split:
    if (root / "train" / "good").is_dir():  # prepared as train/good, test/{good,bad}, ground_truth/bad
        good = _need_pictures(root / "train" / "good")
        test = _kinds(root / "test", {"good"}, root / "ground_truth", "visa")
        return Split(root, "visa", seed, tuple(good), tuple(test), mask_limit=0)
    table = root.parent / "split_csv" / "1cls.csv"
    if not table.is_file():
        raise DataError(f"{root}: layout visa needs {table} (the official split) or a train/good folder")
    good, test = [], []
    with table.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if row.get("object") != root.name:
                continue
            try:
                path = root.parent / row["image"]
                defect, mask = row["label"] != "normal", row.get("mask") or ""
                if row["split"] == "train":
                    good.append(path)
                else:
                    kind = "defect" if defect else "good"
                    test.append(TestItem(path, kind, defect, root.parent / mask if defect and mask else None))
            except KeyError as error:
                raise DataError(f"{table}: the column {error} is missing; not VisA's 1cls.csv") from None
    missing = [p for p in (*good, *(i.path for i in test), *(i.mask for i in test if i.mask)) if not p.is_file()]
    if missing:
        raise DataError(f"{table}: {len(missing)} of its files are not there, first {missing[0]}")
    if not good:
        raise DataError(f"{table}: no pictures of the object {root.name!r}; is it a category of VisA?")
    _need_defects(test, root, "visa")
    return Split(root, "visa", seed, tuple(good), tuple(test), mask_limit=0)


def _folder(root: Path, seed: int | None) -> Split:
    base = root / "good" if (root / "good").is_dir() else root
    pictures = _need_pictures(base)
    masks = next((root / name for name in _MASK_FOLDERS if (root / name).is_dir()), None)
    chosen = None if seed is None else seeded((path.name for path in pictures), seed)
    test = [TestItem(p, "good", False) for p in pictures if chosen is None or p.name not in chosen]
    for folder in sorted(path for path in root.iterdir() if path.is_dir()):
        if folder == base or folder.name in _MASK_FOLDERS or folder.name.startswith("."):
            continue
        test += [TestItem(p, folder.name, True, _find_mask(p, masks, folder.name)) for p in _pictures(folder)]
    good = tuple(p for p in pictures if chosen is None or p.name in chosen)
    return Split(root, "folder", seed, good, tuple(test), mask_limit=None)


LAYOUTS: dict[str, Callable[[Path, int | None], Split]] = {
    "mvtec": _mvtec,
    "mtd": _mtd,
    "btad": _btad,
    "visa": _visa,
    "folder": _folder,
}
SEEDED = frozenset({"mtd", "folder"})


def _kinds(test: Path, good_names: set[str], masks: Path, layout: str) -> list[TestItem]:
    _need_folder(test, f"test folder of layout {layout}")
    items: list[TestItem] = []
    for folder in sorted(path for path in test.iterdir() if path.is_dir()):
        for path in _pictures(folder):
            if folder.name in good_names:
                items.append(TestItem(path, "good", False))
            else:
                # A set without any ground truth gives image figures only; a set that lost one mask is
                # damaged.
                mask = _need_mask(path, masks / folder.name, layout) if masks.is_dir() else None
                items.append(TestItem(path, folder.name, True, mask))
    _need_defects(items, test, layout)
    return items


def _find_mask(picture: Path, masks: Path | None, kind: str) -> Path | None:
    """The mask of a picture: the same stem, with or without ``_mask``, under masks/KIND or masks."""
    if masks is None:
        return None
    for folder in (masks / kind, masks):
        for stem in (f"{picture.stem}_mask", picture.stem):
            for suffix in (".png", ".bmp", ".tif", ".tiff"):
                path = folder / f"{stem}{suffix}"
                if path.is_file() and path != picture:
                    return path
    return None


def _need_mask(picture: Path, folder: Path, layout: str) -> Path:
    mask = _find_mask(picture, folder.parent, folder.name)
    if mask is None:
        raise DataError(f"{picture}: its mask is not in {folder}; layout {layout} has one for every defect")
    return mask


def _need_defects(items: list[TestItem], root: Path, layout: str) -> None:
    if not any(item.is_defect for item in items):
        raise DataError(f"{root}: no defective pictures where layout {layout} has them")


def _need_folder(path: Path, what: str) -> None:
    if not path.exists():
        raise DataError(f"{path}: no such {what}")
    if not path.is_dir():
        raise DataError(f"{path}: the {what} is a file, not a folder")


def _is_png(path: Path) -> bool:
    return path.suffix.lower() == ".png"


def _pictures(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if is_picture(path) and path.is_file())
    except OSError as error:
        raise DataError(f"{folder}: cannot be listed ({error.strerror})") from None


def _need_pictures(folder: Path, root: Path | None = None, layout: str | None = None) -> list[Path]:
    if not folder.is_dir():
        where = f"{root}: " if root is not None else ""
        raise DataError(f"{where}no folder {folder}; is it really of layout {layout}?")
    pictures = _pictures(folder)
    if not pictures:
        raise DataError(f"{folder}: no pictures in it (png, jpg, bmp, tif, webp)")
    return pictures
