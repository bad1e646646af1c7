"""The verbs over HTTP: bodies, options, lists, patches, deletions, reviews, logs."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest

Object = dict[str, Any]

MAPS = "/api/v1/namespaces/default/configmaps"
PODS = "/api/v1/namespaces/default/pods"
RAY = "/apis/ray.io/v1/namespaces/default/rayservices"
MERGE = "application/merge-patch+json"
JSON_PATCH = "application/json-patch+json"
STRATEGIC = "application/strategic-merge-patch+json"


def config_map(name: str = "cm", **data: str) -> Object:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}


def pod(*containers: str, initial: tuple[str, ...] = ()) -> Object:
    spec: Object = {"containers": [{"name": name, "image": "i"} for name in containers]}
    if initial:
        spec["initContainers"] = [{"name": name, "image": "i"} for name in initial]
    return {"metadata": {"name": "p", "namespace": "default"}, "spec": spec}


def test_created_replaced_read_and_deleted(serving: Callable[..., Any]) -> None:
    async def run() -> None:
        async with serving() as bench:
            status, made = await bench.call("POST", MAPS, config_map(a="1"))
            assert (status, made["metadata"]["namespace"]) == (201, "default")
            status, put = await bench.call("PUT", f"{MAPS}/cm", made | {"data": {"b": "2"}})
            assert (status, put["data"]) == (200, {"b": "2"})
            assert await bench.call("GET", f"{MAPS}/cm") == (200, put)
            status, gone = await bench.call("DELETE", f"{MAPS}/cm")
            wanted = {"name": "cm", "kind": "configmaps", "uid": made["metadata"]["uid"]}
            assert (status, gone["status"], gone["details"]) == (200, "Success", wanted)
            assert (await bench.call("GET", f"{MAPS}/cm"))[0] == 404

    asyncio.run(run())


def test_the_manager_is_the_parameter_or_the_first_part_of_the_user_agent(
    serving: Callable[..., Any],
) -> None:
    async def run() -> list[str]:
        async with serving() as bench:
            first = await bench.call("POST", MAPS, config_map("a", x="1"))
            second = await bench.call("POST", f"{MAPS}?fieldManager=me", config_map("b", x="1"))
            return [one["metadata"]["managedFields"][0]["manager"] for _, one in (first, second)]

    assert asyncio.run(run()) == ["Python-urllib", "me"]


@pytest.mark.parametrize(
    ("body", "kind", "status", "message"),
    [
        ("{", "application/json", 400, "error decoding the request's body"),
        ("a: [", "application/yaml", 400, "error decoding the request's body"),
        ("[]", "application/json", 400, "the object provided is unrecognized"),
        ("", "application/json", 400, "the object provided is unrecognized"),
        (config_map() | {"apiVersion": "v2"}, "application/json", 400, "the API version in the data (v2)"),
        (config_map() | {"kind": "Secret"}, "application/json", 400, "Secret is not ConfigMap"),
        (
            {"metadata": {"name": "x", "namespace": "other"}},
            "application/json",
            400,
            "does not match the namespace",
        ),
        ("k8s\0", "application/vnd.kubernetes.protobuf", 415, "unknown format"),
        ("x" * 3_200_000, "application/json", 413, "Request entity too large: limit is 3145728"),
    ],
)
def test_a_body_that_will_not_do(
    serving: Callable[..., Any], body: Any, kind: str, status: int, message: str
) -> None:
    async def run() -> tuple[int, Any]:
        async with serving() as bench:
            answer: tuple[int, Any] = await bench.call("POST", MAPS, body, kind=kind)
            return answer

    found, answer = asyncio.run(run())
    assert (found, answer["kind"]) == (status, "Status")
    assert message in answer["message"]


def test_yaml_is_taken_too(serving: Callable[..., Any]) -> None:
    async def run() -> Any:
        async with serving() as bench:
            return await bench.call(
                "POST", MAPS, "metadata: {name: y}\ndata: {a: b}\n", kind="application/yaml"
            )

    status, made = asyncio.run(run())
    assert (status, made["data"]) == (201, {"a": "b"})


def test_a_list_in_pages(serving: Callable[..., Any]) -> None:
    async def run() -> tuple[list[str], list[int | None]]:
        async with serving() as bench:
            for number in range(5):
                await bench.call("POST", MAPS, config_map(f"cm-{number}"))
            seen, left, token = [], [], ""
            while True:
                _, page = await bench.call("GET", f"{MAPS}?limit=2&continue={token}")
                seen += [one["metadata"]["name"] for one in page["items"]]
                left.append(page["metadata"].get("remainingItemCount"))
                token = page["metadata"].get("continue", "")
                if not token:
                    return seen, left

    assert asyncio.run(run()) == ([f"cm-{number}" for number in range(5)], [3, 1, None])


def test_a_bad_continue_token_is_400(serving: Callable[..., Any]) -> None:
    async def run() -> Any:
        async with serving() as bench:
            return await bench.call("GET", f"{MAPS}?limit=2&continue=nonsense")

    status, body = asyncio.run(run())
    assert (status, body["reason"]) == (400, "BadRequest")


def test_all_namespaces_in_one_list(serving: Callable[..., Any]) -> None:
    async def run() -> list[str]:
        async with serving() as bench:
            await bench.call("POST", MAPS, config_map())
            await bench.call("POST", MAPS.replace("default", "kube-system"), config_map())
            _, found = await bench.call("GET", "/api/v1/configmaps?labelSelector=!x")
            return [one["metadata"]["namespace"] for one in found["items"]]

    assert asyncio.run(run()) == ["default", "kube-system"]


@pytest.mark.parametrize(
    ("kind", "patch", "wanted"),
    [
        (MERGE, {"data": {"b": "2"}}, {"a": "1", "b": "2"}),
        (MERGE, {"data": None}, None),
        (JSON_PATCH, [{"op": "replace", "path": "/data/a", "value": "3"}], {"a": "3"}),
        (STRATEGIC, {"data": {"a": None, "c": "4"}}, {"c": "4"}),
    ],
)
def test_patches(serving: Callable[..., Any], kind: str, patch: Any, wanted: Object | None) -> None:
    async def run() -> Any:
        async with serving() as bench:
            await bench.call("POST", MAPS, config_map(a="1"))
            return await bench.call("PATCH", f"{MAPS}/cm", patch, kind=kind)

    status, changed = asyncio.run(run())
    assert (status, changed.get("data")) == (200, wanted)


@pytest.mark.parametrize(
    ("path", "kind", "status"),
    [
        (f"{MAPS}/cm", "text/plain", 415),
        (f"{RAY}/s1", STRATEGIC, 415),
        (f"{MAPS}/cm?force=true", MERGE, 422),
        (f"{MAPS}/missing", MERGE, 404),
    ],
)
def test_patches_that_will_not_do(
    serving: Callable[..., Any], manifest: Callable[..., Object], path: str, kind: str, status: int
) -> None:
    async def run() -> int:
        async with serving() as bench:
            await bench.call("POST", MAPS, config_map())
            await bench.call("POST", RAY, manifest(namespace="default"))
            return int((await bench.call("PATCH", path, {"data": {}}, kind=kind))[0])

    assert asyncio.run(run()) == status


def test_a_patch_that_renames_is_400(serving: Callable[..., Any]) -> None:
    async def run() -> Any:
        async with serving() as bench:
            await bench.call("POST", MAPS, config_map())
            return await bench.call("PATCH", f"{MAPS}/cm", {"metadata": {"name": "other"}}, kind=MERGE)

    status, body = asyncio.run(run())
    assert status == 400
    assert body["message"] == "the name of the object (other) does not match the name on the URL (cm)"


def test_the_status_has_its_own_address(serving: Callable[..., Any], manifest: Callable[..., Object]) -> None:
    async def run() -> None:
        async with serving() as bench:
            _, made = await bench.call("POST", RAY, manifest(namespace="default"))
            patch = {"status": {"serviceStatus": "Running"}, "spec": {"serveConfigV2": "changed"}}
            status, patched = await bench.call("PATCH", f"{RAY}/s1/status", patch, kind=MERGE)
            assert (status, patched["status"]) == (200, {"serviceStatus": "Running"})
            assert patched["spec"] == made["spec"]
            made["status"] = {"serviceStatus": ""}
            status, refused = await bench.call("PUT", f"{RAY}/s1/status", made)
            assert (status, refused["reason"]) == (409, "Conflict")
            assert (await bench.call("GET", f"{RAY}/s1/status"))[1] == patched

    asyncio.run(run())


def test_unknown_fields_by_validation(serving: Callable[..., Any], manifest: Callable[..., Object]) -> None:
    async def run() -> None:
        async with serving() as bench:
            wrong = manifest(namespace="default")
            wrong["spec"]["nope"] = 1
            answer, _ = await bench.full("POST", f"{RAY}?dryRun=All", wrong)
            assert answer.headers.getall("Warning") == ['299 - "unknown field \\"spec.nope\\""']
            answer, _ = await bench.full("POST", f"{RAY}?fieldValidation=Ignore", wrong)
            assert (answer.status, "Warning" in answer.headers) == (201, False)
            path = f"{RAY}/s1?fieldValidation=Strict"
            status, body = await bench.call("PATCH", path, {"spec": {"nope": 1}}, kind=MERGE)
            assert (status, body["reason"]) == (422, "Invalid")
            assert 'strict decoding error: unknown field "spec.nope"' in body["message"]

    asyncio.run(run())


def test_a_dry_run_leaves_no_trace(serving: Callable[..., Any]) -> None:
    async def run() -> None:
        async with serving() as bench:
            before = bench.store.history.revision
            assert (await bench.call("POST", f"{MAPS}?dryRun=All", config_map()))[0] == 201
            assert (await bench.call("GET", f"{MAPS}/cm"))[0] == 404
            assert bench.store.history.revision == before

    asyncio.run(run())


def test_delete_options_in_the_body(serving: Callable[..., Any]) -> None:
    async def run() -> None:
        async with serving() as bench:
            _, made = await bench.call("POST", MAPS, config_map())
            wrong = {"preconditions": {"uid": "other"}}
            status, body = await bench.call("DELETE", f"{MAPS}/cm", wrong)
            assert (status, body["reason"]) == (409, "Conflict")
            assert (await bench.call("DELETE", f"{MAPS}/cm", {"dryRun": ["All"]}))[0] == 200
            assert (await bench.call("GET", f"{MAPS}/cm"))[0] == 200
            right = {"preconditions": {"uid": made["metadata"]["uid"]}, "propagationPolicy": "Foreground"}
            status, left = await bench.call("DELETE", f"{MAPS}/cm", right)
            assert (status, left["metadata"]["finalizers"]) == (200, ["foregroundDeletion"])
            assert (await bench.call("GET", f"{MAPS}/cm"))[0] == 404

    asyncio.run(run())


def test_a_collection_can_be_deleted_by_selector(serving: Callable[..., Any]) -> None:
    async def run() -> list[str]:
        async with serving() as bench:
            for name in ("a", "b"):
                await bench.call(
                    "POST", MAPS, config_map(name) | {"metadata": {"name": name, "labels": {"n": name}}}
                )
            status, gone = await bench.call("DELETE", f"{MAPS}?labelSelector=n%3Da")
            assert (status, len(gone["items"])) == (200, 1)
            return [one["metadata"]["name"] for one in bench.store.list("configmaps", "default")]

    assert asyncio.run(run()) == ["b"]


def test_a_deleted_pod_is_shown(serving: Callable[..., Any]) -> None:
    async def run() -> Any:
        async with serving() as bench:
            bench.store.create("pods", pod("main"), manager="t")
            return await bench.call("DELETE", f"{PODS}/p")

    status, shown = asyncio.run(run())
    assert (status, shown["kind"], shown["metadata"]["name"]) == (200, "Pod", "p")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", f"{MAPS}/cm", 405),
        ("PUT", MAPS, 405),
        ("GET", "/api/v1/namespaces/default/nopes", 404),
        ("GET", "/api/v2/pods", 404),
        ("GET", f"{PODS}/p/exec", 404),
        ("GET", f"{PODS}/p/log/x", 404),
        ("GET", "/nowhere", 404),
    ],
)
def test_what_there_is_not(serving: Callable[..., Any], method: str, path: str, status: int) -> None:
    async def run() -> int:
        async with serving() as bench:
            return int((await bench.call(method, path, {} if method != "GET" else None))[0])

    assert asyncio.run(run()) == status


def test_administrators_may_do_anything(serving: Callable[..., Any]) -> None:
    path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
    asked = {"spec": {"resourceAttributes": {"verb": "create", "resource": "pods"}}}

    async def run() -> None:
        async with serving() as bench:
            nobody = f"Bearer {bench.authority.issue_token('known', (), minutes=5)}"
            status, review = await bench.call("POST", path, asked)
            assert (status, review["status"]) == (201, {"allowed": True})
            assert (await bench.call("POST", path, asked, Authorization=nobody))[1]["status"] == {
                "allowed": False
            }
            assert (await bench.call("POST", path, {}))[0] == 422
            kind = "application/vnd.kubernetes.protobuf"
            assert (await bench.call("POST", path, "k8s\0", kind=kind))[1]["status"] == {"allowed": True}

    asyncio.run(run())


def test_a_log_is_text_and_can_be_cut_to_its_tail(serving: Callable[..., Any]) -> None:
    async def run() -> None:
        async with serving() as bench:
            bench.store.create("pods", pod("main"), manager="t")
            bench.nodes.output = [b"one\n", b"two\n", b"three\n"]
            answer, text = await bench.full("GET", f"{PODS}/p/log")
            assert (answer.content_type, text) == ("text/plain", "one\ntwo\nthree\n")
            assert (await bench.call("GET", f"{PODS}/p/log?tailLines=1&container=main"))[1] == "three\n"
            bench.nodes.output = []
            assert await bench.call("GET", f"{PODS}/p/log") == (200, "")

    asyncio.run(run())


def test_a_log_can_be_followed(serving: Callable[..., Any]) -> None:
    async def run() -> None:
        async with serving() as bench:
            bench.store.create("pods", pod("main"), manager="t")
            bench.nodes.output = [b"one\n"]
            async with bench.session.get(f"{PODS}/p/log?follow=true") as answer:
                assert await asyncio.wait_for(answer.content.readline(), 5) == b"one\n"
                bench.nodes.more.set()
                assert await asyncio.wait_for(answer.content.read(), 5) == b"the end\n"

    asyncio.run(run())


@pytest.mark.parametrize(
    ("query", "message"),
    [
        (
            "",
            "a container name must be specified for pod p, choose one of: [a b] "
            "or one of the init containers: [i]",
        ),
        ("?container=x", "container x is not valid for pod p"),
        ("?container=a&tailLines=few", "invalid tailLines: few"),
        ("?container=a&previous=true", 'previous terminated container "a" in pod "p" not found'),
    ],
)
def test_logs_that_cannot_be_had(serving: Callable[..., Any], query: str, message: str) -> None:
    async def run() -> Any:
        async with serving() as bench:
            bench.store.create("pods", pod("a", "b", initial=("i",)), manager="t")
            return await bench.call("GET", f"{PODS}/p/log{query}")

    status, body = asyncio.run(run())
    assert (status, body["message"]) == (400, message)


def test_a_container_that_has_not_started_has_no_log(serving: Callable[..., Any]) -> None:
    async def run() -> Any:
        async with serving() as bench:
            bench.store.create("pods", pod("a"), manager="t")
            bench.nodes.not_started = True
            return await bench.call("GET", f"{PODS}/p/log")

    status, body = asyncio.run(run())
    assert (status, body["message"]) == (400, 'container "a" in pod "p" is waiting to start')


def test_answers_are_one_line_of_json(serving: Callable[..., Any]) -> None:
    async def run() -> bytes:
        async with serving() as bench, bench.session.get("/version") as answer:
            return bytes(await answer.read())

    raw = asyncio.run(run())
    assert raw.endswith(b"}\n")
    assert json.loads(raw)["gitVersion"].startswith("v1.")
