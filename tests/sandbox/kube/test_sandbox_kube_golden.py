"""The API server against recorded answers of a real one: same status, headers, reason, message, fields.

The requests of the recording are replayed in their order, with the writes of the KubeRay operator, the
kubelet and the scheduler played by the test. What differs by nature (uids, times, revisions, addresses) is
compared by form only. The recording's one entry that isn't an answer, how long a deletion took, is left out;
of the watch's timeline the bookmarks are left out, since they follow a clock.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest

Object = dict[str, Any]

_FORMS = {
    "uid": re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"),
    "time": re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z"),
    "number": re.compile(r"\d+"),
    "address": re.compile(r"\d+(\.\d+){3}"),
}
_VARIABLE = {
    "uid": "uid",
    "resourceVersion": "number",
    "creationTimestamp": "time",
    "deletionTimestamp": "time",
    "time": "time",
    "eventTime": "time",
    "lastObservedTime": "time",
    "clusterIP": "address",
}
Answer = tuple[int, dict[str, str], Any]

ANSWERED = (
    "apply_create",
    "get_ready",
    "apply_again_same",
    "apply_no_fieldmanager",
    "apply_conflict_409",
    "apply_unknown_field",
    "apply_missing_required",
    "apply_with_managedfields",
    "apply_wrong_kind_path",
    "apply_dry_run_new",
    "create_unknown_field_default_warn",
    "create_unknown_field_strict",
    "put_stale_resourceVersion_409",
    "get_404",
    "unknown_kind_404",
    "unauthenticated_401",
    "bad_token_401",
    "forbidden_403_list",
    "forbidden_403_apply",
    "namespace_exists_409",
    "apply_in_missing_namespace",
    "watch_too_old_rv",
    "list_table",
    "events_of_service",
    "pods_head",
    "services",
    "rayclusters",
    "pod_log_missing",
    "delete_foreground",
    "get_while_deleting",
    "delete_namespace",
    "create_in_terminating_namespace",
    "version",
    "discovery_ray",
)
SERVICES = "/apis/ray.io/v1/namespaces/rec/rayservices"
# Where a replayed write stands in for the real client's, and where only the environment differs.
_NOT_COMPARED = {"reportingInstance"}


def comparable(value: Any, key: str = "") -> Any:
    """A value with what varies replaced by its form."""
    if isinstance(value, dict):
        return {
            re.sub(r'k:\{"uid":"[^"]+"\}', "k:{uid}", name): comparable(inner, name)
            for name, inner in value.items()
            if name not in _NOT_COMPARED
        }
    if isinstance(value, list):
        if key == "managedFields":
            # In order of time: which of two entries is older differs with the pace of the replay.
            value = sorted(
                value, key=lambda one: (one["operation"], one["manager"], one.get("subresource", ""))
            )
        return [comparable(inner, "clusterIP" if key == "clusterIPs" else "") for inner in value]
    form = _VARIABLE.get(key)
    if form and isinstance(value, str) and _FORMS[form].fullmatch(value):
        return f"<{form}>"
    if key == "message" and isinstance(value, str):
        return re.sub(r"too old resource version: 1 \(\d+\)", "too old resource version: 1 (N)", value)
    if key == "name" and isinstance(value, str):
        return re.sub(r"^s1\.[0-9a-f]+$", "s1.<hash>", value)
    return value


class Replay:
    """Replays the recording step by step and remembers the answers."""

    def __init__(self, bench: Any, recordings: dict[str, Any]) -> None:
        self.bench = bench
        self.recordings = recordings
        self.answers: dict[str, Answer] = {}

    async def request(self, name: str, body: Any = None, **headers: str) -> Any:
        """Send a recorded request with this body; keep (status, headers, body)."""
        recorded = self.recordings[name]
        method, _, path = recorded["request"].partition(" ")
        answer, decoded = await self.bench.full(
            method, path, body, kind=recorded["content_type"] or "application/json", **headers
        )
        self.answers[name] = (answer.status, dict(answer.headers), decoded)
        return decoded

    def sent(self, *, name: str | None = "s1", **spec: Any) -> Object:
        """The manifest that the recorded client sent: the answer's spec without the server's defaults."""
        whole = deepcopy(self.recordings["apply_create"]["body"]["spec"])
        for group in whole["rayClusterConfig"]["workerGroupSpecs"]:
            del group["numOfHosts"], group["priority"]
        return {
            "apiVersion": "ray.io/v1",
            "kind": "RayService",
            "metadata": {"name": name},
            "spec": whole | spec,
        }

    def as_operator(self, write: Callable[[Object], None]) -> None:
        """What KubeRay's operator does to s1 through PUT."""
        obj = self.bench.store.get("rayservices", "rec", "s1")
        write(obj)
        self.bench.store.update("rayservices", obj, manager="kuberay-operator")

    def operator_defaults(self, obj: Object) -> None:
        """Go's types write empty structs that the client had left out."""
        cluster = obj["spec"]["rayClusterConfig"]
        cluster["headGroupSpec"]["template"].setdefault("metadata", {})
        for group in cluster["workerGroupSpecs"]:
            group["template"].setdefault("metadata", {})
            group.setdefault("scaleStrategy", {})

    def status_as_recorded(self, name: str) -> None:
        status = self.recordings[name]["body"]["status"]
        self.bench.store.update_status("rayservices", "rec", "s1", status, manager="kuberay-operator")

    def create(self, recorded: Object, resource: str, owner_uid: str) -> str:
        """Create a recorded object as the operator did; its new uid."""
        obj = deepcopy(recorded)
        for key in ("managedFields", "uid", "resourceVersion", "creationTimestamp", "generation"):
            obj["metadata"].pop(key, None)
        for owner in obj["metadata"].get("ownerReferences", ()):
            owner["uid"] = owner_uid
        made: Object = self.bench.store.create(resource, obj, manager="kuberay-operator")
        return str(made["metadata"]["uid"])


