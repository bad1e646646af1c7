"""What is in a fresh cluster before anybody deploys to it: namespaces, CRDs, the operator."""

from __future__ import annotations

from typing import Any

from raynest_pipeline.sandbox.kube import rules
from raynest_pipeline.sandbox.kube.kinds import Kind
from raynest_pipeline.sandbox.kube.store import Store

Object = dict[str, Any]

NAMESPACES = ("default", "kube-node-lease", "kube-public", "kube-system", "kuberay-operator")

_MANAGER = "raynest-sandbox"


def bootstrap(store: Store, kuberay_version: str) -> None:
    """Create what is missing; safe to repeat."""
    for name in NAMESPACES:
        if store.live("namespaces", None, name) is None:
            store.create("namespaces", {"metadata": {"name": name}}, manager=_MANAGER)
    for kind in store.registry.kinds:
        if kind.custom:
            _define(store, kind, kuberay_version)
    _operator(store, kuberay_version)


def _define(store: Store, kind: Kind, kuberay_version: str) -> None:
    """The CRD object, by which clients find out which release is installed."""
    name = f"{kind.plural}.{kind.group}"
    version = {
        "name": kind.version,
        "served": True,
        "storage": True,
        "subresources": {"status": {}},
        "schema": {"openAPIV3Schema": kind.schema},
    }
    names = {
        "kind": kind.kind,
        "listKind": f"{kind.kind}List",
        "plural": kind.plural,
        "singular": kind.singular,
    }
    spec = {"group": kind.group, "names": names, "scope": "Namespaced", "versions": [version]}
    labels = {"app.kubernetes.io/version": kuberay_version}
    definition = store.registry.kind("customresourcedefinitions")
    if store.live(definition.plural, None, name) is not None:
        return
    moment = rules.now()
    conditions = [
        {"type": "NamesAccepted", "status": "True", "reason": "NoConflicts", "lastTransitionTime": moment},
        {
            "type": "Established",
            "status": "True",
            "reason": "InitialNamesAccepted",
            "lastTransitionTime": moment,
        },
    ]
    status = {"acceptedNames": names, "conditions": conditions, "storedVersions": [kind.version]}
    obj: Object = {"metadata": {"name": name, "labels": labels}, "spec": spec, "status": status}
    # Straight into the store: nobody applies CRDs here, and admitting a schema as data takes its time.
    store.write(definition, None, rules.identified(definition, obj))


def _operator(store: Store, kuberay_version: str) -> None:
    name, namespace = "kuberay-operator", "kuberay-operator"
    if store.live("deployments", namespace, name) is not None:
        return
    image = f"quay.io/kuberay/operator:v{kuberay_version.removeprefix('v')}"
    labels = {"app.kubernetes.io/name": name, "app.kubernetes.io/version": kuberay_version}
    template = {"metadata": {"labels": labels}, "spec": {"containers": [{"name": name, "image": image}]}}
    spec = {
        "replicas": 1,
        "selector": {"matchLabels": {"app.kubernetes.io/name": name}},
        "template": template,
    }
    metadata = {"name": name, "namespace": namespace, "labels": labels}
    store.create("deployments", {"metadata": metadata, "spec": spec}, manager="helm")
    status = {"availableReplicas": 1, "observedGeneration": 1, "readyReplicas": 1}
    status |= {"replicas": 1, "updatedReplicas": 1}
    store.update_status("deployments", namespace, name, status, manager="kube-controller-manager")
