"""One table for what a failed call to the Kubernetes API means, and the guard that applies it.

The answers are measured (facts: kubernetes-api.md, "What a faithful local API server must do"):
notably, a schema error of a server-side apply is HTTP 500 without a reason.
"""

import json
import re
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import urllib3.exceptions as urllib3

from raynest_pipeline.errors import InputError, RemoteError, Verdict

NO_SUCH_KIND = "NoSuchKind"
"""`KubeError.code` when the API server does not know a kind: its CRD is not installed."""

_MESSAGE_LIMIT = 600
_SECRET = re.compile(r"(?i)\b(bearer|basic)\s+[\w.~+/=-]+")
_RENEW = "Run `raynest up` again: it fetches a fresh kubeconfig. With your own file, renew its credentials."


class KubeError(RemoteError):
    """A call to the Kubernetes API, or through its proxy, failed and has been classified."""


@dataclass(frozen=True)
class Row:
    """One line of the table: an answer that matches all that is set has this verdict."""

    verdict: Verdict
    why: str
    status: int | None = None
    reason: str = ""
    """The `reason` of the Status object; "" matches any."""
    message: str = ""
    """A pattern searched for in the message."""
    fix: str = ""
    unknown_on_write: bool = False
    """A write that ends so may have taken effect."""


TABLE: tuple[Row, ...] = (
    Row(Verdict.PERMANENT, "the credentials are not accepted: expired or revoked", 401, fix=_RENEW),
    Row(
        Verdict.PERMANENT,
        "no credentials were sent: the kubeconfig's user has none, or its exec plugin failed",
        403,
        message="system:anonymous",
        fix="Run `kubectl --kubeconfig FILE get ns` to see what the plugin says.",
    ),
    Row(Verdict.RETRYABLE, "the namespace is being deleted", 403, message="because it is being terminated"),
    Row(
        Verdict.PERMANENT,
        "the namespace's resource quota is used up",
        403,
        message="exceeded quota",
        fix="Raise the ResourceQuota, or ask for less.",
    ),
    Row(
        Verdict.PERMANENT,
        "the user of the kubeconfig lacks this permission",
        403,
        fix="Have a cluster administrator grant it (Role and RoleBinding).",
    ),
    Row(Verdict.GONE, "there is no such object", 404, reason="NotFound"),
    Row(Verdict.GONE, "there is nothing at this address", 404),
    Row(Verdict.PERMANENT, "an object of this name exists already", 409, reason="AlreadyExists"),
    Row(
        Verdict.PERMANENT,
        "another field manager owns these fields",
        409,
        message="conflict with ",
        fix="Apply with force, or let the other manager give the fields up.",
    ),
    Row(Verdict.RETRYABLE, "the object changed meanwhile", 409),
    Row(Verdict.RETRYABLE, "the resource version is too old: list again", 410),
    Row(Verdict.PERMANENT, "the object is larger than the API server takes", 413),
    Row(Verdict.PERMANENT, "the server finds the object invalid", 422),
    Row(Verdict.RETRYABLE, "the server throttles", 429),
    Row(
        Verdict.PERMANENT,
        "the server's schema of this kind does not have the field, or wants another type",
        500,
        message="failed to create typed patch object",
        fix="Compare the manifest with the KubeRay release on the cluster.",
    ),
    Row(
        Verdict.RETRYABLE,
        "no pod is behind the service (yet)",
        503,
        message="no endpoints available",
    ),
    Row(Verdict.PERMANENT, "the API server won't go to this address", message="address not allowed"),
    Row(Verdict.RETRYABLE, "the server is overloaded or starting", 503, unknown_on_write=True),
    Row(Verdict.RETRYABLE, "the server did not finish in time", 504, unknown_on_write=True),
)
_OTHER_5XX = Row(Verdict.RETRYABLE, "the server failed", unknown_on_write=True)
_OTHER_4XX = Row(Verdict.PERMANENT, "the server refuses the request")

