"""Head: feature taps in; score, p-value and anomaly map out. The arithmetic is :mod:`edge.heads`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from edge.bundle import load_bundle
from edge.errors import BundleError, HeadError
from edge.heads import single_thread
from edge.heads.scorer import Scorer
from edge.stages.base import Forwarder, LinkStage
from edge.wire.control import Control
from edge.wire.descriptor import Descriptor, Verdict
from edge.wire.layout import Span, feature_layout
from edge.wire.ledger import Reason, Station


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

    def handle(self, descriptor: Descriptor) -> None:
        model = self.cameras.get(descriptor.camera)
        if model is None:
            self.refuse(descriptor, Reason.ERROR, "its camera is not in the line file any more")
            return
        scorer = self.scorers[model]
        payload = descriptor.payload
        assert payload is not None
        taps = {
            span.name: self.features.view(payload, (1, *span.shape), np.float32, span.offset)
            for span in self.layouts[model]
        }
        slot = self.maps.free_slot(self.ledger.is_live)
        assert slot is not None  # output_free, and this stage is the only producer
        self.maps.loan(slot, descriptor.ticket)
        target = self.maps.array(slot, (1, *scorer.size), np.float32)
        try:
            scored = scorer.score(taps, out=target)[0]
        except HeadError as error:
            self.refuse(descriptor, Reason.ERROR, str(error))
            return
        self.features.check(payload)
        self.features.release(payload)
        ref = self.maps.commit(slot, descriptor.seq, descriptor.mono_ns, descriptor.wall_ns, target.nbytes)
        verdict = Verdict(scored.score, scored.p_value, scorer.threshold, dict(scored.parts))
        self.next.send(descriptor.with_payload(ref, verdict))
