"""A kubeconfig as a file and as text: checked, pointed at a namespace, kept private, asked when it expires.

Nothing here reads or writes ~/.kube/config, and no error quotes the text: it holds credentials.
"""

import base64
import binascii
import copy
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from raynest_pipeline.errors import InputError

_FIX = "Fetch the kubeconfig again, or point kubeconfig.path at another file."


def parse(text: str) -> dict[str, Any]:
    """A kubeconfig's content, checked: its current context leads to a server and a user.

    Raises:
        InputError: Names what is wrong, never the content.
    """
    document = _load(text)
    for section in ("clusters", "contexts", "users"):
        _entries(document, section)
    current = document.get("current-context")
    if current:
        _resolve(document, current)
    elif len(document["contexts"]) != 1:
        raise _wrong("it sets no current-context, and it has not exactly one context")
    else:
        document["current-context"] = document["contexts"][0]["name"]
        _resolve(document, document["current-context"])
    return document


def load(path: Path) -> dict[str, Any]:
    """`parse` of a file.

    Raises:
        InputError: The file is missing, unreadable, or not a kubeconfig.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"The kubeconfig {path} cannot be read.", why=error.strerror or "unknown", fix=_FIX
        ) from error
    except UnicodeDecodeError:
        raise InputError(f"The kubeconfig {path} is not text in UTF-8.", fix=_FIX) from None
    try:
        return parse(text)
    except InputError as error:
        raise InputError(f"{path} is not a usable kubeconfig.", why=error.why, fix=_FIX) from None


def check_context(document: Mapping[str, Any], context: str | None) -> None:
    """Check that a context (None: the current one) leads to a server and a user; InputError if not."""
    _resolve(document, context or document["current-context"])


def with_namespace(text: str, context: str, namespace: str) -> str:
    """The kubeconfig with its current context renamed to `context` and set to `namespace`."""
    document = parse(text)
    current = document["current-context"]
    chosen = copy.deepcopy(_named(document, "contexts", current))
    chosen["name"] = context
    chosen["context"]["namespace"] = namespace
    others = [entry for entry in document["contexts"] if entry["name"] not in (current, context)]
    document["contexts"] = [chosen, *others]
    document["current-context"] = context
    return yaml.safe_dump(document, sort_keys=False)


def namespace_of(text: str, context: str | None = None) -> str | None:
    """The namespace of a context (default: the current one); None when it sets none."""
    document = parse(text)
    entry = _named(document, "contexts", context or document["current-context"])
    namespace = entry["context"].get("namespace")
    return str(namespace) if namespace else None


def server_of(text: str, context: str | None = None) -> str:
    """The API server's URL in a context (default: the current one)."""
    document = parse(text)
    cluster, _ = _resolve(document, context or document["current-context"])
    return str(cluster["server"])


def expires_at(text: str) -> datetime | None:
    """When the current user's credentials expire, in UTC: client certificate or JWT, the earlier of both.

    None when that cannot be told: an opaque token, an exec plugin, a certificate in another file.
    """
    document = parse(text)
    _, user = _resolve(document, document["current-context"])
    ends = [end for end in (_certificate_end(user), _token_end(user)) if end is not None]
    return min(ends) if ends else None


def _certificate_end(user: Mapping[str, Any]) -> datetime | None:
    data = user.get("client-certificate-data")
    if not isinstance(data, str):
        return None
    try:
        pem = base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        raise _wrong("client-certificate-data is not base64") from None
    # cryptography comes with the Alibaba Cloud SDKs; it is heavy, so not at the top.
    from cryptography import x509

    try:
        return x509.load_pem_x509_certificate(pem).not_valid_after_utc
    except ValueError:
        raise _wrong("client-certificate-data is not a PEM certificate") from None


def _token_end(user: Mapping[str, Any]) -> datetime | None:
    token = user.get("token")
    parts = token.split(".") if isinstance(token, str) else []
    if len(parts) != 3:
        return None
    try:
        claims = json.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
        return datetime.fromtimestamp(claims["exp"], UTC)
    except (ValueError, TypeError, KeyError, OverflowError, OSError):
        return None  # Not a JWT after all: an opaque token may have dots.


def _load(text: str) -> dict[str, Any]:
    try:
        document = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" (line {mark.line + 1})" if mark else ""
        raise _wrong(f"it is not valid YAML{where}") from None
    if not isinstance(document, dict):
        raise _wrong("it is not a YAML mapping")
    if document.get("kind", "Config") != "Config":
        raise _wrong("its kind is not Config")
    return document


def _entries(document: Mapping[str, Any], section: str) -> list[dict[str, Any]]:
    entries = document.get(section)
    if not isinstance(entries, list) or not entries:
        raise _wrong(f"it has no {section}")
    inner = section.removesuffix("s")
    for number, entry in enumerate(entries, 1):
        if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
            raise _wrong(f"{section} entry {number} has no name")
        if not isinstance(entry.get(inner), dict):
            raise _wrong(f"{section} entry {number} has no {inner}")
    return entries


def _named(document: Mapping[str, Any], section: str, name: Any) -> dict[str, Any]:
    found = [entry for entry in document[section] if entry["name"] == name]
    if len(found) == 1:
        entry: dict[str, Any] = found[0]
        return entry
    known = ", ".join(sorted(entry["name"] for entry in document[section]))
    problem = "no" if not found else "more than one"
    raise _wrong(f"it has {problem} {section.removesuffix('s')} named {name!r} (there: {known})")


def _resolve(document: Mapping[str, Any], context: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The cluster and the user that a context points at."""
    body = _named(document, "contexts", context)["context"]
    cluster: dict[str, Any] = _named(document, "clusters", body.get("cluster"))["cluster"]
    user: dict[str, Any] = _named(document, "users", body.get("user"))["user"]
    server = cluster.get("server")
    if not isinstance(server, str) or not _is_http_url(server):
        raise _wrong("the context's cluster has no http(s) server URL")
    return cluster, user


def _is_http_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
    except ValueError:
        return False
    return parts.scheme in ("https", "http") and bool(parts.hostname)


def _wrong(why: str) -> InputError:
    return InputError("The kubeconfig is not usable.", why=why, fix=_FIX)
