"""Random histories of writes: whatever happens, the store, its watches and its files tell the same story."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from raynest_pipeline.sandbox.kube import fieldset
from raynest_pipeline.sandbox.kube.errors import ApiError
from raynest_pipeline.sandbox.kube.managed import Ownership
from raynest_pipeline.sandbox.kube.store import Store

Object = dict[str, Any]

NAMES = ("a", "b", "c")
names = st.sampled_from(NAMES)
managers = st.sampled_from(["one", "two"])
data = st.dictionaries(st.sampled_from("xyz"), st.sampled_from("12"), max_size=3)
variables = st.dictionaries(st.sampled_from("XYZ"), st.sampled_from("12"), max_size=3)
finalizers = st.lists(st.sampled_from(["t/one", "t/two"]), max_size=2, unique=True)


def pod(name: str, env: dict[str, str]) -> Object:
    listed = [{"name": key, "value": value} for key, value in env.items()]
    container = {"name": "main", "image": "i:1", "env": listed}
    return {"metadata": {"name": name, "namespace": "demo"}, "spec": {"containers": [container]}}


def config_map(name: str, values: dict[str, str]) -> Object:
    return {"metadata": {"name": name, "namespace": "demo"}, "data": values}


def owned_paths(obj: Object) -> Iterator[fieldset.Path]:
    yield from Ownership.of(obj).everything()


class Histories(RuleBasedStateMachine):
    """Two managers write ConfigMaps and Pods by every road, and a follower replays what it hears."""

    @initialize()
    def begin(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.store = Store(self.folder, kuberay_version="1.7.0")
        self.store.create("namespaces", {"metadata": {"name": "demo"}}, manager="t")
        self.follower: dict[tuple[str, str], Object] = {}
        self.start = self.store.history.revision
        self.last_revision = self.start

    def teardown(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def attempt(self, write: Any, *allowed: int) -> None:
        """A write that may be refused, but then changes nothing."""
        before = self.store.history.revision
        try:
            write()
        except ApiError as error:
            assert error.code in allowed, error.message
            assert self.store.history.revision == before

    @rule(name=names, values=data, manager=managers, force=st.booleans())
    def apply_config_map(self, name: str, values: dict[str, str], manager: str, force: bool) -> None:
        wanted = config_map(name, values)
        self.attempt(lambda: self.store.apply("configmaps", wanted, manager=manager, force=force), 409)
        live = self.store.get("configmaps", "demo", name)
        if force:
            assert live is not None
            assert values.items() <= live.get("data", {}).items()

    @rule(name=names, env=variables, manager=managers, force=st.booleans())
    def apply_pod(self, name: str, env: dict[str, str], manager: str, force: bool) -> None:
        self.attempt(lambda: self.store.apply("pods", pod(name, env), manager=manager, force=force), 409)

    @rule(name=names, values=data, manager=managers)
    def create(self, name: str, values: dict[str, str], manager: str) -> None:
        self.attempt(lambda: self.store.create("configmaps", config_map(name, values), manager=manager), 409)

    @rule(name=names, values=data, held=finalizers, manager=managers)
    def update(self, name: str, values: dict[str, str], held: list[str], manager: str) -> None:
        live = self.store.get("configmaps", "demo", name)
        if live is None:
            return
        live["data"] = values
        live["metadata"]["finalizers"] = held
        self.attempt(lambda: self.store.update("configmaps", live, manager=manager), 422)

    @rule(name=names, phase=st.sampled_from(["Pending", "Running"]))
    def report(self, name: str, phase: str) -> None:
        status = {"phase": phase, "conditions": [{"type": "Ready", "status": str(phase == "Running")}]}
        self.attempt(lambda: self.store.update_status("pods", "demo", name, status, manager="kubelet"), 404)

    @rule(owner=names, name=names)
    def adopt(self, owner: str, name: str) -> None:
        parent = self.store.get("configmaps", "demo", owner)
        child = self.store.get("pods", "demo", name)
        if parent is None or child is None:
            return
        reference = {"apiVersion": "v1", "kind": "ConfigMap", "name": owner, "uid": parent["metadata"]["uid"]}
        child["metadata"]["ownerReferences"] = [reference | {"blockOwnerDeletion": True}]
        self.store.update("pods", child, manager="t")

    @rule(
        resource=st.sampled_from(["configmaps", "pods"]),
        name=names,
        propagation=st.sampled_from(["Background", "Foreground", "Orphan"]),
    )
    def delete(self, resource: str, name: str, propagation: str) -> None:
        self.attempt(lambda: self.store.delete(resource, "demo", name, propagation=propagation), 404)

    @rule()
    def restart(self) -> None:
        before = self.everything()
        again = Store(self.folder, kuberay_version="1.7.0")
        assert again.history.revision == self.store.history.revision
        self.store, kept = again, before
        assert self.everything() == kept

    def everything(self) -> dict[tuple[str, str], Object]:
        return {
            (resource, obj["metadata"]["name"]): obj
            for resource in ("configmaps", "pods")
            for obj in self.store.list(resource, "demo")
        }

    @invariant()
    def a_follower_of_the_watch_knows_everything(self) -> None:
        for resource in ("configmaps", "pods"):
            since = max(self.last_revision, self.store.history._compacted)
            for change in self.store.history.since(since, resource):
                assert change.revision > self.last_revision
                key = (resource, change.obj["metadata"]["name"])
                assert (key in self.follower) is (change.type != "ADDED")
                if change.type == "DELETED":
                    del self.follower[key]
                else:
                    self.follower[key] = change.obj
        self.last_revision = self.store.history.revision
        assert self.follower == self.everything()

    @invariant()
    def nobody_owns_what_is_not_there(self) -> None:
        for (resource, _), obj in self.everything().items():
            kind = self.store.registry.kind(resource)
            there = frozenset(fieldset.nodes(obj, kind.schema))
            # An emptied container may go on being owned: the real server leaves such claims, too (recorded).
            lost = {path for path in owned_paths(obj) if path not in there}
            assert all(path[-1].startswith("f:") for path in lost), lost
            assert not {path for path in lost if path[:1] == ("f:data",) and len(path) > 1}

    @invariant()
    def what_waits_for_its_end_is_held_by_somebody(self) -> None:
        for obj in self.everything().values():
            metadata = obj["metadata"]
            assert bool(metadata.get("finalizers")) or "deletionTimestamp" not in metadata

    @invariant()
    def no_orphan_is_left(self) -> None:
        alive = {obj["metadata"]["uid"] for obj in self.everything().values()}
        for obj in self.everything().values():
            owners = {owner["uid"] for owner in obj["metadata"].get("ownerReferences", ())}
            held = "deletionTimestamp" in obj["metadata"]
            assert not owners or held or owners & alive


TestHistories = Histories.TestCase
TestHistories.settings = settings(max_examples=40, stateful_step_count=20, deadline=None)
