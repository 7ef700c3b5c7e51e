"""The figures as people read them: one short table each, and what to think of it below."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from edge.bench.spread import Spread

if TYPE_CHECKING:
    from edge.bench.pipeline import Pipeline
    from edge.bench.start_up import StartUp
    from edge.bench.wire import Wire


def start_up_table(console: Console, result: StartUp) -> None:
    table = _table("milliseconds", "median", "min", "max", "IQR")
    for name, figure in {**result.judged, "difference": result.difference}.items():
        table.add_row(name, *_cells(figure, "{:.0f}", scale=1e3))
    console.print(table)
    from edge.bench.start_up import LIMIT_S

    console.print(f"limit {LIMIT_S * 1e3:.0f} ms above bare Python: {_met(result.met)}")
    console.print(
        f"torch loaded: {_yes('torch' in result.heavy)}; other heavy imports: {', '.join(result.heavy) or 'none'}"
    )


def wire_table(console: Console, result: Wire) -> None:
    from edge.bench.wire import TARGET, TRANSPORTS

    s = result.settings
    console.print(f"{s.width} x {s.height} uint8, {s.slots} frames under way, {s.rounds} rounds of {s.frames} frames")
    table = _table("transport", "frames/s", "min", "max", "IQR", "CPU us a frame")
    for name, transport in result.transports.items():
        table.add_row(TRANSPORTS[name], *_cells(transport.frames_per_s, "{:.0f}"), f"{transport.cpu_us.median:.0f}")
    console.print(table)
    console.print(
        f"slots, one copy, against ZeroMQ copy: {_range(result.ratio)} times (at least {TARGET:g}: {_met(result.met)})"
    )
    console.print(f"written in place, against ZeroMQ copy: {_range(result.ratio_in_place)} times")
    console.print("frames/s at the receiver; CPU of both ends, all their threads; every frame in the ledger")


def pipeline_table(console: Console, result: Pipeline) -> None:
    from edge.bench.pipeline import CPU_TARGET, RATIO_TARGET

    s = result.settings
    console.print(
        f"{s.cameras} cameras of {s.width} x {s.height}, engine on one thread, {s.rounds} rounds of {s.frames} frames"
    )
    table = _table("", "frames/s", "min to max", "IQR", "CPU ms a frame", "min to max", "IQR")
    for name, side in (("bare loop", "bare"), ("pipeline", "pipeline")):
        rate, cpu = result.figures(side)
        table.add_row(name, *_short(rate, "{:.1f}"), *_short(cpu, "{:.2f}"))
    console.print(table)
    ratio, cpu_ratio = result.ratio, result.cpu_ratio
    console.print(
        f"frames/s {_range(ratio)} of the bare loop (at least {RATIO_TARGET:g}: {_met(ratio.median >= RATIO_TARGET)})"
    )
    console.print(
        f"CPU a frame {_range(cpu_ratio)} times (at most {CPU_TARGET:g}: {_met(cpu_ratio.median <= CPU_TARGET)})"
    )
    shares = ", ".join(f"{name} {value:.2f}" for name, value in result.by_process.items())
    console.print(f"CPU ms a frame by process: {shares}")
    missed = _total(r.not_inspected for r in result.rounds)
    console.print(f"not inspected: {_reasons(missed)}; torch loaded: {_yes(result.torch_loaded)}")
    others = max(r.others_cores for r in result.rounds)
    console.print(f"cores kept busy by anything else meanwhile: at most {others:.2f}")
    if result.latency is not None:
        _print_latency(console, result)


def _print_latency(console: Console, result: Pipeline) -> None:
    paced = result.latency
    assert paced is not None
    load = paced.fps * result.settings.cameras / result.figures("pipeline")[0].median
    console.print(
        f"capture to verdict at {result.settings.cameras} x {paced.fps:g} frames/s, policy latest"
        f" ({100 * load:.0f} % of what the line can do), {paced.verdicts} verdicts:"
    )
    table = _table("milliseconds", "p50", "p90", "p99", "max")
    table.add_row("", *(f"{ms:.1f}" for ms in (paced.p50_ms, paced.p90_ms, paced.p99_ms, paced.max_ms)))
    console.print(table)
    share = f"{100 * paced.share_not_inspected:.1f} %"
    console.print(f"not inspected: {share} ({_reasons(paced.not_inspected)})")
    if load > 0.9:
        console.print("the line is overloaded at this rate: this is the latency of full queues; try a lower --fps")


def print_foot(
    console: Console,
    about: Mapping[str, Any],
    versions: Mapping[str, str],
    warnings: Sequence[str],
    told: Sequence[str],
) -> None:
    """Machine, versions, and every reason not to trust the figures."""
    parts = [str(about["cpu"]), f"{about['cores']} cores", f"Linux {about['kernel']}"]
    if about["governor"]:
        parts.append(f"governor {about['governor']}")
    parts.append(f"load before {about['load_before']}")
    console.print(", ".join(parts), highlight=False)
    console.print(", ".join(f"{name} {version}" for name, version in versions.items()), highlight=False)
    for text in warnings:
        console.print(f"note: {text}", highlight=False)
    for text in told:
        console.print(f"UNSTABLE: {text}", style="bold yellow", highlight=False)


def _table(first: str, *numbers: str) -> Table:
    table = Table(first)
    for name in numbers:
        table.add_column(name, justify="right")
    return table


def _cells(figure: Spread, form: str, scale: float = 1.0) -> list[str]:
    return [form.format(scale * v) for v in (figure.median, figure.min, figure.max, figure.iqr)]


def _short(figure: Spread, form: str) -> list[str]:
    return [form.format(figure.median), f"{form} to {form}".format(figure.min, figure.max), form.format(figure.iqr)]


def _range(figure: Spread) -> str:
    return f"{figure.median:.2f} ({figure.min:.2f} to {figure.max:.2f})"


def _met(met: bool) -> str:
    return "met" if met else "MISSED"


def _yes(value: bool) -> str:
    return "YES" if value else "no"


def _total(parts: Any) -> dict[str, int]:
    total: dict[str, int] = {}
    for part in parts:
        for reason, number in part.items():
            total[reason] = total.get(reason, 0) + number
    return total


def _reasons(missed: Mapping[str, int]) -> str:
    return ", ".join(f"{number} {reason}" for reason, number in missed.items()) or "none"
