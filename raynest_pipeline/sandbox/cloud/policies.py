"""Who may do what: the RAM policies of the account's user, and the denials that a fault adds."""

from __future__ import annotations

import base64
import fnmatch
from collections.abc import Iterable
from typing import Any

from raynest_pipeline.sandbox.cloud.errors import CloudError

#: What a system policy allows, as patterns of RAM actions.
GRANTS: dict[str, tuple[str, ...]] = {
    "AdministratorAccess": ("*",),
    "AliyunCSFullAccess": ("cs:*",),
    "AliyunECSFullAccess": ("ecs:*",),
    "AliyunVPCFullAccess": ("vpc:*",),
    "AliyunROSFullAccess": ("ros:*",),
    "AliyunRAMReadOnlyAccess": ("ram:Get*", "ram:List*"),
    "AliyunComputeNestUserFullAccess": ("computenest:*",),
    "AliyunComputeNestUserReadOnlyAccess": ("computenest:Get*", "computenest:List*", "computenest:Check*"),
    "AliyunComputeNestSupplierFullAccess": ("computenestsupplier:*",),
}

#: What deploying the service does in the user's name, by RAM service.
DEPLOY_ACTIONS: dict[str, tuple[str, ...]] = {
    "ros": ("ros:CreateStack", "ros:DeleteStack"),
    "cs": ("cs:CreateCluster", "cs:DescribeClusterUserKubeconfig", "cs:DeleteCluster"),
    "vpc": ("vpc:CreateVpc", "vpc:CreateVSwitch", "vpc:CreateNatGateway", "vpc:AllocateEipAddress"),
    "ecs": ("ecs:RunInstances", "ecs:DeleteInstance"),
}

# Nobody can be denied to ask who they are.
_FREE = ("sts:GetCallerIdentity",)


def is_allowed(action: str, policies: Iterable[str], denied: str | None) -> bool:
    """Whether the RAM action (vpc:AllocateEipAddress) is granted and not denied.

    `denied` is a pattern of an action, with its product or without.
    """
    if action in _FREE:
        return True
    if denied is not None and is_match(action, denied):
        return False
    return any(fnmatch.fnmatchcase(action, grant) for policy in policies for grant in GRANTS.get(policy, ()))


def is_match(action: str, pattern: str) -> bool:
    """Whether a pattern (vpc:Allocate*, AllocateEipAddress) means this RAM action."""
    return fnmatch.fnmatchcase(action, pattern) or action.partition(":")[2] == pattern


def denial(action: str, *, user: str, account: str, explicit: bool) -> CloudError:
    """The refusal of an action, with the detail that names it."""
    detail: dict[str, Any] = {
        "AuthAction": action,
        "AuthPrincipalType": "SubUser",
        "AuthPrincipalDisplayName": user,
        "AuthPrincipalOwnerId": account,
        "PolicyType": "AccountLevelIdentityBasedPolicy",
        "NoPermissionType": "ExplicitDeny" if explicit else "ImplicitDeny",
        "EncodedDiagnosticMessage": base64.b64encode(action.encode()).decode(),
    }
    code = "StatusForbidden" if action.startswith("cs:") else "NoPermission"
    message = f"You are not authorized to do this action. Action: {action}."
    return CloudError(403, code, message, AccessDeniedDetail=detail)
