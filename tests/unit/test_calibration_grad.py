"""Training GRAD: its losses and stages, what a fit reaches, and from pictures on disk to a bundle.

Oracles 9 to 12 of the method's description are here; the others in ``test_heads_grad.py`` and ``test_block_paste.py``.
"""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from calibration.block_paste import BlockPaste
from calibration.checkpoints import Checkpoints, discard
from calibration.datasets import load_split
from calibration.evaluate import evaluate
from calibration.fit import fit_bundle, refit_bundle
from calibration.grad import GradSettings, stages
from calibration.metrics import image_auroc
from calibration.options import FitOptions
from calibration.training import Schedule, TrainingDiverged, TrainingInterrupted, train
from edge.bundle import load_bundle
from edge.errors import DataError
from engines.export import export_backbone

torch = pytest.importorskip("torch", reason="needs the extra fit")
pytest.importorskip("onnx", reason="needs the extra fit")

from calibration.grad_network import (  # noqa: E402
    Design,
    Features,
    GradNetwork,
    GradTask,
    Recipe,
    Stage,
    contrast_loss,
    reconstruction_loss,
    similarity,
    study,
)

SHAPES = {"layer2": (6, 16, 16), "layer3": (6, 8, 8)}
BATCH = 8
Stored = dict[str, NDArray[Any]]


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def features_of(count: int, seed: int, product: int = 0) -> Stored:
    """Features around a few prototypes, whose places differ by product: a bright disc that moves a little."""
    rng, kinds = np.random.default_rng(seed), np.random.default_rng(100 + product)
    stored: Stored = {}
    moves = rng.integers(-1, 2, (count, 2))
    for layer, (channels, height, width) in SHAPES.items():
        inside, outside, texture = kinds.normal(0, 1.5, (3, channels, 1, 1))
        rows, columns = np.mgrid[:height, :width] * (16 / height)
        maps = np.empty((count, channels, height, width))
        for i, (down, right) in enumerate(moves):
            disc = (rows - 7.5 - down) ** 2 + (columns - 7.5 - right) ** 2 < (5 - 2 * product) ** 2
            maps[i] = np.where(disc, inside, outside + 0.5 * texture * np.sin(columns + right))
        stored[layer] = (maps + 0.15 * rng.normal(size=maps.shape)).astype(np.float16)
    return stored


def together(*parts: Stored) -> Stored:
    return {layer: np.concatenate([part[layer] for part in parts]) for layer in SHAPES}


def network_of(features: Features, seed: int = 0, **changes: Any) -> GradNetwork:
    small: dict[str, Any] = {"local": 8, "whole": 2, "blocks": 1, "width": 16}
    design = Design(features.channels, features.height, features.width, **{**small, **changes})
    return GradNetwork(design, features.power, seed)


def task_of(stage: Stage, stored: Stored | None = None, recipe: Recipe | None = None, **changes: Any) -> GradTask:
    stored = features_of(24, 0) if stored is None else stored
    rows = np.arange(len(stored["layer2"]))
    features = Features(stored, rows, True)
    network = network_of(features, abnormal=stage != "single", **changes)
    return GradTask(network, features, rows, stage, recipe or small_recipe(), "cpu", BATCH)


def small_recipe(**changes: Any) -> Recipe:
    return replace(Recipe(paste=BlockPaste(half=(0.5, 4.0))), **changes)


def schedule(epochs: int, **changes: Any) -> Schedule:
    return replace(Schedule(epochs=epochs, batch=BATCH, lr=2e-3, warmup=0, decay="steps", clip=0.1), **changes)


def bits(network: GradNetwork, *parts: str) -> dict[str, bytes]:
    """Of the parameters and buffers of these parts."""
    state = network.state_dict()
    return {
        name: tensor.detach().contiguous().numpy().tobytes()
        for name, tensor in state.items()
        if not parts or name.split(".")[0] in parts
    }


# Losses (oracle 9).


