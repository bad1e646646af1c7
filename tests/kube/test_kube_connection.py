"""Credentials of every sort lead to the same client and the same HttpTarget, and leave no files behind."""

import json
import ssl
import stat
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from raynest_pipeline.errors import AccessError, InputError, Verdict
from raynest_pipeline.kube import connection
from raynest_pipeline.kube.client import POD, KubeClient
from raynest_pipeline.kube.errors import KubeError


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_a_client_certificate_is_shown_by_client_and_target(pki: Any, tools: Any, tmp_path: Path) -> None:
    with tools.serving(pki, tmp_path, client_certificates=True) as server:
        server.require_token = False
        server.on("GET /version", {"gitVersion": "v1"})
        server.on("GET /apis", {"kind": "APIGroupList", "groups": []})
        server.on(
            "GET /api/v1/namespaces/demo/services/svc:serve/proxy/-/healthz", tools.Answer(body="success")
        )
        text = tools.kubeconfig_text(server.url, pki, tools.client_user(pki))
        with KubeClient.from_file(write(tmp_path / "config", text)) as client:
            assert client.server_version() == "v1"
            target = client.service_proxy("demo", "svc", "serve")
            assert dict(target.headers) == {}
            with target.client() as http:
                assert http.get(target.url("/-/healthz")).text == "success"