_REFUSED = Row(Verdict.RETRYABLE, "the connection was refused: nothing listens there")
_NAME = Row(Verdict.RETRYABLE, "the host name cannot be resolved", fix="Check the address and the DNS.")
_CONNECT = Row(Verdict.RETRYABLE, "no connection: network, address or firewall")
_TLS = Row(
    Verdict.RETRYABLE,
    "the TLS handshake failed: the certificate is not the one that the kubeconfig trusts",
    fix="After a change of the cluster's address wait some minutes; else fetch the kubeconfig again.",
)
_TIMEOUT = Row(Verdict.RETRYABLE, "no answer in time", unknown_on_write=True)
_BROKEN = Row(Verdict.RETRYABLE, "the connection broke before the answer was complete", unknown_on_write=True)


def classify(status: int, *, reason: str = "", message: str = "") -> Row:
    """The row of the table for an answer."""
    for row in TABLE:
        if row.status in (None, status) and row.reason in ("", reason) and re.search(row.message, message):
            return row
    return _OTHER_5XX if status >= 500 else _OTHER_4XX


def answer_error(
    operation: str,
    status: int,
    body: str,
    *,
    headers: Mapping[str, str] | None = None,
    write: bool = False,
) -> KubeError:
    """The error for an HTTP answer that is not a success.

    Args:
        operation: A phrase that fits after "Could not".
        status: HTTP status.
        body: The answer: a Kubernetes Status object, or anything.
        headers: Of the answer; read for Retry-After.
        write: The call changes something.
    """
    document = _json_object(body)
    is_status = document.get("kind") == "Status"
    reason = str(document.get("reason") or "") if is_status else ""
    message = str(document.get("message") or "") if is_status else body
    row = classify(status, reason=reason, message=message)
    shown = scrub(message.strip())
    return _error(
        operation,
        row,
        write=write,
        code=reason,
        status=status,
        why=f"{row.why} (HTTP {status}{': ' + shown if shown else ''})",
        retry_after=_retry_after(headers or {}, document),
    )


def unknown_kind(operation: str, api_version: str, kind: str) -> KubeError:
    """The error for a kind that the API server does not serve."""
    ray = api_version.startswith("ray.io/")
    return KubeError(
        f"Could not {operation}.",
        verdict=Verdict.PERMANENT,
        code=NO_SUCH_KIND,
        status=404,
        why=f"the API server does not know {kind} ({api_version})",
        fix="Install the KubeRay operator (its CRDs) on the cluster." if ray else "Install its CRD first.",
    )


def not_an_api_server(server: str) -> KubeError:
    """The error for a server that answers, but not as a Kubernetes API server does."""
    return KubeError(
        f"Could not talk to {server}.",
        verdict=Verdict.PERMANENT,
        why="what answers there is not a Kubernetes API server",
        fix="Correct the server in the kubeconfig; is a proxy or a login page in between?",
    )


def json_answer(operation: str, data: bytes) -> dict[str, Any]:
    """The JSON object in an answer.

    Raises:
        KubeError: It is something else; the outcome is UNKNOWN.
    """
    try:
        document = json.loads(data)
    except ValueError:
        document = None
    if isinstance(document, dict):
        return document
    raise KubeError(
        f"Could not {operation}.", verdict=Verdict.UNKNOWN, why="the server's answer is not a JSON object"
    )


def scrub(text: str) -> str:
    """`text` without credentials, cut to a readable length."""
    clean = _SECRET.sub(r"\1 ***", text)
    return clean if len(clean) <= _MESSAGE_LIMIT else clean[: _MESSAGE_LIMIT - 1] + "…"


