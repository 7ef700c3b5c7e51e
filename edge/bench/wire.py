"""``edge bench wire``: frames from one process to another, by slots and descriptor, and by ZeroMQ, in one run."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edge.bench.processes import BenchError, finish_worker, start_worker
from edge.bench.spread import Spread, ratios, spread
from edge.wire.ledger import Ledger
from edge.wire.pool import SlotPool

TARGET = 5.0
# In the order of the table. The name says what the producer does: "slots" copies a decoded frame into its slot, as
# the capture stage does; "slots_in_place" is a decoder that writes there itself.
TRANSPORTS = {
    "slots": "slots + descriptor, one copy",
    "slots_in_place": "slots + descriptor, written in place",
    "zmq_copy": "ZeroMQ ipc, copy",
    "zmq_nocopy": "ZeroMQ ipc, copy=False",
}


@dataclass(frozen=True)
class Settings:
    """``warm`` and ``frames`` are per block; a round is a block of every transport."""

    width: int = 1920
    height: int = 1080
    slots: int = 6
    warm: int = 50
    frames: int = 400
    rounds: int = 7


@dataclass(frozen=True)
class Block:
    """One transport in one round: frames a second at the receiver, and CPU microseconds a frame of both ends."""

    frames_per_s: float
    cpu_us: float


@dataclass(frozen=True)
class Transport:
    """One transport over all rounds."""

    frames_per_s: Spread
    cpu_us: Spread


@dataclass(frozen=True)
class Wire:
    """``ratio``: ours with the copy against ZeroMQ's copy, round by round; ``ratio_in_place``: ours without."""

    settings: Settings
    transports: dict[str, Transport]
    ratio: Spread
    ratio_in_place: Spread

    @property
    def met(self) -> bool:
        return self.ratio.median >= TARGET

    @property
    def judged(self) -> dict[str, Spread]:
        return {TRANSPORTS[name]: t.frames_per_s for name, t in self.transports.items()} | {"ratio": self.ratio}

    def as_json(self) -> dict[str, Any]:
        return {
            "settings": asdict(self.settings),
            "transports": {
                name: {"frames_per_s": t.frames_per_s.as_json(), "cpu_us": t.cpu_us.as_json()}
                for name, t in self.transports.items()
            },
            "ratio": self.ratio.median,
            "ratio_of": ["slots", "zmq_copy"],
            "ratio_spread": self.ratio.as_json(),
            "ratio_in_place": self.ratio_in_place.median,
            "target": TARGET,
            "met": self.met,
        }


def measure(settings: Settings, progress: Callable[[int, int, str], None]) -> Wire:
    """Run all rounds. Raises BenchError when an end fails, a frame arrives damaged, or the ledger does not add up."""
    blocks: dict[str, list[Block]] = {name: [] for name in TRANSPORTS}
    names = list(TRANSPORTS)
    done, total = 0, settings.rounds * len(names)
    for index in range(settings.rounds):
        for name in names[index % len(names) :] + names[: index % len(names)]:
            progress(done, total, "blocks")
            blocks[name].append(run_block(name, settings))
            done += 1
    progress(done, total, "blocks")
    rates = {name: [block.frames_per_s for block in row] for name, row in blocks.items()}
    return Wire(
        settings,
        {name: Transport(spread(rates[name]), spread([block.cpu_us for block in row])) for name, row in blocks.items()},
        spread(ratios(rates["slots"], rates["zmq_copy"])),
        spread(ratios(rates["slots_in_place"], rates["zmq_copy"])),
    )


def run_block(transport: str, settings: Settings, timeout_s: float = 120.0) -> Block:
    """One block: two fresh processes, a fresh pool, a fresh ledger."""
    shape = (settings.height, settings.width, 3)
    with tempfile.TemporaryDirectory(prefix="edge-bench-") as folder:
        pool = SlotPool.create(1, settings.slots, settings.width * settings.height * 3, "bench")
        fds = (pool.fd, pool.event_fd)
        spec = {"transport": transport, "folder": folder, "shape": shape, "slots": settings.slots, "pool": fds}
        spec |= {"warm": settings.warm, "frames": settings.frames}
        receiver = start_worker("edge.bench.wire_ends", {**spec, "end": "receive"}, fds)
        sender = start_worker("edge.bench.wire_ends", {**spec, "end": "send"}, fds)
        try:
            got = finish_worker(receiver, timeout_s)
            sent = finish_worker(sender, timeout_s)
        finally:
            for end in (receiver, sender):
                if end.poll() is None:
                    end.kill()
                    end.communicate()
            pool.close()
        if got["bad"]:
            raise BenchError(f"{transport}: {got['bad']} frames were damaged or out of order")
        if transport.startswith("slots"):
            check_balance(Path(folder), settings.warm + settings.frames)
    return Block(
        frames_per_s=settings.frames / (got["wall_ns"] / 1e9),
        cpu_us=(got["cpu_ns"] + sent["cpu_ns"]) / settings.frames / 1e3,
    )


def check_balance(folder: Path, frames: int) -> None:
    """Raises BenchError unless the ledger has every frame as captured and scored: a fast wire that loses is none."""
    ledger = Ledger(folder / "ledger", lock_timeout_s=5)
    try:
        counts = ledger.counts(ledger.camera_index("bench"))
    finally:
        ledger.close()
    if counts.captured != frames or counts.scored != frames or not counts.balanced:
        raise BenchError(f"the ledger counts {counts.captured} captured and {counts.scored} scored of {frames} frames")