def test_no_private_key_stays_on_disk(
    pki: Any, tools: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    path = write(
        tmp_path / "config", tools.kubeconfig_text("https://127.0.0.1:1", pki, tools.client_user(pki))
    )
    link = connection.from_kubeconfig(path, None)
    assert list(scratch.rglob("*")) == []
    assert link.ssl is not None
    link.api.close()


def test_the_same_credentials_load_again_after_their_files_are_gone(
    pki: Any, tools: Any, tmp_path: Path
) -> None:
    path = write(
        tmp_path / "config", tools.kubeconfig_text("https://127.0.0.1:1", pki, tools.client_user(pki))
    )
    for _ in range(3):
        connection.from_kubeconfig(path, None).api.close()


def test_an_exec_plugin_supplies_the_token(pki: Any, tools: Any, tmp_path: Path, api: Any) -> None:
    credential = {
        "apiVersion": "client.authentication.k8s.io/v1",
        "kind": "ExecCredential",
        "status": {"token": tools.token},
    }
    user = {
        "exec": {
            "apiVersion": "client.authentication.k8s.io/v1",
            "command": sys.executable,
            "args": ["-c", f"print({json.dumps(json.dumps(credential))})"],
            "interactiveMode": "Never",
        }
    }
    path = write(tmp_path / "config", tools.kubeconfig_text(api.url, pki, user))
    api.on("GET /api/v1/namespaces/demo/pods", {"items": []})
    with KubeClient.from_file(path) as client:
        assert client.list(POD, "demo") == []
        assert client.service_proxy("demo", "s", 1).headers["Authorization"] == f"Bearer {tools.token}"


def test_a_token_file_is_read(pki: Any, tools: Any, tmp_path: Path, api: Any) -> None:
    write(tmp_path / "token", tools.token)
    path = write(tmp_path / "config", tools.kubeconfig_text(api.url, pki, {"tokenFile": "token"}))
    with KubeClient.from_file(path) as client:
        assert client.server_version() == "v1.36.2"


def test_an_untrusted_certificate_is_a_tls_problem(pki: Any, tools: Any, tmp_path: Path, api: Any) -> None:
    path = write(tmp_path / "config", tools.kubeconfig_text(api.url, None))
    with KubeClient.from_file(path) as client, pytest.raises(KubeError) as caught:
        client.server_version()
    assert caught.value.verdict is Verdict.RETRYABLE
    assert "TLS" in caught.value.why
    assert caught.value.exit_code_for_verdict == 7


@pytest.mark.filterwarnings("ignore:Unverified HTTPS request")
def test_verification_can_be_switched_off_by_the_kubeconfig(tools: Any, tmp_path: Path, api: Any) -> None:
    text = tools.kubeconfig_text(api.url, None, **{"insecure-skip-tls-verify": True})
    with KubeClient.from_file(write(tmp_path / "config", text)) as client:
        assert client.server_version() == "v1.36.2"
        context = client.service_proxy("demo", "s", 1).ssl
    assert context is not None and context.verify_mode is ssl.CERT_NONE


@pytest.mark.parametrize(("name", "works"), [("kubernetes.default", True), ("elsewhere.example", False)])
def test_the_tls_server_name_is_what_is_verified(
    pki: Any, tools: Any, tmp_path: Path, api: Any, name: str, works: bool
) -> None:
    text = tools.kubeconfig_text(api.url, pki, **{"tls-server-name": name})
    api.on("GET /api/v1/namespaces/demo/services/s:1/proxy/x", {})
    with KubeClient.from_file(write(tmp_path / "config", text)) as client:
        target = client.service_proxy("demo", "s", 1)
        assert target.server_hostname == name
        if works:
            assert client.server_version() == "v1.36.2"
            with target.client() as http:
                assert http.get(target.url("/x")).status_code == 200
        else:
            with pytest.raises(KubeError, match="Could not"):
                client.server_version()


def test_a_configured_http_proxy_is_left_out_for_loopback(
    config_file: Path, monkeypatch: pytest.MonkeyPatch, api: Any
) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    with KubeClient.from_file(config_file) as client:
        assert client.server_version() == "v1.36.2"


def test_the_default_configuration_of_the_process_is_neither_used_nor_changed(
    config_file: Path, api: Any
) -> None:
    from kubernetes.client import Configuration

    before = Configuration.get_default_copy()
    with KubeClient.from_file(config_file) as client:
        assert client.server == api.url
    after = Configuration.get_default_copy()
    assert (before.host, before.api_key) == (after.host, after.api_key)


@pytest.mark.parametrize(
    ("user", "word"),
    [
        ({"client-certificate-data": "@@@", "client-key-data": "@@@"}, "not usable"),
        ({"client-certificate": "/nowhere/tls.crt", "client-key": "/nowhere/tls.key"}, "not usable"),
        ({"client-certificate-data": "YWJj", "client-key-data": "YWJj"}, "certificate"),
    ],
)
def test_broken_credentials_are_an_input_error_that_quotes_none(
    tools: Any, tmp_path: Path, user: dict[str, str], word: str
) -> None:
    path = write(tmp_path / "config", tools.kubeconfig_text("https://127.0.0.1:1", None, user))
    with pytest.raises(InputError) as caught:
        KubeClient.from_file(path)
    assert word in str(caught.value)
    assert "YWJj" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_a_context_that_is_not_there_names_those_that_are(config_file: Path) -> None:
    with pytest.raises(InputError) as caught:
        KubeClient.from_file(config_file, context="nope")
    assert "there" in caught.value.why and "nope" in caught.value.why


def test_outside_a_cluster_there_is_no_service_account(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(AccessError, match="no Kubernetes service account"):
        KubeClient.in_cluster()


def test_a_pods_service_account(
    pki: Any, tools: Any, tmp_path: Path, api: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kubernetes.config import incluster_config

    host, _, port = api.url.removeprefix("https://").partition(":")
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", host)
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", port)
    token, ca = write(tmp_path / "token", tools.token), write(tmp_path / "sa-ca.crt", pki.ca.decode())
    monkeypatch.setattr(incluster_config, "SERVICE_TOKEN_FILENAME", str(token))
    monkeypatch.setattr(incluster_config, "SERVICE_CERT_FILENAME", str(ca))
    api.require_token = False
    with KubeClient.in_cluster() as client:
        assert client.server_version() == "v1.36.2"
        assert client.server == api.url
    assert api.asked[-1].headers["authorization"].lower() == f"bearer {tools.token}".lower()


def test_a_server_that_is_no_api_server_is_named(pki: Any, tools: Any, tmp_path: Path) -> None:
    with tools.serving(pki, tmp_path) as server:
        page = tools.Answer(200, "<html>login</html>", {"Content-Type": "text/html"})
        server.on("GET /version", page)
        server.on("GET /apis", page)
        path = write(tmp_path / "config", tools.kubeconfig_text(server.url, pki))
        with KubeClient.from_file(path) as client, pytest.raises(KubeError) as caught:
            client.get(POD, "p", "demo")
    assert "not a Kubernetes API server" in caught.value.why
    assert caught.value.verdict is Verdict.PERMANENT


def test_the_discovery_cache_is_private_and_goes_with_the_client(
    config_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, api: Any
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    api.on("GET /api/v1/namespaces/demo/pods", {"items": []})
    client = KubeClient.from_file(config_file)
    client.list(POD, "demo")
    folders = list(scratch.iterdir())
    assert len(folders) == 1
    assert stat.S_IMODE(folders[0].stat().st_mode) == 0o700
    client.close()
    assert list(scratch.iterdir()) == []


@pytest.mark.parametrize(
    ("query", "seconds"),
    [
        (None, 60.0),
        ([], 60.0),
        ([("watch", True), ("timeoutSeconds", 300)], 315.0),
        ({"timeoutSeconds": 5}, 20.0),
    ],
)
def test_a_watch_may_be_silent_for_as_long_as_it_lasts(query: Any, seconds: float) -> None:
    assert connection._read_seconds(query) == seconds