def test_the_contrast_is_0_beyond_the_margin_and_1_at_no_contrast() -> None:
    rng = np.random.default_rng(0)
    mask = torch.from_numpy(rng.random((3, 6, 7)) < 0.3)
    signs = torch.where(mask, 1.0, -1.0)
    assert contrast_loss(0.5 * signs, mask) == 0
    assert contrast_loss((0.5 + torch.rand(3, 6, 7)) * signs, mask) == 0
    assert float(contrast_loss(torch.zeros(3, 6, 7), mask)) == pytest.approx(1.0)
    assert float(contrast_loss(-0.5 * signs, mask)) == pytest.approx(2.0)
    # By picture, whatever the size of its mask.
    one = torch.zeros(2, 6, 7, dtype=torch.bool)
    one[0, 2, 3] = one[1, :3] = True
    d = torch.where(one, 0.1, -0.5)
    assert float(contrast_loss(d, one)) == pytest.approx(0.4, abs=1e-6)
    assert float(contrast_loss(torch.full((1, 6, 7), -0.5), torch.zeros(1, 6, 7, dtype=torch.bool))) == 0


def test_the_reconstruction_loss_is_the_mean_square_of_what_refinement_leaves() -> None:
    rng = np.random.default_rng(1)
    wanted, seen, rebuilt = (torch.from_numpy(rng.normal(size=(2, 5, 4, 3))) for _ in range(3))
    s = similarity(seen, rebuilt, 1.0)[:, None]
    by_hand = ((s * seen + (1 - s) * rebuilt - wanted) ** 2).mean()
    assert float(reconstruction_loss(wanted, seen, rebuilt, 1.0)) == pytest.approx(float(by_hand))
    assert float(reconstruction_loss(seen, seen, seen.clone(), 1.0)) == pytest.approx(0)


# Features.


def test_features_are_aligned_and_standardised_and_know_their_own_scale() -> None:
    stored, rows = features_of(20, 3), np.arange(1, 20)
    features = Features(stored, rows, True)
    x = features.batch(rows).numpy()
    assert x.shape == (19, 12, 16, 16)
    np.testing.assert_allclose(x.mean(axis=(0, 2, 3)), 0, atol=1e-3)
    np.testing.assert_allclose(x.std(axis=(0, 2, 3)), 1, atol=1e-3)
    assert features.std == pytest.approx(1, abs=1e-3)
    assert features.power == pytest.approx(1, abs=1e-3)
    raw = Features(stored, rows, False)
    y = raw.batch(rows).numpy()
    np.testing.assert_array_equal(y[:, :6], stored["layer2"][rows].astype(np.float32))
    assert raw.power == pytest.approx((y.astype(np.float64) ** 2).mean(), rel=1e-4)
    assert raw.std == pytest.approx(math.sqrt(y.var(axis=(0, 2, 3)).mean()), rel=1e-3)
    np.testing.assert_allclose(y * features.scale[:, None, None] + features.shift[:, None, None], x, atol=1e-4)


def test_a_channel_that_hardly_varies_does_not_become_the_loudest() -> None:
    stored = features_of(12, 0)
    stored["layer2"][:, 2] = 3 + 1e-3 * np.random.default_rng(0).normal(size=(12, 16, 16))
    features = Features(stored, np.arange(12), True)
    assert features.batch(np.arange(12))[:, 2].std() < 0.1


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_features_that_are_not_finite_or_never_vary_are_refused(bad: float) -> None:
    stored = features_of(12, 0)
    stored["layer3"][7, 1, 2, 3] = bad
    with pytest.raises(DataError, match="features are not finite"):
        Features(stored, np.arange(12), True)
    Features(stored, np.delete(np.arange(12), 7), True)
    flat = {layer: np.ones_like(array) for layer, array in stored.items()}
    flat["layer2"][3, 2, 1, 1] += np.float16(1e-3)
    with pytest.raises(DataError, match="the same everywhere in all pictures"):
        Features(flat, np.arange(12), True)


# Stages (oracle 10).


@pytest.mark.parametrize(
    ("stage", "trained"),
    [
        ("abnormal", ("coordinates", "abnormal")),
        ("normal", ("normal", "mix")),
        ("single", ("coordinates", "normal")),
    ],
)
def test_what_a_stage_does_not_train_keeps_every_bit(stage: Stage, trained: tuple[str, ...]) -> None:
    task = task_of(stage)
    before = bits(task.network)
    train(task, schedule(1))
    after = bits(task.network)
    changed = {name for name in before if before[name] != after[name]}
    assert {name.split(".")[0] for name in changed} == set(trained)
    # All of what it trains: grids, networks and batch statistics; limits are constants.
    kept = {name for name in before if name.split(".")[0] in trained} - changed
    assert all(name.endswith("_limit") for name in kept)


