"""``edge ledger``: every camera's balance, read from the mapped file, whether a daemon runs or not."""

from __future__ import annotations

from pathlib import Path

import click

from edge.errors import DataError


@click.command("ledger")
@click.argument("state", type=click.Path(path_type=Path))
@click.option("--json", "json_target", metavar="FILE|-", help="Write it as JSON.")
def command(state: Path, json_target: str | None) -> None:
    """Show captured, scored and not inspected (by reason) of every camera, from the ledger in the STATE folder."""
    from dataclasses import asdict

    from edge.commands.common import write_json
    from edge.wire.ledger import Ledger

    path = state / "ledger" if state.is_dir() else state
    if not path.is_file():
        raise DataError(f"{path}: no ledger there; name the daemon's state folder (edge run --state)")
    ledger = Ledger(path, lock_timeout_s=5)
    counts = {name: ledger.counts(index) for index, name in enumerate(ledger.cameras())}
    if json_target:
        content = {name: {**asdict(c), "balanced": c.balanced} for name, c in counts.items()}
        write_json(json_target, {"epoch": ledger.epoch, "cameras": content})
    if json_target != "-":
        from edge.commands.tables import balance_table, make_console

        make_console().print(balance_table(counts))
    ledger.close()
