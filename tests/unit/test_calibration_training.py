"""The trainer and its checkpoints, on a small torch head; then HFRA from pictures on disk to a bundle."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from calibration import training
from calibration.checkpoints import Checkpoints, State, discard
from calibration.datasets import load_split
from calibration.evaluate import evaluate
from calibration.fit import fit_bundle, refit_bundle
from calibration.options import FitOptions
from calibration.store import Store
from calibration.training import Schedule, Status, TrainingDiverged, TrainingInterrupted, train
from edge.bundle import load_bundle
from edge.errors import DataError, Exit, ResourceError
from edge.signal_stack import install_signal_stack
from engines.export import export_backbone

torch = pytest.importorskip("torch", reason="needs the extra fit")
pytest.importorskip("onnx", reason="needs the extra fit")

ROOT = Path(__file__).resolve().parents[2]
IDENTITY = {"method": "test", "seed": 0}
ROWS = 10


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Net:
    """A small network with all kinds of state: batch norm's buffers, momentum, an integer counter; and chance."""

    rows = ROWS

    def __init__(self, adam: bool = False, bad_step: int | None = None) -> None:
        torch.manual_seed(11)
        self.module = torch.nn.Sequential(
            torch.nn.Conv2d(2, 6, 3, padding=1), torch.nn.BatchNorm2d(6), torch.nn.ReLU(), torch.nn.Conv2d(6, 1, 1)
        ).to(memory_format=torch.channels_last)
        parameters = self.module.parameters()
        self.optimizer: Any = (
            torch.optim.Adam(parameters, lr=0.0) if adam else torch.optim.SGD(parameters, lr=0.0, momentum=0.9)
        )
        self.x = torch.randn(ROWS, 2, 5, 5, generator=torch.Generator().manual_seed(1))
        self.bad_step, self.calls = bad_step, 0
        self.seen: list[list[int]] = []

    def loss(self, rows: NDArray[np.intp], random: np.random.RandomState) -> Any:
        self.seen.append(rows.tolist())
        self.calls += 1
        x = self.x[torch.from_numpy(rows)]
        noise = torch.from_numpy(random.normal(size=x.shape).astype(np.float32))
        wanted = x.sum(1, keepdim=True)
        error = ((self.module(x + 0.05 * noise) - wanted) ** 2).mean()
        return error * math.nan if self.calls == self.bad_step else error


def state_of(net: Net) -> dict[str, bytes]:
    found = {name: tensor.contiguous().numpy().tobytes() for name, tensor in net.module.state_dict().items()}
    for index, values in net.optimizer.state_dict()["state"].items():
        found |= {f"{index}.{name}": tensor.contiguous().numpy().tobytes() for name, tensor in values.items()}
    return found


SCHEDULE = Schedule(epochs=6, batch=4, lr=0.05, warmup=3, decay="cosine")  # 3 steps an epoch, the last of 2 rows


@pytest.fixture(autouse=True)
def roomy_signal_stack() -> None:
    """pytest's fault handler has a small one, and an engine of another test may have made the state large."""
    install_signal_stack()


class StopAfter:
    """A watcher that asks for the end as a person does, by a signal."""

    def __init__(self, step: int, number: int = signal.SIGINT) -> None:
        self.step, self.number = step, number

    def __call__(self, status: Status) -> None:
        if status.step == self.step:
            os.kill(os.getpid(), self.number)


# The trainer.


@pytest.mark.parametrize("adam", [False, True])
@pytest.mark.parametrize("step", [1, 7, 9])
def test_interrupted_and_resumed_equals_uninterrupted_to_the_last_bit(tmp_path: Path, adam: bool, step: int) -> None:
    whole = Net(adam)
    wanted = train(whole, SCHEDULE)
    first = Net(adam)
    number = signal.SIGTERM if adam else signal.SIGINT
    with pytest.raises(TrainingInterrupted, match=r"interrupted after \d of 6 epochs.*same command goes on") as caught:
        train(first, SCHEDULE, Checkpoints(tmp_path / "t", IDENTITY), StopAfter(step, number))
    assert caught.value.exit_code == Exit.INTERRUPTED
    assert len(first.seen) == step
    again = Net(adam)
    got = train(again, SCHEDULE, Checkpoints(tmp_path / "t", IDENTITY))
    assert got.resumed_at == step
    assert first.seen + again.seen == whole.seen
    assert got.history == wanted.history
    assert state_of(again) == state_of(whole)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    # A finished training is not trained further.
    last = Net(adam)
    assert train(last, SCHEDULE, Checkpoints(tmp_path / "t", IDENTITY)).history == wanted.history
    assert last.seen == []
    assert state_of(last) == state_of(whole)


