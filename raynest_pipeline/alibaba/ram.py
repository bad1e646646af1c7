"""RAM (2015-05-01): which policies are attached to the caller. A hint, no proof."""

from typing import Any

from raynest_pipeline.alibaba.access import CloudAccess
from raynest_pipeline.alibaba.answers import Answer, rpc
from raynest_pipeline.alibaba.errors import CloudError
from raynest_pipeline.alibaba.sts import Caller
from raynest_pipeline.errors import Verdict


class Policies:
    """Attached policies."""

    def __init__(self, access: CloudAccess) -> None:
        self._access = access

    def attached_policies(self, caller: Caller) -> set[str] | None:
        """Names of the policies attached to a user (its groups' too) or a role.

        None: not known, because reading them is itself denied. A custom policy, or one on a resource group,
        grants without its name showing up here; so a missing name proves nothing. The account itself has none
        and needs none.

        Raises:
            CloudError: Classified; but not when it is denied, or the user's name is not known to RAM.
        """
        try:
            if caller.identity_type == "RAMUser":
                return self._of_user(caller.name)
            if caller.identity_type == "AssumedRoleUser":
                return self._policies("ListPoliciesForRole", "list_policies_for_role", role_name=caller.name)
        except CloudError as error:
            if error.access or error.verdict in (Verdict.PERMANENT, Verdict.GONE):
                return None
            raise
        return set() if caller.is_root else None

    def _of_user(self, name: str) -> set[str]:
        found = self._policies("ListPoliciesForUser", "list_policies_for_user", user_name=name)
        for group in self._list("ListGroupsForUser", "list_groups_for_user", _groups, user_name=name):
            found |= self._policies("ListPoliciesForGroup", "list_policies_for_group", group_name=group)
        return found

    def _policies(self, action: str, method: str, **request: str) -> set[str]:
        return set(self._list(action, method, _policy_names, **request))

    def _list(self, action: str, method: str, parse: Any, **request: str) -> list[str]:
        def send(client: Any, models: Any) -> Any:
            return getattr(client, method)(getattr(models, f"{action}Request")(**request))

        names: list[str] = self._access.read("ram", action, send, parse)
        return names


def _policy_names(answer: Answer) -> list[str]:
    return [item.required("PolicyName") for item in rpc(answer).child("Policies").children("Policy")]


def _groups(answer: Answer) -> list[str]:
    return [item.required("GroupName") for item in rpc(answer).child("Groups").children("Group")]
