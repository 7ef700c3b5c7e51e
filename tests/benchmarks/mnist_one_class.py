"""One-class digits: MNIST as HFRA's Table 2 has it (arXiv 2405.09148), by the house's own fit and evaluation.

    python tests/benchmarks/mnist_one_class.py MNIST.npz --out DIR --weights resnet18.pt [--classes 0,1] [--set lr=0.2]

For every digit: its training pictures are the good ones, all test pictures are tested, the other nine digits are the
anomalies; the figure is the image AUROC, and its mean over the ten. Grey is repeated to RGB and the shared
preprocessing enlarges 28 to 64 pixels (the paper names no size).

``--out`` keeps a bundle and a report a digit: a digit whose report is there is not run again, one whose bundle is
there is only evaluated, and an interrupted training goes on where its method can. The digits' pictures lie in a scratch
folder while the command runs. MNIST.npz: the arrays x_train, x_test (uint8 [n, 28, 28]) and y_train, y_test (0 to 9).
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from calibration.checkpoints import discard
from calibration.datasets import file_sha256, load_split
from calibration.evaluate import evaluate
from calibration.fit import fit_bundle
from calibration.methods import Fitter, fitter_of, methods
from calibration.options import FitOptions
from calibration.published import published
from edge.commands.common import progress_bar, write_json
from edge.errors import DataError, EdgeError, Exit, ResourceError
from engines.errors import EngineError
from engines.export import export_backbone

DIGITS = tuple(range(10))
PARTS = ("train", "test")


@dataclass(frozen=True)
class Digits:
    """pictures: uint8 [n, 28, 28]; labels: [n], 0 to 9; for each of ``train`` and ``test``."""

    pictures: dict[str, NDArray[np.uint8]]
    labels: dict[str, NDArray[np.int64]]


def read_digits(path: Path, limit: int | None) -> Digits:
    """The file's digits; with ``limit``, its first so many training pictures of each digit and a tenth as many test
    pictures of each.

    Raises DataError for a file that is missing or holds something else."""
    pictures, labels = {}, {}
    try:
        with np.load(path, allow_pickle=False) as file:
            for part in PARTS:
                pictures[part], labels[part] = file[f"x_{part}"], file[f"y_{part}"]
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except KeyError:
        raise DataError(f"{path}: it needs the arrays x_train, y_train, x_test and y_test") from None
    except (OSError, ValueError, TypeError, AttributeError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: not a readable .npz file ({error})") from None
    for part in PARTS:
        x, y = pictures[part], labels[part]
        if x.ndim != 3 or x.dtype != np.uint8 or y.shape != x.shape[:1] or not np.isin(DIGITS, y).all():
            raise DataError(f"{path}: {part}: uint8 [n, h, w] pictures and all of the labels 0 to 9 are needed")
    if limit is not None:
        for part, count in (("train", limit), ("test", limit // len(DIGITS))):
            each = [np.flatnonzero(labels[part] == digit)[:count] for digit in DIGITS]
            kept = np.sort(np.concatenate(each))
            pictures[part], labels[part] = pictures[part][kept], labels[part][kept]
    return Digits(pictures, labels)


def write_views(digits: Digits, root: Path) -> None:
    """Write every picture once, and under ``root``/digit-0 ... digit-9 what each digit's run sees: a data set of layout
    mvtec, of links."""
    for part in PARTS:
        for digit in DIGITS:
            folder = root / "pictures" / part / str(digit)
            folder.mkdir(parents=True)
            for index in np.flatnonzero(digits.labels[part] == digit):
                target = folder / f"{index:05}.png"
                if not cv2.imwrite(str(target), digits.pictures[part][index]):
                    raise ResourceError(f"{target}: cannot be written; is the disk full?")
    for nominal in DIGITS:
        view = root / f"digit-{nominal}"
        for part in PARTS:
            (view / part).mkdir(parents=True)
        (view / "train/good").symlink_to(root / "pictures/train" / str(nominal), target_is_directory=True)
        for digit in DIGITS:
            name = "good" if digit == nominal else f"digit{digit}"
            (view / "test" / name).symlink_to(root / "pictures/test" / str(digit), target_is_directory=True)


@dataclass(frozen=True)
class Plan:
    """What is run for every digit; read from the arguments."""

    out: Path
    options: FitOptions
    fitter: Fitter
    backbone: str
    weights: Path | None
    size: tuple[int, int]

    def graph(self) -> bytes | None:
        if not self.fitter.needs_graph:
            return None
        return export_backbone(self.backbone, self.weights, input_size=self.size, taps=self.fitter.taps(self.options))

    def of_digit(self, digit: int) -> FitOptions:
        """The options with a folder of its own for an unfinished training."""
        settings = dict(self.options.settings)
        if "resume" in self.fitter.settings.model_fields:
            settings["resume"] = str(self.training(digit))
        return FitOptions(method=self.options.method, settings=settings, seed=self.options.seed, keep_refit=False)

    def bundle(self, digit: int) -> Path:
        return self.out / f"digit-{digit}.bundle"

    def report(self, digit: int) -> Path:
        return self.out / f"digit-{digit}.json"

    def training(self, digit: int) -> Path:
        return self.out / f"digit-{digit}.training"


def run_digit(plan: Plan, digit: int, view: Path, graph: bytes | None) -> dict[str, Any]:
    """Fit where there is no bundle yet, evaluate, and write the report (for ``edge eval --compare`` too) without the
    single pictures."""
    with progress_bar() as progress:
        if not plan.bundle(digit).exists():
            options = plan.of_digit(digit)
            fitted = fit_bundle(
                load_split(view, "mvtec"),
                plan.bundle(digit),
                graph=graph,
                backbone=plan.backbone if graph is not None else "none",
                options=options,
                input_size=plan.size,
                progress=progress,
            )
            discard(plan.training(digit))
            print(f"digit {digit}: fitted in {sum(fitted.seconds.values()):.0f} s", flush=True)
        report = evaluate(plan.bundle(digit), view, "mvtec", progress=progress)
    content = report.as_json() | {"data": "MNIST", "dataset": "MNIST", "category": str(digit), "pictures": []}
    write_json(str(plan.report(digit)), content)
    return content


def read_report(path: Path) -> dict[str, Any] | None:
    """A digit's report of an earlier run, None where there is none."""
    try:
        content = json.loads(path.read_text())
        if isinstance(content, dict) and isinstance(content["image_auroc"], float):
            return content
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError):
        pass
    raise DataError(f"{path}: not a report of this command; remove it, or choose another --out")


