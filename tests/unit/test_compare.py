"""Several evaluations as one table: reading reports, grouping them, and ``edge eval --compare``."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from click.testing import CliRunner, Result

from calibration import compare as module
from calibration.assemble import _fit_seconds
from calibration.compare import Comparison, NotAReport, Spread, compare, find, make_rows, read_result
from calibration.datasets import load_split
from calibration.evaluate import evaluate
from calibration.fit import fit_bundle, refit_bundle
from calibration.options import FitOptions
from calibration.published import CATEGORIES
from calibration.timing import MAX_PICTURES, time_scoring
from edge.bundle import Provenance, load_bundle
from edge.commands.comparison import markdown, table
from edge.commands.evaluate import command
from edge.errors import DataError, Exit
from edge.heads.scorer import Scorer
from engines import builtin_graph, open_engine


def stored(**changes: Any) -> dict[str, Any]:
    """The JSON of a report, as far as a comparison reads it; keys of ``fitted`` may be given directly."""
    fitted = {
        "method": "fre",
        "backbone": "resnet18",
        "precision": "f32",
        "input_size": [256, 256],
        "settings": {"variance": 0.97, "layers": ["layer1", "layer2"]},
        "training_seed": None,
        "bundle_sha256": "a" * 64,
        "bundle_bytes": 120_000_000,
        "fit_seconds": 4.0,
        "timing": {"engine_ms": 13.0, "head_ms": 12.0, "pictures": 20},
    }
    report = {
        "bundle": "runs/one.bundle",
        "data": "data/bottle",
        "dataset": "MVTec AD",
        "category": "bottle",
        "seed": None,
        "image_auroc": 0.99,
        "pixel_auroc": 0.98,
        "aupro": 0.95,
        "ap": None,
    }
    fitted |= {name: value for name, value in changes.items() if name in fitted}
    return report | {name: value for name, value in changes.items() if name not in fitted} | {"fitted": fitted}


def result(**changes: Any) -> module.Result:
    return module.Result.model_validate(stored(**changes))


# Rows.


def test_a_row_has_the_figures_and_the_published_ones_of_the_same_backbone() -> None:
    (row,) = make_rows([result()])
    assert row.metrics["image_auroc"] == Spread(0.99, 0.99, 0.99, 1)
    assert row.metrics["ap"] is None
    assert [figure.value for figure in row.published["aupro"]] == [95.8]
    assert row.published["aupro"][0].backbone == "ResNet18"
    assert "ap" not in row.published
    ((cells,), notes) = table([row])
    assert cells[:4] == ("MVTec AD bottle", "FRE", "resnet18", "256")
    assert cells[4:12] == ("99.00", "98.00", "95.00", "-", "4.00", "13.0", "12.0", "120")
    assert cells[12] == "image AUROC 100.0 (EfficientNet-B5) [1]; AUPRO 95.8 (ResNet18, 3 layers, 256 px)"
    assert len(notes) == 1
    assert notes[0].startswith("[1] ")


def test_seeds_are_one_row_with_mean_least_and_largest() -> None:
    seeds = [
        result(dataset="MTD", category="all", seed=seed, image_auroc=auroc, bundle_sha256=str(seed) * 64)
        for seed, auroc in ((0, 0.98), (1, 0.99), (2, 0.991))
    ]
    (row,) = make_rows(seeds)
    assert row.metrics["image_auroc"] == Spread(pytest.approx(0.987), 0.98, 0.991, 3)
    assert row.seeds == ((0, None), (1, None), (2, None))
    ((cells,), _) = table([row])
    assert cells[0] == "MTD"
    assert cells[1] == "FRE, mean of 3 seeds"
    assert cells[4] == "98.70 (98.00-99.10)"
    trained = [result(method="hfra", training_seed=seed, bundle_sha256=str(seed) * 64) for seed in (0, 1)]
    (row,) = make_rows(trained)
    assert row.seeds == ((None, 0), (None, 1))


def test_a_figure_that_one_seed_lacks_has_no_mean() -> None:
    (row,) = make_rows([result(training_seed=0), result(training_seed=1, aupro=None, bundle_sha256="b" * 64)])
    assert row.metrics["aupro"] is None
    assert row.metrics["image_auroc"] is not None


def test_two_reports_of_one_bundle_are_one_and_the_later_counts() -> None:
    (row,) = make_rows([result(image_auroc=0.5), result(image_auroc=0.9, bundle="copy.bundle")])
    assert row.metrics["image_auroc"] == Spread(0.9, 0.9, 0.9, 1)
    # The same bundle on other pictures is another row; and so are two folders of one name that no paper knows.
    rows = make_rows([result(), result(dataset="MVTec AD", category="cable")])
    assert [row.category for row in rows] == ["bottle", "cable"]
    own = {"dataset": "parts", "category": ""}
    assert len(make_rows([result(data="a/parts", **own), result(data="b/parts", **own)])) == 2


def test_other_settings_are_another_row_and_say_what_differs() -> None:
    few = result(settings={"variance": 0.9, "layers": ["layer1", "layer2"]}, bundle_sha256="b" * 64)
    rows = make_rows([result(), few])
    assert [row.variant for row in rows] == ["variance 0.9", "variance 0.97"]
    layers = result(settings={"variance": 0.97, "layers": ["layer3"]}, bundle_sha256="c" * 64)
    assert {row.variant for row in make_rows([result(), layers])} == {"layers layer3", "layers layer1+layer2"}
    for change in ({"precision": "bf16"}, {"backbone": "builtin"}, {"input_size": [320, 320]}, {"method": "sgfr"}):
        rows = make_rows([result(), result(bundle_sha256="b" * 64, **change)])
        assert [len(row.seeds) for row in rows] == [1, 1], change
        assert all(row.variant == "" for row in rows), change


def test_the_same_seed_twice_is_no_second_seed() -> None:
    again = result(bundle_sha256="b" * 64, bundle="runs/again.bundle")  # the same fit, made twice
    (row,) = make_rows([result(), again])
    assert row.seeds == ((None, None),)
    assert row.bundles == ("one.bundle",)
    other = result(bundle_sha256="c" * 64, bundle="runs/other.bundle", image_auroc=0.7)
    rows = make_rows([result(), other])
    assert {(row.variant, row.metrics["image_auroc"].mean) for row in rows if row.metrics["image_auroc"]} == {
        ("one.bundle", 0.99),
        ("other.bundle", 0.7),
    }


def test_a_complete_data_set_gets_its_means() -> None:
    def digits(count: int) -> list[module.Result]:
        return [
            result(
                method="hfra",
                dataset="MNIST",
                category=str(digit),
                image_auroc=0.9 + digit / 100,
                pixel_auroc=None,
                bundle_sha256=f"{digit:064}",
            )
            for digit in range(count)
        ]

    assert len(make_rows(digits(9))) == 9
    *_, mean = make_rows(digits(10))
    assert mean.category == "mean"
    assert mean.metrics["image_auroc"] == Spread(pytest.approx(0.945), 0.9, 0.99, 10)
    assert [figure.value for figure in mean.published["image_auroc"]] == [98.5]
    ((*_, cells), _) = table(make_rows(digits(10)))
    assert cells[0] == "MNIST, mean of 10"
    assert cells[1] == "HFRA"
    assert cells[4] == "94.50"  # the range over categories is no spread of a figure
    parts = [result(category=name, bundle_sha256=f"{i:064}") for i, name in enumerate(CATEGORIES["MVTec AD"])]
    assert [row.category for row in make_rows(parts)][-3:] == ["mean", "mean_object", "mean_texture"]


# Reports on disk.


def test_files_that_are_no_report_are_named_in_one_line(tmp_path: Path) -> None:
    def written(name: str, content: str) -> Path:
        (tmp_path / name).write_text(content)
        return tmp_path / name

    good = written("good.json", json.dumps(stored()))
    assert read_result(good) == result()
    old = {key: value for key, value in stored().items() if key != "fitted"}
    broken = stored()
    broken["fitted"]["bundle_bytes"] = "many"
    for path, error, message in (
        (written("cut.json", json.dumps(stored())[:50]), DataError, "damaged or cut short"),
        (written("other.json", '{"threshold": 1}'), NotAReport, "not a report"),
        (written("list.json", "[1]"), NotAReport, "not a report"),
        (written("old.json", json.dumps(old)), DataError, "older version"),
        (written("broken.json", json.dumps(broken)), DataError, r"fitted\.bundle_bytes"),
        (written("high.json", json.dumps(stored(image_auroc=99.0))), DataError, "image_auroc"),
        (tmp_path / "missing.json", DataError, "cannot be read"),
    ):
        with pytest.raises(error, match=message) as raised:
            read_result(path)
        assert "\n" not in str(raised.value)
        assert str(path) in str(raised.value)
    # In a folder, JSON of another kind is left out and said; what is damaged is a failure. The good one is shown.
    comparison = compare(find([tmp_path]))
    assert len(comparison.rows) == 1
    assert len(comparison.notes) == 2
    assert len(comparison.failures) == 4
    assert [failure.exit_code for failure in compare(find([tmp_path / "other.json"])).failures] == [Exit.BAD_DATA]


def test_markdown_escapes_and_names_what_is_missing() -> None:
    (row,) = make_rows([result(dataset="a|b", category="")])
    text = markdown(Comparison((row,), (module.Failure("x.bundle: broken", Exit.BAD_BUNDLE),), (), ()))
    lines = text.splitlines()
    assert lines[2].startswith("| a\\|b | FRE |")
    assert {line.replace("\\|", "").count("|") for line in lines[:3]} == {14}
    assert "Missing: x.bundle: broken" in text


# With bundles.


GOOD = 14


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A disc on a plate; the defect is a dark streak."""
    root, rng = tmp_path_factory.mktemp("parts"), np.random.default_rng(0)
    for folder in ("train/good", "test/good", "test/streak", "ground_truth/streak"):
        (root / folder).mkdir(parents=True)

    def part(path: Path, defect: bool) -> None:
        image, mask = np.full((64, 64, 3), 90, np.uint8), np.zeros((64, 64), np.uint8)
        cv2.circle(image, (32 + int(rng.integers(-1, 2)), 32), 20, (170, 175, 180), -1)
        if defect:
            cv2.line(mask, (24, 24), (40, 33), 255, 5)
            image[mask > 0] = 20
            cv2.imwrite(str(root / f"ground_truth/streak/{path.stem}_mask.png"), mask)
        cv2.imwrite(str(path), np.clip(image + rng.normal(0, 3, image.shape), 0, 255).astype(np.uint8))

    for i in range(GOOD):
        part(root / f"train/good/{i:02}.png", False)
    for i in range(3):
        part(root / f"test/good/{i}.png", False)
        part(root / f"test/streak/{i}.png", True)
    return root


