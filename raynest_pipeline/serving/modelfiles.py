"""The files of a model: which of a listing are needed, what revision they make, whether a folder is whole."""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

ROOT_FILES = ("model_index.json", "generation.json")
"""What counts of a repository's top folder; single-file checkpoints and pictures lie there, too."""
TEXT_ENDINGS = (".json", ".txt", ".model")
VARIANT = "fp16"
"""diffusers' name for weights stored in half precision."""

DRIVEN_PARTS = ("unet", "vae")
"""Parts of every pipeline that is driven here. Those around a transformer have no UNet."""

_WEIGHTS = re.compile(
    r"(?:model|pytorch_model|diffusion_pytorch_model)"
    r"(?:\.(?P<before>[a-z]\w*))?(?:-\d+-of-\d+)?(?:\.(?P<after>[a-z]\w*))?\.(?P<format>safetensors|bin)"
)
"""Names that transformers and diffusers give to weights: plain, of a variant, and in numbered parts."""


class SourceFailed(Exception):
    """A source did not deliver; the message is the reason, for the end of a sentence."""


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """One file of a listing."""

    path: str
    """Below the model's folder, with slashes."""
    size: int
    """Bytes."""
    mark: str = ""
    """What changes with the content: a SHA-256, an ETag, or a time."""


@dataclass(frozen=True, slots=True)
class Listing:
    """The files to fetch, and the revision that they make."""

    files: tuple[RemoteFile, ...]
    revision: str

    @property
    def total(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)


class Source(Protocol):
    """Somewhere that model files can be fetched from."""

    @property
    def where(self) -> str:
        """The place, for messages."""
        ...

    def list(self) -> Sequence[RemoteFile]:
        """All files there. Raises SourceFailed."""
        ...

    def fetch(self, file: RemoteFile, target: Path) -> None:
        """Write one file's content to `target`, which may hold the beginning of it. Raises SourceFailed."""
        ...


def library_errors(*names: str) -> tuple[type[BaseException], ...]:
    """The exception classes of that name whose module has been imported: `botocore.exceptions.ClientError`.

    They derive from Exception alone, and their libraries are optional: what isn't loaded cannot raise.
    """
    found = []
    for name in names:
        module, _, attribute = name.rpartition(".")
        error = getattr(sys.modules.get(module), attribute, None)
        if isinstance(error, type) and issubclass(error, BaseException):
            found.append(error)
    return tuple(found)


def choose_files(files: Iterable[RemoteFile], half: bool) -> Listing:
    """Those that a diffusers pipeline reads, with the revision that they make: a hash of their marks.

    Of each component one set of weights: half precision if `half` and every component has it (the numbers are
    the same as after casting), safetensors rather than pickles. Raises SourceFailed if it is no such model,
    or one that is not driven here.
    """
    by_path = {file.path: file for file in files}
    if "model_index.json" not in by_path:
        raise SourceFailed("there is no model_index.json: it is no model in the diffusers format")
    chosen = sorted(
        path for path in by_path if path in ROOT_FILES or ("/" in path and path.endswith(TEXT_ENDINGS))
    )
    chosen += choose_weights([path for path in by_path if "/" in path], half)
    unsafe = [path for path in chosen if not _stays_inside(path)]
    if unsafe:
        raise SourceFailed(f"its listing has the path {unsafe[0]!r}")
    # A part lies in a folder of its name, so this needs no look into model_index.json.
    if reason := not_driven({path.partition("/")[0] for path in by_path if "/" in path}, "it"):
        raise SourceFailed(reason)
    selected = tuple(by_path[path] for path in chosen)
    return Listing(selected, listing_revision(selected))


