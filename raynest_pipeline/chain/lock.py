"""One writer at a time: two runs that both `ensure` would buy twice."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from raynest_pipeline.errors import NotReadyError
from raynest_pipeline.files import private_dir
from raynest_pipeline.waiting import Clock, Deadline, Done, Waiting, wait_for


@contextlib.contextmanager
def chain_lock(path: Path, clock: Clock, *, wait_seconds: float = 5.0) -> Iterator[None]:
    """Hold the chain's lock; the system gives it back when the process ends, however it ends.

    Raises:
        NotReadyError: Another process holds it; names its pid.
    """
    private_dir(path.parent)
    with open(path, "a+", encoding="utf-8") as stream:

        def probe() -> Done[None] | Waiting:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                stream.seek(0)
                return Waiting(f"process {stream.read().strip() or '?'} is changing the chain")
            return Done(None)

        try:
            wait_for(probe, what="The chain's lock", deadline=Deadline.after(wait_seconds, clock))
        except NotReadyError as error:
            raise NotReadyError(
                "Another raynest run is at work on this chain.",
                why=error.why,
                fix="Wait until it has finished, or cancel it in the Dagster UI.",
            ) from None
        stream.seek(0)
        stream.truncate()
        stream.write(str(os.getpid()))
        stream.flush()
        yield
