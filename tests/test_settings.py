"""Every source of settings, their precedence, each rule, and errors that name the key and hide secrets."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from raynest_pipeline import docs
from raynest_pipeline.errors import SettingsError
from raynest_pipeline.settings import Alibaba, Settings, Toleration, load_settings, settings_file

SECRET = "Zx9-very-secret"


@pytest.fixture(autouse=True)
def _own_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("RAYNEST_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def yaml_file(tmp_path: Path) -> Callable[[str], None]:
    def write(text: str) -> None:
        (tmp_path / "raynest.yaml").write_text(text, encoding="utf-8")

    return write


def problem(**overrides: Any) -> SettingsError:
    with pytest.raises(SettingsError) as caught:
        load_settings(**overrides)
    return caught.value


class TestSources:
    def test_nothing_set_is_the_sandbox(self) -> None:
        settings = load_settings()
        assert settings.profile == "sandbox"
        assert settings.name == "raynest"

    def test_the_file_of_the_current_folder(self, yaml_file: Callable[[str], None]) -> None:
        yaml_file("name: from-file\nalibaba:\n  worker_count: 3\n")
        settings = load_settings()
        assert (settings.name, settings.alibaba.worker_count) == ("from-file", 3)
        assert settings.alibaba.region_id == "ap-southeast-1", "the section's other keys keep their defaults"

    def test_the_file_that_the_variable_names(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        (tmp_path / "other.yaml").write_text("name: other\n")
        monkeypatch.setenv("RAYNEST_SETTINGS", str(tmp_path / "other.yaml"))
        assert settings_file() == tmp_path / "other.yaml"
        assert load_settings().name == "other"

    def test_an_environment_variable(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("RAYNEST_NAME", "from-env")
        monkeypatch.setenv("RAYNEST_ALIBABA__ZONE_ID", "zone-b")
        monkeypatch.setenv("RAYNEST_RAY_SERVICE__GPUS_PER_REPLICA", "0")
        settings = load_settings()
        assert settings.name == "from-env"
        assert settings.alibaba.zone_id == "zone-b"
        assert settings.ray_service.gpus_per_replica == 0

    def test_a_list_or_an_object_is_json_in_a_variable(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("RAYNEST_RAY_SERVICE__PIP_PACKAGES", '["a", "b==1"]')
        monkeypatch.setenv("RAYNEST_RAY_SERVICE__TOLERATIONS", '[{"key": "gpu"}]')
        monkeypatch.setenv("RAYNEST_ALIBABA__CHART_VALUES", '{"head": {"x": 1}}')
        settings = load_settings()
        assert settings.ray_service.pip_packages == ("a", "b==1")
        assert settings.ray_service.tolerations == (Toleration(key="gpu"),)
        assert settings.alibaba.chart_values == {"head": {"x": 1}}

    def test_arguments_before_variables_before_the_file(
        self, monkeypatch: pytest.MonkeyPatch, yaml_file: Callable[[str], None]
    ) -> None:
        yaml_file("name: file\nhome: file\noutput: file\n")
        monkeypatch.setenv("RAYNEST_NAME", "env")
        monkeypatch.setenv("RAYNEST_HOME", "env")
        settings = load_settings(name="argument")
        assert (settings.name, str(settings.home), str(settings.output)) == ("argument", "env", "file")

    def test_sections_are_merged_key_by_key(
        self, monkeypatch: pytest.MonkeyPatch, yaml_file: Callable[[str], None]
    ) -> None:
        yaml_file("alibaba:\n  worker_count: 3\n  zone_id: file-zone\n")
        monkeypatch.setenv("RAYNEST_ALIBABA__WORKER_COUNT", "5")
        alibaba = load_settings(alibaba={"region_id": "cn-beijing"}).alibaba
        assert (alibaba.region_id, alibaba.worker_count, alibaba.zone_id) == ("cn-beijing", 5, "file-zone")

    def test_an_empty_file_is_no_settings(self, yaml_file: Callable[[str], None]) -> None:
        yaml_file("# nothing yet\n")
        assert load_settings() == load_settings()

    def test_settings_do_not_change(self) -> None:
        with pytest.raises(ValueError, match="frozen"):
            load_settings().name = "other"


class TestFileErrors:
    def test_a_file_that_is_named_must_exist(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("RAYNEST_SETTINGS", str(tmp_path / "nope.yaml"))
        error = problem()
        assert "nope.yaml does not exist" in error.what and "RAYNEST_SETTINGS" in error.fix
        assert error.exit_code == 2

    def test_broken_yaml_is_told_with_its_line(self, yaml_file: Callable[[str], None]) -> None:
        yaml_file("name: x\nalibaba: [1,\n")
        error = problem()
        assert error.what == "raynest.yaml is not valid YAML."
        assert "line" in error.why

    @pytest.mark.parametrize("text", ["- a\n- b\n", "just words\n", "42\n"])
    def test_a_file_that_is_no_mapping_is_an_error(self, yaml_file: Callable[[str], None], text: str) -> None:
        yaml_file(text)
        assert "raynest.yaml" in str(problem())

    def test_a_file_that_is_no_text_is_an_error(self, tmp_path: Path) -> None:
        (tmp_path / "raynest.yaml").write_bytes(b"name: \xff\xfe\n")
        assert "raynest.yaml" in str(problem())

    def test_a_variable_that_is_no_json_is_told(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("RAYNEST_RAY_SERVICE__PIP_PACKAGES", "a,b")
        error = problem()
        assert "RAYNEST_" in error.what and "ray_service" in error.what
        assert error.exit_code == 2


class TestSecretsInErrors:
    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("ray_service.env", ["HF_TOKEN=s3cr3t"]),
            ("ray_service.env", "HF_TOKEN=s3cr3t"),
            ("ray_service.pip_index_url", {"user": "s3cr3t"}),
        ],
    )
    def test_what_people_put_tokens_into_is_not_shown(self, key: str, value: object) -> None:
        section, name = key.split(".")
        with pytest.raises(SettingsError) as caught:
            load_settings(**{section: {name: value}})
        assert key in str(caught.value)
        assert "s3cr3t" not in str(caught.value)


class TestRules:
    @pytest.mark.parametrize(
        ("key", "value", "words"),
        [
            ("profile", "gcp", "sandbox"),
            ("name", "Upper", "RFC 1123"),
            ("name", "ends-", "RFC 1123"),
            ("alibaba.control_region_id", "cn-beijing", "cn-hangzhou"),
            ("alibaba.sdk", "both", "supplier"),
            ("alibaba.existing_cluster_id", "x1", "c[0-9a-z]"),
            ("alibaba.worker_count", 0, "greater than or equal to 1"),
            ("alibaba.worker_disk_gib", 4096, "less than or equal to 2048"),
            ("alibaba.worker_disk_category", "floppy", "cloud_essd"),
            ("alibaba.network_plugin", "calico", "flannel"),
            ("alibaba.dashboard_load_balancer", "public", "intranet"),
            ("alibaba.max_price_per_hour", 0, "greater than 0"),
            ("alibaba.eip_bandwidth_mbps", 500, "less than or equal to 200"),
            ("alibaba.kubeconfig_minutes", 5, "greater than or equal to 15"),
            ("ray_service.name", "x" * 48, "47 characters"),
            ("ray_service.name", "1up", "DNS-1035"),
            ("ray_service.code", "git", "configmap"),
            ("ray_service.token_auth", "maybe", "auto"),
            ("ray_service.max_batch_size", 65, "less than or equal to 64"),
            ("endpoint.route", "carrier-pigeon", "service-proxy"),
            ("batch.concurrency", 0, "greater than or equal to 1"),
            ("batch.size", 65, "multiple of 8"),
            ("batch.max_failed_share", 2, "less than or equal to 1"),
            ("deadlines.cluster", 0, "greater than 0"),
            ("health.interval_seconds", 5, "greater than or equal to 10"),
            ("health.tick_seconds", 55, "less than or equal to 50"),
            ("sandbox.kuberay_version", "1.2.0", "1.3.0"),
        ],
    )
    def test_an_error_names_key_value_and_what_is_allowed(self, key: str, value: Any, words: str) -> None:
        section, _, name = key.rpartition(".")
        error = problem(**({section: {name: value}} if section else {name: value}))
        assert f"  {key}: " in error.what
        assert repr(value) in error.what
        assert words in error.what
        assert "docs/settings.md" in error.fix

    def test_a_variable_is_named_by_its_key(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("RAYNEST_ALIBABA__WORKER_COUNT", "many")
        assert "alibaba.worker_count" in problem().what

    def test_all_problems_are_told_at_once(self) -> None:
        error = problem(name="Bad", alibaba={"worker_count": 0, "sdk": "x"})
        assert [key for key in ("name", "alibaba.worker_count", "alibaba.sdk") if key in error.what] == [
            "name",
            "alibaba.worker_count",
            "alibaba.sdk",
        ]

    @pytest.mark.parametrize("text", ["nmae: x\n", "alibaba:\n  worker_cuont: 2\n"])
    def test_a_key_that_does_not_exist_is_an_error(self, yaml_file: Callable[[str], None], text: str) -> None:
        yaml_file(text)
        error = problem()
        assert "there is no such setting" in error.what
        assert ("nmae" if "nmae" in text else "alibaba.worker_cuont") in error.what

    @pytest.mark.parametrize(
        ("overrides", "words"),
        [
            ({"profile": "kubeconfig"}, "kubeconfig.path"),
            ({"alibaba": {"vpc_id": "vpc-1"}}, "go together"),
            ({"alibaba": {"access_key_id": "k"}}, "go together"),
            ({"alibaba": {"access_key_secret": SECRET}}, "go together"),
            ({"ray_service": {"code": "working_dir"}}, "ray_service.working_dir"),
        ],
    )
    def test_what_goes_together(self, overrides: dict[str, Any], words: str) -> None:
        error = problem(**overrides)
        assert words in error.what
        assert SECRET not in str(error)

    @pytest.mark.parametrize(
        "alibaba",
        [
            {"access_key_id": "k", "access_key_secret": SECRET, "worker_count": 0},
            {"access_key_id": "k", "access_key_secret": [SECRET]},
            {"access_key_id": "k", "access_key_secret": SECRET, "security_token": {"t": SECRET}},
            {"access_key_secret": SECRET, "no_such_key": SECRET},
            {"access_key_secret_": SECRET},
        ],
    )
    def test_no_secret_is_ever_shown(self, alibaba: dict[str, Any]) -> None:
        assert SECRET not in str(problem(alibaba=alibaba))

    def test_secrets_are_not_in_the_settings_text(self) -> None:
        settings = load_settings(alibaba={"access_key_id": "k", "access_key_secret": SECRET})
        assert SECRET not in repr(settings) and SECRET not in settings.model_dump_json()

    @given(st.text(alphabet="abz09-A_. ", max_size=70))
    def test_a_name_is_valid_exactly_when_it_is_a_namespace(self, name: str) -> None:
        valid = (
            0 < len(name) <= 63
            and name[0] in "abz"
            and name[-1] != "-"
            and all(char in "abz09-" for char in name)
        )
        if valid:
            assert load_settings(name=name).name == name
        else:
            assert "name" in problem(name=name).what

    @pytest.mark.parametrize(
        ("region", "control"),
        [
            ("cn-hangzhou", "cn-hangzhou"),
            ("cn-beijing", "cn-hangzhou"),
            ("ap-southeast-1", "ap-southeast-1"),
            ("eu-central-1", "ap-southeast-1"),
        ],
    )
    def test_the_control_plane_is_in_one_of_two_regions(self, region: str, control: str) -> None:
        assert Alibaba(region_id=region).control_region == control
        assert Alibaba(region_id=region, control_region_id="cn-hangzhou").control_region == "cn-hangzhou"

    def test_folders_are_absolute(self, tmp_path: Path) -> None:
        settings = load_settings(home="here")
        assert settings.home_dir == tmp_path / "here"
        assert settings.output_dir == tmp_path / "here" / "images"
        assert load_settings(output="~/x").output_dir == Path.home() / "x"
        assert settings.sandbox_dir == tmp_path / "here" / "sandbox"


class TestDocs:
    def keys(self, model: type[BaseModel] = Settings, prefix: str = "") -> list[str]:
        found = []
        for name, field in model.model_fields.items():
            inner = field.annotation
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                found += self.keys(inner, f"{prefix}{name}.")
            else:
                found.append(prefix + name)
        return found

    def test_every_key_has_its_row(self) -> None:
        page = docs.settings_page()
        missing = [key for key in self.keys() if f"| `{key}` |" not in page]
        assert missing == []
        assert len(self.keys()) > 80

    def test_every_key_is_described(self) -> None:
        undescribed = []
        for key in self.keys():
            model: type[BaseModel] = Settings
            *sections, name = key.split(".")
            for section in sections:
                model = model.model_fields[section].annotation  # type: ignore[assignment]
            if not model.model_fields[name].description:
                undescribed.append(key)
        assert undescribed == [], "docs/settings.md has an empty cell for these"

    def test_no_row_breaks_the_table(self) -> None:
        for line in docs.settings_page().splitlines():
            if line.startswith("| `"):
                assert line.replace("\\|", "").count("|") == 5, line

    def test_no_secret_has_a_default(self) -> None:
        page = docs.settings_page()
        for line in page.splitlines():
            if "secret text" in line:
                assert "| unset |" in line

    def test_the_pages_in_the_repository_are_up_to_date(self) -> None:
        root = Path(__file__).parents[1]
        result = subprocess.run(
            [sys.executable, "-m", "raynest_pipeline.docs", "--check"],
            cwd=root,
            capture_output=True,
            text=True,
        )
        assert (result.returncode, result.stdout) == (0, "")

    def test_a_stale_page_is_told_and_not_touched(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(docs, "DOCS", tmp_path)
        (tmp_path / "settings.md").write_text("old")
        monkeypatch.setattr(sys, "argv", ["docs", "--check"])
        assert docs.main() == 1
        assert "docs/settings.md is out of date" in capsys.readouterr().out
        assert (tmp_path / "settings.md").read_text() == "old"
        monkeypatch.setattr(sys, "argv", ["docs"])
        assert docs.main() == 0
        assert (tmp_path / "settings.md").read_text() == docs.settings_page()
