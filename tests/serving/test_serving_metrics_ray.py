"""The metrics of an autoscaled application, scraped from a real Ray's metrics endpoint as Prometheus does."""

import os
import re
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest
import ray
from ray import serve

from raynest_pipeline.serving.app import build

pytestmark = pytest.mark.ray
ROOT = Path(__file__).parents[2]
PATIENCE_S = 60
NAMES = {
    "ray_raynest_images_total": ("counter", {"outcome"}),
    "ray_raynest_request_seconds": ("histogram", {"path", "status"}),
    "ray_raynest_pipeline_seconds": ("histogram", set()),
    "ray_raynest_batch_size": ("histogram", set()),
    "ray_raynest_queue_depth": ("gauge", set()),
    "ray_raynest_queue_wait_seconds": ("histogram", set()),
}


class Served(NamedTuple):
    client: httpx.Client
    scrape: Callable[[], str]


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    """A Ray of our own, whose metrics port is known, and the application with room to scale in it."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    http_port, metrics_port = free_ports(2)
    ray.init(
        address="local",
        num_cpus=4,
        include_dashboard=False,
        log_to_driver=False,
        _metrics_export_port=metrics_port,
        runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}},
    )
    serve.start(http_options={"host": "127.0.0.1", "port": http_port})
    arguments = {"cpu_threads": 1, "max_batch_size": 4, "queue_size": 8, "min_replicas": 1, "max_replicas": 2}
    serve.run(build(arguments), route_prefix="/")
    node_ip = ray.nodes()[0]["NodeManagerAddress"]
    with httpx.Client(base_url=f"http://127.0.0.1:{http_port}", timeout=120, trust_env=False) as client:
        yield Served(
            client, lambda: httpx.get(f"http://{node_ip}:{metrics_port}/metrics", trust_env=False).text
        )
    serve.shutdown()
    ray.shutdown()


def value(text: str, name: str, **labels: str) -> float:
    """Sum over the series of `name` that carry these labels; 0 when there is none."""
    total = 0.0
    for line in text.splitlines():
        match = re.fullmatch(rf"{name}\{{(.*)\}} (\S+)", line)
        if match and all(f'{key}="{wanted}"' in match[1].split(",") for key, wanted in labels.items()):
            total += float(match[2])
    return total


def labels_of(text: str, name: str) -> set[str]:
    series = re.findall(rf"^{name}(?:_count)?\{{(.*)\}} ", text, re.MULTILINE)
    return {key for labels in series for key in re.findall(r'(\w+)="', labels)}


def test_a_scrape_tells_what_was_asked_and_what_became_of_it(served: Served) -> None:
    client = served.client
    assert client.get("/imagine", params={"prompt": "x", "steps": 2}).status_code == 200
    assert client.get("/imagine", params={"prompt": "x", "steps": 0}).status_code == 422
    assert client.get("/no/such/path").status_code == 404
    images = [{"prompt": "x", "steps": 2} for _ in range(8)] + [{"prompt": ""}]
    assert client.post("/v1/images", json={"images": images}).status_code == 200
    crowd = [{"prompt": "x", "steps": 40} for _ in range(12)]
    with pytest.raises(httpx.ReadTimeout):
        client.post("/v1/images", json={"images": crowd}, timeout=0.3)

    expected = {
        ("ray_raynest_images_total", "outcome", "painted"): 9,
        ("ray_raynest_images_total", "outcome", "invalid"): 2,
        ("ray_raynest_images_total", "outcome", "cancelled"): 12,
        ("ray_raynest_request_seconds_count", "path", "/imagine"): 2,
        ("ray_raynest_request_seconds_count", "path", "/v1/images"): 2,
        ("ray_raynest_request_seconds_count", "path", "other"): 1,
        ("ray_raynest_request_seconds_count", "status", "200"): 2,
        ("ray_raynest_request_seconds_count", "status", "422"): 1,
        ("ray_raynest_request_seconds_count", "status", "404"): 1,
        ("ray_raynest_request_seconds_count", "status", "499"): 1,
    }
    found: dict[tuple[str, str, str], float] = {}
    text = ""
    give_up = time.monotonic() + PATIENCE_S
    # Processes hand their figures to the node's endpoint every few seconds.
    while found != expected and time.monotonic() < give_up:
        time.sleep(0.5)
        text = served.scrape()
        found = {key: value(text, key[0], **{key[1]: key[2]}) for key in expected}
    assert found == expected
    calls = value(text, "ray_raynest_pipeline_seconds_count", deployment="Painter")
    taken = value(text, "ray_raynest_queue_wait_seconds_count", deployment="Painter")
    assert calls == value(text, "ray_raynest_batch_size_count")
    assert calls >= 3
    # What cost device time: what was painted, and at most one batch of what was cancelled.
    assert 9 <= taken <= 9 + 4
    assert value(text, "ray_raynest_batch_size_bucket", le="+Inf") == calls
    assert value(text, "ray_raynest_queue_depth") == 0


@pytest.mark.parametrize("name", NAMES)
def test_names_kinds_and_labels_are_as_documented(served: Served, name: str) -> None:
    """After the test above, which made every one of them."""
    text = served.scrape()
    kind, own = NAMES[name]
    assert f"# TYPE {name} {kind}" in text
    assert labels_of(text, name) >= {"deployment", "replica", "application"} | own
    assert f"`{name}`" in (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
