"""STS and RAM: who the caller is, and which policies are attached to the user."""

from __future__ import annotations

from typing import Any

from raynest_pipeline.sandbox.cloud.context import USER_NAME, Call, Handler
from raynest_pipeline.sandbox.cloud.errors import CloudError

_GROUP = "raynest-operators"
_ATTACHED = "2025-02-20T08:00:00Z"


def get_caller_identity(call: Call) -> dict[str, Any]:
    """GetCallerIdentity: a RAM user, or the account itself."""
    world = call.world
    root = call.cloud.root
    return {
        "IdentityType": "Account" if root else "RAMUser",
        "AccountId": world.account_id,
        "UserId": world.account_id if root else world.user_id,
        "PrincipalId": world.account_id if root else world.user_id,
        "Arn": f"acs:ram::{world.account_id}:{'root' if root else 'user/' + USER_NAME}",
    }


def list_policies_for_user(call: Call) -> dict[str, Any]:
    """ListPoliciesForUser: all but the last policy hang on the user, so that groups must be read too."""
    _check_user(call)
    return _policies(call.cloud.policies[:-1])


def list_groups_for_user(call: Call) -> dict[str, Any]:
    """ListGroupsForUser: one group."""
    _check_user(call)
    group = {"GroupId": "g-sandbox", "GroupName": _GROUP, "JoinDate": _ATTACHED, "Comments": ""}
    return {"Groups": {"Group": [group]}}


def list_policies_for_group(call: Call) -> dict[str, Any]:
    """ListPoliciesForGroup: the last of the user's policies hangs on the group."""
    if call.params.required("GroupName") != _GROUP:
        raise CloudError(404, "EntityNotExist.Group", "The group does not exist.")
    return _policies(call.cloud.policies[-1:])


def _check_user(call: Call) -> None:
    name = call.params.required("UserName")
    if name != USER_NAME:
        raise CloudError(404, "EntityNotExist.User", f"The user does not exist: {name}.")


def _policies(names: tuple[str, ...]) -> dict[str, Any]:
    found = [
        {
            "PolicyName": name,
            "PolicyType": "System",
            "DefaultVersion": "v1",
            "AttachDate": _ATTACHED,
            "Description": "",
        }
        for name in names
    ]
    return {"Policies": {"Policy": found}}


STS_HANDLERS: dict[str, Handler] = {"GetCallerIdentity": get_caller_identity}
RAM_HANDLERS: dict[str, Handler] = {
    "ListPoliciesForUser": list_policies_for_user,
    "ListGroupsForUser": list_groups_for_user,
    "ListPoliciesForGroup": list_policies_for_group,
}