def test_alternating_stages_train_their_parts_by_turns() -> None:
    task = task_of("alternate")
    parts: list[set[str]] = []
    state = bits(task.network)

    def watch(status: Any) -> None:
        nonlocal state
        now = bits(task.network)
        parts.append({name.split(".")[0] for name in now if now[name] != state[name]})
        state = now

    train(task, schedule(4), watch=watch)
    first, second = {"coordinates", "abnormal"}, {"normal", "mix"}
    assert parts == 2 * (3 * [first] + 3 * [second])


@pytest.mark.parametrize("stage", ["abnormal", "normal", "alternate"])
def test_a_stage_interrupted_after_any_step_ends_as_if_it_had_not_been(tmp_path: Path, stage: Stage) -> None:
    whole, plan = task_of(stage), schedule(2)
    wanted = train(whole, plan)
    for _ in range(5):  # six steps, one a run
        with pytest.raises(TrainingInterrupted):
            train(task_of(stage), replace(plan, minutes=1e-9), Checkpoints(tmp_path, {}))
    last = task_of(stage)
    got = train(last, plan, Checkpoints(tmp_path, {}))
    assert (got.resumed_at, got.history) == (5, wanted.history)
    assert bits(last.network) == bits(whole.network)


def test_grids_have_a_learning_rate_of_their_own() -> None:
    task = task_of("normal", recipe=small_recipe(grid_lr=50.0))
    rates: list[list[float]] = []
    step = task.optimizer.step

    def noting(*arguments: Any) -> Any:
        rates.append([group["lr"] for group in task.optimizer.param_groups])
        return step(*arguments)

    task.optimizer.step = noting
    train(task, schedule(10))
    assert all(grids == pytest.approx(50 * nets) for nets, grids in rates)
    assert (rates[0][0], rates[-1][0]) == (pytest.approx(2e-3), pytest.approx(2e-3 * 0.04))
    assert [len(group["params"]) for group in task.optimizer.param_groups][1] == 2


def test_few_pictures_are_seen_more_often() -> None:
    def plan(rows: int, **given: Any) -> dict[str, int]:
        return {stage: found.epochs for stage, found in stages(GradSettings(**given), rows, 0)}

    assert plan(13) == {"abnormal": 40, "normal": 80}  # 4 steps an epoch
    assert plan(167) == {"abnormal": 4, "normal": 8}
    assert plan(3000) == {"abnormal": 4, "normal": 8}
    assert plan(13, abnormal_epochs=1, epochs=2) == {"abnormal": 1, "normal": 2}
    assert plan(13, alternate=True) == {"alternate": 120}
    assert plan(13, preset="crad", epochs=2) == {"single": 2}


# Jitter and batches (oracle 11).


def test_jitter_is_of_training_alone_and_scores_do_not_depend_on_the_batch() -> None:
    task = task_of("normal", recipe=small_recipe(jitter=0.5))
    losses = {round(float(task.loss(np.arange(8), np.random.RandomState(seed)).detach()), 7) for seed in range(8)}
    assert len(losses) > 3  # half of the batches are jittered, each in its own way
    still = task_of("normal", recipe=small_recipe(jitter=0.0))
    assert len({float(still.loss(np.arange(8), np.random.RandomState(seed)).detach()) for seed in range(4)}) == 1
    network = task.network.eval()
    x = task.features.batch(np.arange(6))
    with torch.inference_mode():
        whole, again = network(x), network(x)
        alone = torch.cat([network(x[i : i + 1]) for i in range(6)])
    assert torch.equal(whole, again)
    np.testing.assert_allclose(alone.numpy(), whole.numpy(), atol=1e-5)


# What a training reaches (oracle 12), and risk (b).


def trained_network(stored: Stored, abnormal: bool = True, epochs: tuple[int, int] = (12, 24)) -> GradTask:
    rows = np.arange(len(stored["layer2"]))
    features = Features(stored, rows, True)
    network = network_of(features, abnormal=abnormal)
    stages: tuple[tuple[Stage, int], ...] = (("abnormal", epochs[0]), ("normal", epochs[1]))
    for stage, count in stages if abnormal else (("single", sum(epochs)),):  # type: ignore[assignment]
        task = GradTask(network, features, rows, stage, small_recipe(), "cpu", BATCH)
        train(task, schedule(count))
    network.eval()
    return task