def choose_weights(paths: Sequence[str], half: bool) -> list[str]:
    """The weight files to take, of one variant if all folders have it."""
    folders: dict[str, dict[tuple[str, str], list[str]]] = {}
    for path in paths:
        folder, _, name = path.rpartition("/")
        match = _WEIGHTS.fullmatch(name)
        if match:
            variant = match["before"] or match["after"] or ""
            folders.setdefault(folder, {}).setdefault((variant, match["format"]), []).append(path)
    plain, fp16 = ("", "safetensors"), (VARIANT, "safetensors")
    order = [fp16, plain] if half else [plain, fp16]
    everywhere = next((kind for kind in order if all(kind in kinds for kinds in folders.values())), None)
    preferred = [everywhere] if everywhere else [plain, ("", "bin"), fp16, (VARIANT, "bin")]
    chosen: list[str] = []
    for kinds in folders.values():
        chosen += next((kinds[kind] for kind in preferred if kind in kinds), [])
    return sorted(chosen)


def _stays_inside(path: str) -> bool:
    parts = PurePosixPath(path).parts
    return not path.startswith(("/", "~")) and ".." not in parts and "\\" not in path and ":" not in path


def listing_revision(files: Iterable[RemoteFile]) -> str:
    """12 hex digits over each file's path, size and mark."""
    digest = hashlib.sha256()
    for file in sorted(files, key=lambda item: item.path):
        digest.update(f"{file.path}\0{file.size}\0{file.mark}\0".encode())
    return digest.hexdigest()[:12]


def unfetched(folder: Path, files: Iterable[RemoteFile]) -> list[RemoteFile]:
    """Those of the files that are not in the folder, or not of their size."""
    return [
        file
        for file in files
        if not (folder / file.path).is_file() or (folder / file.path).stat().st_size != file.size
    ]


def not_driven(parts: Collection[str], owner: str) -> str:
    """Why a pipeline of these parts cannot be driven here, for the end of a sentence; "" if it can."""
    lacking = [part for part in DRIVEN_PARTS if part not in parts]
    if not lacking:
        return ""
    return (
        f"{owner} has no {' and no '.join(lacking)}; only pipelines with a unet and a vae are served, as "
        "Stable Diffusion 1.5 and 2.1 are, and none around a transformer, as Stable Diffusion 3 and Flux are"
    )


def read_index(folder: Path) -> dict[str, Any]:
    """The folder's model_index.json. Raises OSError, and ValueError if it is none."""
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    if not isinstance(index, dict):
        raise ValueError("model_index.json must hold a JSON object")
    return index


def parts_of(index: Mapping[str, Any]) -> list[str]:
    """The names of the pipeline's parts; one with [null, null] is left out."""
    return [name for name, kind in index.items() if isinstance(kind, list) and len(kind) == 2 and all(kind)]


def missing_parts(folder: Path) -> list[str]:
    """What model_index.json names and the folder lacks; empty for a folder that can be loaded.

    Raises ValueError if model_index.json is none.
    """
    return [missing for name in parts_of(read_index(folder)) for missing in _missing_of(folder / name)]


def _missing_of(component: Path) -> list[str]:
    if not component.is_dir():
        return [component.name]
    names = {path.name for path in component.iterdir() if path.exists()}
    shards: list[str] = []
    for index in component.glob("*.index*.json"):
        content: dict[str, Any] = json.loads(index.read_text(encoding="utf-8"))
        parts = sorted(set(content.get("weight_map", {}).values()))
        if any(part in names for part in parts):
            shards += [f"{component.name}/{part}" for part in parts if part not in names]
    # A model's configuration has this very name; a scheduler's or a tokenizer's has another.
    if "config.json" in names and not any(_WEIGHTS.fullmatch(name) for name in names):
        return [f"{component.name}'s weights"]
    return shards


def variant_of(folder: Path) -> str | None:
    """`fp16` where a component has weights of that variant alone; None: the plain ones are there."""
    only = False
    for component in (path for path in folder.iterdir() if path.is_dir()):
        matches = [match for match in map(_WEIGHTS.fullmatch, (p.name for p in component.iterdir())) if match]
        variants = {match["before"] or match["after"] or "" for match in matches}
        only |= VARIANT in variants and "" not in variants
    return VARIANT if only else None
