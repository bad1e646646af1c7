"""The Services that KubeRay makes, and the Endpoints that a cluster's controllers fill in for them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from raynest_pipeline.sandbox.kube.store import Object
from raynest_pipeline.sandbox.kuberay import naming, objects
from raynest_pipeline.sandbox.kuberay.pods import HEAD_PORTS


class ServePortError(ValueError):
    """The head container names ports, but none of them is called "serve"."""


def head_ports(cluster: Object) -> dict[str, int]:
    """Port names of the head container; KubeRay's own when it lists none."""
    listed = cluster["spec"]["headGroupSpec"]["template"]["spec"]["containers"][0].get("ports") or ()
    named = {str(port["name"]): int(port["containerPort"]) for port in listed if port.get("name")}
    return {"metrics": HEAD_PORTS["metrics"], **named} if named else dict(HEAD_PORTS)


def cluster_head_service(cluster: Object) -> Object:
    """`<raycluster>-head-svc`: headless, there from the start, whether or not the head is ready."""
    name = objects.name_of(cluster)
    labels = {**naming.APP, naming.CLUSTER: name, naming.IDENTIFIER: f"{name}-head", naming.NODE_TYPE: "head"}
    return _head_service(cluster, cluster, naming.head_service(name), labels)


def rayservice_head_service(rayservice: Object, cluster: Object) -> Object:
    """`<rayservice>-head-svc`, which follows the serving RayCluster."""
    name = objects.name_of(rayservice)
    labels = {
        **naming.origin(rayservice),
        naming.IDENTIFIER: f"{name}-head",
        naming.NODE_TYPE: "head",
    }
    return _head_service(rayservice, cluster, naming.head_service(name), labels)


def _head_service(owner: Object, cluster: Object, name: str, labels: dict[str, str]) -> Object:
    target = objects.name_of(cluster)
    kind = cluster["spec"]["headGroupSpec"].get("serviceType") or "ClusterIP"
    selector = {
        **naming.APP,
        naming.CLUSTER: target,
        naming.IDENTIFIER: f"{target}-head",
        naming.NODE_TYPE: "head",
    }
    spec: dict[str, Any] = {
        "ports": [
            {"name": port, "protocol": "TCP", "appProtocol": "tcp", "port": number, "targetPort": number}
            for port, number in sorted(head_ports(cluster).items())
        ],
        "selector": selector,
        "type": kind,
        "sessionAffinity": "None",
    }
    if kind == "ClusterIP":
        spec |= {"clusterIP": "None", "clusterIPs": ["None"], "publishNotReadyAddresses": True}
    return _service(owner, name, labels, spec)


def serve_service(rayservice: Object, cluster: Object) -> Object:
    """`<rayservice>-serve-svc`: every pod of the serving RayCluster that has a healthy Serve proxy."""
    name = objects.name_of(rayservice)
    port = head_ports(cluster).get("serve")
    if port is None:
        raise ServePortError("Please specify the port named 'serve' in the head group")
    wanted = rayservice["spec"].get("serveService") or {}
    metadata = wanted.get("metadata") or {}
    given = wanted.get("spec") or {}
    labels = {**(metadata.get("labels") or {}), **naming.origin(rayservice)}
    labels[naming.SERVE] = f"{name}-serve"
    spec = {
        "ports": given.get("ports")
        or [{"name": "serve", "protocol": "TCP", "port": port, "targetPort": port}],
        "selector": {naming.CLUSTER: objects.name_of(cluster), naming.SERVE: "true"},
        "type": given.get("type") or cluster["spec"]["headGroupSpec"].get("serviceType") or "ClusterIP",
        "sessionAffinity": "None",
    }
    made = _service(rayservice, metadata.get("name") or naming.serve_service(name), labels, spec)
    if metadata.get("annotations"):
        made["metadata"]["annotations"] = dict(metadata["annotations"])
    return made


def _service(owner: Object, name: str, labels: dict[str, str], spec: dict[str, Any]) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": name,
            "namespace": objects.namespace_of(owner),
            "labels": labels,
            "ownerReferences": [objects.owner_reference(owner)],
        },
        "spec": {
            **spec,
            "ipFamilies": ["IPv4"],
            "ipFamilyPolicy": "SingleStack",
            "internalTrafficPolicy": "Cluster",
        },
    }


def selected(service: Object, pods: Iterable[Object]) -> list[Object]:
    """The pods behind a Service that have an address, in name order."""
    selector = service["spec"].get("selector") or {}
    return [
        pod
        for pod in pods
        if objects.matches(objects.labels_of(pod), selector)
        and (pod.get("status") or {}).get("podIP")
        and (pod.get("status") or {}).get("phase") == "Running"
    ]


def takes_traffic(service: Object, pod: Object) -> bool:
    """Whether a selected pod counts as a ready endpoint."""
    published = bool(service["spec"].get("publishNotReadyAddresses"))
    return published or (objects.is_true(pod, "Ready") and not objects.is_terminating(pod))


def endpoints(service: Object, pods: Iterable[Object]) -> Object:
    """The Endpoints object of a Service with a selector, as the endpoints controller writes it."""
    ready: list[dict[str, Any]] = []
    waiting: list[dict[str, Any]] = []
    for pod in selected(service, pods):
        target = {"kind": "Pod", "namespace": objects.namespace_of(pod), "name": objects.name_of(pod)}
        address = {
            "ip": pod["status"]["podIP"],
            "nodeName": pod["spec"].get("nodeName"),
            "targetRef": {**target, "uid": objects.uid_of(pod)},
        }
        (ready if takes_traffic(service, pod) else waiting).append(address)
    ports = [
        {"name": port.get("name", ""), "port": port["targetPort"], "protocol": port.get("protocol", "TCP")}
        for port in service["spec"]["ports"]
    ]
    subset: dict[str, Any] = {}
    if ready:
        subset["addresses"] = ready
    if waiting:
        subset["notReadyAddresses"] = waiting
    labels = {**objects.labels_of(service), "endpoints.kubernetes.io/managed-by": "endpoint-controller"}
    if service["spec"].get("clusterIP") == "None":
        labels["service.kubernetes.io/headless"] = ""
    made: Object = {
        "apiVersion": "v1",
        "kind": "Endpoints",
        "metadata": {
            "name": objects.name_of(service),
            "namespace": objects.namespace_of(service),
            "labels": labels,
        },
    }
    if subset:
        made["subsets"] = [{**subset, "ports": ports}]
    return made
