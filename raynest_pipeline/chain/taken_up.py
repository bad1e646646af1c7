"""Whether Serve runs what was applied: a RayService's status may still be that of the configuration before.

KubeRay stamps the new generation while Serve reports the old application RUNNING, and the old replica draws
the first image. So Serve itself is asked, which shows the marks that raynest put into the configuration.
"""

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from raynest_pipeline.chain.link import State
from raynest_pipeline.errors import RemoteError
from raynest_pipeline.kube.client import SECRET, KubeClient
from raynest_pipeline.kube.kinds import mapping, namespace_of, text
from raynest_pipeline.kube.rayservice import serve_config, status
from raynest_pipeline.kube.rayservice.serve import Deployed
from raynest_pipeline.kube.rayservice.wording import last_line

STALE_SECONDS = 45.0
"""What is seen this soon after a change may be of before: the operator looks every 2 s and Serve takes
6 to 9 s to rebuild an application (kuberay-and-serve facts 2.5)."""
GRACE_SECONDS = 60.0
"""What serves badly is given so long to come back: between two states of a rebuild there may be no endpoint
for a moment, and a proxy that answers 503 (kuberay-and-serve facts 2.7)."""
_TOKEN_KEY = "auth_token"
_FAILED = frozenset({"DEPLOY_FAILED", "UNHEALTHY"})


class TakeUp(StrEnum):
    """What Serve says about the configuration that the RayService has now."""

    RUNNING = "running"
    NOT_YET = "not yet"
    FAILED = "failed"
    UNKNOWN = "unknown"
    """Serve doesn't tell, or the configuration is a user's own, without a mark."""


@dataclass(frozen=True)
class Report:
    """A verdict with its cause."""

    verdict: TakeUp
    cause: str = ""


def compare(ray_service: Mapping[str, Any], deployed: Mapping[str, Deployed] | None) -> Report:
    """Judge by what Serve has deployed; None: it didn't tell."""
    marks = serve_config.marks_of(ray_service)
    if deployed is None or not marks or not all(marks.values()):
        return Report(TakeUp.UNKNOWN)
    for name, wanted in marks.items():
        app = deployed.get(name)
        if app is None or not wanted.items() <= app.variables.items():
            return Report(TakeUp.NOT_YET, f"Serve does not run the RayService's configuration of {name} yet")
        if app.status.status in _FAILED:
            said = last_line(app.status.worst_message)
            return Report(TakeUp.FAILED, f"application {name}: {app.status.status}: {said}".rstrip(": "))
        if not app.status.serving:
            return Report(TakeUp.NOT_YET, f"application {name}: {app.status.status}")
    return Report(TakeUp.RUNNING)


def ray_token(client: KubeClient, ray_service: Mapping[str, Any]) -> str | None:
    """Ray's own token of the active cluster; None without token authentication, or when it can't be read.

    KubeRay keeps it in a Secret that is called as the RayCluster, unless authOptions.secretName is set.
    """
    config = mapping(mapping(ray_service.get("spec")).get("rayClusterConfig"))
    options = mapping(config.get("authOptions"))
    if options.get("mode") != "token":
        return None
    name = text(options.get("secretName")) or status.parse(ray_service).cluster.name
    try:
        secret = client.get(SECRET, name, namespace_of(ray_service)) or {}
        return base64.b64decode(text(mapping(secret.get("data")).get(_TOKEN_KEY))).decode() or None
    except (RemoteError, binascii.Error, UnicodeDecodeError):
        return None


class Applied:
    """An apply, and what was seen since: for configurations about which Serve cannot be asked."""

    def __init__(self, before: Mapping[str, Any] | None, now: float) -> None:
        """`before`: the RayService before the apply, if there was one. `now`: on the monotonic clock."""
        self.anything = True
        self._cluster = status.parse(before or {}).active.name
        self._restless = before is None
        self._believe_at = now + STALE_SECONDS
        self._failure_at = self._believe_at
        self._final = False
        self._broken_since: float | None = None

    def saw(self, ray_service: Mapping[str, Any], state: State, now: float) -> None:
        """Take note of a sighting: the RayService, what was judged of it, and when (monotonic clock)."""
        seen = status.parse(ray_service)
        self._final = status.judge(seen).state is status.ReadyState.FAILED
        if state is not State.BROKEN:
            self._broken_since = None
        elif self._broken_since is None:
            self._broken_since = now
        restless = any(not app.serving for app in seen.active.apps) or bool(seen.pending.name)
        self._restless = self._restless or restless or seen.active.name != self._cluster
        if state is State.PENDING:
            # It has moved on: a failure from now on is one of the new configuration.
            self._failure_at = 0.0

    def believes_ready(self, now: float) -> bool:
        """Whether READY can be of the new configuration, as far as sightings tell."""
        return self._restless or now >= self._believe_at

    def believes_failure(self, now: float) -> bool:
        """Whether what is broken is the new configuration's failure and stays: a failed application does at
        once, anything else when it has lasted.
        """
        lasted = self._broken_since is not None and now - self._broken_since >= GRACE_SECONDS
        return now >= self._failure_at and (self._final or lasted)


def nothing_applied() -> Applied:
    """For a wait without an apply: everything seen is believed."""
    nothing = Applied(None, -STALE_SECONDS)
    nothing.anything = False
    return nothing
