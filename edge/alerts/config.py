"""The alert part of the line file: when an alert is raised, what is kept, and where it is published."""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from edge.errors import ConfigError

MAX_WINDOW = 1000  # frames; bounds the saved decision state
IPC_PATH_BYTES = 107  # sun_path of a Unix socket, less its closing zero


def check_endpoint(endpoint: str) -> str:
    """Return ``endpoint`` if a socket may be bound there: ``ipc:///absolute/path`` or
    ``tcp://LOOPBACK:PORT``.

    Raises ConfigError: another transport, a relative or too long path, a host that other machines can reach
    (that needs CURVE keys, which this version does not have), or a bad port.
    """
    if endpoint.startswith("ipc://"):
        path = endpoint.removeprefix("ipc://")
        # No abstract names (ipc://@...): they have no owner and no permissions, so any local user could
        # connect.
        if not path.startswith("/") or "\0" in path:
            raise ConfigError(f"{endpoint!r}: an ipc endpoint needs an absolute path, as in ipc:///run/edge/pub")
        if len(path.encode()) > IPC_PATH_BYTES:
            raise ConfigError(f"{endpoint!r}: the path is longer than the {IPC_PATH_BYTES} bytes of a Unix socket")
        return endpoint
    match = re.fullmatch(r"tcp://(?:\[([0-9A-Fa-f:.]+)\]|([^:\[\]/]+)):(\d{1,5})", endpoint)
    if match is None:
        raise ConfigError(f"{endpoint!r}: not an endpoint; write ipc:///absolute/path or tcp://127.0.0.1:PORT")
    host = match.group(1) or match.group(2)
    if not 1 <= int(match.group(3)) <= 65535:
        raise ConfigError(f"{endpoint!r}: the port must be 1 to 65535")
    if not _is_loopback(host):
        raise ConfigError(
            f"{endpoint!r}: other machines could reach this address, which needs CURVE keys, and this"
            " version has none; use tcp://127.0.0.1:PORT or an ipc endpoint"
        )
    return endpoint


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _endpoint_field(endpoint: str) -> str:
    try:
        return check_endpoint(endpoint)
    except ConfigError as error:
        # pydantic gathers ValueErrors, so that all mistakes of a line file come at once.
        raise ValueError(str(error)) from None


Endpoint = Annotated[str, Field(max_length=256), AfterValidator(_endpoint_field)]


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class AlertPolicy(_Settings):
    """When anomalous frames become an alert, and which evidence is kept. One policy a camera."""

    each: Literal["episode", "frame"] = Field(
        "episode",
        description="episode: one alert from the first confirmed frame until the camera is calm again. frame: every"
        " anomalous frame is an alert of its own, for lines where each frame shows another part.",
    )
    n: int = Field(
        default=1, ge=1, le=MAX_WINDOW, description="Anomalous frames needed among the last m inspected ones."
    )
    m: int = Field(
        default=1,
        ge=1,
        le=MAX_WINDOW,
        description="Length of the window in inspected frames; frames not inspected are not in it.",
    )
    clear_after: int = Field(
        default=1, ge=1, le=100_000, description="Normal inspected frames in a row that end an episode."
    )
    release_p: float | None = Field(
        default=None,
        gt=0.0,
        lt=1.0,
        description="A frame counts as normal again only if its p-value is above this; unset: if its verdict"
        " is normal. Set it above the accepted false-alarm rate, so that a score hovering about the threshold"
        " ends no episode.",
    )
    cooldown_s: float = Field(
        default=0.0,
        ge=0.0,
        le=86_400.0,
        description="Seconds after an alert in which this camera raises no other one.",
    )
    repeat_s: float | None = Field(
        default=None,
        ge=1.0,
        le=86_400.0,
        description="Raise again every so many seconds while an episode lasts; unset: never.",
    )
    lapse_s: float = Field(
        default=300.0,
        ge=1.0,
        le=86_400.0,
        description="Seconds without an inspected frame after which the window and an open episode are"
        " forgotten, so that a defect seen after a long stop is a new alert.",
    )
    picture: Literal["always", "alerts", "never"] = Field(
        default="alerts",
        description="Evidence pictures: of every anomalous frame, of frames that raise an alert, or none.",
    )
    overlay: bool = Field(default=True, description="Draw the heat map and the regions into the picture.")
    jpeg_quality: int = Field(default=90, ge=1, le=100, description="JPEG quality of evidence pictures.")

    @model_validator(mode="after")
    def _n_of_m(self) -> AlertPolicy:
        if self.n > self.m:
            raise ValueError(f"n must not be above m (n of m frames). Got n = {self.n}, m = {self.m}")
        if self.each == "frame" and (self.m > 1 or self.clear_after > 1 or self.repeat_s is not None):
            raise ValueError('each = "frame" knows no window and no episode: leave out n, m, clear_after and repeat_s')
        return self


class StoreSettings(_Settings):
    """What is kept on disk. Rows outlive pictures; the oldest go first."""

    path: Path | None = Field(
        default=None, description="Folder of database and pictures; unset: 'alerts' in the state folder."
    )
    max_alerts: int = Field(default=100_000, ge=1, le=10_000_000, description="Alert rows kept.")
    max_days: int | None = Field(
        default=None, ge=1, le=36_500, description="Days a row is kept; unset: max_alerts alone decides."
    )
    max_pictures: int = Field(default=10_000, ge=0, le=1_000_000, description="Evidence pictures kept.")
    max_picture_mb: int = Field(
        default=1024,
        ge=0,
        le=1_000_000,
        description="Disk space of the evidence pictures, in units of 1,000,000 bytes.",
    )

    def folder(self, state_folder: Path) -> Path:
        """The folder of the store, given the daemon's state folder."""
        return self.path if self.path is not None else state_folder / "alerts"


class PublishSettings(_Settings):
    """Where verdicts, alerts and health are published."""

    endpoint: Endpoint | None = Field(
        default=None, description="PUB socket; unset: ipc 'alerts.pub' in the runtime folder."
    )
    replay: Endpoint | None = Field(
        default=None, description="Replay socket (ROUTER); unset: ipc 'alerts.replay' in the runtime folder."
    )
    hwm: int = Field(
        default=1000,
        ge=1,
        le=100_000,
        description="Messages queued for each subscriber; a slower one loses the rest.",
    )

    @model_validator(mode="after")
    def _two_sockets(self) -> PublishSettings:
        if self.endpoint is not None and self.endpoint == self.replay:
            raise ValueError(f"endpoint and replay must differ. Got {self.endpoint!r} for both")
        return self

    def endpoints(self, runtime_folder: Path) -> tuple[str, str]:
        """The PUB and the replay endpoint, given the daemon's runtime folder.

        Raises ConfigError when the folder's path is too long for a Unix socket.
        """
        return (
            self.endpoint or check_endpoint(f"ipc://{runtime_folder / 'alerts.pub'}"),
            self.replay or check_endpoint(f"ipc://{runtime_folder / 'alerts.replay'}"),
        )
