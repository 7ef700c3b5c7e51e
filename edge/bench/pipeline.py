"""``edge bench pipeline``: the daemon against the bare loop on the same pictures, and its latency at a given rate."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zmq

from edge.alerts.messages import MessageError, Verdict, parse
from edge.bench.line import Line, Window
from edge.bench.processes import BenchError, run_worker
from edge.bench.spread import Spread, ratios, spread
from edge.cameras.config import SyntheticSource
from edge.wire.ledger import Counts

RATIO_TARGET = 0.9
CPU_TARGET = 1.25
# "As fast as it is read" for a line file: TOML has no null, and this is the highest rate a source may have.
UNPACED_FPS = 1000.0
SEED = 1000  # of the first camera; the bundle is fitted on another run of parts
START_S = 120.0

ReportProgress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Settings:
    """``frames``: scored in a round, all cameras together, after the warm-up of ``warm`` a camera. ``parts``: pictures
    a camera repeats from memory. ``fps``, ``seconds``: the paced phase; 0 seconds leave it out."""

    cameras: int = 2
    width: int = 640
    height: int = 480
    parts: int = 16
    warm: int = 32
    frames: int = 600
    rounds: int = 5
    fps: float = 15.0
    seconds: float = 20.0
    defect_rate: float = 0.0

    def sources(self, fps: float) -> list[SyntheticSource]:
        """The cameras' sources at ``fps`` frames a second each."""
        common = {"kind": "synthetic", "size": (self.width, self.height), "fps": fps}
        common |= {"defect_rate": self.defect_rate, "prerender": self.parts}
        return [SyntheticSource.model_validate({**common, "seed": SEED + n}) for n in range(self.cameras)]

    @property
    def limit_s(self) -> float:
        """A round that takes longer has failed."""
        return 60.0 + (self.frames + self.warm * self.cameras) * 1.0


@dataclass(frozen=True)
class Loop:
    """One side in one round: frames a second, and process CPU milliseconds a frame by process."""

    frames_per_s: float
    cpu_ms: dict[str, float]

    @property
    def total_ms(self) -> float:
        return sum(self.cpu_ms.values())


@dataclass(frozen=True)
class Round:
    """Both sides, one right after the other. ``others_cores``: cores kept busy by anything else meanwhile."""

    bare: Loop
    pipeline: Loop
    anomalous: int
    not_inspected: dict[str, int]
    others_cores: float


@dataclass(frozen=True)
class Latency:
    """Capture to verdict, milliseconds, over the inspected frames of the paced phase."""

    fps: float
    verdicts: int
    p50_ms: float
    p90_ms: float
    p99_ms: float
    max_ms: float
    not_inspected: dict[str, int]
    share_not_inspected: float


@dataclass(frozen=True)
class Pipeline:
    """All rounds. ``ratio``: frames a second of the pipeline over the bare loop's, round by round; ``cpu_ratio``: CPU
    a frame likewise, all processes of the daemon together."""

    settings: Settings
    rounds: tuple[Round, ...]
    latency: Latency | None
    torch_loaded: bool

    @property
    def ratio(self) -> Spread:
        pairs = self.rounds
        return spread(ratios([r.pipeline.frames_per_s for r in pairs], [r.bare.frames_per_s for r in pairs]))

    @property
    def cpu_ratio(self) -> Spread:
        pairs = self.rounds
        return spread(ratios([r.pipeline.total_ms for r in pairs], [r.bare.total_ms for r in pairs]))

    def figures(self, side: str) -> tuple[Spread, Spread]:
        """(frames a second, CPU ms a frame) of ``bare`` or ``pipeline``."""
        loops: list[Loop] = [getattr(r, side) for r in self.rounds]
        return spread([loop.frames_per_s for loop in loops]), spread([loop.total_ms for loop in loops])

    @property
    def by_process(self) -> dict[str, float]:
        """Median CPU milliseconds a frame of each process of the daemon."""
        names = self.rounds[0].pipeline.cpu_ms
        return {name: float(np.median([r.pipeline.cpu_ms.get(name, 0.0) for r in self.rounds])) for name in names}

    @property
    def judged(self) -> dict[str, Spread]:
        return {"ratio": self.ratio, "cpu_ratio": self.cpu_ratio}

    @property
    def met(self) -> bool:
        return self.ratio.median >= RATIO_TARGET and self.cpu_ratio.median <= CPU_TARGET and not self.torch_loaded

    def as_json(self) -> dict[str, Any]:
        def side(name: str) -> dict[str, Any]:
            rate, cpu = self.figures(name)
            return {"frames_per_s": rate.as_json(), "cpu_ms": cpu.as_json()}

        return {
            "settings": asdict(self.settings),
            "bare": side("bare"),
            "pipeline": {**side("pipeline"), "cpu_ms_by_process": self.by_process},
            "ratio": self.ratio.median,
            "ratio_spread": self.ratio.as_json(),
            "ratio_target": RATIO_TARGET,
            "cpu_ratio": self.cpu_ratio.median,
            "cpu_ratio_spread": self.cpu_ratio.as_json(),
            "cpu_ratio_target": CPU_TARGET,
            "met": self.met,
            "latency": None if self.latency is None else asdict(self.latency),
            "torch_loaded": self.torch_loaded,
            "rounds": [asdict(r) for r in self.rounds],
        }


