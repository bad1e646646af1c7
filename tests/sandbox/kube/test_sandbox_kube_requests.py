"""The very requests that kubectl 1.32 makes, as recorded in front of a real API server, each by itself."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest

Object = dict[str, Any]

TABLE = (
    "application/json;as=Table;v=v1;g=meta.k8s.io,"
    "application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json"
)
AGGREGATED = (
    "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,"
    "application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList,application/json"
)
PROTOBUF = "application/vnd.kubernetes.protobuf,application/json"
OPENAPI = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf"
RAY = "/apis/ray.io/v1/namespaces/demo/rayservices"
ONE = "fieldSelector=metadata.name%3Dstable-diffusion"

# verb, path, Accept, what the answer is
READS = [
    ("/openapi/v3?timeout=32s", "application/json, */*", "paths"),
    ("/openapi/v3/apis/ray.io/v1?hash=48CCCD&timeout=32s", "application/json", "components"),
    ("/api?timeout=32s", AGGREGATED, "APIVersions"),
    ("/apis?timeout=32s", AGGREGATED, "APIGroupList"),
    (f"{RAY}/stable-diffusion", "application/json", "RayService"),
    (f"{RAY}?limit=500", TABLE, "Table"),
    (f"{RAY}?{ONE}&limit=500&resourceVersion=0", "application/json", "RayServiceList"),
    ("/api/v1/namespaces/demo/events?limit=500", PROTOBUF, "EventList"),
    (
        "/api/v1/namespaces/demo/events?fieldSelector=involvedObject.name%3Dstable-diffusion"
        "%2CinvolvedObject.namespace%3Ddemo%2CinvolvedObject.kind%3DRayService%2CinvolvedObject.uid%3D{uid}&limit=500",
        PROTOBUF,
        "EventList",
    ),
    (
        "/api/v1/namespaces/demo/pods?labelSelector=ray.io%2Fnode-type%3Dhead",
        "application/json, */*",
        "PodList",
    ),
]


def prepared(bench: Any, manifest: Callable[..., Object]) -> Object:
    """A cluster with one service, its head pod and an event."""
    store = bench.store
    store.create("namespaces", {"metadata": {"name": "demo"}}, manager="t")
    service: Object = store.create("rayservices", manifest("stable-diffusion"), manager="t")
    metadata = {"name": "head", "namespace": "demo", "labels": {"ray.io/node-type": "head"}}
    spec = {"containers": [{"name": "ray-head", "image": "i"}]}
    store.create("pods", {"metadata": metadata, "spec": spec}, manager="t")
    store.emit_event(service, "CreatedRayCluster", "made", component="rayservice-controller")
    return service


@pytest.mark.parametrize(("path", "accept", "wanted"), READS)
def test_a_read(
    serving: Callable[..., Any], manifest: Callable[..., Object], path: str, accept: str, wanted: str
) -> None:
    async def run() -> tuple[str, Any]:
        async with serving() as bench:
            service = prepared(bench, manifest)
            asked = path.replace("{uid}", service["metadata"]["uid"])
            answer, body = await bench.full("GET", asked, Accept=accept)
            assert answer.status == 200
            return answer.content_type, body

    kind, body = asyncio.run(run())
    assert kind == "application/json"
    assert wanted in body or body["kind"] == wanted
    for one in ("items", "rows"):
        assert len(body.get(one, [None])) == 1


def test_the_older_openapi_is_given_in_both_forms(serving: Callable[..., Any]) -> None:
    async def run() -> None:
        async with serving() as bench:
            async with bench.session.get("/openapi/v2?timeout=32s", headers={"Accept": OPENAPI}) as answer:
                assert (await answer.read()).startswith(b"\x0a\x032.0")
                assert "protobuf" in answer.headers["Content-Type"]
            status, body = await bench.call("GET", "/openapi/v2")
            assert (status, body["swagger"]) == (200, "2.0")

    asyncio.run(run())


def test_apply_server_side(serving: Callable[..., Any], manifest: Callable[..., Object]) -> None:
    path = f"{RAY}/fresh?fieldManager=dagster&fieldValidation=Strict&force=false"

    async def run() -> list[int]:
        async with serving() as bench:
            prepared(bench, manifest)
            body = json.dumps(manifest("fresh"))
            kind = "application/apply-patch+yaml"
            return [(await bench.call("PATCH", path, body, kind=kind))[0] for _ in range(2)]

    assert asyncio.run(run()) == [201, 200]


def test_apply_client_side(serving: Callable[..., Any], manifest: Callable[..., Object]) -> None:
    path = f"{RAY}/stable-diffusion?fieldManager=kubectl-client-side-apply&fieldValidation=Strict"
    patch = {"metadata": {"annotations": {"note": "x"}}, "spec": {"serveConfigV2": "applications: [] # new"}}

    async def run() -> Any:
        async with serving() as bench:
            prepared(bench, manifest)
            return (await bench.call("PATCH", path, patch, kind="application/merge-patch+json"))[1]

    body = asyncio.run(run())
    assert body["metadata"]["generation"] == 2
    managers = {entry["manager"] for entry in body["metadata"]["managedFields"]}
    assert managers == {"t", "kubectl-client-side-apply"}


def test_logs_of_the_head(serving: Callable[..., Any], manifest: Callable[..., Object]) -> None:
    async def run() -> Any:
        async with serving() as bench:
            prepared(bench, manifest)
            bench.nodes.output = [f"{number}\n".encode() for number in range(20)]
            path = "/api/v1/namespaces/demo/pods/head/log?container=ray-head&tailLines=10"
            return (await bench.call("GET", path))[1]

    assert asyncio.run(run()) == "".join(f"{number}\n" for number in range(10, 20))


def test_delete_and_wait_for_the_end(serving: Callable[..., Any], manifest: Callable[..., Object]) -> None:
    async def run() -> list[str]:
        async with serving() as bench:
            service = prepared(bench, manifest)
            service["metadata"]["finalizers"] = ["ray.io/rayservice-finalizer"]
            service = bench.store.update("rayservices", service, manager="op")
            status, left = await bench.call(
                "DELETE", f"{RAY}/stable-diffusion", {"propagationPolicy": "Background"}
            )
            assert (status, bool(left["metadata"]["deletionTimestamp"])) == (200, True)
            _, listed = await bench.call("GET", f"{RAY}?{ONE}&limit=500&resourceVersion=0")
            version = listed["metadata"]["resourceVersion"]
            since = f"resourceVersion={version}&timeoutSeconds=370&watch=true"
            path = f"{RAY}?allowWatchBookmarks=true&{ONE}&{since}"
            async with bench.session.get(path) as answer:
                left["metadata"]["finalizers"] = []
                bench.store.update("rayservices", left, manager="op")
                line = await asyncio.wait_for(answer.content.readline(), 10)
            return [json.loads(line)["type"], str((await bench.call("GET", f"{RAY}/stable-diffusion"))[0])]

    assert asyncio.run(run()) == ["DELETED", "404"]


def test_many_watchers_hear_the_same(serving: Callable[..., Any], manifest: Callable[..., Object]) -> None:
    """Twenty clients follow while the store is written to; each gets every change once and in order."""
    count = 30

    async def follow(bench: Any, ready: asyncio.Semaphore) -> list[str]:
        heard = []
        async with bench.session.get("/api/v1/namespaces/demo/configmaps?watch=1") as answer:
            ready.release()
            async for line in answer.content:
                heard.append(json.loads(line)["object"]["data"]["n"])
                if heard[-1] == str(count - 1):
                    break
        return heard

    async def run() -> list[list[str]]:
        async with serving() as bench:
            prepared(bench, manifest)
            ready = asyncio.Semaphore(0)
            followers = [asyncio.create_task(follow(bench, ready)) for _ in range(20)]
            for _ in followers:
                await asyncio.wait_for(ready.acquire(), 10)
            for number in range(count):
                body = {"metadata": {"name": "c", "namespace": "demo"}, "data": {"n": str(number)}}
                write = bench.store.update if number else bench.store.create
                write("configmaps", body, manager="t")
            return list(await asyncio.wait_for(asyncio.gather(*followers), 20))

    assert asyncio.run(run()) == [[str(number) for number in range(count)]] * 20
