"""Find and end the processes that a sandbox started, and never any other.

A process is the sandbox's when its id AND creation time (see `start_of`) are those that were recorded, or
when the mark of this state folder is in its environment: the sandbox is started with the mark, and every
process that it starts inherits it, so that one started a moment before a kill -9 is found too.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import psutil

from raynest_pipeline.sandbox.state import PROCESSES_FILE, read_json, write_json

#: The environment variable that marks the processes of a sandbox.
MARK_VARIABLE = "RAYNEST_SANDBOX_MARK"
# Creation times are rounded differently by different readers of the same process table.
_SAME_TIME_S = 0.05
# The bound is for a process that the kernel itself holds on to.
_ROUNDS = 20
_ROUND_S = 0.5


def start_of(pid: int) -> float:
    """When a process was created, in seconds; whether the clock is set meanwhile makes no difference.

    Since the machine was booted on Linux, where psutil's create_time() is the kernel's ticks since boot plus
    the boot time, which moves whenever the clock is set (time service, a resumed machine). Since 1970
    elsewhere. Only for comparing with another answer of this function. Raises psutil.Error when it is gone.
    """
    if not psutil.LINUX:
        # psutil 7.1 and later shift create_time() on a Mac by how far the clock was set since psutil was
        # imported, which differs from observer to observer; its identity holds what the kernel recorded.
        process = psutil.Process(pid)
        recorded: float | None = getattr(process, "_ident", (pid, None))[1]
        return process.create_time() if recorded is None else recorded
    while True:
        boot = psutil.boot_time()
        # A Process remembers its first answer, and with it the boot time of that moment: ask a new one.
        since_boot = psutil.Process(pid).create_time() - boot
        # The clock may be set between the two readings.
        if psutil.boot_time() == boot:
            return since_boot


def mark_of(state_dir: Path) -> str:
    """The mark of a state folder's processes, made when it is first asked for."""
    path = state_dir / PROCESSES_FILE
    saved = read_json(path)
    if saved is None:
        saved = {"mark": os.urandom(16).hex(), "processes": []}
        write_json(path, saved)
    return str(saved["mark"])


def record(state_dir: Path, processes: list[dict[str, Any]]) -> None:
    """Remember these processes, as `describe_all` gives them, in place of those before."""
    write_json(state_dir / PROCESSES_FILE, {"mark": mark_of(state_dir), "processes": processes})


def describe_all(pids: Iterable[int]) -> list[dict[str, Any]]:
    """The live ones of these processes, by id."""
    return [entry for pid in sorted(set(pids)) if (entry := describe(pid)) is not None]


def describe(pid: int) -> dict[str, Any] | None:
    """pid, create_time (as `start_of`) and name of a live process, or None."""
    process = _find(pid)
    try:
        if process is None:
            return None
        return {"pid": pid, "create_time": start_of(pid), "name": process.name()}
    except psutil.Error:
        return None


def is_alive(pid: int, create_time: float) -> bool:
    """Whether the process that was created at that time (of `start_of`) is still running under this id."""
    return _find(pid, create_time) is not None


def end(pid: int, create_time: float, number: signal.Signals) -> bool:
    """Send a signal to exactly this process; False when it is gone or the id belongs to another by now."""
    process = _find(pid, create_time)
    _signal([process] if process else [], number)
    return process is not None


def marked(mark: str) -> list[psutil.Process]:
    """The live processes of this user that carry the mark, except this one and those above it."""
    own = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    found: list[psutil.Process] = []
    for process in psutil.process_iter():
        try:
            if process.pid in own or process.status() == psutil.STATUS_ZOMBIE:
                continue
            if process.environ().get(MARK_VARIABLE) == mark:
                found.append(process)
        except (psutil.Error, OSError):
            # Other users' processes, and those that end while we look, are not ours to judge.
            continue
    return found


def sweep(state_dir: Path) -> list[int]:
    """Kill every process that a sandbox of this state folder left behind; the ids of those there were.

    There is no grace: nothing of them is to be kept, and Ray would take half a minute over a SIGTERM.
    """
    saved = read_json(state_dir / PROCESSES_FILE)
    if saved is None:
        return []
    ended: set[int] = set()
    # Killing a supervisor may let it start a last child: look again until nothing is left.
    for _ in range(_ROUNDS):
        recorded = [_find(entry["pid"], entry["create_time"]) for entry in saved["processes"]]
        found = [process for process in recorded if process is not None] + marked(saved["mark"])
        if not found:
            break
        _signal(found, signal.SIGKILL)
        psutil.wait_procs(found, timeout=_ROUND_S)
        ended.update(process.pid for process in found)
    record(state_dir, [])
    return sorted(ended)


def _find(pid: int, create_time: float | None = None) -> psutil.Process | None:
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        if create_time is not None and abs(start_of(pid) - create_time) >= _SAME_TIME_S:
            return None
        return process
    except psutil.Error:
        return None


def _signal(found: list[psutil.Process], number: signal.Signals) -> None:
    for process in found:
        try:
            process.send_signal(number)
        except psutil.Error:
            continue
