"""Backbone: prepared input in, feature taps out, written by the engine straight into the feature slot.

Batches form across cameras, up to a size and a deadline. One camera never fills a batch while another waits: frames
are taken round robin by camera.
"""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict, deque
from pathlib import Path
from typing import Any

import numpy as np

from edge.bundle import load_graph
from edge.errors import BundleError, EdgeError
from edge.stages.base import STARVED_S, Forwarder, LinkStage
from edge.wire.control import Control
from edge.wire.descriptor import Descriptor
from edge.wire.layout import Span, feature_layout
from edge.wire.ledger import Reason, Station
from edge.wire.pool import StaleSlot
from engines import open_engine
from engines.errors import EngineError
from engines.runtime import Engine


class Pending:
    """Accepted frames that wait for a batch, a queue a model and camera."""

    def __init__(self) -> None:
        self._queues: OrderedDict[tuple[int, int], deque[tuple[float, Descriptor]]] = OrderedDict()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, model: int, descriptor: Descriptor, now: float) -> None:
        self._queues.setdefault((model, descriptor.camera), deque()).append((now, descriptor))
        self._count += 1

    def oldest(self) -> tuple[float, int] | None:
        """(arrival, model) of the frame that has waited longest."""
        heads = [(queue[0][0], model) for (model, _), queue in self._queues.items() if queue]
        return min(heads) if heads else None

    def take(self, model: int, limit: int) -> list[Descriptor]:
        """Up to ``limit`` frames of one model, one a camera and round, the longest unserved camera first."""
        taken: list[Descriptor] = []
        while len(taken) < limit:
            keys = [key for key, queue in self._queues.items() if key[0] == model and queue]
            if not keys:
                break
            for key in keys[: limit - len(taken)]:
                taken.append(self._queues[key].popleft()[1])
                self._queues.move_to_end(key)
                if not self._queues[key]:
                    del self._queues[key]
        self._count -= len(taken)
        return taken

    def due(self, now: float, batch: int, wait_s: float) -> int | None:
        """The model whose batch must run now: full, or its first frame has waited long enough."""
        oldest = self.oldest()
        if oldest is None:
            return None
        arrival, model = oldest
        if now - arrival >= wait_s:
            return model
        waiting: dict[int, int] = {}
        for (owner, _), queue in self._queues.items():
            waiting[owner] = waiting.get(owner, 0) + len(queue)
        return next((owner for owner, count in waiting.items() if count >= batch), None)


