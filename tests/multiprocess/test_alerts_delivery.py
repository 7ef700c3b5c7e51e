"""Publisher, replay and subscriber over real sockets: nothing lost, nothing twice, nobody blocked."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgpack
import pytest
import zmq

from edge.alerts.config import PublishSettings, StoreSettings
from edge.alerts.messages import Alert, AlertDraft, Health, Verdict
from edge.alerts.publisher import Publisher
from edge.alerts.replay import answer
from edge.alerts.store import AlertStore
from edge.alerts.subscriber import Event, Gap, Received, Subscriber
from edge.errors import ConfigError, ResourceError

pytestmark = pytest.mark.multiprocess
ROOT = Path(__file__).resolve().parents[2]


def draft(seq: int, camera: str = "cam1") -> AlertDraft:
    return AlertDraft(
        camera=camera,
        seq=seq,
        epoch="e0",
        captured_at=seq,
        raised_at=10**18 + seq,
        score=2.0,
        threshold=1.0,
        p_value=0.01,
        why=f"frame {seq}",
    )


def verdict(seq: int, camera: str = "cam1") -> Verdict:
    return Verdict(
        camera=camera,
        seq=seq,
        epoch="e0",
        verdict="normal",
        score=0.5,
        threshold=1.0,
        p_value=0.5,
        captured_at=seq,
        latency_ms=1.0,
    )


def health(last_alert_id: int) -> Health:
    return Health(at=1, epoch="e0", status="ok", uptime_s=1.0, last_alert_id=last_alert_id)


class Daemon:
    """What the alert stage does: store, publish, serve. Its loop runs in a thread that owns store and sockets."""

    def __init__(self, folder: Path, hwm: int = 1000, settings: StoreSettings | None = None) -> None:
        self.endpoints = PublishSettings().endpoints(folder)
        self._folder, self._hwm, self._settings = folder, hwm, settings
        self._work: list[Callable[[AlertStore, Publisher], object]] = []
        self._stop = threading.Event()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Daemon:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(10)
        assert not self._thread.is_alive()

    def _run(self) -> None:
        with (
            AlertStore(self._folder / "state", self._settings) as store,
            zmq.Context() as context,
            Publisher(*self.endpoints, store, self._hwm, context) as publisher,
        ):
            poller = zmq.Poller()
            for item in publisher.sockets:
                poller.register(item, zmq.POLLIN)
            self._ready.set()
            while not self._stop.is_set():
                if poller.poll(5):
                    publisher.serve()
                while self._work:
                    self._work[0](store, publisher)
                    self._work.pop(0)

    def do(self, work: Callable[[AlertStore, Publisher], object]) -> None:
        self._work.append(work)
        wait_until(lambda: not self._work, within_s=100)  # a busy disk syncs some 300 alerts a second

    def alert(self, *numbers: int, camera: str = "cam1", publish: bool = True) -> None:
        def work(store: AlertStore, publisher: Publisher) -> None:
            for number in numbers:
                added = store.add(draft(number, camera))
                if publish:
                    publisher.publish(added.alert)

        self.do(work)

    def subscribed(self) -> None:
        """Wait until a subscription has arrived: what is published before is not sent at all."""
        seen: list[int] = []
        wait_until(lambda: (self.do(lambda _, publisher: seen.append(publisher.counts.subscriptions)), seen[-1] > 0)[1])


def wait_until(fact: Callable[[], object], within_s: float = 20.0) -> None:
    deadline = time.monotonic() + within_s
    while not fact():
        assert time.monotonic() < deadline, "the awaited fact did not come true"
        time.sleep(0.002)


def collect(subscriber: Subscriber, until: Callable[[list[Event]], bool], within_s: float = 30.0) -> list[Event]:
    events: list[Event] = []
    deadline = time.monotonic() + within_s
    while not until(events):
        assert time.monotonic() < deadline, f"only {len(events)} events came; the last: {events[-3:]}"
        event = subscriber.next(0.1)
        if event is not None:
            events.append(event)
    return events


def alert_ids(events: list[Event]) -> list[int]:
    return [item.message.id for item in events if isinstance(item, Received) and isinstance(item.message, Alert)]


def alerts(count: int) -> Callable[[list[Event]], bool]:
    return lambda events: len(alert_ids(events)) >= count


@contextlib.contextmanager
def subscriber(daemon: Daemon, **options: object) -> Iterator[Subscriber]:
    with zmq.Context() as context, Subscriber(*daemon.endpoints, context=context, **options) as item:  # type: ignore[arg-type]
        yield item


def test_all_topics_arrive_with_their_numbers(tmp_path: Path) -> None:
    with Daemon(tmp_path) as daemon, subscriber(daemon, since=0) as sub:
        daemon.subscribed()

        def publish(store: AlertStore, publisher: Publisher) -> None:
            for seq in (1, 2):
                publisher.publish(verdict(seq))
            publisher.publish(store.add(draft(2)).alert)
            publisher.publish(health(1))

        daemon.do(publish)
        events = collect(sub, lambda events: len(events) == 4)
    messages = [event.message for event in events if isinstance(event, Received)]
    assert sorted((message.topic, message.n) for message in messages if not isinstance(message, Alert)) == [
        ("health", 1),
        ("verdict.cam1", 1),
        ("verdict.cam1", 2),
    ]
    assert alert_ids(events) == [1]


def test_old_alerts_come_first_and_each_once(tmp_path: Path) -> None:
    with Daemon(tmp_path) as daemon:
        daemon.alert(*range(1, 700))
        with subscriber(daemon, since=200) as sub:
            first = collect(sub, alerts(1))
            daemon.alert(*range(700, 800))
            events = first + collect(sub, alerts(599 - len(first)))
            assert alert_ids(events) == list(range(201, 800))
            assert sub.next(0.1) is None


def test_since_none_begins_with_the_first_contact(tmp_path: Path) -> None:
    with Daemon(tmp_path) as daemon:
        daemon.alert(1, 2, 3)
        with subscriber(daemon) as sub:
            wait_until(lambda: sub.next(0.02) is None and sub.last_id is not None)
            daemon.subscribed()
            daemon.alert(4, 5)
            assert alert_ids(collect(sub, alerts(2))) == [4, 5]


def test_a_subscriber_may_come_before_the_daemon_and_see_it_restart(tmp_path: Path) -> None:
    got: list[int] = []
    with subscriber(Daemon(tmp_path), since=0) as sub:
        assert sub.next(0.3) is None
        for start in (1, 6, 11):
            with Daemon(tmp_path) as daemon:
                daemon.alert(*range(start, start + 5))
                got += alert_ids(collect(sub, alerts(5)))
        assert got == list(range(1, 16))
        assert sub.counts.connected >= 3


@pytest.mark.parametrize("told_by", ["health", "next alert", "nobody"])
def test_alerts_of_a_stage_killed_before_it_published(tmp_path: Path, told_by: str) -> None:
    sync_s = 0.2 if told_by == "nobody" else 600.0
    with Daemon(tmp_path) as daemon, subscriber(daemon, since=0, sync_s=sync_s) as sub:
        daemon.alert(1)
        collect(sub, alerts(1))
        daemon.subscribed()
        daemon.alert(2, 3, publish=False)
        if told_by == "health":
            daemon.do(lambda _, publisher: publisher.publish(health(3)))
        elif told_by == "next alert":
            daemon.alert(4)
        # nobody: the regular question finds them
        expected = [2, 3, 4] if told_by == "next alert" else [2, 3]
        assert alert_ids(collect(sub, alerts(len(expected)))) == expected


def test_a_sleeping_subscriber_gets_5000_alerts_by_replay(tmp_path: Path) -> None:
    with (
        Daemon(tmp_path, hwm=100) as daemon,
        subscriber(daemon, since=0, hwm=100, sync_s=0.5, topics=("alert",)) as sub,
    ):
        daemon.alert(1)
        collect(sub, alerts(1))
        daemon.subscribed()
        daemon.alert(*range(2, 5001))  # nobody reads meanwhile
        ids = alert_ids(collect(sub, alerts(4999)))
        assert ids == list(range(2, 5001))
        assert sub.counts.replayed > 4000
        assert sub.next(0.1) is None


def test_a_stopped_subscriber_never_blocks_the_publisher(tmp_path: Path) -> None:
    with Daemon(tmp_path, hwm=10) as daemon:
        script = (
            "import sys, time, zmq\ns = zmq.Context().socket(zmq.SUB)\ns.setsockopt(zmq.RCVHWM, 10)\n"
            "s.subscribe(b'')\ns.connect(sys.argv[1])\ns.recv_multipart()\nprint('up', flush=True)\ntime.sleep(99)"
        )
        child = subprocess.Popen([sys.executable, "-c", script, daemon.endpoints[0]], stdout=subprocess.PIPE)
        try:
            daemon.subscribed()
            daemon.do(lambda _, publisher: publisher.publish(health(0)))
            assert child.stdout is not None
            assert child.stdout.readline() == b"up\n"
            os.kill(child.pid, signal.SIGSTOP)
            longest: list[float] = []

            def flood(_: AlertStore, publisher: Publisher) -> None:
                for seq in range(3000):
                    begun = time.monotonic()
                    publisher.publish(verdict(seq))
                    longest.append(time.monotonic() - begun)

            daemon.do(flood)
            assert len(longest) == 3000
            assert max(longest) < 1.0
        finally:
            child.kill()
            child.wait(10)
            if child.stdout is not None:
                child.stdout.close()


def test_late_and_doubled_answers_bring_nothing_twice(tmp_path: Path) -> None:
    """A replay socket that answers every question twice, and an older question once more after it."""
    pub, asked = PublishSettings().endpoints(tmp_path)
    with AlertStore(tmp_path / "state") as store, zmq.Context() as context:
        for seq in range(450):
            store.add(draft(seq))
        router = context.socket(zmq.ROUTER)
        router.setsockopt(zmq.LINGER, 0)
        router.bind(asked)
        with Subscriber(pub, asked, since=0, sync_s=0.05, context=context) as sub:
            got, old = [], b""
            deadline = time.monotonic() + 30
            while len(got) < 450 or sub.counts.duplicates < 900:
                assert time.monotonic() < deadline, f"{len(got)} events, {sub.counts}"
                if router.poll(5):
                    peer, request = router.recv_multipart()
                    for reply in (answer(store, request), answer(store, request), answer(store, old or request)):
                        router.send_multipart([peer, reply])
                    old = old or request
                if (event := sub.next(0.01)) is not None:
                    got.append(event)
            assert alert_ids(got) == list(range(1, 451))
            assert len(got) == 450
        router.close()


def test_lost_verdicts_are_told(tmp_path: Path) -> None:
    with Daemon(tmp_path, hwm=5) as daemon, subscriber(daemon, topics=("verdict",), hwm=5) as sub:
        daemon.subscribed()
        daemon.do(lambda _, publisher: publisher.publish(verdict(0)))
        collect(sub, lambda events: len(events) == 1)

        def flood(_: AlertStore, publisher: Publisher) -> None:
            for seq in range(1, 20_000):
                publisher.publish(verdict(seq))

        daemon.do(flood)
        events = list(sub.follow(0.3))
        daemon.do(lambda _, publisher: publisher.publish(verdict(20_000)))
        events += collect(
            sub, lambda events: any(getattr(item, "message", verdict(0)).seq == 20_000 for item in events)
        )
        received = sum(isinstance(event, Received) for event in events)
        gaps = [event for event in events if isinstance(event, Gap)]
        assert {(gap.why, gap.topic) for gap in gaps} == {("lost", "verdict.cam1")}
        assert received + sum(gap.count for gap in gaps) == 20_000
        assert sub.counts.lost == sum(gap.count for gap in gaps) > 0


def test_alerts_that_are_no_longer_stored_are_told(tmp_path: Path) -> None:
    with Daemon(tmp_path, settings=StoreSettings(max_alerts=10)) as daemon:
        daemon.alert(*range(1, 51))
        with subscriber(daemon, since=20) as sub:
            events = collect(sub, alerts(10))
            assert events[0] == Gap("gone", count=20, first=21, last=40)
            assert alert_ids(events) == list(range(41, 51))
        with subscriber(daemon, since=0) as sub:  # whoever asks for all that there is misses nothing
            assert alert_ids(collect(sub, alerts(10))) == list(range(41, 51))


def test_a_replaced_state_folder_is_told(tmp_path: Path) -> None:
    with Daemon(tmp_path) as daemon:
        daemon.alert(1, 2)
        with subscriber(daemon, since=500) as sub:
            events = collect(sub, alerts(2))
            assert events[0] == Gap("reset", last=500)
            assert alert_ids(events) == [1, 2]


def test_a_camera_is_chosen_exactly(tmp_path: Path) -> None:
    with Daemon(tmp_path) as daemon, subscriber(daemon, since=0, topics=("alert.cam1", "verdict.cam1")) as sub:
        daemon.subscribed()
        daemon.alert(1, camera="cam10")
        daemon.do(lambda _, publisher: publisher.publish(verdict(1, "cam10")))
        daemon.alert(2)
        daemon.do(lambda _, publisher: publisher.publish(verdict(2)))
        events = collect(sub, lambda events: len(events) >= 2)
        assert {event.message.topic for event in events if isinstance(event, Received)} == {
            "alert.cam1",
            "verdict.cam1",
        }
        assert sub.next(0.1) is None


def test_foreign_bytes_are_counted_and_passed_over(tmp_path: Path) -> None:
    with Daemon(tmp_path) as daemon, subscriber(daemon, since=0) as sub:
        daemon.subscribed()
        daemon.do(lambda _, publisher: publisher.pub.send_multipart([b"alert.cam1", b"\xc1junk"]))
        daemon.do(lambda _, publisher: publisher.pub.send_multipart([b"verdict.cam1"]))
        daemon.alert(1)
        assert alert_ids(collect(sub, alerts(1))) == [1]
        wait_until(lambda: sub.next(0.01) is None and sub.counts.refused == 2)


@pytest.mark.parametrize("kind", [zmq.REQ, zmq.DEALER])
def test_replay_answers_plain_clients_and_malformed_requests(tmp_path: Path, kind: int) -> None:
    with Daemon(tmp_path) as daemon, zmq.Context() as context, context.socket(kind) as asker:
        daemon.alert(1, 2)
        asker.setsockopt(zmq.LINGER, 0)
        asker.connect(daemon.endpoints[1])
        for request, key in ((b"\xc1", "error"), (msgpack.packb({"v": 1, "since": 1}), "alerts")):
            asker.send(request)
            assert asker.poll(10_000)
            assert key in msgpack.unpackb(asker.recv())


def test_askers_that_leave_or_flood_do_no_harm(tmp_path: Path) -> None:
    with Daemon(tmp_path) as daemon, zmq.Context() as context:
        daemon.alert(*range(1, 300))
        flood = context.socket(zmq.DEALER)
        flood.setsockopt(zmq.LINGER, 0)
        flood.setsockopt(zmq.RCVHWM, 1)
        flood.connect(daemon.endpoints[1])
        for _ in range(300):
            with contextlib.suppress(zmq.Again):
                flood.send(msgpack.packb({"v": 1, "since": 0}), zmq.NOBLOCK)
        big = context.socket(zmq.DEALER)
        big.setsockopt(zmq.LINGER, 0)
        big.connect(daemon.endpoints[1])
        big.send(b"x" * 100_000)
        with subscriber(daemon, since=0) as sub:
            assert alert_ids(collect(sub, alerts(299))) == list(range(1, 300))
        flood.close()
        big.close()
        daemon.alert(300)
        with subscriber(daemon, since=299) as sub:
            assert alert_ids(collect(sub, alerts(1))) == [300]


class Empty:
    """An outbox without alerts."""

    def since(self, last: int, limit: int) -> list[Alert]:
        return []

    def oldest_id(self) -> int:
        return 0

    def latest_id(self) -> int:
        return 0


def test_an_ipc_address_in_use_is_never_taken_over(tmp_path: Path) -> None:
    pub, replay = PublishSettings().endpoints(tmp_path)
    with zmq.Context() as context:
        with Publisher(pub, replay, Empty(), context=context):
            with pytest.raises(ResourceError, match=f"in use by process {os.getpid()}") as caught:
                Publisher(pub, f"{replay}2", Empty(), context=context)
            assert str(caught.value).startswith(pub)
            assert os.stat(tmp_path / "alerts.pub").st_mode & 0o007 == 0
        Publisher(pub, replay, Empty(), context=context).close()  # free again


def test_an_ipc_address_of_a_killed_process_is_free(tmp_path: Path) -> None:
    pub, replay = PublishSettings().endpoints(tmp_path)
    script = (
        "import os, signal, sys\nfrom edge.alerts.publisher import Publisher\n"
        "p = Publisher(sys.argv[1], sys.argv[2], None)\nos.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", script, pub, replay], timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL
    assert (tmp_path / "alerts.pub").exists()  # the killed one could not clean up
    with zmq.Context() as context:
        Publisher(pub, replay, Empty(), context=context).close()


def test_a_tcp_port_in_use_is_named(tmp_path: Path) -> None:
    with socket.socket() as holder, zmq.Context() as context:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        endpoint = f"tcp://127.0.0.1:{holder.getsockname()[1]}"
        with pytest.raises(ResourceError, match="in use") as caught:
            Publisher(endpoint, f"ipc://{tmp_path}/r", Empty(), context=context)
        assert endpoint in str(caught.value)
        with pytest.raises(ConfigError, match="CURVE"):
            Publisher("tcp://0.0.0.0:5555", f"ipc://{tmp_path}/r", Empty(), context=context)


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with zmq.Context() as context, pytest.raises(ResourceError, match="cannot be bound"):
        Publisher(f"ipc://{tmp_path}/file/pub", f"ipc://{tmp_path}/r", Empty(), context=context)


def test_no_descriptor_is_left(tmp_path: Path) -> None:
    def cycle() -> None:
        pub, replay = PublishSettings().endpoints(tmp_path)
        with zmq.Context() as context, Publisher(pub, replay, Empty(), context=context):
            Subscriber(pub, replay, context=context).close()

    cycle()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        cycle()
    assert len(os.listdir("/proc/self/fd")) == before


def test_the_documented_example(tmp_path: Path) -> None:
    """deploy/schema/subscribe.py against a daemon that is there, goes, and comes again."""
    script = ROOT / "deploy" / "schema" / "subscribe.py"
    assert "edge" not in {line.split()[1] for line in script.read_text().splitlines() if line.startswith("import ")}
    child = subprocess.Popen(
        [sys.executable, str(script), *Daemon(tmp_path).endpoints, "1"], stdout=subprocess.PIPE, text=True, cwd=tmp_path
    )
    try:
        assert child.stdout is not None
        with Daemon(tmp_path) as daemon:
            daemon.alert(1, 2, 3)
            lines = [child.stdout.readline() for _ in range(2)]
        with Daemon(tmp_path) as daemon:
            daemon.alert(*range(4, 304))
            lines += [child.stdout.readline() for _ in range(300)]
        assert [int(line.split()[0]) for line in lines] == list(range(2, 304))
        assert lines[0] == "2 cam1 frame 2 None\n"
    finally:
        child.kill()
        child.wait(10)
        if child.stdout is not None:
            child.stdout.close()
