"""Manifests that people really apply: what each KubeRay release takes of them, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import yaml

from raynest_pipeline.sandbox.kube import ray_schema
from raynest_pipeline.sandbox.kube.errors import ApiError
from raynest_pipeline.sandbox.kube.store import Store

Object = dict[str, Any]

# A service with everything that a careful deployment on ACK sets.
FULL = """
apiVersion: ray.io/v1
kind: RayService
metadata:
  name: full
  namespace: demo
  labels: {app: raynest}
  annotations: {ray.io/initializing-timeout: 30m}
spec:
  serveConfigV2: |
    applications: []
  serveService:
    metadata:
      annotations: {service.beta.kubernetes.io/alibaba-cloud-loadbalancer-address-type: intranet}
    spec: {type: LoadBalancer}
  upgradeStrategy: {type: NewCluster}
  rayClusterConfig:
    rayVersion: "2.60.0"
    enableInTreeAutoscaling: true
    autoscalerOptions:
      idleTimeoutSeconds: 60
      upscalingMode: Default
      resources: {limits: {cpu: 500m, memory: 512Mi}}
    gcsFaultToleranceOptions: {redisAddress: "redis:6379"}
    headGroupSpec:
      serviceType: ClusterIP
      rayStartParams: {num-cpus: "0", dashboard-host: 0.0.0.0}
      template:
        metadata:
          labels: {role: head}
          annotations: {redeploy: "1"}
        spec:
          restartPolicy: Always
          imagePullSecrets: [{name: acr}]
          nodeSelector: {kubernetes.io/arch: amd64}
          securityContext: {runAsUser: 1000, fsGroup: 1000}
          initContainers:
            - {name: fetch, image: "busybox:1", command: [sh, -c, "true"]}
          containers:
            - name: ray-head
              image: rayproject/ray:2.60.0-py311
              imagePullPolicy: IfNotPresent
              ports:
                - {containerPort: 6379, name: gcs}
                - {containerPort: 8265, name: dashboard}
                - {containerPort: 10001, name: client}
                - {containerPort: 8000, name: serve}
              env:
                - {name: HF_ENDPOINT, value: "https://mirror.example"}
                - name: POD_NAME
                  valueFrom: {fieldRef: {fieldPath: metadata.name}}
                - name: TOKEN
                  valueFrom: {secretKeyRef: {name: token, key: auth_token}}
              envFrom:
                - configMapRef: {name: settings}
              resources:
                requests: {cpu: 2, memory: 8Gi}
                limits: {cpu: "2", memory: 8Gi}
              readinessProbe:
                httpGet: {path: /api/healthz, port: dashboard}
                periodSeconds: 5
              lifecycle:
                preStop: {exec: {command: [ray, stop]}}
              volumeMounts:
                - {mountPath: /tmp/ray, name: logs}
                - {mountPath: /code, name: code, readOnly: true}
          volumes:
            - {name: logs, emptyDir: {sizeLimit: 1Gi}}
            - {name: code, configMap: {name: code, items: [{key: app.py, path: app.py}]}}
            - {name: model, persistentVolumeClaim: {claimName: model}}
            - {name: cache, hostPath: {path: /cache, type: DirectoryOrCreate}}
    workerGroupSpecs:
      - groupName: gpu
        replicas: 1
        minReplicas: 1
        maxReplicas: 4
        rayStartParams: {}
        scaleStrategy: {workersToDelete: []}
        template:
          spec:
            containers:
              - name: ray-worker
                image: rayproject/ray:2.60.0-py311-gpu
                resources:
                  limits: {nvidia.com/gpu: 1}
            tolerations:
              - {key: nvidia.com/gpu, operator: Exists, effect: NoSchedule}
            affinity:
              nodeAffinity:
                requiredDuringSchedulingIgnoredDuringExecution:
                  nodeSelectorTerms:
                    - matchExpressions: [{key: aliyun.accelerator/nvidia_name, operator: Exists}]
            topologySpreadConstraints:
              - {maxSkew: 1, topologyKey: kubernetes.io/hostname, whenUnsatisfiable: ScheduleAnyway}
