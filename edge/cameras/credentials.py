"""Keeping user names, passwords and tokens out of every message.

FFmpeg quotes the whole URL in its errors, so whatever text comes from a decoder passes through here first.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from edge.errors import CameraConfigError

HIDDEN = "***"

# Everything before the last "@" of an authority: FFmpeg, too, takes the last one.
_USERINFO = re.compile(r"([a-z][a-z0-9+.\-]*://)[^/\s'\"]*@", re.IGNORECASE)
# Many cameras take the password in the path or the query: /user=admin&password=x, ?usr=admin&pwd=x.
# The quoted forms are keys and values of a printed mapping.
_SECRET_PAIR = re.compile(
    r"((?:pass(?:word|wd|phrase)?|pwd|token|secret|auth|key|signature|sig)(?:=|['\"]\s*:\s*['\"]))[^&\s'\"/;]*",
    re.IGNORECASE,
)
MAX_PASSWORD_BYTES = 4096


def scrub(text: str, *secrets: str) -> str:
    """Remove user information from every URL in ``text``, the value of every ``password=`` and the like, and each
    of ``secrets`` wherever it stands (as it is, percent-encoded, and percent-decoded)."""
    forms = {form for s in secrets if s for form in (s, quote(s, safe=""), quote(s), unquote(s))}
    for form in sorted(forms, key=len, reverse=True):
        text = text.replace(form, HIDDEN)
    text = _USERINFO.sub(rf"\1{HIDDEN}@", text)
    return _SECRET_PAIR.sub(rf"\1{HIDDEN}", text)


def public_url(url: str) -> str:
    """The URL without user information, query and fragment: enough to find the camera, nothing to log in with."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return scrub(f"{parts.scheme}://{host}{parts.path}") + ("?..." if parts.query else "")


def secrets_of(url: str) -> tuple[str, ...]:
    """All parts of a URL that must never be shown: the password and the query."""
    parts = urlsplit(url)
    userinfo, at, _ = parts.netloc.rpartition("@")
    password = userinfo.partition(":")[2] if at else ""
    return tuple(s for s in (password, parts.query) if s)


def url_with_password(url: str, password_file: Path | None) -> str:
    """The URL to open: ``url`` itself, or with the password that is the first line of ``password_file``.

    Environment variables in the file's path are expanded, so that systemd's ``$CREDENTIALS_DIRECTORY`` works.
    Raises CameraConfigError when the file cannot be read, is empty, or is no text.
    """
    if password_file is None:
        return url
    path = Path(os.path.expandvars(password_file)).expanduser()
    try:
        with path.open("rb") as file:
            data = file.read(MAX_PASSWORD_BYTES + 1)
    except OSError as error:
        raise CameraConfigError(f"password_file {path}: cannot be read ({error.strerror})") from None
    lines = data.splitlines()
    if len(data) > MAX_PASSWORD_BYTES or not lines or not lines[0]:
        raise CameraConfigError(f"password_file {path}: the first line must hold the password, and nothing else")
    # Quoted as bytes: whatever the password is made of reaches the camera as it stands in the file.
    parts = urlsplit(url)
    user, _, host = parts.netloc.rpartition("@")
    return parts._replace(netloc=f"{user}:{quote(lines[0], safe='')}@{host}").geturl()