def separation(task: GradTask, unseen: Stored) -> tuple[float, float]:
    """AUROC of pictures with a pasted block against the same without, by the map's maximum; and of positions."""
    features = Features(unseen, np.arange(len(unseen["layer2"])), True)
    features.scale, features.shift = task.features.scale, task.features.shift
    x = features.batch(np.arange(len(unseen["layer2"]))).numpy()
    pasted, masks = BlockPaste(half=(1.0, 4.0)).paste(x, 1.0, np.random.RandomState(9))
    with torch.inference_mode():
        clean, bad = (task.network(torch.from_numpy(each)).numpy() for each in (x, pasted))
    labels = [False] * len(clean) + [True] * len(bad)
    by_picture = image_auroc([float(m.max()) for m in (*clean, *bad)], labels)
    by_position = image_auroc(bad.ravel().tolist(), masks.ravel().tolist())
    assert by_picture is not None
    assert by_position is not None
    return by_picture, by_position


def test_a_pasted_block_stands_out_and_one_branch_is_no_better() -> None:
    stored, unseen = features_of(24, 0), features_of(16, 1)
    both = trained_network(stored)
    found = separation(both, unseen)
    assert min(found) > 0.95
    alone = separation(trained_network(stored, abnormal=False), unseen)
    assert sum(alone) <= sum(found) + 0.02  # "worse or equal", up to what a seed is worth
    # Risk (b): positions that look different are at different places of the grid.
    figures = study(both.network, both.features, both.train, BATCH)
    assert min(figures.local) > 0.1
    assert figures.used > 0.2
    assert figures.errors.mean() < 0.5 * both.features.power


def test_the_codes_start_has_all_coordinates_in_the_middle() -> None:
    """Why the default start differs."""
    spreads = {}
    for spread in (0.0, 0.5):
        task = task_of("normal", spread=spread)
        spreads[spread] = study(task.network, task.features, task.train, BATCH)
    assert max(spreads[0.0].local) < 0.02
    assert spreads[0.0].used <= 4 / 64
    assert min(spreads[0.5].local) > 0.2
    assert spreads[0.5].used > 10 * spreads[0.0].used / 4


def test_one_network_learns_two_products() -> None:
    stored = together(features_of(20, 0, 0), features_of(20, 1, 1))
    task = trained_network(stored)
    for product in (0, 1):
        assert min(separation(task, features_of(12, 2, product))) > 0.95, product
    # Neither is the other's defect: good pictures of both score alike, next to pasted ones.
    with torch.inference_mode():
        scores = task.network(task.features.batch(task.train)).amax((1, 2)).numpy()
    assert np.median(scores[:20]) == pytest.approx(np.median(scores[20:]), rel=1.0)


def test_cached_features_that_are_half_precise_are_what_is_trained_on() -> None:
    stored = features_of(24, 0)
    exact = {layer: array.astype(np.float32) for layer, array in stored.items()}
    first, second = (train(task_of("abnormal", given), schedule(2)).history for given in (stored, exact))
    assert first == second


def test_a_training_that_blows_up_never_ends_as_a_result() -> None:
    with pytest.raises(TrainingDiverged, match="not finite"):
        train(task_of("single"), schedule(60, lr=1e18))


# From pictures to a bundle.


def part(rng: np.random.Generator, defect: bool) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """A disc on a plate, slightly moved and lit; the defect is a dark streak."""
    image = np.full((72, 80, 3), 90 + rng.integers(-6, 7), np.uint8)
    centre = (40 + int(rng.integers(-2, 3)), 36 + int(rng.integers(-2, 3)))
    cv2.circle(image, centre, 24, (170, 175, 180), -1)
    mask = np.zeros(image.shape[:2], np.uint8)
    if defect:
        x, y = (int(v) for v in rng.integers(28, 44, 2))
        cv2.line(mask, (x, y), (x + 13, y + 7), 255, 5)
        image[mask > 0] = 20
    return np.clip(image + rng.normal(0, 3, image.shape), 0, 255).astype(np.uint8), mask


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root, rng = tmp_path_factory.mktemp("parts"), np.random.default_rng(0)
    for folder in ("train/good", "test/good", "test/streak", "ground_truth/streak"):
        (root / folder).mkdir(parents=True)
    for i in range(16):
        cv2.imwrite(str(root / f"train/good/{i:02}.png"), part(rng, False)[0])
    for i in range(4):
        cv2.imwrite(str(root / f"test/good/{i}.png"), part(rng, False)[0])
        image, mask = part(rng, True)
        cv2.imwrite(str(root / f"test/streak/{i}.png"), image)
        cv2.imwrite(str(root / f"ground_truth/streak/{i}_mask.png"), mask)
    return root


