"""A RayService's status and its conditions, computed purely (facts 2.2, 2.3, 2.8)."""

from __future__ import annotations

import copy
import re
from dataclasses import dataclass
from typing import Any

from raynest_pipeline.sandbox.kube.store import Object
from raynest_pipeline.sandbox.kuberay import cluster_status, objects

_INITIALIZING = "RayService is initializing"
_READY = "Ready"
_UPGRADE = "UpgradeInProgress"


@dataclass(frozen=True)
class Side:
    """The active or the pending half: its RayCluster's name ("" for none), object and applications."""

    name: str = ""
    cluster: Object | None = None
    applications: dict[str, Any] | None = None

    def status(self) -> dict[str, Any]:
        """activeServiceStatus or pendingServiceStatus."""
        found: dict[str, Any] = {}
        if self.applications:
            found["applicationStatuses"] = self.applications
        if self.name:
            found["rayClusterName"] = self.name
        cluster = (self.cluster or {}).get("status")
        found["rayClusterStatus"] = copy.deepcopy(cluster or cluster_status.EMPTY)
        return found


def compute(
    rayservice: Object, active: Side, pending: Side, endpoints: int, *, timeout: float | None = None
) -> dict[str, Any]:
    """The new status. `timeout`: seconds after which initializing fails for good, None for never."""
    generation = rayservice["metadata"].get("generation", 1)
    conditions = Conditions((rayservice.get("status") or {}).get("conditions"), generation)
    if conditions.judge_ready(endpoints, timeout) == "InitializingTimeout":
        active, pending = Side(), Side()
    conditions.judge_upgrade(bool(active.name), bool(pending.name))
    status: dict[str, Any] = {
        "activeServiceStatus": active.status(),
        "conditions": conditions.entries,
        "observedGeneration": generation,
        "pendingServiceStatus": pending.status(),
    }
    if endpoints:
        status["numServeEndpoints"] = endpoints
    if conditions.find(_READY)["status"] == "True":
        status["serviceStatus"] = "Running"
    return status


class Conditions:
    """Ready and UpgradeInProgress, as KubeRay's calculateConditions moves them on."""

    def __init__(self, old: list[dict[str, Any]] | None, generation: int) -> None:
        self.entries = copy.deepcopy(old or [])
        self._generation = generation
        if not self.entries:
            self._put(_READY, "False", "Initializing", _INITIALIZING)
            self._put(_UPGRADE, "False", "Initializing", _INITIALIZING)

    def find(self, kind: str) -> dict[str, Any]:
        """The condition of that type, or an empty one."""
        return next((each for each in self.entries if each["type"] == kind), {})

    def _put(self, kind: str, status: str, reason: str, message: str) -> None:
        entry = {"type": kind, "status": status, "reason": reason, "message": message}
        objects.set_condition(self.entries, {**entry, "observedGeneration": self._generation})

    def judge_ready(self, endpoints: int, timeout: float | None) -> str:
        """Ready by the number of endpoints; its reason."""
        ready = self.find(_READY)
        waited = _initializing_for(ready)
        if endpoints > 0:
            self._put(_READY, "True", "NonZeroServeEndpoints", "Number of serve endpoints is greater than 0")
        elif ready.get("status") == "True":
            self._put(_READY, "False", "ZeroServeEndpoints", "Number of serve endpoints dropped to 0")
        elif timeout is not None and waited > timeout:
            message = (
                "RayService failed to become ready within the configured timeout of "
                f"{show_duration(timeout)}. Time spent initializing: {show_duration(waited)}"
            )
            self._put(_READY, "False", "InitializingTimeout", message)
            self._put(_UPGRADE, "False", "InitializingTimeout", message)
        return str(self.find(_READY).get("reason", ""))

    def judge_upgrade(self, active: bool, pending: bool) -> None:
        """UpgradeInProgress by which clusters there are."""
        if active and pending:
            message = "Both active and pending Ray clusters exist"
            self._put(_UPGRADE, "True", "BothActivePendingClustersExist", message)
        elif active:
            message = "Active Ray cluster exists and no pending Ray cluster"
            self._put(_UPGRADE, "False", "NoPendingCluster", message)
        elif self.find(_UPGRADE).get("reason") not in ("Initializing", "InitializingTimeout"):
            message = "No active Ray cluster exists, and the RayService is not initializing. "
            message += "Please open a GitHub issue in the KubeRay repository."
            self._put(_UPGRADE, "Unknown", "NoActiveCluster", message)


def invalid(rayservice: Object, message: str) -> dict[str, Any]:
    """The status of a RayService whose spec fails validation (since 1.6)."""
    status: dict[str, Any] = copy.deepcopy(rayservice.get("status") or {})
    entry = {"type": _READY, "status": "False", "reason": "ValidationFailed", "message": message}
    entry["observedGeneration"] = rayservice["metadata"].get("generation", 1)
    objects.set_condition(status.setdefault("conditions", []), entry)
    return status


def differs(old: dict[str, Any], new: dict[str, Any]) -> bool:
    """Whether KubeRay would write (utils/consistency.go).

    It looks at serviceStatus, numServeEndpoints, the conditions, the cluster names and the application
    statuses; a change of rayClusterStatus or of the outer observedGeneration alone is not written.
    """
    return _watched(old) != _watched(new)


def _watched(status: dict[str, Any]) -> list[Any]:
    sides = [status.get(key) or {} for key in ("activeServiceStatus", "pendingServiceStatus")]
    return [
        status.get("serviceStatus", ""),
        status.get("numServeEndpoints", 0),
        status.get("conditions") or [],
        *[[side.get("rayClusterName", ""), side.get("applicationStatuses") or {}] for side in sides],
    ]


def is_timed_out(rayservice: Object) -> bool:
    """Whether initializing has failed for good: the RayService must be deleted and made again."""
    found = objects.condition(rayservice, _READY) or {}
    return found.get("reason") == "InitializingTimeout"


def _initializing_for(ready: dict[str, Any]) -> float:
    if ready.get("reason") != "Initializing" or "lastTransitionTime" not in ready:
        return 0.0
    return objects.seconds_since(ready["lastTransitionTime"])


def parse_duration(text: str) -> float | None:
    """Seconds of ray.io/initializing-timeout: a Go duration ("1h30m") or whole seconds; None if neither."""
    if text.isdigit():
        return float(text)
    parts = re.findall(r"(\d+(?:\.\d+)?)(h|m|s)", text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        return None
    return sum(float(number) * {"h": 3600, "m": 60, "s": 1}[unit] for number, unit in parts)


def show_duration(seconds: float) -> str:
    """As Go prints a duration of whole seconds: 30m0s."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return (f"{hours}h" if hours else "") + (f"{minutes}m" if hours or minutes else "") + f"{rest}s"
