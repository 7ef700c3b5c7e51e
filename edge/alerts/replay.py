"""What a subscriber asks the replay socket, and what it is answered. Pure; the sockets are elsewhere.

Request ``{v, since, limit}``: the alerts with an id above ``since``, oldest first, at most ``limit``.
Answer ``{v, since, alerts, more, oldest, latest}`` or ``{v, error}``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from edge.alerts.messages import (
    MAX_ID,
    VERSION,
    Alert,
    MessageError,
    check_version,
    pack,
    unpack,
    validate,
)

MAX_REQUEST_BYTES = 1024
MAX_LIMIT = 500
MAX_REPLY_BYTES = 1_048_576


class Outbox(Protocol):
    """What the replay needs of a store."""

    def since(self, last: int, limit: int) -> list[Alert]: ...

    def oldest_id(self) -> int: ...

    def latest_id(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Request:
    """``limit`` 0 asks for ``oldest`` and ``latest`` alone."""

    since: int
    limit: int = MAX_LIMIT

    def pack(self) -> bytes:
        return pack({"v": VERSION, "since": self.since, "limit": self.limit})


@dataclass(frozen=True, slots=True)
class Reply:
    """``since``: as asked. ``more``: ask again with the last id of ``alerts``. ``oldest``: the lowest id
    still stored (0: none); ``latest``: the highest id ever given (0: none)."""

    since: int
    alerts: tuple[Alert, ...]
    more: bool
    oldest: int
    latest: int


def answer(outbox: Outbox, data: bytes) -> bytes:
    """The packed answer to a request from outside; a malformed request is answered with an error map."""
    try:
        body = unpack(data, MAX_REQUEST_BYTES)
        check_version(body)
        since = _integer(body, "since", 0, MAX_ID)
        limit = _integer(body, "limit", 0, MAX_LIMIT, default=MAX_LIMIT)
    except MessageError as error:
        return pack({"v": VERSION, "error": str(error)[:500]})
    # Asked first: an alert that is stored in between is then reported as more to come, never passed over.
    oldest, latest = outbox.oldest_id(), outbox.latest_id()
    alerts: list[dict[str, Any]] = []
    room = MAX_REPLY_BYTES - 256
    for alert in outbox.since(since, limit) if limit else ():
        item = alert.to_map()
        room -= len(pack(item))
        if room < 0:
            break
        alerts.append(item)
    last = alerts[-1]["id"] if alerts else 0
    reply = {
        "v": VERSION,
        "since": since,
        "alerts": alerts,
        "more": 0 < last < latest,
        "oldest": oldest,
        "latest": max(latest, last),
    }
    return pack(reply, MAX_REPLY_BYTES)


def parse_reply(data: bytes) -> Reply:
    """Raises MessageError for an error answer, and for bytes that are none."""
    body = unpack(data, MAX_REPLY_BYTES)
    check_version(body)
    if "error" in body:
        raise MessageError(f"the daemon refused the replay request: {str(body['error'])[:500]}")
    items, more = body.get("alerts"), body.get("more")
    if not isinstance(items, tuple) or len(items) > MAX_LIMIT or not isinstance(more, bool):
        raise MessageError("a replay answer without its alerts")
    alerts = []
    for item in items:
        if not isinstance(item, dict):
            raise MessageError("a replay answer whose alert is not a map")
        check_version(item)
        alert = validate(Alert, item)
        assert isinstance(alert, Alert)
        alerts.append(alert)
    return Reply(
        _integer(body, "since", 0, MAX_ID),
        tuple(alerts),
        more,
        _integer(body, "oldest", 0, MAX_ID),
        _integer(body, "latest", 0, MAX_ID),
    )


def _integer(body: Mapping[str, Any], key: str, low: int, high: int, default: int | None = None) -> int:
    value = body.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise MessageError(f"replay: {key} must be an integer from {low} to {high}. Got {str(value)[:40]!r}")
    return value
