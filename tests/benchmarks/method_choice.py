"""Is a head chosen on drawn defects better than always taking FRE? Asked on data sets with real ones.

    python tests/benchmarks/method_choice.py --data mvtec/bottle:mvtec --data mtd:mtd [--candidates fre,sgfr,grad]

For every data set: ``edge fit --method auto`` chooses from its good pictures alone; then every candidate, as it was
fitted for the choice, is evaluated on the set's real test pictures. Printed: image AUROC on drawn and on real defects,
the rank of the choice and the rank of FRE (1 is best; ties share), and the means of both over the data sets.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from calibration.datasets import load_split
from calibration.evaluate import evaluate
from calibration.methods import fitter_of, methods
from calibration.options import FitOptions
from calibration.selection import USUAL, Selection, select_method
from edge.bundle import Bundle
from edge.commands.common import progress_bar
from edge.commands.fit import print_selection
from edge.errors import EdgeError
from engines.errors import EngineError
from engines.export import export_backbone


def rank(figures: dict[str, float], method: str) -> float:
    """1 for the best; equal figures share the mean of their places."""
    better = sum(value > figures[method] for value in figures.values())
    equal = sum(value == figures[method] for value in figures.values())
    return better + (equal + 1) / 2


def judge(data: Path, layout: str, given: argparse.Namespace) -> tuple[Selection, dict[str, float]]:
    """The choice, and every judged candidate's image AUROC on the real test."""
    real: dict[str, float] = {}

    def graphs(options: FitOptions) -> bytes | None:
        fitter = fitter_of(options.method)
        return export_backbone(given.backbone, given.weights, taps=fitter.taps(options)) if fitter.needs_graph else None

    def look(bundle: Bundle) -> None:
        found = evaluate(bundle, data, layout).image_auroc
        if found is not None:
            real[bundle.manifest.method] = found

    with tempfile.TemporaryDirectory() as scratch, progress_bar() as progress:
        selection = select_method(
            load_split(data, layout),
            Path(scratch),
            graphs=graphs,
            backbone=given.backbone,
            options=FitOptions(),
            candidates=given.candidates,
            budget_ms=given.budget_ms,
            trial_minutes=given.trial_minutes,
            look=look,
            progress=progress,
        )
    return selection, real


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", action="append", required=True, metavar="FOLDER:LAYOUT")
    parser.add_argument("--backbone", default="builtin")
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--candidates", type=lambda text: tuple(text.split(",")), default=methods())
    parser.add_argument("--budget-ms", type=float)
    parser.add_argument("--trial-minutes", type=float, default=15.0)
    given = parser.parse_args()
    ranks: list[tuple[float, float]] = []
    try:
        for entry in given.data:
            folder, _, layout = entry.rpartition(":")
            selection, real = judge(Path(folder), layout, given)
            print_selection(selection)
            chosen = selection.chosen
            ranks.append((rank(real, chosen), rank(real, USUAL)))
            line = {"data": folder, "chosen": chosen, "rank": ranks[-1][0], "rank of fre": ranks[-1][1], "real": real}
            print(json.dumps(line), flush=True)
    except (EdgeError, EngineError) as error:
        print(f"method_choice: {error}", file=sys.stderr)
        return 1
    means = [sum(column) / len(ranks) for column in zip(*ranks, strict=True)]
    print(f"mean rank over {len(ranks)} data sets: chosen {means[0]:.2f}, always {USUAL} {means[1]:.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
