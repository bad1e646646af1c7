"""The endpoints controller: an Endpoints object for every Service that has a selector."""

from __future__ import annotations

from raynest_pipeline.sandbox.kube.store import Store
from raynest_pipeline.sandbox.kuberay import objects, services

_MANAGER = "kube-controller-manager"


def sync(store: Store) -> None:
    """Bring every Endpoints object in line with its Service and the pods; drop those without a Service."""
    known = set()
    pods = store.list("pods")
    for service in store.list("services"):
        key = objects.namespace_of(service), objects.name_of(service)
        if not service["spec"].get("selector") or objects.is_terminating(service):
            continue
        known.add(key)
        local = [pod for pod in pods if objects.namespace_of(pod) == key[0]]
        wanted = services.endpoints(service, local)
        found = store.get("endpoints", *key)
        if found is None:
            store.create("endpoints", wanted, manager=_MANAGER)
        elif found.get("subsets") != wanted.get("subsets"):
            found.pop("subsets", None)
            if "subsets" in wanted:
                found["subsets"] = wanted["subsets"]
            store.update("endpoints", found, manager=_MANAGER)
    for found in store.list("endpoints"):
        managed = "endpoints.kubernetes.io/managed-by" in objects.labels_of(found)
        if managed and (objects.namespace_of(found), objects.name_of(found)) not in known:
            store.delete("endpoints", objects.namespace_of(found), objects.name_of(found))
