"""Asynchronous work in a thread of its own, so that the calling thread stays interruptible.

Dagster interrupts a run by raising a BaseException from a signal handler in the main thread. Raised
inside an event loop's callback it would be swallowed by the loop; here the main thread only waits.
"""

import asyncio
import concurrent.futures
import threading
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

from raynest_pipeline.images.interrupts import kept_interruptions

T = TypeVar("T")

SLICE_SECONDS = 0.2
"""How often the waiting thread looks up."""
CANCEL_SECONDS = 10.0
"""How long cancelled work may take to end before the caller goes on without it."""


def run_in_thread(
    work: Callable[[], Coroutine[Any, Any, T]], *, on_slice: Callable[[], bool] | None = None
) -> T:
    """Run `work()` on an event loop in another thread, and return what it returns.

    Args:
        work: Makes the coroutine.
        on_slice: Called in this thread about five times a second; True cancels the work.

    Raises:
        concurrent.futures.CancelledError: `on_slice` asked for it.
        BaseException: What the work raised, or what interrupted this thread: then the work has been
            cancelled, and has ended, before this function lets the interruption through.
    """
    worker = _Worker(work)
    try:
        with kept_interruptions() as raise_kept:
            worker.thread.start()
            while not worker.ended(SLICE_SECONDS):
                raise_kept()
                if on_slice is not None and on_slice():
                    worker.cancel()
                    worker.ended(CANCEL_SECONDS)
                    break
        return worker.outcome.result(timeout=0)
    finally:
        # Also the way out of an interruption, wherever in the lines above it landed.
        if worker.thread.ident is not None and not worker.outcome.done():
            worker.cancel()
            worker.ended(CANCEL_SECONDS)


class _Worker(Generic[T]):
    def __init__(self, work: Callable[[], Coroutine[Any, Any, T]]) -> None:
        self.outcome: concurrent.futures.Future[T] = concurrent.futures.Future()
        self.thread = threading.Thread(target=self._body, name="raynest-images", daemon=True)
        self._work = work
        self._begun = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[Any] | None = None

    def ended(self, seconds: float) -> bool:
        """Wait up to `seconds` for the end of the work."""
        return bool(concurrent.futures.wait([self.outcome], timeout=seconds).done)

    def cancel(self) -> None:
        """Ask the work to end; it may have ended by itself."""
        self._begun.wait()
        if self._loop is None or self._task is None:
            return
        try:
            self._loop.call_soon_threadsafe(self._task.cancel)
        except RuntimeError:
            # The loop has closed: the work is over.
            return

    def _body(self) -> None:
        try:
            value = asyncio.run(self._main())
        except asyncio.CancelledError:
            self.outcome.set_exception(concurrent.futures.CancelledError())
        except BaseException as error:  # noqa: B036 - handed to the waiting thread, which raises it
            self.outcome.set_exception(error)
        else:
            self.outcome.set_result(value)
        finally:
            self._begun.set()

    async def _main(self) -> T:
        self._loop, self._task = asyncio.get_running_loop(), asyncio.current_task()
        self._begun.set()
        return await self._work()