def check_identity(out: Path, identity: dict[str, Any]) -> None:
    """Figures of two settings must not meet in one mean: the folder remembers its own."""
    path = out / "run.json"
    if path.exists():
        try:
            old = json.loads(path.read_text())
        except (OSError, ValueError):
            raise DataError(f"{path}: damaged; choose another --out") from None
        differing = sorted(key for key in identity if not isinstance(old, dict) or old.get(key) != identity[key])
        if differing:
            raise DataError(f"{out}: it holds a run with another {', '.join(differing)}; choose another --out")
    else:
        write_json(str(path), identity)


def table(found: dict[int, dict[str, Any]], plan: Plan, limit: int | None) -> str:
    """The digits' image AUROC and, where all ten are there, their mean beside the published one."""
    lines = ["| digit | image AUROC | min to max over the other digits |", "|---|---|---|"]
    for digit, report in sorted(found.items()):
        others = [100 * kind["image_auroc"] for kind in report["kinds"] if kind["image_auroc"] is not None]
        lines.append(f"| {digit} | {100 * report['image_auroc']:.2f} | {min(others):.2f} to {max(others):.2f} |")
    if len(found) == len(DIGITS):
        mean = float(np.mean([report["image_auroc"] for report in found.values()]))
        known = published(plan.options.method, "MNIST", "mean", "image_auroc", plan.backbone)
        beside = ", ".join(f"published {row.value:.1f} ({row.backbone})" for row in known) or "nothing published"
        lines.append(f"| mean | **{100 * mean:.2f}** | {beside} |")
    else:
        lines.append(f"| {len(found)} of 10 digits | | |")
    if limit is not None:
        lines.append(f"\n--limit {limit}: a try, no result")
    return "\n".join(lines)


