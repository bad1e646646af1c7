"""The examples: every settings file loads, and the deployment files say what the code says."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from raynest_pipeline.images.prompt_file import open_prompts
from raynest_pipeline.settings import Profile, RayServiceSettings, Settings, load_settings

ROOT = Path(__file__).parents[1]
PROMPT_SET = ROOT / "examples" / "prompt-set.yaml"
SETTINGS = [
    *sorted(set((ROOT / "examples").glob("*.yaml")) - {PROMPT_SET}),
    ROOT / "deploy" / "k8s" / "raynest.yaml",
]
K8S = ROOT / "deploy" / "k8s"


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Load a settings file as a person does, with nothing else in the environment."""
    import os

    for name in [name for name in os.environ if name.startswith("RAYNEST_")]:
        monkeypatch.delenv(name)

    def loaded(file: Path) -> Settings:
        monkeypatch.setenv("RAYNEST_SETTINGS", str(file))
        return load_settings()

    return loaded


def test_there_is_an_example_for_each_profile_that_needs_one(load: Any) -> None:
    assert {load(file).profile for file in SETTINGS} == {Profile.ALIBABA, Profile.KUBECONFIG}


@pytest.mark.parametrize("file", SETTINGS, ids=lambda file: file.relative_to(ROOT).as_posix())
def test_settings_load_and_hold_no_secret(load: Any, file: Path) -> None:
    settings = load(file)
    assert settings.alibaba.access_key_id is None
    assert settings.alibaba.access_key_secret is None
    assert settings.alibaba.allow_unknown_price is False
    assert settings.health.buy_cluster is False


def test_an_account_gets_a_home_of_its_own(load: Any) -> None:
    homes = [load(file).home_dir for file in SETTINGS[:-1]]
    assert len(set(homes)) == len(homes)
    assert all(home.is_relative_to(Path.home()) for home in homes)


def test_dagster_in_another_cluster_takes_the_road_through_the_api_server(load: Any) -> None:
    assert load(K8S / "raynest.yaml").endpoint.route == "service-proxy"


def test_the_example_prompts_are_enough_for_a_demonstration() -> None:
    assert len(open_prompts(ROOT / "examples" / "prompts.csv")) >= 12
    assert len(open_prompts(PROMPT_SET)) >= 12


class TestDockerfile:
    text = (ROOT / "deploy" / "Dockerfile").read_text(encoding="utf-8")

    def test_it_installs_what_the_settings_ask_for(self) -> None:
        assert re.findall(r'^ +"([^"]+)"', self.text, re.MULTILINE) == list(RayServiceSettings().pip_packages)

    def test_it_is_built_on_the_release_of_the_settings(self) -> None:
        release = re.search(r"^ARG RAY_VERSION=(.+)$", self.text, re.MULTILINE)
        assert release is not None
        assert release[1] == RayServiceSettings().ray_version
        assert "rayproject/ray:${RAY_VERSION}-py311-gpu" in self.text

    def test_it_copies_folders_that_exist(self) -> None:
        for name in ("Dockerfile", "Dockerfile.dagster"):
            text = (ROOT / "deploy" / name).read_text(encoding="utf-8")
            sources = [
                path for line in re.findall(r"^COPY (.+) \S+$", text, re.MULTILINE) for path in line.split()
            ]
            assert sources
            assert [path for path in sources if not (ROOT / path).exists()] == []

    def test_dagsters_image_holds_the_pinned_family(self) -> None:
        text = (ROOT / "deploy" / "Dockerfile.dagster").read_text(encoding="utf-8")
        project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
        webserver = re.search(r"dagster-webserver==([\d.]+)", project)
        assert webserver is not None
        assert f"dagster-webserver=={webserver[1]}" in text
        minor = webserver[1].split(".")[2]
        assert f"dagster-postgres==0.29.{minor}" in text


