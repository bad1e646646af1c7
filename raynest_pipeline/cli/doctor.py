"""`raynest doctor`: what about this machine and these settings would stand in the way."""

import importlib.metadata
import importlib.util
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass

from raynest_pipeline.errors import RaynestError, SettingsError
from raynest_pipeline.files import private_dir
from raynest_pipeline.settings import Profile, Settings, load_settings, settings_file

NEEDED_FREE_GIB = 2.0
"""Ray keeps its sessions and object store on disk; beyond that a batch needs about 0.5 MB an image."""


@dataclass(frozen=True)
class Finding:
    """One thing looked at."""

    what: str
    ok: bool | None
    """None: not needed here, or not known."""
    found: str
    fix: str = ""


def examine() -> list[Finding]:
    """Everything that can be looked at from here. Reads only, and at most: who am I in the cloud, is there
    KubeRay on the given cluster, does the sandbox run."""
    findings = [_python(), _dagster_family()]
    try:
        settings = load_settings()
    except SettingsError as error:
        return [*findings, Finding("settings", False, error.what, error.fix)]
    source = settings_file()
    where = str(source) if source.is_file() else "defaults and RAYNEST_* variables"
    findings.append(Finding("settings", True, f"profile {settings.profile}, from {where}"))
    home = _home(settings)
    findings += [home, _proxy(settings), _kubectl()]
    if not settings.home_dir.is_dir():
        # What is in it cannot be looked at.
        return findings
    by_profile: dict[Profile, list[Callable[[Settings], Finding]]] = {
        Profile.SANDBOX: [_local_extra, _sandbox],
        Profile.ALIBABA: [_credentials],
        Profile.KUBECONFIG: [_given_kubeconfig],
    }
    return findings + [look(settings) for look in by_profile[settings.profile]]


def examine_cluster() -> list[Finding]:
    """What only the running cluster itself can tell: whether CUDA works on its GPU workers (some 30 s)."""
    from raynest_pipeline.chain.gpu_check import check_gpu
    from raynest_pipeline.chain.profile import open_chain

    try:
        settings = load_settings()
        check = check_gpu(open_chain(settings, start_sandbox=False))
    except RaynestError as error:
        return [Finding("cluster's GPU", False, f"{error.what} {error.why}".strip(), error.fix)]
    # The sandbox's GPU is a number that Ray counts with.
    played = settings.profile is Profile.SANDBOX and check.facts.get("cuda") is False
    ok, fix = (None, "") if played else (check.ok, check.fix)
    return [Finding("cluster's GPU", ok, check.found, fix)]


def _python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    ok = (3, 11) <= sys.version_info[:2] <= (3, 13)
    return Finding("python", ok, version, "raynest runs on Python 3.11 to 3.13.")


def _dagster_family() -> Finding:
    dagster, k8s = (importlib.metadata.version(name) for name in ("dagster", "dagster-k8s"))
    ok = dagster.split(".")[:2] == ["1", "13"] and k8s == f"0.29.{dagster.split('.')[2]}"
    return Finding(
        "dagster", ok, f"dagster {dagster}, dagster-k8s {k8s}", "Install raynest again: its pins agree."
    )


def _home(settings: Settings) -> Finding:
    home = settings.home_dir
    try:
        private_dir(home)
    except RaynestError as error:
        return Finding("home", False, error.what, error.fix)
    free = shutil.disk_usage(home).free / 2**30
    ok = free >= NEEDED_FREE_GIB
    return Finding(
        "home", ok, f"{home}, {free:.1f} GiB free", f"Free {NEEDED_FREE_GIB:g} GiB, or move `home`."
    )


def _proxy(settings: Settings) -> Finding:
    set_ones = [
        name for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy") if name in os.environ
    ]
    if not set_ones:
        return Finding("proxy", True, "none")
    ok = None if settings.profile is not Profile.SANDBOX else False
    return Finding(
        "proxy", ok, ", ".join(set_ones), "The cloud SDK ignores NO_PROXY: unset these for the sandbox."
    )


def _kubectl() -> Finding:
    path = shutil.which("kubectl")
    return Finding("kubectl", True if path else None, path or "not found", "Not needed by raynest itself.")


def _local_extra(_: Settings) -> Finding:
    missing = [
        m for m in ("ray", "torch", "diffusers", "transformers", "psutil") if not importlib.util.find_spec(m)
    ]
    return Finding(
        "sandbox packages",
        not missing,
        ", ".join(missing) + " missing" if missing else "installed",
        "In the checkout: make install   (or: pip install -e '.[local]')",
    )


def _sandbox(settings: Settings) -> Finding:
    from raynest_pipeline.sandbox import control

    info = control.status(settings.sandbox_dir)
    return Finding(
        "sandbox",
        None if info is None else True,
        f"running, pid {info.pid}" if info else "not running",
        "It starts on demand (`raynest up`).",
    )


def _credentials(settings: Settings) -> Finding:
    from raynest_pipeline.chain.chain import build_chain

    try:
        chain = build_chain(settings)
        assert chain.cloud is not None
        caller = chain.cloud.identity.caller()
    except RaynestError as error:
        return Finding("credentials", False, f"{error.what} {error.why}".strip(), error.fix)
    return Finding(
        "credentials", True, f"{caller.identity_type} {caller.name} of account {caller.account_id}"
    )


def _given_kubeconfig(settings: Settings) -> Finding:
    from raynest_pipeline.chain.kubeconfig import given_kubeconfig
    from raynest_pipeline.kube.client import RAY_SERVICE

    try:
        path, kube, namespace = given_kubeconfig(settings)
        with kube() as client:
            version = client.server_version()
            client.list(RAY_SERVICE, namespace)
    except RaynestError as error:
        return Finding("cluster", False, f"{error.what} {error.why}".strip(), error.fix)
    return Finding("cluster", True, f"{path}: Kubernetes {version} with KubeRay, namespace {namespace}")