def test_the_seed_fixes_everything_and_another_seed_changes_it() -> None:
    first, again, other = Net(), Net(), Net()
    assert train(first, SCHEDULE).history == train(again, SCHEDULE).history
    assert state_of(first) == state_of(again)
    train(other, Schedule(epochs=6, batch=4, lr=0.05, seed=1))
    assert other.seen != first.seen
    assert sorted(row for rows in first.seen[:3] for row in rows) == list(range(ROWS))


def test_training_improves_the_loss_and_the_history_is_the_mean_over_pictures() -> None:
    net = Net()
    statuses: list[Status] = []
    trained = train(net, Schedule(epochs=30, batch=4, lr=0.05), watch=statuses.append)
    assert trained.history[-1] < 0.3 * trained.history[0]
    assert [s.step for s in statuses] == list(range(1, 91))
    assert statuses[-1].seconds_left == 0
    assert all(s.seconds_left > 0 for s in statuses[:-1])
    losses = [s.loss for s in statuses[:3]]
    assert trained.history[0] == pytest.approx((4 * losses[0] + 4 * losses[1] + 2 * losses[2]) / 10)


def test_more_epochs_prolong_a_finished_training(tmp_path: Path) -> None:
    whole, net = Net(), Net()
    train(whole, Schedule(epochs=4, batch=4, lr=0.05))
    for epochs in (2, 4):
        net = Net()
        train(net, Schedule(epochs=epochs, batch=4, lr=0.05), Checkpoints(tmp_path, IDENTITY))
    assert state_of(net) == state_of(whole)
    with pytest.raises(DataError, match="trained already after 4 of 3 epochs"):
        train(Net(), Schedule(epochs=3, batch=4, lr=0.05), Checkpoints(tmp_path, IDENTITY))


@pytest.mark.parametrize("bad", [1, 2, 9])
def test_a_loss_that_is_not_finite_stops_and_the_last_good_state_is_kept(
    tmp_path: Path, bad: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "SAVE_EVERY_S", 0.0)  # after every step
    folder = tmp_path / "t"
    net = Net(bad_step=bad)
    with pytest.raises(TrainingDiverged, match=r"the loss is not finite after \d of 6 epochs") as caught:
        train(net, SCHEDULE, Checkpoints(folder, IDENTITY))
    assert "\n" not in str(caught.value)
    kept = Checkpoints(folder, IDENTITY).load()
    if bad == 1:
        assert kept is None
        assert "nothing before it is worth keeping" in str(caught.value)
        return
    # The state whose loss was the last finite one: the step that led to the bad loss is undone.
    assert kept is not None
    assert kept.step == bad - 2
    assert f"kept in {folder}" in str(caught.value)
    if bad > 2:
        alike = Net()
        with pytest.raises(TrainingInterrupted):
            train(alike, SCHEDULE, Checkpoints(tmp_path / "other", IDENTITY), StopAfter(bad - 2))
        assert state_of(net) == state_of(alike)
    resumed = Net()
    slower = Schedule(epochs=6, batch=4, lr=0.01, warmup=3)
    assert train(resumed, slower, Checkpoints(folder, IDENTITY)).resumed_at == bad - 2
    assert all(np.isfinite(tensor.numpy()).all() for tensor in resumed.module.state_dict().values())


def test_a_gradient_that_is_not_finite_stops_before_it_does_harm() -> None:
    net = Net()
    plain = net.loss

    def loss(rows: NDArray[np.intp], random: np.random.RandomState) -> Any:
        value = plain(rows, random)
        weight = net.module[0].weight
        return value if net.calls < 4 else value + torch.sqrt(torch.abs(weight - weight.detach())).sum()  # slope inf

    net.loss = loss  # type: ignore[method-assign]
    with pytest.raises(TrainingDiverged, match="the gradient is not finite after 1 of 6 epochs and 0 steps"):
        train(net, SCHEDULE)
    assert all(np.isfinite(tensor.detach().numpy()).all() for tensor in net.module.parameters())


def test_a_training_that_blows_up_never_ends_as_a_result() -> None:
    with pytest.raises(TrainingDiverged, match="not finite"):
        train(Net(), Schedule(epochs=200, batch=4, lr=1e12, warmup=0, clip=None))


