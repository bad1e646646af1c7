"""What each error code of the cloud means: one row per family, with its reason.

Products disagree about the HTTP status of a code, so codes decide first, by prefix, and the status only
after them. The codes are those of facts section 9 (general platform errors), 5 (EIP) and 3 (Compute Nest).
"""

from collections.abc import Mapping
from typing import NamedTuple

from raynest_pipeline.errors import Verdict

MALFORMED = "MalformedAnswer"
"""Code of our own: the call was answered, but not with what the API promises."""
NO_ANSWER = "NoAnswer"
"""Code of our own: the call may or may not have arrived."""
NOT_SENT = "NotSent"
"""Code of our own: no connection came about, so nothing has been done."""
NO_CREDENTIALS = "InvalidCredentials"
"""The SDK's code when a credential provider fails."""


class Row(NamedTuple):
    """What one family of error codes means."""

    prefix: str
    """Of the code; the longest prefix that fits decides."""
    verdict: Verdict
    why: str
    fix: str = ""
    access: bool = False


_AGAIN = "Run the same command again in a minute."
_KEYS = "Correct alibaba.access_key_id and access_key_secret, or the credentials of your environment."
GRANT = "Let the account's owner grant the missing permission in the RAM console."
_OTHER_NAME = "Remove what that one made (raynest down), or change the name."
_BUG = "If the settings are right, please report this with the request id."
_R, _P, _G, _U = Verdict.RETRYABLE, Verdict.PERMANENT, Verdict.GONE, Verdict.UNKNOWN

