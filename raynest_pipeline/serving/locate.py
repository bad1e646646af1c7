"""From the name of a model to a folder on this node, downloading what isn't there."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from raynest_pipeline.serving.modelcache import ModelCache, Stored, default_cache, safe_name
from raynest_pipeline.serving.modelfiles import SourceFailed, missing_parts, not_driven, parts_of, read_index
from raynest_pipeline.serving.modelname import (
    MODELSCOPE,
    Kind,
    ModelName,
    ModelUnavailable,
    advice,
    one_line,
    parse_model,
    without_secrets,
)
from raynest_pipeline.serving.options import ServingOptions

logger = logging.getLogger("ray.serve")


@dataclass(frozen=True, slots=True)
class Located:
    """A model's folder on this node, with its provenance."""

    folder: Path
    name: str
    revision: str
    """Fixed: a commit of the hub, or 12 hex digits over the files."""
    origin: str
    """`cached in ...`, `downloaded from ...`, `local folder`."""


def locate(options: ServingOptions, half: bool) -> Located:
    """The model's folder on this machine; `half` says that weights in half precision will do.

    Raises:
        ModelUnavailable: It names what was asked for, where it was looked for, why that failed, and what
            else works.
    """
    name = parse_model(options.model, options.revision)
    if name.kind is Kind.FOLDER:
        return local_folder(name)
    cache_dir = Path(options.cache_dir).expanduser() if options.cache_dir else None
    finders: dict[Kind, Callable[[], Stored]] = {
        Kind.HUB: lambda: _from_hub(name, options, cache_dir, half),
        Kind.MODELSCOPE: lambda: _from_modelscope(name, options, cache_dir, half),
        Kind.STORE: lambda: _from_store(name, cache_dir, half),
    }
    try:
        stored = finders[name.kind]()
    except SourceFailed as error:
        raise ModelUnavailable(_failure(name, options, error)) from error
    logger.info("model %s at %s: %s", name.asked, stored.revision, stored.origin)
    shown = f"{MODELSCOPE}://{name.place}" if name.kind is Kind.MODELSCOPE else name.place
    return Located(stored.folder, shown, stored.revision, stored.origin)


def local_folder(name: ModelName) -> Located:
    """A folder that is there already. Raises ModelUnavailable."""
    folder = Path(name.place).expanduser()
    if not folder.exists():
        raise ModelUnavailable(f"model folder {name.asked!r} does not exist on this node{advice()}")
    if not (folder / "model_index.json").is_file():
        raise ModelUnavailable(f"model folder {name.asked!r} has no model_index.json{advice()}")
    if name.revision:
        logger.warning(
            "revision %r has no meaning for the folder %s: what lies there is loaded", name.revision, folder
        )
    return Located(folder, folder.resolve().name, fingerprint(folder), "local folder")


def require_whole(folder: Path, asked: str) -> None:
    """Raises ModelUnavailable for a folder that lacks a part of the model, or whose pipeline is not driven
    here.
    """
    try:
        index = read_index(folder)
        reason = not_driven(parts_of(index), one_line(f"its {index.get('_class_name', 'pipeline')}", 80))
        if not reason and (missing := missing_parts(folder)):
            reason = f"missing {', '.join(missing)}"
    except (OSError, ValueError) as error:
        reason = one_line(error)
    if reason:
        raise ModelUnavailable(f"model {asked!r} in {folder} cannot be read: {reason}{advice()}")


def fingerprint(folder: Path, chunk: int = 65536) -> str:
    """A local folder's revision: 12 hex digits over each file's path, size, head and tail (a full hash of 5
    GB takes too long).
    """
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        size = path.stat().st_size
        digest.update(f"{path.relative_to(folder).as_posix()}\0{size}\0".encode())
        with path.open("rb") as stream:
            digest.update(stream.read(chunk))
            if size > chunk:
                stream.seek(max(chunk, size - chunk))
                digest.update(stream.read(chunk))
    return digest.hexdigest()[:12]


def _from_hub(name: ModelName, options: ServingOptions, cache_dir: Path | None, half: bool) -> Stored:
    from raynest_pipeline.serving.hub import HubRepository

    return HubRepository(name, options.hf_endpoint, cache_dir).get(half)


def _from_modelscope(name: ModelName, options: ServingOptions, cache_dir: Path | None, half: bool) -> Stored:
    from raynest_pipeline.serving.modelscope import ModelScopeRepository

    source = ModelScopeRepository(name, options.modelscope_endpoint, os.environ)
    key = f"modelscope/{name.place.replace('/', '--')}"
    return ModelCache(cache_dir or default_cache()).get(key, source.revision, source, half)


def _from_store(name: ModelName, cache_dir: Path | None, half: bool) -> Stored:
    from raynest_pipeline.serving.objectstore import StoredModel

    source = StoredModel(name, os.environ)
    # Two URLs may become one file name: the hash keeps them apart.
    digest = hashlib.sha256(name.place.encode()).hexdigest()[:8]
    key = f"{name.scheme}/{safe_name(name.place.partition('://')[2])}-{digest}"
    return ModelCache(cache_dir or default_cache()).get(key, "", source, half)


def _failure(name: ModelName, options: ServingOptions, error: SourceFailed) -> str:
    at = f" at revision {name.revision!r}" if name.revision else ""
    where = name.kind.value
    if name.kind is Kind.HUB:
        from huggingface_hub import constants

        where = options.hf_endpoint or constants.ENDPOINT
    elif name.kind is Kind.MODELSCOPE:
        from raynest_pipeline.serving.modelscope import MODELSCOPE_ENDPOINT

        where = options.modelscope_endpoint or MODELSCOPE_ENDPOINT
    place = without_secrets(where)
    return f"model {name.asked!r}{at} could not be fetched from {place}: {one_line(error, 500)}{advice()}"