"""


def store_of(release: str) -> Store:
    store = Store(None, kuberay_version=release)
    store.create("namespaces", {"metadata": {"name": "demo"}}, manager="t")
    return store


def full() -> Object:
    loaded: Object = yaml.safe_load(FULL)
    return loaded


def at(obj: Object, *path: str | int) -> Any:
    for step in path:
        obj = obj[step]  # type: ignore[index]
    return obj


HEAD = ("spec", "rayClusterConfig", "headGroupSpec", "template", "spec")
CONTAINER = (*HEAD, "containers", 0)
WORKER = ("spec", "rayClusterConfig", "workerGroupSpecs", 0)


@pytest.mark.parametrize("release", ["1.3.0", "1.4.2", "1.5.1", "1.6.2", "1.7.0"])
def test_a_full_manifest_is_taken_by_every_release_and_by_every_road(release: str) -> None:
    store = store_of(release)
    applied, created = store.apply("rayservices", full(), manager="dagster")
    assert created
    assert at(applied, *CONTAINER)["ports"][0] == {"containerPort": 6379, "name": "gcs", "protocol": "TCP"}
    again, _ = store.apply("rayservices", full(), manager="dagster")
    assert again == applied
    posted = full()
    posted["metadata"]["name"] = "posted"
    made = store.create("rayservices", posted, manager="t")
    assert made["spec"] == applied["spec"]


@pytest.mark.parametrize(
    ("place", "field", "shown"),
    [
        (CONTAINER, "imagee", '.containers[name="ray-head"].imagee'),
        (CONTAINER, "resource", '.containers[name="ray-head"].resource'),
        (HEAD, "toleration", ".headGroupSpec.template.spec.toleration"),
        (HEAD, "gpus", ".headGroupSpec.template.spec.gpus"),
        (WORKER, "numReplicas", ".numReplicas"),
        ((*WORKER, "template"), "specs", ".template.specs"),
        ((*CONTAINER, "env", 0), "val", '.env[name="HF_ENDPOINT"].val'),
        ((*CONTAINER, "readinessProbe"), "period", ".readinessProbe.period"),
        ((*HEAD, "volumes", 0), "emptydir", '.volumes[name="logs"].emptydir'),
    ],
)
def test_a_misspelt_field_is_refused_where_it_is(
    place: tuple[str | int, ...], field: str, shown: str
) -> None:
    wrong = full()
    at(wrong, *place)[field] = "x"
    with pytest.raises(ApiError) as caught:
        store_of("1.7.0").apply("rayservices", wrong, manager="dagster")
    assert caught.value.code == 500
    assert f"{shown}: field not declared in schema" in caught.value.message


@pytest.mark.parametrize(
    ("place", "field", "value"),
    [
        (CONTAINER, "image", 1),
        (CONTAINER, "command", "sleep 1"),
        ((*CONTAINER, "env", 0), "value", 1),
        ((*CONTAINER, "ports", 0), "containerPort", "8000"),
        (WORKER, "replicas", "1"),
        (("spec", "rayClusterConfig"), "rayVersion", 2.6),
        (HEAD, "nodeSelector", ["a"]),
    ],
)
def test_a_value_of_the_wrong_type_is_refused_by_apply_and_by_post(
    place: tuple[str | int, ...], field: str, value: Any
) -> None:
    wrong = full()
    at(wrong, *place)[field] = value
    with pytest.raises(ApiError) as caught:
        store_of("1.7.0").apply("rayservices", deepcopy(wrong), manager="dagster")
    assert caught.value.code == 500
    assert f"{field}" in caught.value.message or "containerPort" in caught.value.message
    with pytest.raises(ApiError) as caught:
        store_of("1.7.0").create("rayservices", wrong, manager="t")
    assert (caught.value.code, caught.value.reason) == (422, "Invalid")
    assert any(cause["field"].endswith(field) for cause in caught.value.details["causes"])


@pytest.mark.parametrize(
    ("place", "field"),
    [
        (WORKER, "groupName"),
        (WORKER, "template"),
        (CONTAINER, "name"),
        ((*HEAD, "volumes", 2, "persistentVolumeClaim"), "claimName"),
        (("spec", "rayClusterConfig"), "headGroupSpec"),
    ],
)
def test_what_is_required_is_missed(place: tuple[str | int, ...], field: str) -> None:
    wrong = full()
    del at(wrong, *place)[field]
    with pytest.raises(ApiError) as caught:
        store_of("1.7.0").create("rayservices", wrong, manager="t")
    fields = [cause["field"] for cause in caught.value.details["causes"]]
    assert any(one.endswith(f".{field}") for one in fields)
    assert fields[-1] == "<nil>"


def test_the_bounds_of_a_release() -> None:
    wrong = full()
    wrong["spec"]["rayClusterDeletionDelaySeconds"] = -1
    wrong["spec"]["rayClusterConfig"]["authOptions"] = {"mode": "password"}
    with pytest.raises(ApiError) as caught:
        store_of("1.7.0").create("rayservices", wrong, manager="t")
    messages = {cause["field"]: cause["message"] for cause in caught.value.details["causes"]}
    assert "should be greater than or equal to 0" in messages["spec.rayClusterDeletionDelaySeconds"]
    mode = messages["spec.rayClusterConfig.authOptions.mode"]
    assert mode == 'Unsupported value: "password": supported values: "disabled", "token"'


def test_workers_get_the_defaults_of_the_crd() -> None:
    bare = full()
    for field in ("replicas", "minReplicas", "maxReplicas"):
        del at(bare, *WORKER)[field]
    made = store_of("1.7.0").create("rayservices", bare, manager="t")
    group = at(made, *WORKER)
    found = {key: group[key] for key in ("replicas", "minReplicas", "maxReplicas", "numOfHosts", "priority")}
    assert found == {
        "replicas": 0,
        "minReplicas": 0,
        "maxReplicas": 2147483647,
        "numOfHosts": 1,
        "priority": 0,
    }
    older = store_of("1.3.0").create("rayservices", bare, manager="t")
    assert "priority" not in at(older, *WORKER)


def test_a_cluster_and_a_job_by_themselves() -> None:
    store = store_of("1.7.0")
    config = full()["spec"]["rayClusterConfig"]
    cluster = {"metadata": {"name": "c", "namespace": "demo"}, "spec": config}
    assert store.create("rayclusters", cluster, manager="t")["kind"] == "RayCluster"
    spec = {"entrypoint": "python x.py", "clusterSelector": {"ray.io/cluster": "c"}}
    job = store.create("rayjobs", {"metadata": {"name": "j", "namespace": "demo"}, "spec": spec}, manager="t")
    assert job["spec"]["submissionMode"] == "K8sJobMode"


@pytest.mark.parametrize(
    ("text", "release"),
    [("1.3.0", (1, 3, 0)), ("v1.7.0", (1, 7, 0)), ("1.5.1", (1, 5, 1)), ("1.6", (1, 6, 0))],
)
def test_releases(text: str, release: tuple[int, ...]) -> None:
    assert ray_schema.release_of(text) == release


def test_a_template_merges_between_managers_by_name(manifest: Callable[..., Object]) -> None:
    """The operator's own additions to a template don't collide with a deployer's."""
    store = store_of("1.7.0")
    store.apply("rayservices", full(), manager="dagster")
    extra = {"name": "ray-head", "env": [{"name": "EXTRA", "value": "1"}]}
    template = {"spec": {"containers": [extra]}}
    spec = {"rayClusterConfig": {"headGroupSpec": {"template": template}}}
    patch = {"metadata": {"name": "full", "namespace": "demo"}, "spec": spec}
    merged, created = store.apply("rayservices", patch, manager="other")
    assert not created
    names = [one["name"] for one in at(merged, *CONTAINER)["env"]]
    assert names == ["HF_ENDPOINT", "POD_NAME", "TOKEN", "EXTRA"]
    without, _ = store.apply("rayservices", full(), manager="dagster")
    assert [one["name"] for one in at(without, *CONTAINER)["env"]] == names
