"""State dicts from files, and files from their official addresses."""

from __future__ import annotations

import hashlib
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.catalog import Backbone
from engines.errors import EngineError, brief
from engines.files import default_cache_dir, write_atomically

MAX_BYTES = 1 << 30  # WideResNet50-2, the largest of the catalog, is 0.13 GiB
TIMEOUT_S = 20.0  # for connecting and for each read
_CHUNK = 1 << 20

StateDict = dict[str, NDArray[np.float32]]


def load_state(path: Path) -> tuple[StateDict, str]:
    """The floating-point arrays of a ``.safetensors``, ``.pt`` or ``.pth`` file as float32, and its SHA-256.

    Float16 and other stored precisions are widened; integer entries (``num_batches_tracked``) are left out.
    Raises EngineError, in one line, for a file that is missing, too large, damaged, of another kind, or holds
    NaN or infinity; and for ``.pt`` and ``.pth`` where torch is not installed.
    """
    readers: Mapping[str, Callable[[Path], StateDict]] = {
        ".safetensors": _read_safetensors,
        ".pt": _read_torch,
        ".pth": _read_torch,
    }
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise EngineError(f"weights {path}: give a .pt, .pth or .safetensors file")
    digest = sha256_of(path)
    state = reader(path)
    if not state:
        raise EngineError(f"weights {path}: holds no floating-point arrays, so it is not a state dict")
    for key, array in state.items():
        if not np.isfinite(array).all():
            raise EngineError(f"weights {path}: {key!r} holds NaN or infinity; get the file again")
    return state, digest


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, hexadecimal. Raises EngineError where it cannot be read or is over MAX_BYTES."""
    digest, size = hashlib.sha256(), 0
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                size += len(chunk)
                if size > MAX_BYTES:
                    raise EngineError(f"weights {path}: larger than {MAX_BYTES >> 20} MiB, not a backbone")
                digest.update(chunk)
    except OSError as error:
        raise EngineError(f"weights {path}: cannot be read ({error.strerror}); check --weights") from None
    if size == 0:
        raise EngineError(f"weights {path}: the file is empty; get it again")
    return digest.hexdigest()


def _read_safetensors(path: Path) -> StateDict:
    from safetensors import SafetensorError, safe_open

    state: StateDict = {}
    try:
        with safe_open(str(path), framework="numpy") as file:
            for key in file.keys():  # noqa: SIM118 (not a dict)
                array = file.get_tensor(key)
                if array.dtype.kind == "f":
                    state[key] = array.astype(np.float32)
    # TypeError and AttributeError: a stored type that NumPy has no name for (bfloat16, float8).
    except (SafetensorError, TypeError, AttributeError) as error:
        raise EngineError(f"weights {path}: not a readable safetensors file ({brief(error)})") from None
    return state


def _read_torch(path: Path) -> StateDict:
    try:
        import torch
    except ImportError:
        raise EngineError(
            f'weights {path}: a torch file needs torch once: install the extra "fit" (edge-inspect[fit]), '
            "or give a .safetensors file"
        ) from None
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    # torch raises nearly anything for a damaged file: RuntimeError, UnpicklingError, EOFError, KeyError, ...
    except Exception as error:
        raise EngineError(f"weights {path}: not a readable torch state dict ({brief(error)})") from None
    if isinstance(loaded, Mapping) and isinstance(loaded.get("state_dict"), Mapping):
        loaded = loaded["state_dict"]
    if not isinstance(loaded, Mapping):
        raise EngineError(f"weights {path}: holds a {type(loaded).__name__}, not a state dict")
    return {
        str(key): tensor.to(torch.float32).numpy()
        for key, tensor in loaded.items()
        if isinstance(tensor, torch.Tensor) and tensor.is_floating_point()
    }


Opener = Callable[[str], Any]


def fetch_weights(
    entry: Backbone,
    cache_dir: Path | None = None,
    *,
    opener: Opener | None = None,
    progress: Callable[[int, int | None], None] | None = None,
) -> Path:
    """The official weights of ``entry``, from ``cache_dir`` or fetched into it from their address (https
    only).

    The file's SHA-256 must begin with the prefix in the catalog, also when it comes from the cache.
    ``progress`` is called with (bytes so far, bytes in all or None). ``opener`` stands in for the network in
    tests: it takes the address and returns a readable context with ``headers``. Raises EngineError naming
    the file to download by hand where the network does not allow it.
    """
    if entry.address is None or entry.sha256_prefix is None:
        raise EngineError(f"the weights of {entry.name} have no official address: give them by --weights FILE")
    path = (cache_dir or default_cache_dir() / "weights") / entry.address.rsplit("/", 1)[1]
    if path.is_file() and sha256_of(path).startswith(entry.sha256_prefix):
        return path
    remedy = f"download {entry.address} elsewhere and give it by --weights FILE"
    try:
        with (opener or _open_https)(entry.address) as answer:
            write_atomically(path, _checked(answer, entry, progress))
    except EngineError:
        raise
    except (OSError, ValueError) as error:  # URLError, time-outs and TLS errors are OSErrors
        reason = brief(getattr(error, "reason", None) or error)
        raise EngineError(f"the weights of {entry.name} cannot be fetched here ({reason}): {remedy}") from None
    return path


def _open_https(address: str) -> Any:
    request = urllib.request.Request(address, headers={"User-Agent": "edge-inspect"})
    answer = urllib.request.urlopen(request, timeout=TIMEOUT_S)
    if not answer.url.startswith("https://"):
        answer.close()
        raise urllib.error.URLError(f"redirected to {answer.url}, which is not https")
    return answer


def _checked(answer: Any, entry: Backbone, progress: Callable[[int, int | None], None] | None) -> bytes:
    """The body, bounded, in one piece, and with the promised hash."""
    length = answer.headers.get("Content-Length")
    total = int(length) if length and length.isdigit() else None
    body = bytearray()
    while chunk := answer.read(_CHUNK):
        body += chunk
        if len(body) > MAX_BYTES:
            raise EngineError(f"{entry.address} sends more than {MAX_BYTES >> 20} MiB: not fetched")
        if progress is not None:
            progress(len(body), total)
    digest = hashlib.sha256(body).hexdigest()
    if not digest.startswith(entry.sha256_prefix or ""):
        cut = f", {len(body)} of {total} bytes" if total is not None and total != len(body) else ""
        raise EngineError(
            f"{entry.address} gave a file with SHA-256 {digest[:8]}..., not {entry.sha256_prefix}...{cut}: "
            "not kept; try again or give the file by --weights FILE"
        )
    return bytes(body)