class TestKubernetes:
    @pytest.fixture
    def instance(self) -> dict[str, Any]:
        document: dict[str, Any] = yaml.safe_load((K8S / "dagster.yaml").read_text(encoding="utf-8"))
        return document

    @pytest.fixture
    def objects(self) -> list[dict[str, Any]]:
        files = [K8S / name for name in ("access.yaml", "services.yaml")]
        return [obj for file in files for obj in yaml.safe_load_all(file.read_text(encoding="utf-8"))]

    def test_dagster_takes_the_instance_settings(self, instance: dict[str, Any], tmp_path: Path) -> None:
        from dagster._core.instance.config import dagster_instance_config

        (tmp_path / "dagster.yaml").write_text((K8S / "dagster.yaml").read_text(encoding="utf-8"))
        found, _ = dagster_instance_config(str(tmp_path))
        assert found["storage"] == instance["storage"]
        assert found["concurrency"] == instance["concurrency"]

    def test_the_launcher_takes_its_configuration(self, instance: dict[str, Any]) -> None:
        from dagster._config import validate_config
        from dagster_k8s import K8sRunLauncher

        launcher = instance["run_launcher"]
        assert (launcher["module"], launcher["class"]) == ("dagster_k8s", "K8sRunLauncher")
        schema: Any = K8sRunLauncher
        checked = validate_config(schema.config_type(), launcher["config"])
        assert checked.success, checked.errors

    def test_the_chain_is_changed_by_one_run_at_a_time_as_on_a_laptop(self, instance: dict[str, Any]) -> None:
        own = yaml.safe_load((ROOT / "dagster.yaml").read_text(encoding="utf-8"))
        limits = own["concurrency"]["runs"]["tag_concurrency_limits"]
        assert instance["concurrency"]["runs"]["tag_concurrency_limits"] == limits
        assert instance["concurrency"]["pools"] == own["concurrency"]["pools"]
        assert instance["retention"] == own["retention"]

    def test_what_is_referred_to_is_there(
        self, instance: dict[str, Any], objects: list[dict[str, Any]]
    ) -> None:
        kustomization = yaml.safe_load((K8S / "kustomization.yaml").read_text(encoding="utf-8"))
        config_maps = {generator["name"] for generator in kustomization["configMapGenerator"]}
        claims = {obj["metadata"]["name"] for obj in objects if obj["kind"] == "PersistentVolumeClaim"}
        accounts = {obj["metadata"]["name"] for obj in objects if obj["kind"] == "ServiceAccount"}
        specs = [o["spec"]["template"]["spec"] for o in objects if o["kind"] == "Deployment"]
        assert len(specs) == 3
        config = instance["run_launcher"]["config"]
        assert {config["instance_config_map"], *config["env_config_maps"]} <= config_maps
        volumes = [*config["volumes"], *(volume for spec in specs for volume in spec["volumes"])]
        for volume in volumes:
            if "configMap" in volume:
                assert volume["configMap"]["name"] in config_maps
            else:
                assert volume["persistentVolumeClaim"]["claimName"] in claims
        assert {config["service_account_name"], *(s["serviceAccountName"] for s in specs)} == accounts

    def test_every_mount_has_its_volume(self, objects: list[dict[str, Any]]) -> None:
        for obj in objects:
            if obj["kind"] == "Deployment":
                spec = obj["spec"]["template"]["spec"]
                mounted = {mount["name"] for c in spec["containers"] for mount in c["volumeMounts"]}
                assert mounted == {volume["name"] for volume in spec["volumes"]}
                assert obj["spec"]["selector"]["matchLabels"] == obj["spec"]["template"]["metadata"]["labels"]

    def test_the_workspace_leads_to_the_code_location(self, objects: list[dict[str, Any]]) -> None:
        (server,) = yaml.safe_load((K8S / "workspace.yaml").read_text(encoding="utf-8"))["load_from"]
        ports = {
            o["metadata"]["name"]: [port["port"] for port in o["spec"]["ports"]]
            for o in objects
            if o["kind"] == "Service"
        }
        assert server["grpc_server"]["port"] in ports[server["grpc_server"]["host"]]
        local = (ROOT / "workspace.yaml").read_text(encoding="utf-8")
        assert f"location_name: {server['grpc_server']['location_name']}" in local

    def test_kustomize_renders_it(self) -> None:
        if shutil.which("kubectl") is None:
            pytest.skip("kubectl is not installed")
        done = subprocess.run(["kubectl", "kustomize", str(K8S)], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        rendered = list(yaml.safe_load_all(done.stdout))
        kinds = sorted(obj["kind"] for obj in rendered)
        assert kinds.count("Deployment") == 3
        assert kinds.count("ConfigMap") == 4
        images = {
            container["image"]
            for obj in rendered
            if obj["kind"] == "Deployment"
            for container in obj["spec"]["template"]["spec"]["containers"]
        }
        (image,) = images
        # The run pods take their image from this variable.
        assert f'value: "{image}"' in (K8S / "services.yaml").read_text(encoding="utf-8")
