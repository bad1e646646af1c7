"""The verifier against the SDK's own signer: what it signs passes, what was touched afterwards doesn't."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sandbox_account import KEY_ID, SECRET, VERSIONS, roa, rpc, signed

from raynest_pipeline.sandbox.signature import TIME_WINDOW_S, SignatureError, SignedRequest, Verifier

NOW = 1_750_000_000.0


def verifier(now: float = NOW) -> Verifier:
    return Verifier(KEY_ID, SECRET, clock=lambda: now)


def code_of(request: SignedRequest, now: float = NOW) -> str:
    with pytest.raises(SignatureError) as caught:
        verifier(now).verify(request)
    return f"{caught.value.status} {caught.value.code}"


def some_request(**params: Any) -> SignedRequest:
    given = {"RegionId": "ap-southeast-1", "Name": "räy & co+1=~*/ä", "Empty": "", **params}
    return rpc("nest", "CreateServiceInstance", given, NOW)


def test_what_the_sdk_signs_is_accepted() -> None:
    verifier().verify(some_request())


def test_an_roa_request_with_a_body_is_accepted() -> None:
    verifier().verify(roa("PUT", "/api/v2/clusters/c1", {}, {"api_server_eip": True, "name": "ü"}, NOW))
    verifier().verify(roa("GET", "/k8s/c1/user_config", {"TemporaryDurationMinutes": 60}, None, NOW))


@given(
    st.dictionaries(
        st.text(st.characters(codec="ascii", categories=("L", "N")), min_size=1),
        # The SDK's HTTP client can't carry lone surrogates either.
        st.text(st.characters(codec="utf-8")),
        max_size=6,
    )
)
def test_any_parameters_survive_the_way_over_the_wire(params: dict[str, str]) -> None:
    verifier().verify(rpc("vpc", "DescribeEipAddresses", params, NOW))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"method": "GET"}, "400 SignatureDoesNotMatch"),
        ({"target": "/?RegionId=other"}, "400 SignatureDoesNotMatch"),
        ({"target": "/x?RegionId=ap-southeast-1"}, "400 SignatureDoesNotMatch"),
        ({"body": b"{}"}, "400 SignatureDoesNotMatch"),
    ],
)
def test_a_request_that_was_touched_is_refused(change: dict[str, Any], expected: str) -> None:
    assert code_of(replace(some_request(), **change)) == expected


@pytest.mark.parametrize("name", ["host", "x-acs-action", "x-acs-version", "accept", "x-acs-signature-nonce"])
def test_a_signed_header_that_was_changed_is_refused(name: str) -> None:
    request = some_request()
    changed = replace(request, headers={**request.headers, name: "other"})
    assert code_of(changed) == "400 SignatureDoesNotMatch"


@pytest.mark.parametrize("name", ["host", "x-acs-date", "x-acs-content-sha256", "x-acs-action", "accept"])
def test_a_signed_header_that_is_gone_is_refused(name: str) -> None:
    request = some_request()
    headers = {key: value for key, value in request.headers.items() if key != name}
    assert code_of(replace(request, headers=headers)) == "400 IncompleteSignature"


def test_an_extra_unsigned_acs_header_is_refused() -> None:
    request = some_request()
    extra = replace(request, headers={**request.headers, "x-acs-source-ip": "1.2.3.4"})
    assert code_of(extra) == "400 IncompleteSignature"


def test_an_extra_plain_header_is_fine() -> None:
    request = some_request()
    # The SDK's asynchronous client adds a content type that it didn't sign.
    verifier().verify(
        replace(request, headers={**request.headers, "content-type": "application/octet-stream"})
    )


def test_another_secret_is_refused_and_the_string_to_sign_is_told() -> None:
    request = signed("POST", "/", {}, b"", {"x-acs-action": "A"}, VERSIONS["sts"], NOW, secret="wrong")
    with pytest.raises(SignatureError, match=r"server string to sign is:ACS3-HMAC-SHA256\n[0-9a-f]{64}"):
        verifier().verify(request)


def test_an_unknown_access_key_is_refused() -> None:
    request = signed("POST", "/", {}, b"", {"x-acs-action": "A"}, VERSIONS["sts"], NOW, key_id="LTAIother")
    assert code_of(request) == "404 InvalidAccessKeyId.NotFound"


def test_a_session_token_of_nobody_is_refused() -> None:
    headers = {"x-acs-action": "A", "x-acs-security-token": "CAIS"}
    assert code_of(signed("POST", "/", {}, b"", headers, VERSIONS["sts"], NOW)) == (
        "400 InvalidSecurityToken.Malformed"
    )


@pytest.mark.parametrize(
    ("authorization", "expected"),
    [
        (None, "400 MissingAccessKeyId"),
        ("Basic abc", "400 IncompleteSignature"),
        (
            f"ACS3-HMAC-SM3 Credential={KEY_ID},SignedHeaders=host,Signature=00",
            "400 InvalidParameter.SignatureMethod",
        ),
        (f"ACS3-HMAC-SHA256 Credential={KEY_ID},SignedHeaders=host,Signature=00", "400 IncompleteSignature"),
    ],
)
def test_other_authorizations_are_refused(authorization: str | None, expected: str) -> None:
    request = some_request()
    headers = {key: value for key, value in request.headers.items() if key != "authorization"}
    if authorization is not None:
        headers["authorization"] = authorization
    assert code_of(replace(request, headers=headers)) == expected


@pytest.mark.parametrize("late", [-TIME_WINDOW_S, 0, TIME_WINDOW_S])
def test_a_date_inside_the_window_is_accepted(late: float) -> None:
    verifier(NOW + late).verify(some_request())


@pytest.mark.parametrize("late", [-TIME_WINDOW_S - 1, TIME_WINDOW_S + 1])
def test_a_date_outside_the_window_is_refused(late: float) -> None:
    assert code_of(some_request(), NOW + late) == "400 InvalidTimeStamp.Expired"


def test_a_date_in_another_format_is_refused() -> None:
    headers = {"x-acs-action": "A", "x-acs-date": "Thu, 06 Feb 2020 07:32:54 GMT"}
    assert (
        code_of(signed("POST", "/", {}, b"", headers, VERSIONS["sts"], NOW)) == "400 InvalidTimeStamp.Format"
    )


def test_a_request_is_accepted_once() -> None:
    request = some_request()
    one = verifier()
    one.verify(request)
    with pytest.raises(SignatureError) as caught:
        one.verify(request)
    assert caught.value.code == "SignatureNonceUsed"


def test_a_forged_request_does_not_use_the_nonce_up() -> None:
    request = some_request()
    one = verifier()
    with pytest.raises(SignatureError):
        one.verify(replace(request, body=b"forged"))
    one.verify(request)


def test_nonces_are_forgotten_only_when_they_could_not_be_replayed() -> None:
    clock = [NOW]
    one = Verifier(KEY_ID, SECRET, clock=lambda: clock[0])
    ahead = rpc("sts", "GetCallerIdentity", {}, NOW + TIME_WINDOW_S)
    one.verify(ahead)
    clock[0] = NOW + 2 * TIME_WINDOW_S
    # Its date is still fresh at this very moment: only the nonce keeps it out.
    with pytest.raises(SignatureError) as caught:
        one.verify(ahead)
    assert caught.value.code == "SignatureNonceUsed"


def test_the_secret_is_not_in_the_representation() -> None:
    assert SECRET not in repr(verifier())
