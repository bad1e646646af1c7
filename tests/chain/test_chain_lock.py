"""One writer at a time, between processes; the lock of a killed one is free."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from chain_world import World

from raynest_pipeline.chain.lock import chain_lock
from raynest_pipeline.errors import NotReadyError

HOLDER = """
import sys
from pathlib import Path
from raynest_pipeline.chain.lock import chain_lock
from raynest_pipeline.waiting import SystemClock
with chain_lock(Path(sys.argv[1]), SystemClock()):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def held_by_another_process(path: Path) -> Iterator[subprocess.Popen[str]]:
    root = Path(__file__).parents[2]
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    try:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def test_another_process_is_named_and_waited_for(tmp_path: Path, world: World) -> None:
    path = tmp_path / "state" / "chain.lock"
    with held_by_another_process(path) as process:
        with (
            pytest.raises(NotReadyError, match="Another raynest run") as caught,
            chain_lock(path, world.clock),
        ):
            raise AssertionError("two writers at a time")
        assert f"process {process.pid} " in caught.value.why
        assert world.clock.seconds == pytest.approx(5)
        process.send_signal(signal.SIGKILL)
        process.wait()
        with chain_lock(path, world.clock):
            assert path.read_text() == str(os.getpid())


def test_is_free_after_an_error_inside(tmp_path: Path, world: World) -> None:
    path = tmp_path / "chain.lock"
    with pytest.raises(KeyError), chain_lock(path, world.clock):
        raise KeyError("inside")
    with chain_lock(path, world.clock):
        assert world.clock.seconds == 0


def test_excludes_within_one_process_too(tmp_path: Path, world: World) -> None:
    path = tmp_path / "chain.lock"
    with chain_lock(path, world.clock):
        with pytest.raises(NotReadyError), chain_lock(path, world.clock, wait_seconds=0):
            raise AssertionError("two writers at a time")
        assert path.read_text() == str(os.getpid()), "who asked in vain did not write itself down"


def test_a_holder_that_ends_in_time_is_waited_for(tmp_path: Path, world: World) -> None:
    path = tmp_path / "chain.lock"
    outer = chain_lock(path, world.clock)
    outer.__enter__()
    real = world.clock.sleep

    def sleep(seconds: float) -> None:
        real(seconds)
        if world.clock.seconds > 2:
            outer.__exit__(None, None, None)

    world.clock.sleep = sleep  # type: ignore[method-assign]
    with chain_lock(path, world.clock):
        assert 2 < world.clock.seconds <= 5


def test_a_pid_file_with_rubbish_does_not_matter(tmp_path: Path, world: World) -> None:
    path = tmp_path / "chain.lock"
    path.write_text("a longer text than any pid")
    with chain_lock(path, world.clock):
        assert path.read_text() == str(os.getpid())
