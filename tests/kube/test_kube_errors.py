"""The table of errors, on recorded answers and on real broken connections."""

import json
import socket
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import urllib3
from hypothesis import given
from hypothesis import strategies as st
from kubernetes.client.exceptions import ApiException
from kubernetes.config.config_exception import ConfigException

from raynest_pipeline.errors import InputError, Verdict
from raynest_pipeline.kube.errors import TABLE, KubeError, answer_error, classify, guard, json_answer, scrub

RECORDED = {
    "apply_no_fieldmanager": (Verdict.PERMANENT, "Invalid", "fieldManager: Required value"),
    "apply_conflict_409": (Verdict.PERMANENT, "Conflict", "another field manager"),
    "apply_unknown_field": (Verdict.PERMANENT, "", "schema"),
    "apply_missing_required": (Verdict.PERMANENT, "Invalid", "invalid"),
    "apply_with_managedfields": (Verdict.PERMANENT, "BadRequest", "must be nil"),
    "apply_wrong_kind_path": (Verdict.PERMANENT, "BadRequest", "does not match the name on the URL"),
    "create_unknown_field_strict": (Verdict.PERMANENT, "BadRequest", "strict decoding error"),
    "put_stale_resourceVersion_409": (Verdict.RETRYABLE, "Conflict", "changed meanwhile"),
    "get_404": (Verdict.GONE, "NotFound", '"missing" not found'),
    "unknown_kind_404": (Verdict.GONE, "", "404 page not found"),
    "unauthenticated_401": (Verdict.PERMANENT, "Forbidden", "no credentials were sent"),
    "bad_token_401": (Verdict.PERMANENT, "Unauthorized", "expired or revoked"),
    "forbidden_403_list": (Verdict.PERMANENT, "Forbidden", "lacks this permission"),
    "forbidden_403_apply": (Verdict.PERMANENT, "Forbidden", "lacks this permission"),
    "namespace_exists_409": (Verdict.PERMANENT, "AlreadyExists", "exists already"),
    "apply_in_missing_namespace": (Verdict.GONE, "NotFound", 'namespaces "nons" not found'),
    "pod_log_missing": (Verdict.GONE, "NotFound", "not found"),
    "create_in_terminating_namespace": (Verdict.RETRYABLE, "Forbidden", "being deleted"),
}


def text_of(body: Any) -> str:
    return body if isinstance(body, str) else json.dumps(body)


@pytest.mark.parametrize("name", sorted(RECORDED))
def test_recorded_answers(tools: Any, name: str) -> None:
    recorded = tools.data("api_errors")[name]
    verdict, reason, words = RECORDED[name]
    error = answer_error("do it", recorded["status"], text_of(recorded["body"]), headers=recorded["headers"])
    assert (error.verdict, error.code, error.status) == (verdict, reason, recorded["status"])
    assert words in error.why
    assert error.what == "Could not do it."


def test_every_recorded_error_is_covered(tools: Any) -> None:
    assert set(tools.data("api_errors")) - {"watch_too_old_rv"} == set(RECORDED)


@pytest.mark.parametrize(
    ("status", "message", "read", "write"),
    [
        (429, "slow down", Verdict.RETRYABLE, Verdict.RETRYABLE),
        (500, "etcdserver: leader changed", Verdict.RETRYABLE, Verdict.UNKNOWN),
        (502, "<html>bad gateway</html>", Verdict.RETRYABLE, Verdict.UNKNOWN),
        (503, "no endpoints available for service", Verdict.RETRYABLE, Verdict.RETRYABLE),
        (503, "apiserver is shutting down", Verdict.RETRYABLE, Verdict.UNKNOWN),
        (504, "request timed out", Verdict.RETRYABLE, Verdict.UNKNOWN),
        (500, "failed to create typed patch object (/s1): .spec.x", Verdict.PERMANENT, Verdict.PERMANENT),
        (403, "exceeded quota: gpu, requested: 1", Verdict.PERMANENT, Verdict.PERMANENT),
        (410, "too old resource version", Verdict.RETRYABLE, Verdict.RETRYABLE),
        (413, "request entity too large", Verdict.PERMANENT, Verdict.PERMANENT),
        (418, "teapot", Verdict.PERMANENT, Verdict.PERMANENT),
    ],
)
def test_reads_and_writes_differ_where_the_outcome_may(
    status: int, message: str, read: Verdict, write: Verdict
) -> None:
    assert answer_error("x", status, message).verdict is read
    assert answer_error("x", status, message, write=True).verdict is write


@pytest.mark.parametrize(
    ("headers", "details", "expected"),
    [
        ({"Retry-After": "7"}, {}, 7.0),
        ({"retry-after": "1.5"}, {"retryAfterSeconds": 9}, 1.5),
        ({}, {"retryAfterSeconds": 9}, 9.0),
        ({"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"}, {}, None),
        ({"Retry-After": "-1"}, {}, None),
        ({}, {}, None),
    ],
)
def test_retry_after(headers: dict[str, str], details: dict[str, Any], expected: float | None) -> None:
    body = json.dumps({"kind": "Status", "message": "slow", "details": details})
    assert answer_error("x", 429, body, headers=headers).retry_after == expected


@given(st.integers(100, 599), st.text(max_size=40), st.text(max_size=200), st.booleans())
def test_any_answer_gets_a_verdict(status: int, reason: str, message: str, write: bool) -> None:
    body = json.dumps({"kind": "Status", "reason": reason, "message": message})
    error = answer_error("x", status, body, write=write)
    assert error.verdict in Verdict
    assert error.why.startswith(classify(status, reason=reason, message=message).why)
    if not write:
        assert error.verdict is not Verdict.UNKNOWN


