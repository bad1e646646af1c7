"""Server-side apply beyond the recordings: who owns what after several managers have written."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest

from raynest_pipeline.sandbox.kube import apply as ssa
from raynest_pipeline.sandbox.kube.errors import ApiError
from raynest_pipeline.sandbox.kube.store import Store

Object = dict[str, Any]


def config_map(**data: str) -> Object:
    metadata = {"name": "code", "namespace": "demo"}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}


def pod(env: dict[str, str], **container: Any) -> Object:
    variables = [{"name": name, "value": value} for name, value in env.items()]
    one = {"name": "main", "image": "i:1", "env": variables, **container}
    metadata = {"name": "p", "namespace": "demo"}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {"containers": [one]}}


def env_of(obj: Object) -> dict[str, str]:
    return {one["name"]: one["value"] for one in obj["spec"]["containers"][0].get("env", ())}


def test_two_managers_each_own_their_keys(store: Store) -> None:
    store.apply("configmaps", config_map(a="1"), manager="one")
    both, created = store.apply("configmaps", config_map(b="2"), manager="two")
    assert not created
    assert both["data"] == {"a": "1", "b": "2"}
    owners = {entry["manager"]: entry["fieldsV1"] for entry in both["metadata"]["managedFields"]}
    assert owners == {"one": {"f:data": {"f:a": {}}}, "two": {"f:data": {"f:b": {}}}}


def test_what_a_manager_no_longer_applies_goes(store: Store) -> None:
    store.apply("configmaps", config_map(a="1", b="2"), manager="one")
    left, _ = store.apply("configmaps", config_map(a="1"), manager="one")
    assert left["data"] == {"a": "1"}


def test_what_another_still_applies_stays(store: Store) -> None:
    store.apply("configmaps", config_map(a="1", b="2"), manager="one")
    store.apply("configmaps", config_map(b="2"), manager="two")
    left, _ = store.apply("configmaps", config_map(a="1"), manager="one")
    assert left["data"] == {"a": "1", "b": "2"}


def test_a_value_written_by_an_update_stays_when_the_applier_lets_go_of_it(store: Store) -> None:
    made, _ = store.apply("configmaps", config_map(a="1"), manager="one")
    made["data"]["b"] = "from an update"
    store.update("configmaps", made, manager="hand")
    left, _ = store.apply("configmaps", config_map(a="2"), manager="one")
    assert left["data"] == {"a": "2", "b": "from an update"}


def test_the_same_value_is_shared_without_a_conflict(store: Store) -> None:
    store.apply("configmaps", config_map(a="1"), manager="one")
    shared, _ = store.apply("configmaps", config_map(a="1"), manager="two")
    assert [entry["manager"] for entry in shared["metadata"]["managedFields"]] == ["one", "two"]


def test_a_conflict_names_every_field_and_changes_nothing(store: Store) -> None:
    store.apply("configmaps", config_map(a="1", b="1"), manager="one")
    before = store.get("configmaps", "demo", "code")
    with pytest.raises(ApiError) as caught:
        store.apply("configmaps", config_map(a="2", b="2"), manager="two")
    assert caught.value.code == 409
    assert (
        caught.value.message == 'Apply failed with 2 conflicts: conflicts with "one":\n- .data.a\n- .data.b'
    )
    causes = caught.value.details["causes"]
    assert [cause["field"] for cause in causes] == [".data.a", ".data.b"]
    assert store.get("configmaps", "demo", "code") == before


def test_force_takes_the_field_away_from_the_other(store: Store) -> None:
    store.apply("configmaps", config_map(a="1"), manager="one")
    taken, _ = store.apply("configmaps", config_map(a="2"), manager="two", force=True)
    assert taken["data"] == {"a": "2"}
    assert [entry["manager"] for entry in taken["metadata"]["managedFields"]] == ["two"]


def test_a_conflict_with_an_update_names_the_version_it_used(store: Store) -> None:
    store.create("configmaps", config_map(a="1"), manager="kubectl-edit")
    with pytest.raises(ApiError, match=r'conflict with "kubectl-edit" using v1: \.data\.a'):
        store.apply("configmaps", config_map(a="2"), manager="two")


def test_an_identical_apply_writes_nothing(store: Store) -> None:
    first, created = store.apply("configmaps", config_map(a="1"), manager="one")
    again, created_again = store.apply("configmaps", config_map(a="1"), manager="one")
    assert (created, created_again) == (True, False)
    assert again == first


def test_a_dry_run_shows_the_result_and_keeps_nothing(store: Store) -> None:
    shown, created = store.apply("configmaps", config_map(a="1"), manager="one", dry_run=True)
    assert created
    assert shown["data"] == {"a": "1"}
    assert "resourceVersion" not in shown["metadata"]
    assert store.get("configmaps", "demo", "code") is None


def test_keyed_lists_merge_by_key(store: Store) -> None:
    store.apply("pods", pod({"A": "1"}), manager="one")
    merged, _ = store.apply("pods", pod({"B": "2"}), manager="two")
    assert env_of(merged) == {"A": "1", "B": "2"}
    left, _ = store.apply("pods", pod({}), manager="one")
    assert env_of(left) == {"B": "2"}


def test_a_conflict_inside_a_keyed_list_names_the_item(store: Store) -> None:
    store.apply("pods", pod({"A": "1"}), manager="one")
    with pytest.raises(ApiError) as caught:
        store.apply("pods", pod({"A": "2"}), manager="two")
    wanted = '.spec.containers[name="main"].env[name="A"].value'
    assert [cause["field"] for cause in caught.value.details["causes"]] == [wanted]


def test_an_item_of_a_keyed_list_keeps_its_place(store: Store) -> None:
    store.apply("pods", pod({"A": "1", "B": "2"}), manager="one")
    merged, _ = store.apply("pods", pod({"C": "3", "A": "1"}), manager="two")
    assert list(env_of(merged)) == ["A", "B", "C"]


def test_an_atomic_list_is_replaced_and_owned_as_a_whole(
    store: Store, manifest: Callable[..., Object]
) -> None:
    store.apply("rayservices", manifest(), manager="one")
    other = manifest()
    group = deepcopy(other["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]) | {"groupName": "cpu"}
    other["spec"] = {
        "rayClusterConfig": {"headGroupSpec": {"rayStartParams": {}}, "workerGroupSpecs": [group]}
    }
    with pytest.raises(ApiError, match="workerGroupSpecs"):
        store.apply("rayservices", other, manager="two")
    forced, _ = store.apply("rayservices", other, manager="two", force=True)
    groups = forced["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    assert [one["groupName"] for one in groups] == ["cpu"]


def test_generation_counts_changes_of_the_spec_alone(store: Store, manifest: Callable[..., Object]) -> None:
    made, _ = store.apply("rayservices", manifest(), manager="one")
    labelled = manifest()
    labelled["metadata"]["labels"] = {"a": "b"}
    same, _ = store.apply("rayservices", labelled, manager="one")
    changed, _ = store.apply("rayservices", manifest(image="ray:2"), manager="one")
    assert [one["metadata"]["generation"] for one in (made, same, changed)] == [1, 1, 2]
    assert "labels" not in changed["metadata"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"nope": 1}, ".spec.nope: field not declared in schema"),
        ({"serveConfigV2": 3}, ".spec.serveConfigV2: expected string, got &value.valueUnstructured{Value:3}"),
        ({"suspend": "yes"}, '.spec.suspend: expected boolean, got &value.valueUnstructured{Value:"yes"}'),
        ({"rayClusterConfig": []}, ".spec.rayClusterConfig: expected map, got"),
        (
            {"rayClusterConfig": {"workerGroupSpecs": {}}},
            ".spec.rayClusterConfig.workerGroupSpecs: expected list",
        ),
    ],
)
def test_what_the_schema_does_not_know_is_500_without_a_reason(
    store: Store, manifest: Callable[..., Object], change: Object, message: str
) -> None:
    wrong = manifest(namespace=None)
    wrong["spec"] |= change
    with pytest.raises(ApiError) as caught:
        store.apply("rayservices", wrong, manager="one")
    assert (caught.value.code, caught.value.reason) == (500, "")
    start = "failed to create typed patch object (/s1; ray.io/v1, Kind=RayService): "
    assert caught.value.message.startswith(start + message)


def test_several_schema_errors_are_listed(store: Store, manifest: Callable[..., Object]) -> None:
    wrong = manifest()
    container = wrong["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    container |= {"imagee": "x", "env": [{"value": "1"}, {"name": "A"}, {"name": "A"}]}
    with pytest.raises(ApiError) as caught:
        store.apply("rayservices", wrong, manager="one")
    lines = caught.value.message.splitlines()
    where = '.spec.rayClusterConfig.headGroupSpec.template.spec.containers[name="head"]'
    assert lines[0].endswith("errors:")
    assert f"  {where}.imagee: field not declared in schema" in lines
    assert any('omits key field "name"' in line for line in lines)
    assert f'  {where}.env: duplicate entries for key [name="A"]' in lines


# Which release first declares a field of a RayService's spec.
SINCE: dict[str, tuple[str, Object]] = {
    "authOptions": ("1.5.1", {"rayClusterConfig": {"authOptions": {"mode": "token"}}}),
    "clusterUpgradeOptions": (
        "1.5.0",
        {
            "upgradeStrategy": {
                "clusterUpgradeOptions": {
                    "gatewayClassName": "g",
                    "intervalSeconds": 1,
                    "stepSizePercent": 1,
                }
            }
        },
    ),
    "managedBy": ("1.6.0", {"managedBy": "ray.io/kuberay-operator"}),
    "rayClusterDeletionDelaySeconds": ("1.5.0", {"rayClusterDeletionDelaySeconds": 5}),
    "suspend": ("1.7.0", {"suspend": True}),
}
RELEASES = ("1.3.0", "1.4.2", "1.5.0", "1.5.1", "1.6.2", "1.7.0")


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("field", SINCE)
def test_a_field_is_refused_by_releases_before_it(
    field: str, release: str, manifest: Callable[..., Object]
) -> None:
    since, change = SINCE[field]
    store = Store(None, kuberay_version=release)
    store.create("namespaces", {"metadata": {"name": "demo"}}, manager="test")
    wanted = manifest()
    for key, value in change.items():
        wanted["spec"][key] = {**wanted["spec"].get(key, {}), **value} if isinstance(value, dict) else value
    if release >= since:
        _, created = store.apply("rayservices", wanted, manager="one")
        assert created
    else:
        with pytest.raises(ApiError, match=f"{field}: field not declared in schema") as caught:
            store.apply("rayservices", wanted, manager="one")
        assert caught.value.code == 500


def test_ray_start_params_are_required_by_the_release_that_compute_nest_installs(
    manifest: Callable[..., Object],
) -> None:
    store = Store(None, kuberay_version="1.3.0")
    store.create("namespaces", {"metadata": {"name": "demo"}}, manager="test")
    wanted = manifest()
    del wanted["spec"]["rayClusterConfig"]["headGroupSpec"]["rayStartParams"]
    with pytest.raises(ApiError, match="rayStartParams: Required value") as caught:
        store.apply("rayservices", wanted, manager="one")
    assert caught.value.code == 422


def test_readable_paths() -> None:
    path = ("f:spec", 'k:{"containerPort":80,"protocol":"TCP"}', "f:name", 'v:"x"')
    assert ssa.readable(path) == '.spec[containerPort=80,protocol="TCP"].name[="x"]'


def test_status_is_applied_through_its_subresource_only(
    store: Store, manifest: Callable[..., Object]
) -> None:
    made, _ = store.apply("rayservices", manifest() | {"status": {"serviceStatus": "Running"}}, manager="one")
    assert "status" not in made
    status = {"apiVersion": "ray.io/v1", "kind": "RayService", "status": {"serviceStatus": "Running"}}
    status["metadata"] = {"name": "s1", "namespace": "demo"}
    left, _ = store.apply("rayservices", status, manager="two", subresource="status")
    assert left["status"] == {"serviceStatus": "Running"}
    assert left["spec"] == made["spec"]
    entry = left["metadata"]["managedFields"][-1]
    assert (entry["manager"], entry["subresource"]) == ("two", "status")
