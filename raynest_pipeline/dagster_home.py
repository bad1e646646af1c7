"""Dagster's own state: where it is kept, and runs whose process is gone."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from raynest_pipeline.errors import SettingsError
from raynest_pipeline.files import make_dir, private_dir, write_atomic
from raynest_pipeline.settings import Settings

if TYPE_CHECKING:
    import dagster as dg

PID_TAG = "raynest/pid"
"""On runs that execute in the command line's own process: nobody else notices when that one dies."""


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
    if given:
        # Somebody's own folder: its permissions are theirs.
        make_dir(home)
    else:
        private_dir(home.parent)
        private_dir(home)
    wanted = packaged("dagster.yaml").read_text(encoding="utf-8")
    target = home / "dagster.yaml"
    if not target.exists() or (not given and target.read_text(encoding="utf-8") != wanted):
        write_atomic(target, wanted)
    os.environ["DAGSTER_HOME"] = str(home)
    return home


def is_dead(tags: Mapping[str, str]) -> bool:
    """Whether a run carries the pid of a process of ours that has ended."""
    pid = tags.get(PID_TAG, "")
    if not pid.isdigit():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def end_dead_runs(instance: "dg.DagsterInstance") -> int:
    """Record as failed the runs whose process was killed; how many there were."""
    import dagster as dg

    unfinished = [dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.NOT_STARTED]
    dead = [run for run in instance.get_runs(dg.RunsFilter(statuses=unfinished)) if is_dead(run.tags)]
    for run in dead:
        instance.report_run_failed(run, "The raynest process that executed this run was killed.")
    return len(dead)
