import asyncio
import concurrent.futures
import signal
import threading

import pytest

from raynest_pipeline.images.threads import run_in_thread


class Interrupted(BaseException):
    """As Dagster's DagsterExecutionInterruptedError: no Exception, raised by a signal handler."""


async def answer() -> int:
    return 42


def test_the_value_and_the_error_come_through() -> None:
    async def fail() -> None:
        raise KeyError("inside")

    assert run_in_thread(answer) == 42
    with pytest.raises(KeyError, match="inside"):
        run_in_thread(fail)


def test_it_works_within_a_running_loop() -> None:
    async def outer() -> int:
        return run_in_thread(answer)

    assert asyncio.run(outer()) == 42


def test_on_slice_ends_the_work_and_its_cleanup_runs() -> None:
    cleaned = threading.Event()

    async def forever() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cleaned.set()

    with pytest.raises(concurrent.futures.CancelledError):
        run_in_thread(forever, on_slice=lambda: True)
    assert cleaned.is_set()


def test_an_interruption_by_a_signal_ends_the_work_first() -> None:
    cleaned = threading.Event()
    main = threading.main_thread().ident
    assert main is not None

    async def forever() -> None:
        try:
            signal.pthread_kill(main, signal.SIGUSR1)
            await asyncio.Event().wait()
        finally:
            cleaned.set()

    def interrupt(*_: object) -> None:
        raise Interrupted

    before = signal.signal(signal.SIGUSR1, interrupt)
    try:
        with pytest.raises(Interrupted):
            run_in_thread(forever)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert cleaned.is_set()


def test_an_error_in_on_slice_ends_the_work() -> None:
    cleaned = threading.Event()

    async def forever() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cleaned.set()

    def broken() -> bool:
        raise ValueError("progress")

    with pytest.raises(ValueError, match="progress"):
        run_in_thread(forever, on_slice=broken)
    assert cleaned.is_set()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interruption_that_python_would_ignore_comes_through() -> None:
    class Left:
        def __del__(self) -> None:
            # As a signal handler does when the signal falls into a finalizer.
            raise KeyboardInterrupt

    ended = threading.Event()

    async def work() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()

    def on_slice() -> bool:
        Left()
        return False

    with pytest.raises(KeyboardInterrupt):
        run_in_thread(work, on_slice=on_slice)
    assert ended.is_set()
