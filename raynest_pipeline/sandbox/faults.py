"""What can be made to go wrong in a running sandbox, and the registry of what is going wrong now.

A fault is set by name with parameters, from the command line or a test, and honoured by whichever room of the
sandbox plays the part that fails. Setting a fault again replaces its parameters.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Scalar = str | int | float | bool | None


class UnknownFaultError(ValueError):
    """The fault or its parameter does not exist, or the parameter's value has the wrong type."""


@dataclass(frozen=True)
class Parameter:
    """One parameter of a fault: its type, its value when it isn't given, and what it means."""

    kind: type[str] | type[int] | type[float]
    default: Scalar
    meaning: str

    def parse(self, value: Any) -> Scalar:
        """The value in this parameter's type; text (from a command line) is converted, "none" is None."""
        if value is None or (isinstance(value, str) and value.lower() in ("", "none")):
            return None
        if isinstance(value, bool) or not isinstance(value, (str, int, float)):
            raise ValueError(f"expected {self.kind.__name__}")
        return self.kind(value)


@dataclass(frozen=True)
class FaultSpec:
    """A fault that can be set: what it does, its parameters, and which room of the sandbox honours it."""

    name: str
    does: str
    parameters: Mapping[str, Parameter]
    honoured_by: str
    #: The parameter that says for how many seconds after it was set the fault lasts, where it has one.
    lasts: str | None = None


def _count(default: int | None, of: str) -> Parameter:
    return Parameter(int, default, f"how many {of}; none = until cleared")


_ACTION = Parameter(str, None, "only this action, such as CreateServiceInstance; none = every call")

_SPECS = (
    FaultSpec(
        "throttling",
        "cloud calls are refused with Throttling.User",
        {
            "count": _count(3, "calls"),
            "action": _ACTION,
            "retry_after_ms": Parameter(int, None, "sent as x-acs-retry-after; none = no such header"),
        },
        "cloud",
    ),
    FaultSpec(
        "unavailable",
        "cloud calls are answered with HTTP 503 and an HTML page",
        {"count": _count(3, "calls"), "action": _ACTION},
        "cloud",
    ),
    FaultSpec(
        "lost_response",
        "the call is carried out, then the connection drops, so that the caller doesn't know",
        {"count": _count(1, "calls"), "action": _ACTION},
        "cloud",
    ),
    FaultSpec(
        "denied",
        "the RAM user may not do this action: 403 with AccessDeniedDetail",
        {"action": Parameter(str, "*", "the action, or a pattern such as cs:*")},
        "cloud",
    ),
    FaultSpec(
        "sold_out",
        "instance types are out of stock; deployments fail for want of them",
        {
            "zone": Parameter(str, None, "only in this zone; none = in every zone"),
            "instance_type": Parameter(str, None, "only this type; none = every type"),
        },
        "cloud",
    ),
    FaultSpec(
        "failed_deployment",
        "service instances that are deploying end in DeployedFailed",
        {
            "reason": Parameter(str, "Resource creation failed: the vCPU quota is used up.", "StatusDetail"),
            "count": _count(None, "instances"),
        },
        "cloud",
    ),
    FaultSpec(
        "slow_task",
        "deployments, deletions and cluster tasks take longer while this is set",
        {"seconds": Parameter(float, 30.0, "how much longer, in real seconds")},
        "cloud",
    ),
    FaultSpec(
        "lost_endpoint",
        "the API server's public address goes away behind the user's back",
        {
            "mode": Parameter(str, "unbound", "unbound = the address stays, unused; released = it is gone"),
            "count": _count(1, "endpoints"),
        },
        "cloud",
    ),
    FaultSpec("expired_token", "kubeconfigs issued before the fault was set get 401", {}, "kube"),
    FaultSpec(
        "deploy_failed",
        "the Serve application ends in DEPLOY_FAILED",
        {
            "message": Parameter(
                str, "RuntimeError: the model's weights could not be loaded", "what it says"
            ),
            "count": _count(1, "deployments, the running one being the first"),
        },
        "kuberay",
    ),
    FaultSpec("dead_worker", "a Ray worker pod dies", {"count": _count(1, "workers")}, "kuberay"),
    FaultSpec("dead_head", "the Ray head pod dies", {"count": _count(1, "heads")}, "kuberay"),
    FaultSpec("missing_gpu", "no node offers a GPU: pods that ask for one stay unschedulable", {}, "kuberay"),
    FaultSpec(
        "image_pull_error",
        "container images can't be pulled (ErrImagePull, ImagePullBackOff)",
        {"seconds": Parameter(float, None, "for how long; none = until cleared")},
        "kuberay",
        lasts="seconds",
    ),
    FaultSpec("unhealthy_app", "the Serve application answers errors and turns UNHEALTHY", {}, "kuberay"),
)