@contextmanager
def guard(operation: str, *, write: bool = False) -> Iterator[None]:
    """Translate errors of kubernetes, urllib3 and httpx into a `KubeError`.

    Args:
        operation: What is tried, a phrase that fits after "Could not".
        write: The call changes something: after a 5xx or a broken connection its outcome is UNKNOWN.
    """
    # Here, not at the top: kubernetes costs half a second, and a plain HTTP read doesn't need it.
    from kubernetes.client.exceptions import ApiException
    from kubernetes.config.config_exception import ConfigException

    try:
        yield
    except ApiException as error:
        raise _from_api_exception(operation, error, write=write) from error
    except (urllib3.HTTPError, httpx.TransportError, OSError) as error:
        raise transport_error(operation, error, write=write) from error
    except ConfigException:
        # From None: the library's messages quote the kubeconfig, credentials included.
        raise InputError(
            f"Could not {operation}.", why="the kubeconfig is not complete", fix=_RENEW
        ) from None


def transport_error(operation: str, error: Exception, *, write: bool = False) -> KubeError:
    """The error for a call that got no complete answer."""
    row = _transport_row(error)
    return _error(operation, row, write=write, why=f"{row.why} ({scrub(_root_words(error))})")


def _from_api_exception(operation: str, error: Any, *, write: bool) -> KubeError:
    if not error.status:
        # The client turns a failed TLS handshake into status 0 with the text as reason.
        return _error(operation, _TLS, write=write, why=f"{_TLS.why} ({scrub(str(error.reason))})")
    body = error.body.decode(errors="replace") if isinstance(error.body, bytes) else (error.body or "")
    if not body and error.reason and ": " in str(error.reason):
        # An ERROR event of a watch: "Expired: too old resource version".
        reason, _, message = str(error.reason).partition(": ")
        body = json.dumps({"kind": "Status", "reason": reason, "message": message})
    return answer_error(operation, error.status, body, headers=dict(error.headers or {}), write=write)


def _transport_row(error: Exception) -> Row:
    text = _root_words(error).lower()
    if "certificate" in text or isinstance(error, (ssl.SSLError, urllib3.SSLError)):
        return _TLS
    if "refused" in text:
        return _REFUSED
    if "name or service not known" in text or "failed to resolve" in text or "nodename nor" in text:
        return _NAME
    never_sent = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
    root = error.reason if isinstance(error, urllib3.MaxRetryError) else error
    if isinstance(root, (*never_sent, urllib3.NewConnectionError, urllib3.ConnectTimeoutError)):
        return _CONNECT
    if isinstance(root, (httpx.TimeoutException, urllib3.TimeoutError, TimeoutError)):
        return _TIMEOUT
    return _BROKEN


def _root_words(error: Exception) -> str:
    reason = error.reason if isinstance(error, urllib3.MaxRetryError) else None
    text = str(reason or error) or type(error).__name__
    # urllib3 prefixes the object's repr.
    return text.rsplit(">: ", 1)[-1].removeprefix("HTTPSConnection")


def _error(
    operation: str,
    row: Row,
    *,
    write: bool,
    why: str,
    code: str = "",
    status: int | None = None,
    retry_after: float | None = None,
) -> KubeError:
    verdict = Verdict.UNKNOWN if write and row.unknown_on_write else row.verdict
    return KubeError(
        f"Could not {operation}.",
        verdict=verdict,
        code=code,
        status=status,
        retry_after=retry_after,
        why=why,
        fix=row.fix,
    )


def _json_object(body: str) -> dict[str, Any]:
    try:
        document = json.loads(body)
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}


def _retry_after(headers: Mapping[str, str], document: Mapping[str, Any]) -> float | None:
    lower = {key.lower(): value for key, value in headers.items()}
    details = document.get("details")
    value = lower.get("retry-after") or (
        details.get("retryAfterSeconds") if isinstance(details, Mapping) else None
    )
    try:
        seconds = float(value) if value is not None else None
    except (TypeError, ValueError):
        return None
    return seconds if seconds is not None and 0 <= seconds < 3600 else None
