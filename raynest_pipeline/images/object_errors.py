"""What an object store's error means: one table for all drivers of fsspec, and the words for people.

Drivers turn most of their errors into OSErrors; what some let through is recognised by the classes of the
SDKs that are loaded.
"""

import errno
import sys

from raynest_pipeline.errors import RemoteError, StorageError, Verdict

PACKAGES = {
    "oss": "ossfs",
    "s3": "s3fs",
    "s3a": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "abfs": "adlfs",
    "abfss": "adlfs",
    "az": "adlfs",
}
"""Protocol -> the package with its driver."""
CREDENTIALS = {
    "oss": "Set FSSPEC_OSS_KEY, FSSPEC_OSS_SECRET and OSS_ENDPOINT (https://oss-REGION.aliyuncs.com), and "
    "allow the key to list, read, write and delete below the prefix.",
    "s3": "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, and allow them to list, read, "
    "write and delete below the prefix.",
    "gs": "Run `gcloud auth application-default login`, or set GOOGLE_APPLICATION_CREDENTIALS.",
}
AGAIN = "Then run the same command again: finished images are kept, and it goes on from there."

_SDK_ERRORS = (
    ("botocore.exceptions", "BotoCoreError"),
    ("botocore.exceptions", "ClientError"),
    ("oss2.exceptions", "OssError"),
    ("gcsfs.retry", "HttpError"),
    ("google.auth.exceptions", "GoogleAuthError"),
    ("azure.core.exceptions", "AzureError"),
    ("aiohttp", "ClientError"),
)
_NO_CREDENTIALS = (
    "NoCredentialsError",
    "PartialCredentialsError",
    "NoAuthHandlerFound",
    "DefaultCredentialsError",
    "RefreshError",
    "ClientAuthenticationError",
)
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_MISSING = (FileNotFoundError, NotADirectoryError)
_NEVER_BETTER = {errno.EROFS, errno.EISDIR, errno.EINVAL, errno.ENAMETOOLONG, errno.ELOOP}


def driver_errors() -> tuple[type[BaseException], ...]:
    """The exception classes that a driver may raise, as far as its SDK is loaded."""
    found: list[type[BaseException]] = [OSError, EOFError]
    for module, name in _SDK_ERRORS:
        kind = getattr(sys.modules.get(module), name, None)
        if isinstance(kind, type) and issubclass(kind, BaseException):
            found.append(kind)
    return tuple(found)


def classified(error: BaseException, what: str) -> RemoteError:
    """The error of one call, with its verdict.

    | error | verdict |
    |---|---|
    | no such object or bucket | gone |
    | 401, 403, no credentials, no permission | permanent |
    | no space, a quota; a name or place that cannot be written | permanent |
    | everything else: timeouts, resets, 429, 5xx, a driver's EIO | retryable |
    """
    # ossfs wraps what the SDK said, a refused signature for one, into an EIO.
    status = _status(error) or (_status(error.__cause__) if error.__cause__ is not None else None)
    reason = _reason(error)
    verdict, code = Verdict.RETRYABLE, type(error).__name__
    if isinstance(error, _MISSING) or status == 404:
        verdict = Verdict.GONE
    elif isinstance(error, PermissionError) or status in (401, 403) or code in _NO_CREDENTIALS:
        verdict, status = Verdict.PERMANENT, status or 403
    elif isinstance(error, OSError) and error.errno in _FULL:
        verdict, code = Verdict.PERMANENT, "full"
    elif isinstance(error, FileExistsError) or getattr(error, "errno", None) in _NEVER_BETTER:
        verdict = Verdict.PERMANENT
    return RemoteError(what, verdict=verdict, code=code, status=status, why=reason)


def storage_error_of(error: RemoteError, url: str, needed: int = 0, to_go: int = 1) -> StorageError:
    """The error for people, with what they can do."""
    protocol = url.split("://", 1)[0]
    if error.code == "full":
        return StorageError(
            f"{url} cannot be written: no space left.",
            why=f"It needs {needed:,} bytes. {error.why}",
            fix=f"Free at least {-(-needed * to_go // 1_000_000):,} MB for {to_go:,} files to go, or raise "
            f"the quota. {AGAIN}",
        )
    if error.status in (401, 403):
        hint = CREDENTIALS.get(protocol, f"Give the {protocol} driver credentials that may use it.")
        return StorageError(f"No permission for {url}.", why=error.why, fix=hint)
    if error.verdict is Verdict.GONE:
        return StorageError(
            f"{url} does not exist.", why=error.why, fix="Check the bucket's name; raynest makes none."
        )
    return StorageError(
        f"{url} cannot be used: {error.what}", why=error.why, fix=f"Check the network. {AGAIN}"
    )


def no_driver(protocol: str, why: str) -> StorageError:
    """The error for a URL whose driver is not installed, or not known at all."""
    package = PACKAGES.get(protocol)
    fix = f"pip install {package}" if package else "Known are oss://, s3://, gs://, az:// and plain folders."
    return StorageError(f"There is no driver for {protocol}://.", why=why, fix=fix)


def _status(error: BaseException) -> int | None:
    """The HTTP status, where the SDK's exception has one."""
    for name in ("status", "status_code", "code"):
        value = getattr(error, name, None)
        if isinstance(value, int) and 100 <= value < 600:
            return value
    response = getattr(error, "response", None)
    if isinstance(response, dict):
        value = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        return value if isinstance(value, int) else None
    return None


def _reason(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:300]}" if text else type(error).__name__
