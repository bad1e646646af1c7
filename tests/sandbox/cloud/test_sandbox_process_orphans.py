"""Which processes are the sandbox's own: the recorded, the marked, and never another."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from raynest_pipeline.sandbox import orphans
from raynest_pipeline.sandbox.state import PROCESSES_FILE, read_json

Spawn = Callable[..., subprocess.Popen[str]]

WAIT = "import signal, sys; print('up', flush=True); signal.pause()"
STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN);" + WAIT


@pytest.fixture
def spawn() -> Iterator[Spawn]:
    """Starts real processes that wait until they are ended."""
    started: list[subprocess.Popen[str]] = []

    def run(code: str = WAIT, **env: str) -> subprocess.Popen[str]:
        child = subprocess.Popen(
            [sys.executable, "-c", code], env={**os.environ, **env}, stdout=subprocess.PIPE, text=True
        )
        started.append(child)
        assert child.stdout is not None and child.stdout.readline() == "up\n"
        return child

    yield run
    for child in started:
        child.kill()
        child.communicate()


def test_the_mark_of_a_folder_is_made_once(tmp_path: Path) -> None:
    mark = orphans.mark_of(tmp_path)
    assert orphans.mark_of(tmp_path) == mark
    assert orphans.mark_of(tmp_path / "other") != mark


def test_a_live_process_is_described(spawn: Spawn) -> None:
    child = spawn()
    entry = orphans.describe(child.pid)
    assert entry is not None
    assert entry["create_time"] == orphans.start_of(child.pid)
    assert orphans.is_alive(child.pid, entry["create_time"])
    assert not orphans.is_alive(child.pid, entry["create_time"] - 1)


def test_an_ended_process_is_not_alive_even_before_it_is_reaped(spawn: Spawn) -> None:
    child = spawn()
    created = orphans.start_of(child.pid)
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert orphans.describe(child.pid) is None
    assert not orphans.is_alive(child.pid, created)
    assert not orphans.end(child.pid, created, signal.SIGTERM)


def test_a_signal_goes_only_to_the_process_of_that_time(spawn: Spawn) -> None:
    child = spawn()
    created = orphans.start_of(child.pid)
    assert not orphans.end(child.pid, created + 5, signal.SIGKILL)
    assert child.poll() is None
    assert orphans.end(child.pid, created, signal.SIGKILL)
    assert child.wait(10) == -signal.SIGKILL


def test_a_sweep_ends_recorded_and_marked_ones_and_no_others(spawn: Spawn, tmp_path: Path) -> None:
    recorded, bystander = spawn(), spawn()
    marked = spawn(**{orphans.MARK_VARIABLE: orphans.mark_of(tmp_path)})
    other = spawn(**{orphans.MARK_VARIABLE: orphans.mark_of(tmp_path / "other")})
    orphans.record(tmp_path, orphans.describe_all([recorded.pid]))
    assert orphans.sweep(tmp_path) == sorted([recorded.pid, marked.pid])
    # The sweep has reaped them: a Popen of an ended child of ours can't tell its status any more.
    assert orphans.describe_all([recorded.pid, marked.pid]) == []
    assert bystander.poll() is None
    assert other.poll() is None
    assert orphans.sweep(tmp_path) == []


def test_a_recorded_id_that_went_to_another_process_is_spared(spawn: Spawn, tmp_path: Path) -> None:
    child = spawn()
    (entry,) = orphans.describe_all([child.pid])
    orphans.record(tmp_path, [{**entry, "create_time": entry["create_time"] - 100}])
    assert orphans.sweep(tmp_path) == []
    assert child.poll() is None


def step_clock(patch: pytest.MonkeyPatch, seconds: float) -> None:
    """Set the clock by so many seconds, as psutil sees it: boot time and creation times move together."""
    boot_time, create_time = psutil.boot_time, psutil.Process.create_time
    patch.setattr(psutil, "boot_time", lambda: boot_time() + seconds)
    patch.setattr(psutil.Process, "create_time", lambda self: create_time(self) + seconds)


@pytest.mark.skipif(not psutil.LINUX, reason="creation times move with the clock on Linux only")
@pytest.mark.parametrize("seconds", [2, -2])
def test_a_process_stays_itself_when_the_clock_is_set(
    spawn: Spawn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    child = spawn()
    entries = orphans.describe_all([child.pid])
    (entry,) = entries
    orphans.record(tmp_path, entries)
    step_clock(monkeypatch, seconds)
    assert orphans.is_alive(child.pid, entry["create_time"])
    assert orphans.describe_all([child.pid]) == entries
    assert not orphans.is_alive(child.pid, entry["create_time"] + seconds)
    assert orphans.sweep(tmp_path) == [child.pid]


@pytest.mark.skipif(not psutil.LINUX, reason="creation times move with the clock on Linux only")
def test_a_clock_that_is_set_between_the_readings_is_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    before = orphans.start_of(os.getpid())
    boot, create_time = psutil.boot_time(), psutil.Process.create_time
    readings = iter([boot - 2, boot, boot, boot])
    monkeypatch.setattr(psutil, "boot_time", lambda: next(readings))
    monkeypatch.setattr(psutil.Process, "create_time", lambda self: create_time(self))
    assert orphans.start_of(os.getpid()) == before
    assert next(readings, None) is None


def test_the_start_of_a_process_that_is_gone_is_an_error(spawn: Spawn) -> None:
    child = spawn()
    child.kill()
    child.wait(10)
    with pytest.raises(psutil.NoSuchProcess):
        orphans.start_of(child.pid)


def test_one_that_ignores_requests_to_end_is_killed(spawn: Spawn, tmp_path: Path) -> None:
    child = spawn(STUBBORN)
    orphans.record(tmp_path, orphans.describe_all([child.pid]))
    assert orphans.sweep(tmp_path) == [child.pid]
    assert orphans.describe(child.pid) is None


def test_this_process_and_those_above_it_are_never_swept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spawn: Spawn
) -> None:
    mark = orphans.mark_of(tmp_path)
    code = (
        "import os, sys; from raynest_pipeline.sandbox import orphans;"
        f"print(any(p.pid == os.getpid() for p in orphans.marked({mark!r})))"
    )
    env = {**os.environ, orphans.MARK_VARIABLE: mark}
    root = Path(orphans.__file__).parents[2]
    result = subprocess.run([sys.executable, "-c", code], env=env, cwd=root, capture_output=True, text=True)
    assert result.stdout == "False\n", result.stderr


def test_a_folder_without_records_has_nothing_to_sweep(tmp_path: Path) -> None:
    assert orphans.sweep(tmp_path) == []
    assert not (tmp_path / PROCESSES_FILE).exists()


def test_ended_processes_drop_out_of_the_record(spawn: Spawn, tmp_path: Path) -> None:
    child = spawn()
    child.kill()
    child.wait(10)
    orphans.record(tmp_path, orphans.describe_all([child.pid, os.getpid()]))
    assert [each["pid"] for each in read_json(tmp_path / PROCESSES_FILE)["processes"]] == [os.getpid()]
