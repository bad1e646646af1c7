import errno
import json
import ssl
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from types import SimpleNamespace

import aiohttp
import pytest
from aiohttp.client_reqrep import ConnectionKey

from raynest_pipeline.errors import Verdict
from raynest_pipeline.images.failures import (
    EXCEPTIONS,
    STATUSES,
    from_exception,
    from_status,
    retry_after,
    server_reason,
)

KEY = ConnectionKey("h", 1, False, True, None, None, None)


@pytest.mark.parametrize(
    ("statuses", "verdict"),
    [
        ((408, 425, 429, 502, 503, 504, 507, 520), Verdict.RETRYABLE),
        ((400, 401, 403, 404, 405, 414, 422, 431, 301, 302, 418), Verdict.PERMANENT),
        ((500,), Verdict.UNKNOWN),
    ],
)
def test_statuses(statuses: tuple[int, ...], verdict: Verdict) -> None:
    for status in statuses:
        error = from_status(status, {}, b"", "http://h/imagine")
        assert error.verdict is verdict, status
        assert error.status == status and str(status) in error.what


def test_every_row_gives_a_reason() -> None:
    assert all(reason for _, reason in STATUSES.values())
    assert all(row.reason for row in EXCEPTIONS)


def test_no_row_of_the_exception_table_is_dead() -> None:
    for number, row in enumerate(EXCEPTIONS):
        assert not any(issubclass(row.kind, above.kind) for above in EXCEPTIONS[:number]), row.kind


@pytest.mark.parametrize(
    ("error", "verdict", "reason"),
    [
        (
            aiohttp.ClientConnectorError(KEY, OSError(errno.ECONNREFUSED, "refused")),
            Verdict.RETRYABLE,
            "no connection",
        ),
        (aiohttp.ClientConnectorSSLError(KEY, OSError(1, "wrong version")), Verdict.PERMANENT, "TLS"),
        (
            aiohttp.ClientConnectorCertificateError(KEY, ssl.CertificateError("self-signed")),
            Verdict.PERMANENT,
            "certificate",
        ),
        (TimeoutError(), Verdict.RETRYABLE, "in time"),
        (aiohttp.ServerTimeoutError("slow"), Verdict.RETRYABLE, "in time"),
        (aiohttp.ServerDisconnectedError(), Verdict.RETRYABLE, "before an answer"),
        (aiohttp.ClientPayloadError("short"), Verdict.RETRYABLE, "cut off"),
        (aiohttp.ClientOSError(errno.ECONNRESET, "reset"), Verdict.RETRYABLE, "broke"),
        (ConnectionResetError(), Verdict.RETRYABLE, "broke"),
        (aiohttp.InvalidURL("http://"), Verdict.PERMANENT, "address"),
        (
            aiohttp.ClientResponseError(SimpleNamespace(real_url="x"), ()),  # type: ignore[arg-type]
            Verdict.UNKNOWN,
            "not HTTP",
        ),
    ],
)
def test_exceptions(error: BaseException, verdict: Verdict, reason: str) -> None:
    classified = from_exception(error, "http://h/imagine")
    assert classified.verdict is verdict
    assert reason in classified.what
    assert classified.status is None and classified.why


def test_the_servers_field_and_reason_are_passed_on() -> None:
    body = json.dumps({"detail": [{"loc": ["query", "img_size"], "msg": "Input should be a multiple of 8"}]})
    error = from_status(422, {}, body.encode(), "u")
    assert error.why == "img_size: Input should be a multiple of 8"


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b'{"detail": "queue full"}', "queue full"),
        (b'{"kind": "Status", "message": "no endpoints available"}', "no endpoints available"),
        (b"<html>\n  Bad   Gateway</html>", "<html> Bad Gateway</html>"),
        (b'{"detail": [1, {"msg": "odd"}]}', "1; odd"),
        (b'{"detail": {"a": 1}}', '{"detail": {"a": 1}}'),
        (b"", ""),
        (b"\xff\xfe", "\ufffd\ufffd"),
        (b"[" * 30_000, "[" * 297 + "..."),
    ],
)
def test_reasons_of_all_kinds(body: bytes, reason: str) -> None:
    assert server_reason(body) == reason


def test_retry_after_in_seconds_as_a_date_and_as_rubbish() -> None:
    assert from_status(503, {"Retry-After": "7"}, b"", "u").retry_after == 7.0
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=90), usegmt=True)
    assert 80 < (retry_after(later) or 0) <= 90
    past = format_datetime(datetime.now(UTC) - timedelta(seconds=90), usegmt=True)
    assert retry_after(past) == 0.0
    assert retry_after("Wed, 21 Oct 2015 07:28:00 -0000") == 0.0
    for odd in (None, "", "soon", "-3", "1.5", "٣"):
        assert retry_after(odd) is None
