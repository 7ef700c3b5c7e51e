"""From a checked line file and its bundles to what each stage is told. Pure, but for reading the bundles.

A reload makes a second plan and compares: a stage whose spec is the same is left alone.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge.bundle import load_bundle
from edge.config import CameraSettings, LineFile
from edge.wire.layout import feature_layout
from edge.wire.ledger import Station

CORE = ("preprocess", "backbone", "head", "alert")  # in the direction of the data
STATIONS = {
    "preprocess": Station.PREPROCESS,
    "backbone": Station.BACKBONE,
    "head": Station.HEAD,
    "alert": Station.ALERT,
}


@dataclass(frozen=True)
class Model:
    """What the plan needs to know of one bundle."""

    bundle: str
    identity: str  # the manifest's checksum: equal means the same content
    method: str
    graph_sha256: str
    precision: str
    taps: tuple[tuple[str, int, int, int], ...]
    size: tuple[int, int]  # of the prepared input: height, width
    map_size: tuple[int, int]  # of the anomaly map
    pixel_threshold: float
    false_alarm_rate: float


@dataclass(frozen=True)
class PoolPlan:
    """Slots of the pools between the core stages. A change of these needs every core stage anew."""

    slots: int
    input_bytes: int
    feature_bytes: int
    map_bytes: int


@dataclass(frozen=True)
class Plan:
    """Everything that follows from a line file."""

    line: LineFile
    models: tuple[Model, ...]
    model_of: dict[str, int]  # camera name -> index into models
    pools: PoolPlan
    stages: dict[str, dict[str, Any]]  # stage name -> its spec, without identity and folders


def read_model(path: Path) -> Model:
    """Load and verify a bundle, keep what the plan needs. Raises BundleError."""
    bundle = load_bundle(path)
    manifest = bundle.manifest
    model = Model(
        bundle=str(path),
        identity=manifest.checksum,
        method=manifest.method,
        graph_sha256=manifest.backbone.graph_sha256,
        precision=manifest.backbone.precision,
        taps=tuple((tap.name, tap.channels, tap.height, tap.width) for tap in manifest.backbone.taps),
        size=(manifest.input.height, manifest.input.width),
        map_size=manifest.tail.size,
        pixel_threshold=manifest.calibration.pixel_threshold,
        false_alarm_rate=manifest.calibration.false_alarm_rate,
    )
    del bundle
    gc.collect()  # a hundred megabytes of arrays that only the head stage needs
    return model


def capture_name(camera: str) -> str:
    """The name of a camera's capture stage."""
    return f"capture-{camera}"


def make_plan(line: LineFile, state: Path, camera_index: Callable[[str], int]) -> Plan:
    """Read the bundles and work out every stage's spec. Raises BundleError, ConfigError."""
    paths = list(dict.fromkeys(line.bundle_of(camera) for camera in line.camera))
    models = tuple(read_model(path) for path in paths)
    model_of = {camera.name: paths.index(line.bundle_of(camera)) for camera in line.camera}
    pipeline = line.pipeline
    pools = PoolPlan(
        slots=max(pipeline.stage_slots, 2 * pipeline.batch),
        input_bytes=max(m.size[0] * m.size[1] * 3 for m in models),
        feature_bytes=max(feature_layout(m.taps)[1] for m in models),
        map_bytes=max(m.map_size[0] * m.map_size[1] * 4 for m in models),
    )
    index = {camera.name: camera_index(camera.name) for camera in line.camera}
    by_index = {index[name]: model for name, model in model_of.items()}
    engine = line.engine
    cache = engine.cache or state / "engines"

    def model_spec(model: Model) -> dict[str, Any]:
        precision = model.precision if engine.precision == "bundle" else engine.precision
        return {
            "bundle": model.bundle,
            "identity": model.identity,
            "graph_sha256": model.graph_sha256,
            "precision": precision,
            "taps": [list(tap) for tap in model.taps],
            "size": list(model.size),
        }

    specs = [model_spec(model) for model in models]
    stages: dict[str, dict[str, Any]] = {
        "preprocess": {
            "cameras": {
                index[c.name]: {"size": list(models[model_of[c.name]].size), "roi": list(c.roi) if c.roi else None}
                for c in line.camera
            }
        },
        "backbone": {
            "models": specs,
            "cameras": by_index,
            "engine": {"runtime": engine.runtime, "threads": engine.threads, "cache": str(cache)},
            "batch": pipeline.batch,
            "batch_wait_ms": pipeline.batch_wait_ms,
        },
        "head": {"models": specs, "cameras": by_index},
        "alert": {
            "line": line.line.name,
            "cameras": {
                index[c.name]: {
                    "name": c.name,
                    "roi": list(c.roi) if c.roi else None,
                    "size": list(models[model_of[c.name]].map_size),
                    "bundle": models[model_of[c.name]].identity,
                    "engine": f"{models[model_of[c.name]].method}, {specs[model_of[c.name]]['precision']}",
                    "pixel_threshold": models[model_of[c.name]].pixel_threshold,
                    "false_alarm_rate": models[model_of[c.name]].false_alarm_rate,
                }
                for c in line.camera
            },
            "policy": line.alerts.model_dump(mode="json"),
            "store": line.store.model_dump(mode="json"),
            "publish": line.publish.model_dump(mode="json"),
        },
    }
    for camera in line.camera:
        stages[capture_name(camera.name)] = capture_spec(camera, index[camera.name], line)
    return Plan(line, models, model_of, pools, stages)


def capture_spec(camera: CameraSettings, index: int, line: LineFile) -> dict[str, Any]:
    """What a capture stage is told. Holds the camera's credentials: it goes over the control socket only."""
    return {
        "camera": index,
        "source": camera.source.model_dump(mode="json", context={"reveal_secrets": True}),
        "policy": camera.policy,
        "queue": line.pipeline.queue,
        "max_pixels": line.pipeline.max_pixels,
    }


@dataclass(frozen=True)
class Change:
    """What a reload has to do: stages to stop, and stages to start (with their new spec)."""

    stop: tuple[str, ...]
    start: tuple[str, ...]
    new_pools: bool

    @property
    def touches_core(self) -> bool:
        return self.new_pools or any(name in CORE for name in (*self.stop, *self.start))


def compare(old: Plan, new: Plan) -> Change:
    """The smallest change from one plan to another."""
    new_pools = old.pools != new.pools
    stop = [name for name in old.stages if name not in new.stages or old.stages[name] != new.stages[name]]
    start = [name for name in new.stages if name not in old.stages or old.stages[name] != new.stages[name]]
    if new_pools:
        stop += [name for name in CORE if name not in stop]
        start += [name for name in CORE if name not in start]
    return Change(tuple(stop), tuple(start), new_pools)
