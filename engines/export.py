"""Writes a backbone as ONNX: uint8 NHWC in, dynamic batch, normalisation inside, one output a tap.

As a command it made the shipped graph:
``python -m engines.export builtin --weights builtin.safetensors --out engines/builtin/builtin.onnx
--record engines/builtin/provenance.json``
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from engines import catalog
from engines.architectures import write_graph
from engines.errors import EngineError
from engines.files import write_atomically
from engines.graph import INPUT, OPSET, read_constants
from engines.shipped import BUILTIN_SIZE, builtin_graph
from engines.weights import StateDict, fetch_weights, load_state

_NORMALISATION = "RGB/255, ImageNet mean 0.485 0.456 0.406 and std 0.229 0.224 0.225, in the graph"
_MIN_SIDE, _MAX_SIDE = 32, 4096


def export_backbone(
    name: str,
    weights: Path | None = None,
    out: Path | None = None,
    input_size: tuple[int, int] = BUILTIN_SIZE,
    taps: Sequence[str] | None = None,
) -> bytes:
    """The ONNX of backbone ``name``; also written to ``out`` (atomically) if given.

    ``weights``: a state dict (.pt, .pth, .safetensors); None takes the shipped ones for "builtin" and fetches
    the official ones for the others. ``input_size``: (height, width) in pixels, 32 to 4096. ``taps``: outputs
    and their order, layers 1 to 3 by default. Equal arguments and weights give equal bytes.

    Raises EngineError: unknown name or tap, weights missing, damaged or of another backbone, no network, no
    onnx (only the shipped graph of "builtin" at its own size and taps needs none), ``out`` not writable.
    """
    chosen = catalog.select_taps(name, taps)
    height, width = input_size
    if not all(_MIN_SIDE <= side <= _MAX_SIDE for side in (height, width)):
        raise EngineError(f"input size {height}x{width}: each side must be {_MIN_SIDE} to {_MAX_SIDE} pixels")
    if name == "builtin" and weights is None and (height, width) == BUILTIN_SIZE and _is_default(chosen):
        data = builtin_graph()
    else:
        state, digest = _state(name, weights)
        metadata = {
            "backbone": name,
            "weights_sha256": digest,
            "taps": ",".join(chosen),
            "input": f"uint8 NHWC RGB, {INPUT}",
            "normalisation": _NORMALISATION,
        }
        data = write_graph(name, state, chosen, (height, width), metadata)
    if out is not None:
        try:
            write_atomically(out, data)
        except OSError as error:
            raise EngineError(f"the graph cannot be written to {out} ({error.strerror})") from None
    return data


def _is_default(taps: tuple[str, ...]) -> bool:
    return taps == catalog.DEFAULT_TAPS


def _state(name: str, weights: Path | None) -> tuple[StateDict, str]:
    if weights is not None:
        return load_state(weights)
    if name == "builtin":
        # Nothing is folded in this network, so the shipped graph's constants are its state dict.
        constants, metadata = read_constants(builtin_graph())
        state = {key: array for key, array in constants.items() if not key.startswith("input.")}
        return state, metadata["weights_sha256"]
    return load_state(fetch_weights(catalog.backbone(name)))


def _record(name: str, weights: Path | None, data: bytes, size: tuple[int, int]) -> bytes:
    constants, metadata = read_constants(data)
    facts = {
        "graph_sha256": hashlib.sha256(data).hexdigest(),
        "graph_bytes": len(data),
        "weights_file": weights.name if weights else None,
        "parameters": sum(a.size for key, a in constants.items() if not key.startswith("input.")),
        "opset": OPSET,
        "input_size": list(size),
        **metadata,
        "command": f"python -m engines.export {name} --weights FILE --out FILE",
        "licence": catalog.backbone(name).licence,
    }
    return (json.dumps(facts, indent=2) + "\n").encode()


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns 0, or 1 after one line on stderr."""
    parser = argparse.ArgumentParser(prog="python -m engines.export", description=export_backbone.__doc__)
    parser.add_argument("name", choices=catalog.names())
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--size", type=int, nargs=2, default=BUILTIN_SIZE, metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--taps", help="comma-separated, in the order of the outputs")
    parser.add_argument("--record", type=Path, help="write where the graph came from, as JSON")
    given = parser.parse_args(arguments)
    size = (given.size[0], given.size[1])
    try:
        taps = given.taps.split(",") if given.taps else None
        data = export_backbone(given.name, given.weights, given.out, size, taps)
        if given.record is not None:
            write_atomically(given.record, _record(given.name, given.weights, data, size))
    except (EngineError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{given.out}: {len(data)} bytes, SHA-256 {hashlib.sha256(data).hexdigest()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