async def replayed(bench: Any, recordings: dict[str, Any]) -> Replay:
    """The whole recording, in its order."""
    replay = Replay(bench, recordings)
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "rec"}}
    await bench.call("POST", "/api/v1/namespaces", namespace)
    sent = replay.sent()
    created = await replay.request("apply_create", sent)
    await play_operator(replay, created["metadata"]["uid"])
    await replay.request("get_ready")
    await replay.request("apply_again_same", sent)
    replay.status_as_recorded("delete_foreground")
    await refusals(replay)
    await reads(replay)
    await deletion(replay)
    await replay.request("version")
    await replay.request("discovery_ray")
    return replay


async def play_operator(replay: Replay, uid: str) -> None:
    def first(obj: Object) -> None:
        replay.operator_defaults(obj)
        obj["metadata"]["finalizers"] = ["ray.io/rayservice-finalizer"]

    replay.as_operator(first)
    recorded = replay.recordings["rayclusters"]["body"]["items"][0]
    cluster, status = replay.create(recorded, "rayclusters", uid), recorded["status"]
    store = replay.bench.store
    store.update_status("rayclusters", "rec", "s1-58q7q", status, manager="kuberay-operator")

    create_pod(replay, cluster)
    for index, dropped in enumerate((False, False, True)):
        create_service(replay, index, cluster if index == 0 else uid, without_address=dropped)
    service = store.get("rayservices", "rec", "s1")
    for event in replay.recordings["events_of_service"]["body"]["items"]:
        for _ in range(event.get("series", {}).get("count", 1)):
            component = event["reportingComponent"]
            store.emit_event(service, event["reason"], event["message"], component=component)
    replay.status_as_recorded("get_ready")


def create_pod(replay: Replay, owner: str) -> None:
    """The head pod: made by the operator, bound by the scheduler (which owns nothing), run by the kubelet."""
    store = replay.bench.store
    recorded = deepcopy(replay.recordings["pods_head"]["body"]["items"][0])
    status, name = recorded.pop("status"), recorded["metadata"]["name"]
    for key in ("priority", "preemptionPolicy", "nodeName", "tolerations"):
        del recorded["spec"][key]
    replay.create(recorded, "pods", owner)
    kind, live = store.registry.kind("pods"), store.live("pods", "rec", name)
    bound = deepcopy(live)
    bound["spec"]["nodeName"] = "node-1"
    bound["status"]["conditions"] = status["conditions"][:1]
    store.write(kind, live, bound)
    store.update_status("pods", "rec", name, status, manager="OpenAPI-Generator")