def digit_list(text: str) -> tuple[int, ...]:
    try:
        chosen = tuple(int(part) for part in text.split(","))
    except ValueError:
        chosen = ()
    if not chosen or len(set(chosen)) != len(chosen) or not set(chosen) <= set(DIGITS):
        raise argparse.ArgumentTypeError(f"{text!r}: write different digits from 0 to 9, as 0,1,7")
    return chosen


def setting(text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not (separator and name.strip()):
        raise argparse.ArgumentTypeError(f"{text!r} is no setting; write NAME=VALUE")
    return name.strip(), value.strip()


def whole(low: int, high: int) -> Any:
    def convert(text: str) -> int:
        if not text.isdigit() or not low <= int(text) <= high:
            raise argparse.ArgumentTypeError(f"{text!r}: a whole number from {low} to {high} is needed")
        return int(text)

    return convert


def arguments(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="MNIST, one digit good and nine anomalous, ten times.")
    parser.add_argument("mnist", type=Path, metavar="MNIST.npz")
    parser.add_argument("--out", type=Path, required=True, help="folder for bundles and reports; a run goes on in it")
    parser.add_argument("--classes", type=digit_list, default=DIGITS, help="digits to run [default: all]")
    parser.add_argument("--method", choices=methods(), default="hfra")
    parser.add_argument("--set", type=setting, action="append", default=[], dest="settings", metavar="NAME=VALUE")
    parser.add_argument("--backbone", default="resnet18", help="name from `edge engine list` [default: resnet18]")
    parser.add_argument("--weights", type=Path, help="the backbone's state dict")
    parser.add_argument("--size", type=whole(32, 512), default=64, help="side of the input, pixels [default: 64]")
    parser.add_argument("--seed", type=whole(0, 2**31), default=0)
    parser.add_argument(
        "--limit", type=whole(100, 10_000), help="a try on so many pictures of the training and the test"
    )
    return parser.parse_args(given)


def run(given: argparse.Namespace) -> None:
    digits = read_digits(given.mnist, given.limit)
    settings = dict(given.settings)
    if "resume" in settings:
        raise DataError("resume is not to be set: every digit's training has its own folder in --out")
    options = FitOptions(method=given.method, settings=settings, seed=given.seed).resolved()
    plan = Plan(given.out, options, fitter_of(given.method), given.backbone, given.weights, (given.size, given.size))
    try:
        graph = plan.graph()  # before the first picture is written: weights that are missing are said at once
    except EngineError as error:
        raise DataError(str(error)) from None
    plan.out.mkdir(parents=True, exist_ok=True)
    identity = {
        "mnist_sha256": file_sha256(given.mnist),
        "weights_sha256": file_sha256(given.weights) if given.weights else None,
        "method": given.method,
        "settings": settings,
        "backbone": given.backbone,
        "size": given.size,
        "seed": given.seed,
        "limit": given.limit,
    }
    check_identity(plan.out, identity)
    found = {digit: report for digit in DIGITS if (report := read_report(plan.report(digit))) is not None}
    missing = [digit for digit in given.classes if digit not in found]
    with tempfile.TemporaryDirectory(prefix=".digits-", dir=plan.out) as scratch:
        if missing:
            write_views(digits, Path(scratch).resolve())
        for digit in missing:
            print(f"digit {digit}: {int((digits.labels['train'] == digit).sum())} good pictures ...", flush=True)
            try:
                found[digit] = run_digit(plan, digit, Path(scratch).resolve() / f"digit-{digit}", graph)
            except EngineError as error:
                raise DataError(f"digit {digit}: {error}") from None
            print(f"digit {digit}: image AUROC {100 * found[digit]['image_auroc']:.2f}", flush=True)
    print(table(found, plan, given.limit))


def main(given: Sequence[str] | None = None) -> int:
    asked = arguments(given)
    try:
        run(asked)
    except EdgeError as error:
        print(f"mnist_one_class: {error}", file=sys.stderr)
        return int(error.exit_code)
    except OSError as error:
        print(f"mnist_one_class: {error.filename or ''}: {error.strerror or error}", file=sys.stderr)
        return int(Exit.NO_RESOURCE)
    except KeyboardInterrupt:
        print("mnist_one_class: interrupted; the same command goes on", file=sys.stderr)
        return int(Exit.INTERRUPTED)
    return int(Exit.OK)


if __name__ == "__main__":
    sys.exit(main())
