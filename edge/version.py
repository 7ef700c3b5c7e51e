"""The version of the distribution, read from its metadata."""

from __future__ import annotations

from importlib import metadata

try:
    VERSION = metadata.version("edge-inspect")
except metadata.PackageNotFoundError:  # run from a source tree that was never installed
    VERSION = "0+unknown"
