"""The resources that this API server knows: names, scope, schema, subresources, printed columns."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from raynest_pipeline.sandbox.kube import core_schema, errors, ray_schema
from raynest_pipeline.sandbox.kube.schema import Schema

_ALL_VERBS = ("create", "delete", "deletecollection", "get", "list", "patch", "update", "watch")
# A CRD lists its verbs in another order than a built-in kind; recorded, and harmless to keep.
_CRD_VERBS = ("delete", "deletecollection", "get", "list", "patch", "create", "update", "watch")


@dataclass(frozen=True)
class Column:
    """A printed column: `path` is a JSON path below the object (without the leading dot)."""

    name: str
    path: str
    type: str = "string"
    priority: int = 0


@dataclass(frozen=True)
class Kind:
    """One resource. `custom`: it comes from a CRD, with generation, pruning and validation by schema."""

    plural: str
    kind: str
    schema: Schema
    group: str = ""
    version: str = "v1"
    namespaced: bool = True
    custom: bool = False
    has_status: bool = False
    graceful: bool = False
    verbs: tuple[str, ...] = _ALL_VERBS
    short_names: tuple[str, ...] = ()
    subresources: tuple[str, ...] = ()
    columns: tuple[Column, ...] = ()
    fields: tuple[str, ...] = ()
    empty: dict[str, Any] = field(default_factory=dict)

    @property
    def singular(self) -> str:
        """The name that kubectl takes too: `rayservice`."""
        return self.kind.lower()

    @property
    def api_version(self) -> str:
        """`ray.io/v1`, or `v1` for the core group."""
        return f"{self.group}/{self.version}" if self.group else self.version

    def not_found(self, name: str) -> errors.ApiError:
        """404 for a name of this kind."""
        return errors.not_found(self.plural, self.group, name)


_AGE = Column("Age", "metadata.creationTimestamp", "date")


def _core() -> list[Kind]:
    return [
        Kind(
            "pods",
            "Pod",
            core_schema.pod(),
            has_status=True,
            graceful=True,
            short_names=("po",),
            subresources=("log", "portforward", "proxy", "status"),
            columns=(
                Column("Ready", "@ready"),
                Column("Status", "@status"),
                Column("Restarts", "@restarts", "integer"),
                _AGE,
                Column("IP", "status.podIP", priority=1),
                Column("Node", "spec.nodeName", priority=1),
            ),
            fields=("spec.nodeName", "status.phase", "status.podIP"),
            empty={"spec": {"containers": []}, "status": {}},
        ),
        Kind(
            "services",
            "Service",
            core_schema.service(),
            has_status=True,
            short_names=("svc",),
            subresources=("proxy", "status"),
            columns=(
                Column("Type", "spec.type"),
                Column("Cluster-IP", "spec.clusterIP"),
                Column("External-IP", "@external"),
                Column("Port(s)", "@ports"),
                _AGE,
            ),
            fields=("spec.clusterIP", "spec.type"),
            empty={"spec": {}, "status": {}},
        ),
        Kind("endpoints", "Endpoints", core_schema.endpoints(), short_names=("ep",)),
        Kind("configmaps", "ConfigMap", core_schema.config_map(), short_names=("cm",)),
        Kind(
            "secrets",
            "Secret",
            core_schema.secret(),
            columns=(Column("Type", "type"), _AGE),
            fields=("type",),
        ),
        Kind("serviceaccounts", "ServiceAccount", core_schema.service_account(), short_names=("sa",)),
        Kind(
            "namespaces",
            "Namespace",
            core_schema.namespace(),
            namespaced=False,
            has_status=True,
            short_names=("ns",),
            subresources=("status",),
            columns=(Column("Status", "status.phase"), _AGE),
            fields=("status.phase",),
            empty={"spec": {"finalizers": ["kubernetes"]}, "status": {"phase": "Active"}},
        ),
        Kind(
            "nodes",
            "Node",
            core_schema.node(),
            namespaced=False,
            has_status=True,
            short_names=("no",),
            subresources=("status",),
            columns=(Column("Status", "@node"), _AGE, Column("Version", "status.nodeInfo.kubeletVersion")),
            fields=("spec.unschedulable",),
            empty={"spec": {}, "status": {}},
        ),
        Kind(
            "events",
            "Event",
            core_schema.event(),
            short_names=("ev",),
            columns=(
                Column("Last Seen", "@seen"),
                Column("Type", "type"),
                Column("Reason", "reason"),
                Column("Object", "@involved"),
                Column("Message", "message"),
            ),
            fields=("*",),
        ),
    ]


def _others() -> list[Kind]:
    review = "authorization.k8s.io"
    return [
        Kind(
            "deployments",
            "Deployment",
            core_schema.with_open_spec(),
            group="apps",
            has_status=True,
            short_names=("deploy",),
            subresources=("status",),
            columns=(
                Column("Ready", "@deployment"),
                Column("Available", "status.availableReplicas", "integer"),
                _AGE,
            ),
        ),
        Kind("endpointslices", "EndpointSlice", core_schema.endpoint_slice(), group="discovery.k8s.io"),
        Kind(
            "customresourcedefinitions",
            "CustomResourceDefinition",
            core_schema.with_open_spec(),
            group="apiextensions.k8s.io",
            namespaced=False,
            has_status=True,
            short_names=("crd", "crds"),
            columns=(Column("Created At", "metadata.creationTimestamp"),),
        ),
        Kind(
            "selfsubjectaccessreviews",
            "SelfSubjectAccessReview",
            core_schema.free_form(),
            group=review,
            namespaced=False,
            verbs=("create",),
        ),
    ]


def _ray(release: ray_schema.Release) -> list[Kind]:
    def custom(plural: str, kind: str, spec: Schema, status: Schema, *columns: Column) -> Kind:
        return Kind(
            plural,
            kind,
            core_schema.kind_of(spec=spec, status=status),
            group="ray.io",
            custom=True,
            has_status=True,
            subresources=("status",),
            verbs=_CRD_VERBS,
            columns=columns,
        )

    opened = core_schema.with_open_spec()["properties"]["status"]
    return [
        custom(
            "rayclusters",
            "RayCluster",
            ray_schema.cluster_spec(release),
            ray_schema.cluster_status(),
            Column("desired workers", "status.desiredWorkerReplicas", "integer"),
            Column("available workers", "status.availableWorkerReplicas", "integer"),
            Column("cpus", "status.desiredCPU"),
            Column("memory", "status.desiredMemory"),
            Column("gpus", "status.desiredGPU"),
            Column("tpus", "status.desiredTPU", priority=1),
            Column("status", "status.state"),
            Column("age", "metadata.creationTimestamp", "date"),
            Column("head pod IP", "status.head.podIP", priority=1),
            Column("head service IP", "status.head.serviceIP", priority=1),
        ),
        *([custom("raycronjobs", "RayCronJob", opened, opened)] if release >= (1, 6) else []),
        custom(
            "rayjobs",
            "RayJob",
            ray_schema.job_spec(release),
            opened,
            Column("job status", "status.jobStatus"),
            Column("deployment status", "status.jobDeploymentStatus"),
        ),
        custom(
            "rayservices",
            "RayService",
            ray_schema.service_spec(release),
            ray_schema.service_status(),
            Column("service status", "status.serviceStatus"),
            Column("num serve endpoints", "status.numServeEndpoints"),
        ),
    ]


class Registry:
    """All the kinds of a cluster whose KubeRay is of a given version."""

    def __init__(self, kuberay_version: str) -> None:
        self.release = ray_schema.release_of(kuberay_version)
        self.kinds = [*_core(), *_others(), *_ray(self.release)]
        self._by_plural = {kind.plural: kind for kind in self.kinds}

    def kind(self, plural: str) -> Kind:
        """The kind with this plural name. KeyError if there's none: a mistake of the calling code."""
        return self._by_plural[plural]

    def find(self, group: str, version: str, plural: str) -> Kind | None:
        """The kind that a request's path names, or None."""
        kind = self._by_plural.get(plural)
        return kind if kind and (kind.group, kind.version) == (group, version) else None

    def groups(self) -> list[str]:
        """The named API groups, in order of registration."""
        return list(dict.fromkeys(kind.group for kind in self.kinds if kind.group))