class BackboneStage(LinkStage):
    """``spec``: models: [{bundle, taps, size}], cameras: index -> model, engine {...}, batch, batch_wait_ms."""

    def __init__(self, control: Control, spec: dict[str, Any]) -> None:
        super().__init__(control, spec)
        self.next = Forwarder(self, Station.HEAD)
        self.cameras: dict[int, int] = spec["cameras"]
        self.batch: int = spec["batch"]
        self.wait_s: float = spec["batch_wait_ms"] / 1000
        self.pending = Pending()
        self.engines: list[Engine] = []
        self.layouts: list[tuple[Span, ...]] = []
        self.sizes: list[tuple[int, int]] = []

    def setup(self) -> None:
        settings = self.spec["engine"]
        opened: dict[tuple[str, str], Engine] = {}
        for model in self.spec["models"]:
            key = (model["graph_sha256"], model["precision"])
            if key not in opened:
                graph = load_graph(Path(model["bundle"]))
                if hashlib.sha256(graph).hexdigest() != model["graph_sha256"]:
                    raise BundleError(
                        f"{model['bundle']}: was replaced since the line started; reload the line to use it"
                    )
                try:
                    opened[key] = open_engine(
                        graph,
                        runtime=settings["runtime"],
                        precision=model["precision"],
                        threads=settings["threads"],
                        cache_dir=Path(settings["cache"]),
                        taps=[tap[0] for tap in model["taps"]],
                    )
                except EngineError as error:
                    raise BundleError(f"{model['bundle']}: the backbone does not run here: {error}") from None
                self.beat(force=True)
                info = opened[key].info
                self.log.info("engine %s, %s, %s, %d threads", info.runtime, info.device, info.precision, info.threads)
            self.engines.append(opened[key])
            self.layouts.append(feature_layout(model["taps"])[0])
            self.sizes.append(tuple(model["size"]))
        self.inputs = self.await_role("input")
        self.features = self.await_role("features")
        for model, engine in enumerate(self.engines):  # the first inference pays for page faults and kernels
            engine.infer(np.zeros((1, *self.sizes[model], 3), np.uint8))

    def report(self) -> dict[str, Any]:
        info = self.engines[0].info if self.engines else None
        return {"engine": f"{info.runtime} {info.device} {info.precision}"} if info else {}

    def step(self, timeout_s: float) -> None:
        if self.features.free_slot(self.ledger.is_live) is None:
            self.features.wait_for_release(min(timeout_s, STARVED_S))
            return
        now = time.monotonic()
        while len(self.pending) < self.batch and (descriptor := self.next_accepted()) is not None:
            model = self.cameras.get(descriptor.camera)
            if model is None:
                self.refuse(descriptor, Reason.ERROR, "its camera is not in the line file any more")
                continue
            self.pending.add(model, descriptor, now)
        due = self.pending.due(now, self.batch, self.wait_s)
        if due is not None:
            self.infer(due, self.pending.take(due, self.batch))
            return
        oldest = self.pending.oldest()
        wait = timeout_s if oldest is None else max(0.0, oldest[0] + self.wait_s - now)
        self._hungry.poll(int(min(wait, timeout_s) * 1000))

    def infer(self, model: int, batch: list[Descriptor]) -> None:
        """Run one batch; frames whose input is gone are left out, frames without a slot wait for one."""
        height, width = self.sizes[model]
        inputs, frames = [], []
        for descriptor in batch:
            try:
                assert descriptor.payload is not None
                inputs.append(self.inputs.view(descriptor.payload, (height, width, 3)))
                frames.append(descriptor)
            except StaleSlot as error:
                self.counters.torn += 1
                self.refuse(descriptor, Reason.ERROR, str(error))
        if not frames:
            return
        engine, layout = self.engines[model], self.layouts[model]
        try:
            if len(frames) == 1:
                slot = self._slot(frames[0])
                out = {s.name: self.features.array(slot, (1, *s.shape), np.float32, s.offset) for s in layout}
                engine.infer(inputs[0][None], out)
                self._forward(frames[0], slot, layout)
                return
            results = engine.infer(np.stack(inputs))
            for row, descriptor in enumerate(frames):
                slot = self._slot(descriptor)
                for span in layout:
                    self.features.array(slot, span.shape, np.float32, span.offset)[...] = results[span.name][row]
                self._forward(descriptor, slot, layout)
        except EngineError as error:
            for descriptor in frames:
                self.refuse(descriptor, Reason.ERROR, str(error))
            raise EdgeError(f"the engine failed: {error}") from None

    def _slot(self, descriptor: Descriptor) -> int:
        while (slot := self.features.free_slot(self.ledger.is_live)) is None:
            self.features.wait_for_release(STARVED_S)
            self.pump_control()
            self.beat()
        return self.features.loan(slot, descriptor.ticket)

    def _forward(self, descriptor: Descriptor, slot: int, layout: tuple[Span, ...]) -> None:
        assert descriptor.payload is not None
        try:
            self.inputs.check(descriptor.payload)
        except StaleSlot as error:
            self.counters.torn += 1
            self.refuse(descriptor, Reason.ERROR, str(error))
            return
        self.inputs.release(descriptor.payload)
        nbytes = layout[-1].offset + int(np.prod(layout[-1].shape)) * 4
        ref = self.features.commit(slot, descriptor.seq, descriptor.mono_ns, descriptor.wall_ns, nbytes)
        self.next.send(descriptor.with_payload(ref))

    def handle(self, descriptor: Descriptor) -> None:
        """Unused: batches go through :meth:`infer`."""
        self.infer(self.cameras[descriptor.camera], [descriptor])

    def finish(self) -> None:
        while (oldest := self.pending.oldest()) is not None:
            self.infer(oldest[1], self.pending.take(oldest[1], self.batch))
