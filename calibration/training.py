"""Training any torch head: seeded, resumable, bounded in time, and never a bundle from a loss that is not a number.

All randomness is a function of (seed, epoch, step), so that a training that was interrupted goes on exactly as it
would have: on one machine's processor, with one torch build and as many threads, the result is the same to the last
bit. Torch itself is imported when a training starts, not with this module.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from calibration import Progress
from calibration.checkpoints import Checkpoints, State
from edge.errors import DataError, EdgeError, Exit

Indices = NDArray[np.intp]

SAVE_EVERY_S = 30.0
_MODEL, _OPTIMIZER, _EPOCH_SUM = "model.", "optimizer.", "epoch.sum"


class TrainingInterrupted(EdgeError):
    """Stopped by a signal or the time budget; what was reached is kept where there are checkpoints."""

    exit_code = Exit.INTERRUPTED


class TrainingDiverged(DataError):
    """The loss or its gradient is not finite. The last good state is restored, and kept on disk."""


@dataclass(frozen=True)
class Schedule:
    """How long and how fast.

    epochs: times every picture is seen; batch: pictures a step; lr: the optimiser's learning rate after ``warmup``
    steps of linear growth, then constant, or falling to zero as half a cosine over all steps, or (``steps``) to a
    fifth after 80 % of all steps and to a fifth of that after 90 %. clip: largest 2-norm of the whole gradient, None:
    any. minutes: time after which this run stops, resumable; None: no limit."""

    epochs: int
    batch: int
    lr: float
    seed: int = 0
    warmup: int = 50
    decay: Literal["none", "cosine", "steps"] = "none"
    clip: float | None = 1.0
    minutes: float | None = None

    def rate(self, step: int, total: int) -> float:
        """The learning rate of step 0 to ``total`` - 1."""
        rate = self.lr * min(1.0, (step + 1) / max(1, self.warmup))
        if self.decay == "cosine":
            rate *= 0.5 * (1.0 + math.cos(math.pi * step / total))
        elif self.decay == "steps":
            rate *= 0.2 ** ((10 * step >= 8 * total) + (10 * step >= 9 * total))
        return rate

    def order(self, epoch: int, rows: int) -> Indices:
        """The rows of an epoch in the order of their use: a permutation that the seed and the epoch fix."""
        # RandomState's streams are frozen (NEP 19): the same order in every NumPy.
        return np.random.RandomState([self.seed, epoch]).permutation(rows)


class Trainable(Protocol):
    """What is trained. ``module`` (torch.nn.Module) and ``optimizer`` (over its parameters) hold all its state. A
    parameter group may have a ``factor``, in units of the schedule's learning rate."""

    rows: int
    module: Any
    optimizer: Any

    def loss(self, rows: Indices, random: np.random.RandomState) -> Any:
        """The mean loss (a scalar tensor) over these rows, in training mode. Chance comes from ``random`` alone,
        which is new in every step; a generator of torch's would not be resumed."""
        ...


@dataclass(frozen=True)
class Status:
    """After a step. loss: of this step; seconds_left: estimated from this run's steps."""

    step: int
    steps: int
    epoch: int
    epochs: int
    loss: float
    seconds_left: float


Watcher = Callable[[Status], None]


@dataclass(frozen=True)
class Trained:
    """history: mean loss of every epoch; resumed_at: the step this run began with; seconds: of this run."""

    history: tuple[float, ...]
    steps: int
    resumed_at: int
    seconds: float


def import_torch() -> Any:
    """The ``torch`` package. Raises DataError where it is not installed."""
    try:
        import torch
    except ImportError:
        raise DataError(
            'training this head needs the package torch: install the extra "fit" (edge-inspect[fit])'
        ) from None
    return torch


def choose_device(name: str) -> str:
    """``auto``: a GPU where torch sees one, else the CPU. Raises DataError for a GPU that it does not see."""
    seen = import_torch().cuda.is_available()
    if name == "cuda" and not seen:
        raise DataError("torch sees no GPU here; train with device=cpu (slower, the same method)")
    return ("cuda" if seen else "cpu") if name == "auto" else name


