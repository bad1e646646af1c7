"""Dagster's own state: where it is kept, and runs whose process is gone."""

import os
import socket
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


def pid_tag() -> dict[str, str]:
    """The tag of a run that executes in this process: host, pid, and when the process began."""
    process = psutil.Process()
    return {PID_TAG: f"{socket.gethostname()}:{process.pid}:{process.create_time():.0f}"}


def is_dead(tags: Mapping[str, str]) -> bool:
    """Whether a run carries the tag of a process of this host that has ended."""
    host, _, rest = tags.get(PID_TAG, "").rpartition(":")[0].rpartition(":")
    began = tags.get(PID_TAG, "").rpartition(":")[2]
    if host != socket.gethostname() or not rest.isdigit() or not began.isdigit():
        return False
    try:
        # A pid is used again; a process with the same pid that began at another time is another one.
        return abs(psutil.Process(int(rest)).create_time() - int(began)) > 1.5
    except psutil.NoSuchProcess:
        return True
    except psutil.AccessDenied:
        return False


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