@given(st.binary(max_size=200))
def test_any_body_gets_a_verdict(body: bytes) -> None:
    assert answer_error("x", 500, body.decode(errors="replace")).status == 500


def test_each_row_of_the_table_says_why_in_words() -> None:
    for row in TABLE:
        assert len(row.why.split()) >= 3


@pytest.mark.parametrize(
    "text",
    [
        "Authorization: Bearer abc.def-ghi",
        "sent bearer abc.def-ghi to it",
        'header "Basic YWRtaW46YWRtaW4=" refused',
    ],
)
def test_credentials_are_scrubbed(text: str) -> None:
    clean = scrub(text)
    assert "***" in clean
    assert "abc.def-ghi" not in clean and "YWRtaW46" not in clean


def test_long_messages_are_cut() -> None:
    assert len(scrub("x" * 5000)) <= 600


def test_the_guard_keeps_the_cause_and_lets_other_errors_through() -> None:
    with pytest.raises(KubeError) as caught, guard("read it"):
        raise ApiException(status=404, reason="Not Found")
    assert isinstance(caught.value.__cause__, ApiException)
    with pytest.raises(ZeroDivisionError), guard("read it"):
        raise ZeroDivisionError


def test_the_body_may_be_bytes() -> None:
    # 35's dynamic client has bytes, 36 and 37 have text.
    error = ApiException(status=409)
    error.body = json.dumps({"kind": "Status", "reason": "AlreadyExists", "message": "there"}).encode()
    with pytest.raises(KubeError) as caught, guard("make it", write=True):
        raise error
    assert caught.value.code == "AlreadyExists"


def test_an_error_event_of_a_watch_is_read_from_its_reason() -> None:
    with pytest.raises(KubeError) as caught, guard("watch it"):
        raise ApiException(status=410, reason="Expired: too old resource version: 1 (244)")
    assert (caught.value.status, caught.value.code) == (410, "Expired")
    assert "too old" in caught.value.why


def test_a_failed_handshake_arrives_as_status_0() -> None:
    with pytest.raises(KubeError) as caught, guard("read it"):
        raise ApiException(status=0, reason="SSLError\ncertificate verify failed")
    assert caught.value.verdict is Verdict.RETRYABLE
    assert "TLS" in caught.value.why


def test_config_errors_quote_nothing() -> None:
    with pytest.raises(InputError) as caught, guard("read it"):
        raise ConfigException("Expected key x in {'token': 'very-secret'}")
    assert "very-secret" not in str(caught.value)
    assert caught.value.__cause__ is None and caught.value.__suppress_context__


@pytest.mark.parametrize("body", [b"", b"[]", b"<html>", b"\xff\xfe", b"null"])
def test_answers_that_are_not_json_objects(body: bytes) -> None:
    with pytest.raises(KubeError) as caught:
        json_answer("read it", body)
    assert caught.value.verdict is Verdict.UNKNOWN


@pytest.fixture
def silent_server() -> Iterator[str]:
    """Accepts connections and never answers."""
    listener = socket.create_server(("127.0.0.1", 0))
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    listener.close()


@pytest.fixture
def rude_server() -> Iterator[str]:
    """Hangs up as soon as it has heard a request."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            connection.recv(65536)
            connection.close()

    threading.Thread(target=serve, daemon=True).start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    listener.close()


def closed_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"http://127.0.0.1:{listener.getsockname()[1]}"


def by_httpx(url: str) -> None:
    with httpx.Client(timeout=0.3, trust_env=False) as client:
        client.get(url)


def by_urllib3(url: str) -> None:
    urllib3.PoolManager(retries=urllib3.Retry(total=1)).request("GET", url, timeout=0.3)


BOTH = pytest.mark.parametrize("call", [by_httpx, by_urllib3])


@BOTH
@pytest.mark.parametrize("write", [False, True])
def test_a_refused_connection_was_never_sent(call: Any, write: bool) -> None:
    with pytest.raises(KubeError) as caught, guard("call it", write=write):
        call(closed_port())
    assert caught.value.verdict is Verdict.RETRYABLE
    assert "refused" in caught.value.why


@BOTH
def test_silence_after_sending_leaves_a_write_unknown(call: Any, silent_server: str) -> None:
    with pytest.raises(KubeError) as read, guard("call it"):
        call(silent_server)
    with pytest.raises(KubeError) as write, guard("call it", write=True):
        call(silent_server)
    assert (read.value.verdict, write.value.verdict) == (Verdict.RETRYABLE, Verdict.UNKNOWN)
    assert "in time" in read.value.why


@BOTH
def test_a_hang_up_leaves_a_write_unknown(call: Any, rude_server: str) -> None:
    with pytest.raises(KubeError) as caught, guard("call it", write=True):
        call(rude_server)
    assert caught.value.verdict is Verdict.UNKNOWN
    assert "broke" in caught.value.why


@BOTH
def test_a_name_that_does_not_exist(call: Any) -> None:
    with pytest.raises(KubeError) as caught, guard("call it", write=True):
        call("http://no-such-host.invalid/")
    assert caught.value.verdict is Verdict.RETRYABLE
    assert caught.value.status is None
    assert caught.value.exit_code_for_verdict == 7
