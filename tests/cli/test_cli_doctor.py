"""`raynest doctor` and `raynest sandbox`: what they find out without starting anything."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from chain_clock import denied
from chain_kube import FakeKube, no_kuberay
from chain_ports import KUBECONFIG, jwt
from chain_world import World

from raynest_pipeline.chain.gpu_check import GpuCheck
from raynest_pipeline.cli import doctor
from raynest_pipeline.cli.doctor import Finding, examine

Raynest = Callable[..., Any]


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.delenv(name, raising=False)


def finding(what: str) -> Finding:
    return next(item for item in examine() if item.what == what)


class TestDoctor:
    def test_a_machine_that_is_fine(self, raynest: Raynest) -> None:
        said = raynest("doctor")
        assert said.code == 0
        for word in ("python", "dagster", "settings", "home", "proxy", "sandbox packages", "not running"):
            assert word in said.out
        found = json.loads(raynest("doctor", "--json").out)
        assert {"what", "ok", "found", "fix"} == set(found[0])

    def test_wrong_settings_are_told_and_fail(
        self, raynest: Raynest, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("RAYNEST_NAME", "Not_A_Name")
        said = raynest("doctor")
        assert said.code == 5 and "RFC 1123" in " ".join(said.out.split())

    def test_a_proxy_stands_in_the_sandboxs_way_only(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HTTPS_PROXY", "http://user:pass@proxy:3128")
        found = finding("proxy")
        assert found.ok is False and "pass" not in found.found
        monkeypatch.setenv("RAYNEST_PROFILE", "alibaba")
        assert finding("proxy").ok is None

    def test_a_full_disk_is_told(self, monkeypatch: pytest.MonkeyPatch) -> None:
        class Usage:
            free = 2**30

        monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: Usage)
        found = finding("home")
        assert found.ok is False and "1.0 GiB free" in found.found and "Free 2 GiB" in found.fix

    def test_a_home_that_cannot_be_made_is_told(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        (tmp_path / "file").write_text("")
        monkeypatch.setenv("RAYNEST_HOME", str(tmp_path / "file" / "home"))
        assert finding("home").ok is False

    def test_missing_packages_are_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: None if name == "torch" else 1)
        found = finding("sandbox packages")
        assert found.ok is False and found.found == "torch missing" and "make install" in found.fix

    @pytest.mark.parametrize(
        ("versions", "ok"),
        [
            ({"dagster": "1.13.27", "dagster-k8s": "0.29.27"}, True),
            ({"dagster": "1.13.29", "dagster-k8s": "0.29.27"}, False),
            ({"dagster": "1.13.27", "dagster-k8s": "0.11.14"}, False),
            ({"dagster": "1.8.4", "dagster-k8s": "0.24.4"}, False),
        ],
    )
    def test_releases_that_do_not_belong_together(
        self, monkeypatch: pytest.MonkeyPatch, versions: dict[str, str], ok: bool
    ) -> None:
        monkeypatch.setattr(doctor.importlib.metadata, "version", versions.__getitem__)
        assert finding("dagster").ok is ok

    def test_the_clouds_who_am_i(self, opened: Any, world: World) -> None:
        found = finding("credentials")
        assert found.ok is True and "ada of account 1234" in found.found
        world.faults["caller"] = [denied()]
        assert finding("credentials").ok is False

    def test_a_given_cluster(self, kube: FakeKube, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        path = tmp_path / "kc.yaml"
        path.write_text(KUBECONFIG.format(server="https://k:6443", token=jwt(World().clock.now(), "s3cr3t")))
        monkeypatch.setenv("RAYNEST_PROFILE", "kubeconfig")
        monkeypatch.setenv("RAYNEST_KUBECONFIG__PATH", str(path))
        found = finding("cluster")
        assert found.ok is True and "v1.32.1" in found.found and "s3cr3t" not in repr(found)
        kube.fail["list"] = [no_kuberay()]
        assert finding("cluster").ok is False
        path.unlink()
        assert "cannot be read" in finding("cluster").found


class TestSandboxCommand:
    def test_status_of_none_is_exit_code_5(self, raynest: Raynest) -> None:
        said = raynest("sandbox", "status", "--json")
        assert said.code == 5 and json.loads(said.out) == {"running": False}
        assert "not running" in raynest("sandbox", "status").out

    def test_stop_of_none_says_so(self, raynest: Raynest) -> None:
        said = raynest("sandbox", "stop")
        assert said.code == 0 and "it was not running" in said.out

    def test_faults_are_listed_with_what_they_do(self, raynest: Raynest) -> None:
        from raynest_pipeline.sandbox.faults import FAULTS

        said = raynest("sandbox", "fault")
        assert said.code == 0
        assert all(name in said.out for name in FAULTS) and len(FAULTS) >= 10

    def test_a_fault_that_does_not_exist_is_exit_code_2(self, raynest: Raynest) -> None:
        said = raynest("sandbox", "fault", "earthquake")
        assert said.code == 2 and "Choose one of" in said.err

    def test_a_fault_without_a_sandbox_is_exit_code_5(self, raynest: Raynest) -> None:
        from raynest_pipeline.sandbox.faults import FAULTS

        said = raynest("sandbox", "fault", next(iter(FAULTS)))
        assert said.code in (2, 5) and said.err
        assert raynest("sandbox", "fault", "--clear").code == 5

    @pytest.mark.parametrize("value", ["message", ""])
    def test_a_parameter_that_is_none_is_exit_code_2(self, raynest: Raynest, value: str) -> None:
        from raynest_pipeline.sandbox.faults import FAULTS

        assert raynest("sandbox", "fault", next(iter(FAULTS)), value).code == 2


class TestCluster:
    def found(self, monkeypatch: pytest.MonkeyPatch, check: GpuCheck, profile: str) -> Finding:
        monkeypatch.setattr("raynest_pipeline.chain.profile.open_chain", lambda *a, **k: None)
        monkeypatch.setattr("raynest_pipeline.chain.gpu_check.check_gpu", lambda chain: check)
        monkeypatch.setenv("RAYNEST_PROFILE", profile)
        (only,) = doctor.examine_cluster()
        return only

    def test_a_gpu_that_works(self, monkeypatch: pytest.MonkeyPatch) -> None:
        found = self.found(monkeypatch, GpuCheck(True, "1 GPU: NVIDIA A10", "", {"cuda": True}), "alibaba")
        assert (found.ok, found.found) == (True, "1 GPU: NVIDIA A10")

    def test_one_that_does_not_is_a_fault_in_a_cloud_and_none_in_the_sandbox(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        check = GpuCheck(False, "torch sees no CUDA device", "Check the driver.", {"cuda": False})
        assert self.found(monkeypatch, check, "alibaba").ok is False
        played = self.found(monkeypatch, check, "sandbox")
        assert (played.ok, played.fix) == (None, "")

    def test_different_versions_are_a_fault_everywhere(self, monkeypatch: pytest.MonkeyPatch) -> None:
        check = GpuCheck(False, "Ray Client: versions differ", "Install.", {"kind": "version"})
        assert self.found(monkeypatch, check, "sandbox").ok is False

    def test_a_chain_that_is_not_up_is_told_with_its_remedy(self, raynest: Raynest) -> None:
        said = raynest("doctor", "--cluster")
        assert said.code == 5
        assert "The sandbox is not running." in said.out
