"""Interruptions that Python would lose.

Ctrl-C and a cancelled run reach this thread as an exception between any two instructions. Where that is in
the callback of a weak reference or in a `__del__`, Python prints "Exception ignored" and goes on: the user
has cancelled, and the job would run to its end.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def kept_interruptions() -> Iterator[Callable[[], None]]:
    """While it lasts, an interruption that Python ignores is kept; the yielded function raises it."""
    kept: list[BaseException] = []
    before = sys.unraisablehook

    def hook(unraisable: "sys.UnraisableHookArgs") -> None:
        error = unraisable.exc_value
        if error is None or isinstance(error, (Exception, GeneratorExit)):
            before(unraisable)
        else:
            kept.append(error)

    def raise_kept() -> None:
        if kept:
            raise kept.pop()

    sys.unraisablehook = hook
    try:
        yield raise_kept
    finally:
        sys.unraisablehook = before