def test_the_time_budget_stops_and_is_resumed(tmp_path: Path) -> None:
    whole = Net()
    train(whole, SCHEDULE)
    short = Schedule(epochs=6, batch=4, lr=0.05, warmup=3, decay="cosine", minutes=1e-9)
    for _ in range(17):  # one step a run, and 18 steps
        with pytest.raises(TrainingInterrupted, match="the budget of 1e-09 minutes is spent"):
            train(Net(), short, Checkpoints(tmp_path, IDENTITY))
    last = Net()
    assert train(last, short, Checkpoints(tmp_path, IDENTITY)).resumed_at == 17
    assert state_of(last) == state_of(whole)


def test_without_a_folder_an_interruption_says_that_nothing_is_kept() -> None:
    with pytest.raises(TrainingInterrupted, match="nothing was kept"):
        train(Net(), SCHEDULE, None, StopAfter(2))


def test_a_second_signal_ends_at_once_with_the_state_before(tmp_path: Path) -> None:
    def impatient(status: Status) -> None:
        if status.step == 5:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(Net(), SCHEDULE, Checkpoints(tmp_path, IDENTITY), impatient)
    kept = Checkpoints(tmp_path, IDENTITY).load()
    assert kept is not None
    assert kept.step == 0  # the beginning: no time to save since


def test_an_ignored_signal_stays_ignored_and_other_threads_train_too() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        train(Net(), SCHEDULE, None, StopAfter(2))
    finally:
        signal.signal(signal.SIGINT, before)
    result: list[training.Trained] = []
    thread = threading.Thread(target=lambda: result.append(train(Net(), SCHEDULE)))
    thread.start()
    thread.join(60)
    assert result
    assert result[0].history == train(Net(), SCHEDULE).history


def test_the_learning_rate_warms_up_then_stays_or_falls_to_zero() -> None:
    flat, cosine = Schedule(1, 1, 0.4, warmup=4), Schedule(1, 1, 0.4, warmup=0, decay="cosine")
    assert [flat.rate(step, 100) for step in (0, 1, 3, 4, 99)] == pytest.approx([0.1, 0.2, 0.4, 0.4, 0.4])
    assert [cosine.rate(step, 100) for step in (0, 50, 100)] == pytest.approx([0.4, 0.2, 0.0])


def test_without_torch_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(DataError, match=r'install the extra "fit"'):
        FitOptions(method="hfra").resolved()


# Death by SIGKILL.

_CHILD = """
import sys
sys.path.insert(0, sys.argv[2])
import torch
torch.set_num_threads(1)
from calibration import training
from calibration.checkpoints import Checkpoints
from test_calibration_training import IDENTITY, Net
from pathlib import Path
training.SAVE_EVERY_S = 0.0
endless = training.Schedule(epochs=10**6, batch=4, lr=0.05, warmup=3)
training.train(Net(), endless, Checkpoints(Path(sys.argv[1]), IDENTITY))
"""


def test_sigkill_at_any_moment_leaves_a_state_that_resumes(tmp_path: Path) -> None:
    folder = tmp_path / "t"
    child = subprocess.Popen(
        [sys.executable, "-c", _CHILD, str(folder), str(Path(__file__).parent)], cwd=ROOT, start_new_session=True
    )
    try:
        reached = -1
        deadline = time.monotonic() + 60
        while reached < 8:  # writing all the time: the kill lands in the middle of something
            assert time.monotonic() < deadline
            assert child.poll() is None
            try:
                reached = json.loads((folder / "training.json").read_text())["step"]
            except FileNotFoundError:
                pass
            time.sleep(0.002)
        with pytest.raises(ResourceError, match="another process trains here"), Checkpoints(folder, IDENTITY).locked():
            pass
    finally:
        child.kill()
        child.wait(30)
    kept = Checkpoints(folder, IDENTITY).load()
    assert kept is not None
    assert kept.step >= reached
    epochs = kept.step // 3 + 2
    schedule = Schedule(epochs=epochs, batch=4, lr=0.05, warmup=3)
    whole, resumed = Net(), Net()
    wanted = train(whole, schedule)
    got = train(resumed, schedule, Checkpoints(folder, IDENTITY))
    assert got.history == wanted.history
    assert state_of(resumed) == state_of(whole)
    assert sorted(path.name for path in folder.iterdir()) == [
        "lock",
        f"state-{3 * epochs}.safetensors",
        "training.json",
    ]


# Checkpoints.


