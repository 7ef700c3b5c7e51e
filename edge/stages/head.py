"""Head: feature taps in; score, p-value and anomaly map out. The arithmetic is :mod:`edge.heads`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.bundle import load_bundle
from edge.errors import BundleError, HeadError
from edge.heads import single_thread
from edge.heads.scorer import Judged, Scored, Scorer
from edge.stages.base import STARVED_S, Forwarder, LinkStage
from edge.wire.control import Control
from edge.wire.descriptor import Descriptor, Verdict
from edge.wire.layout import Span, feature_layout
from edge.wire.ledger import Reason, Station
from edge.wire.pool import StaleSlot


class HeadStage(LinkStage):
    """``spec``: models: [{bundle, taps}], cameras: index -> model."""

    def __init__(self, control: Control, spec: dict[str, Any]) -> None:
        super().__init__(control, spec)
        self.cameras: dict[int, int] = spec["cameras"]
        self.next = Forwarder(self, Station.ALERT)
        self.scorers: list[Scorer] = []
        self.layouts: list[tuple[Span, ...]] = []

    def setup(self) -> None:
        single_thread()
        for model in self.spec["models"]:
            bundle = load_bundle(Path(model["bundle"]))
            if bundle.manifest.checksum != model["identity"]:
                # The other stages still work with the old one: scores of a mixture would be nobody's.
                raise BundleError(f"{model['bundle']}: was replaced since the line started; reload the line to use it")
            self.scorers.append(Scorer(bundle))
            self.layouts.append(feature_layout(model["taps"])[0])
            self.beat(force=True)
        self.features = self.await_role("features")
        self.maps = self.await_role("map")

    def output_free(self) -> bool:
        return self.maps.free_slot(self.ledger.is_live) is not None

    def wait_for_output(self, timeout_s: float) -> None:
        self.maps.wait_for_release(timeout_s)

    def step(self, timeout_s: float) -> None:
        """One frame, or two together when the head falls behind: it then reads its arrays (tens of megabytes) once for
        both, which is what it spends its time on. With room left upstream it takes them singly, since in a pair the
        first frame's verdict waits for the second's."""
        if not self.output_free():
            self.wait_for_output(min(timeout_s, STARVED_S))
            return
        first = self.next_accepted()
        if first is None:
            self._hungry.poll(int(timeout_s * 1000))
            return
        is_live = self.ledger.is_live
        behind = not self.features.has_free(2, is_live) and self.maps.has_free(2, is_live)
        second = self.next_accepted() if behind else None
        if second is not None and self._score_pair(first, second):
            return
        self.work(first)
        if second is not None:
            self.work(second)

    def handle(self, descriptor: Descriptor) -> None:
        model = self.cameras.get(descriptor.camera)
        if model is None:
            self.refuse(descriptor, Reason.ERROR, "its camera is not in the line file any more")
            return
        payload = descriptor.payload
        assert payload is not None
        taps = {
            span.name: self.features.view(payload, (1, *span.shape), np.float32, span.offset)
            for span in self.layouts[model]
        }
        scorer = self.scorers[model]
        try:
            (screened,) = scorer.screen(taps)
            if screened is not None:
                self._forward(descriptor, None, screened, scorer.threshold)
                return
            target, slot = self._map_slot(descriptor, scorer.size)
            (scored,) = scorer.score(taps, out=target[None])
        except HeadError as error:
            self.refuse(descriptor, Reason.ERROR, str(error))
            return
        self._forward(descriptor, slot, scored, scorer.threshold)

    def _score_pair(self, first: Descriptor, second: Descriptor) -> bool:
        """Score two frames of one model together. False where that cannot be, or either is at fault: then each is
        handled alone. So are those of a gated model, most of which need no map."""
        model = self.cameras.get(first.camera)
        if model is None or model != self.cameras.get(second.camera) or not (first.payload and second.payload):
            return False
        if self.scorers[model].gate is not None:
            return False
        try:
            taps = {
                span.name: self.features.pair(first.payload, second.payload, span.shape, np.float32, span.offset)
                for span in self.layouts[model]
            }
            results = self.scorers[model].score(taps)
            self.features.check(first.payload)
            self.features.check(second.payload)
        except (HeadError, StaleSlot):
            return False
        for descriptor, scored in zip((first, second), results, strict=True):
            target, slot = self._map_slot(descriptor, self.scorers[model].size)
            np.copyto(target, scored.map)
            try:
                self._forward(descriptor, slot, scored, self.scorers[model].threshold)
            except StaleSlot as error:
                self.counters.torn += 1
                self.refuse(descriptor, Reason.ERROR, str(error))
        return True

    def _map_slot(self, descriptor: Descriptor, size: tuple[int, int]) -> tuple[NDArray[np.float32], int]:
        slot = self.maps.free_slot(self.ledger.is_live)
        assert slot is not None  # looked at before the frame was accepted, and this stage is the only producer
        self.maps.loan(slot, descriptor.ticket)
        return self.maps.array(slot, size, np.float32), slot

    def _forward(self, descriptor: Descriptor, slot: int | None, judged: Judged, threshold: float) -> None:
        """To the alert stage: with the map in ``slot``, or without one, for a frame far below the threshold."""
        assert descriptor.payload is not None
        self.features.check(descriptor.payload)
        self.features.release(descriptor.payload)
        ref = None
        if slot is not None and isinstance(judged, Scored):
            nbytes = judged.map.nbytes
            ref = self.maps.commit(slot, descriptor.seq, descriptor.mono_ns, descriptor.wall_ns, nbytes)
        verdict = Verdict(judged.score, judged.p_value, threshold, dict(judged.parts))
        self.next.send(replace(descriptor, payload=ref, verdict=verdict))
