"""The RayService that raynest deploys, built from the settings: for KubeRay 1.3 as well as 1.7.

Fields that only newer releases know are left out (a server-side apply of an undeclared field is refused),
except token authentication, which the caller asks for where the cluster offers it.
"""

import hashlib
import importlib.resources
import json
import re
from collections.abc import Mapping

import yaml

from raynest_pipeline.errors import InputError
from raynest_pipeline.kube.kinds import Object, Objects, name_of
from raynest_pipeline.kube.rayservice.serve_config import (
    MANIFEST_VARIABLE,
    NONCE_VARIABLE,
    app_names,
    nonce_of,
    with_nonce,
    with_variables,
)
from raynest_pipeline.kube.rayservice.user_manifest import UserManifest, load_user_manifest
from raynest_pipeline.settings import RayServiceSettings, Settings
from raynest_pipeline.settings_model import store_package

__all__ = [
    "CODE_HASH_ANNOTATION",
    "MANIFEST_VARIABLE",
    "OWNER_LABELS",
    "UserManifest",
    "app_names",
    "build_manifest",
    "load_user_manifest",
    "nonce_of",
    "owner_labels",
    "replica_packages",
    "source_files",
    "with_nonce",
    "with_variables",
]

OWNER_LABELS: Mapping[str, str] = {"app.kubernetes.io/managed-by": "raynest"}
"""On every object that raynest makes: what lacks them is not ours to delete."""
SERVICE_LABEL = "raynest/service"
"""Name of the RayService with which an object was applied: two in one namespace keep out of each other's."""
CODE_HASH_ANNOTATION = "raynest/code-sha256"
"""On the RayService and its ConfigMap: which code was shipped."""

APPLICATION = "raynest"
IMPORT_PATH = "raynest_pipeline.serving.app:build"
CODE_FOLDER = "/opt/raynest"
CACHE_FOLDER = "/var/cache/raynest"

_TOLERATIONS_ANNOTATION = "raynest/tolerations"
_CODE_VOLUME = "raynest-code"
_CONFIG_MAP_LIMIT = 900_000
"""A ConfigMap may hold 1 MiB; the rest is for its metadata."""
_PORTS = {"gcs-server": 6379, "dashboard": 8265, "client": 10001, "metrics": 8080, "serve": 8000}


def owner_labels(ray_service: str) -> dict[str, str]:
    """The labels of what is applied together with the RayService of that name."""
    return {**OWNER_LABELS, SERVICE_LABEL: ray_service}


def source_files() -> dict[str, str]:
    """The code that is shipped: path below a PYTHONPATH folder -> text.

    The serving package's own modules, and an empty `raynest_pipeline/__init__.py` over them: on the
    cluster there is nothing else of raynest.
    """
    package = importlib.resources.files("raynest_pipeline").joinpath("serving")
    files = {"raynest_pipeline/__init__.py": ""}
    for item in sorted(package.iterdir(), key=lambda entry: entry.name):
        if item.is_file() and item.name.endswith(".py"):
            files[f"raynest_pipeline/serving/{item.name}"] = item.read_text(encoding="utf-8")
    return files


def code_hash(files: Mapping[str, str]) -> str:
    """SHA-256 of paths and texts, in hex."""
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(f"{path}\0{files[path]}\0".encode())
    return digest.hexdigest()


