"""What a device loads: no torch, no onnx, and nobody's telemetry."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

HEAVY = ("torch", "onnx", "onnxruntime", "openvino", "edge", "calibration")
RUN = """
import json, sys
import engines
before = sorted(sys.modules)
engine = engines.open_engine(engines.builtin_graph(), runtime="openvino")
import numpy
engine.infer(numpy.zeros((1, 256, 256, 3), numpy.uint8))
print(json.dumps([before, sorted(sys.modules)]))
"""


def test_opening_the_builtin_loads_no_torch_no_onnx_and_sends_nothing(tmp_path: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if key not in ("CI", "PYTHONSTARTUP")}
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", RUN],
        env={**environment, "HOME": str(tmp_path), "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    imported, opened = json.loads(done.stdout)
    assert not {name.split(".")[0] for name in imported} & set(HEAVY)
    loaded = {name.split(".")[0] for name in opened}
    assert "openvino" in loaded
    assert not loaded & {"torch", "onnx", "onnxruntime", "edge", "calibration", "openvino_telemetry"}
    # `import openvino` by itself writes an identifier for its telemetry into the home folder.
    assert list(tmp_path.iterdir()) == []
