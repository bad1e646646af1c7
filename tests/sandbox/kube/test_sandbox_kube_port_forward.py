"""Port-forward: our client, and the official Python one, through the sandbox's API server to a real port."""

from __future__ import annotations

import contextlib
import hashlib
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from raynest_pipeline.kube.client import KubeClient
from raynest_pipeline.kube.http import HttpTarget
from raynest_pipeline.kube.port_forward import forwarded

kubernetes = pytest.importorskip("kubernetes")

POD = {
    "metadata": {"name": "head", "namespace": "demo"},
    "spec": {"containers": [{"name": "ray", "image": "x"}]},
}
SIZE = 3_000_000


class Echo:
    """A TCP server that gives back what it gets, until its client stops sending."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.connections = 0
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def address(self) -> tuple[str, int]:
        host, port = self.listener.getsockname()
        return str(host), int(port)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self._echo, args=(connection,), daemon=True).start()

    def _echo(self, connection: socket.socket) -> None:
        with connection:
            while data := connection.recv(65536):
                connection.sendall(data)


@dataclass
class Forwarding:
    """A cluster with a pod, an echo behind its port 10001, and the road to the API server."""

    live: Any
    echo: Echo
    api: HttpTarget
    kubeconfig: str


@pytest.fixture
def cluster(live: Any, kubeconfig: Callable[[Any], str], tmp_path: Path) -> Iterator[Forwarding]:
    echo = Echo()
    text = kubeconfig(live)
    path = tmp_path / "kubeconfig"
    path.write_text(text)

    def fill() -> None:
        live.bench.store.create("namespaces", {"metadata": {"name": "demo"}}, manager="t")
        live.bench.store.create("pods", POD, manager="t")
        live.bench.nodes.pods["demo", "head", "10001"] = echo.address

    live.call(fill)
    with KubeClient.from_file(path) as client:
        road = client.service_proxy("demo", "any", 1)
        api = HttpTarget(client.server, road.headers, road.ssl, road.server_hostname)
        yield Forwarding(live, echo, api, text)
    echo.listener.close()


def exchange(port: int, data: bytes) -> bytes:
    """Send everything while receiving it."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        sender = threading.Thread(target=connection.sendall, args=(data,))
        sender.start()
        found = bytearray()
        while len(found) < len(data) and (piece := connection.recv(65536)):
            found += piece
        sender.join(60)
        return bytes(found)


def test_bytes_arrive_as_they_were_sent_both_ways(cluster: Forwarding) -> None:
    data = hashlib.shake_256(b"seed").digest(SIZE)
    with forwarded(cluster.api, "demo", "head", 10001) as port:
        assert exchange(port, data) == data


def test_many_connections_at_once_do_not_mix(cluster: Forwarding) -> None:
    with forwarded(cluster.api, "demo", "head", 10001) as port:
        found: dict[int, bytes] = {}

        def ask(number: int) -> None:
            found[number] = exchange(port, bytes([number]) * 50_000)

        threads = [threading.Thread(target=ask, args=(n,)) for n in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert found == {n: bytes([n]) * 50_000 for n in range(6)}
    assert cluster.echo.connections == 6


@pytest.mark.parametrize(("pod", "port"), [("head", 9), ("nobody", 10001)])
def test_a_road_that_is_not_there_ends_the_connection(cluster: Forwarding, pod: str, port: int) -> None:
    with (
        forwarded(cluster.api, "demo", pod, port) as local,
        socket.create_connection(("127.0.0.1", local), timeout=60) as connection,
        contextlib.suppress(ConnectionError),
    ):
        connection.sendall(b"hello")
        assert connection.recv(100) == b""


def test_credentials_are_asked_for(cluster: Forwarding) -> None:
    import ssl

    bare = ssl.create_default_context(cadata=cluster.live.bench.authority.ca_pem.decode())
    anonymous = HttpTarget(cluster.api.base_url, {}, bare)
    with (
        forwarded(anonymous, "demo", "head", 10001) as local,
        socket.create_connection(("127.0.0.1", local), timeout=60) as connection,
        contextlib.suppress(ConnectionError),
    ):
        assert connection.recv(100) == b""
    assert cluster.echo.connections == 0


def test_after_it_nobody_listens(cluster: Forwarding) -> None:
    with forwarded(cluster.api, "demo", "head", 10001) as port:
        assert exchange(port, b"x") == b"x"
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=5)


def test_the_official_client_gets_through_as_well(
    cluster: Forwarding, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.delenv(name, raising=False)
    config = kubernetes.client.Configuration()
    loader = kubernetes.config.kube_config.KubeConfigLoader(yaml.safe_load(cluster.kubeconfig))
    loader.load_and_set(config)
    from kubernetes.stream import portforward

    with kubernetes.client.ApiClient(config) as api:
        core = kubernetes.client.CoreV1Api(api)
        forward = portforward(core.connect_get_namespaced_pod_portforward, "head", "demo", ports="10001")
        connection = forward.socket(10001)
        connection.setblocking(True)
        connection.sendall(b"hello")
        assert connection.recv(100) == b"hello"
        assert forward.error(10001) is None
        forward.close()


@pytest.mark.parametrize(
    ("query", "status", "words"),
    [
        ("", 400, "unable to parse"),
        ("?ports=x", 400, "unable to parse"),
        ("?ports=70000", 400, "unable to parse"),
        ("?ports=10001", 400, "unable to upgrade"),
    ],
)
def test_anything_but_a_websocket_to_one_port_is_refused(
    cluster: Forwarding, query: str, status: int, words: str
) -> None:
    path = f"/api/v1/namespaces/demo/pods/head/portforward{query}"
    found, body = cluster.live.run(cluster.live.bench.call("GET", path))
    assert (found, words in body["message"]) == (status, True)
