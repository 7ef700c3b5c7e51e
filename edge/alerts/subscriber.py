"""The other end: follows verdicts, alerts and health, and misses no alert that the daemon still stores.

The published stream is the wake-up call, the replay is the truth: an alert that does not follow the last one
directly is not delivered from the stream but asked for, so that alerts come in the order of their ids, each
once.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Literal

import zmq
from zmq.utils.monitor import recv_monitor_message

from edge.alerts import replay
from edge.alerts.messages import MAX_ID, MAX_MESSAGE_BYTES, Alert, Health, Message, MessageError, parse

SYNC_S = 5.0
RETRY_S = 1.0
BATCH = 200
STREAM_TURNS = 64


@dataclass(frozen=True, slots=True)
class Received:
    """A message. ``replayed``: it came from the replay socket."""

    message: Message
    replayed: bool = False


@dataclass(frozen=True, slots=True)
class Gap:
    """Something is missing for good. ``lost``: messages of a topic that this subscriber was too slow for,
    or that were published before it was connected again (``count`` of them; never alerts, which are
    replayed). ``gone``: nothing is stored under the alert ids ``first`` to ``last`` any more: deleted by
    the retention, lost with a damaged file, or skipped when one was replaced. ``reset``: the daemon's ids
    are lower than before (its state folder was replaced); everything that it has follows."""

    why: Literal["lost", "gone", "reset"]
    topic: str = "alert"
    count: int = 0
    first: int = 0
    last: int = 0


Event = Received | Gap


@dataclass(slots=True)
class SubscriberCounts:
    """What came: ``refused`` are messages that are none of this schema."""

    streamed: int = 0
    replayed: int = 0
    duplicates: int = 0
    refused: int = 0
    lost: int = 0
    connected: int = 0


class Subscriber:
    """Connects at once or whenever the daemon starts; reconnects by itself. A context manager and an
    iterator.

    ``since``: alerts with a higher id are delivered, old ones first; 0 for all; None for those after the
    first contact. ``topics``: any of ``verdict``, ``verdict.<camera>``, ``alert``, ``alert.<camera>``,
    ``health``. Where ``replay_endpoint`` is None there is no replay: alerts come as they are published, and
    may be lost. ``sync_s``: an alert that is stored but never reached the stream is found this late at most.
    """

    def __init__(
        self,
        endpoint: str,
        replay_endpoint: str | None = None,
        since: int | None = None,
        topics: Sequence[str] = ("verdict", "alert", "health"),
        hwm: int = 10_000,
        sync_s: float = SYNC_S,
        context: zmq.Context[zmq.Socket[bytes]] | None = None,
    ) -> None:
        self.counts = SubscriberCounts()
        self.last_id = since
        self._sync_s = sync_s
        self._topics = tuple(topics)
        self._wants_alerts = any(topic.partition(".")[0] == "alert" for topic in topics)
        self._events: deque[Event] = deque()
        self._numbers: dict[str, int] = {}
        self._asked_at: float | None = None  # None: no request is out
        self._sync_at = time.monotonic()
        self._first_streamed: int | None = None
        self._heard_of = 0  # the highest alert id seen in the stream
        self._replay: zmq.Socket[bytes] | None = None
        context = context or zmq.Context.instance()
        self._poller = zmq.Poller()
        self._sub = context.socket(zmq.SUB)
        self._sub.setsockopt(zmq.LINGER, 0)
        self._sub.setsockopt(zmq.RCVHWM, hwm)
        self._sub.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE_BYTES)
        self._sub.setsockopt(zmq.RECONNECT_IVL, 50)
        self._sub.setsockopt(zmq.RECONNECT_IVL_MAX, 1000)
        for topic in self._topics:
            self._sub.setsockopt(zmq.SUBSCRIBE, topic.encode())
        self._monitor = self._sub.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED)
        self._sub.connect(endpoint)
        self._poller.register(self._sub, zmq.POLLIN)
        self._poller.register(self._monitor, zmq.POLLIN)
        if replay_endpoint is not None and self._wants_alerts:
            self._replay = context.socket(zmq.DEALER)
            self._replay.setsockopt(zmq.LINGER, 0)
            self._replay.setsockopt(zmq.MAXMSGSIZE, replay.MAX_REPLY_BYTES)
            self._replay.setsockopt(zmq.IMMEDIATE, 1)  # requests for a daemon that is away are not hoarded
            self._replay.setsockopt(zmq.RECONNECT_IVL, 50)
            self._replay.setsockopt(zmq.RECONNECT_IVL_MAX, 1000)
            self._replay.connect(replay_endpoint)
            self._poller.register(self._replay, zmq.POLLIN)

    def __enter__(self) -> Subscriber:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Idempotent."""
        self._sub.disable_monitor()
        self._monitor.close(0)
        self._sub.close(0)
        if self._replay is not None:
            self._replay.close(0)

    def __iter__(self) -> Iterator[Event]:
        """All events, for ever."""
        while True:
            event = self.next(1.0)
            if event is not None:
                yield event

    def follow(self, idle_s: float) -> Iterator[Event]:
        """Events until none has come for ``idle_s`` seconds."""
        while (event := self.next(idle_s)) is not None:
            yield event

    def next(self, timeout_s: float) -> Event | None:
        """The next event, or None when none comes within ``timeout_s`` seconds."""
        deadline = time.monotonic() + timeout_s
        while not self._events:
            now = time.monotonic()
            self._ask_if_due(now)
            wait = max(0.0, min(deadline - now, 0.2))
            ready = dict(self._poller.poll(round(wait * 1000)))
            if self._monitor in ready:
                self._on_connected()
            if self._replay is not None and self._replay in ready:
                self._on_reply()
            if self._sub in ready:
                self._on_stream()
            if not self._events and time.monotonic() >= deadline:
                return None
        return self._events.popleft()

    # --- the stream -------------------------------------------------------------------------------

    def _on_connected(self) -> None:
        while self._monitor.poll(0):
            recv_monitor_message(self._monitor)
            self.counts.connected += 1
        self._sync_at = time.monotonic()

    def _on_stream(self) -> None:
        for _ in range(STREAM_TURNS):
            try:
                frames = self._sub.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            try:
                if len(frames) != 2:
                    raise MessageError(f"{len(frames)} frames instead of topic and map")
                message = parse(frames[0], frames[1])
            except MessageError:
                self.counts.refused += 1
                continue
            if not self._chosen(message.topic):
                continue  # ZeroMQ matches prefixes: alert.cam1 also brings alert.cam10
            self._count_lost(message)
            if isinstance(message, Health) and self._replay is not None:
                self._on_heard_of(message.last_alert_id)
            if isinstance(message, Alert) and self._replay is not None:
                self._on_alert(message)
            else:
                self._deliver(message)

    def _on_heard_of(self, identity: int) -> None:
        """An alert may be stored without ever being published: its stage was killed in between."""
        self._heard_of = max(self._heard_of, identity)
        if self.last_id is not None and identity > self.last_id:
            self._sync_at = time.monotonic()

    def _on_alert(self, alert: Alert) -> None:
        self._heard_of = max(self._heard_of, alert.id)
        if self.last_id is None:
            self._first_streamed = self._first_streamed or alert.id
            return  # the answer to the first request says where to begin; this alert comes with the next
        if alert.id <= self.last_id:
            self.counts.duplicates += 1
        elif alert.id == self.last_id + 1 and self._asked_at is None and self._all_alerts:
            self.last_id = alert.id
            self._deliver(alert)
        else:
            self._sync_at = time.monotonic()

    def _deliver(self, message: Message) -> None:
        self.counts.streamed += 1
        self._events.append(Received(message))

    def _count_lost(self, message: Message) -> None:
        if message.n is None:
            return
        topic, last = message.topic, self._numbers.get(message.topic)
        self._numbers[topic] = message.n
        if last is None:
            return  # whatever was published before this subscriber came is not lost
        missing = message.n - last - 1 if message.n > last else message.n - 1  # lower: the publisher began anew
        if missing > 0:
            self.counts.lost += missing
            if not (isinstance(message, Alert) and self._replay is not None):
                self._events.append(Gap("lost", topic, missing))

    def _chosen(self, topic: str) -> bool:
        return any(topic == chosen or topic.startswith(f"{chosen}.") for chosen in self._topics)

    @property
    def _all_alerts(self) -> bool:
        return "alert" in self._topics

    # --- the replay -------------------------------------------------------------------------------

    def _ask_if_due(self, now: float) -> None:
        if self._replay is None:
            return
        if self._asked_at is not None:
            if now < self._asked_at + RETRY_S:
                return
        elif now < self._sync_at:
            return
        request = replay.Request(MAX_ID, 0) if self.last_id is None else replay.Request(self.last_id, BATCH)
        try:
            self._replay.send(request.pack(), zmq.NOBLOCK)
            self._asked_at = now
        except zmq.Again:
            self._asked_at = None
            self._sync_at = now + 0.1  # not connected yet

    def _on_reply(self) -> None:
        assert self._replay is not None
        while True:
            try:
                frames = self._replay.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            try:
                reply = replay.parse_reply(frames[-1])
            except MessageError:
                self.counts.refused += 1
                continue  # asked again after RETRY_S
            # A late answer is as good as any, as long as it starts no further than what was delivered.
            if self.last_id is None or reply.since <= self.last_id:
                self._on_answer(reply)

    def _on_answer(self, reply: replay.Reply) -> None:
        now = time.monotonic()
        self._asked_at = None
        self._sync_at = now
        if self.last_id is None:
            first = self._first_streamed
            self.last_id = reply.latest if first is None else min(reply.latest, first - 1)
            return
        if reply.latest < self.last_id:
            self._events.append(Gap("reset", last=self.last_id))
            self.last_id = self._heard_of = 0
            return
        for alert in reply.alerts:
            if alert.id <= self.last_id:
                self.counts.duplicates += 1
                continue
            self._skip_to(alert.id)
            self.last_id = alert.id
            if self._chosen(alert.topic):
                self.counts.replayed += 1
                self._events.append(Received(alert, replayed=True))
        if reply.more:
            return
        self._skip_to(reply.latest + 1)
        self.last_id = reply.latest
        # An alert heard of while the answer was on its way may be younger than the answer.
        self._sync_at = now + (self._sync_s if self._heard_of <= self.last_id else 0.05)

    def _skip_to(self, identity: int) -> None:
        """Tell that nothing is stored between the last id and ``identity``. With ``since=0`` it is no loss
        that the first ids are gone: nobody was following then."""
        assert self.last_id is not None
        missing = identity - self.last_id - 1
        if missing > 0 and self.last_id > 0:
            self._events.append(Gap("gone", count=missing, first=self.last_id + 1, last=identity - 1))
