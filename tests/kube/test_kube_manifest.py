"""The manifest that raynest builds: for KubeRay 1.3 as well as 1.7, and rolled out when the code changes."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from raynest_pipeline.errors import InputError
from raynest_pipeline.kube.rayservice import manifest
from raynest_pipeline.kube.rayservice.manifest import OWNER_LABELS, app_names, build_manifest, source_files
from raynest_pipeline.settings import RayServiceSettings, Settings, Toleration

FILES = {"raynest_pipeline/__init__.py": "", "raynest_pipeline/serving/app.py": "build = 1\n"}

# Fields that KubeRay 1.3.0 does not declare (facts 2.2): a server-side apply of one is refused whole.
NEWER_FIELDS = {"rayClusterDeletionDelaySeconds", "managedBy", "suspend", "upgradeStrategy", "authOptions"}


def build(
    token_auth: bool = False, nonce: str | None = None, files: Any = None, **changes: Any
) -> list[dict[str, Any]]:
    settings = Settings(ray_service=RayServiceSettings(**changes))
    return build_manifest(
        settings, serving_files=files or FILES, token_auth=token_auth, namespace="demo", nonce=nonce
    )


def ray_service(**options: Any) -> dict[str, Any]:
    return build(**options)[-1]


def serve_app(service: dict[str, Any]) -> dict[str, Any]:
    (app,) = yaml.safe_load(service["spec"]["serveConfigV2"])["applications"]
    found: dict[str, Any] = app
    return found


def head(service: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = service["spec"]["rayClusterConfig"]["headGroupSpec"]
    return found


def worker(service: dict[str, Any]) -> dict[str, Any]:
    (found,) = service["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    group: dict[str, Any] = found
    return group


def container(group: dict[str, Any]) -> dict[str, Any]:
    (found,) = group["template"]["spec"]["containers"]
    made: dict[str, Any] = found
    return made


def environment(group: dict[str, Any]) -> dict[str, str]:
    return {item["name"]: item["value"] for item in container(group)["env"]}


def test_the_ray_service_comes_last_and_everything_is_labelled() -> None:
    objects = build()
    assert [obj["kind"] for obj in objects] == ["ConfigMap", "RayService"]
    for obj in objects:
        assert obj["metadata"]["namespace"] == "demo"
        assert OWNER_LABELS.items() <= obj["metadata"]["labels"].items()
        assert obj["metadata"]["labels"]["raynest/service"] == objects[-1]["metadata"]["name"]


def test_the_ports_are_complete_and_named() -> None:
    ports = {port["name"]: port["containerPort"] for port in container(head(ray_service()))["ports"]}
    assert ports == {"gcs-server": 6379, "dashboard": 8265, "client": 10001, "metrics": 8080, "serve": 8000}


def test_no_replica_lands_on_the_head() -> None:
    assert head(ray_service())["rayStartParams"]["num-cpus"] == "0"
    assert "num-cpus" not in worker(ray_service())["rayStartParams"]


@pytest.mark.parametrize("gpus", [0, 1, 2])
def test_gpus_are_asked_for_only_where_they_are_wanted(gpus: int) -> None:
    service = ray_service(gpus_per_replica=gpus)
    for part in ("requests", "limits"):
        assert container(worker(service))["resources"][part].get("nvidia.com/gpu") == (
            str(gpus) if gpus else None
        )
        assert "nvidia.com/gpu" not in container(head(service))["resources"][part]
    assert serve_app(service)["args"]["num_gpus"] == gpus
    assert container(worker(service))["image"].endswith("-gpu") is bool(gpus)


def test_resources_and_replicas() -> None:
    service = ray_service(replicas=3, worker_cpus=2.5, worker_memory="12Gi", head_cpus=1, head_memory="4Gi")
    group = worker(service)
    assert (group["replicas"], group["minReplicas"], group["maxReplicas"]) == (3, 3, 3)
    assert container(group)["resources"]["requests"] == {
        "cpu": "2.5",
        "memory": "12Gi",
        "nvidia.com/gpu": "1",
    }
    assert container(head(service))["resources"]["limits"] == {"cpu": "1", "memory": "4Gi"}
    assert serve_app(service)["args"]["replicas"] == 3


def test_tolerations_are_the_workers() -> None:
    wanted = (Toleration(key="a"), Toleration(key="b", operator="Equal", value="c", effect="NoExecute"))
    service = ray_service(tolerations=wanted)
    assert worker(service)["template"]["spec"]["tolerations"] == [
        {"key": "a", "operator": "Exists"},
        {"key": "b", "operator": "Equal", "value": "c", "effect": "NoExecute"},
    ]
    assert "tolerations" not in head(service)["template"]["spec"]


def test_other_tolerations_are_a_change_that_kuberay_sees() -> None:
    def template(*tolerations: Toleration) -> Any:
        made = worker(ray_service(tolerations=tolerations))["template"]
        made["spec"].pop("tolerations", None)  # KubeRay from 1.6 on leaves them out of its hash (facts 2.4)
        return made

    assert template(Toleration(key="a")) != template(Toleration(key="b"))
    assert template(Toleration(key="a")) != template()


def test_without_tolerations_there_are_none() -> None:
    assert "tolerations" not in worker(ray_service(tolerations=()))["template"]["spec"]


def test_token_authentication_only_where_asked_for() -> None:
    config = ray_service(token_auth=True)["spec"]["rayClusterConfig"]
    assert config["authOptions"] == {"mode": "token"}
    assert "authOptions" not in ray_service()["spec"]["rayClusterConfig"]


def test_nothing_that_kuberay_1_3_does_not_declare() -> None:
    def keys(value: Any) -> set[str]:
        if isinstance(value, dict):
            return set(value) | {key for inner in value.values() for key in keys(inner)}
        return {key for inner in value for key in keys(inner)} if isinstance(value, list) else set()

    assert not keys(ray_service()) & NEWER_FIELDS


def test_the_image_follows_the_ray_version() -> None:
    assert container(head(ray_service(ray_version="2.58.1")))["image"] == "rayproject/ray:2.58.1-py311-gpu"
    assert container(head(ray_service(image="mine:1")))["image"] == "mine:1"
    assert ray_service(ray_version="2.58.1")["spec"]["rayClusterConfig"]["rayVersion"] == "2.58.1"


def test_the_code_is_mounted_where_python_looks_for_it() -> None:
    config_map, service = build()
    for group in (head(service), worker(service)):
        spec = group["template"]["spec"]
        assert environment(group)["PYTHONPATH"] == "/opt/raynest"
        (mount,) = [m for m in container(group)["volumeMounts"] if m["mountPath"] == "/opt/raynest"]
        (volume,) = [v for v in spec["volumes"] if v["name"] == mount["name"]]
        assert volume["configMap"]["name"] == config_map["metadata"]["name"]
        placed = {item["path"]: config_map["data"][item["key"]] for item in volume["configMap"]["items"]}
        assert placed == FILES


def test_config_map_keys_are_legal_and_distinct() -> None:
    config_map = build(files=source_files())[0]
    assert len(config_map["data"]) == len(source_files())
    for key in config_map["data"]:
        assert key.replace(".", "").replace("_", "").replace("-", "").isalnum()
        assert len(key) <= 253 and not key.startswith("..")


def test_changed_code_makes_new_pods_and_a_new_config_map() -> None:
    changed = {**FILES, "raynest_pipeline/serving/app.py": "build = 2\n"}
    before, after = build(), build(files=changed)
    assert before[0]["metadata"]["name"] != after[0]["metadata"]["name"]
    assert worker(before[1])["template"] != worker(after[1])["template"]
    assert before[1]["spec"]["serveConfigV2"] != after[1]["spec"]["serveConfigV2"]
    assert before[1]["metadata"]["annotations"] != after[1]["metadata"]["annotations"]


def test_the_same_settings_build_the_same_manifest() -> None:
    shuffled = dict(reversed(FILES.items()))
    assert build() == build(files=shuffled)


def test_a_renamed_file_is_a_change() -> None:
    assert manifest.code_hash({"a": "b"}) != manifest.code_hash({"ab": ""})
    assert manifest.code_hash({"a": "1", "b": "2"}) != manifest.code_hash({"a": "2", "b": "1"})


def test_a_nonce_changes_serves_configuration_and_nothing_else() -> None:
    plain, rebuilt = ray_service(), ray_service(nonce="n1")
    assert serve_app(rebuilt)["runtime_env"]["env_vars"]["RAYNEST_REDEPLOY_NONCE"] == "n1"
    plain["spec"].pop("serveConfigV2")
    rebuilt["spec"].pop("serveConfigV2")
    assert plain == rebuilt


def test_the_application_and_its_environment() -> None:
    service = ray_service(
        model="org/model",
        revision="fp16",
        hf_endpoint="https://mirror.example",
        max_batch_size=4,
        pip_packages=("torch==1", "diffusers"),
        pip_index_url="https://index.example/simple",
        env={"HF_TOKEN": "t"},
    )
    app = serve_app(service)
    assert app["import_path"] == "raynest_pipeline.serving.app:build"
    assert app["args"] == {
        "model": "org/model", "revision": "fp16", "hf_endpoint": "https://mirror.example",
        "num_gpus": 1, "replicas": 1, "max_batch_size": 4,
    }  # fmt: skip
    assert app["runtime_env"]["pip"] == {
        "packages": ["torch==1", "diffusers"],
        "pip_install_options": ["--index-url", "https://index.example/simple"],
    }
    assert environment(worker(service))["HF_ENDPOINT"] == "https://mirror.example"
    assert environment(worker(service))["HF_TOKEN"] == "t"
    assert "HF_ENDPOINT" not in environment(worker(ray_service()))


def test_the_arguments_are_ones_that_the_application_takes() -> None:
    from raynest_pipeline.serving.options import resolve_options

    service = ray_service(
        model="org/model", revision="fp16", hf_endpoint="https://mirror.example", replicas=2
    )
    options = resolve_options(serve_app(service)["args"], {})
    assert (options.model, options.revision, options.replicas, options.num_gpus) == (
        "org/model",
        "fp16",
        2,
        1,
    )


@pytest.mark.parametrize(
    "model",
    ["org/model", "modelscope://org/model@v1", "oss://bucket/models/sd", "s3://bucket/sd", "/models/sd"],
)
def test_each_kind_of_model_reaches_the_application(model: str) -> None:
    from raynest_pipeline.serving.modelname import parse_model
    from raynest_pipeline.serving.options import resolve_options

    service = ray_service(model=model, modelscope_endpoint="https://scope.example")
    group = worker(service)
    options = resolve_options(serve_app(service)["args"], environment(group))
    assert (options.model, options.modelscope_endpoint) == (model, "https://scope.example")
    assert parse_model(options.model).asked == model
    mounts = [mount["mountPath"] for mount in container(group)["volumeMounts"]]
    assert any(options.cache_dir and options.cache_dir.startswith(f"{path}/") for path in mounts)


@pytest.mark.parametrize(
    ("model", "given", "installed"),
    [
        ("s3://bucket/sd", ("torch==1",), ["torch==1", "s3fs"]),
        ("oss://bucket/sd", ("torch==1", "ossfs>=2025"), ["torch==1", "ossfs>=2025"]),
        ("gs://bucket/sd", ("torch==1",), ["torch==1", "gcsfs"]),
        ("org/model", ("torch==1",), ["torch==1"]),
        ("/models/sd", ("torch==1",), ["torch==1"]),
    ],
)
def test_an_object_store_brings_its_package(model: str, given: tuple[str, ...], installed: list[str]) -> None:
    service = ray_service(model=model, pip_packages=given)
    assert serve_app(service)["runtime_env"]["pip"]["packages"] == installed
    assert "pip" not in serve_app(ray_service(model=model, pip_packages=()))["runtime_env"]


def test_models_may_outlive_a_pod() -> None:
    service = ray_service(cache_claim="models")
    volumes = {v["name"]: v for v in worker(service)["template"]["spec"]["volumes"]}
    assert volumes["cache"] == {"name": "cache", "persistentVolumeClaim": {"claimName": "models"}}
    heads = {v["name"]: v for v in head(service)["template"]["spec"]["volumes"]}
    assert heads["cache"] == {"name": "cache", "emptyDir": {}}, "a volume for one node must not bind the head"


def test_an_image_that_brings_everything_needs_nothing() -> None:
    objects = build(code="image", pip_packages=())
    assert [obj["kind"] for obj in objects] == ["RayService"]
    assert serve_app(objects[0])["runtime_env"] == {}
    assert "PYTHONPATH" not in environment(worker(objects[0]))
    assert "annotations" not in objects[0]["metadata"]


def test_a_working_dir_goes_to_serve() -> None:
    objects = build(code="working_dir", working_dir="https://example.org/code.zip")
    assert [obj["kind"] for obj in objects] == ["RayService"]
    assert serve_app(objects[0])["runtime_env"]["working_dir"] == "https://example.org/code.zip"


def test_the_model_and_the_logs_outlive_a_container() -> None:
    service = ray_service()
    for group in (head(service), worker(service)):
        empty = {v["name"] for v in group["template"]["spec"]["volumes"] if "emptyDir" in v}
        mounts = {m["mountPath"]: m["name"] for m in container(group)["volumeMounts"]}
        assert mounts["/tmp/ray"] in empty
        cache = next(path for path in mounts if environment(group)["HF_HOME"].startswith(path))
        assert mounts[cache] in empty


def test_code_that_does_not_fit_is_refused_before_anything_is_sent() -> None:
    with pytest.raises(InputError, match="ConfigMap holds"):
        build(files={"raynest_pipeline/serving/a.py": "é" * 500_000})


def test_app_names() -> None:
    assert app_names(ray_service()) == ("raynest",)


def test_the_shipped_files_are_the_serving_package_itself() -> None:
    files = source_files()
    package = Path(manifest.__file__).parents[2] / "serving"
    expected = {f"raynest_pipeline/serving/{path.name}" for path in package.glob("*.py")}
    assert set(files) == expected | {"raynest_pipeline/__init__.py"}
    assert files["raynest_pipeline/__init__.py"] == ""
    assert files["raynest_pipeline/serving/app.py"] == (package / "app.py").read_text(encoding="utf-8")
    assert sum(map(len, files.values())) < 500_000


@pytest.mark.skipif(importlib.util.find_spec("fastapi") is None, reason="needs the `local` extra")
def test_the_shipped_files_stand_alone(tmp_path: Path) -> None:
    for path, text in source_files().items():
        target = tmp_path / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
    check = "import raynest_pipeline.serving.options as m, sys; print(m.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", check],
        env={"PYTHONPATH": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().startswith(str(tmp_path))
