"""Engines: bound outputs, batches, threads, precision, and what they refuse. All on the shipped backbone."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import engines
from engines import Engine, EngineError, builtin_graph, open_engine
from engines.errors import brief
from engines.measure import time_engine
from engines.openvino_engine import import_openvino, pieces

TAPS = ("layer1", "layer2", "layer3")
SHAPES = {"layer1": (64, 64, 64), "layer2": (128, 32, 32), "layer3": (256, 16, 16)}
IMAGES = np.random.default_rng(5).integers(0, 256, (6, 256, 256, 3), dtype=np.uint8)


def has_bf16() -> bool:
    return "BF16" in import_openvino().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


@pytest.fixture(scope="module", params=engines.RUNTIMES)
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    pytest.importorskip(request.param)
    opened = open_engine(builtin_graph(), runtime=request.param)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def reference() -> dict[str, NDArray[np.float32]]:
    """The taps of each picture alone, on OpenVINO, f32, one thread."""
    opened = open_engine(builtin_graph(), runtime="openvino")
    rows = [opened.infer(IMAGES[i : i + 1]) for i in range(len(IMAGES))]
    return {tap: np.concatenate([row[tap] for row in rows]) for tap in TAPS}


def same(a: dict[str, NDArray[np.float32]], b: dict[str, NDArray[np.float32]]) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[tap], b[tap]) for tap in a)


def test_info_tells_what_runs(engine: Engine) -> None:
    info = engine.info
    assert info.runtime.split()[0] in engines.RUNTIMES
    assert info.runtime.split()[1][0].isdigit()
    assert (info.precision, info.threads, info.input_size) == ("f32", 1, engines.BUILTIN_SIZE)
    assert info.device
    assert {tap.name: (tap.channels, tap.height, tap.width) for tap in info.taps} == SHAPES
    assert tuple(tap.name for tap in info.taps) == TAPS


def test_rows_of_any_batch_equal_the_picture_alone_and_runtimes_agree(
    engine: Engine, reference: dict[str, NDArray[np.float32]]
) -> None:
    for batch in (1, 4, 6):
        got = engine.infer(IMAGES[:batch])
        for tap in TAPS:
            scale = np.abs(reference[tap]).max()
            assert got[tap].shape == (batch, *SHAPES[tap])
            assert got[tap].dtype == np.float32
            assert np.abs(got[tap] - reference[tap][:batch]).max() <= 1e-5 * scale


@pytest.mark.parametrize("precision", ["f32", "bf16"])
def test_openvino_gives_a_picture_the_same_maps_in_every_batch_and_on_two_threads(precision: str) -> None:
    if precision == "bf16" and not has_bf16():
        pytest.skip("this processor has no bf16")
    one = open_engine(builtin_graph(), runtime="openvino", precision=precision)
    two = open_engine(builtin_graph(), runtime="openvino", precision=precision, threads=2)
    alone = [one.infer(IMAGES[i : i + 1]) for i in range(6)]
    # To the last bit in f32. In bf16 batches take another compiled form, which may round otherwise elsewhere.
    tolerance = 0.0 if precision == "f32" else 2**-8
    for batch in (6, 4, 3, 1):
        for opened in (one, two):
            got = opened.infer(IMAGES[:batch])
            for tap in TAPS:
                wanted = np.concatenate([row[tap] for row in alone[:batch]])
                assert np.abs(got[tap] - wanted).max() <= tolerance * np.abs(wanted).max()


def test_precision_is_what_was_asked_for(reference: dict[str, NDArray[np.float32]]) -> None:
    """f32 also where OpenVINO would take bf16 by itself; bf16 differs by its rounding and no more."""
    if not has_bf16():
        with pytest.raises(EngineError, match="has no bf16 arithmetic"):
            open_engine(builtin_graph(), runtime="openvino", precision="bf16")
        return
    got = open_engine(builtin_graph(), runtime="openvino", precision="bf16").infer(IMAGES)
    for tap in TAPS:
        error = np.abs(got[tap] - reference[tap]).max() / np.abs(reference[tap]).max()
        assert 1e-4 < error < 5e-2


def test_outputs_are_written_in_place_into_a_mapping(engine: Engine, reference: dict[str, NDArray[np.float32]]) -> None:
    """As in a slot: the taps one after another in shared memory, the pictures read-only."""
    batch, sizes = 3, {tap: int(np.prod(shape)) for tap, shape in SHAPES.items()}
    mapping = mmap.mmap(-1, 64 + batch * 4 * sum(sizes.values()))
    out, at = {}, 64
    for tap in TAPS:
        flat = np.frombuffer(mapping, np.float32, batch * sizes[tap], at)
        out[tap] = flat.reshape(batch, *SHAPES[tap])
        at += flat.nbytes
    images = IMAGES[:batch].copy()
    images.flags.writeable = False
    got = engine.infer(images, out)
    assert all(got[tap] is out[tap] for tap in TAPS)
    held = np.frombuffer(mapping, np.float32, offset=64)
    wanted = np.concatenate([reference[tap][:batch].ravel() for tap in TAPS])
    assert np.abs(held - wanted).max() <= 1e-5 * np.abs(wanted).max()
    # The engine holds nothing: closing would raise BufferError while any view of the mapping lives.
    del out, got, flat, held
    mapping.close()
    assert engine.infer(IMAGES[:1])["layer3"].shape == (1, 256, 16, 16)


def test_pictures_in_memory_without_write_permission_are_read(engine: Engine, tmp_path: Path) -> None:
    (tmp_path / "slot").write_bytes(IMAGES[:2].tobytes())
    with (tmp_path / "slot").open("rb") as file:
        mapping = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    images = np.frombuffer(mapping, np.uint8).reshape(2, 256, 256, 3)
    assert same(engine.infer(images), engine.infer(IMAGES[:2]))


def test_without_out_the_arrays_are_the_callers_own(engine: Engine) -> None:
    first = engine.infer(IMAGES[:1])
    kept = {tap: array.copy() for tap, array in first.items()}
    second = engine.infer(IMAGES[1:2])
    assert same(first, kept)
    assert not same(first, second)


def test_a_picture_that_is_not_contiguous_is_copied(engine: Engine) -> None:
    flipped = IMAGES[:2, :, ::-1]
    assert same(engine.infer(flipped), engine.infer(flipped.copy()))


@pytest.mark.parametrize("runtime", engines.RUNTIMES)
def test_taps_select_and_order_the_outputs(runtime: str) -> None:
    pytest.importorskip(runtime)
    whole = open_engine(builtin_graph(), runtime=runtime).infer(IMAGES[:1])
    some = open_engine(builtin_graph(), runtime=runtime, taps=["layer3", "layer1"])
    assert [tap.name for tap in some.info.taps] == ["layer3", "layer1"]
    got = some.infer(IMAGES[:1])
    assert list(got) == ["layer3", "layer1"]
    assert all(np.array_equal(got[tap], whole[tap]) for tap in got)
    for wrong in (["layer4"], [], ["layer1", "layer1"]):
        with pytest.raises(EngineError, match="it has layer1, layer2, layer3"):
            open_engine(builtin_graph(), runtime=runtime, taps=wrong)


@pytest.mark.parametrize(
    "images",
    [
        IMAGES[0],
        IMAGES[:0],
        IMAGES[:1, :128],
        IMAGES[:1].astype(np.float32),
        IMAGES[:1].transpose(0, 3, 1, 2),
        IMAGES[:1].tolist(),
        None,
    ],
    ids=["rank", "no picture", "size", "dtype", "NCHW", "list", "None"],
)
def test_wrong_images_are_refused(engine: Engine, images: Any) -> None:
    with pytest.raises(EngineError, match=r"^images must be uint8 \[batch, 256, 256, 3\].* Got "):
        engine.infer(images)


def _without(out: dict[str, Any]) -> None:
    del out["layer2"]


def _extra(out: dict[str, Any]) -> None:
    out["layer4"] = out["layer3"]


def _batch(out: dict[str, Any]) -> None:
    out["layer2"] = np.empty((3, 128, 32, 32), np.float32)


def _double(out: dict[str, Any]) -> None:
    out["layer2"] = np.empty((2, 128, 32, 32), np.float64)


def _fortran(out: dict[str, Any]) -> None:
    out["layer2"] = np.empty((2, 128, 32, 32), np.float32, order="F")


def _read_only(out: dict[str, Any]) -> None:
    out["layer2"].flags.writeable = False


@pytest.mark.parametrize("spoil", [_without, _extra, _batch, _double, _fortran, _read_only])
def test_wrong_out_is_refused_before_anything_is_written(
    engine: Engine, spoil: Callable[[dict[str, Any]], None]
) -> None:
    out: dict[str, Any] = {tap: np.full((2, *shape), -7, np.float32) for tap, shape in SHAPES.items()}
    spoil(out)
    with pytest.raises(EngineError, match=r"^out(\['layer2'\] must be writable| must name the taps)") as caught:
        engine.infer(IMAGES[:2], out)
    assert "\n" not in str(caught.value)
    assert (out["layer1"] == -7).all()


@pytest.mark.parametrize("runtime", engines.RUNTIMES)
@pytest.mark.parametrize(
    "damage",
    [lambda g: b"", lambda g: b"no graph", lambda g: g[:1000], lambda g: g[:-7], lambda g: bytes(len(g))],
    ids=["empty", "text", "head only", "cut short", "zeros"],
)
def test_a_damaged_graph_is_one_clear_line(runtime: str, damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    pytest.importorskip(runtime)
    path = tmp_path / "backbone.onnx"
    path.write_bytes(damage(builtin_graph()))
    with pytest.raises(EngineError, match="graph") as caught:
        open_engine(path, runtime=runtime)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("runtime", engines.RUNTIMES)
def test_a_graph_that_is_no_backbone_is_refused(runtime: str) -> None:
    pytest.importorskip(runtime)
    onnx = pytest.importorskip("onnx", reason="needs the extra fit")
    helper, float_ = onnx.helper, onnx.TensorProto.FLOAT
    for shape in ([1, 3, 8, 8], ["n", 8, 8, 3], ["n", "h", "w", 3]):
        graph = helper.make_graph(
            [helper.make_node("Relu", ["x"], ["y"])],
            "other",
            [helper.make_tensor_value_info("x", float_, shape)],
            [helper.make_tensor_value_info("y", float_, shape)],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        with pytest.raises(EngineError, match=r"input 'x' is not uint8 \[batch, height, width, 3\]"):
            open_engine(model.SerializeToString(), runtime=runtime)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"runtime": "tensorflow"},
            "runtime 'tensorflow' is not known: choose auto, openvino or onnxruntime",
        ),
        ({"precision": "int8"}, "precision 'int8' is not known: choose one of f32, bf16"),
        ({"threads": 0}, "threads must be a whole number from 1 to 256. Got 0"),
        ({"threads": True}, "Got True"),
        ({"runtime": "onnxruntime", "precision": "bf16"}, "f32 only"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(EngineError, match=message):
        open_engine(builtin_graph(), **options)


def test_a_missing_graph_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"absent\.onnx: cannot be read \(No such file"):
        open_engine(tmp_path / "absent.onnx")


@pytest.mark.parametrize("runtime", engines.RUNTIMES)
def test_a_runtime_that_is_not_installed_is_named(runtime: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, runtime, None)
    with pytest.raises(EngineError, match=f"{runtime} cannot be imported"):
        open_engine(builtin_graph(), runtime=runtime)


@pytest.mark.parametrize("runtime", engines.RUNTIMES)
def test_a_closed_engine_says_so(runtime: str) -> None:
    pytest.importorskip(runtime)
    opened = open_engine(builtin_graph(), runtime=runtime)
    opened.warm_up(2)
    opened.close()
    opened.close()
    with pytest.raises(EngineError, match="closed"):
        opened.infer(IMAGES[:1])


def test_pieces_cover_a_batch_exactly_once() -> None:
    for batch in range(1, 20):
        covered = [i for start, size in pieces(batch, (4, 1)) for i in range(start, start + size)]
        assert covered == list(range(batch))
    assert [size for _, size in pieces(10, (4, 1))] == [4, 4, 1, 1]


def test_timing_is_of_the_asked_batch(engine: Engine) -> None:
    timing = time_engine(engine, batch=2, repeats=3)
    assert (timing.batch, timing.repeats) == (2, 3)
    assert 0 < timing.p10_ms <= timing.median_ms <= timing.p90_ms
    assert timing.cpu_ms > 0


def test_a_runtime_message_is_cut_to_its_telling_line() -> None:
    long = RuntimeError("Exception from src/a.cpp:1:\nCheck 'x' failed at src/b.cpp\n  the point \nmore")
    assert brief(long) == "the point"
    assert brief(RuntimeError("")) == "RuntimeError"
    assert len(brief(RuntimeError("x" * 999))) == 200
