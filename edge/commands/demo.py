"""``edge demo``: the whole job in a minute, on the built-in synthetic line. Needs no camera, no data, no network."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from edge.commands.fit import METHODS
from edge.errors import EdgeError, ResourceError

CAMERAS = (("left", 11, "every"), ("right", 12, "latest"))  # name, seed of its parts, policy
FPS = 15.0
DEFECT_RATE = 0.06
GOOD_SEED = 1
START_S = 120.0
SHORT: dict[str, dict[str, object]] = {
    "fair": {"width": 8, "epochs": 12, "lr": 3e-3},
    "grad": {"abnormal_epochs": 2, "epochs": 4},
    "hfra": {"epochs": 16},
}
"""Trainings short enough to watch: minutes. The methods' defaults take longer and see more."""
SHORT_FALSE_ALARMS = 1 / 50
"""Accepted with these: what 40 pictures held out of a training can promise without extrapolation, nearly."""


@click.command("demo")
@click.option("--frames", type=click.IntRange(10, 100_000), default=150, show_default=True, help="Frames a camera.")
@click.option("--good", type=click.IntRange(20, 5000), default=200, show_default=True, help="Good pictures to fit on.")
@click.option("--method", type=click.Choice(METHODS), default="fre", show_default=True, help="The head.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("demo-out"), show_default=True)
def command(frames: int, good: int, method: str, out: Path) -> None:
    """Draw good parts, fit on them, run the daemon on two cameras with known defects, and tell what came of it."""
    started = time.monotonic()
    parts, bundle = out / "parts", out / "demo.bundle"
    try:
        for old in (parts, out / "heat-maps", out / "state"):
            shutil.rmtree(old, ignore_errors=True)
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResourceError(f"{out}: cannot be made ({error.strerror}); choose another with --out") from None
    _fit(parts, bundle, good, method)
    line = out / "line.toml"
    line.write_text(_line_file(bundle, frames))
    click.echo(f"\nrunning the daemon on {len(CAMERAS)} cameras, {frames} frames each at {FPS:g} a second\n")
    # A socket's path may have 107 bytes, and `out` may lie anywhere.
    with tempfile.TemporaryDirectory(prefix="edge-demo-") as runtime:
        seen = _run(line, Path(runtime), out)
    _heat_maps(bundle, parts, out)
    _close(seen, out, frames, time.monotonic() - started)


@dataclass
class Seen:
    """What a subscriber of the daemon has seen. Keys of ``verdicts`` are (camera, seq)."""

    verdicts: dict[tuple[str, int], Any] = field(default_factory=dict)
    alerts: dict[int, Any] = field(default_factory=dict)


def _fit(parts: Path, bundle: Path, good: int, method: str) -> None:
    from calibration.datasets import good_folder
    from calibration.fit import fit_bundle
    from calibration.options import FitOptions
    from edge.cameras.synthetic import write_part_dataset
    from edge.commands.common import engine_errors, progress_bar
    from edge.commands.fit import print_report
    from engines import builtin_graph

    options = FitOptions(method=method)
    if method in SHORT:
        options = FitOptions(method=method, settings=SHORT[method], false_alarms=SHORT_FALSE_ALARMS)
    options = options.resolved()  # torch missing? now, not later
    with engine_errors(), progress_bar() as progress:
        done = [0]

        def drawn() -> None:
            done[0] += 1
            progress(done[0], good + 12, "drawing parts")

        write_part_dataset(parts, good=good, test_good=0, test_defects=3, seed=GOOD_SEED, on_picture=drawn)
        click.echo(f"{good} good parts drawn into {parts}")
        if method in SHORT:
            click.echo(f"training {method} for a few minutes; edge fit would train it longer")
        report = fit_bundle(
            good_folder(parts / "train"),
            bundle,
            graph=builtin_graph(),
            backbone="builtin",
            options=options,
            frames_per_second=FPS * len(CAMERAS),
            progress=progress,
        )
    print_report(report)


def _line_file(bundle: Path, frames: int) -> str:
    text = f'[line]\nname = "demo"\nbundle = "{bundle.name}"\n\n[alerts]\neach = "frame"\n'
    for name, seed, policy in CAMERAS:
        text += (
            f'\n[[camera]]\nname = "{name}"\npolicy = "{policy}"\n[camera.source]\nkind = "synthetic"\n'
            f"seed = {seed}\nfps = {FPS}\nframes = {frames}\ndefect_rate = {DEFECT_RATE}\n"
        )
    return text


def _run(line: Path, runtime: Path, out: Path) -> Seen:
    """Run the daemon as a process of its own, as a service would, and follow it over its public sockets."""
    from edge.alerts.messages import Alert, Verdict
    from edge.alerts.subscriber import Gap, Subscriber
    from edge.commands.watch import describe

    seen = Seen()
    log = out / "daemon.log"
    arguments = [
        sys.executable,
        "-m",
        "edge.cli",
        "run",
        str(line),
        "--runtime",
        str(runtime),
        "--state",
        str(out / "state"),
    ]
    with log.open("wb") as sink:
        daemon = subprocess.Popen(arguments, stdout=sink, stderr=sink, stdin=subprocess.DEVNULL)
    try:
        with Subscriber(f"ipc://{runtime}/alerts.pub", f"ipc://{runtime}/alerts.replay", since=0) as subscriber:
            ended = False
            while True:
                event = subscriber.next(0.2)
                if event is None:
                    if ended:
                        break
                    ended = daemon.poll() is not None  # one more round: what it sent last is still on its way
                elif not isinstance(event, Gap):
                    message = event.message
                    if isinstance(message, Verdict):
                        seen.verdicts[message.camera, message.seq] = message
                    elif isinstance(message, Alert) and message.id not in seen.alerts:
                        seen.alerts[message.id] = message
                        click.echo(describe(message))
    finally:
        if daemon.poll() is None:
            daemon.send_signal(signal.SIGTERM)
        code = daemon.wait(timeout=30)
    if code:
        raise EdgeError(f"the daemon ended with exit code {code}; its log is {log}")
    return seen


def _heat_maps(bundle: Path, parts: Path, out: Path) -> None:
    """Heat maps of parts with known defects, three of each kind, and the evidence of the alerts."""
    arguments = [
        sys.executable,
        "-m",
        "edge.cli",
        "inspect",
        str(bundle),
        str(parts / "test"),
        "--out",
        str(out / "heat-maps"),
    ]
    subprocess.run(arguments, check=True, stdout=subprocess.DEVNULL)


def _close(seen: Seen, out: Path, frames: int, seconds: float) -> None:
    import numpy as np
    from rich.table import Table

    from edge.commands.tables import balance_table, make_console
    from edge.wire.ledger import Ledger

    console = make_console()
    ledger = Ledger(out / "state" / "ledger")
    counts = {name: ledger.counts(index) for index, name in enumerate(ledger.cameras())}
    ledger.close()
    console.print()
    console.print(balance_table(counts))
    table = Table("camera", "defects", "found", "missed", "not inspected", "false alarms", "alerts", "p50 ms", "p99 ms")
    for name, seed, _ in CAMERAS:
        known = _known_defects(seed, frames)
        rows = {seq: v for (camera, seq), v in seen.verdicts.items() if camera == name}
        scored = {seq: v for seq, v in rows.items() if v.verdict != "not_inspected"}
        alarms = {seq for seq, v in scored.items() if v.verdict == "anomalous"}
        blind = sum(1 for seq in known if seq not in scored)
        latency = [v.latency_ms for v in scored.values()]
        p50, p99 = np.percentile(latency, [50, 99]) if latency else (float("nan"),) * 2
        raised = sum(1 for alert in seen.alerts.values() if alert.camera == name)
        found = len(alarms & known)
        cells = len(known), found, len(known) - found - blind, blind, len(alarms - known), raised
        table.add_row(name, *map(str, cells), f"{p50:.1f}", f"{p99:.1f}")
    console.print(table)
    console.print(f"latency is from capture to verdict; the whole demo took {seconds:.0f} s on {os.cpu_count()} cores")
    console.print(f"heat maps: {out}/heat-maps, {out}/state/alerts/pictures; the line file: {out}/line.toml")
    if not all(c.balanced and c.open == 0 for c in counts.values()):
        raise EdgeError("the ledger does not balance: this is a fault of ours; keep the state folder")


def _known_defects(seed: int, frames: int) -> set[int]:
    from edge.cameras.config import SyntheticSource
    from edge.cameras.synthetic import truth

    source = {"kind": "synthetic", "seed": seed, "frames": frames, "defect_rate": DEFECT_RATE}
    spec = SyntheticSource.model_validate(source)
    return {index for index in range(frames) if truth(spec, index) is not None}
