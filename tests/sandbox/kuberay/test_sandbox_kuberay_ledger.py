"""Processes are found, recorded and ended by what they are, and no other is touched."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from raynest_pipeline.sandbox.kuberay import ledger

Spawn = Callable[..., subprocess.Popen[bytes]]

# A leader with one child in its own session and one in another, as a Ray job's driver is.
_FAMILY = """
import subprocess, sys
wait = [sys.executable, "-c", "import sys; print(flush=True); sys.stdin.read()"]
pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE)
near = subprocess.Popen(wait, **pipes)
far = subprocess.Popen(wait, start_new_session=True, **pipes)
near.stdout.readline(), far.stdout.readline()
print(near.pid, far.pid, flush=True)
sys.stdin.read()
"""
_ALONE = "import sys; print('up', flush=True); sys.stdin.read()"


@pytest.fixture
def spawn() -> Iterator[Spawn]:
    """Start a Python program as the leader of a session; whatever is left is killed at the end."""
    started: list[subprocess.Popen[bytes]] = []

    def start(code: str, folder: Path | None = None) -> subprocess.Popen[bytes]:
        env = {key: value for key, value in os.environ.items() if key != ledger.MARK}
        if folder is not None:
            env[ledger.MARK] = str(folder)
        process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=env,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if psutil.pid_exists(process.pid):
            for each in [*psutil.Process(process.pid).children(recursive=True)]:
                each.kill()
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                stream.close()


def _family(spawn: Spawn, folder: Path) -> tuple[ledger.Leader, list[int]]:
    leader = spawn(_FAMILY, folder)
    assert leader.stdout is not None
    children = [int(word) for word in leader.stdout.readline().split()]
    return ledger.leader_of(leader.pid, folder, folder), [leader.pid, *children]


def _alive(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def test_all_of_a_pod_is_found_and_ended(spawn: Spawn, tmp_path: Path) -> None:
    leader, pids = _family(spawn, tmp_path / "pod")
    other = spawn(_ALONE)
    assert {each.pid for each in ledger.members([leader])} == set(pids)
    assert ledger.members([leader])[0].pid == leader.pid
    assert set(ledger.end([leader])) == set(pids)
    assert not any(_alive(pid) for pid in pids)
    assert _alive(other.pid)
    assert ledger.members([leader]) == []
    assert ledger.end([leader]) == []


def test_members_of_a_dead_leader_are_found(spawn: Spawn, tmp_path: Path) -> None:
    leader, pids = _family(spawn, tmp_path / "pod")
    process = psutil.Process(leader.pid)
    process.kill()
    process.wait(5)
    left = {each.pid for each in ledger.members([leader])}
    # Those that read from the dead leader's pipe end by themselves: whoever is left is one of ours.
    assert left <= set(pids[1:])
    ledger.end([leader])
    assert not any(_alive(pid) for pid in pids)


def test_number_that_was_given_to_another_is_left_alone(spawn: Spawn, tmp_path: Path) -> None:
    stranger = spawn(_ALONE)
    recorded = ledger.leader_of(stranger.pid, tmp_path, tmp_path)
    former = replace(recorded, create_time=recorded.create_time - 100)
    assert ledger.members([former]) == []
    assert ledger.end([former]) == []
    assert _alive(stranger.pid)


@pytest.mark.skipif(not psutil.LINUX, reason="creation times move with the clock on Linux only")
@pytest.mark.parametrize("seconds", [2, -2])
def test_all_of_a_pod_is_found_though_the_clock_was_set(
    spawn: Spawn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    leader, pids = _family(spawn, tmp_path / "pod")
    unmarked = replace(leader, folder=str(tmp_path / "unmarked"))
    # psutil keeps what it has seen once; its answers from before the clock was set must not count.
    assert {each.pid for each in ledger.members([leader])} == set(pids)
    boot_time, create_time = psutil.boot_time, psutil.Process.create_time
    monkeypatch.setattr(psutil, "boot_time", lambda: boot_time() + seconds)
    monkeypatch.setattr(psutil.Process, "create_time", lambda self: create_time(self) + seconds)
    # The leader is known by its creation time alone where the mark says nothing.
    assert [each.pid for each in ledger.members([unmarked])] == [leader.pid]
    assert set(ledger.end([leader])) == set(pids)


def test_another_sandbox_is_left_alone(spawn: Spawn, tmp_path: Path) -> None:
    mine, pids = _family(spawn, tmp_path / "one" / "pods" / "a")
    theirs, others = _family(spawn, tmp_path / "two" / "pods" / "b")
    assert set(ledger.end_marked([], tmp_path / "one")) == set(pids)
    assert not any(_alive(pid) for pid in pids)
    assert all(_alive(pid) for pid in others)
    assert {each.pid for each in ledger.members([mine, theirs])} == set(others)


def test_orphan_that_was_never_recorded_is_ended_by_its_mark(spawn: Spawn, tmp_path: Path) -> None:
    _, pids = _family(spawn, tmp_path / "kuberay" / "pods" / "x")
    neighbour = spawn(_ALONE, tmp_path / "kuberay-two" / "pods" / "x")
    assert neighbour.stdout is not None
    neighbour.stdout.readline()
    assert set(ledger.end_marked([], tmp_path / "kuberay")) == set(pids)
    assert _alive(neighbour.pid)


def test_record_survives(tmp_path: Path) -> None:
    path = tmp_path / "pods.json"
    assert ledger.Ledger(path).load() == []
    book = ledger.Ledger(path)
    one, two = (ledger.Leader(pid, 1.5, "/f", "/t") for pid in (1, 2))
    book.add(one)
    book.add(two)
    book.remove(one)
    assert ledger.Ledger(path).load() == [two]
    assert path.stat().st_mode & 0o777 == 0o600
    book.remove(one)
    book.clear()
    assert ledger.Ledger(path).load() == []


def test_nothing_to_end() -> None:
    nobody: list[Any] = []
    assert ledger.members(nobody) == []
    assert ledger.end(nobody) == []