class Listener:
    """Somebody who listens to the verdicts, as on a real line; keeps them unread until asked."""

    def __init__(self, endpoint: str) -> None:
        self._context: zmq.Context = zmq.Context()
        self._socket = self._context.socket(zmq.SUB)
        self._socket.setsockopt(zmq.RCVHWM, 100_000)
        self._socket.setsockopt(zmq.RECONNECT_IVL, 20)
        self._socket.setsockopt(zmq.SUBSCRIBE, b"verdict.")
        self._socket.connect(endpoint)
        self._heard: list[list[bytes]] = []

    def __enter__(self) -> Listener:
        return self

    def __exit__(self, *_: object) -> None:
        self._context.destroy(linger=0)

    def listen(self) -> None:
        """Take in what has arrived."""
        while True:
            try:
                self._heard.append(self._socket.recv_multipart(zmq.NOBLOCK))
            except zmq.Again:
                return

    def forget(self) -> None:
        """Drop what was heard so far."""
        self.listen()
        self._heard.clear()

    def verdicts(self) -> list[Verdict]:
        """What was heard since the last :meth:`forget`. Raises BenchError for a message that is none of the schema."""
        try:
            messages = [parse(*frames) for frames in self._heard]
        except (MessageError, TypeError) as error:
            raise BenchError(f"a verdict could not be read: {error}") from None
        return [message for message in messages if isinstance(message, Verdict)]


def measure(bundle: Path, settings: Settings, progress: ReportProgress) -> Pipeline:
    """Rounds of bare loop and daemon in turn, then the paced phase; every part in fresh processes, compiled engines
    apart, which they share as they would on a device. Raises BenchError when anything fails or does not add up."""
    rounds: list[Round] = []
    torch = False
    parts = settings.rounds + (settings.seconds > 0)
    with tempfile.TemporaryDirectory(prefix="edge-bench-") as folder:
        cache = Path(folder) / "engines"
        for index in range(settings.rounds):
            progress(index, parts, "rounds")
            bare = run_bare(bundle, settings, cache)
            window, torch_here = run_daemon(bundle, settings, cache)
            torch |= torch_here
            rounds.append(
                Round(
                    bare=Loop(
                        settings.frames / (bare["wall_ns"] / 1e9), {"bare": bare["cpu_ns"] / 1e6 / settings.frames}
                    ),
                    pipeline=Loop(window.frames_per_s, window.cpu_ms),
                    anomalous=bare["anomalous"],
                    not_inspected=window.not_inspected,
                    others_cores=window.others_cores,
                )
            )
        latency = None
        if settings.seconds > 0:
            progress(settings.rounds, parts, "rounds")
            latency = run_paced(bundle, settings, cache)
        progress(parts, parts, "rounds")
    return Pipeline(settings, tuple(rounds), latency, torch)


def run_bare(bundle: Path, settings: Settings, cache: Path) -> dict[str, Any]:
    """The bare loop in a fresh process; what :func:`edge.bench.bare.run` gives."""
    spec = {
        "bundle": str(bundle),
        "cache": str(cache),
        "sources": [source.model_dump(mode="json") for source in settings.sources(UNPACED_FPS)],
        "warm": settings.warm * settings.cameras,
        "frames": settings.frames,
    }
    return run_worker("edge.bench.bare", spec, START_S + settings.limit_s)


def run_daemon(bundle: Path, settings: Settings, cache: Path) -> tuple[Window, bool]:
    """A fresh daemon that never waits for its cameras, from the warm point until ``frames`` more are scored; and
    whether any of its processes had loaded torch."""
    with (
        Line(bundle, settings.sources(UNPACED_FPS), "every", cache) as line,
        Listener(line.publisher) as listener,
    ):
        first = line.wait(_all_scored(settings.warm), START_S, listener.forget)
        enough = first.scored + settings.frames
        last = line.wait(lambda counts: _scored(counts) >= enough, settings.limit_s, listener.forget)
        torch = line.has_loaded("libtorch")
        line.stop()
    window = Window(first, last)
    window.check()
    return window, torch


def run_paced(bundle: Path, settings: Settings, cache: Path) -> Latency:
    """A fresh daemon whose cameras keep ``fps``, policy ``latest``, for ``seconds`` after the warm point."""
    with (
        Line(bundle, settings.sources(settings.fps), "latest", cache) as line,
        Listener(line.publisher) as listener,
    ):
        first = line.wait(_all_scored(settings.warm), START_S + settings.warm / settings.fps * 4, listener.listen)
        listener.forget()
        until = time.monotonic() + settings.seconds
        last = line.wait(lambda _: time.monotonic() >= until, settings.seconds + START_S, listener.listen)
        line.stop()
        verdicts = listener.verdicts()
    window = Window(first, last)
    window.check()
    return latency_of(settings.fps, verdicts, window)


def latency_of(fps: float, verdicts: Sequence[Verdict], window: Window) -> Latency:
    """Percentiles over the frames that were inspected; the others are a share, never a fast verdict.

    Raises BenchError when there is none."""
    inspected = [v.latency_ms for v in verdicts if v.verdict != "not_inspected"]
    if not inspected:
        raise BenchError("no verdict of an inspected frame was heard in the paced phase")
    p50, p90, p99 = (float(v) for v in np.percentile(inspected, (50, 90, 99)))
    return Latency(fps, len(inspected), p50, p90, p99, max(inspected), window.not_inspected, window.share_not_inspected)


def _scored(counts: Sequence[Counts]) -> int:
    return sum(c.scored for c in counts)


def _all_scored(number: int) -> Callable[[Sequence[Counts]], bool]:
    """True once every camera has ``number`` scores: each has then drawn all its parts."""
    return lambda counts: all(c.scored >= number for c in counts)