@pytest.fixture(scope="module")
def graph() -> bytes:
    return export_backbone("builtin", input_size=(64, 64), taps=("layer2", "layer3"))


def grad(**settings: object) -> FitOptions:
    fast: dict[str, object] = {"abnormal_epochs": 2, "epochs": 3, "batch": 4, "width": 16, "blocks": 1}
    fast |= {"local_grid": 8, "global_grid": 2, "half": 3}
    return FitOptions(method="grad", false_alarms=0.2, settings={**fast, **settings})


def fit(data: Path, out: Path, graph: bytes, options: FitOptions, **more: Any) -> Any:
    return fit_bundle(load_split(data, "mvtec"), out, graph=graph, backbone="builtin", options=options, **more)


def test_grad_finds_the_defects_of_a_small_line_and_its_bundle_is_whole(
    data: Path, graph: bytes, tmp_path: Path
) -> None:
    seen: list[str] = []
    report = fit(
        data,
        tmp_path / "b",
        graph,
        grad(abnormal_epochs=8, epochs=16),
        progress=lambda done, total, what: seen.append(what),
    )
    bundle = load_bundle(tmp_path / "b")
    manifest = bundle.manifest
    assert manifest.method == "grad"
    assert (manifest.calibration.method, manifest.calibration.count) == ("holdout", 3)
    tail = manifest.tail
    assert (tail.upsample, tail.smooth, tail.kernel, tail.score, tail.size) == (
        "align_corners",
        "mean",
        21,
        "max",
        (64, 64),
    )
    assert [tap.name for tap in manifest.backbone.taps] == ["residual"]
    assert bundle.arrays == {}
    # What the constants in the units of the features were.
    spec = manifest.spec
    assert spec["threshold"] == report.details["threshold"] == pytest.approx(2 * report.details["largest_error"])
    assert spec["feature_power"] == pytest.approx(1, abs=0.1)
    assert spec["mix"] == report.details["mix"] != 0
    assert set(report.details["loss"]) == {"abnormal", "normal"}
    assert list(dict.fromkeys(what for what in seen if what.startswith("training"))) == [
        "training, abnormal",
        "training, normal",
    ]
    found = evaluate(bundle, data, "mvtec")
    assert found.image_auroc == 1.0
    assert found.pixel_auroc is not None
    assert found.pixel_auroc > 0.9
    with pytest.raises(DataError, match="nothing to refit from"):
        refit_bundle(tmp_path / "b", tmp_path / "c", options=grad())


SHORT: dict[str, object] = {"abnormal_epochs": 2, "epochs": 3, "batch": 13, "prune": 0}  # one step an epoch


