"""Cloud errors: what failed, why, and what to do, in words, without secrets."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from raynest_pipeline.alibaba.error_table import GRANT, MALFORMED, Row, row_for
from raynest_pipeline.alibaba.redaction import redact
from raynest_pipeline.errors import AccessError, RemoteError, Verdict

POLICIES = {
    "computenest": "AliyunComputeNestUserFullAccess",
    "computenestsupplier": "AliyunComputeNestSupplierFullAccess",
    "cs": "AliyunCSFullAccess",
    "ecs": "AliyunECSFullAccess",
    "vpc": "AliyunVPCFullAccess",
    "eip": "AliyunEIPFullAccess",
    "ros": "AliyunROSFullAccess",
    "ram": "AliyunRAMReadOnlyAccess",
}
"""The system policy that grants a product's actions."""

_MESSAGE_LIMIT = 400


class CloudError(RemoteError):
    """A call to the cloud failed and has been classified.

    Attributes:
        product: e.g. `vpc`.
        action: The API action, e.g. `AllocateEipAddress`.
        request_id: The cloud's id of the call, for its support; "" when none came.
        denied_action: The permission that is missing, e.g. `vpc:AllocateEipAddress`; "" when it isn't that.
        access: Whether credentials or permissions are the cause.
        doubtful: Whether an earlier attempt of the same call had an unknown outcome: this one's "no" does
            not mean that nothing was done.
    """

    def __init__(
        self,
        what: str,
        *,
        verdict: Verdict,
        product: str,
        action: str,
        code: str = "",
        status: int | None = None,
        retry_after: float | None = None,
        request_id: str = "",
        denied_action: str = "",
        access: bool = False,
        why: str = "",
        fix: str = "",
    ) -> None:
        super().__init__(
            what, verdict=verdict, code=code, status=status, retry_after=retry_after, why=why, fix=fix
        )
        self.product = product
        self.action = action
        self.request_id = request_id
        self.denied_action = denied_action
        self.access = access
        self.doubtful = False

    @property
    def exit_code_for_verdict(self) -> int:
        """As `RemoteError`'s, but bad credentials count as such whatever HTTP status they came with."""
        return AccessError.exit_code if self.access else super().exit_code_for_verdict


@dataclass(frozen=True)
class Failure:
    """What is known about a failed call, whatever raised it."""

    code: str = ""
    status: int | None = None
    message: str = ""
    request_id: str = ""
    retry_after_ms: int | None = None
    denied: Mapping[str, Any] | None = None
    """The answer's AccessDeniedDetail."""


def classify(failure: Failure, operation: str, secrets: Iterable[str] = ()) -> CloudError:
    """Turn a failure into an error for people, without secrets.

    Args:
        failure: What is known.
        operation: `product:Action`.
        secrets: Values that must not appear.
    """
    product, _, action = operation.partition(":")
    row = row_for(failure.code, failure.status)
    verdict = row.verdict
    if failure.retry_after_ms and verdict is Verdict.PERMANENT and not row.prefix and not row.access:
        # The server itself says when to come back, and no row of the table knows better.
        verdict = Verdict.RETRYABLE
    denied = _denied_action(failure, row, operation)
    why = " ".join(part for part in (row.why, _said(failure, secrets)) if part)
    return CloudError(
        f"{operation} failed{_shown(failure)}.",
        verdict=verdict,
        product=product,
        action=action,
        code=failure.code,
        status=failure.status,
        retry_after=failure.retry_after_ms / 1000 if failure.retry_after_ms else None,
        request_id=failure.request_id,
        denied_action=denied,
        access=row.access or bool(denied),
        why=why,
        fix=_grant(denied, failure) if denied else row.fix,
    )


def malformed(operation: str, detail: str) -> CloudError:
    """The error for an answer that lacks what the API promises; its effect is unknown."""
    return classify(Failure(code=MALFORMED, message=detail), operation)


def _shown(failure: Failure) -> str:
    known = [failure.code, f"HTTP {failure.status}" if failure.status else ""]
    shown = ", ".join(part for part in known if part)
    return f" ({shown})" if shown else ""


def _said(failure: Failure, secrets: Iterable[str]) -> str:
    # A refused signature comes with the whole string to sign, parameters and all.
    message = redact(failure.message.partition("server string to sign")[0].strip(), secrets)
    if len(message) > _MESSAGE_LIMIT:
        message = message[:_MESSAGE_LIMIT] + "..."
    request = f" [request id {failure.request_id}]" if failure.request_id else ""
    return f"It says: {message}{request}" if message else request.strip()


def _denied_action(failure: Failure, row: Row, operation: str) -> str:
    if failure.denied:
        named = failure.denied.get("AuthAction") or failure.denied.get("authAction")
        if isinstance(named, str) and named:
            return named
    return operation if row.access and row.fix == GRANT else ""


def _grant(action: str, failure: Failure) -> str:
    detail = failure.denied or {}
    who = detail.get("AuthPrincipalDisplayName") or detail.get("authPrincipalDisplayName")
    whom = f" to {who}" if isinstance(who, str) and who else ""
    kind = detail.get("NoPermissionType") or detail.get("noPermissionType")
    if kind == "ExplicitDeny":
        return f"A policy denies {action} explicitly{whom}: let the account's owner remove that Deny."
    policy = POLICIES.get(action.partition(":")[0].lower())
    hint = f" (the system policy {policy} contains it)" if policy else ""
    return f"Let the account's owner grant {action}{whom}{hint} in the RAM console."
