"""Progress of long work: to the run's log, and to whoever listens in this process (the command line)."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from raynest_pipeline.chain.link import OnStep, Step

_listeners: list[Callable[[Any], None]] = []


@contextlib.contextmanager
def listening(listener: Callable[[Any], None]) -> Iterator[None]:
    """Let `listener` hear of every step and every finished link while the context lasts."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


def tell(event: Any) -> None:
    """Tell the listeners."""
    for listener in list(_listeners):
        listener(event)


def log_steps(log: Any) -> OnStep:
    """An `on_step` that writes each new message to a Dagster log once, and tells the listeners."""
    last = ""

    def on_step(step: Step) -> None:
        nonlocal last
        tell(step)
        if step.message != last:
            last = step.message
            log.info(f"{step.link}: {step.message}")

    return on_step
