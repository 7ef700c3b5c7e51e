"""``edge watch``: follow a running daemon."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import click


@click.command("watch")
@click.argument("endpoint", required=False)
@click.option("--replay", "replay_endpoint", help="Replay socket.  [default: beside an ipc endpoint]")
@click.option("--line", default="line", show_default=True, help="Name of the line, where no endpoint is given.")
@click.option("--runtime", type=click.Path(path_type=Path), help="The daemon's runtime folder.")
@click.option(
    "--since", type=click.IntRange(0), default=None, help="First all alerts after this id; 0: all that are kept."
)
@click.option("--topic", "topics", multiple=True, help="verdict, alert, health, or with .CAMERA; again for more.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a message and line.")
@click.option("--count", type=click.IntRange(1), default=None, help="Stop after this many messages.")
@click.option("--seconds", type=click.FloatRange(0.1), default=None, help="Stop after this long.")
def command(
    endpoint: str | None,
    replay_endpoint: str | None,
    line: str,
    runtime: Path | None,
    since: int | None,
    topics: tuple[str, ...],
    as_json: bool,
    count: int | None,
    seconds: float | None,
) -> None:
    """Follow verdicts and alerts (and with --topic health, how the line is). Waits for a daemon that is not up yet,
    goes on when it restarts, and misses no alert: what was missed is asked for again."""
    from edge.alerts.subscriber import Gap, Subscriber
    from edge.supervisor.folders import runtime_folder

    if endpoint is None:
        folder = runtime_folder(line, runtime)
        endpoint, replay_endpoint = f"ipc://{folder}/alerts.pub", replay_endpoint or f"ipc://{folder}/alerts.replay"
    elif replay_endpoint is None and endpoint.startswith("ipc://"):
        replay_endpoint = f"{endpoint.rsplit('/', 1)[0]}/alerts.replay"
    until = None if seconds is None else time.monotonic() + seconds
    seen = 0
    with Subscriber(endpoint, replay_endpoint, since, topics or ("verdict", "alert")) as subscriber:
        while (until is None or time.monotonic() < until) and (count is None or seen < count):
            event = subscriber.next(0.2 if until is None else min(0.2, max(0.0, until - time.monotonic())))
            if event is None:
                continue
            if isinstance(event, Gap):
                click.echo(f"edge: missed for good: {event}", err=True)
                continue
            seen += 1
            message = event.message
            if as_json:
                click.echo(json.dumps({"topic": message.topic, "replayed": event.replayed, **message.to_map()}))
            else:
                click.echo(describe(message))


def describe(message: Any) -> str:
    """One line for people."""
    if message.kind == "alert":
        return f"{_clock(message.captured_at)}  ALERT {message.id}  {message.camera} #{message.seq}  {message.why}"
    if message.kind == "verdict":
        head = f"{_clock(message.captured_at)}  {message.camera} #{message.seq}"
        if message.verdict == "not_inspected":
            return f"{head}  not inspected ({message.reason})"
        return f"{head}  {message.verdict}  {message.score:.4f} / {message.threshold:.4f}  {message.latency_ms:.0f} ms"
    problems = f": {'; '.join(message.problems)}" if message.problems else ""
    return f"{_clock(message.at)}  health {message.status}{problems}"


def _clock(wall_ns: int) -> str:
    return time.strftime("%H:%M:%S", time.localtime(wall_ns / 1e9)) + f".{wall_ns // 1_000_000 % 1000:03d}"
