"""Alert: verdicts in; decisions, the store and the public sockets out. Every frame ends here.

Order for a frame that raises an alert: store (committed), then the ledger, then the sockets. A crash in between
leaves a stored alert whose frame the successor of this process closes as scored; subscribers get it by replay.
"""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import zmq

from edge.alerts.config import AlertPolicy, PublishSettings, StoreSettings
from edge.alerts.decision import SAVE_EVERY_S, Clear, DecisionState, Observation, Raise, decide
from edge.alerts.evidence import encode_jpeg, overlay
from edge.alerts.messages import AlertDraft, CameraHealth, Health, Region, StageHealth, Verdict, explain
from edge.alerts.publisher import Publisher
from edge.alerts.regions import Geometry, find_regions
from edge.alerts.store import AlertStore
from edge.errors import ResourceError
from edge.stages.base import LinkStage
from edge.version import VERSION
from edge.wire.control import Control
from edge.wire.descriptor import Descriptor
from edge.wire.ledger import OpenFrame, Reason, Station

ANNOUNCE_S = 0.02  # how long the verdict of a frame that was not inspected may lag behind its end


class AlertStage(LinkStage):
    """``spec``: line, state, cameras: index -> {name, roi, size (of the map), bundle, pixel_threshold, ...}, policy,
    store, publish."""

    def __init__(self, control: Control, spec: dict[str, Any]) -> None:
        super().__init__(control, spec)
        self.cameras: dict[int, dict[str, Any]] = spec["cameras"]
        self.policy = AlertPolicy.model_validate(spec["policy"])
        self.anomalous: Counter[str] = Counter()
        self.raised: Counter[str] = Counter()
        self._announce_at = 0.0
        self._saved_at: dict[str, float] = {}
        self._store_trouble = ""

    def setup(self) -> None:
        cv2.setNumThreads(1)
        self.epoch = self.ledger.epoch
        settings = StoreSettings.model_validate(self.spec["store"])
        self.store = AlertStore(settings.folder(Path(self.spec["state"])), settings, report=self.log.warning)
        publish = PublishSettings.model_validate(self.spec["publish"])
        self.publisher = Publisher(*publish.endpoints(self.runtime), self.store, publish.hwm, self.context)
        for socket in self.publisher.sockets:
            self._hungry.register(socket, zmq.POLLIN)
        self.states: dict[str, DecisionState] = self.store.states()
        self._resolve_predecessors_frames()
        self.maps = self.await_role("map")

    def _resolve_predecessors_frames(self) -> None:
        """Frames that an earlier alert stage held when it died: scored if their alert is in the store."""
        for frame in self.ledger.open_frames(holder=Station.ALERT):
            name = self.ledger.camera_name(frame.camera)
            if self.store.by_frame(self.epoch, name, frame.seq) is not None:
                self.ledger.score(frame.ticket)
            else:
                self.ledger.drop(frame.ticket, Reason.STAGE_RESTART)

    def step(self, timeout_s: float) -> None:
        descriptor = self.next_accepted()
        if descriptor is not None:
            self.work(descriptor)
        else:
            self._hungry.poll(int(min(timeout_s, ANNOUNCE_S) * 1000))
        now = time.monotonic()
        if descriptor is None or now >= self._announce_at:
            self._announce_at = now + ANNOUNCE_S
            self.announce()
            self.publisher.serve()

    # -- inspected frames -------------------------------------------------------------------------------------

    def handle(self, descriptor: Descriptor) -> None:
        camera = self.cameras.get(descriptor.camera)
        verdict = descriptor.verdict
        if camera is None or verdict is None:
            self.refuse(descriptor, Reason.ERROR, "its camera is not in the line file any more")
            return
        name = camera["name"]
        anomalous = verdict.score > verdict.threshold
        if anomalous and descriptor.payload is None:  # the head leaves out maps of frames far below the threshold only
            self.refuse(descriptor, Reason.ERROR, "it is anomalous, but came without an anomaly map")
            return
        seen = Observation(
            "anomalous" if anomalous else "normal", verdict.p_value, descriptor.mono_ns, descriptor.wall_ns
        )
        before = self.states.get(name, DecisionState())
        state, action = decide(self.policy, before, seen)
        try:
            if isinstance(action, Raise):
                alert = self._raise(descriptor, camera, state, action)
            else:
                alert = None
                if anomalous and self.policy.picture == "always":
                    jpeg, _ = self._evidence(descriptor, camera, verdict.score, verdict.threshold)
                    self.store.keep_picture(name, self.epoch, descriptor.seq, jpeg, durable=False)
                self._save_state(name, before, state, isinstance(action, Clear))
            self._tell_store("")
        except ResourceError as error:
            # An alert that cannot be kept must not count as raised, nor its frame as inspected: the state stays, so
            # that the next anomalous frame tries again.
            self._tell_store(str(error))
            self.refuse(descriptor, Reason.ERROR, str(error))
            return
        self.states[name] = state
        closed = self.ledger.score(descriptor.ticket)
        self.maps.poke()
        if descriptor.frame.pool in self.pools:
            self.pools[descriptor.frame.pool].poke()
        if closed:
            self.counters.handled += 1
            self.anomalous[name] += anomalous
            self.publisher.publish(
                Verdict(
                    camera=name,
                    seq=descriptor.seq,
                    epoch=self.epoch,
                    verdict=seen.verdict,
                    score=verdict.score,
                    threshold=verdict.threshold,
                    p_value=verdict.p_value,
                    captured_at=descriptor.wall_ns,
                    latency_ms=(time.monotonic_ns() - descriptor.mono_ns) / 1e6,
                    alerting=state.raised,
                    bundle=camera["bundle"],
                    name=descriptor.name,
                )
            )
        else:
            self.counters.stale += 1  # closed as timed out a moment ago; that verdict stands, and so does the alert
        if alert is not None:
            self.raised[name] += 1
            self.publisher.publish(alert)

    def _raise(self, descriptor: Descriptor, camera: dict[str, Any], state: DecisionState, why: Raise) -> Any:
        """Store the alert with its evidence; returns it as stored. Raises ResourceError, StaleSlot."""
        verdict = descriptor.verdict
        assert verdict is not None
        if self.policy.picture == "never":
            jpeg, regions = None, self._regions(descriptor, camera)
        else:
            jpeg, regions = self._evidence(descriptor, camera, verdict.score, verdict.threshold)
        sentence = explain(verdict.score, verdict.threshold, verdict.p_value, why.anomalous, why.inspected, regions)
        draft = AlertDraft(
            camera=camera["name"],
            seq=descriptor.seq,
            epoch=self.epoch,
            captured_at=descriptor.wall_ns,
            raised_at=time.time_ns(),
            score=verdict.score,
            threshold=verdict.threshold,
            p_value=verdict.p_value,
            parts=verdict.parts,
            regions=regions,
            why=sentence,
            repeat=why.repeat,
            bundle=camera["bundle"],
            engine=camera["engine"],
            name=descriptor.name,
        )
        return self.store.add(draft, state, jpeg).alert

    def _map(self, descriptor: Descriptor, camera: dict[str, Any]) -> np.ndarray:
        assert descriptor.payload is not None
        return self.maps.view(descriptor.payload, tuple(camera["size"]), np.float32)

    def _regions(self, descriptor: Descriptor, camera: dict[str, Any]) -> tuple[Region, ...]:
        assert descriptor.payload is not None
        roi = tuple(camera["roi"]) if camera["roi"] else None
        geometry = Geometry.of((descriptor.height, descriptor.width), roi, tuple(camera["size"]))
        regions = find_regions(self._map(descriptor, camera), camera["pixel_threshold"], geometry)
        self.maps.check(descriptor.payload)
        return regions

    def _evidence(
        self, descriptor: Descriptor, camera: dict[str, Any], score: float, threshold: float
    ) -> tuple[bytes, tuple[Region, ...]]:
        """The evidence picture as JPEG, and the regions. Raises StaleSlot when either was overwritten meanwhile."""
        assert descriptor.payload is not None
        frames = self.pool_of(descriptor.frame)
        picture = frames.view(descriptor.frame, (descriptor.height, descriptor.width, 3))
        regions = self._regions(descriptor, camera)
        if self.policy.overlay:
            drawn = overlay(
                picture,
                self._map(descriptor, camera),
                camera["pixel_threshold"],
                regions,
                roi=tuple(camera["roi"]) if camera["roi"] else None,
                title=f"{camera['name']} #{descriptor.seq}",
                detail=f"score {score:.4g}, threshold {threshold:.4g}",
                alarm=score > threshold,
            )
        else:
            drawn = np.ascontiguousarray(picture)
        jpeg = encode_jpeg(drawn, self.policy.jpeg_quality)
        frames.check(descriptor.frame)
        self.maps.check(descriptor.payload)
        return jpeg, regions

    def _save_state(self, name: str, before: DecisionState, state: DecisionState, cleared: bool) -> None:
        now = time.monotonic()
        due = state.raised and now - self._saved_at.get(name, 0.0) > SAVE_EVERY_S
        if cleared or due or before.raised != state.raised:
            self.store.save_states({name: state})
            self._saved_at[name] = now

    def _tell_store(self, trouble: str) -> None:
        if trouble != self._store_trouble:
            self._store_trouble = trouble
            if trouble:
                self.control.send("event", what="store", text=trouble)

    # -- frames that were not inspected -----------------------------------------------------------------------

    def announce(self) -> None:
        """Publish the verdict of every frame that any stage closed as not inspected, then forget it. After a crash
        in between it is published again: at least once."""
        frames = self.ledger.unannounced()
        for frame in frames:
            self.publisher.publish(self._not_inspected(frame))
            for pool in self.pools.values():
                pool.poke()
        if frames:
            self.ledger.announced(frame.ticket for frame in frames)

    def _not_inspected(self, frame: OpenFrame) -> Verdict:
        camera = self.cameras.get(frame.camera)
        assert frame.reason is not None
        return Verdict(
            camera=self.ledger.camera_name(frame.camera),
            seq=frame.seq,
            epoch=self.epoch,
            verdict="not_inspected",
            reason=frame.reason.label,
            captured_at=frame.wall_ns,
            latency_ms=max(0, time.monotonic_ns() - frame.mono_ns) / 1e6,
            bundle=camera["bundle"] if camera else "",
        )

    # -- control ----------------------------------------------------------------------------------------------

    def on_control(self, message: dict[str, Any]) -> None:
        if message["kind"] == "health":
            self.publisher.publish(self._health(message["body"]))
        elif message["kind"] == "event":
            self.log.info("event from %s: %s", message["stage"], message["text"])
        else:
            super().on_control(message)

    def _health(self, body: dict[str, Any]) -> Health:
        counts = self.store.counts()
        problems = body["problems"] + ([self._store_trouble] if self._store_trouble else [])
        return Health(
            at=body["at"],
            epoch=self.epoch,
            version=VERSION,
            status=body["status"] if not problems or body["status"] == "stopping" else "degraded",
            problems=tuple(text[:500] for text in problems[:64]),
            uptime_s=body["uptime_s"],
            cameras={
                name: CameraHealth(
                    anomalous=self.anomalous[name],
                    alerts=self.raised[name],
                    alerting=self.states.get(name, DecisionState()).raised,
                    **camera,
                )
                for name, camera in body["cameras"].items()
            },
            stages={name: StageHealth(**stage) for name, stage in body["stages"].items()},
            last_alert_id=counts.latest_id,
            alerts_stored=counts.alerts,
            picture_bytes=counts.picture_bytes,
        )

    def finish(self) -> None:
        self.announce()
        self.store.save_states(self.states)
        self.publisher.close()
        self.store.close()
