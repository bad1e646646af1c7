"""From spec.serveConfigV2 to the body that is really PUT: what the sandbox changes on the way.

1. http_options: 127.0.0.1 and a free port, since many clusters share this machine; the Service leads to it.
2. Container paths in runtime_env, args and user_config become the head pod's folders (see `container`).
3. runtime_env.pip is never installed (there may be no network): the packages must be in this environment, any
   version; else the application fails as with a runtime environment that can't be built.
4. An application that is to fail (fault deploy_failed) is replaced by one whose constructor raises.
"""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from raynest_pipeline.sandbox.kuberay.container import Mounts

#: The module, written into each head pod's folder, with the applications that fail.
FAULT_MODULE = "raynest_sandbox_fault"
FAULT_SOURCE = '''"""Applications that fail for real, in place of one that is to fail."""

from ray import serve


@serve.deployment
class Broken:
    def __init__(self, message: str) -> None:
        raise RuntimeError(message)


def constructor(args: dict) -> serve.Application:
    return Broken.options(name=args["deployment"]).bind(args["message"])


def runtime_env(args: dict) -> serve.Application:
    raise RuntimeError(args["message"])
'''


def write_fault_module(folder: Path) -> None:
    """Put the module with the failing applications into a head pod's folder."""
    target = fault_folder(folder)
    target.mkdir(parents=True, exist_ok=True)
    (target / f"{FAULT_MODULE}.py").write_text(FAULT_SOURCE, encoding="utf-8")


def fault_folder(folder: Path) -> Path:
    """Where in a pod's folder that module is."""
    return folder / "fault"


class ServeConfigError(ValueError):
    """serveConfigV2 is no YAML mapping."""


def parse(text: str) -> dict[str, Any]:
    """serveConfigV2 as a mapping. Raises ServeConfigError."""
    try:
        config = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise ServeConfigError(f"failed to unmarshal serveConfigV2: {error}") from error
    if not isinstance(config, dict):
        raise ServeConfigError("failed to unmarshal serveConfigV2: it is not a mapping")
    return config


def body(
    text: str, *, serve_port: int, mounts: Mounts, pod_folder: Path, failure: str | None
) -> dict[str, Any]:
    """The PUT body. `failure`: what every application's constructor is to raise, or None.

    Raises ServeConfigError.
    """
    config = parse(text)
    options = config.get("http_options")
    config["http_options"] = {
        **(options if isinstance(options, dict) else {}),
        "host": "127.0.0.1",
        "port": serve_port,
    }
    applications = config.get("applications")
    if isinstance(applications, list):
        config["applications"] = [
            _application(app, mounts, fault_folder(pod_folder), failure) if isinstance(app, dict) else app
            for app in applications
        ]
    return config


def _application(app: dict[str, Any], mounts: Mounts, faults: Path, failure: str | None) -> dict[str, Any]:
    app = dict(app)
    for key in ("runtime_env", "args", "deployments"):
        if key in app:
            app[key] = mounts.rewrite(app[key])
    missing = _without_pip(app)
    if missing:
        packages = ", ".join(missing)
        message = f"Failed to install pip packages of the runtime environment: {packages} (not in the image)"
        return _broken(app, "runtime_env", message, faults)
    if failure is not None:
        return _broken(app, "constructor", failure, faults)
    return app


def _without_pip(app: dict[str, Any]) -> list[str]:
    """Take pip out of an application's runtime_env; the packages that this environment lacks."""
    runtime_env = app.get("runtime_env")
    if not isinstance(runtime_env, dict) or "pip" not in runtime_env:
        return []
    app["runtime_env"] = {key: value for key, value in runtime_env.items() if key != "pip"}
    wanted = runtime_env["pip"]
    packages = wanted.get("packages", []) if isinstance(wanted, dict) else wanted
    return [str(each) for each in packages or () if not installed(str(each))]


def installed(requirement: str) -> bool:
    """Whether the distribution that a requirement names is here, in whatever version."""
    found = re.match(r"\s*([A-Za-z0-9][A-Za-z0-9._-]*)", requirement)
    if found is None:
        return False
    try:
        metadata.distribution(found[1])
    except metadata.PackageNotFoundError:
        return False
    return True


def _broken(app: dict[str, Any], builder: str, message: str, faults: Path) -> dict[str, Any]:
    kept: dict[str, Any] = {key: value for key, value in app.items() if key in ("name", "route_prefix")}
    deployments = app.get("deployments") or [{}]
    name = deployments[0].get("name") or str(app.get("import_path", "Application")).rpartition(":")[2]
    return {
        **kept,
        "import_path": f"{FAULT_MODULE}:{builder}",
        "args": {"deployment": name, "message": message},
        "runtime_env": {"env_vars": {"PYTHONPATH": str(faults)}},
    }
