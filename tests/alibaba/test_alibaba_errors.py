"""The classifier's table, and the words it makes."""

import json
from collections import Counter
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raynest_pipeline.alibaba.error_table import GRANT, TABLE, row_for
from raynest_pipeline.alibaba.errors import CloudError, Failure, classify, malformed
from raynest_pipeline.alibaba.password import generate_password
from raynest_pipeline.alibaba.redaction import HIDDEN, redact
from raynest_pipeline.errors import AccessError, UnreachableError, Verdict, exit_code_of

R, P, G, U = Verdict.RETRYABLE, Verdict.PERMANENT, Verdict.GONE, Verdict.UNKNOWN


@pytest.mark.parametrize(
    ("code", "status", "verdict"),
    [
        ("Throttling", 400, R),
        ("Throttling.User", 429, R),
        ("Throttling.AllocateEip", 503, R),
        ("ServiceUnavailable", 503, R),
        ("SystemBusy", 400, R),
        ("OperationFailed.SystemBusy", 500, R),
        ("LastTokenProcessing", 409, R),
        ("OperationConflict", 409, R),
        ("TaskConflict", 400, R),
        ("IncorrectStatus.Nat", 400, R),
        ("IncorrectEipStatus", 400, R),
        ("IncorrectInstanceStatus", 400, R),
        ("FrequentPurchase.EIP", 400, R),
        ("InternalError", 500, U),
        ("UnknownError", 500, U),
        ("SignatureNonceUsed", 400, U),
        ("IdempotentParameterMismatch", 400, P),
        ("TokenVerfiy.Failed", 400, P),
        ("InvalidAccessKeyId.NotFound", 404, P),
        ("InvalidAccessKeyId.Inactive", 403, P),
        ("SignatureDoesNotMatch", 400, P),
        ("IncompleteSignature", 400, P),
        ("InvalidTimeStamp.Expired", 400, P),
        ("InvalidSecurityToken.Expired", 400, P),
        ("Forbidden.RAM", 403, P),
        ("ForbiddenQueryClusterNamespace", 403, P),
        ("NoPermission", 403, P),
        ("StatusForbidden", 403, P),
        ("Forbidden.ChargeTypeIsPrepaid", 400, P),
        ("ServiceInstanceNotFound", 404, G),
        ("ServiceInstanceNotFound", 400, G),
        ("EntityNotExist.ServiceInstance", 404, G),
        ("EntityNotExists", 404, G),
        ("ErrorClusterNotFound", 404, G),
        ("InvalidAllocationId.NotFound", 404, G),
        ("StackNotFound", 404, G),
        ("QuotaExceeded.Eip", 400, P),
        ("InsufficientBalance", 400, P),
        ("OrderFailed", 400, P),
        ("OperationDenied.NoStock", 403, P),
        ("MissingParameter", 400, P),
        ("InvalidParameter.Name", 400, P),
        ("StackValidationFailed", 400, P),
        # Not in the table: the status decides.
        ("Whatever", 401, P),
        ("Whatever", 403, P),
        ("Whatever", 404, P),
        ("Whatever", 429, R),
        ("Whatever", 500, U),
        ("Whatever", 503, R),
        ("", 502, U),
        ("", None, U),
        ("Whatever", None, U),
        ("", 302, U),
    ],
)
def test_verdict(code: str, status: int | None, verdict: Verdict) -> None:
    error = classify(Failure(code=code, status=status), "vpc:AllocateEipAddress")
    assert error.verdict is verdict
    assert error.why


def test_each_family_has_one_row_and_each_row_a_reason() -> None:
    assert [prefix for prefix, count in Counter(row.prefix for row in TABLE).items() if count > 1] == []
    assert all(row.prefix and row.why for row in TABLE)
    assert all(
        row.fix for row in TABLE if row.verdict is not G and row.prefix != "Forbidden.ChargeTypeIsPrepaid"
    )


def test_the_longest_prefix_decides() -> None:
    assert row_for("Forbidden.ChargeTypeIsPrepaid", 400).access is False
    assert row_for("Forbidden.Other", 400).access is True


