"""Preprocess: frame slot in, prepared uint8 input slot out (see :mod:`edge.preprocess`)."""

from __future__ import annotations

from typing import Any

import cv2

from edge.errors import ConfigError
from edge.preprocess import prepare
from edge.stages.base import Forwarder, LinkStage
from edge.wire.control import Control
from edge.wire.descriptor import Descriptor
from edge.wire.ledger import Reason, Station


class PreprocessStage(LinkStage):
    """``spec["cameras"]``: camera index -> {size: [height, width], roi: [x, y, w, h] | None}."""

    def __init__(self, control: Control, spec: dict[str, Any]) -> None:
        super().__init__(control, spec)
        self.cameras: dict[int, dict[str, Any]] = spec["cameras"]
        self.next = Forwarder(self, Station.BACKBONE)

    def setup(self) -> None:
        cv2.setNumThreads(1)  # a pool of threads for a 1 ms resize costs more than it gives, and takes the engine's
        self.inputs = self.await_role("input")

    def output_free(self) -> bool:
        return self.inputs.free_slot(self.ledger.is_live) is not None

    def wait_for_output(self, timeout_s: float) -> None:
        self.inputs.wait_for_release(timeout_s)

    def handle(self, descriptor: Descriptor) -> None:
        settings = self.cameras.get(descriptor.camera)
        if settings is None:
            self.refuse(descriptor, Reason.ERROR, "its camera is not in the line file any more")
            return
        frames = self.pool_of(descriptor.frame)
        picture = frames.view(descriptor.frame, (descriptor.height, descriptor.width, 3))
        slot = self.inputs.free_slot(self.ledger.is_live)
        assert slot is not None  # output_free, and this stage is the only producer
        self.inputs.loan(slot, descriptor.ticket)
        height, width = settings["size"]
        target = self.inputs.array(slot, (height, width, 3))
        roi = settings["roi"]
        try:
            prepare(picture, (height, width), tuple(roi) if roi else None, out=target)
        except ConfigError as error:
            self.refuse(descriptor, Reason.ERROR, str(error))
            return
        frames.check(descriptor.frame)
        ref = self.inputs.commit(slot, descriptor.seq, descriptor.mono_ns, descriptor.wall_ns, target.nbytes)
        self.next.send(descriptor.with_payload(ref))
