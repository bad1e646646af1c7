"""Intentions, written down before the cloud hears of them.

The world is the state, with one exception that cannot be looked up: "I was about to buy, with this
token, and do not know whether the cloud got it." That is what the journal holds. A purchase that was
interrupted is asked for again with the SAME ClientToken, so that the cloud answers with what it has
already sold. An entry ends when its resource is deleted, so that the next purchase gets a new token.
"""

import json
import uuid
from dataclasses import dataclass, field
from pathlib import Path

from raynest_pipeline.files import private_dir, read_json, write_atomic


@dataclass(frozen=True)
class Intent:
    """One purchase: its token, and the id of what was bought once that is known."""

    token: str
    """ClientToken: at most 64 ASCII characters."""
    remote_id: str = ""
    secret: str = field(default="", repr=False)
    """A parameter that was drawn for this purchase (a password): the same token needs the same arguments."""


class Journal:
    """The intentions of one chain, in one private file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self, key: str) -> Intent | None:
        """The open intention under `key`."""
        entry = read_json(self._path).get(key)
        if not isinstance(entry, dict) or not isinstance(entry.get("token"), str):
            return None
        return Intent(entry["token"], str(entry.get("remote_id", "")), str(entry.get("secret", "")))

    def begin(self, key: str, *, secret: str = "") -> Intent:
        """The open intention under `key`, or a new one with a fresh token, on disk before this returns."""
        if (intent := self.read(key)) is not None:
            return intent
        intent = Intent(f"raynest-{uuid.uuid4()}", secret=secret)
        self._write(key, intent)
        return intent

    def record(self, key: str, remote_id: str) -> None:
        """Put the bought resource's id on record."""
        intent = self.begin(key)
        self._write(key, Intent(intent.token, remote_id, intent.secret))

    def end(self, key: str) -> None:
        """Forget: the resource is gone, or is known to the cloud under our tag."""
        entries = read_json(self._path)
        if entries.pop(key, None) is not None:
            write_atomic(self._path, json.dumps(entries, indent=2))

    def _write(self, key: str, intent: Intent) -> None:
        private_dir(self._path.parent)
        entries = read_json(self._path)
        entries[key] = {"token": intent.token, "remote_id": intent.remote_id, "secret": intent.secret}
        write_atomic(self._path, json.dumps(entries, indent=2))
