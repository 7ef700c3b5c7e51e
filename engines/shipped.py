"""The built-in backbone's graph, as it lies in the package."""

from __future__ import annotations

from pathlib import Path

from engines.errors import EngineError

BUILTIN_SIZE = (256, 256)  # height, width in pixels
_FILE = Path(__file__).parent / "builtin" / "builtin.onnx"


def builtin_graph() -> bytes:
    """The ONNX of the shipped backbone: uint8 RGB [batch, 256, 256, 3] in, layer1 to layer3 out."""
    try:
        return _FILE.read_bytes()
    except OSError as error:
        raise EngineError(
            f"the built-in backbone is not at {_FILE} ({error.strerror}); reinstall edge-inspect"
        ) from None
