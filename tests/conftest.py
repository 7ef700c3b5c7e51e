"""Fixtures that every test may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real pictures and weights; skips where it is absent."""
    path = Path(os.environ.get("EDGE_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not (path / "mvtec").is_dir():
        pytest.skip(f"real pictures are not at {path} (set EDGE_TEST_DATA)")
    return path
