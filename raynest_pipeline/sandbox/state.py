"""The sandbox's state folder: names of its files, atomic private writes, and what rooms share."""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: Who is running here and how to ask it; there while a sandbox runs.
INFO_FILE = "sandbox.json"
#: Everything that comes back at the next start.
WORLD_FILE = "world.json"
#: The processes that a killed sandbox left behind can be found by this.
PROCESSES_FILE = "processes.json"
LOG_FILE = "sandbox.log"
#: Held while a sandbox is being started, and by the sandbox for as long as it lives.
START_LOCK_FILE = "start.lock"
SERVER_LOCK_FILE = "server.lock"


@dataclass(frozen=True)
class NodeSpec:
    """One worker node of a cluster: a machine of a cloud instance type. Memory in GiB, disk in GiB."""

    name: str
    instance_type: str
    cpu: int
    memory_gib: float
    gpus: int
    disk_gib: int


def write_private(path: Path, text: str) -> None:
    """Replace a file atomically, readable by its owner alone (0600)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # mkstemp makes the file 0600 from the start: there is no moment at which others could read it.
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(text)
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Replace a file atomically by a value as JSON, readable by its owner alone."""
    write_private(path, json.dumps(value, ensure_ascii=False, indent=1))


def read_json(path: Path) -> Any:
    """The value in a JSON file, or None where there is no such file. Raises ValueError for a damaged one."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    return json.loads(text)