@pytest.fixture(scope="module")
def short(data: Path, graph: bytes, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """The bundle and the report of the shortest training, not interrupted."""
    out = tmp_path_factory.mktemp("short") / "b"
    return out, fit(data, out, graph, grad(**SHORT))


def test_grad_interrupted_after_every_epoch_ends_as_if_it_had_not_been(
    data: Path, graph: bytes, tmp_path: Path, short: tuple[Path, Any]
) -> None:
    folder = tmp_path / "b.training"
    resume = {**SHORT, "resume": folder}
    for where in ("after 1 of 2", "after 1 of 3", "after 2 of 3"):
        with pytest.raises(TrainingInterrupted, match=f"{where} epochs .*the same command goes on") as caught:
            fit(data, tmp_path / "b", graph, grad(**resume, minutes=1e-9))
        assert (str(folder / "normal") in str(caught.value)) == where.endswith("3")
        assert not (tmp_path / "b").exists()
    # What was begun otherwise is not mixed in; nor is a second stage with another first one.
    for change, says in ({"half": 4}, "other half"), ({"abnormal_epochs": 3}, "other first_stage; remove"):
        copy = tmp_path / says
        shutil.copytree(folder, copy)
        with pytest.raises(DataError, match=says):
            fit(data, tmp_path / "b", graph, grad(**{**resume, "resume": copy, **change}))
    again = fit(data, tmp_path / "b", graph, grad(**resume))
    assert again.details["resumed_at_step"] == {"abnormal": 2, "normal": 2}
    first, second = load_bundle(short[0]), load_bundle(tmp_path / "b")
    assert first.graph == second.graph
    assert (first.calibration["score"] == second.calibration["score"]).all()
    discard(folder)
    assert not folder.exists()


def test_crad_has_one_stage_one_branch_and_its_own_score(data: Path, graph: bytes, tmp_path: Path) -> None:
    report = fit(data, tmp_path / "b", graph, grad(preset="crad", epochs=2))
    manifest = load_bundle(tmp_path / "b").manifest
    assert (manifest.tail.score, manifest.tail.pooled_kernel) == ("pooled_max", 32)
    assert manifest.spec["abnormal"] is False
    assert manifest.spec["mix"] == 0
    assert set(report.details["loss"]) == {"single"}


def test_an_abnormal_branch_that_adds_nothing_is_left_out(
    data: Path, graph: bytes, tmp_path: Path, short: tuple[Path, Any]
) -> None:
    kept, pruned = short[1], fit(data, tmp_path / "b", graph, grad(**{**SHORT, "prune": 1}))
    assert (kept.details["abnormal_pruned"], pruned.details["abnormal_pruned"]) == (False, True)
    assert 0 < kept.details["abnormal_share"] < 1
    assert pruned.details["mix"] == kept.details["mix"]  # reported all the same
    assert pruned.details["head_parameters"] < 0.7 * kept.details["head_parameters"]
    assert len(load_bundle(tmp_path / "b").graph) < len(load_bundle(short[0]).graph)
    assert load_bundle(tmp_path / "b").manifest.spec["abnormal"] is False


def test_the_literal_preset_trains_too(data: Path, tmp_path: Path) -> None:
    graph = export_backbone("builtin", input_size=(64, 64), taps=("layer1",))
    options = replace(grad(preset="literal", width=None, blocks=1, abnormal_epochs=1, epochs=1), layers=("layer1",))
    fit(data, tmp_path / "b", graph, options)
    spec = load_bundle(tmp_path / "b").manifest.spec
    assert (spec["kind"], spec["width"], spec["shape_residual"]) == ("basic", 0, [1, 16, 16])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (FitOptions(method="grad", calibration="folds"), "cannot be calibrated by 'folds'; it knows holdout"),
        (FitOptions(method="grad", rule="combined"), "no rule 'combined'"),
        (grad(epochs=0), "grad: epochs: .*greater than or equal to 1"),
        (grad(speed=3), "grad: speed: there is no such setting"),
        (grad(preset="paper"), "grad: preset"),
        (grad(weakest=3, strongest=2), "grad: strongest: a block's largest intensity is below"),
        (grad(preset="crad", alternate=True), "grad: alternate: the preset crad has one stage"),
    ],
)
def test_impossible_options_are_one_clear_line(options: FitOptions, says: str) -> None:
    with pytest.raises(DataError, match=says) as caught:
        options.resolved()
    assert "\n" not in str(caught.value)


def test_pictures_that_cannot_be_learnt_from_are_one_clear_line(data: Path, graph: bytes, tmp_path: Path) -> None:
    good = sorted((data / "train/good").iterdir())
    with pytest.raises(DataError, match="good pictures are too few"):
        fit_bundle(good[:5], tmp_path / "b", graph=graph, backbone="builtin", options=grad())
    swapped = export_backbone("builtin", input_size=(64, 64), taps=("layer3", "layer2"))
    with pytest.raises(DataError, match="name the layers from shallow to deep"):
        fit(data, tmp_path / "b", swapped, replace(grad(), layers=("layer3", "layer2")))
    (tmp_path / "grey").mkdir()
    for i in range(12):
        cv2.imwrite(str(tmp_path / f"grey/{i}.png"), np.full((64, 64, 3), 128, np.uint8))
    copies = sorted((tmp_path / "grey").iterdir())
    with pytest.raises(DataError, match="copies of one another") as caught:
        fit_bundle(copies, tmp_path / "b", graph=graph, backbone="builtin", options=grad(abnormal_epochs=1, epochs=1))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "b").exists()
