"""The ray.io/v1 schemas of a given KubeRay release: what its CRDs declare, and nothing more.

An undeclared field is the difference between releases that bites: a manifest written for 1.7 is refused by
the 1.3 that Compute Nest installs. Sources: the project's API types per release tag.
"""

from __future__ import annotations

import re

from raynest_pipeline.sandbox.kube import pod_schema, schema
from raynest_pipeline.sandbox.kube.schema import BOOLEAN, INTEGER, QUANTITY, STRING, Schema

Release = tuple[int, ...]

_STRINGS = schema.map_of(STRING)
_OPEN = schema.object_of({}, open=True)


def release_of(version: str) -> Release:
    """(1, 5, 1) of `1.5.1` or `v1.5.1`; ValueError for anything else."""
    match = re.fullmatch(r"v?(\d+)\.(\d+)(?:\.(\d+))?", version)
    if match is None:
        raise ValueError(f"not a KubeRay version: {version!r} (expected e.g. 1.7.0)")
    return tuple(int(part or 0) for part in match.groups())


def cluster_spec(release: Release) -> Schema:
    """RayClusterSpec."""
    fields = {
        "autoscalerOptions": _autoscaler(release),
        "enableInTreeAutoscaling": BOOLEAN,
        "gcsFaultToleranceOptions": schema.object_of(
            {
                "externalStorageNamespace": STRING,
                "redisAddress": STRING,
                "redisPassword": _OPEN,
                "redisUsername": _OPEN,
            },
        ),
        "headGroupSpec": _head_group(release),
        "headServiceAnnotations": _STRINGS,
        "managedBy": STRING,
        "rayVersion": STRING,
        "suspend": BOOLEAN,
        "workerGroupSpecs": schema.list_of(_worker_group(release)),
    }
    if release >= (1, 5, 1):
        mode = STRING | {"enum": ["disabled", "token"]}
        auth = {"mode": mode}
        if release >= (1, 6):
            auth |= {"enableK8sTokenAuth": BOOLEAN, "secretName": STRING}
        fields["authOptions"] = schema.object_of(auth)
    if release >= (1, 6):
        fields["upgradeStrategy"] = schema.object_of({"type": STRING | {"enum": ["Recreate", "None"]}})
    return schema.object_of(fields, required=("headGroupSpec",))


def _autoscaler(release: Release) -> Schema:
    fields = {
        "env": schema.list_of(pod_schema.row("EnvVar")),
        "envFrom": schema.list_of(pod_schema.row("EnvFrom")),
        "idleTimeoutSeconds": INTEGER,
        "image": STRING,
        "imagePullPolicy": STRING,
        "resources": pod_schema.row("Resources"),
        "securityContext": pod_schema.row("SecurityContext"),
        "upscalingMode": STRING | {"enum": ["Default", "Aggressive", "Conservative"]},
        "volumeMounts": schema.list_of(pod_schema.row("VolumeMount")),
    }
    if release >= (1, 4):
        fields["version"] = STRING | {"enum": ["v1", "v2"]}
    return schema.object_of(fields)


def _group(release: Release, own: dict[str, Schema], required: tuple[str, ...]) -> Schema:
    fields = {"rayStartParams": _STRINGS, "template": pod_schema.pod_template(), **own}
    if release >= (1, 5):
        fields |= {"labels": _STRINGS, "resources": schema.map_of(QUANTITY)}
    if release < (1, 4):
        required = (*required, "rayStartParams")
    return schema.object_of(fields, required=(*required, "template"))


def _head_group(release: Release) -> Schema:
    own = {"enableIngress": BOOLEAN, "headService": _OPEN, "serviceType": STRING}
    return _group(release, own, ())


def _worker_group(release: Release) -> Schema:
    own = {
        "groupName": STRING,
        "idleTimeoutSeconds": INTEGER,
        "maxReplicas": INTEGER | {"default": 2147483647},
        "minReplicas": INTEGER | {"default": 0},
        "numOfHosts": INTEGER | {"default": 1},
        "replicas": INTEGER | {"default": 0},
        "scaleStrategy": schema.object_of({"workersToDelete": schema.list_of(STRING)}),
        "suspend": BOOLEAN,
    }
    if release >= (1, 7):
        own["priority"] = INTEGER | {"default": 0}
    return _group(release, own, ("groupName", "maxReplicas", "minReplicas"))


def service_spec(release: Release) -> Schema:
    """RayServiceSpec."""
    strategy: dict[str, Schema] = {"type": STRING}
    fields = {
        "deploymentUnhealthySecondThreshold": INTEGER,
        "rayClusterConfig": cluster_spec(release),
        "serveConfigV2": STRING,
        "serveService": _OPEN,
        "serviceUnhealthySecondThreshold": INTEGER,
    }
    if release >= (1, 4):
        fields["excludeHeadPodFromServeSvc"] = BOOLEAN
    if release >= (1, 5):
        fields["rayClusterDeletionDelaySeconds"] = INTEGER | {"minimum": 0}
        strategy["clusterUpgradeOptions"] = schema.object_of(
            {
                "gatewayClassName": STRING,
                "intervalSeconds": INTEGER,
                "maxSurgePercent": INTEGER | {"default": 100},
                "stepSizePercent": INTEGER,
            },
            required=("gatewayClassName", "intervalSeconds", "stepSizePercent"),
        )
    if release >= (1, 6):
        fields["managedBy"] = STRING
    if release >= (1, 7):
        fields["suspend"] = BOOLEAN
    fields["upgradeStrategy"] = schema.object_of(strategy)
    return schema.object_of(fields)


def job_spec(release: Release) -> Schema:
    """RayJobSpec, as far as a job on an existing or its own cluster goes."""
    fields = {
        "activeDeadlineSeconds": INTEGER,
        "backoffLimit": INTEGER | {"default": 0},
        "clusterSelector": _STRINGS,
        "deletionStrategy": _OPEN,
        "entrypoint": STRING,
        "entrypointNumCpus": schema.NUMBER,
        "entrypointNumGpus": schema.NUMBER,
        "entrypointResources": STRING,
        "jobId": STRING,
        "managedBy": STRING,
        "metadata": _STRINGS,
        "rayClusterSpec": cluster_spec(release),
        "runtimeEnvYAML": STRING,
        "shutdownAfterJobFinishes": BOOLEAN,
        "submissionMode": STRING | {"default": "K8sJobMode"},
        "submitterConfig": _OPEN,
        "submitterPodTemplate": pod_schema.pod_template(),
        "suspend": BOOLEAN,
        "ttlSecondsAfterFinished": INTEGER | {"default": 0},
    }
    if release >= (1, 6):
        fields["preRunningDeadlineSeconds"] = INTEGER
    return schema.object_of(fields)


_CONDITIONS = schema.list_of(schema.object_of({"type": STRING}, open=True), keys=("type",))
_MAP_OF_OPEN = schema.map_of(_OPEN)


def cluster_status() -> Schema:
    """RayClusterStatus: conditions merge by type, the rest is the operator's own."""
    return schema.object_of(
        {
            "conditions": _CONDITIONS,
            "endpoints": _STRINGS,
            "head": _OPEN,
            "stateTransitionTimes": _STRINGS,
        },
        open=True,
    )


def service_status() -> Schema:
    """RayServiceStatuses."""
    one = schema.object_of(
        {"applicationStatuses": _MAP_OF_OPEN, "rayClusterStatus": cluster_status()}, open=True
    )
    return schema.object_of(
        {"activeServiceStatus": one, "conditions": _CONDITIONS, "pendingServiceStatus": one}, open=True
    )
