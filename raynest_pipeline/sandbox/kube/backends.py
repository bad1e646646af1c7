"""What the API server needs from whatever plays the nodes: addresses of endpoints and logs of pods."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol

Address = tuple[str, int]


class Backends(Protocol):
    """The data plane behind the API server's proxy and log subresources.

    All three answer for objects that exist in the store; the API server has looked them up before.
    """

    def resolve(self, namespace: str, service: str, port: str) -> Address | None:
        """A ready endpoint's loopback (host, port) for a service's port number or name.

        None answers 503 `no endpoints available for service "…"`.
        """
        ...

    def pod_address(self, namespace: str, pod: str, port: str) -> Address | None:
        """The loopback (host, port) behind a pod's port; None answers 503 (connection refused)."""
        ...

    def logs(
        self, namespace: str, pod: str, container: str | None, *, tail: int | None, follow: bool
    ) -> AsyncIterator[bytes]:
        """The container's log, in pieces of any size. `tail`: only the last lines.

        With `follow` the iterator goes on until the container ends. Raise `errors.ApiError` (400) for a
        container that hasn't started: `container "x" in pod "y" is waiting to start: ContainerCreating`.
        """
        ...