def create_service(replay: Replay, index: int, owner: str, *, without_address: bool) -> None:
    recorded = deepcopy(replay.recordings["services"]["body"]["items"][index])
    given = ["clusterIPs", "ipFamilies", "ipFamilyPolicy", *(["clusterIP"] if without_address else [])]
    for key in given:
        del recorded["spec"][key]
    replay.create(recorded, "services", owner)


async def refusals(replay: Replay) -> None:
    sent = replay.sent()
    await replay.request("apply_no_fieldmanager", sent)
    await replay.request("apply_conflict_409", {**sent, "spec": {"serveConfigV2": "applications: []\n"}})
    await replay.request("apply_unknown_field", replay.sent(nope=1))
    await replay.request(
        "apply_missing_required", replay.sent(name="s2", rayClusterConfig={"rayVersion": "2.46.0"})
    )
    with_fields = deepcopy(sent)
    with_fields["metadata"]["managedFields"] = replay.recordings["apply_create"]["body"]["metadata"][
        "managedFields"
    ]
    await replay.request("apply_with_managedfields", with_fields)
    await replay.request("apply_wrong_kind_path", replay.sent(name="other-name"))
    await replay.request("apply_dry_run_new", replay.sent(name="dry"))
    await replay.request("create_unknown_field_default_warn", replay.sent(name="w", nope=1))
    await replay.request("create_unknown_field_strict", replay.sent(name="w", nope=1))
    stale = deepcopy(replay.answers["apply_create"][2])
    await replay.request("put_stale_resourceVersion_409", stale)
    await replay.request("get_404")
    await replay.request("unknown_kind_404")
    await as_nobody(replay)
    await replay.request("namespace_exists_409", {"metadata": {"name": "rec"}})
    await replay.request("apply_in_missing_namespace", sent)
    await replay.request("watch_too_old_rv")


async def as_nobody(replay: Replay) -> None:
    session = replay.bench.session
    token = replay.bench.authority.issue_token("system:serviceaccount:rec:nobody", (), minutes=5)
    own = session.headers.pop("Authorization")
    await replay.request("unauthenticated_401")
    await replay.request("bad_token_401", Authorization="Bearer nonsense")
    await replay.request("forbidden_403_list", Authorization=f"Bearer {token}")
    await replay.request("forbidden_403_apply", replay.sent(name="s9"), Authorization=f"Bearer {token}")
    session.headers["Authorization"] = own


async def reads(replay: Replay) -> None:
    table = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json"
    await replay.request("list_table", Accept=table)
    for name in ("events_of_service", "pods_head", "services", "rayclusters", "pod_log_missing"):
        await replay.request(name)


async def deletion(replay: Replay) -> None:
    store = replay.bench.store
    # A cluster that is itself being deleted holds its owner's foreground deletion up.
    cluster = store.get("rayclusters", "rec", "s1-58q7q")
    cluster["metadata"]["finalizers"] = ["test/hold"]
    store.update("rayclusters", cluster, manager="test")
    await replay.request("delete_foreground")

    def last(obj: Object) -> None:
        replay.operator_defaults(obj)
        obj["metadata"]["finalizers"] = ["foregroundDeletion"]

    replay.as_operator(last)
    await replay.request("get_while_deleting")
    cluster = store.get("rayclusters", "rec", "s1-58q7q")
    cluster["metadata"]["finalizers"] = []
    store.update("rayclusters", cluster, manager="test")
    assert store.get("rayservices", "rec", "s1") is None
    await replay.request("delete_namespace")
    await replay.request("create_in_terminating_namespace", replay.sent())


@pytest.fixture(scope="module")
def answers(serving_once: Callable[[], Any], recordings: dict[str, Any]) -> dict[str, Answer]:
    async def run() -> dict[str, Answer]:
        async with serving_once() as bench:
            return (await replayed(bench, recordings)).answers

    return asyncio.run(run())


