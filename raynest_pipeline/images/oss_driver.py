"""What fsspec's driver of Alibaba Cloud OSS (ossfs) needs done otherwise.

Its `info` lists the whole folder for one object, which would make a batch of n images cost n squared, and
it knows no conditional put. Both are one request to OSS: HeadObject, and PutObject with
`x-oss-forbid-overwrite` (help.aliyun.com, PutObject). Listings tell no ETag, so the time of the last change
is what stands for a version.
"""

from typing import Any

FORBID_OVERWRITE = {"x-oss-forbid-overwrite": "true"}
_EXISTS = ("FileAlreadyExists", "ObjectAlreadyExists")


def head(filesystem: Any, path: str) -> dict[str, Any]:
    """What a listing would say of one object.

    Raises:
        FileNotFoundError: There is none.
    """
    bucket, key = filesystem.split_path(path)
    found = filesystem._call_oss("head_object", key, bucket=bucket)
    return {
        "name": path,
        "type": "file",
        "size": int(found.content_length),
        "LastModified": found.last_modified,
    }


def create(filesystem: Any, path: str, data: bytes) -> None:
    """Put an object where there is none, atomically.

    Raises:
        FileExistsError: There is one.
    """
    try:
        filesystem.pipe_file(path, data, headers=FORBID_OVERWRITE)
    except OSError as error:
        if getattr(error.__cause__, "code", "") in _EXISTS:
            raise FileExistsError(path) from error
        raise
