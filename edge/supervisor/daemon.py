"""The daemon's one loop: signals, control messages, deaths and time, handled in turn, nothing that blocks.

Phases: ``starting`` (core stages get ready, then captures start), ``running``, ``pausing`` and ``swapping`` (a
reload that touches the core: intake paused, frames under way finished, changed stages exchanged), ``draining``
(intake stopped, frames under way finished), ``stopping`` (stages leave in the data's order), ``gone``.
"""

from __future__ import annotations

import logging
import os
import selectors
import signal
import socket
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

from edge.config import load_line
from edge.errors import ConfigError, EdgeError, Exit, ResourceError
from edge.supervisor.custody import Custody
from edge.supervisor.folders import FolderLock, prepare_folder, runtime_folder, state_folder
from edge.supervisor.health import Rates, snapshot
from edge.supervisor.notify import notify, watchdog_interval_s
from edge.supervisor.plan import CORE, STATIONS, Change, Plan, capture_name, compare, make_plan
from edge.supervisor.policy import CANNOT_START, RestartPolicy, answer_silence, describe_exit
from edge.supervisor.pools import FRAME_READERS, Pools
from edge.supervisor.process import StageProcess
from edge.wire.control import ControlClosed
from edge.wire.ledger import Ledger, LedgerBusy, Station

TICK_S = 0.05
HEALTH_S = 1.0
RETRY_CAMERA_S = 60.0  # a capture stage that crashed too often is tried again this often: the others go on
LAST_WORDS_S = 2.0  # for the alert stage to publish what was closed last, and for a stage to leave
START_TRIES = 2  # a daemon killed a moment ago may still hold a port: so often is a refused stage started again
LOCK_S = 1.0  # nobody needs the ledger's lock for a thousandth of this

CORE_MAY_START = ("starting", "running", "pausing", "swapping")
ANY_MAY_START = ("starting", "running")

Phase = Literal["starting", "running", "pausing", "swapping", "draining", "stopping", "gone"]
log = logging.getLogger("supervisor")