class TestDenied:
    DETAIL = {
        "AuthAction": "vpc:AllocateEipAddress",
        "AuthPrincipalDisplayName": "alice",
        "NoPermissionType": "ImplicitDeny",
        "PolicyType": "AccountLevelIdentityBasedPolicy",
    }

    def test_names_the_action_the_person_and_the_policy(self) -> None:
        error = classify(Failure("Forbidden.RAM", 403, denied=self.DETAIL), "vpc:AllocateEipAddress")
        assert error.denied_action == "vpc:AllocateEipAddress"
        assert error.fix == (
            "Let the account's owner grant vpc:AllocateEipAddress to alice "
            "(the system policy AliyunVPCFullAccess contains it) in the RAM console."
        )
        assert exit_code_of(error) == AccessError.exit_code

    def test_container_service_writes_it_in_lower_case(self) -> None:
        detail = {"authAction": "cs:ModifyCluster", "authPrincipalDisplayName": "alice"}
        error = classify(Failure("StatusForbidden", 403, denied=detail), "cs:ModifyCluster")
        assert error.denied_action == "cs:ModifyCluster"
        assert "AliyunCSFullAccess" in error.fix

    def test_the_action_that_is_missing_need_not_be_the_one_called(self) -> None:
        detail = {**self.DETAIL, "AuthAction": "ecs:RunInstances"}
        error = classify(Failure("NoPermission", 403, denied=detail), "computenest:CreateServiceInstance")
        assert error.denied_action == "ecs:RunInstances"
        assert "AliyunECSFullAccess" in error.fix

    def test_an_explicit_deny_is_not_cured_by_granting(self) -> None:
        detail = {**self.DETAIL, "NoPermissionType": "ExplicitDeny"}
        error = classify(Failure("Forbidden.RAM", 403, denied=detail), "vpc:AllocateEipAddress")
        assert "remove that Deny" in error.fix

    def test_without_a_detail_the_called_action_is_named(self) -> None:
        error = classify(Failure("Forbidden.RAM", 403), "computenest:GetServiceEstimateCost")
        assert error.denied_action == "computenest:GetServiceEstimateCost"
        assert "AliyunComputeNestUserFullAccess" in error.fix

    def test_a_business_refusal_with_403_is_no_missing_permission(self) -> None:
        for code in ("OperationDenied.NoStock", "Account.Arrearage"):
            error = classify(Failure(code, 403), "ecs:RunInstances")
            assert error.denied_action == ""
            assert not error.access

    @pytest.mark.parametrize("denied", [{}, {"AuthAction": 5}, {"AuthAction": None}])
    def test_an_odd_detail_is_survived(self, denied: dict[str, object]) -> None:
        error = classify(Failure("Forbidden.RAM", 403, denied=denied), "vpc:X")
        assert error.denied_action == "vpc:X"


class TestWords:
    def test_says_what_why_and_the_request_id(self) -> None:
        error = classify(
            Failure("OperationDenied.NoStock", 403, "Sold out in zone a.", "REQ-1"), "ecs:RunInstances"
        )
        assert str(error) == (
            "ecs:RunInstances failed (OperationDenied.NoStock, HTTP 403).\n"
            "Why: The zone is sold out. It says: Sold out in zone a. [request id REQ-1]\n"
            "What to do: Choose another alibaba.zone_id or worker_instance_type."
        )

    def test_bad_credentials_have_their_exit_code_whatever_their_status(self) -> None:
        for code, status in (("SignatureDoesNotMatch", 400), ("InvalidAccessKeyId.NotFound", 404)):
            assert exit_code_of(classify(Failure(code, status), "sts:X")) == AccessError.exit_code

    def test_no_answer_is_unreachable(self) -> None:
        assert exit_code_of(classify(Failure(), "sts:X")) == UnreachableError.exit_code

    def test_milliseconds_become_seconds(self) -> None:
        assert classify(Failure("Throttling", 429, retry_after_ms=1500), "a:b").retry_after == 1.5

    def test_a_server_that_names_a_time_is_asked_again(self) -> None:
        assert classify(Failure("Odd", 400, retry_after_ms=10), "a:b").verdict is R
        assert classify(Failure("InvalidParameter", 400, retry_after_ms=10), "a:b").verdict is P
        assert classify(Failure("", 403, retry_after_ms=10), "a:b").verdict is P

    def test_a_long_message_is_cut(self) -> None:
        assert len(classify(Failure("X", 400, "m" * 10_000), "a:b").why) < 600

    def test_malformed_is_unknown(self) -> None:
        error = malformed("vpc:DescribeEipAddresses", "The field RequestId is missing.")
        assert (error.verdict, error.code) == (U, "MalformedAnswer")
        assert "The field RequestId is missing." in error.why