@pytest.mark.parametrize("name", ANSWERED)
def test_the_answer_is_the_recorded_one(
    name: str, answers: dict[str, Answer], recordings: dict[str, Any]
) -> None:
    status, headers, body = answers[name]
    recorded = recordings[name]
    assert status == recorded["status"]
    assert comparable(body) == comparable(recorded["body"])
    assert {key: headers.get(key) for key in recorded["headers"]} == recorded["headers"]


def test_every_recording_is_claimed_or_listed(recordings: dict[str, Any]) -> None:
    assert sorted([*ANSWERED, "watch_timeline"]) == sorted(recordings)


def moment(event: Object) -> tuple[Any, ...]:
    """What the recorded timeline keeps of a watch event."""
    obj = event["object"]
    metadata, status = obj["metadata"], obj.get("status") or {}
    conditions = {one["type"]: [one["status"], one["reason"]] for one in status.get("conditions", ())}
    return (
        event["type"],
        metadata.get("generation"),
        metadata.get("finalizers"),
        bool(metadata.get("deletionTimestamp")),
        status.get("serviceStatus"),
        conditions,
    )


def recorded_moments(recordings: dict[str, Any]) -> list[tuple[Any, ...]]:
    return [
        (
            entry["type"],
            entry["generation"],
            entry["finalizers"],
            bool(entry["deletionTimestamp"]),
            entry["serviceStatus"],
            entry["conditions"],
        )
        for entry in recordings["watch_timeline"]
        if entry["type"] != "BOOKMARK"
    ]


def status_of(recorded: tuple[Any, ...], step: int) -> Object:
    conditions = [{"type": kind, "status": one[0], "reason": one[1]} for kind, one in recorded[5].items()]
    status: Object = {"conditions": conditions, "observedGeneration": step}
    return status | ({"serviceStatus": recorded[4]} if recorded[4] else {})


def test_a_watch_sees_the_recorded_timeline(serving: Callable[..., Any], recordings: dict[str, Any]) -> None:
    wanted = recorded_moments(recordings)

    async def play(replay: Replay) -> None:
        bench, store = replay.bench, replay.bench.store
        await replay.request("apply_create", replay.sent())

        def first(obj: Object) -> None:
            replay.operator_defaults(obj)
            obj["metadata"]["finalizers"] = ["ray.io/rayservice-finalizer"]

        replay.as_operator(first)
        for step in (2, 3, 4, 5):
            store.update_status(
                "rayservices", "rec", "s1", status_of(wanted[step], step), manager="kuberay-operator"
            )
        await replay.request("apply_again_same", replay.sent())
        store.update_status("rayservices", "rec", "s1", status_of(wanted[7], 7), manager="kuberay-operator")
        uid = store.get("rayservices", "rec", "s1")["metadata"]["uid"]
        owner = {
            "apiVersion": "ray.io/v1",
            "kind": "RayService",
            "name": "s1",
            "uid": uid,
            "blockOwnerDeletion": True,
        }
        spec = replay.sent()["spec"]["rayClusterConfig"]
        metadata = {"name": "c", "namespace": "rec", "ownerReferences": [owner], "finalizers": ["test/hold"]}
        cluster = store.create(
            "rayclusters", {"metadata": metadata, "spec": spec}, manager="kuberay-operator"
        )
        await bench.call("DELETE", f"{SERVICES}/s1?propagationPolicy=Foreground")

        def last(obj: Object) -> None:
            replay.operator_defaults(obj)
            obj["metadata"]["finalizers"] = ["foregroundDeletion"]

        replay.as_operator(last)
        cluster = store.get("rayclusters", "rec", "c")
        cluster["metadata"]["finalizers"] = []
        store.update("rayclusters", cluster, manager="kuberay-operator")

    async def run() -> list[tuple[Any, ...]]:
        async with serving() as bench:
            await bench.call("POST", "/api/v1/namespaces", {"metadata": {"name": "rec"}})
            seen = []
            async with bench.session.get(f"{SERVICES}?watch=1&timeoutSeconds=20") as answer:
                playing = asyncio.create_task(play(Replay(bench, recordings)))
                async for line in answer.content:
                    seen.append(moment(json.loads(line)))
                    if seen[-1][0] == "DELETED":
                        break
                await playing
            return seen

    assert asyncio.run(run()) == wanted
