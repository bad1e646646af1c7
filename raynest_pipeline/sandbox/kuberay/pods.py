"""The head and worker pods of a RayCluster, as KubeRay 1.3 and later build them (common/pod.go)."""

from __future__ import annotations

import copy
from typing import Any

from raynest_pipeline.sandbox.kube.store import Object
from raynest_pipeline.sandbox.kuberay import naming, objects, quantities
from raynest_pipeline.sandbox.kuberay.release import Release

#: The ports of the head Services where the head container names none.
HEAD_PORTS = {"client": 10001, "dashboard": 8265, "gcs-server": 6379, "metrics": 8080, "serve": 8000}
AGENT_PORT = 52365
#: Key of the token in a cluster's Secret (authOptions.mode: token).
TOKEN_KEY = "auth_token"
INIT_CONTAINER = "wait-gcs-ready"


def head_pod(cluster: Object, release: Release) -> Object:
    """The head pod, to be created with a generated name."""
    group = cluster["spec"]["headGroupSpec"]
    pod = _base(cluster, group, "head", naming.HEAD_GROUP, release)
    container = pod["spec"]["containers"][0]
    ports = container.setdefault("ports", [])
    if all(port.get("name") != "metrics" for port in ports):
        ports.append({"name": "metrics", "containerPort": HEAD_PORTS["metrics"], "protocol": "TCP"})
    _add_env(container, "RAY_ADDRESS", "127.0.0.1:6379")
    return pod


def worker_pod(cluster: Object, group: dict[str, Any], release: Release) -> Object:
    """One worker pod of a group; its init container waits for the head's GCS, as the operator injects it."""
    pod = _base(cluster, group, "worker", str(group["groupName"]), release)
    container = pod["spec"]["containers"][0]
    service = naming.head_service(objects.name_of(cluster))
    address = f"{service}.{objects.namespace_of(cluster)}.svc.cluster.local"
    _add_env(container, "FQ_RAY_IP", address)
    _add_env(container, "RAY_IP", service)
    _add_env(container, "RAY_ADDRESS", f"{address}:6379")
    waiting = {
        "name": INIT_CONTAINER,
        "image": container["image"],
        "imagePullPolicy": container.get("imagePullPolicy", "IfNotPresent"),
        "command": ["/bin/bash", "-c", "--"],
        "args": [f"until ray health-check --address {address}:6379; do sleep 5; done"],
        "resources": {
            "limits": {"cpu": "200m", "memory": "256Mi"},
            "requests": {"cpu": "200m", "memory": "256Mi"},
        },
    }
    pod["spec"]["initContainers"] = [*(pod["spec"].get("initContainers") or ()), waiting]
    return pod


def _base(
    cluster: Object, group: dict[str, Any], node_type: str, group_name: str, release: Release
) -> Object:
    name = objects.name_of(cluster)
    template = copy.deepcopy(group["template"])
    metadata = template.get("metadata") or {}
    spec = template["spec"]
    infix = "head" if node_type == "head" else f"{group_name}-worker"
    labels = {
        **(metadata.get("labels") or {}),
        **naming.APP,
        naming.CLUSTER: name,
        naming.NODE_TYPE: node_type,
        naming.GROUP: group_name,
        naming.IDENTIFIER: f"{name}-{node_type}",
        "ray.io/is-ray-node": "yes",
    }
    if objects.labels_of(cluster).get(naming.ORIGIN_KIND) == "RayService":
        # Workers offer Serve by their readiness; the head only once the operator has seen it healthy.
        labels[naming.SERVE] = "false" if node_type == "head" else "true"
    container = spec["containers"][0]
    container.setdefault("name", f"ray-{node_type}")
    _finish_container(cluster, group, container, node_type, release)
    spec.setdefault("restartPolicy", "Always")
    spec.setdefault("terminationGracePeriodSeconds", 30)
    spec.setdefault("dnsPolicy", "ClusterFirst")
    spec.setdefault("schedulerName", "default-scheduler")
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "generateName": f"{name}-{infix}-",
            "namespace": objects.namespace_of(cluster),
            "labels": labels,
            "annotations": {
                **(metadata.get("annotations") or {}),
                "ray.io/ft-enabled": "false",
                naming.VERSION: f"v{release.version}",
            },
            "ownerReferences": [objects.owner_reference(cluster)],
        },
        "spec": spec,
    }


