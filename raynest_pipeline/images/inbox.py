"""The inbox: files that are dropped into a folder or an object store's prefix and become batches, once each.

Nothing is remembered that decides whether a file becomes a batch: a file stays in the inbox until the run
that draws it is on record, and that record carries the file's content hash. So whoever is killed between two
steps, the next look finds the file, or the run, or both, and goes on from there.
"""

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from raynest_pipeline.errors import InputError, StorageError
from raynest_pipeline.images.batch import batch_id_for, batch_id_of
from raynest_pipeline.images.object_errors import driver_errors
from raynest_pipeline.images.prompt_file import ENDINGS, open_prompts

TAKEN = "taken"
"""Files that became batches, each under its name and the first digits of its hash."""
BAD = "bad"
"""Files that could not be read, each with `<name>.error.txt` beside it."""
LOOKS = 2
"""A file must be unchanged over so many looks at least."""
MOST_WATCHED = 1000
"""Files kept in mind from one look to the next, by name; of more, the first."""
UNFINISHED = (".part", ".partial", ".tmp", ".crdownload", ".swp", "~")
"""Endings under which programs write what isn't whole yet; left alone, as are names with a dot in front."""
REASON = ".error.txt"
LONGEST_SUFFIX = 20
MOST_NAME_BYTES = 255
"""Of a file's name, on the file systems that there are."""
PARQUET_WEIGHT = 8
"""A Parquet file has about so many times the rows of a text file of its size."""
_STAMPS = ("mtime", "LastModified", "last_modified", "ETag", "etag", "created")


@dataclass(frozen=True)
class Found:
    """A file in the inbox. `stamp` changes whenever the content does."""

    name: str
    size: int
    stamp: str

    @property
    def shown(self) -> str:
        """The name as text that can be written and stored, whatever bytes it is made of."""
        return _text(self.name)


@dataclass(frozen=True)
class Watched:
    """What is remembered of a file between looks: how it looked, since when (s), and how often."""

    size: int
    stamp: str
    since: float
    looks: int = 1


@dataclass(frozen=True)
class Judged:
    """A whole file: the batch it is, or what is wrong with it."""

    found: Found
    sha256: str
    batch: str = ""
    images: int | None = None
    """None: too large to be counted here; its own run will."""
    error: str = ""


@dataclass(frozen=True)
class Action:
    """What becomes of a judged file."""

    kind: Literal["request", "take", "reject", "wait"]
    judged: Judged


def settled(
    found: Sequence[Found], before: Mapping[str, Watched], *, now: float, settle_seconds: float
) -> tuple[list[Found], dict[str, Watched]]:
    """The files that nobody writes any more, oldest first, and what to remember for the next look."""
    watched: dict[str, Watched] = {}
    for file in sorted(found, key=lambda f: f.name)[:MOST_WATCHED]:
        last = before.get(file.name)
        same = last is not None and (last.size, last.stamp) == (file.size, file.stamp)
        # A clock that was set back must not hold a file for ever.
        if last is not None and same and last.since <= now:
            watched[file.name] = Watched(file.size, file.stamp, last.since, last.looks + 1)
        else:
            watched[file.name] = Watched(file.size, file.stamp, now)
    ready = [
        file
        for file in found
        if (seen := watched.get(file.name)) and seen.looks >= LOOKS and now - seen.since >= settle_seconds
    ]
    return sorted(ready, key=lambda f: (watched[f.name].since, f.name)), watched


def decide(judged: Sequence[Judged], on_record: Collection[str]) -> list[Action]:
    """What to do with each file.

    Args:
        judged: In the order of their arrival.
        on_record: Content hashes for which there is a run already.
    """
    actions: list[Action] = []
    asked: set[str] = set()
    for file in judged:
        if file.error:
            actions.append(Action("reject", file))
        elif file.sha256 in on_record:
            actions.append(Action("take", file))
        elif file.sha256 in asked:
            # The same content twice: one run, and both files go once that is on record.
            actions.append(Action("wait", file))
        else:
            asked.add(file.sha256)
            actions.append(Action("request", file))
    return actions


