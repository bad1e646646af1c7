"""Whether the chain should be up: the one wish of a person that cannot be looked up in the cloud."""

import json
from pathlib import Path

from raynest_pipeline.files import private_dir, read_json, write_atomic

_FILE = "wanted.json"


def is_wanted(home: Path) -> bool:
    """Whether the chain was provisioned from this home, and not torn down since."""
    return read_json(home / _FILE).get("up") is True


def want(home: Path, up: bool) -> None:
    """Put on record whether the chain should be up; the sensor repairs only what is wanted."""
    if is_wanted(home) != up:
        write_atomic(private_dir(home) / _FILE, json.dumps({"up": up}))
