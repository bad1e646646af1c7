"""Models of the Hugging Face hub, or of a mirror of it, in the cache that its own client keeps.

The client's cache, and not ours: `HF_HOME` may come filled with an image or a volume, and other programs
share it.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path

from raynest_pipeline.serving.modelcache import (
    Stored,
    disk_errors,
    in_words,
    node_lock,
    require_space,
    write_whole,
)
from raynest_pipeline.serving.modelfiles import (
    Listing,
    RemoteFile,
    SourceFailed,
    choose_files,
    library_errors,
    missing_parts,
    unfetched,
)
from raynest_pipeline.serving.modelname import HUB_MIRROR, ModelName, one_line, without_secrets

logger = logging.getLogger("ray.serve")

HUB = "https://huggingface.co"
CACHE_VARIABLES = ("HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE")
"""The client's own ways of naming its cache; where one is set, it keeps its say."""
ANSWER_S = 30.0
"""Seconds to wait for the hub's answer about a model."""

_COMMIT = re.compile(r"[0-9a-f]{40}")


class HubRepository:
    """A repository of the hub."""

    def __init__(self, name: ModelName, endpoint: str | None, cache_dir: Path | None) -> None:
        """`cache_dir` is used unless the environment names a cache of the client's own."""
        heed_mirror(endpoint)
        from huggingface_hub import constants
        from huggingface_hub.file_download import repo_folder_name

        self._repository, self._asked = name.place, name.revision or constants.DEFAULT_REVISION
        self._endpoint = (endpoint or constants.ENDPOINT).rstrip("/")
        self.where = without_secrets(self._endpoint)
        self._cache = hub_cache(cache_dir, os.environ) or Path(constants.HF_HUB_CACHE)
        self._entry = self._cache / repo_folder_name(repo_id=self._repository, repo_type="model")

    def get(self, half: bool) -> Stored:
        """The model on this disk, as it is on the hub now; or as the cache has it, if the hub doesn't answer.

        Raises:
            SourceFailed: There is none, it may not be read, the hub doesn't answer, or the disk is full.
        """
        try:
            commit, files = self._ask()
            listing = Listing(choose_files(files, half).files, commit)
        except SourceFailed as error:
            return self._cached(error)
        folder = self._entry / "snapshots" / commit
        if not unfetched(folder, listing.files):
            return Stored(folder, commit, f"cached in {self._entry}")
        with disk_errors(self._cache):
            locks = self._cache / ".locks"
            locks.mkdir(parents=True, exist_ok=True)
            with node_lock(locks / f"raynest-{self._entry.name}.lock"):
                missing = unfetched(folder, listing.files)
                if not missing:
                    return Stored(folder, commit, f"cached in {self._entry}, by another process")
                size = sum(file.size for file in missing)
                require_space(self._cache, size)
                logger.info("fetching %d files (%s) from %s", len(missing), in_words(size), self.where)
                self._download(listing)
        if unfetched(folder, listing.files):
            raise SourceFailed("the download ended, and files are missing or of another size than announced")
        return Stored(folder, commit, f"downloaded from {self.where}")

    def _ask(self) -> tuple[str, list[RemoteFile]]:
        """The commit behind the revision, and its files."""
        from huggingface_hub import HfApi

        try:
            info = HfApi(endpoint=self._endpoint).model_info(
                self._repository, revision=self._asked, files_metadata=True, timeout=ANSWER_S
            )
        except hub_errors() as error:
            raise SourceFailed(hub_reason(error)) from error
        if not info.sha:
            raise SourceFailed("its answer names no commit: it is no Hugging Face hub")
        return info.sha, [
            RemoteFile(sibling.rfilename, sibling.size or 0, sibling.blob_id or "")
            for sibling in info.siblings or []
        ]

    def _download(self, listing: Listing) -> None:
        """The client's own download: several files at a time, resumed, each renamed when it is whole."""
        from huggingface_hub import snapshot_download

        try:
            commit = snapshot_download(
                self._repository,
                revision=listing.revision,
                allow_patterns=[_literal(file.path) for file in listing.files],
                cache_dir=self._cache,
                endpoint=self._endpoint,
            )
            logger.info("fetched %s", commit)
        except hub_errors() as error:
            raise SourceFailed(hub_reason(error)) from error
        self._remember(listing.revision)

    def _remember(self, commit: str) -> None:
        """What the client writes for a download by branch: it is asked for the commit here."""
        if not _COMMIT.fullmatch(self._asked):
            reference = self._entry / "refs" / self._asked
            reference.parent.mkdir(parents=True, exist_ok=True)
            write_whole(reference, commit)

    def _cached(self, error: SourceFailed) -> Stored:
        """The copy that the cache has of this revision. Raises `error` if it has none, or not a whole one."""
        try:
            commit = self._asked
            if not _COMMIT.fullmatch(commit):
                commit = (self._entry / "refs" / commit).read_text(encoding="utf-8").strip()
            folder = self._entry / "snapshots" / commit
            missing = missing_parts(folder)
        except (OSError, ValueError):
            raise error from None
        if missing:
            raise SourceFailed(f"{error}; the copy in {folder} lacks {', '.join(missing)}") from error
        logger.warning("%s: %s; going on with the copy in %s", self.where, error, folder)
        return Stored(folder, commit, f"cached in {self._entry}; {self.where} could not be asked")


