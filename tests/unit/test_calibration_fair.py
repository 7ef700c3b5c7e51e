"""FAIR's training: it learns, it is resumed to the bit, and from pictures on disk it becomes a bundle that scores.

The trainer itself has tests in ``test_calibration_training.py``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from calibration.datasets import load_split
from calibration.evaluate import evaluate
from calibration.fit import fit_bundle, refit_bundle
from calibration.methods import fitter_of
from calibration.options import FitOptions
from calibration.synthesis import Corruptor, Textures, drawn_textures
from calibration.training import Schedule, TrainingInterrupted, train
from edge.bundle import load_bundle
from edge.errors import DataError
from edge.heads.fair import transfer
from edge.heads.scorer import Scorer
from edge.heads.tail import Tail
from engines import open_engine
from engines.fair_graph import write_fair_graph

torch = pytest.importorskip("torch", reason="needs the extra fit")
pytest.importorskip("onnx", reason="needs the extra fit")

from calibration.fair_network import FairTask, HighPass, Restorer, choose_bfloat16, loss_of  # noqa: E402

SIZE = (64, 64)


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _few_textures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("calibration.fair.drawn_textures", lambda size, seed: drawn_textures(size, seed, 12))


def part(rng: np.random.Generator, defect: bool, size: tuple[int, int] = SIZE) -> tuple[NDArray[np.uint8], Any]:
    """A bright ring on a plate, slightly moved and lit, RGB; the defect is a red streak."""
    image = np.full((*size, 3), 90 + rng.integers(-6, 7), np.uint8)
    centre = tuple(int(s // 2 + rng.integers(-2, 3)) for s in size[::-1])
    cv2.circle(image, centre, min(size) // 3, (170, 175, 180), -1)
    cv2.circle(image, centre, min(size) // 6, (60, 70, 60), -1)
    mask = np.zeros(size, np.uint8)
    if defect:
        x, y = (int(v) for v in rng.integers(24, 36, 2))
        cv2.line(mask, (x, y), (x + 10, y + 5), 255, 5)
        image[mask > 0] = (230, 20, 20)
    return np.clip(image + rng.normal(0, 2, image.shape), 0, 255).astype(np.uint8), mask


def task_of(images: NDArray[np.uint8], width: int, seed: int = 0, bfloat16: bool = False) -> FairTask:
    corrupt = Corruptor(Textures(drawn_textures(images.shape[1:3], seed, 12)), rotation=0.0)
    high_pass = HighPass(images.shape[1:3])
    return FairTask(Restorer(width, 1, seed), high_pass, images, np.arange(len(images)), corrupt, "cpu", bfloat16)


# Learning.


def test_it_learns_four_pictures_by_heart_and_a_painted_square_is_the_maximum() -> None:
    rng, size = np.random.default_rng(0), (48, 48)
    images = np.stack([part(rng, False, size)[0] for _ in range(4)])
    task = task_of(images, 8)
    trained = train(task, Schedule(epochs=150, batch=2, lr=3e-3, warmup=10, decay="steps", clip=None))
    assert trained.steps == 300
    assert np.mean(trained.history[-10:]) < 0.1 * trained.history[0]
    graph = write_fair_graph(size, task.module.folded(), transfer(size), {})
    painted = images[0].copy()
    painted[16:26, 28:38] = (40, 160, 220)
    maps = open_engine(graph).infer(np.stack([images[0], painted]))
    tail = Tail(fitter_of("fair").defaults.tail.model_copy(update={"size": size}))
    found, scores = tail.apply([level[:, 0] for level in maps.values()])
    row, column = np.unravel_index(found[1].argmax(), size)
    assert 6 <= row < 36
    assert 18 <= column < 48
    assert scores[1] > 3 * scores[0]


def test_bfloat16_changes_the_loss_by_little() -> None:
    """Of the same weights on the same pictures; parameters and their gradients stay in float32."""
    images = np.stack([part(np.random.default_rng(seed), False)[0] for seed in range(4)])
    losses = []
    for bfloat16 in (False, True):
        task = task_of(images, 8, bfloat16=bfloat16)
        loss = task.loss(np.arange(4), np.random.RandomState(1))
        loss.backward()
        assert loss.dtype == torch.float32
        assert all(parameter.grad.dtype == torch.float32 for parameter in task.module.parameters())
        losses.append(float(loss.detach()))
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
    assert choose_bfloat16("bf16", "cpu")
    assert not choose_bfloat16("f32", "cpu")


def test_chance_comes_from_the_given_stream_alone_and_the_loss_is_of_the_clean_picture() -> None:
    images = np.stack([part(np.random.default_rng(seed), False)[0] for seed in range(4)])
    before, rows, task = images.copy(), np.arange(4), task_of(images, 4)
    with torch.no_grad():  # in training mode: a fresh network's answer is else all but the same for any picture
        values = [float(task.loss(rows, np.random.RandomState(seed))) for seed in (1, 1, 5)]
        assert values[0] == values[1] != values[2]
        random = np.random.RandomState(1)
        pairs = [task.corrupt(image, random) for image in images]
        seen = task.high_pass(torch.from_numpy(np.stack([pair.picture for pair in pairs])))
        target = torch.from_numpy(np.stack([pair.target for pair in pairs])).permute(0, 3, 1, 2) / 255.0
        assert values[0] == pytest.approx(float(loss_of(task.module(seen), target)), rel=1e-5)
    assert (images == before).all()


def test_the_rate_falls_to_a_fifth_at_80_and_again_at_90_percent() -> None:
    schedule = Schedule(epochs=1, batch=1, lr=1.0, warmup=10, decay="steps")
    rates = [schedule.rate(step, 100) for step in range(100)]
    assert rates[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert rates[10:80] == [1.0] * 70
    assert rates[80:90] == pytest.approx([0.2] * 10)
    assert rates[90:] == pytest.approx([0.04] * 10)
    assert [schedule.rate(step, 3) for step in range(3)] == pytest.approx([0.1, 0.2, 0.3])  # shorter than its warm-up


# From pictures to a bundle.


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root, rng = tmp_path_factory.mktemp("parts"), np.random.default_rng(0)
    for folder in ("train/good", "test/good", "test/streak", "ground_truth/streak"):
        (root / folder).mkdir(parents=True)

    def write(name: str, image: NDArray[np.uint8]) -> None:
        cv2.imwrite(str(root / name), image[..., ::-1] if image.ndim == 3 else image)

    for i in range(16):
        write(f"train/good/{i:02}.png", part(rng, False)[0])
    for i in range(4):
        write(f"test/good/{i}.png", part(rng, False)[0])
        image, mask = part(rng, True)
        write(f"test/streak/{i}.png", image)
        write(f"ground_truth/streak/{i}_mask.png", mask)
    return root


def fair(**settings: object) -> FitOptions:
    fast: dict[str, object] = {"epochs": 1, "batch": 4, "warmup": 2, "width": 4}
    return FitOptions(method="fair", false_alarms=0.2, settings={**fast, **settings})


def fit(data: Path, out: Path, options: FitOptions, size: tuple[int, int] = SIZE, **more: Any) -> Any:
    return fit_bundle(
        load_split(data, "mvtec"), out, graph=None, backbone="none", options=options, input_size=size, **more
    )


def test_fair_finds_the_defects_of_a_small_line_and_its_bundle_is_whole(data: Path, tmp_path: Path) -> None:
    report = fit(data, tmp_path / "b", fair(epochs=40, lr=5e-3, rotation=0.0))
    assert report.details["loss"] < 0.5
    bundle = load_bundle(tmp_path / "b")
    manifest = bundle.manifest
    assert manifest.method == "fair"
    assert manifest.calibration.method == "holdout"
    assert manifest.calibration.count == 3
    tail = manifest.tail
    assert (tail.fuse, tail.weights, tail.smooth, tail.kernel, tail.size) == ("weights", (1.0, 3e-4), "mean", 21, SIZE)
    assert [(tap.name, tap.channels, tap.height, tap.width) for tap in manifest.backbone.taps] == [
        ("gradient", 1, *SIZE),
        ("color", 1, *SIZE),
    ]
    assert bundle.arrays == {}
    assert (manifest.spec["width"], manifest.spec["filter"], manifest.spec["textures"]) == (4, "butterworth", "drawn")
    found = evaluate(bundle, data, "mvtec")
    assert found.image_auroc == 1.0
    assert found.pixel_auroc is not None
    assert found.pixel_auroc > 0.9
    with pytest.raises(DataError, match="nothing to refit from"):
        refit_bundle(tmp_path / "b", tmp_path / "c", options=fair())
    rng = np.random.default_rng(9)
    engine, scorer = open_engine(bundle.graph), Scorer(bundle)
    good, bad = (scorer.score(engine.infer(part(rng, defect)[0][None]))[0] for defect in (False, True))
    assert bad.score > good.score


def test_interrupted_writes_nothing_and_ends_as_if_it_had_not_been(data: Path, tmp_path: Path) -> None:
    fit(data, tmp_path / "whole", fair(epochs=2))
    resume = {"epochs": 2, "resume": tmp_path / "b.training"}
    with pytest.raises(TrainingInterrupted):
        fit(data, tmp_path / "b", fair(**resume, minutes=1e-9))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.training", "whole"]
    for change, name in (
        ({"batch": 5}, "batch"),
        ({"filter": "gaussian"}, "filter"),
        ({"cutpaste": "paper"}, "cutpaste"),
    ):
        with pytest.raises(DataError, match=f"an unfinished training with other {name}"):
            fit(data, tmp_path / "b", fair(**{**resume, **change}))
    fit(data, tmp_path / "b", fair(**resume))
    first, second = load_bundle(tmp_path / "whole"), load_bundle(tmp_path / "b")
    assert first.graph == second.graph
    assert (first.calibration["score"] == second.calibration["score"]).all()


def test_the_seed_the_textures_and_the_filter_are_the_bundles(data: Path, tmp_path: Path) -> None:
    (tmp_path / "textures").mkdir()
    for index, texture in enumerate(drawn_textures((40, 30), 5, 3)):
        cv2.imwrite(str(tmp_path / "textures" / f"{index}.png"), texture)
    graphs = set()
    for name, settings in {
        "drawn": {},
        "pictures": {"textures": "pictures", "seed": 1},
        "folder": {"textures": str(tmp_path / "textures"), "filter": "sobel"},
    }.items():
        fit(data, tmp_path / name, fair(**settings))
        bundle = load_bundle(tmp_path / name)
        graphs.add(bundle.graph)
        assert bundle.manifest.spec["textures"] == name
        assert str(tmp_path) not in str(bundle.manifest.spec)
    assert len(graphs) == 3


def test_plain_pictures_and_other_sizes_can_be_learnt(tmp_path: Path) -> None:
    for i in range(8):
        cv2.imwrite(str(tmp_path / f"{i}.png"), np.full((50, 50, 3), 120 + i % 2, np.uint8))
    paths = sorted(tmp_path.glob("*.png"))
    fit_bundle(paths, tmp_path / "b", graph=None, backbone="none", options=fair(), input_size=(32, 48))
    assert load_bundle(tmp_path / "b").manifest.tail.size == (32, 48)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (FitOptions(method="fair", calibration="folds"), "cannot be calibrated by 'folds'; it knows holdout"),
        (FitOptions(method="fair", rule="combined"), "no rule 'combined'"),
        (FitOptions(method="fair", layers=("layer2",)), "no layers layer2"),
        (fair(epochs=0), "fair: epochs: .*greater than or equal to 1"),
        (fair(speed=3), "fair: speed: there is no such setting"),
        (fair(filter="median"), "fair: filter"),
        (fair(cutoff=0), "fair: cutoff"),
        (fair(textures="/nowhere/textures"), "/nowhere/textures: there is no such folder of textures"),
    ],
)
def test_impossible_options_are_one_clear_line(options: FitOptions, says: str) -> None:
    with pytest.raises(DataError, match=says) as caught:
        options.resolved()
    assert "\n" not in str(caught.value)


def test_what_only_the_pictures_show_is_one_clear_line_and_nothing_is_written(data: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    cases: list[tuple[str, FitOptions, dict[str, Any]]] = [
        ("multiples of 16, 32 or more: not 72x64", fair(), {"size": (72, 64)}),
        ("multiples of 16, 32 or more: not 16x64", fair(), {"size": (16, 64)}),
        ("residuals need f32", fair(), {"precision": "bf16"}),
        ("empty: holds no pictures", fair(textures=str(tmp_path / "empty")), {}),
    ]
    for says, options, more in cases:
        with pytest.raises(DataError, match=says) as caught:
            fit(data, tmp_path / "b", options, **more)
        assert "\n" not in str(caught.value)
    few = sorted((data / "train" / "good").glob("*.png"))[:4]
    with pytest.raises(DataError, match="4 good pictures are too few"):
        fit_bundle(few, tmp_path / "b", graph=None, backbone="none", options=fair(), input_size=SIZE)
    assert not (tmp_path / "b").exists()


def test_a_loss_that_is_not_a_number_writes_nothing(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("calibration.fair_network.loss_of", lambda restored, target: (restored * np.nan).mean())
    with pytest.raises(DataError, match="the loss is not finite"):
        fit(data, tmp_path / "b", fair())
    assert not (tmp_path / "b").exists()