def build_manifest(
    settings: Settings,
    *,
    serving_files: Mapping[str, str],
    token_auth: bool,
    namespace: str,
    nonce: str | None = None,
) -> Objects:
    """The objects to apply, in that order; the RayService is the last.

    Args:
        settings: `settings.ray_service` is what counts.
        serving_files: What `source_files` returned; shipped with `code: configmap`.
        token_auth: Switch Ray's token authentication on.
        namespace: Where they go.
        nonce: Another value makes Serve rebuild the application in place.

    Raises:
        InputError: The code doesn't fit into a ConfigMap.
    """
    wanted = settings.ray_service
    ships = wanted.code == "configmap"
    digest = code_hash(serving_files) if ships else ""
    config_map = _config_map(wanted, serving_files, digest, namespace) if ships else None
    volume = _code_volume(config_map, serving_files) if config_map else None
    ray_service: Object = {
        "apiVersion": "ray.io/v1",
        "kind": "RayService",
        "metadata": _metadata(wanted, wanted.name, namespace, digest),
        "spec": {
            "serveConfigV2": _serve_config(wanted, digest, nonce),
            "rayClusterConfig": {
                "rayVersion": wanted.ray_version,
                **({"enableInTreeAutoscaling": True} if wanted.max_replicas else {}),
                **({"authOptions": {"mode": "token"}} if token_auth else {}),
                "headGroupSpec": _head_group(wanted, volume),
                "workerGroupSpecs": [_worker_group(wanted, volume)],
            },
        },
    }
    return [config_map, ray_service] if config_map else [ray_service]


def image_of(wanted: RayServiceSettings) -> str:
    """The container image: the one that is set, else Ray's own for this release, with CUDA for GPUs."""
    suffix = "-gpu" if wanted.gpus_per_replica > 0 else ""
    return wanted.image or f"rayproject/ray:{wanted.ray_version}-py311{suffix}"


def _metadata(wanted: RayServiceSettings, name: str, namespace: str, digest: str) -> Object:
    metadata: Object = {"name": name, "namespace": namespace, "labels": owner_labels(wanted.name)}
    if digest:
        metadata["annotations"] = {CODE_HASH_ANNOTATION: digest}
    return metadata


def _config_map(wanted: RayServiceSettings, files: Mapping[str, str], digest: str, namespace: str) -> Object:
    size = sum(len(text.encode()) for text in files.values())
    if size > _CONFIG_MAP_LIMIT:
        raise InputError(
            f"The serving code is {size} bytes; a ConfigMap holds {_CONFIG_MAP_LIMIT}.",
            fix="Set ray_service.code: image and build deploy/Dockerfile.",
        )
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        # The hash is in the name: a volume of a changed ConfigMap updates pods late and one by one, and a
        # replica could start on old code. A new name changes the pod template, so new pods get new code.
        "metadata": _metadata(wanted, f"{wanted.name}-code-{digest[:10]}", namespace, digest),
        "immutable": True,
        "data": {_key(path): text for path, text in files.items()},
    }


def _key(path: str) -> str:
    """A ConfigMap key cannot have a slash."""
    return path.replace("/", ".")


def _code_volume(config_map: Object, files: Mapping[str, str]) -> Object:
    items = [{"key": _key(path), "path": path} for path in sorted(files)]
    return {"name": _CODE_VOLUME, "configMap": {"name": name_of(config_map), "items": items}}


def _head_group(wanted: RayServiceSettings, volume: Object | None) -> Object:
    container = _container("ray-head", wanted, wanted.head_cpus, wanted.head_memory, volume)
    # All of them: the operator fills in its defaults only into an empty list, and makes no serve service
    # without a port of that name.
    container["ports"] = [{"name": name, "containerPort": port} for name, port in _PORTS.items()]
    return {
        # No replica on the head: it holds the cluster's own services, and a model beside them could take
        # the whole cluster down. The Serve controller and the proxy need no CPU and still run there.
        "rayStartParams": {"num-cpus": "0", "dashboard-host": "0.0.0.0"},
        "template": {"spec": {"containers": [container], "volumes": _volumes(volume, None)}},
    }


