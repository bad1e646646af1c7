"""Ray's messages, made readable: tracebacks with colours come in, the one line that says it goes out."""

import re

_ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_LIMIT = 300


def plain(message: str) -> str:
    """`message` without terminal colours."""
    return _ANSI.sub("", message)


def last_line(message: str) -> str:
    """The last line that says something, at most 300 characters: of a traceback, the error itself."""
    lines = [line.strip() for line in plain(message).splitlines()]
    said = [line for line in lines if line]
    if not said:
        return ""
    line = said[-1]
    return line if len(line) <= _LIMIT else line[: _LIMIT - 1] + "…"


def tail(message: str, lines: int) -> list[str]:
    """The last non-empty lines."""
    said = [line.rstrip() for line in plain(message).splitlines() if line.strip()]
    return [line[:_LIMIT] for line in said[-lines:]]
