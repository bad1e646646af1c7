"""What a call has at hand: the world, the clock, the faults, and ways to make ids and remember tokens."""

from __future__ import annotations

import hashlib
import json
import secrets
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from raynest_pipeline.sandbox.cloud import policies
from raynest_pipeline.sandbox.cloud.errors import CloudError
from raynest_pipeline.sandbox.cloud.wire import Params
from raynest_pipeline.sandbox.cloud.world import Cluster, Token, World
from raynest_pipeline.sandbox.faults import Faults

#: The RAM user that the access key belongs to.
USER_NAME = "raynest-sandbox"


@dataclass
class Cloud:
    """The emulated account. `issue_kubeconfig(cluster_id, server, minutes)` gives the text and its expiry.

    `time_scale` multiplies every duration; `policies` are those attached to the user.
    """

    world: World
    faults: Faults
    issue_kubeconfig: Callable[[str, str, int], tuple[str, float]]
    policies: tuple[str, ...]
    root: bool = False
    time_scale: float = 1.0
    clock: Callable[[], float] = time.time
    #: Called after each change that must not be forgotten.
    save: Callable[[], None] = field(default=lambda: None)

    def allowed(self, action: str) -> bool:
        """Whether the caller may do a RAM action such as cs:ModifyCluster."""
        denied = self.faults.active("denied")
        pattern = denied["action"] if denied else None
        return policies.is_allowed(action, ("AdministratorAccess",) if self.root else self.policies, pattern)

    def require(self, action: str) -> None:
        """Raises the 403 CloudError that names the action, unless the caller may do it."""
        if not self.allowed(action):
            denied = self.faults.active("denied")
            explicit = denied is not None and policies.is_match(action, denied["action"])
            raise policies.denial(action, user=USER_NAME, account=self.world.account_id, explicit=explicit)

    def cluster(self, cluster_id: str) -> Cluster:
        """An existing cluster. Raises CloudError ErrorClusterNotFound."""
        cluster = self.world.clusters.get(cluster_id)
        if cluster is None:
            message = f"The specified cluster {cluster_id} does not exist."
            raise CloudError(404, "ErrorClusterNotFound", message)
        return cluster


@dataclass(frozen=True)
class Call:
    """One request: its parameters, path variables and JSON body, and the cloud it is made to."""

    cloud: Cloud
    product: str
    action: str
    params: Params
    path: Mapping[str, str] = field(default_factory=dict)
    body: Mapping[str, Any] = field(default_factory=dict)

    @property
    def world(self) -> World:
        """What exists."""
        return self.cloud.world

    @property
    def now(self) -> float:
        """The time, seconds since 1970."""
        return self.cloud.clock()

    def once(
        self, token: str, act: Callable[[], dict[str, Any]], *, mismatch: str, arguments: Any = None
    ) -> dict[str, Any]:
        """Do something at most once per ClientToken: the same token gets the first answer again.

        An empty token promises nothing. Other arguments with a used token raise CloudError `mismatch`.
        """
        if not token:
            return act()
        if len(token) > 64 or not token.isascii():
            raise CloudError(400, "InvalidParameter.ClientToken", "ClientToken: at most 64 ASCII characters.")
        if arguments is None:
            arguments = {key: value for key, value in self.params.values.items() if key != "ClientToken"}
        text = json.dumps(arguments, sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()
        key = f"{self.product}:{self.action}:{token}"
        used = self.world.tokens.get(key)
        if used is None:
            answer = act()
            self.world.tokens[key] = Token(digest, answer)
            return answer
        if used.digest != digest:
            message = f"The ClientToken {token} was used before with other parameters."
            raise CloudError(400, mismatch, message)
        return used.answer


Handler = Callable[[Call], Any]


def new_id(prefix: str, length: int = 20) -> str:
    """A resource id: the prefix and hexadecimal digits."""
    return prefix + secrets.token_hex(length)[:length]


def new_uuid() -> str:
    """An id in the shape of request and stack ids."""
    return str(uuid.uuid4())
