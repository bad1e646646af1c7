"""Dagster's own state: where it is kept, and runs whose process is gone."""

import os
import re
import socket
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from raynest_pipeline.errors import SettingsError
from raynest_pipeline.files import private_dir, write_atomic
from raynest_pipeline.settings import Settings

if TYPE_CHECKING:
    import dagster as dg

PID_TAG = "raynest/pid"
"""On every run that executes raynest's steps: nobody else notices when its process dies."""
_TAG = re.compile(r"(?P<machine>.+):(?P<pid>\d+):(?P<began>\d+(\.\d+)?)", re.ASCII)
# Start times are recorded in hundredths of a second.
_SAME_TIME_S = 0.05


def packaged(name: str) -> Path:
    """A file that stands at the top of a checkout, and in the package of an installed wheel."""
    here = Path(__file__).parent
    return next(path for path in (here.parent / name, here / name) if path.exists())


def prepare_dagster_home(settings: Settings) -> Path:
    """Make `DAGSTER_HOME` (unless the environment names one) and put raynest's dagster.yaml into it.

    The variable is set for this process and its children, so that the command line and `make dev` share
    their records.

    Raises:
        SettingsError: `DAGSTER_HOME` is not an absolute path, which Dagster demands.
        StorageError: The folder cannot be made.
    """
    given = os.environ.get("DAGSTER_HOME")
    if given and not Path(given).is_absolute():
        raise SettingsError(
            f"DAGSTER_HOME is {given!r}, but must be an absolute path.", fix="Unset it, or make it absolute."
        )
    home = Path(given) if given else settings.home_dir / "dagster"
    private_dir(home)
    wanted = packaged("dagster.yaml").read_text(encoding="utf-8")
    target = home / "dagster.yaml"
    if not target.exists() or (not given and target.read_text(encoding="utf-8") != wanted):
        write_atomic(target, wanted)
    os.environ["DAGSTER_HOME"] = str(home)
    return home


def pid_tag(pid: int | None = None) -> dict[str, str]:
    """The tag of a run that executes in this process, or in another of this machine.

    Its parts are the machine, the pid, and when the process began (seconds, as `_start_of`).
    """
    pid = os.getpid() if pid is None else pid
    return {PID_TAG: f"{_machine()}:{pid}:{_start_of(pid):.2f}"}


def is_dead(tags: Mapping[str, str]) -> bool:
    """Whether a run carries the tag of a process of this machine that has ended."""
    found = _TAG.fullmatch(tags.get(PID_TAG, ""))
    if found is None or found["machine"] != _machine():
        return False
    try:
        # A pid is used again; a process with the same pid that began at another time is another one.
        return abs(_start_of(int(found["pid"])) - float(found["began"])) >= _SAME_TIME_S
    except psutil.NoSuchProcess:
        return True
    except psutil.AccessDenied:
        return False


def _machine() -> str:
    """This machine, by the hardware address of its network: a Mac's host name changes with the network."""
    node = uuid.getnode()
    # Without any network card it is a new random number in each process, told by its multicast bit.
    return socket.gethostname() if node >> 40 & 1 else f"{node:012x}"


def _start_of(pid: int) -> float:
    """When a process began, in seconds; whether the clock is set meanwhile makes no difference.

    Since the machine was booted on Linux, where psutil's create_time() is the kernel's ticks since boot plus
    the boot time, which moves whenever the clock is set (time service, a resumed machine). Since 1970
    elsewhere. Raises psutil.Error when it is gone. (The sandbox, which stands alone, has its own.)
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


def end_dead_runs(instance: "dg.DagsterInstance") -> int:
    """Record as failed the runs whose process was killed; how many there were.

    Nobody else does: Dagster cannot tell whether a run of this kind still has a process, and one that never
    ends would hold the chain's place in the queue for ever.
    """
    import dagster as dg

    unfinished = [
        dg.DagsterRunStatus.STARTED,
        dg.DagsterRunStatus.STARTING,
        dg.DagsterRunStatus.NOT_STARTED,
        dg.DagsterRunStatus.CANCELING,
    ]
    dead = [run for run in instance.get_runs(dg.RunsFilter(statuses=unfinished)) if is_dead(run.tags)]
    for run in dead:
        instance.report_run_failed(run, "The process that executed this run was killed.")
    return len(dead)
