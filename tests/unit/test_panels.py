"""Panels: which pictures are chosen, and what is drawn."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from calibration.datasets import load_split
from calibration.evaluate import PictureScore, evaluate
from calibration.fit import fit_bundle
from calibration.options import FitOptions
from calibration.panels import NARROWEST, TILE, Seen, choose, draw_panel, write_panels
from edge.errors import ResourceError
from engines import builtin_graph


def scored(kind: str, name: str, score: float) -> PictureScore:
    return PictureScore(f"{kind}/{name}", kind, kind != "good", score, 0.5, False, {})


def test_of_every_kind_the_picture_with_the_median_score_is_chosen_good_first() -> None:
    pictures = [scored("scratch", name, score) for name, score in (("a", 5.0), ("b", 1.0), ("c", 3.0))]
    pictures += [scored("good", name, score) for name, score in (("d", 4.0), ("e", 2.0), ("f", 1.0), ("g", 3.0))]
    pictures += [scored("bend", name, 1.0) for name in "zyx"]  # ties go by name
    wanted = ["good/e", "bend/y", "scratch/c"]
    assert [picture.name for picture in choose(pictures)] == wanted
    assert [picture.name for picture in choose(pictures[::-1])] == wanted


def seen(peak: float, fitted: bool = False) -> Seen:
    """A map whose right half is ``peak``, with a threshold of 1."""
    map_ = np.zeros((16, 16), np.float32)
    map_[:, 8:] = peak
    return Seen(map_, peak, 1.0, 1.0, fitted)


def test_a_panel_has_the_outlined_truth_and_a_tile_a_bundle() -> None:
    picture = np.full((100, 50, 3), 90, np.uint8)
    mask = np.zeros((100, 50), bool)
    mask[20:40, 10:30] = True
    panel = draw_panel(picture, mask, "test/x.png", "x", [("FRE", seen(3.0)), ("SGFR", seen(0.2))])
    gap, width, bar = 6, TILE // 2, (NARROWEST - TILE // 2) // 2
    assert panel.shape[1] == 3 * NARROWEST + 2 * gap
    assert panel.shape[0] > TILE  # a caption below the pictures
    tiles = [panel[:TILE, i * (NARROWEST + gap) :][:, :NARROWEST].astype(int) for i in range(3)]
    assert max(np.ptp(tile[:, bars]) for tile in tiles for bars in (slice(bar), slice(-bar, None))) < 9
    truth, hot, cold = (tile[:, bar:-bar] for tile in tiles)
    scale = TILE / 100
    edge = truth[round(30 * scale), round(10 * scale) - 4 : round(10 * scale) + 4]
    assert edge.max() > 240  # a white line along the mask's border
    assert edge.min() < 50  # between dark ones
    assert np.abs(truth[round(30 * scale), round(20 * scale)] - 90).max() <= 1  # inside, the picture
    assert np.abs(cold - 90).max() <= 1  # below half the threshold nothing is drawn
    assert np.abs(hot[:, : width // 3] - 90).max() <= 1
    assert hot[TILE // 2, -width // 4, 2] > hot[TILE // 2, -width // 4, 1] + 40  # far above it: red
    square = np.full((64, 64, 3), 90, np.uint8)
    assert np.abs(draw_panel(square, None, "n", "good", [])[:TILE].astype(int) - 90).max() <= 1


@pytest.mark.parametrize(("count", "columns", "rows"), [(1, 2, 1), (3, 4, 1), (4, 3, 2), (5, 3, 2), (6, 4, 2)])
def test_tiles_are_laid_in_even_rows(count: int, columns: int, rows: int) -> None:
    picture = np.full((64, 64, 3), 90, np.uint8)
    one = draw_panel(picture, None, "n", "good", [])
    panel = draw_panel(picture, None, "n", "good", [("FRE", seen(0.1))] * count)
    assert panel.shape[1] == columns * TILE + (columns - 1) * 6
    assert panel.shape[0] == rows * one.shape[0] + (rows - 1) * 6


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root, rng = tmp_path_factory.mktemp("parts"), np.random.default_rng(0)
    (root / "good").mkdir()
    (root / "streak").mkdir()
    (root / "masks").mkdir()
    for i in range(20):
        image = np.full((48, 64, 3), 100, np.uint8) + rng.integers(0, 9, (48, 64, 3), dtype=np.uint8)
        cv2.imwrite(str(root / f"good/{i:02}.png"), image)
        if i < 3:
            mask = np.zeros((48, 64), np.uint8)
            cv2.line(mask, (10, 10 + 8 * i), (40, 20), 255, 4)
            image[mask > 0] = 10
            cv2.imwrite(str(root / f"streak/{i}.png"), image)
            cv2.imwrite(str(root / f"masks/{i}.png"), mask)
    return root


def test_panels_of_two_bundles_are_written_and_fitted_pictures_marked(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = FitOptions(layers=("layer3",), rule="max", false_alarms=0.2, keep_refit=False)
    reports = []
    for seed in (0, 1):
        out = tmp_path / f"seed{seed}.bundle"
        fit_bundle(load_split(data, "folder", seed), out, graph=builtin_graph(), backbone="builtin", options=options)
        reports.append(evaluate(out, data, "folder"))
    drawn = []

    def record(picture: object, mask: object, name: str, kind: str, looks: list[tuple[str, Seen]]) -> object:
        drawn.append((name, mask, looks))
        return draw_panel(picture, mask, name, kind, looks)  # type: ignore[arg-type]

    monkeypatch.setattr("calibration.panels.draw_panel", record)
    written = write_panels(reports, tmp_path / "panels")
    assert [path.name.split("-")[0] for path in written] == ["good", "streak"]
    assert all(cv2.imread(str(path)) is not None for path in written)
    first = {picture.name: picture.score for picture in reports[0].pictures}
    fitted_by_second = {path.name for path in load_split(data, "folder", 1).good}
    for name, mask, looks in drawn:
        assert [title for title, _ in looks] == ["FRE, builtin, seed0.bundle", "FRE, builtin, seed1.bundle"]
        assert looks[0][1].score == first[name]  # what the evaluation gave
        assert not looks[0][1].fitted
        assert looks[1][1].fitted == (Path(name).name in fitted_by_second and name.startswith("good"))
        assert (mask is not None) == name.startswith("streak")
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match="cannot be made"):
        write_panels(reports, tmp_path / "file" / "panels")
