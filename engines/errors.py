"""The one error of this package."""

from __future__ import annotations


class EngineError(Exception):
    """A backbone cannot be exported, fetched, opened or run as asked.

    The message is one line that names the thing and the remedy, fit to be shown without a traceback.
    """


def brief(error: BaseException, limit: int = 200) -> str:
    """The first telling line of a runtime's message, bounded: theirs span pages and carry source
    positions."""
    skip = ("exception from", "check '", "while validating", "error from")
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if not line.lower().startswith(skip)] or lines
    text = telling[0] if telling else type(error).__name__
    return text if len(text) <= limit else text[: limit - 3] + "..."
