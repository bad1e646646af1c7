"""STS (2015-04-01): who am I."""

from dataclasses import dataclass

from raynest_pipeline.alibaba.access import CloudAccess
from raynest_pipeline.alibaba.answers import Answer, rpc


@dataclass(frozen=True)
class Caller:
    """The identity behind the credentials."""

    identity_type: str
    """Account | RAMUser | AssumedRoleUser"""
    account_id: str
    arn: str
    name: str
    """Of the RAM user or role; "root" for the account itself."""

    @property
    def is_root(self) -> bool:
        """Whether it is the account itself, which may do everything."""
        return self.identity_type == "Account"


class Identity:
    """The caller's identity."""

    def __init__(self, access: CloudAccess) -> None:
        self._access = access

    def caller(self) -> Caller:
        """Who the credentials belong to. Needs no permission.

        Raises:
            CloudError: Classified.
        """
        return self._access.read(
            "sts", "GetCallerIdentity", lambda client, models: client.get_caller_identity(), _caller
        )


def _caller(answer: Answer) -> Caller:
    arn = rpc(answer).required("Arn")
    return Caller(
        identity_type=answer.required("IdentityType"),
        account_id=answer.required("AccountId"),
        arn=arn,
        name=_name(arn),
    )


def _name(arn: str) -> str:
    """Of `acs:ram::<account>:user/<name>`, `...:assumed-role/<role>/<session>` or `...:root`."""
    parts = arn.rpartition(":")[2].split("/")
    return parts[1] if len(parts) > 1 else parts[0]
