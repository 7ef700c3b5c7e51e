"""One small bundle and one folder of compiled engines for all daemons of a test run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from line import Line

PART = (320, 240)  # width and height of every synthetic picture here


@pytest.fixture(scope="session")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small data set in MVTec's layout: 40 good parts, and a test of good and defective ones."""
    from edge.cameras.synthetic import write_part_dataset

    folder = tmp_path_factory.mktemp("parts")
    write_part_dataset(folder, good=40, test_good=4, test_defects=2, seed=3, size=PART)
    return folder


@pytest.fixture(scope="session")
def bundle(parts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle on the good parts; read only."""
    from calibration.datasets import load_split
    from calibration.fit import fit_bundle
    from calibration.options import FitOptions
    from engines import builtin_graph

    out = tmp_path_factory.mktemp("bundle") / "parts"
    options = FitOptions(false_alarms=0.02, keep_refit=False)
    fit_bundle(load_split(parts, "mvtec"), out, graph=builtin_graph(), backbone="builtin", options=options)
    return out


@pytest.fixture(scope="session")
def other_bundle(parts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another bundle that fits in the first one's place: half of the good parts."""
    from calibration.fit import fit_bundle
    from calibration.options import FitOptions
    from engines import builtin_graph

    out = tmp_path_factory.mktemp("bundle") / "half"
    good = sorted((parts / "train" / "good").iterdir())[::2]
    options = FitOptions(false_alarms=0.05, keep_refit=False)
    fit_bundle(good, out, graph=builtin_graph(), backbone="builtin", options=options)
    return out


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compiled engines, shared: only the first daemon compiles."""
    return tmp_path_factory.mktemp("engines")


@pytest.fixture
def start(bundle: Path, cache: Path) -> Iterator[Callable[..., Line]]:
    """``start(cameras, **sections)`` starts a daemon that ends with the test."""
    with ExitStack() as undo:

        def make(*cameras: Any, **kwargs: Any) -> Line:
            kwargs.setdefault("cache", cache)
            return undo.enter_context(Line(kwargs.pop("bundle", bundle), cameras, **kwargs))

        yield make