class Daemon:
    """A line at work. :meth:`run` returns the exit code when everything has stopped.

    ``line_path`` is read at once and again at every SIGHUP. ``runtime`` and ``state`` override the folders.
    """

    def __init__(self, line_path: Path, runtime: Path | None = None, state: Path | None = None) -> None:
        self.line_path = line_path
        line = load_line(line_path)
        self._undo = ExitStack()
        with self._undo:  # undone if the next line raises; kept from pop_all on
            self.runtime = prepare_folder(runtime_folder(line.line.name, runtime))
            self.state = prepare_folder(state_folder(line.line.name, state))
            for folder in dict.fromkeys((self.runtime, self.state)):
                self._undo.callback(FolderLock(folder).release)
            self.ledger = Ledger(self.state / "ledger", lock_timeout_s=LOCK_S)
            self._undo.callback(self.ledger.close)
            self.plan = make_plan(line, self.state, self.ledger.camera_index)
            self.pools = Pools(self.ledger.is_live)
            self._undo.callback(self.pools.close)
            self.pools.make_core(self.plan.pools)
            self._undo = self._undo.pop_all()
        self.stages: dict[str, StageProcess] = {}
        self.custody = Custody(self.ledger, self.stages)
        self.phase: Phase = "starting"
        self.exit_code: Exit = Exit.OK
        self.started_at = time.monotonic()
        self._selector = selectors.DefaultSelector()
        self._signals, self._wakeup = socket.socketpair()
        self._deadline = 0.0
        self._change: tuple[Plan, Change] | None = None
        self.rates = Rates()
        self._health_at = 0.0
        self._watchdog_s = watchdog_interval_s()
        self._watchdog_at = 0.0
        self._was_ready = False
        self._reload_wanted = False

    # -- running ----------------------------------------------------------------------------------------------

    def run(self) -> Exit:
        """Start everything, work until told to stop (SIGTERM, SIGINT) or until every source has ended."""
        with self._undo, ExitStack() as restore:
            self._catch_signals(restore)
            self.custody.recover()
            for name in CORE:
                self._start(name)
            try:
                while self.phase != "gone":
                    for key, _ in self._selector.select(TICK_S):
                        key.data()
                    self._tick()
            finally:
                self._kill_everything()
        return self.exit_code

    def _catch_signals(self, restore: ExitStack) -> None:
        """Handlers only enqueue, through the wakeup descriptor: ordinary code answers, which may log and lock."""
        self._signals.setblocking(False)
        self._wakeup.setblocking(False)
        restore.callback(signal.set_wakeup_fd, signal.set_wakeup_fd(self._wakeup.fileno(), warn_on_full_buffer=False))
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            restore.callback(signal.signal, number, signal.signal(number, lambda *_: None))
        self._selector.register(self._signals, selectors.EVENT_READ, self._on_signals)
        restore.callback(self._selector.close)
        restore.callback(self._signals.close)
        restore.callback(self._wakeup.close)

    def _tick(self) -> None:
        now = time.monotonic()
        busy = False
        # Each step for itself: while somebody sits on the ledger's lock, deaths and deadlines are answered still.
        steps = (
            self._watch_stages,
            self._close_frames,
            self._retire,
            self._advance,
            self._tell_health,
        )
        for step in steps:
            try:
                step(now)
            except LedgerBusy as error:
                busy = True
                self.custody.free_lock(error.pid)
        if not busy:
            self.custody.stranger = 0
        if self._watchdog_s is not None and now >= self._watchdog_at and not self._overdue(now):
            self._watchdog_at = now + self._watchdog_s / 2
            notify("WATCHDOG=1")

    # -- stages -----------------------------------------------------------------------------------------------

    def _start(self, name: str) -> None:
        spec = {**self.plan.stages[name], "runtime": str(self.runtime), "ledger": str(self.ledger.path)}
        spec["state"] = str(self.state)
        stage = self.stages.get(name)
        if stage is None:
            station = STATIONS[name] if name in STATIONS else Station.CAPTURE + spec["camera"]
            pipeline = self.plan.line.pipeline
            stage = StageProcess(name, station, RestartPolicy(pipeline.restarts, pipeline.restart_window_s))
            self.stages[name] = stage
        stage.start(spec, logging.getLogger().getEffectiveLevel())
        assert stage.control is not None
        self._selector.register(stage.control, selectors.EVENT_READ, lambda: self._on_control(stage))
        self._selector.register(stage.pidfd, selectors.EVENT_READ, lambda: self._on_death(stage))
        for role, pool in self.pools.for_stage(name):
            stage.tell("pool", (pool.fd, pool.event_fd), role=role)

    def _on_control(self, stage: StageProcess) -> None:
        try:
            while stage.control is not None and (received := stage.control.receive()) is not None:
                message, fds = received
                for fd in fds:
                    os.close(fd)
                self._on_message(stage, message)
        except ControlClosed:
            if stage.control is not None:
                self._forget(stage.control)

    def _on_message(self, stage: StageProcess, message: dict[str, Any]) -> None:
        stage.last_beat = time.monotonic()
        match message["kind"]:
            case "ready":
                if stage.state == "starting":
                    stage.state = "ready"
                    log.info("%s is ready after %.2f s", stage.name, time.monotonic() - stage.started_at)
            case "beat":
                stage.beat = message
            case "need_pool":
                self._make_frame_pool(stage, message["height"], message["width"])
            case "event":
                log.warning("%s: %s", stage.name, message["text"])
                self._tell("alert", "event", stage=stage.name, what=message["what"], text=message["text"])
            case "done":
                stage.beat["done"] = True
            case "fatal":
                stage.fatal = (message["code"], message["text"])
            case "paused" | "resumed":
                stage.beat["paused"] = message["kind"] == "paused"

    def _make_frame_pool(self, stage: StageProcess, height: int, width: int) -> None:
        try:
            pool = self.pools.make_frames(stage.name, self.plan.line.pipeline.slots, height, width)
        except ResourceError as error:
            log.error("%s: %s", stage.name, error)
            stage.kill()  # it starts again after its back-off; there may be memory then
            return
        for name in FRAME_READERS:  # readers first: no descriptor can outrun the announcement of its pool
            self._tell(name, "pool", (pool.fd, pool.event_fd), role="frame")
        stage.tell("pool", (pool.fd, pool.event_fd), role="frame")

    def _tell(self, name: str, kind: str, fds: tuple[int, ...] = (), **body: Any) -> None:
        stage = self.stages.get(name)
        if stage is not None and not stage.tell(kind, fds, **body) and fds:
            # A stage that misses a pool could never read its frames; a new one is told everything at its start.
            stage.kill()

    def _on_death(self, stage: StageProcess) -> None:
        self._on_control(stage)  # its last words
        if stage.control is not None:
            self._forget(stage.control)
        self._forget(stage.pidfd)
        asked = stage.state == "stopping"
        code = stage.reap()
        if stage.name not in CORE:
            self.pools.drop_frames(stage.name)
        self.custody.stage_died(stage, code, asked)
        if asked or (code == Exit.OK and self.phase in ("draining", "stopping")):
            stage.state = "ended"
            return
        self._answer_crash(stage, code)

    def _answer_crash(self, stage: StageProcess, code: int) -> None:
        words = describe_exit(code)
        if stage.fatal is not None:
            words += f": {stage.fatal[1]}"
        now = time.monotonic()
        core = stage.name in CORE
        # A port in use or a full disk may pass while a line runs; a line that cannot even start tells it at once.
        hopeless = code == Exit.NO_RESOURCE and not self._was_ready and stage.restarts >= START_TRIES
        if code in CANNOT_START or hopeless:
            stage.state = "failed"
            log.error("%s cannot start: %s", stage.name, words)
            if core or not self._any_camera_alive():
                self._give_up(Exit(code))
            return
        delay = stage.policy.crashed(now)
        stage.restarts += 1
        if delay is None and core:
            stage.state = "failed"
            log.error("%s: %s; crashed %d times, giving up", stage.name, words, len(stage.policy.crashes))
            self._give_up(Exit.GAVE_UP)
            return
        if delay is None:
            delay = RETRY_CAMERA_S
        stage.state, stage.start_at = "waiting", now + delay
        log.error("%s: %s; starting again in %.1f s", stage.name, words, delay)

    def _give_up(self, code: Exit) -> None:
        """Stop with what is behind the dead stage finished; what lies before it cannot pass it however long we wait."""
        self._stop(code)
        self._deadline = min(self._deadline, time.monotonic() + LAST_WORDS_S)

    def _any_camera_alive(self) -> bool:
        return any(s.state != "failed" for n, s in self.stages.items() if n not in CORE)

    def _watch_stages(self, now: float) -> None:
        pipeline = self.plan.line.pipeline
        for stage in list(self.stages.values()):
            if stage.state == "waiting":
                # During a reload the intake rests: a new capture stage would know nothing of the pause.
                if now >= stage.start_at and self.phase in (CORE_MAY_START if stage.name in CORE else ANY_MAY_START):
                    self._start(stage.name)
            elif stage.alive:
                limit = pipeline.start_s if stage.state == "starting" else pipeline.heartbeat_s
                answer = answer_silence(now, stage.last_beat, limit, stage.aborted_at)
                if answer == "abort":
                    log.error("%s: silent for %.1f s; aborted", stage.name, now - stage.last_beat)
                    stage.abort(now)
                elif answer == "kill":
                    stage.kill()

    def _overdue(self, now: float) -> bool:
        """True while the line cannot be said to move: a stage silent, or not ready in time."""
        pipeline = self.plan.line.pipeline
        return any(
            stage.alive
            and now - stage.last_beat > (pipeline.start_s if stage.state == "starting" else pipeline.heartbeat_s)
            for stage in self.stages.values()
        )

    def _close_frames(self, now: float) -> None:
        """Frames that nobody will finish. Once the line stops, the drain's end or the next start closes them."""
        if self.phase not in ("stopping", "gone"):
            self.custody.close_overdue(now, self.plan.line.pipeline.frame_timeout_s)
            self.custody.close_orphans()

    # -- phases -----------------------------------------------------------------------------------------------

    def _advance(self, now: float) -> None:
        if self.phase == "starting" and self._core_ready():
            self.phase = "running"
            self._start_captures()
            if not self._was_ready:
                self._was_ready = True
                log.info("running: %d cameras, ready after %.1f s", len(self.plan.line.camera), now - self.started_at)
            notify("READY=1", f"STATUS={len(self.plan.line.camera)} cameras")
        elif self.phase == "running" and self._reload_wanted:
            self._reload()
        elif self.phase == "running" and self._sources_ended():
            log.info("every source has ended")
            self._stop(Exit.OK)
        elif self.phase == "pausing" and (self._quiet() or now > self._deadline):
            assert self._change is not None
            for name in self._change[1].stop:
                if name in self.stages:
                    self.stages[name].ask_to_stop()
            self.phase, self._deadline = "swapping", now + self.plan.line.pipeline.grace_s + LAST_WORDS_S
        elif self.phase == "swapping":
            self._swap(now)
        elif self.phase == "draining" and (self._quiet() or now > self._deadline):
            self.custody.close_all()
            self.phase, self._deadline = "stopping", now + LAST_WORDS_S
        elif self.phase == "stopping":
            self._leave(now)

    def _core_ready(self) -> bool:
        return all(self.stages[name].state == "ready" for name in CORE)

    def _start_captures(self) -> None:
        for camera in self.plan.line.camera:
            name = capture_name(camera.name)
            if name not in self.stages or self.stages[name].state == "ended":
                self._start(name)
            else:
                self.stages[name].tell("resume")

    def _sources_ended(self) -> bool:
        captures = [stage for name, stage in self.stages.items() if name not in CORE]
        return (
            bool(captures)
            and all(stage.beat.get("done") or stage.state == "failed" for stage in captures)
            and not self.ledger.open_frames()
        )

    def _quiet(self) -> bool:
        """No capture stage takes frames in, and none is under way."""
        captures = [s for n, s in self.stages.items() if n not in CORE and s.alive]
        resting = all(s.beat.get("paused") or s.beat.get("done") for s in captures)
        return (not captures or (resting and self.phase == "pausing")) and not self.ledger.open_frames()

    def _stop(self, code: Exit) -> None:
        if self.phase in ("draining", "stopping", "gone"):
            self._deadline = time.monotonic()  # asked again: no more patience
            return
        notify("STOPPING=1")
        self.exit_code = code
        self.phase = "draining"
        self._deadline = time.monotonic() + self.plan.line.pipeline.grace_s
        for name, stage in self.stages.items():
            if name not in CORE:
                stage.ask_to_stop()

    def _leave(self, now: float) -> None:
        """Stop the core in the data's order; the alert stage last, once every closed frame is announced."""
        alert = self.stages.get("alert")
        if alert is not None and alert.state == "ready" and self.ledger.unannounced() and now < self._deadline:
            return
        for name in CORE:
            stage = self.stages.get(name)
            if (
                stage is not None and stage.alive and not self.custody.stranger
            ):  # with one about, nobody can finish anything
                if stage.state != "stopping":
                    stage.ask_to_stop()
                    self._deadline = now + LAST_WORDS_S
                elif now > self._deadline:
                    stage.kill()
                return
        if all(not stage.alive for stage in self.stages.values()):
            self.phase = "gone"
        else:
            for stage in self.stages.values():
                stage.kill()

    def _kill_everything(self) -> None:
        for stage in self.stages.values():
            if stage.alive:
                stage.kill()
                stage.reap()

    # -- reload -----------------------------------------------------------------------------------------------

    def _on_signals(self) -> None:
        try:
            numbers = set(self._signals.recv(64))
        except BlockingIOError:
            return
        if signal.SIGHUP in numbers:
            self._reload()
        if numbers & {signal.SIGTERM, signal.SIGINT}:
            log.info("asked to stop")
            self._stop(Exit.OK)

    def _reload(self) -> None:
        """Read the line file anew, build the whole plan, and only then touch anything. A broken file, or one whose
        bundles do not load, keeps the old line running."""
        if self.phase in ("draining", "stopping", "gone"):
            return
        if self.phase != "running":
            log.info("reload asked for while %s; it follows when the line runs", self.phase)
            self._reload_wanted = True
            return
        self._reload_wanted = False
        notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
        try:
            plan = make_plan(load_line(self.line_path), self.state, self.ledger.camera_index)
            if plan.line.line.name != self.plan.line.line.name:
                raise ConfigError(f"{self.line_path}: line.name cannot change while the line runs; restart it")
        except EdgeError as error:
            log.error("reload refused, the old settings stay:\n%s", error)
            notify("READY=1", "STATUS=reload refused; old settings stay")
            return
        change = compare(self.plan, plan)
        log.info(
            "reload: %s",
            f"exchanging {', '.join(dict.fromkeys((*change.stop, *change.start)))}"
            if change.start or change.stop
            else "only settings of the supervisor changed"
            if plan.line != self.plan.line
            else "nothing has changed",
        )
        self._change = (plan, change)
        if change.touches_core:
            self.phase = "pausing"
            self._deadline = time.monotonic() + self.plan.line.pipeline.grace_s
            for name, stage in self.stages.items():
                if name not in CORE:
                    stage.tell("pause")
        else:
            for name in change.stop:
                if name in self.stages:
                    self.stages[name].ask_to_stop()
            self.phase = "swapping"
            self._deadline = time.monotonic() + LAST_WORDS_S

    def _swap(self, now: float) -> None:
        """Once the stages that change have left: take over the new plan and start what it adds."""
        assert self._change is not None
        plan, change = self._change
        leaving = [self.stages[name] for name in change.stop if name in self.stages and self.stages[name].alive]
        if leaving:
            if now > self._deadline:
                for stage in leaving:
                    stage.kill()
            return
        if change.new_pools:
            try:
                self.pools.make_core(plan.pools)
            except ResourceError as error:
                log.error("reload refused, the old settings stay: %s", error)
                plan, change = self.plan, Change((), change.stop, False)
        for name in change.stop:
            self.stages.pop(name, None)
        self.plan, self._change = plan, None
        for stage in self.stages.values():
            stage.policy.limit, stage.policy.window_s = plan.line.pipeline.restarts, plan.line.pipeline.restart_window_s
        for name in CORE:
            if name in change.start or (name in change.stop and name not in self.stages):
                self._start(name)
        self.phase = "starting"  # captures start or resume once the core is ready

    # -- telling ----------------------------------------------------------------------------------------------

    def _retire(self, now: float) -> None:
        for pool in self.pools.retire():
            for name in FRAME_READERS:
                self._tell(name, "retire", pool=pool)

    def _tell_health(self, now: float) -> None:
        if now < self._health_at:
            return
        self._health_at = now + HEALTH_S
        stopping = self.phase in ("draining", "stopping", "gone")
        body = snapshot(self.plan.line, self.ledger, self.stages, self.rates, self.started_at, stopping)
        self._tell("alert", "health", body=body)

    def _forget(self, fileobj: Any) -> None:
        try:
            self._selector.unregister(fileobj)
        except (KeyError, ValueError):
            pass
