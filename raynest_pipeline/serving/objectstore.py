"""Models in an object store, or whatever else fsspec opens; credentials come from the environment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from raynest_pipeline.serving.modelfiles import RemoteFile, SourceFailed, library_errors
from raynest_pipeline.serving.modelname import STORE_PACKAGES, ModelName, one_line

MARKS = ("ETag", "etag", "md5Hash", "crc32c", "LastModified", "mtime", "created")
"""What stores tell of a file that changes with its content, best first."""


class StoredModel:
    """A model's folder in a store."""

    def __init__(self, name: ModelName, environ: Mapping[str, str]) -> None:
        """Raises SourceFailed if the store's package isn't there or cannot be set up."""
        import fsspec

        self.where = name.place
        try:
            self._files, self._root = fsspec.url_to_fs(name.place, **store_options(name.scheme, environ))
        except ImportError as error:
            package = STORE_PACKAGES[name.scheme]
            raise SourceFailed(
                f"it needs the package {package}: pip install {package}, "
                f"or add it to ray_service.pip_packages ({one_line(error)})"
            ) from error
        except store_errors() as error:
            raise SourceFailed(f"the store cannot be opened: {one_line(error)}") from error

    def list(self) -> Sequence[RemoteFile]:
        """All files below the folder. Raises SourceFailed."""
        prefix = self._root.rstrip("/") + "/"
        try:
            # Listings are kept in the process, and this one is for finding out whether something has changed.
            self._files.invalidate_cache()
            found: dict[str, Any] = self._files.find(self._root, detail=True)
        except store_errors() as error:
            raise SourceFailed(store_reason(error)) from error
        files = [
            RemoteFile(path.removeprefix(prefix), int(info["size"]), mark_of(info))
            for path, info in found.items()
            if info.get("type") == "file" and path.startswith(prefix)
        ]
        if not files:
            raise SourceFailed("nothing lies there")
        return files

    def fetch(self, file: RemoteFile, target: Path) -> None:
        """Copy one file. Raises SourceFailed."""
        try:
            self._files.get_file(f"{self._root.rstrip('/')}/{file.path}", str(target))
        except store_errors() as error:
            raise SourceFailed(f"{file.path}: {store_reason(error)}") from error


def store_options(scheme: str, environ: Mapping[str, str]) -> dict[str, Any]:
    """What the store's package doesn't take from the environment by itself.

    Raises:
        SourceFailed: OSS without an endpoint.
    """
    if scheme == "s3":
        endpoint = environ.get("AWS_ENDPOINT_URL_S3") or environ.get("AWS_ENDPOINT_URL")
        if not endpoint:
            return {}
        options: dict[str, Any] = {"endpoint_url": endpoint}
        if "aliyuncs.com" in endpoint:
            # OSS refuses path-style addresses.
            options["config_kwargs"] = {"s3": {"addressing_style": "virtual"}}
        return options
    if scheme != "oss":
        return {}
    if not environ.get("OSS_ENDPOINT"):
        raise SourceFailed("OSS_ENDPOINT is not set, e.g. https://oss-cn-hangzhou-internal.aliyuncs.com")
    values = {
        "endpoint": environ["OSS_ENDPOINT"],
        "key": environ.get("OSS_ACCESS_KEY_ID") or environ.get("ALIBABA_CLOUD_ACCESS_KEY_ID"),
        "secret": environ.get("OSS_ACCESS_KEY_SECRET") or environ.get("ALIBABA_CLOUD_ACCESS_KEY_SECRET"),
        "token": environ.get("OSS_SESSION_TOKEN") or environ.get("ALIBABA_CLOUD_SECURITY_TOKEN"),
    }
    return {key: value for key, value in values.items() if value}


def store_errors() -> tuple[type[BaseException], ...]:
    """What fsspec and the stores' own libraries raise."""
    return (
        OSError,
        ValueError,
        *library_errors(
            "botocore.exceptions.BotoCoreError",
            "botocore.exceptions.ClientError",
            "aiohttp.ClientError",
            "oss2.exceptions.OssError",
            "google.auth.exceptions.GoogleAuthError",
            "gcsfs.retry.HttpError",
        ),
    )


def store_reason(error: BaseException) -> str:
    """Why the store did not deliver, for the end of a sentence."""
    told = one_line(error) or type(error).__name__
    if isinstance(error, FileNotFoundError):
        return f"nothing lies there ({told})"
    if isinstance(error, PermissionError) or type(error).__name__ == "NoCredentialsError":
        return f"the credentials in the environment do not open it ({told})"
    return f"the store did not answer as expected ({told})"


def mark_of(info: Mapping[str, Any]) -> str:
    """A file's mark, out of what the store tells of it."""
    return next((str(info[name]).strip('"') for name in MARKS if info.get(name)), "")
