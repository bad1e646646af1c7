"""One file per object under a cluster's directory: written atomically, read back at the next start."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from raynest_pipeline.sandbox.state import read_json, write_json

Object = dict[str, Any]

_NO_NAMESPACE = "_"
_REVISION = "revision.json"


class ObjectFiles:
    """`objects/<resource>/<namespace>/<name>.json`, and the last revision that was used.

    With no directory nothing is kept: for tests of the rules alone."""

    def __init__(self, directory: Path | None) -> None:
        self._directory = directory

    def load(self) -> Iterator[tuple[str, Object]]:
        """Every (resource, object) there is."""
        if self._directory is None:
            return
        root = self._directory / "objects"
        for path in sorted(root.glob("*/*/*.json")):
            yield path.parent.parent.name, read_json(path)

    def revision(self) -> int:
        """The revision of the last deletion (an object's own says the rest); 0 for a new cluster."""
        if self._directory is None:
            return 0
        return int(read_json(self._directory / _REVISION) or 0)

    def save(self, resource: str, obj: Object) -> None:
        """Write an object's file."""
        path = self._path(resource, obj)
        if path is not None:
            write_json(path, obj)

    def remove(self, resource: str, obj: Object, revision: int) -> None:
        """Delete an object's file, with the deletion's revision on record first."""
        path = self._path(resource, obj)
        if path is not None and self._directory is not None:
            write_json(self._directory / _REVISION, revision)
            path.unlink(missing_ok=True)

    def wipe(self) -> None:
        """Delete the directory with all that is in it."""
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)

    def _path(self, resource: str, obj: Object) -> Path | None:
        if self._directory is None:
            return None
        metadata = obj["metadata"]
        namespace = metadata.get("namespace") or _NO_NAMESPACE
        return self._directory / "objects" / resource / namespace / f"{metadata['name']}.json"
