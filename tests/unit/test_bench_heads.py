"""``edge bench heads``: the worker on small arrays, its arithmetic on figures that were written down, and the table."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from rich.console import Console

from edge.bench import heads, heads_worker
from edge.bench.heads import Heads, heads_table, omp_of, row_of
from edge.bench.processes import BenchError
from edge.commands.bench import command
from edge.errors import ResourceError
from edge.heads import load_head, single_thread

SMALL = {"layer2": (8, 16, 12), "layer3": (16, 8, 6)}
RAW_ROW = {
    "name": "fre, map",
    "batch": 1,
    "kernel": "sgemv on float32",
    "resident_bytes": 1_000_000,
    "passes": 2,
    "pass_bytes": 900_000,
    "head_ms": [3.0, 6.0, 3.1],
    "pass_ms": [1.0, 2.0, 1.0],
}
RAW_OMP = {
    "features": 100,
    "pictures": 20,
    "atoms": 5,
    "same_atoms": True,
    "ours_ms": [10.0, 20.0, 10.0],
    "floor_ms": [9.0, 18.0, 9.0],
    "theirs_ms": {"column-major": [300.0, 600.0, 310.0], "C-ordered": [600.0, 1200.0, 620.0]},
}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    single_thread()


def result() -> Heads:
    return Heads("openblas", (row_of(RAW_ROW), row_of({**RAW_ROW, "batch": 4})), omp_of(RAW_OMP))


def test_a_floor_is_a_read_times_the_passes_round_by_round() -> None:
    row = row_of(RAW_ROW)
    assert row.read_bytes == 1_800_000
    assert row.floor_ms.median == 2.0
    assert row.ratio.median == pytest.approx(1.5)  # 3/2, 6/4, 3.1/2: the slow round counts for both
    assert row.once.median == pytest.approx(3.0)


def test_one_float32_picture_is_judged_and_nothing_else() -> None:
    row = row_of(RAW_ROW)
    slow = row_of({**RAW_ROW, "head_ms": [9.0, 9.0, 9.0]})
    assert Heads("x", (row,), None).met
    assert not Heads("x", (slow,), None).met
    assert Heads("x", (row, replace(slow, batch=4), replace(slow, kernel="float16 widened, sgemv")), None).met


def test_scikit_learn_is_judged_in_both_orders() -> None:
    omp = omp_of(RAW_OMP)
    assert omp.ratios["column-major"].median == pytest.approx(30.0)
    assert omp.ratios["C-ordered"].median == pytest.approx(60.0)
    assert not Heads("x", (), omp).met
    fast = omp_of({**RAW_OMP, "ours_ms": [5.0, 10.0, 5.0]})
    assert Heads("x", (), fast).met
    assert Heads("x", (), omp_of({**RAW_OMP, "theirs_ms": {}, "same_atoms": None})).met
    assert {"OMP, column-major, ratio", "fre, map x 1, ratio"} <= set(result().judged)


def test_the_table_says_what_was_missed_and_what_is_absent() -> None:
    def shown(what: Heads) -> str:
        console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
        heads_table(console, what)
        return console.export_text()

    text = shown(result())
    assert "at most 1.50 times the floor (at most 1.5: met)" in text
    assert "column-major: 310 ms, 30.0 (30.0 to 31.0) times as long (at least 50: MISSED)" in text
    assert "C-ordered: 620 ms, 60.0 (60.0 to 62.0) times as long (at least 50: met)" in text
    assert "sgemv on float32" in text
    assert "scikit-learn is not installed" in shown(replace(result(), omp=omp_of({**RAW_OMP, "theirs_ms": {}})))
    assert "other atoms" in shown(replace(result(), omp=omp_of({**RAW_OMP, "same_atoms": False})))


# The worker.


def test_random_heads_are_heads() -> None:
    spec, arrays = heads_worker.random_fre(SMALL, components=9)
    rows = arrays["w_layer2"].astype(np.float64)
    np.testing.assert_allclose(rows @ rows.T, np.eye(9), atol=1e-5)
    load_head("fre", spec, arrays)
    spec, arrays = heads_worker.random_sgfr(SMALL, pictures=45)
    bank = arrays["bank_layer3"].astype(np.float64)
    np.testing.assert_allclose(arrays["gram_layer3"], bank @ bank.T, rtol=2e-3)
    head = load_head("sgfr", spec, arrays)
    found = head.residuals(heads_worker.random_taps(spec, head.taps, 2))
    assert all((level > 0).any() for level in found.levels)  # no picture of the bank


def test_fre_is_timed_with_and_without_maps() -> None:
    found = heads_worker.run({"subject": "fre", "rounds": 3, "shapes": SMALL})
    sizes = {name: int(np.prod(shape)) // 4 for name, shape in SMALL.items()}
    stored = {name: 4 * size * min(heads_worker.COMPONENTS, size // 4) for name, size in sizes.items()}
    rows = {(row["name"], row["batch"]): row for row in found["rows"]}
    assert set(rows) == {(name, batch) for name in ("fre, map", "fre, score only (layer3)") for batch in (1, 4)}
    assert rows["fre, map", 1]["pass_bytes"] == sum(stored.values())
    assert rows["fre, map", 1]["passes"] == 2
    assert rows["fre, score only (layer3)", 1]["passes"] == 1
    assert rows["fre, score only (layer3)", 1]["pass_bytes"] == stored["layer3"]
    for row in rows.values():
        assert len(row["head_ms"]) == len(row["pass_ms"]) == 3
        assert min(row["head_ms"]) > 0
        assert min(row["pass_ms"]) > 0


def test_sgfr_reads_one_bank_whole_and_of_the_other_what_is_sampled() -> None:
    found = heads_worker.run({"subject": "sgfr", "rounds": 1, "shapes": SMALL})
    rows = {(row["kernel"], row["batch"]): row for row in found["rows"]}
    assert {kernel for kernel, _ in rows} == {
        "sgemv on float32",
        "sgemm on float32",
        "float16 widened, sgemv",
        "float16 widened, sgemm",
    }
    two, three = (int(np.prod(shape)) for shape in SMALL.values())
    whole, own = 209 * three, 40 * two + 17 * (two + three)
    assert rows["sgemv on float32", 1]["pass_bytes"] == 4 * (whole + own)
    assert rows["sgemm on float32", 4]["pass_bytes"] == 4 * (whole + 4 * own)
    assert rows["float16 widened, sgemv", 1]["pass_bytes"] == 2 * (whole + own)


def test_omp_is_compared_on_the_same_dictionary(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sklearn")
    found = heads_worker.run({"subject": "omp", "rounds": 2, "shape": [4096, 40, 7]})["omp"]
    assert found["same_atoms"] is True
    assert set(found["theirs_ms"]) == {"column-major", "C-ordered"}
    assert all(len(times) == 2 for times in (found["ours_ms"], found["floor_ms"], *found["theirs_ms"].values()))
    alone = heads_worker.time_omp(4096, 40, 7, 2, None)
    assert alone["theirs_ms"] == {}
    assert alone["same_atoms"] is None
    monkeypatch.setattr(heads_worker, "available_bytes", lambda: 1000)
    with pytest.raises(ResourceError, match="the comparison needs"):
        heads_worker.time_omp(4096, 40, 7, 2, None)


def test_all_subjects_are_measured_each_in_its_process(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    def worker(module: str, spec: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        assert module == "edge.bench.heads_worker"
        asked.append(spec)
        if spec["subject"] == "omp":
            return {"blas": "b", "omp": RAW_OMP}
        return {"blas": "b", "rows": [{**RAW_ROW, "name": spec["subject"]}]}

    monkeypatch.setattr(heads, "run_worker", worker)
    found = heads.measure(("fre", "sgfr"), None, 4, lambda *_: None)
    assert [spec["subject"] for spec in asked] == ["fre", "sgfr", "omp"]
    assert {spec["rounds"] for spec in asked} == {4}
    assert [row.name for row in found.rows] == ["fre", "sgfr"]
    assert found.omp is not None
    assert heads.measure(("fre",), None, 1, lambda *_: None).omp is None
    with pytest.raises(BenchError, match="the whole network of hfra is the engine's"):
        heads.measure(("hfra",), None, 1, lambda *_: None)


def test_a_bundle_is_measured_on_its_own_arrays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    class Loaded:
        class manifest:
            method = "sgfr"

    def worker(module: str, spec: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        asked.append(spec)
        return {"blas": "b", "rows": [RAW_ROW]}

    monkeypatch.setattr(heads, "run_worker", worker)
    monkeypatch.setattr("edge.bundle.load_bundle", lambda path: Loaded)
    heads.measure(heads.METHODS, tmp_path / "b", 2, lambda *_: None)
    assert asked == [{"subject": "sgfr", "bundle": str(tmp_path / "b"), "rounds": 2}]
    monkeypatch.setattr(Loaded.manifest, "method", "fair")
    with pytest.raises(BenchError, match="the whole network of fair"):
        heads.measure(heads.METHODS, tmp_path / "b", 2, lambda *_: None)


def test_the_command_names_one_head_only() -> None:
    done = CliRunner().invoke(command, ["heads", "--method", "fre", "--bundle", "b"])
    assert done.exit_code == 2
    assert "--bundle names the head by itself" in done.output
