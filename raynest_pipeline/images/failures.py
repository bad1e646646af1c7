"""What a failed request for an image means: one table, with a reason a row."""

import json
import ssl
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import NamedTuple

import aiohttp

from raynest_pipeline.errors import RemoteError, Verdict

R, P, U = Verdict.RETRYABLE, Verdict.PERMANENT, Verdict.UNKNOWN

STATUSES: dict[int, tuple[Verdict, str]] = {
    400: (P, "the endpoint calls the request malformed"),
    401: (P, "the credentials are not accepted, or have expired"),
    403: (P, "the credentials do not allow this"),
    404: (P, "there is no such path: no application is deployed there, or another one"),
    405: (P, "the endpoint takes no GET here"),
    408: (R, "Serve's own request timeout"),
    414: (P, "the prompt makes the address too long for the endpoint"),
    422: (P, "the endpoint refuses the prompt or a parameter"),
    425: (R, "asked to come again"),
    429: (R, "asked to slow down"),
    431: (P, "the prompt makes the address too long for the endpoint"),
    # The pipeline failed on valid input. Out of GPU memory passes; a poisoned prompt does not.
    500: (U, "the endpoint failed on this prompt"),
    502: (R, "a proxy could not reach the application"),
    503: (R, "the queue is full, or no replica is up"),
    504: (R, "the endpoint's or a proxy's deadline passed"),
}


class _Row(NamedTuple):
    kind: type[BaseException]
    verdict: Verdict
    reason: str


# The first row that matches counts, so subclasses stand before their bases.
EXCEPTIONS: tuple[_Row, ...] = (
    _Row(aiohttp.ClientConnectorCertificateError, P, "the certificate is not trusted"),
    _Row(ssl.SSLError, P, "TLS failed"),
    _Row(aiohttp.ClientConnectorError, R, "no connection"),
    _Row(TimeoutError, R, "no answer in time"),
    _Row(aiohttp.ServerDisconnectedError, R, "the connection was closed before an answer"),
    _Row(aiohttp.ClientPayloadError, R, "the answer was cut off"),
    _Row(aiohttp.ClientConnectionError, R, "the connection broke"),
    _Row(ConnectionError, R, "the connection broke"),
    _Row(aiohttp.InvalidURL, P, "the address is not valid"),
    _Row(aiohttp.ClientError, U, "the answer is not HTTP as we know it"),
)
TRANSPORT_ERRORS = tuple(row.kind for row in EXCEPTIONS)


def from_exception(error: BaseException, url: str) -> RemoteError:
    """Classify what the HTTP client raised (one of `TRANSPORT_ERRORS`)."""
    row = next(row for row in EXCEPTIONS if isinstance(error, row.kind))
    detail = str(error) or type(error).__name__
    return RemoteError(f"{url}: {row.reason}.", verdict=row.verdict, code=row.kind.__name__, why=detail)


def from_status(status: int, headers: Mapping[str, str], body: bytes, url: str) -> RemoteError:
    """Classify an answer that is not 200, with the server's own reason."""
    fallback = (R, "a server error") if status >= 500 else (P, "not an answer this client knows")
    verdict, reason = STATUSES.get(status, fallback)
    return RemoteError(
        f"{url} answered {status}: {reason}.",
        verdict=verdict,
        code=f"HTTP{status}",
        status=status,
        retry_after=retry_after(headers.get("Retry-After")),
        why=server_reason(body),
    )


def server_reason(body: bytes) -> str:
    """What the server says went wrong, at most 300 characters.

    Knows FastAPI's `detail` (a text, or a list naming fields) and the Kubernetes API's `message`.
    """
    text = body[:20_000].decode("utf-8", "replace").strip()
    try:
        answer = json.loads(text)
    except (ValueError, RecursionError):
        answer = None
    if isinstance(answer, dict):
        detail = answer.get("detail", answer.get("message"))
        if isinstance(detail, list):
            detail = "; ".join(_field_reason(item) for item in detail)
        if isinstance(detail, str):
            text = detail
    text = " ".join(text.split())
    return text if len(text) <= 300 else text[:297] + "..."


def _field_reason(item: object) -> str:
    if not isinstance(item, dict):
        return str(item)
    loc = item.get("loc")
    field = ".".join(str(part) for part in loc[1:]) if isinstance(loc, list) else ""
    return f"{field}: {item.get('msg', 'not valid')}" if field else str(item.get("msg", "not valid"))


def retry_after(value: str | None) -> float | None:
    """Seconds to wait, from a Retry-After header: whole seconds or an HTTP date; None when absent or odd."""
    if not value:
        return None
    if value.strip().isascii() and value.strip().isdigit():
        return float(value.strip()[:9])
    try:
        when = parsedate_to_datetime(value)
    except ValueError:
        return None
    if when.tzinfo is None:
        when = when.replace(tzinfo=UTC)
    return max(0.0, (when - datetime.now(UTC)).total_seconds())