def kept(folder: Path, identity: dict[str, Any] = IDENTITY) -> Checkpoints:
    checkpoints = Checkpoints(folder, identity)
    with checkpoints.locked():
        checkpoints.save(State(3, (0.5,), {"a": np.arange(4.0), "n": np.array(7), "t": np.ones((2, 3)).T}))
    return checkpoints


def test_a_state_comes_back_as_it_was_and_replaces_the_one_before(tmp_path: Path) -> None:
    checkpoints = kept(tmp_path)
    state = checkpoints.load()
    assert state is not None
    assert (state.step, state.history) == (3, (0.5,))
    assert state.arrays["n"].shape == ()
    assert state.arrays["n"] == 7
    np.testing.assert_array_equal(state.arrays["t"], np.ones((3, 2)))
    checkpoints.save(State(9, (0.5, 0.25), {"a": np.zeros(1)}))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lock", "state-9.safetensors", "training.json"]
    discard(tmp_path)
    assert not tmp_path.exists()
    discard(tmp_path)


def test_a_damaged_state_is_one_clear_line_with_the_remedy(tmp_path: Path) -> None:
    file, record = tmp_path / "state-3.safetensors", tmp_path / "training.json"
    damages = [
        (file, lambda data: data[:-1], "changed or cut short"),
        (file, lambda data: data[:-1] + b"\xff", "changed or cut short"),
        (record, lambda data: data[: len(data) // 2], "damaged"),
        (record, lambda data: data.replace(b"state-3", b"../../x"), "damaged"),
        (record, lambda data: data.replace(b'"format_version": 1', b'"format_version": 2'), "version 2 is not known"),
        (record, lambda data: data.replace(b'"seed": 0', b'"seed": 5'), "an unfinished training with other seed"),
    ]
    for path, damage, message in damages:
        checkpoints = kept(tmp_path)
        path.write_bytes(damage(path.read_bytes()))
        with pytest.raises(DataError, match=message) as caught:
            checkpoints.load()
        assert "\n" not in str(caught.value)
        assert f"remove {tmp_path}" in str(caught.value)
    kept(tmp_path)
    file.unlink()
    with pytest.raises(DataError, match="cannot be read"):
        Checkpoints(tmp_path, IDENTITY).load()


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "holiday.png").write_bytes(b"x")
    checkpoints = Checkpoints(tmp_path, IDENTITY)
    with pytest.raises(DataError, match="holds something else"), checkpoints.locked():
        pass
    discard(tmp_path)
    assert (tmp_path / "holiday.png").exists()
    with pytest.raises(DataError, match="holds something else"), Checkpoints(tmp_path / "holiday.png", {}).locked():
        pass


def test_a_state_of_another_head_is_refused(tmp_path: Path) -> None:
    kept(tmp_path)
    with pytest.raises(DataError, match="does not fit this head"):
        train(Net(), SCHEDULE, Checkpoints(tmp_path, IDENTITY))


def test_a_full_disk_keeps_the_state_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = kept(tmp_path)

    def full(path: Path, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("calibration.checkpoints.write_atomically", full)
    with pytest.raises(ResourceError, match=r"No space left on device.*goes on from the last state"):
        checkpoints.save(State(4, (), {"a": np.zeros(1)}))
    state = checkpoints.load()
    assert state is not None
    assert state.step == 3


# Features that memory does not hold.


def test_what_memory_does_not_hold_lies_in_a_file_that_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("calibration.store.available_bytes", lambda: 1000)
    rows = [{"layer1": np.full((3, 50), i, np.float16), "pictures": np.full((4,), i, np.uint8)} for i in range(5)]
    with pytest.raises(ResourceError, match="5 good pictures need"):
        Store(5).add(rows[0])
    store = Store(5, overflow=tmp_path / "deep")
    for row in rows[:4]:
        store.add(row)
    arrays = store.arrays()
    assert list((tmp_path / "deep").iterdir()) == []
    for name, array in arrays.items():
        assert isinstance(array, np.memmap)
        np.testing.assert_array_equal(array, np.stack([row[name] for row in rows[:4]]))
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ResourceError, match=r"do not fit into memory, and 0\.0 GB not into"):
        Store(5, overflow=tmp_path / "file").add(rows[0])


# HFRA from pictures to a bundle.


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
    return export_backbone("builtin", input_size=(64, 64))


def hfra(**settings: object) -> FitOptions:
    fast: dict[str, object] = {"epochs": 25, "batch": 4, "warmup": 10, "mid": 0.25}
    return FitOptions(method="hfra", false_alarms=0.2, settings={**fast, **settings})


def fit(data: Path, out: Path, graph: bytes, options: FitOptions) -> Any:
    return fit_bundle(load_split(data, "mvtec"), out, graph=graph, backbone="builtin", options=options)


def test_hfra_finds_the_defects_of_a_small_line_and_its_bundle_is_whole(
    data: Path, graph: bytes, tmp_path: Path
) -> None:
    report = fit(data, tmp_path / "b", graph, hfra())
    assert report.details["loss"] < 0.15
    bundle = load_bundle(tmp_path / "b")
    manifest = bundle.manifest
    assert manifest.method == "hfra"
    assert manifest.calibration.method == "holdout"
    assert (manifest.tail.fuse, manifest.tail.smooth, manifest.tail.sigma, manifest.score.rule) == (
        "sum",
        "gauss",
        4,
        "max",
    )
    assert [tap.name for tap in manifest.backbone.taps] == ["residual_layer1", "residual_layer2", "residual_layer3"]
    assert bundle.arrays == {}
    assert manifest.calibration.count == 3
    assert manifest.tail.size == (64, 64)
    found = evaluate(bundle, data, "mvtec")
    assert found.image_auroc == 1.0
    assert found.pixel_auroc is not None
    assert found.pixel_auroc > 0.9
    with pytest.raises(DataError, match="nothing to refit from"):
        refit_bundle(tmp_path / "b", tmp_path / "c", options=hfra())


def test_a_training_from_mapped_features_is_the_same(
    data: Path, graph: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit(data, tmp_path / "memory", graph, hfra(epochs=1))
    monkeypatch.setattr("calibration.store.available_bytes", lambda: 1000)
    fit(data, tmp_path / "file", graph, hfra(epochs=1))
    assert load_bundle(tmp_path / "memory").graph == load_bundle(tmp_path / "file").graph


def test_hfra_interrupted_writes_nothing_and_ends_as_if_it_had_not_been(
    data: Path, graph: bytes, tmp_path: Path
) -> None:
    fit(data, tmp_path / "whole", graph, hfra(epochs=4))
    resume = {"epochs": 4, "resume": tmp_path / "b.training"}
    with pytest.raises(TrainingInterrupted):
        fit(data, tmp_path / "b", graph, hfra(**resume, minutes=1e-9))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.training", "whole"]
    with pytest.raises(DataError, match="an unfinished training with other batch"):
        fit(data, tmp_path / "b", graph, hfra(**{**resume, "batch": 5}))
    fit(data, tmp_path / "b", graph, hfra(**resume))
    first, second = load_bundle(tmp_path / "whole"), load_bundle(tmp_path / "b")
    assert first.graph == second.graph
    assert (first.calibration["score"] == second.calibration["score"]).all()


def test_printed_level_weights_and_the_seed_are_the_bundles(data: Path, graph: bytes, tmp_path: Path) -> None:
    fit(data, tmp_path / "p", graph, hfra(epochs=1, weights="printed"))
    printed = load_bundle(tmp_path / "p").manifest
    assert printed.tail.fuse == "weights"
    assert printed.tail.weights == (1 / 256, 1 / 64, 1 / 16)
    options = hfra(epochs=1)
    fit(data, tmp_path / "s", graph, FitOptions(method="hfra", seed=1, settings=options.settings, false_alarms=0.2))
    assert load_bundle(tmp_path / "s").graph != load_bundle(tmp_path / "p").graph


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (FitOptions(method="hfra", calibration="folds"), "cannot be calibrated by 'folds'; it knows holdout"),
        (FitOptions(method="hfra", rule="combined"), "no rule 'combined'"),
        (hfra(epochs=0), "hfra: epochs: .*greater than or equal to 1"),
        (hfra(speed=3), "hfra: speed: there is no such setting"),
        (hfra(decay="linear"), "hfra: decay"),
    ],
)
def test_impossible_options_are_one_clear_line(options: FitOptions, says: str) -> None:
    with pytest.raises(DataError, match=says) as caught:
        options.resolved()
    assert "\n" not in str(caught.value)


def test_layers_that_do_not_nest_are_refused_before_the_training(data: Path, tmp_path: Path) -> None:
    graph = export_backbone("builtin", input_size=(72, 72))  # 18, 9 and 5
    with pytest.raises(DataError, match="multiples of 16"):
        fit(data, tmp_path / "b", graph, hfra())
    assert not (tmp_path / "b").exists()
