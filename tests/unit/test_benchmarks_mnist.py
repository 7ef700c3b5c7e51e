"""The one-class digits script, on digits of our own: bars whose place is their label."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "mnist_one_class.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("mnist_one_class", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # A dataclass looks its module up by name.
    import sys

    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng, arrays = np.random.default_rng(0), {}
    for part, each in (("train", 12), ("test", 3)):
        labels = np.repeat(np.arange(10), each)
        pictures = rng.integers(0, 30, (len(labels), 28, 28), dtype=np.uint8)
        for picture, label in zip(pictures, labels, strict=True):
            picture[:, 2 * label + 2 : 2 * label + 6] += np.uint8(200)
        arrays |= {f"x_{part}": pictures, f"y_{part}": labels}
    path = tmp_path_factory.mktemp("digits") / "mnist.npz"
    np.savez(path, **arrays)
    return path


def test_a_digit_is_fitted_evaluated_and_not_run_twice(
    script: ModuleType, digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [str(digits), f"--out={tmp_path}", "--method=fre", "--backbone=builtin", "--size=32", "--classes=3"]
    assert script.main(given) == 0
    report = json.loads((tmp_path / "digit-3.json").read_text())
    assert report["image_auroc"] > 0.9
    assert "| 3 |" in capsys.readouterr().out
    assert not list(tmp_path.glob(".digits-*"))
    written = (tmp_path / "digit-3.json").stat().st_mtime_ns
    assert script.main(given) == 0
    assert (tmp_path / "digit-3.json").stat().st_mtime_ns == written
    assert script.main([*given, "--seed=1"]) != 0
    assert "another seed" in capsys.readouterr().err


def test_bad_input_is_one_line(
    script: ModuleType, digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.npz").write_text("no archive")
    np.savez(tmp_path / "half.npz", x_train=np.zeros((1, 28, 28), np.uint8))
    for name, says in (("none.npz", "no such file"), ("text.npz", "not a readable"), ("half.npz", "needs the arrays")):
        assert script.main([str(tmp_path / name), f"--out={tmp_path / 'out'}", "--method=fre"]) != 0
        told = capsys.readouterr().err
        assert says in told
        assert told.count("\n") == 1
