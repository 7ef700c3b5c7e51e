"""State dicts from files, and the fetching of official ones (over a stand-in for the network)."""

from __future__ import annotations

import contextlib
import hashlib
import io
import sys
import urllib.error
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from engines import EngineError, catalog, weights
from engines.files import default_cache_dir
from engines.weights import fetch_weights, load_state

BODY = b"weights" * 1000
ENTRY = replace(
    catalog.backbone("resnet18"),
    address="https://models.example/resnet18.pth",
    sha256_prefix=hashlib.sha256(BODY).hexdigest()[:8],
)


class Network:
    """Answers every address with ``body``, or fails with ``error``; counts the calls."""

    def __init__(self, body: bytes = BODY, length: int | None = None, error: Exception | None = None) -> None:
        self.body, self.error, self.calls = body, error, 0
        self.length = len(body) if length is None else length

    @contextlib.contextmanager
    def __call__(self, address: str) -> Iterator[Any]:
        assert address == ENTRY.address
        self.calls += 1
        if self.error is not None:
            raise self.error
        answer: Any = io.BytesIO(self.body)
        answer.headers = {"Content-Length": str(self.length)}
        yield answer


def test_fetched_once_then_served_from_the_cache(tmp_path: Path) -> None:
    network, seen = Network(), []
    path = fetch_weights(ENTRY, tmp_path, opener=network, progress=lambda *at: seen.append(at))
    assert path == tmp_path / "resnet18.pth"
    assert path.read_bytes() == BODY
    assert seen == [(len(BODY), len(BODY))]
    assert fetch_weights(ENTRY, tmp_path, opener=network) == path
    assert network.calls == 1


def test_a_damaged_cached_file_is_fetched_again(tmp_path: Path) -> None:
    network = Network()
    (tmp_path / "resnet18.pth").write_bytes(BODY[:-1])
    assert fetch_weights(ENTRY, tmp_path, opener=network).read_bytes() == BODY
    assert network.calls == 1


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (Network(b"another file"), "gave a file with SHA-256"),
        (Network(BODY[:100], length=len(BODY)), f"100 of {len(BODY)} bytes"),
        (
            Network(error=urllib.error.URLError("no route to host")),
            "cannot be fetched here .no route to host",
        ),
        (Network(error=TimeoutError("timed out")), "cannot be fetched here .timed out"),
    ],
)
def test_a_failed_fetch_names_the_file_and_the_option_and_keeps_nothing(
    network: Network, message: str, tmp_path: Path
) -> None:
    with pytest.raises(EngineError, match=message) as caught:
        fetch_weights(ENTRY, tmp_path, opener=network)
    text = str(caught.value)
    assert ENTRY.address is not None
    assert ENTRY.address in text
    assert "--weights FILE" in text
    assert "\n" not in text
    assert list(tmp_path.iterdir()) == []


def test_an_endless_answer_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "MAX_BYTES", len(BODY) - 1)
    with pytest.raises(EngineError, match="sends more than"):
        fetch_weights(ENTRY, tmp_path, opener=Network())
    assert list(tmp_path.iterdir()) == []


def test_addresses_carry_the_prefix_that_is_checked() -> None:
    fetched = [entry for entry in catalog.BACKBONES.values() if entry.address]
    assert {entry.name for entry in fetched} == {"resnet18", "resnet50", "wide_resnet50_2"}
    for entry in fetched:
        assert entry.address is not None
        assert entry.address.startswith("https://")
        assert entry.address.endswith(f"-{entry.sha256_prefix}.pth")


def test_the_cache_folder_follows_systemd_then_xdg(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    monkeypatch.delenv("CACHE_DIRECTORY", raising=False)
    assert default_cache_dir() == Path("/x/edge-inspect")
    monkeypatch.setenv("CACHE_DIRECTORY", "/var/cache/edge:/other")
    assert default_cache_dir() == Path("/var/cache/edge")


def test_half_precision_is_widened_and_counters_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file({"a": np.array([0.1, 2], np.float16), "n": np.array([3], np.int64)}, path)
    state, digest = load_state(path)
    assert list(state) == ["a"]
    assert state["a"].dtype == np.float32
    assert state["a"].tolist() == np.array([0.1, 2], np.float16).astype(np.float32).tolist()
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()


def test_torch_files_flat_or_nested(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="needs the extra fit")
    path = tmp_path / "w.pt"
    flat = {"a": torch.tensor([0.5, 2.0]).bfloat16(), "n": torch.tensor(3)}
    for stored in (flat, {"state_dict": flat, "epoch": 4}):
        torch.save(stored, path)
        state, _ = load_state(path)
        assert {key: value.tolist() for key, value in state.items()} == {"a": [0.5, 2.0]}


class Attack:
    """Pickles to a call that leaves a mark."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return (Path.touch, (self.mark,))


def test_a_torch_file_never_runs_code(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="needs the extra fit")
    path, mark = tmp_path / "w.pt", tmp_path / "mark"
    torch.save({"a": Attack(mark)}, path)
    with pytest.raises(EngineError, match="not a readable torch state dict"):
        load_state(path)
    assert not mark.exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("absent.pt", None, "cannot be read .No such file.*--weights"),
        ("empty.safetensors", b"", "empty"),
        ("text.txt", b"x", "give a .pt, .pth or .safetensors"),
        ("junk.safetensors", b"\xff" * 100, "not a readable safetensors file"),
        ("junk.pth", b"junk" * 100, "not a readable torch state dict"),
    ],
)
def test_bad_files_are_one_clear_line(name: str, content: bytes | None, message: str, tmp_path: Path) -> None:
    if name.endswith(".pth"):
        pytest.importorskip("torch", reason="needs the extra fit")
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(EngineError, match=message) as caught:
        load_state(path)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_cut_short_not_finite_or_without_arrays_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file({"a": np.ones(1000, np.float32)}, path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(EngineError, match="not a readable safetensors file"):
        load_state(path)
    save_file({"a": np.array([1, np.nan], np.float32)}, path)
    with pytest.raises(EngineError, match="'a' holds NaN or infinity"):
        load_state(path)
    save_file({"n": np.array([1], np.int64)}, path)
    with pytest.raises(EngineError, match="no floating-point arrays"):
        load_state(path)


def test_without_torch_a_torch_file_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "w.pt"
    path.write_bytes(b"anything")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(EngineError, match=r'extra "fit".*safetensors'):
        load_state(path)