#: Every fault by its name.
FAULTS: dict[str, FaultSpec] = {spec.name: spec for spec in _SPECS}


class Faults:
    """The faults that are set, by name. Safe to use from several threads.

    `saved` is what `dump` once gave. A fault's record holds all its parameters and `since`, the time it was
    set (seconds since 1970).
    """

    def __init__(
        self, saved: Mapping[str, dict[str, Any]] | None = None, *, clock: Callable[[], float] = time.time
    ) -> None:
        self._clock = clock
        self._lock = threading.RLock()
        self._listeners: list[Callable[[str], None]] = []
        self._set: dict[str, dict[str, Any]] = {name: dict(record) for name, record in (saved or {}).items()}

    def set(self, name: str, **params: Any) -> dict[str, Any]:
        """Set a fault and return its record. Raises UnknownFaultError, naming what may be set."""
        spec = FAULTS.get(name)
        if spec is None:
            raise UnknownFaultError(f"there is no fault {name!r}; there are {', '.join(sorted(FAULTS))}")
        record: dict[str, Any] = {key: parameter.default for key, parameter in spec.parameters.items()}
        for key, value in params.items():
            if key not in spec.parameters:
                allowed = ", ".join(spec.parameters) or "none"
                raise UnknownFaultError(f"the fault {name} has no parameter {key!r}; it has: {allowed}")
            try:
                record[key] = spec.parameters[key].parse(value)
            except ValueError as error:
                kind = spec.parameters[key].kind.__name__
                raise UnknownFaultError(f"the fault {name}: {key}={value!r} is not a valid {kind}") from error
        record["since"] = self._clock()
        with self._lock:
            self._set[name] = record
        self._changed(name)
        return dict(record)

    def clear(self, name: str | None = None) -> None:
        """Clear one fault (no error when it isn't set), or all of them."""
        if name is not None and name not in FAULTS:
            raise UnknownFaultError(f"there is no fault {name!r}; there are {', '.join(sorted(FAULTS))}")
        with self._lock:
            names = [name] if name is not None else list(self._set)
            cleared = [each for each in names if self._set.pop(each, None) is not None]
        for each in cleared:
            self._changed(each)

    def active(self, name: str) -> dict[str, Any] | None:
        """The record of a fault that is set and hasn't run out, else None."""
        with self._lock:
            record = self._set.get(name)
            if record is None:
                return None
            lasts = FAULTS[name].lasts
            if lasts is not None and record[lasts] is not None:
                over = self._clock() - record["since"] >= record[lasts]
                return None if over else dict(record)
            return dict(record)

    def consume(self, name: str) -> dict[str, Any] | None:
        """As `active`, and use the fault up once: the last of `count` uses clears it."""
        with self._lock:
            record = self.active(name)
            if record is None:
                return None
            count = record.get("count")
            if count is None:
                return record
            if count <= 1:
                del self._set[name]
            else:
                self._set[name]["count"] = count - 1
        self._changed(name)
        return record

    def dump(self) -> dict[str, dict[str, Any]]:
        """Every active fault's record, for the administration API and for the state folder."""
        with self._lock:
            records = {name: self.active(name) for name in self._set}
        return {name: record for name, record in records.items() if record is not None}

    def on_change(self, callback: Callable[[str], None]) -> None:
        """Call `callback(name)` after each time a fault is set, used up a step, or cleared."""
        self._listeners.append(callback)

    def _changed(self, name: str) -> None:
        for listener in list(self._listeners):
            listener(name)