def fetch_component(repository: str, endpoint: str | None, cache_dir: Path | None) -> Path:
    """The folder of a repository that is one diffusers model and no whole pipeline: its newest state, or the
    cached one if the hub doesn't answer.

    Raises:
        SourceFailed: There is none, it may not be read, or the hub doesn't answer and nothing is cached.
    """
    heed_mirror(endpoint)
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(
                repository,
                allow_patterns=["config.json", "diffusion_pytorch_model.safetensors"],
                cache_dir=hub_cache(cache_dir, os.environ),
                endpoint=endpoint,
            )
        )
    except hub_errors() as error:
        raise SourceFailed(hub_reason(error)) from error


def heed_mirror(endpoint: str | None) -> None:
    """Keep hf_xet off, which goes to its own servers whatever the endpoint is (huggingface/xet-core#470).

    Only before the hub's client is imported, which reads the variable then.
    """
    if endpoint and endpoint.rstrip("/") != HUB:
        os.environ.setdefault("HF_HUB_DISABLE_XET", "1")


def hub_cache(cache_dir: Path | None, environ: Mapping[str, str]) -> Path | None:
    """Where hub models go: below `cache_dir`, unless the environment names the client's own cache."""
    if cache_dir is None or any(environ.get(name) for name in CACHE_VARIABLES):
        return None
    return cache_dir / "huggingface"


def hub_errors() -> tuple[type[BaseException], ...]:
    """What the hub's client raises. Its HTTP library has changed twice, and its errors' ancestors with it."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    libraries = ("httpx2.HTTPError", "httpx.HTTPError", "requests.exceptions.RequestException")
    return OSError, ValueError, HfHubHTTPError, HFValidationError, *library_errors(*libraries)


def hub_reason(error: BaseException) -> str:
    """Why the hub did not deliver, for the end of a sentence."""
    from huggingface_hub import errors

    told = one_line(error)
    if isinstance(error, errors.GatedRepoError):
        return f"gated repo: accept its licence on its page and give HF_TOKEN ({told})"
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            f"repository not found: there is none of that name, or it is private and wants HF_TOKEN ({told})"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return f"it has no such revision ({told})"
    if isinstance(error, errors.OfflineModeIsEnabled):
        return f"HF_HUB_OFFLINE is set, and the cache has no whole copy ({told})"
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status is not None and status < 500:
        return told
    return f"couldn't connect to the hub; from mainland China set HF_ENDPOINT to {HUB_MIRROR} ({told})"


def _literal(path: str) -> str:
    """A path as a pattern that matches itself alone."""
    return re.sub(r"([*?\[])", r"[\1]", path)