class Inbox:
    """The folder or prefix."""

    def __init__(self, url: str) -> None:
        """
        Args:
            url: A folder, or an fsspec URL such as `oss://bucket/inbox`; credentials: the environment.

        Raises:
            StorageError: There is no such kind of store, or its library is not installed.
        """
        from fsspec.core import url_to_fs

        self.url = url
        try:
            self._fs, path = url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise StorageError(f"The inbox {url} cannot be used.", why=str(error)) from None
        self._root = str(path).rstrip("/")
        self._local = "file" in _names(self._fs.protocol)

    def look(self) -> list[Found]:
        """The files in it; makes a local folder that isn't there yet.

        Raises:
            StorageError: It can't be listed.
        """
        with _storage_errors(self.url):
            if self._local:
                self._fs.makedirs(self._root, exist_ok=True)
            self._fs.invalidate_cache()
            try:
                entries = self._fs.ls(self._root, detail=True)
            except FileNotFoundError:
                # A prefix is there once something has it.
                return []
        found = [
            _found(entry)
            for entry in entries
            # Some tools put an object in the place of the prefix itself.
            if entry["type"] == "file" and not entry.get("islink") and not self._is_root(entry["name"])
        ]
        return [
            file for file in found if not file.name.startswith(".") and not file.name.endswith(UNFINISHED)
        ]

    @contextlib.contextmanager
    def fetched(self, file: Found) -> Iterator[Path | None]:
        """The file on this machine while the context lasts, under its own name; None when it has gone."""
        if self._local:
            path = Path(self._root, file.name)
            yield path if path.is_file() else None
            return
        with tempfile.TemporaryDirectory(prefix="raynest-inbox-") as folder:
            path = Path(folder, file.name)
            with _storage_errors(self.url):
                try:
                    self._fs.get_file(f"{self._root}/{file.name}", str(path))
                except FileNotFoundError:
                    yield None
                    return
            yield path

    def take(self, file: Found, sha256: str) -> bool:
        """Move a file to `taken/`; whether it was still the file that was judged.

        Raises:
            StorageError: It can't be moved.
        """
        return self._move(file, f"{TAKEN}/{_name(file, f'-{sha256[:8]}')}")

    def reject(self, file: Found, error: str) -> bool:
        """Move a file to `bad/`, with the error beside it as text; whether it was still the file judged.

        Raises:
            StorageError: It can't be moved.
        """
        target, number = f"{BAD}/{_name(file, '')}", 1
        with _storage_errors(self.url):
            while self._fs.exists(f"{self._root}/{target}"):
                number += 1
                target = f"{BAD}/{_name(file, f'-{number}')}"
            self._fs.makedirs(f"{self._root}/{BAD}", exist_ok=True)
            # First the reason: a file in bad/ without one would tell nobody anything.
            reason = f"{self._root}/{target}{REASON}"
            self._fs.pipe_file(reason, f"{_text(error)}\n".encode())
            moved = self._move(file, target)
            if not moved:
                self._fs.rm_file(reason)
        return moved

    def unchanged(self, file: Found) -> bool:
        """Whether a file is still the one that was listed.

        Raises:
            StorageError: It can't be looked at.
        """
        with _storage_errors(self.url):
            self._fs.invalidate_cache()
            try:
                # Listed, as it was before: what a store says of one file may be stamped otherwise.
                now = _found(self._fs.ls(f"{self._root}/{file.name}", detail=True)[0])
            except (FileNotFoundError, IndexError):
                return False
        return (now.size, now.stamp) == (file.size, file.stamp)

    def _move(self, file: Found, target: str) -> bool:
        if not self.unchanged(file):
            return False
        source, target = f"{self._root}/{file.name}", f"{self._root}/{target}"
        with _storage_errors(self.url):
            self._fs.makedirs(target.rsplit("/", 1)[0], exist_ok=True)
            if self._local:
                os.replace(source, target)
            else:
                # Not `mv`: that takes a name for a pattern, and `*.csv` would move, and delete, all there is.
                self._fs.cp_file(source, target)
                self._fs.rm_file(source)
        return True

    def _is_root(self, name: str) -> bool:
        return name.strip("/") == self._root.strip("/")


def judge(path: Path, found: Found, *, check_bytes: float) -> Judged:
    """Which batch a whole file is, or what is wrong with it.

    Args:
        path: The file on this machine.
        found: As it was listed.
        check_bytes: Up to this size every row is checked (of Parquet: an eighth of it, since that is
            compressed); of a larger file only the ending.

    Raises:
        StorageError: It can't be read, for a reason that isn't the file's own.
    """
    try:
        if found.size * (PARQUET_WEIGHT if path.suffix.lower() == ".parquet" else 1) <= check_bytes:
            prompts = open_prompts(path)
            return Judged(found, prompts.sha256, batch_id_for(prompts), len(prompts))
        if path.suffix.lower() not in ENDINGS:
            raise InputError(f"{path.name} is no prompt file; known endings are {', '.join(ENDINGS)}.")
        with path.open("rb") as stream:
            sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
        return Judged(found, sha256, batch_id_of(path.stem, sha256))
    except InputError as error:
        # The folder is ours, and may be a temporary one; people know the file by its name.
        return Judged(found, "", error=_text(str(error).replace(f"{path.parent}/", "")))
    except OSError as error:
        raise StorageError(f"{found.shown} cannot be read.", why=error.strerror or str(error)) from None


def _name(file: Found, mark: str) -> str:
    """The name of a file, marked behind its stem, and short enough for a reason beside it."""
    name = PurePosixPath(file.name)
    end = f"{mark}{name.suffix[:LONGEST_SUFFIX]}"
    room = MOST_NAME_BYTES - len(REASON) - len(os.fsencode(end))
    stem = os.fsencode(name.stem)
    return (name.stem if len(stem) <= room else stem[:room].decode("utf-8", "ignore")) + end


def _text(text: str) -> str:
    """A file's name may be of bytes that are no text; what Dagster and a text file take is text."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _found(entry: Mapping[str, Any]) -> Found:
    name = str(entry["name"]).rstrip("/").rsplit("/", 1)[-1]
    stamp = "|".join(str(entry[key]) for key in _STAMPS if entry.get(key) is not None)
    return Found(name, int(entry["size"] or 0), stamp)


def _names(protocol: str | tuple[str, ...]) -> tuple[str, ...]:
    return (protocol,) if isinstance(protocol, str) else tuple(protocol)


@contextlib.contextmanager
def _storage_errors(url: str) -> Iterator[None]:
    try:
        yield
    except driver_errors() as error:
        raise StorageError(
            f"The inbox {url} cannot be used.",
            why=getattr(error, "strerror", None) or str(error),
            fix="Check its owner and permissions, or set inbox.url to another place.",
        ) from error
