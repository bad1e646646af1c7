"""Whether the chain should be up: the one wish of a person that cannot be looked up in the cloud."""

import json
from pathlib import Path

from raynest_pipeline.files import private_dir, read_json, write_atomic
from raynest_pipeline.settings import Settings


def state_dir(settings: Settings) -> Path:
    """Folder of what must be remembered of one chain: two profiles, or two names, share nothing in it."""
    return settings.home_dir / "chains" / settings.profile.value / settings.name


def is_wanted(settings: Settings) -> bool:
    """Whether this chain was provisioned from this home, and not torn down since."""
    return read_json(_file(settings)).get("up") is True


def want(settings: Settings, up: bool) -> None:
    """Put on record whether this chain should be up; the sensor repairs only what is wanted."""
    if is_wanted(settings) != up:
        private_dir(state_dir(settings))
        write_atomic(_file(settings), json.dumps({"up": up}))


def _file(settings: Settings) -> Path:
    return state_dir(settings) / "wanted.json"
