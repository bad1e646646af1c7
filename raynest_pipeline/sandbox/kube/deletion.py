"""Deleting: finalizers, propagation, the garbage collector, and the end of a namespace."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from raynest_pipeline.sandbox.kube import rules
from raynest_pipeline.sandbox.kube.kinds import Kind
from raynest_pipeline.sandbox.kube.values import copied

if TYPE_CHECKING:
    from raynest_pipeline.sandbox.kube.store import Store

Object = dict[str, Any]

FOREGROUND = "foregroundDeletion"

# A namespace stays Terminating for a moment even when it's empty, so that clients meet that state.
NAMESPACE_LINGERS_S = 0.3


class Deletion:
    """The part of the store that takes objects away; `advance` after every change."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._advancing = False
        self._lingering: set[str] = set()

    def start(self, kind: Kind, live: Object, propagation: str, dry_run: bool) -> Object:
        """Mark an object for deletion, or remove it at once if nothing holds it."""
        fresh = copied(live)
        metadata = fresh["metadata"]
        holds = [*metadata.get("finalizers", [])]
        if propagation == "Foreground" and FOREGROUND not in holds:
            holds.append(FOREGROUND)
        if propagation == "Orphan" and not dry_run:
            self._orphan(metadata["uid"])
        is_namespace = kind.plural == "namespaces"
        if not holds and not is_namespace:
            if not dry_run:
                self._store.remove(kind, fresh)
            return fresh
        _mark(fresh, holds, is_namespace=is_namespace)
        answer = copied(fresh)
        if dry_run:
            return answer
        if fresh != live:
            self._store.write(kind, live, fresh)
            answer = copied(fresh)
        if is_namespace:
            self._empty_namespace(metadata["name"], propagation)
        self.advance()
        return answer

    def advance(self) -> None:
        """Take every step that is due: collect orphaned dependents, lift foreground finalizers, end
        namespaces. Each step can make another one due."""
        if self._advancing:
            return
        self._advancing = True
        try:
            while self._step():
                pass
        finally:
            self._advancing = False

    def _step(self) -> bool:
        alive = {obj["metadata"]["uid"] for _, obj in self._store.everything()}
        for resource, obj in self._store.everything():
            metadata = obj["metadata"]
            kind = self._store.registry.kind(resource)
            owners = metadata.get("ownerReferences", ())
            orphaned = owners and not any(owner["uid"] in alive for owner in owners)
            if orphaned and not metadata.get("deletionTimestamp"):
                self.start(kind, obj, "Background", False)
                return True
            if FOREGROUND in metadata.get("finalizers", ()) and self._lift_foreground(kind, obj):
                return True
        self._end_namespaces()
        return False

    def _lift_foreground(self, kind: Kind, obj: Object) -> bool:
        """One step of a foreground deletion: delete a dependent, or lift the finalizer after the last."""
        dependents = self._dependents(obj["metadata"]["uid"])
        for resource, dependent in dependents:
            if not dependent["metadata"].get("deletionTimestamp"):
                self.start(self._store.registry.kind(resource), dependent, "Foreground", False)
                return True
        blocking = [
            dependent
            for _, dependent in dependents
            if any(
                owner["uid"] == obj["metadata"]["uid"] and owner.get("blockOwnerDeletion")
                for owner in dependent["metadata"]["ownerReferences"]
            )
        ]
        if blocking:
            return False
        self._without_finalizer(kind, obj, FOREGROUND)
        return True

    def _without_finalizer(self, kind: Kind, obj: Object, finalizer: str) -> None:
        fresh = copied(obj)
        left = [one for one in fresh["metadata"]["finalizers"] if one != finalizer]
        if left:
            fresh["metadata"]["finalizers"] = left
            self._store.write(kind, obj, fresh)
        else:
            self._store.remove(kind, obj)

    def _dependents(self, uid: str) -> list[tuple[str, Object]]:
        return [
            (resource, obj)
            for resource, obj in self._store.everything()
            if any(owner["uid"] == uid for owner in obj["metadata"].get("ownerReferences", ()))
        ]

    def _orphan(self, uid: str) -> None:
        for resource, obj in self._dependents(uid):
            fresh = copied(obj)
            fresh["metadata"]["ownerReferences"] = [
                owner for owner in fresh["metadata"]["ownerReferences"] if owner["uid"] != uid
            ]
            self._store.write(self._store.registry.kind(resource), obj, fresh)

    def _contents(self, namespace: str) -> list[tuple[str, Object]]:
        return [
            (resource, obj)
            for resource, obj in self._store.everything()
            if obj["metadata"].get("namespace") == namespace
        ]

    def _empty_namespace(self, namespace: str, propagation: str) -> None:
        for resource, obj in self._contents(namespace):
            current = self._store.live(resource, namespace, obj["metadata"]["name"])
            if current is not None and not current["metadata"].get("deletionTimestamp"):
                self.start(self._store.registry.kind(resource), current, propagation, False)

    def _end_namespaces(self) -> None:
        for namespace in self._store.list("namespaces"):
            name = namespace["metadata"]["name"]
            terminating = namespace["metadata"].get("deletionTimestamp")
            if not terminating or name in self._lingering or self._contents(name):
                continue
            self._lingering.add(name)
            try:
                asyncio.get_running_loop().call_later(NAMESPACE_LINGERS_S, self._end_namespace, name)
            except RuntimeError:
                # No loop is running: a store that is used by itself has nobody to linger for.
                self._end_namespace(name)

    def _end_namespace(self, name: str) -> None:
        self._lingering.discard(name)
        live = self._store.live("namespaces", None, name)
        if live is not None and not self._contents(name):
            self._store.remove(self._store.registry.kind("namespaces"), live)


def _mark(obj: Object, holds: list[str], *, is_namespace: bool) -> None:
    """Set what shows that an object is being deleted; a second delete changes no timestamp."""
    metadata = obj["metadata"]
    if "deletionTimestamp" not in metadata:
        metadata["deletionTimestamp"] = rules.now()
        if "generation" in metadata:
            metadata["generation"] += 1
        if not is_namespace:
            metadata["deletionGracePeriodSeconds"] = 0
    if is_namespace:
        obj.setdefault("status", {})["phase"] = "Terminating"
    if holds:
        metadata["finalizers"] = holds
