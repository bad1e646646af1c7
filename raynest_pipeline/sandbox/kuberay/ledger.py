"""The processes of the pods: found by session, recorded on disk, ended by id, and never anything else.

Each pod's Ray runs in its own session, whose leader's id and creation time are on record. Some of Ray's
helpers overwrite their environment and some job drivers open a session of their own, so a pod's processes
are: the members of its session, and whatever carries its mark in the environment (inherited by all).
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import psutil

from raynest_pipeline.sandbox.orphans import start_of
from raynest_pipeline.sandbox.state import read_json, write_json

#: In the environment of everything that a pod starts: its folder.
MARK = "RAYNEST_SANDBOX_POD"
_SAME_TIME_S = 0.05
_KILL_ROUNDS = 20


@dataclass(frozen=True)
class Leader:
    """The first process of a pod's session. `create_time`: as `start_of`; `folder`: the pod's, its mark."""

    pid: int
    create_time: float
    folder: str
    temp_dir: str


class Ledger:
    """The leaders on record in one file; written before a pod counts as started."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._leaders: dict[int, Leader] = {}

    def load(self) -> list[Leader]:
        """The leaders that a former run left on record."""
        return [Leader(**entry) for entry in read_json(self._path) or ()]

    def add(self, leader: Leader) -> None:
        self._leaders[leader.pid] = leader
        self._save()

    def remove(self, leader: Leader) -> None:
        if self._leaders.pop(leader.pid, None) is not None:
            self._save()

    def clear(self) -> None:
        self._leaders.clear()
        self._save()

    def _save(self) -> None:
        write_json(self._path, [vars(leader) for leader in self._leaders.values()])


def leader_of(pid: int, folder: Path, temp_dir: Path) -> Leader:
    """The record of a process that was just started as the leader of its own session."""
    return Leader(pid, start_of(pid), str(folder), str(temp_dir))


def members(leaders: Iterable[Leader]) -> list[psutil.Process]:
    """All live processes of these pods, leaders first."""
    sessions = {leader.pid: leader for leader in leaders}
    folders = {leader.folder for leader in sessions.values()}
    own = os.getsid(0)
    found: list[psutil.Process] = []
    for process in psutil.process_iter():
        try:
            if process.status() == psutil.STATUS_ZOMBIE:
                continue
            session = os.getsid(process.pid)
            leader = sessions.get(session) if session != own else None
            if (leader and _belongs(process, leader)) or (folders and _mark(process) in folders):
                found.append(process)
        except (psutil.Error, OSError):
            # It ended while we looked, or it is another user's: neither is ours.
            continue
    return sorted(found, key=lambda process: (process.pid not in sessions, process.pid))


def _belongs(process: psutil.Process, leader: Leader) -> bool:
    """Whether a member of a session with the leader's number is of the leader's own session.

    A session id stays taken while it has members, so that only a new leader with another creation time, or
    members older than the leader on record, can mean that the number was given to somebody else.
    """
    created = start_of(process.pid)
    if process.pid == leader.pid:
        return abs(created - leader.create_time) < _SAME_TIME_S
    try:
        other = start_of(leader.pid)
        if abs(other - leader.create_time) >= _SAME_TIME_S:
            return False
    except psutil.NoSuchProcess:
        pass
    mark = _mark(process)
    return created >= leader.create_time - _SAME_TIME_S and mark in (None, leader.folder)


def _mark(process: psutil.Process) -> str | None:
    try:
        return process.environ().get(MARK)
    except (psutil.Error, OSError):
        return None


def end(leaders: Iterable[Leader]) -> list[int]:
    """Kill all processes of these pods; the ids of what was there. Blocks until they are gone.

    There is no grace: Ray would drain a node for 30 s at a SIGTERM, and nothing of it is to be kept.
    """
    wanted = list(leaders)
    return _kill(lambda: members(wanted))


def end_marked(leaders: Iterable[Leader], directory: Path) -> list[int]:
    """As `end`, and whatever else carries the mark of a pod whose folder lies in this directory.

    For what a sandbox started in the moment before it was killed itself, too late for the record.
    """
    wanted = list(leaders)
    root = str(directory) + os.sep

    def there() -> list[psutil.Process]:
        found = {process.pid: process for process in members(wanted)}
        for process in psutil.process_iter():
            if (_mark(process) or "").startswith(root) and process.pid != os.getpid():
                found.setdefault(process.pid, process)
        return list(found.values())

    return _kill(there)


def _kill(there: Callable[[], list[psutil.Process]]) -> list[int]:
    found = there()
    pids = [process.pid for process in found]
    # Killing one may let another start a last child: look again until nothing is left. The bound is for a
    # process that the kernel itself holds on to.
    for _ in range(_KILL_ROUNDS):
        if not found:
            break
        for process in found:
            _send(process, signal.SIGKILL)
        psutil.wait_procs(found, timeout=0.5)
        found = there()
    return pids


def _send(process: psutil.Process, number: signal.Signals) -> None:
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        return