def _finish_container(
    cluster: Object, group: dict[str, Any], container: dict[str, Any], node_type: str, release: Release
) -> None:
    params = start_params(group, container, node_type)
    command = f"ray start --head {params}" if node_type == "head" else f"ray start {params}"
    container["command"] = ["/bin/bash", "-c", "--"]
    container["args"] = [f"ulimit -n 65536; {command}"]
    container.setdefault("imagePullPolicy", "IfNotPresent")
    for name, path in (
        ("RAY_CLUSTER_NAME", f"metadata.labels['{naming.CLUSTER}']"),
        ("RAY_CLUSTER_NAMESPACE", "metadata.namespace"),
        ("RAY_CLOUD_INSTANCE_ID", "metadata.name"),
        ("RAY_NODE_TYPE_NAME", f"metadata.labels['{naming.GROUP}']"),
    ):
        _add_env(container, name, {"fieldRef": {"apiVersion": "v1", "fieldPath": path}})
    _add_env(container, "KUBERAY_GEN_RAY_START_CMD", command)
    _add_env(container, "RAY_PORT", "6379")
    token = token_secret(cluster, release)
    if token is not None:
        _add_env(container, "RAY_AUTH_MODE", "token")
        _add_env(container, "RAY_AUTH_TOKEN", {"secretKeyRef": {"name": token, "key": TOKEN_KEY}})


def _add_env(container: dict[str, Any], name: str, value: str | dict[str, Any]) -> None:
    """Add a variable unless the user has set it; a mapping is its valueFrom."""
    env = container.setdefault("env", [])
    if all(each["name"] != name for each in env):
        env.append({"name": name, "value" if isinstance(value, str) else "valueFrom": value})


def start_params(group: dict[str, Any], container: dict[str, Any], node_type: str) -> str:
    """`ray start`'s flags: the user's rayStartParams over what the container's limits imply."""
    params = {"block": "true", "dashboard-agent-listen-port": str(AGENT_PORT), "metrics-export-port": "8080"}
    if node_type == "head":
        params["dashboard-host"] = "0.0.0.0"
    params |= resources(group, container)
    params |= {key: str(value) for key, value in (group.get("rayStartParams") or {}).items()}
    shown = [f"--{key}" if value == "true" else f"--{key}={value}" for key, value in sorted(params.items())]
    return "  ".join(shown)


def resources(group: dict[str, Any], container: dict[str, Any]) -> dict[str, str]:
    """num-cpus, memory (bytes) and num-gpus for a Ray node: rayStartParams, else the container's limits."""
    given = group.get("rayStartParams") or {}
    found: dict[str, str] = {}
    for flag, resource in (("num-cpus", "cpu"), ("memory", "memory"), ("num-gpus", quantities.GPU)):
        if flag in given:
            found[flag] = str(given[flag])
            continue
        amount = quantities.limit(container, resource)
        if amount:
            # KubeRay rounds CPUs up: a Ray node has whole ones.
            found[flag] = str(int(amount.to_integral_value(rounding="ROUND_CEILING")))
    return found


def flags(container: dict[str, Any]) -> dict[str, str]:
    """The resources of `ray start`, read back from the command that the operator wrote into a pod."""
    found = {}
    for word in str((container.get("args") or [""])[0]).split():
        name, _, value = word.removeprefix("--").partition("=")
        if word.startswith("--") and name in ("num-cpus", "num-gpus", "memory", "resources") and value:
            found[name] = value.strip("'\"") if name != "resources" else value.strip("'").strip('"')
    return found


def token_secret(cluster: Object, release: Release) -> str | None:
    """The Secret that holds the cluster's token, or None without token authentication."""
    options = cluster["spec"].get("authOptions") or {}
    if not release.token_auth or options.get("mode") != "token":
        return None
    return str(options.get("secretName") or objects.name_of(cluster))
