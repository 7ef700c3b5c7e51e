"""Errors a person can act on, and the exit codes that tell a service manager what to do.

Every error says in one line what is wrong with what, and the remedy. The exit code is a contract: the systemd
unit restarts a crashed daemon (``CRASHED``), but never one that cannot start (``RestartPreventExitStatus``).
"""

from __future__ import annotations

from enum import IntEnum


class Exit(IntEnum):
    """Exit codes of every ``edge`` command and of every stage process."""

    OK = 0
    CRASHED = 1  # a fault of ours: worth a restart
    USAGE = 2  # the command line itself is wrong
    BAD_CONFIG = 3  # the line file is wrong
    BAD_BUNDLE = 4  # a bundle is damaged, newer, or does not fit
    BAD_DATA = 5  # pictures are missing or unusable
    NO_RESOURCE = 6  # disk full, no permission, port in use, memory
    ALREADY_RUNNING = 7  # another daemon holds the same runtime folder
    NO_CAMERA = 8  # the camera is configured in a way that can never work
    GAVE_UP = 9  # a stage crashed again and again
    INTERRUPTED = 130


class EdgeError(Exception):
    """Base of all errors that are shown to a person as one line, without a traceback."""

    exit_code: Exit = Exit.CRASHED


class ConfigError(EdgeError):
    """The line file (or an option) is wrong. The message holds all mistakes, one a line."""

    exit_code = Exit.BAD_CONFIG


class BundleError(EdgeError):
    """A bundle is missing, damaged, cut short, edited, newer, or does not fit this use."""

    exit_code = Exit.BAD_BUNDLE


class DataError(EdgeError):
    """Pictures, masks or a data set's layout are missing or unusable."""

    exit_code = Exit.BAD_DATA


class PictureError(DataError):
    """One picture cannot be read: missing, empty, damaged, or too large."""


class ResourceError(EdgeError):
    """The machine refuses: disk full, no permission, port in use, not enough memory."""

    exit_code = Exit.NO_RESOURCE


class AlreadyRunning(ResourceError):
    """Another daemon holds the runtime folder."""

    exit_code = Exit.ALREADY_RUNNING


class CameraError(EdgeError):
    """A camera is lost or not reachable now; worth another try."""

    exit_code = Exit.CRASHED


class CameraConfigError(CameraError):
    """A camera can never work as configured."""

    exit_code = Exit.NO_CAMERA


class EndOfStream(Exception):
    """A finite source (folder once, video file, bounded synthetic line) has no more frames. Not a fault."""


class HeadError(EdgeError):
    """A head refuses its input (NaN, wrong shape) or its arrays do not fit its method."""

    exit_code = Exit.BAD_BUNDLE


class GaveUp(EdgeError):
    """A stage crashed too often in a row; the daemon stops aloud."""

    exit_code = Exit.GAVE_UP
