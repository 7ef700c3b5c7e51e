"""``edge bench start-up``: what ``edge --help`` costs above an interpreter that does nothing, and what it imports."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge.bench.processes import BenchError, last_line
from edge.bench.spread import Spread, spread

LIMIT_S = 0.3
# What must not be loaded to say what the commands are; torch never, the others because each costs as much again.
HEAVY = ("torch", "onnx", "onnxruntime", "openvino", "cv2", "numpy", "pydantic", "zmq", "rich", "calibration")

_IMPORTS = """
import json, sys
from edge.cli import main
sys.argv = ["edge", "--help"]
sys.stdout = open("/dev/null", "w")
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
sys.__stdout__.write(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
"""


def help_command() -> list[str]:
    """The console script beside this interpreter, as a user calls it; the module where it is not installed."""
    script = Path(sys.executable).parent / "edge"
    return [str(script), "--help"] if os.access(script, os.X_OK) else [sys.executable, "-m", "edge.cli", "--help"]


@dataclass(frozen=True)
class StartUp:
    """Wall times in seconds; ``difference`` is taken pair by pair. ``heavy``: modules of ``HEAVY`` that were loaded."""

    command: str
    edge: Spread
    python: Spread
    difference: Spread
    heavy: tuple[str, ...]

    @property
    def met(self) -> bool:
        return self.difference.median < LIMIT_S and not self.heavy

    @property
    def judged(self) -> dict[str, Spread]:
        """The figures whose spread is judged: the walls. Their difference is small, its own share says little."""
        return {"edge --help": self.edge, "bare Python": self.python}

    def as_json(self) -> dict[str, Any]:
        return {
            "command": self.command,
            "edge_s": self.edge.as_json(),
            "python_s": self.python.as_json(),
            "difference_s": self.difference.as_json(),
            "limit_s": LIMIT_S,
            "met": self.met,
            "heavy_imports": list(self.heavy),
            "torch_loaded": "torch" in self.heavy,
        }


def measure(rounds: int) -> StartUp:
    """Alternate both commands ``rounds`` times, after one pair that only fills the page cache.

    Raises BenchError when one of them fails.
    """
    command, bare = help_command(), [sys.executable, "-c", "pass"]
    edge, python = [], []
    for _ in range(rounds + 1):
        edge.append(_time(command))
        python.append(_time(bare))
    del edge[0], python[0]
    difference = [a - b for a, b in zip(edge, python, strict=True)]
    heavy = tuple(sorted(set(HEAVY) & imported_by_help()))
    return StartUp(" ".join(command), spread(edge), spread(python), spread(difference), heavy)


def imported_by_help() -> set[str]:
    """Top-level modules that ``edge --help`` has loaded when it is done. Raises BenchError when it fails."""
    done = subprocess.run([sys.executable, "-c", _IMPORTS], capture_output=True, text=True, timeout=60)
    if done.returncode != 0:
        raise BenchError(f"edge --help failed: {last_line(done.stderr)}")
    return set(json.loads(done.stdout))


def _time(argv: list[str]) -> float:
    begun = time.perf_counter()
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, timeout=60)
    seconds = time.perf_counter() - begun
    if done.returncode != 0:
        raise BenchError(f"{argv[0]} failed: {last_line(done.stderr.decode(errors='replace'))}")
    return seconds
