"""Events: what the components of a cluster report about its objects."""

from __future__ import annotations

import time
from datetime import datetime
from typing import TYPE_CHECKING, Any

from raynest_pipeline.sandbox.kube import rules
from raynest_pipeline.sandbox.kube.fieldset import Path, encode

if TYPE_CHECKING:
    from raynest_pipeline.sandbox.kube.store import Store

Object = dict[str, Any]

# As long as a real API server keeps them.
_KEPT_S = 3600

_ACTIONS = {"Created": "Create", "Deleted": "Delete", "Updated": "Update"}

# What the writer of an events.k8s.io Event owns, in that group's own field names.
_SERIES_FIELDS = (
    "action",
    "eventTime",
    "note",
    "reason",
    "regarding",
    "reportingController",
    "reportingInstance",
    "type",
)
_SERIES: tuple[Path, ...] = (
    ("f:series",),
    ("f:series", "f:count"),
    ("f:series", "f:lastObservedTime"),
)


def emit(store: Store, involved: Object, reason: str, message: str, type: str, component: str) -> None:
    """Record an Event, in the form that its reporter uses.

    The controllers of KubeRay 1.7 report through events.k8s.io (eventTime, a series that counts); everything
    else through core/v1 (count, first and last timestamp). Both are listed as core/v1 Events. In a namespace
    that is gone or going the Event is lost, as a recorder's would be."""
    about = _reference(involved)
    namespace = store.live("namespaces", None, about["namespace"])
    if namespace is None or namespace["metadata"].get("deletionTimestamp"):
        return
    _forget_old(store)
    for event in store.list("events", about["namespace"], fields=f"involvedObject.uid={about['uid']}"):
        if (event["reason"], event.get("message"), event.get("type")) == (reason, message, type):
            _count(store, event)
            return
    name = f"{about['name']}.{time.time_ns():x}"
    event = {"metadata": {"name": name, "namespace": about["namespace"]}, "involvedObject": about}
    event |= {"reason": reason, "message": message, "type": type}
    if store.registry.release >= (1, 7) and component.endswith("-controller"):
        _write_series(store, event | _series_form(reason, component))
    else:
        store.create("events", event | _core_form(component), manager=component)


def _reference(involved: Object) -> Object:
    metadata = involved["metadata"]
    return {
        "apiVersion": involved["apiVersion"],
        "kind": involved["kind"],
        "name": metadata["name"],
        "namespace": metadata.get("namespace", "default"),
        "resourceVersion": metadata.get("resourceVersion", ""),
        "uid": metadata.get("uid", ""),
    }


def _series_form(reason: str, component: str) -> Object:
    action = next((action for prefix, action in _ACTIONS.items() if reason.startswith(prefix)), "Reconcile")
    return {
        "action": action,
        "eventTime": rules.now_micro(),
        "reportingComponent": component,
        "reportingInstance": f"{component}-sandbox",
    }


def _write_series(store: Store, event: Object, live: Object | None = None) -> None:
    kind = store.registry.kind("events")
    fresh = rules.new_object(kind, event) if live is None else event
    paths = [(f"f:{name}",) for name in _SERIES_FIELDS] + [*(_SERIES if "series" in event else ())]
    fresh["metadata"]["managedFields"] = [
        {
            "apiVersion": "events.k8s.io/v1",
            "fieldsType": "FieldsV1",
            "fieldsV1": encode(paths),
            "manager": "kuberay-operator",
            "operation": "Update",
            "time": rules.now(),
        }
    ]
    # The conversion between the two groups leaves these behind, empty.
    fresh |= {"source": {}, "firstTimestamp": None, "lastTimestamp": None}
    store.write(kind, live, fresh)


def _core_form(component: str) -> Object:
    moment = rules.now()
    return {
        "count": 1,
        "eventTime": None,
        "firstTimestamp": moment,
        "lastTimestamp": moment,
        "reportingComponent": component,
        "reportingInstance": "",
        "source": {"component": component},
    }


def _count(store: Store, event: Object) -> None:
    if event.get("eventTime"):
        live = store.live("events", event["metadata"]["namespace"], event["metadata"]["name"])
        count = (event.get("series") or {}).get("count", 1) + 1
        again = event | {"series": {"count": count, "lastObservedTime": rules.now_micro()}}
        _write_series(store, again, live)
    else:
        again = event | {"count": event.get("count", 1) + 1, "lastTimestamp": rules.now()}
        store.update("events", again, manager=event["reportingComponent"])


def _forget_old(store: Store) -> None:
    kind = store.registry.kind("events")
    oldest = time.time() - _KEPT_S
    for event in store.list("events"):
        series = event.get("series") or {}
        last = series.get("lastObservedTime") or event.get("lastTimestamp") or event.get("eventTime")
        if last and datetime.fromisoformat(last).timestamp() < oldest:
            store.remove(kind, event)