def _worker_group(wanted: RayServiceSettings, volume: Object | None) -> Object:
    container = _container("ray-worker", wanted, wanted.worker_cpus, wanted.worker_memory, volume)
    if wanted.gpus_per_replica > 0:
        gpus = str(wanted.gpus_per_replica)
        for part in ("requests", "limits"):
            container["resources"][part]["nvidia.com/gpu"] = gpus
    spec: Object = {"containers": [container], "volumes": _volumes(volume, wanted.cache_claim)}
    template: Object = {"spec": spec}
    if wanted.tolerations:
        spec["tolerations"] = [item.model_dump(exclude_none=True) for item in wanted.tolerations]
        # KubeRay from 1.6 on takes no notice of a change of tolerations alone (facts 2.4).
        template["metadata"] = {"annotations": {_TOLERATIONS_ANNOTATION: json.dumps(spec["tolerations"])}}
    return {
        "groupName": "gpu-group" if wanted.gpus_per_replica > 0 else "cpu-group",
        "replicas": wanted.replicas,
        "minReplicas": wanted.replicas,
        "maxReplicas": wanted.most_replicas,
        "rayStartParams": {},
        "template": template,
    }


def _container(
    name: str, wanted: RayServiceSettings, cpus: float, memory: str, volume: Object | None
) -> Object:
    # Memory as request and limit alike: what a node promises it has to have.
    resources = {"cpu": f"{cpus:g}", "memory": memory}
    mounts: Objects = [
        {"name": "ray-logs", "mountPath": "/tmp/ray"},
        {"name": "cache", "mountPath": CACHE_FOLDER},
    ]
    if volume:
        mounts.append({"name": _CODE_VOLUME, "mountPath": CODE_FOLDER, "readOnly": True})
    return {
        "name": name,
        "image": image_of(wanted),
        "env": [{"name": key, "value": value} for key, value in _environment(wanted, volume).items()],
        "resources": {"requests": dict(resources), "limits": dict(resources)},
        "volumeMounts": mounts,
    }


def _environment(wanted: RayServiceSettings, volume: Object | None) -> dict[str, str]:
    found = {"HF_HOME": f"{CACHE_FOLDER}/huggingface", "RAYNEST_MODEL_CACHE": f"{CACHE_FOLDER}/models"}
    if volume:
        found["PYTHONPATH"] = CODE_FOLDER
    if wanted.hf_endpoint:
        found["HF_ENDPOINT"] = wanted.hf_endpoint
    return {**found, **wanted.env}


def _volumes(volume: Object | None, claim: str | None) -> Objects:
    # The model lives in an emptyDir: it survives a container's restart, unlike the container's own layer.
    # A claim survives the pod, too.
    cache: Object = {"persistentVolumeClaim": {"claimName": claim}} if claim else {"emptyDir": {}}
    volumes: Objects = [{"name": "ray-logs", "emptyDir": {}}, {"name": "cache", **cache}]
    return [*volumes, volume] if volume else volumes


def _serve_config(wanted: RayServiceSettings, digest: str, nonce: str | None) -> str:
    """serveConfigV2: a YAML text, since the CRD wants a string."""
    application: Object = {
        "name": APPLICATION,
        "route_prefix": "/",
        "import_path": IMPORT_PATH,
        "args": wanted.serving_args(),
        "runtime_env": _runtime_env(wanted, digest, nonce),
    }
    return yaml.safe_dump({"applications": [application]}, sort_keys=False, width=1000)


def _runtime_env(wanted: RayServiceSettings, digest: str, nonce: str | None) -> Object:
    variables = {}
    if digest:
        variables["RAYNEST_CODE"] = digest[:16]
    if nonce:
        variables[NONCE_VARIABLE] = nonce
    environment: Object = {"env_vars": variables} if variables else {}
    if wanted.code == "working_dir":
        environment["working_dir"] = wanted.working_dir
    if wanted.pip_packages:
        pip: Object = {"packages": replica_packages(wanted)}
        if wanted.pip_index_url:
            pip["pip_install_options"] = ["--index-url", wanted.pip_index_url]
        environment["pip"] = pip
    return environment


def replica_packages(wanted: RayServiceSettings) -> list[str]:
    """What pip is to install for a replica, with the package that opens the model's object store."""
    packages = list(wanted.pip_packages)
    store = store_package(wanted.model)
    named = {re.split(r"[\[<>=!~; @]", package, maxsplit=1)[0].lower() for package in packages}
    return packages if store is None or store in named else [*packages, store]