texts = st.text(max_size=80)
codes = st.one_of(texts, st.sampled_from([row.prefix for row in TABLE]), st.builds(
    lambda row, tail: row.prefix + tail, st.sampled_from(TABLE), texts
))  # fmt: skip


@given(
    code=codes,
    status=st.one_of(st.none(), st.integers(100, 599)),
    message=texts,
    retry_after=st.one_of(st.none(), st.integers(1, 10**9)),
    denied=st.one_of(st.none(), st.dictionaries(st.sampled_from(["AuthAction", "NoPermissionType"]), texts)),
)
def test_any_failure_becomes_an_error_for_people(
    code: str,
    status: int | None,
    message: str,
    retry_after: int | None,
    denied: dict[str, str] | None,
) -> None:
    failure = Failure(code, status, message, "", retry_after, denied)
    error = classify(failure, "vpc:AllocateEipAddress")
    assert isinstance(error, CloudError)
    assert str(error).startswith("vpc:AllocateEipAddress failed")
    assert error.why
    assert exit_code_of(error) in (1, 3, 7)
    # Nothing is ever taken for done, or for absent, without the cloud's saying so.
    if not code:
        assert error.verdict is not G
    if status is None and not any(code.startswith(row.prefix) for row in TABLE):
        assert error.verdict is U
    assert (error.fix == GRANT) is False


ALLOWED = "()`~!@#$%^&*_-+=|{}[]:;<>,.?/"
passwords = st.text(
    alphabet=st.one_of(
        st.characters(min_codepoint=48, max_codepoint=57),
        st.characters(min_codepoint=65, max_codepoint=90),
        st.characters(min_codepoint=97, max_codepoint=122),
        st.sampled_from(ALLOWED),
    ),
    min_size=8,
    max_size=30,
)
ENCODINGS = [
    lambda p: p,
    lambda p: json.dumps({"LoginPassword": p}),
    lambda p: json.dumps({"Parameters": json.dumps({"LoginPassword": p})}),
    lambda p: repr({"LoginPassword": p, "ZoneId": "z"}),
    lambda p: quote_plus(json.dumps({"LoginPassword": p}, separators=(",", ":"))),
    lambda p: quote(json.dumps({"LoginPassword": p}), safe="~"),
    lambda p: quote(quote(json.dumps({"LoginPassword": p}), safe="~"), safe=""),
    lambda p: f"LoginPassword={quote_plus(p)}&X=1",
]


class TestRedaction:
    @given(password=passwords, encoding=st.sampled_from(ENCODINGS), around=st.tuples(texts, texts))
    def test_a_known_secret_never_shows(self, password, encoding, around) -> None:  # type: ignore[no-untyped-def]
        encoded = encoding(password)
        hidden = redact(encoded, [password])
        assert password not in hidden
        assert HIDDEN in hidden
        redact(around[0] + encoded + around[1], [password])

    @pytest.mark.parametrize("encoding", ENCODINGS[1:])
    def test_nor_one_that_is_only_known_by_its_field(self, encoding) -> None:  # type: ignore[no-untyped-def]
        for _ in range(20):
            password = generate_password()
            hidden = redact(encoding(password))
            assert password not in hidden
            assert "LoginPassword" in hidden
            assert HIDDEN in hidden

    def test_other_secret_fields(self) -> None:
        assert redact("a=1&SecurityToken=abc%2F&b=2") == "a=1&SecurityToken=***%2F&b=2"
        assert redact("AccessKeySecret: abc, next") == "AccessKeySecret: ***, next"

    def test_the_rest_of_the_text_stays(self) -> None:
        text = 'The parameters {"ZoneId":"a","LoginPassword":"abc1","Count":3} are wrong.'
        assert redact(text) == 'The parameters {"ZoneId":"a","LoginPassword":"***","Count":3} are wrong.'

    def test_plain_text_is_untouched(self) -> None:
        for text in ("Sold out.", "The Signature is fine", "SignatureNonce=5&SignatureMethod=ACS3"):
            assert redact(text, [""]) == text