TABLE: tuple[Row, ...] = (
    # The cloud is busy: the same call works later.
    Row("Throttling", _R, "The account's request rate is used up.", _AGAIN),
    Row("FlowControl", _R, "The account's request rate is used up.", _AGAIN),
    Row("ServiceUnavailable", _R, "The service is unavailable for the moment.", _AGAIN),
    Row("SystemBusy", _R, "The service is busy.", _AGAIN),
    Row("ServiceBusy", _R, "The service is busy.", _AGAIN),
    Row("OperationFailed.SystemBusy", _R, "The service is busy.", _AGAIN),
    Row("FrequentPurchase.EIP", _R, "Addresses were bought too quickly after each other.", _AGAIN),
    # Something else is going on with the same thing: it ends by itself.
    Row(
        "LastTokenProcessing",
        _R,
        "An earlier try of the same request is still being worked on.",
        _AGAIN,
    ),
    Row("OperationConflict", _R, "Another operation on the same resource is running.", _AGAIN),
    Row("TaskConflict", _R, "Another task on the same resource is running.", _AGAIN),
    Row("IncorrectStatus", _R, "The resource is between two states.", _AGAIN),
    Row("IncorrectEipStatus", _R, "The address is between two states.", _AGAIN),
    Row("IncorrectInstanceStatus", _R, "The instance is between two states.", _AGAIN),
    Row("ErrorClusterState", _R, "Another operation on the cluster is running.", _AGAIN),
    # The server broke in the middle: it may have done the work.
    Row(
        "InternalError",
        _U,
        "The service had an internal error; the call may have taken effect.",
        _AGAIN,
    ),
    Row("UnknownError", _U, "The service had an unknown error; the call may have taken effect.", _AGAIN),
    Row(
        "SignatureNonceUsed",
        _U,
        "Something on the way sent the request twice; the first may have worked.",
        _AGAIN,
    ),
    Row(
        NO_ANSWER,
        _U,
        "The connection broke, or the answer was no JSON: the call may have taken effect.",
        _AGAIN,
    ),
    Row(MALFORMED, _U, "The answer is not what the API promises.", _AGAIN),
    Row(
        NOT_SENT,
        _R,
        "No connection came about.",
        "Check the network, and HTTP(S)_PROXY if you use one.",
    ),
    # Credentials.
    Row(NO_CREDENTIALS, _P, "There are no usable credentials.", _KEYS, True),
    Row("MissingAccessKeyId", _P, "The request carried no credentials.", _KEYS, True),
    Row(
        "InvalidAccessKeyId",
        _P,
        "The cloud does not know the access key, or it is disabled.",
        _KEYS,
        True,
    ),
    Row("InvalidAccessKeySecret", _P, "The access key's secret is wrong.", _KEYS, True),
    Row("SignatureDoesNotMatch", _P, "The access key's secret is wrong.", _KEYS, True),
    Row(
        "IncompleteSignature",
        _P,
        "The signature is incomplete: something on the way changed the request.",
        "Check your proxy.",
        True,
    ),
    Row("InvalidTimeStamp", _P, "This machine's clock is wrong.", "Set the clock (NTP).", True),
    Row(
        "InvalidSecurityToken",
        _P,
        "The temporary credentials have expired or are damaged.",
        "Get new ones.",
        True,
    ),
    # Permission.
    Row("Forbidden", _P, "The caller is not allowed to do this.", GRANT, True),
    Row("NoPermission", _P, "The caller is not allowed to do this.", GRANT, True),
    Row("StatusForbidden", _P, "The caller is not allowed to do this.", GRANT, True),
    Row("Unauthorized", _P, "The caller is not allowed to do this.", GRANT, True),
    Row("NotAuthorized", _P, "The caller is not allowed to do this.", GRANT, True),
    Row(
        "Forbidden.ChargeTypeIsPrepaid",
        _P,
        "A prepaid address cannot be released before its term ends.",
    ),
    Row(
        "InvalidOperation.DeletionProtection",
        _P,
        "Deletion protection is on.",
        "Turn it off in the console.",
    ),
    # Gone: what we ask about (or want to delete) isn't there.
    Row("ServiceInstanceNotFound", _G, "There is no such service instance."),
    Row("EntityNotExist", _G, "There is no such thing."),
    Row("ServiceNotFound", _G, "There is no such service in this region."),
    Row("ErrorClusterNotFound", _G, "There is no such cluster."),
    Row("ClusterNotFound", _G, "There is no such cluster."),
    Row("ErrorTaskNotFound", _G, "There is no such task."),
    Row("InvalidAllocationId.NotFound", _G, "There is no such address."),
    Row("StackNotFound", _G, "There is no such stack."),
    # Business: money, quota, stock.
    Row(
        "QuotaExceeded",
        _P,
        "The account's quota is used up.",
        "Raise it in the Quota Center, or delete what you no longer need.",
    ),
    Row("InsufficientBalance", _P, "The account's balance is too low.", "Top up the account."),
    Row(
        "InvalidAccountStatus.NotEnoughBalance",
        _P,
        "The account's balance is too low.",
        "Top up the account.",
    ),
    Row(
        "OrderFailed",
        _P,
        "The order was refused: overdue bills, or a payment method is missing.",
        "Look at the account's Expenses page.",
    ),
    Row(
        "OperationFailed.RiskControl",
        _P,
        "The account's risk control refused the purchase.",
        "Contact the cloud's support.",
    ),
    Row(
        "OperationDenied.NoStock",
        _P,
        "The zone is sold out.",
        "Choose another alibaba.zone_id or worker_instance_type.",
    ),
    Row("Zone.NotOnSale", _P, "The zone sells no machines now.", "Choose another alibaba.zone_id."),
    Row("ReserveIpFail", _P, "The region has no free addresses now.", "Try again later."),
    Row(
        "InvalidRegion.NotSupport",
        _P,
        "The region does not offer this.",
        "Choose another alibaba.region_id.",
    ),
    # Input.
    Row(
        "IdempotentParameterMismatch",
        _P,
        "The same request was made before with other settings.",
        _OTHER_NAME,
    ),
    Row(
        "TokenVerfiy.Failed",
        _P,
        "The same request was made before with other settings.",
        _OTHER_NAME,
    ),
    Row("InvalidRegionId", _P, "There is no such region.", "Correct alibaba.region_id."),
    Row("InvalidZoneId", _P, "There is no such zone.", "Correct alibaba.zone_id, or unset it."),
    Row("InvalidInstanceType", _P, "There is no such type.", "Correct alibaba.worker_instance_type."),
    Row("MissingParameter", _P, "The request lacks a parameter.", _BUG),
    Row("InvalidParameter", _P, "A parameter is not valid.", _BUG),
    Row("StackValidationFailed", _P, "The template refuses the parameters.", _BUG),
)

_BY_STATUS: Mapping[int, Row] = {
    401: Row("", _P, "The cloud does not accept the credentials.", _KEYS, True),
    429: Row("", _R, "Too many requests.", _AGAIN),
    503: Row("", _R, "The service is unavailable for the moment.", _AGAIN),
}
_FORBIDDEN = Row("", _P, "The caller is not allowed to do this.", GRANT, True)
_BY_CLASS: Mapping[int, Row] = {
    4: Row("", _P, "The cloud refused the request.", _BUG),
    5: Row("", _U, "The service failed; the call may have taken effect.", _AGAIN),
}
_LOST = Row("", _U, "There was no usable answer: the call may have taken effect.", _AGAIN)


def row_for(code: str, status: int | None) -> Row:
    """The table's row for an error code, else for an HTTP status, else for no answer at all."""
    fitting = [row for row in TABLE if _has_prefix(code, row.prefix)]
    if fitting:
        return max(fitting, key=lambda row: len(row.prefix))
    if status is None:
        return _LOST
    # With a code of its own a 403 is as often about money or state as about permission.
    if status == 403 and not code:
        return _FORBIDDEN
    return _BY_STATUS.get(status) or _BY_CLASS.get(status // 100) or _LOST


def _has_prefix(code: str, prefix: str) -> bool:
    # Families continue with a dot (Throttling.User), or run on in one word (ForbiddenXxx of CS).
    return bool(code) and code.startswith(prefix)