def report_to(progress: Progress, what: str = "training") -> Watcher:
    """Passes the status on as steps done of all."""
    return lambda status: progress(status.step, status.steps, what)


def train(
    task: Trainable,
    schedule: Schedule,
    checkpoints: Checkpoints | None = None,
    watch: Watcher = lambda status: None,
) -> Trained:
    """Train ``task`` to the end of the schedule; from where ``checkpoints`` left off, if they hold a state.

    SIGINT and SIGTERM end it after the step at hand, with the state kept; a second one at once, with the state of up
    to :data:`SAVE_EVERY_S` seconds before. Raises TrainingInterrupted for these and for the spent budget,
    TrainingDiverged, DataError for a state that is damaged or of another training, ResourceError."""
    if task.rows < 1:
        raise DataError("there is nothing to train on")
    with checkpoints.locked() if checkpoints is not None else nullcontext(), _signals() as asked:
        return _Run(task, schedule, checkpoints, watch).go(asked)


class _Run:
    def __init__(self, task: Trainable, schedule: Schedule, checkpoints: Checkpoints | None, watch: Watcher) -> None:
        self.task, self.schedule, self.checkpoints, self.watch = task, schedule, checkpoints, watch
        self.epoch_steps = math.ceil(task.rows / schedule.batch)
        self.total = self.epoch_steps * schedule.epochs
        self.step = 0
        self.history: list[float] = []
        self.epoch_sum = 0.0
        self.good: State | None = None  # the loss at these parameters was finite
        self.fresh: State | None = None  # taken, but not judged yet by the next loss

    def go(self, asked: Callable[[], bool]) -> Trained:
        state = self.checkpoints.load() if self.checkpoints is not None else None
        if state is not None:
            self._restore(state)
            self.good = state
            if self.step > self.total:
                raise DataError(f"trained already {self._where(self.step)}; ask for at least as many epochs")
        began, first = time.monotonic(), self.step
        self.fresh, saved = self._state(), began
        order = self.schedule.order(self.step // self.epoch_steps, self.task.rows)
        while self.step < self.total:
            epoch, index = divmod(self.step, self.epoch_steps)
            if index == 0:
                order = self.schedule.order(epoch, self.task.rows)
            loss = self._one(order[index * self.schedule.batch : (index + 1) * self.schedule.batch], epoch, index)
            now = time.monotonic()
            left = (now - began) / (self.step - first) * (self.total - self.step)
            self.watch(Status(self.step, self.total, self.step // self.epoch_steps, self.schedule.epochs, loss, left))
            if asked():
                raise self._stopped("interrupted")
            minutes = self.schedule.minutes
            if minutes is not None and now - began >= 60 * minutes and self.step < self.total:
                raise self._stopped(f"the budget of {minutes:g} minutes is spent")
            if now - saved >= SAVE_EVERY_S:
                self.fresh, saved = self._state(), now
        self._finish()
        return Trained(tuple(self.history), self.step, first, time.monotonic() - began)

    def _one(self, rows: Indices, epoch: int, index: int) -> float:
        """One step of the optimiser; the loss before it."""
        torch = import_torch()
        schedule, optimizer = self.schedule, self.task.optimizer
        for group in optimizer.param_groups:
            group["lr"] = schedule.rate(self.step, self.total) * group.get("factor", 1.0)
        self.task.module.train()
        loss = self.task.loss(rows, np.random.RandomState([schedule.seed, epoch, index + 1]))
        value = float(loss.detach())
        if not math.isfinite(value):
            raise self._diverged("the loss")
        if self.fresh is not None:  # it gave a finite loss, so it may take the place of the one before
            self.good, self.fresh = self.fresh, None
            if self.checkpoints is not None:
                self.checkpoints.save(self.good)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        limit = math.inf if schedule.clip is None else schedule.clip
        length = torch.nn.utils.clip_grad_norm_(self.task.module.parameters(), limit)
        if not math.isfinite(float(length)):
            raise self._diverged("the gradient")
        optimizer.step()
        self.step += 1
        self.epoch_sum += value * len(rows)
        if self.step % self.epoch_steps == 0:
            self.history.append(self.epoch_sum / self.task.rows)
            self.epoch_sum = 0.0
        return value

    def _finish(self) -> None:
        last = self._state()
        if not _finite(last):
            raise self._diverged("a parameter")
        self.good = last
        # Kept until the caller has written the result: a full disk then costs no training.
        if self.checkpoints is not None:
            self.checkpoints.save(last)

    def _stopped(self, why: str) -> TrainingInterrupted:
        last = self._state()
        where = f"{why} {self._where(self.step)}"
        if self.checkpoints is None:
            return TrainingInterrupted(f"{where}; nothing was kept, as no folder was named for it")
        if _finite(last):
            self.checkpoints.save(last)
        return TrainingInterrupted(f"{where}; the same command goes on from there ({self.checkpoints.folder})")

    def _diverged(self, what: str) -> TrainingDiverged:
        where = f"{what} is not finite {self._where(self.step)}: stopped"
        if self.good is None:
            return TrainingDiverged(
                f"{where}, and nothing before it is worth keeping; check the backbone's weights, lower the learning"
                " rate"
            )
        self._restore(self.good)
        kept = f"the last good state, {self._where(self.step)}, is kept"
        if self.checkpoints is not None:
            kept += f" in {self.checkpoints.folder}"
        return TrainingDiverged(f"{where}; {kept}: go on from it with a lower learning rate")

    def _where(self, step: int) -> str:
        done, index = divmod(step, self.epoch_steps)
        loss = f", loss {self.history[-1]:.4g}" if self.history else ""
        return f"after {done} of {self.schedule.epochs} epochs and {index} steps{loss}"

    def _state(self) -> State:
        arrays = {_EPOCH_SUM: np.array([self.epoch_sum])}
        for name, tensor in self.task.module.state_dict().items():
            arrays[_MODEL + name] = _array(tensor)
        for index, values in self.task.optimizer.state_dict()["state"].items():
            for name, tensor in values.items():
                if tensor is not None:
                    arrays[f"{_OPTIMIZER}{index}.{name}"] = _array(tensor)
        return State(self.step, tuple(self.history), arrays)

    def _restore(self, state: State) -> None:
        torch = import_torch()
        tensors = {name: torch.from_numpy(array.copy()) for name, array in state.arrays.items()}
        model = {name.removeprefix(_MODEL): value for name, value in tensors.items() if name.startswith(_MODEL)}
        slots: dict[int, dict[str, Any]] = {}
        for key, value in tensors.items():
            if key.startswith(_OPTIMIZER):
                index, name = key.removeprefix(_OPTIMIZER).split(".", 1)
                slots.setdefault(int(index), {})[name] = value
        try:
            self.task.module.load_state_dict(model)
            content = self.task.optimizer.state_dict()
            self.task.optimizer.load_state_dict({**content, "state": slots})
            self.epoch_sum = float(state.arrays[_EPOCH_SUM][0])
        except (RuntimeError, ValueError, KeyError) as error:
            raise DataError(f"the training's state does not fit this head ({_first_line(error)})") from None
        self.step, self.history = state.step, list(state.history)


@contextmanager
def _signals() -> Iterator[Callable[[], bool]]:
    """Gives a question: was an end asked for? Signals only take note, so that no step is left half done."""
    asked: list[int] = []

    def note(signum: int, frame: Any) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(signum)

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    # An ignored signal stays so: whoever started us (nohup, a shell's background job) meant it.
    chosen = [number for number in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, note) for number in chosen}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _array(tensor: Any) -> NDArray[Any]:
    return np.array(tensor.detach().cpu().contiguous().numpy())


def _finite(state: State) -> bool:
    return all(np.isfinite(array).all() for array in state.arrays.values())


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
