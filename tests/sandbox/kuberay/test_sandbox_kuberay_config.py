"""The Serve configuration on its way to Ray, and Ray's answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from raynest_pipeline.sandbox.kuberay import (
    dashboard,
    pods,
    serve_config,
)
from raynest_pipeline.sandbox.kuberay.container import Mounts

GI = 1024**3


# --- the Serve configuration


def _body(text: str, failure: str | None = None) -> dict[str, Any]:
    mounts = Mounts({"/opt/app": Path("/real/app")})
    return serve_config.body(text, serve_port=1234, mounts=mounts, pod_folder=Path("/pod"), failure=failure)


def test_body_keeps_what_it_does_not_change() -> None:
    body = _body(
        "proxy_location: HeadOnly\nhttp_options: {request_timeout_s: 5, port: 8000, host: 0.0.0.0}\n"
        "applications: [{name: a, import_path: m:e, runtime_env: {env_vars: {P: /opt/app}},"
        " args: {n: 1}, deployments: [{name: D, user_config: {dir: /opt/app/x}}]}]"
    )
    assert body == {
        "proxy_location": "HeadOnly",
        "http_options": {"request_timeout_s": 5, "port": 1234, "host": "127.0.0.1"},
        "applications": [
            {
                "name": "a",
                "import_path": "m:e",
                "runtime_env": {"env_vars": {"P": "/real/app"}},
                "args": {"n": 1},
                "deployments": [{"name": "D", "user_config": {"dir": "/real/app/x"}}],
            }
        ],
    }


def test_installed_packages_are_not_installed_again() -> None:
    packages = '["aiohttp==0.0.1", "PyYAML>=5"]'
    body = _body(f"applications: [{{name: a, import_path: m:e, runtime_env: {{pip: {packages}}}}}]")
    assert body["applications"][0] == {"name": "a", "import_path": "m:e", "runtime_env": {}}


@pytest.mark.parametrize("pip", ['["no-such-thing==1"]', '{packages: ["no-such-thing==1", aiohttp]}'])
def test_missing_package_fails_the_runtime_env(pip: str) -> None:
    text = f"applications: [{{name: a, route_prefix: /x, import_path: m:e, runtime_env: {{pip: {pip}}}}}]"
    (app,) = _body(text)["applications"]
    assert app["import_path"] == "raynest_sandbox_fault:runtime_env"
    assert "no-such-thing==1" in app["args"]["message"]
    assert app["runtime_env"] == {"env_vars": {"PYTHONPATH": "/pod/fault"}}
    assert app["route_prefix"] == "/x"


def test_failure_replaces_every_application() -> None:
    text = (
        "applications: [{name: a, import_path: m:e, deployments: [{name: D}]}, {name: b, import_path: n:f}]"
    )
    first, second = _body(text, failure="no weights")["applications"]
    assert first["args"] == {"deployment": "D", "message": "no weights"}
    assert second["args"] == {"deployment": "f", "message": "no weights"}


@pytest.mark.parametrize("text", ["a: [", "- just\n- a list\n", "'text'"])
def test_config_that_is_no_mapping(text: str) -> None:
    with pytest.raises(serve_config.ServeConfigError, match="serveConfigV2"):
        serve_config.parse(text)


def test_fault_module_is_python(tmp_path: Path) -> None:
    serve_config.write_fault_module(tmp_path)
    source = (serve_config.fault_folder(tmp_path) / "raynest_sandbox_fault.py").read_text()
    compile(source, "raynest_sandbox_fault.py", "exec")


def test_details_are_read_as_kuberay_does() -> None:
    deployment = {"status": "UPDATING", "message": "", "replicas": [{"pid": 7}, {"pid": None}]}
    details = {
        "proxies": {"n": {"node_instance_id": "pod-1", "status": "HEALTHY"}},
        "applications": {
            "a": {"status": "DEPLOYING", "message": "", "deployments": {"D": deployment}},
            "b": {"status": "DEPLOY_FAILED", "message": "why", "deployments": {}},
        },
    }
    serve = dashboard.read(details)
    assert serve.applications == {
        "a": {"status": "DEPLOYING", "serveDeploymentStatuses": {"D": {"status": "UPDATING"}}},
        "b": {"status": "DEPLOY_FAILED", "message": "why"},
    }
    assert serve.proxies == {"pod-1": "HEALTHY"}
    assert serve.replica_pids == [7]


def test_flags_are_read_back_from_the_command() -> None:
    group = {"rayStartParams": {"num-gpus": "2", "block": "true", "dashboard-port": "1"}}
    spec = {"resources": {"limits": {"cpu": "1500m", "memory": "1Gi"}}}
    command = pods.start_params(group, spec, "head")
    assert "--dashboard-port=1" in command
    flags = pods.flags({"args": [f"ulimit -n 65536; ray start --head {command}"]})
    assert flags == {"num-cpus": "2", "memory": str(GI), "num-gpus": "2"}
