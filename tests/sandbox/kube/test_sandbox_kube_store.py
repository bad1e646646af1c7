"""The store: identity, versions, finalizers, garbage collection, namespaces, persistence, subscriptions."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from raynest_pipeline.sandbox.kube import rules
from raynest_pipeline.sandbox.kube.errors import ApiError
from raynest_pipeline.sandbox.kube.store import Store

Object = dict[str, Any]


def config_map(name: str = "cm", owners: tuple[Object, ...] = (), **metadata: Any) -> Object:
    references = [
        {
            "apiVersion": owner["apiVersion"],
            "kind": owner["kind"],
            "name": owner["metadata"]["name"],
            "uid": owner["metadata"]["uid"],
            "blockOwnerDeletion": True,
        }
        for owner in owners
    ]
    held = {"ownerReferences": references} if references else {}
    return {"metadata": {"name": name, "namespace": "demo", **held, **metadata}, "data": {"a": "1"}}


def make(store: Store, *args: Any, **kwargs: Any) -> Object:
    return store.create("configmaps", config_map(*args, **kwargs), manager="test")


def names(store: Store, resource: str = "configmaps") -> list[str]:
    return [obj["metadata"]["name"] for obj in store.list(resource, "demo")]


def test_a_new_object_gets_its_identity_from_the_server(store: Store) -> None:
    sent = config_map(uid="mine", resourceVersion="7", creationTimestamp="1999-01-01T00:00:00Z", generation=9)
    made = store.create("configmaps", sent, manager="test")
    metadata = made["metadata"]
    assert metadata["uid"] != "mine"
    assert int(metadata["resourceVersion"]) > 200
    assert metadata["creationTimestamp"] > "2000"
    assert "generation" not in metadata
    assert (made["apiVersion"], made["kind"]) == ("v1", "ConfigMap")
    assert sent["metadata"]["uid"] == "mine"


def test_answers_are_copies(store: Store) -> None:
    make(store)["data"]["a"] = "changed"
    found = store.get("configmaps", "demo", "cm")
    assert found is not None
    found["data"]["a"] = "changed"
    store.list("configmaps")[0]["data"]["a"] = "changed"
    again = store.get("configmaps", "demo", "cm")
    assert again is not None
    assert again["data"] == {"a": "1"}


def test_generated_names_differ(store: Store) -> None:
    made = {make(store, name=None, generateName="x-")["metadata"]["name"] for _ in range(20)}
    assert len(made) == 20
    assert all(name.startswith("x-") and len(name) == 7 for name in made)


@pytest.mark.parametrize("name", ["", "Upper", "under_score", "-start", "a" * 254])
def test_a_bad_name_is_422(store: Store, name: str) -> None:
    with pytest.raises(ApiError) as caught:
        make(store, name=name)
    assert (caught.value.code, caught.value.reason) == (422, "Invalid")
    assert caught.value.details["causes"][0]["field"] == "metadata.name"


def test_creating_twice_is_409(store: Store) -> None:
    make(store)
    with pytest.raises(ApiError, match='configmaps "cm" already exists') as caught:
        make(store)
    assert (caught.value.code, caught.value.reason) == (409, "AlreadyExists")


def test_an_update_with_a_stale_version_is_409_and_without_one_wins(store: Store) -> None:
    first = make(store)
    second = {**first, "data": {"a": "2"}}
    store.update("configmaps", second, manager="test")
    with pytest.raises(ApiError, match="the object has been modified"):
        store.update("configmaps", {**first, "data": {"a": "3"}}, manager="test")
    last = store.update("configmaps", config_map() | {"data": {"a": "4"}}, manager="test")
    assert last["data"] == {"a": "4"}


def test_an_update_of_a_namesake_with_another_uid_is_409(store: Store) -> None:
    make(store)
    with pytest.raises(ApiError, match="Precondition failed: UID"):
        store.update("configmaps", config_map(uid="other"), manager="test")


def test_an_update_of_nothing_is_404(store: Store) -> None:
    with pytest.raises(ApiError, match='configmaps "cm" not found'):
        store.update("configmaps", config_map(), manager="test")


def test_an_equal_update_writes_nothing(store: Store) -> None:
    made = make(store)
    assert store.update("configmaps", made, manager="test") == made


def test_a_status_is_written_through_update_status_alone(
    store: Store, manifest: Callable[..., Object]
) -> None:
    made = store.create("rayservices", manifest() | {"status": {"x": 1}}, manager="test")
    assert "status" not in made
    with_status = store.update_status("rayservices", "demo", "s1", {"serviceStatus": "Running"}, manager="op")
    assert with_status["status"] == {"serviceStatus": "Running"}
    assert with_status["metadata"]["generation"] == 1
    same = store.update_status("rayservices", "demo", "s1", {"serviceStatus": "Running"}, manager="op")
    assert same["metadata"]["resourceVersion"] == with_status["metadata"]["resourceVersion"]
    kept = store.update(
        "rayservices", made | {"metadata": {"name": "s1", "namespace": "demo"}}, manager="test"
    )
    assert kept["status"] == {"serviceStatus": "Running"}
    with pytest.raises(ApiError, match="not found"):
        store.update_status("rayservices", "demo", "other", {}, manager="op")


def test_an_invalid_custom_resource_is_422(store: Store, manifest: Callable[..., Object]) -> None:
    wrong = manifest()
    del wrong["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]["groupName"]
    wrong["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]["replicas"] = "one"
    with pytest.raises(ApiError) as caught:
        store.create("rayservices", wrong, manager="test")
    fields = [cause["field"] for cause in caught.value.details["causes"]]
    where = "spec.rayClusterConfig.workerGroupSpecs[0]"
    assert fields == [f"{where}.groupName", f"{where}.replicas", "<nil>"]


def test_unknown_fields_of_a_custom_resource_are_pruned(
    store: Store, manifest: Callable[..., Object]
) -> None:
    sent = manifest()
    sent["spec"]["nope"] = 1
    assert "nope" not in store.create("rayservices", sent, manager="test")["spec"]


def test_a_finalizer_holds_the_object_until_it_is_removed(store: Store) -> None:
    make(store, finalizers=["test/hold"])
    left = store.delete("configmaps", "demo", "cm")
    assert left["metadata"]["deletionTimestamp"]
    again = store.delete("configmaps", "demo", "cm")
    assert again["metadata"]["deletionTimestamp"] == left["metadata"]["deletionTimestamp"]
    with pytest.raises(ApiError, match="no new finalizers can be added"):
        more = {**left, "metadata": left["metadata"] | {"finalizers": ["test/hold", "test/more"]}}
        store.update("configmaps", more, manager="test")
    del left["metadata"]["finalizers"]
    store.update("configmaps", left, manager="test")
    assert store.get("configmaps", "demo", "cm") is None


def test_deleting_nothing_is_404(store: Store) -> None:
    with pytest.raises(ApiError, match='configmaps "cm" not found'):
        store.delete("configmaps", "demo", "cm")


def test_a_dry_run_deletes_nothing(store: Store) -> None:
    make(store)
    make(store, "held", finalizers=["test/hold"])
    store.delete("configmaps", "demo", "cm", dry_run=True)
    shown = store.delete("configmaps", "demo", "held", dry_run=True)
    assert shown["metadata"]["deletionTimestamp"]
    assert all("deletionTimestamp" not in obj["metadata"] for obj in store.list("configmaps", "demo"))
    assert names(store) == ["cm", "held"]


def test_what_an_object_owned_goes_after_it(store: Store) -> None:
    top = make(store, "top")
    middle = make(store, "middle", (top,))
    make(store, "bottom", (middle,))
    other = make(store, "other")
    make(store, "shared", (top, other))
    store.delete("configmaps", "demo", "top")
    assert names(store) == ["other", "shared"]


def test_background_collection_waits_for_the_owners_finalizers(store: Store) -> None:
    top = make(store, "top", finalizers=["test/hold"])
    make(store, "child", (top,))
    left = store.delete("configmaps", "demo", "top")
    assert names(store) == ["child", "top"]
    left["metadata"]["finalizers"] = []
    store.update("configmaps", left, manager="test")
    assert names(store) == []


def test_foreground_deletion_takes_the_dependents_first(store: Store) -> None:
    top = make(store, "top")
    make(store, "child", (top,), finalizers=["test/hold"])
    left = store.delete("configmaps", "demo", "top", propagation="Foreground")
    assert left["metadata"]["finalizers"] == ["foregroundDeletion"]
    child = store.get("configmaps", "demo", "child")
    assert child is not None
    assert child["metadata"]["deletionTimestamp"]
    assert names(store) == ["child", "top"]
    child["metadata"]["finalizers"] = [one for one in child["metadata"]["finalizers"] if one != "test/hold"]
    store.update("configmaps", child, manager="test")
    assert names(store) == []


def test_orphaned_dependents_stay(store: Store) -> None:
    top = make(store, "top")
    make(store, "child", (top,))
    store.delete("configmaps", "demo", "top", propagation="Orphan")
    assert names(store) == ["child"]
    child = store.get("configmaps", "demo", "child")
    assert child is not None
    assert not child["metadata"].get("ownerReferences")


def test_an_object_whose_owner_is_already_gone_is_collected(store: Store) -> None:
    top = make(store, "top")
    store.delete("configmaps", "demo", "top")
    make(store, "late", (top,))
    assert names(store) == []


def test_a_namespace_must_exist(store: Store) -> None:
    with pytest.raises(ApiError, match='namespaces "nowhere" not found'):
        make(store, namespace="nowhere")


def test_a_namespace_goes_with_all_that_is_in_it(store: Store) -> None:
    make(store)
    make(store, "held", finalizers=["test/hold"])
    left = store.delete("namespaces", None, "demo")
    assert left["status"] == {"phase": "Terminating"}
    assert names(store) == ["held"]
    with pytest.raises(ApiError, match="because it is being terminated") as caught:
        make(store, "new")
    assert caught.value.code == 403
    held = store.get("configmaps", "demo", "held")
    assert held is not None
    held["metadata"]["finalizers"] = []
    store.update("configmaps", held, manager="test")
    assert store.get("namespaces", None, "demo") is None


def test_an_empty_namespace_lingers_while_a_loop_runs(store: Store) -> None:
    async def run() -> None:
        gone = store.subscribe("namespaces")
        store.delete("namespaces", None, "demo")
        assert store.get("namespaces", None, "demo") is not None
        while (await asyncio.wait_for(gone.get(), 5))[0] != "DELETED":
            pass

    asyncio.run(run())
    assert store.get("namespaces", None, "demo") is None


def test_everything_comes_back_after_a_restart(tmp_path: Path) -> None:
    first = Store(tmp_path, kuberay_version="1.7.0")
    first.create("namespaces", {"metadata": {"name": "demo"}}, manager="test")
    make(first)
    make(first, "gone")
    first.delete("configmaps", "demo", "gone")
    second = Store(tmp_path, kuberay_version="1.7.0")
    assert second.list("configmaps") == first.list("configmaps")
    assert second.list("namespaces") == first.list("namespaces")
    # The deletion was the last revision: it must not be used twice.
    assert second.history.revision == first.history.revision
    changed = second.update("configmaps", config_map() | {"data": {"a": "2"}}, manager="test")
    assert int(changed["metadata"]["resourceVersion"]) == first.history.revision + 1


def test_no_file_is_readable_by_others(tmp_path: Path) -> None:
    store = Store(tmp_path, kuberay_version="1.7.0")
    store.create("namespaces", {"metadata": {"name": "demo"}}, manager="test")
    store.create("secrets", {"metadata": {"name": "s", "namespace": "demo"}}, manager="test")
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert files
    assert {path.stat().st_mode & 0o077 for path in files} == {0}


def test_wiping_leaves_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path / "state", kuberay_version="1.7.0")
    store.create("namespaces", {"metadata": {"name": "demo"}}, manager="test")
    store.wipe()
    assert not (tmp_path / "state").exists()


def test_subscribers_hear_of_their_resources_in_order(store: Store) -> None:
    async def run() -> list[tuple[str, str]]:
        heard = store.subscribe("configmaps", "secrets")
        make(store)
        store.create("secrets", {"metadata": {"name": "s", "namespace": "demo"}}, manager="test")
        store.create("serviceaccounts", {"metadata": {"name": "a", "namespace": "demo"}}, manager="test")
        store.update("configmaps", config_map() | {"data": {}}, manager="test")
        store.delete("configmaps", "demo", "cm")
        store.unsubscribe(heard)
        make(store, "later")
        return [
            (kind, obj["metadata"]["name"])
            for kind, obj in (heard.get_nowait() for _ in range(heard.qsize()))
        ]

    wanted = [("ADDED", "cm"), ("ADDED", "s"), ("MODIFIED", "cm"), ("DELETED", "cm")]
    assert asyncio.run(run()) == wanted


def test_events_are_counted_instead_of_repeated(store: Store) -> None:
    about = make(store)
    for _ in range(3):
        store.emit_event(about, "Pulling", "Pulling image", component="kubelet")
    store.emit_event(about, "Pulled", "Pulled image", component="kubelet")
    store.emit_event(about, "Failed", "No such image", "Warning", component="kubelet")
    found = {event["reason"]: event for event in store.list("events", "demo")}
    assert found["Pulling"]["count"] == 3
    assert found["Pulling"]["involvedObject"]["uid"] == about["metadata"]["uid"]
    assert found["Pulling"]["source"] == {"component": "kubelet"}
    assert (found["Failed"]["type"], found["Pulled"]["type"]) == ("Warning", "Normal")


@pytest.mark.parametrize(("release", "series"), [("1.3.0", False), ("1.6.2", False), ("1.7.0", True)])
def test_the_controllers_of_1_7_report_through_the_newer_api(
    release: str, series: bool, manifest: Callable[..., Object]
) -> None:
    store = Store(None, kuberay_version=release)
    store.create("namespaces", {"metadata": {"name": "demo"}}, manager="test")
    about = store.create("rayservices", manifest(), manager="test")
    for _ in range(2):
        store.emit_event(about, "CreatedRayCluster", "Created it", component="rayservice-controller")
    (event,) = store.list("events", "demo")
    assert (event.get("eventTime") is not None, event.get("count") is None) == (series, series)
    counted = event["series"]["count"] if series else event["count"]
    assert counted == 2


def test_events_are_kept_for_an_hour(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    about = make(store)
    store.emit_event(about, "Old", "old", component="kubelet")
    later = time.time() + 3700
    monkeypatch.setattr(time, "time", lambda: later)
    store.emit_event(about, "New", "new", component="kubelet")
    assert [event["reason"] for event in store.list("events")] == ["New"]


def test_an_event_about_something_in_a_vanished_namespace_is_lost(store: Store) -> None:
    about = make(store)
    store.delete("namespaces", None, "demo")
    store.emit_event(about, "Late", "too late", component="kubelet")
    assert store.list("events") == []


def test_a_secrets_plain_text_is_encoded(store: Store) -> None:
    sent = {"metadata": {"name": "s", "namespace": "demo"}, "stringData": {"auth_token": "abc"}}
    made = store.create("secrets", sent, manager="test")
    assert (made["data"], made["type"]) == ({"auth_token": "YWJj"}, "Opaque")
    assert "stringData" not in made


def test_a_service_keeps_the_address_it_was_given(store: Store) -> None:
    sent: Object = {"metadata": {"name": "svc", "namespace": "demo"}, "spec": {"ports": [{"port": 80}]}}
    made = store.create("services", sent, manager="test")
    assert made["spec"]["ports"] == [{"port": 80, "protocol": "TCP", "targetPort": 80}]
    sent["spec"]["ports"] = [{"port": 81}]
    changed = store.update("services", sent, manager="test")
    assert changed["spec"]["clusterIP"] == made["spec"]["clusterIP"]
    assert changed["spec"]["ports"][0]["port"] == 81


@pytest.mark.parametrize(
    ("resources", "quality"),
    [
        ({}, "BestEffort"),
        ({"requests": {"cpu": "1"}}, "Burstable"),
        ({"limits": {"cpu": "1", "memory": "1Gi"}}, "Guaranteed"),
        ({"limits": {"cpu": "2", "memory": "1Gi"}, "requests": {"cpu": "1", "memory": "1Gi"}}, "Burstable"),
    ],
)
def test_a_pod_gets_its_defaults(store: Store, resources: Object, quality: str) -> None:
    container = {"name": "c", "image": "i", "resources": resources}
    sent = {"metadata": {"name": "p", "namespace": "demo"}, "spec": {"containers": [container]}}
    made = store.create("pods", sent, manager="test")
    assert made["status"] == {"phase": "Pending", "qosClass": quality}
    assert made["spec"]["containers"][0]["imagePullPolicy"] == "Always"
    assert len(made["spec"]["tolerations"]) == 2


def times(obj: Object) -> dict[str, str]:
    return {entry["manager"]: entry["time"] for entry in obj["metadata"]["managedFields"]}


def test_the_time_of_a_claim_moves_with_values_and_not_with_removals(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    moments = iter(f"2026-01-01T00:00:{second:02}Z" for second in range(60))
    monkeypatch.setattr(rules, "now", lambda: next(moments))
    made = make(store)
    changed = store.update("configmaps", made | {"data": {"a": "2", "b": "1"}}, manager="test")
    assert times(changed)["test"] > times(made)["test"]
    fewer = store.update("configmaps", changed | {"data": {"a": "2"}}, manager="test")
    assert times(fewer) == times(changed)


def test_a_caller_keeps_its_object_as_it_was(store: Store) -> None:
    sent: Object = {"metadata": {"name": "x"}, "data": {}}
    store.create("namespaces", {"metadata": {"name": "default"}}, manager="test")
    store.create("configmaps", sent, manager="test")
    store.apply("configmaps", sent, manager="test")
    assert sent == {"metadata": {"name": "x"}, "data": {}}


def test_a_namespaces_end_goes_on_after_a_restart(tmp_path: Path) -> None:
    first = Store(tmp_path, kuberay_version="1.7.0")
    first.create("namespaces", {"metadata": {"name": "demo"}}, manager="test")

    async def stopped_too_early() -> None:
        first.delete("namespaces", None, "demo")

    asyncio.run(stopped_too_early())
    assert first.get("namespaces", None, "demo") is not None
    assert Store(tmp_path, kuberay_version="1.7.0").get("namespaces", None, "demo") is None