@pytest.fixture(scope="module")
def bundles(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two bundles: two variances of one method."""
    folder = tmp_path_factory.mktemp("bundles")
    options = FitOptions(layers=("layer3",), false_alarms=0.1)
    fit_bundle(
        load_split(data, "mvtec"), folder / "a.bundle", graph=builtin_graph(), backbone="builtin", options=options
    )
    refit_bundle(folder / "a.bundle", folder / "b.zip", options=replace(options, variance=0.5))
    return folder


def test_a_fit_remembers_its_seconds_and_a_refit_does_not_claim_them(bundles: Path) -> None:
    fitted, again = (load_bundle(bundles / name).manifest.provenance for name in ("a.bundle", "b.zip"))
    assert fitted.fit_seconds is not None
    assert fitted.fit_seconds > 0
    assert again.fit_seconds is None
    older = fitted.model_dump(exclude={"fit_seconds"})
    assert Provenance.model_validate(older).fit_seconds is None


@pytest.mark.parametrize(
    ("seconds", "details", "wanted"),
    [
        ({"backbone": 1.0, "algebra": 2.0}, {}, 3.0),
        ({"backbone": 1.0, "algebra": 2.0}, {"resumed_at_step": 0}, 3.0),
        ({"backbone": 1.0, "algebra": 2.0}, {"resumed_at_step": {"first": 0, "second": 0}}, 3.0),
        ({"backbone": 1.0, "algebra": 2.0}, {"resumed_at_step": 7}, None),
        ({"backbone": 1.0, "algebra": 2.0}, {"resumed_at_step": {"first": 0, "second": 7}}, None),
        ({"algebra": 2.0}, {}, None),
    ],
)
def test_only_a_fit_in_one_go_has_seconds(
    seconds: dict[str, float], details: dict[str, object], wanted: float | None
) -> None:
    assert _fit_seconds(seconds, details) == wanted


def test_bundles_that_no_report_tells_of_are_named(bundles: Path, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(stored(bundle="elsewhere/a.bundle")))
    (note,) = compare(find([tmp_path, bundles])).notes
    assert "b.zip: not evaluated" in note
    (tmp_path / "b.json").write_text(json.dumps(stored(bundle="b.zip", bundle_sha256="b" * 64)))
    assert compare(find([tmp_path, bundles])).notes == ()


def test_the_report_says_what_was_evaluated_and_what_it_costs(data: Path, bundles: Path) -> None:
    report = evaluate(bundles / "a.bundle", data, "mvtec")
    content = json.loads(json.dumps(report.as_json(), allow_nan=False))
    manifest = load_bundle(bundles / "a.bundle").manifest
    fitted = content["fitted"]
    assert (content["dataset"], content["category"]) == (data.name, "")
    assert (fitted["method"], fitted["backbone"], fitted["precision"]) == ("fre", "builtin", "f32")
    assert fitted["input_size"] == [256, 256]
    assert fitted["bundle_sha256"] == manifest.checksum
    on_disk = sum(path.stat().st_size for path in (bundles / "a.bundle").iterdir() if path.name != "bundle.json")
    assert fitted["bundle_bytes"] == on_disk
    assert 0 < fitted["refit_bytes"] < on_disk
    assert fitted["fit_seconds"] == manifest.provenance.fit_seconds
    assert fitted["pictures"] == GOOD
    assert fitted["settings"]["variance"] == 0.97
    assert fitted["timing"]["pictures"] == 6
    assert fitted["timing"]["engine_ms"] > 0
    assert fitted["timing"]["head_ms"] > 0


def test_timing_takes_few_pictures_spread_over_all_and_skips_the_unreadable(data: Path, bundles: Path) -> None:
    bundle = load_bundle(bundles / "a.bundle")
    scorer = Scorer(bundle)
    engine = open_engine(bundle.graph, taps=scorer.taps)
    try:
        paths = sorted((data / "test/good").iterdir())
        many = time_scoring(engine, scorer, paths * 15)
        assert many is not None
        assert MAX_PICTURES // 2 < many.pictures <= MAX_PICTURES
        some = time_scoring(engine, scorer, [data / "nothing.png", *paths])
        assert some is not None
        assert some.pictures == 3
        assert time_scoring(engine, scorer, [data / "nothing.png"]) is None
    finally:
        engine.close()


def run(*arguments: object) -> Result:
    return CliRunner().invoke(command, [str(argument) for argument in arguments])


def test_compare_shows_all_bundles_and_writes_json_and_markdown(data: Path, bundles: Path, tmp_path: Path) -> None:
    target, text = tmp_path / "table.json", tmp_path / "table.md"
    done = run("--compare", bundles, "--data", data, "--json", target, "--markdown", text)
    assert done.exit_code == 0, done.output
    assert done.stdout.count("FRE") == 2
    rows = json.loads(target.read_text())["rows"]
    assert [row["variant"] for row in rows] == ["variance 0.5", "variance 0.97"]
    for row, name in zip(rows, ("b.zip", "a.bundle"), strict=True):
        alone = evaluate(bundles / name, data, "mvtec")
        assert row["metrics"]["image_auroc"]["mean"] == alone.image_auroc
        assert row["metrics"]["aupro"]["mean"] == alone.aupro
    assert text.read_text().count("| FRE (variance") == 2


def test_a_table_from_reports_alone_needs_no_data(data: Path, bundles: Path, tmp_path: Path) -> None:
    assert run(bundles / "a.bundle", "--data", data, "--json", tmp_path / "a.json").exit_code == 0
    done = run("--compare", tmp_path, "--markdown", "-")
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith("| data | method |")
    assert f"| {data.name} | FRE | builtin | 256 |" in done.stdout
    # The table itself lies beside the reports: it is none of them.
    assert run("--compare", tmp_path, "--json", tmp_path / "table.json").exit_code == 0
    again = run("--compare", tmp_path, "--json", "-")
    assert again.exit_code == 0
    assert len(json.loads(again.stdout)["rows"]) == 1


def test_what_fails_is_named_and_the_others_are_shown(data: Path, bundles: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.bundle"
    broken.mkdir()
    (broken / "bundle.json").write_text("{")
    done = run("--compare", broken, bundles / "a.bundle", tmp_path / "none", "--data", data)
    assert done.exit_code == Exit.BAD_BUNDLE
    assert "FRE" in done.stdout
    lines = [line for line in done.stderr.splitlines() if line.startswith("edge: ")]
    assert len(lines) == 2
    assert sum(str(broken) in line for line in lines) == 1
    # Pictures that were fitted are refused as they are without --compare.
    done = run("--compare", bundles, "--data", data / "train", "--layout", "folder", "--markdown", "-")
    assert done.exit_code == Exit.BAD_DATA
    assert done.stderr.count("were fitted") == 2


def test_options_that_do_not_go_together(data: Path, bundles: Path) -> None:
    for arguments, message in (
        ((bundles / "a.bundle",), "Missing option '--data'"),
        ((bundles / "a.bundle", bundles / "b.zip", "--data", data), "--compare takes several"),
        ((bundles / "a.bundle", "--data", data, "--markdown", "-"), "--markdown goes with --compare"),
        ((bundles / "a.bundle", "--data", data, "--panels", "x"), "--panels goes with --compare"),
        (("--compare", bundles), "needs --data"),
        (("--compare", bundles, "--panels", "x"), "needs --data"),
        (("--compare", bundles, "--data", data, "--json", "-", "--markdown", "-"), "standard output"),
        ((), "Missing argument"),
    ):
        done = run(*arguments)
        assert done.exit_code == Exit.USAGE
        assert message in done.output


def test_a_report_needs_no_runtime_to_be_read() -> None:
    """A table from reports must not load torch, nor an engine's runtime."""
    code = "import sys, calibration.compare, edge.commands.comparison as c; print(*sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "openvino", "onnxruntime", "onnx"} & set(loaded)
