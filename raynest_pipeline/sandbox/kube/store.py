"""The objects of one cluster: a small etcd with the API server's write rules on top."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from raynest_pipeline.sandbox.kube import apply as ssa
from raynest_pipeline.sandbox.kube import errors, events, fieldset, rules, schema, selectors
from raynest_pipeline.sandbox.kube.deletion import Deletion
from raynest_pipeline.sandbox.kube.history import Change, History, shown
from raynest_pipeline.sandbox.kube.kinds import Kind, Registry
from raynest_pipeline.sandbox.kube.managed import Owner, Ownership
from raynest_pipeline.sandbox.kube.persistence import ObjectFiles
from raynest_pipeline.sandbox.kube.values import copied

Object = dict[str, Any]
Key = tuple[str, str]

# A real cluster has used up some revisions before its first client comes: revision 1 is always compacted.
_FIRST_REVISION = 200


class Subscription(asyncio.Queue[tuple[str, Object]]):
    """The changes of some resources as (ADDED | MODIFIED | DELETED, object), each a copy."""


class Store:
    """Kubernetes objects, persisted; every method is synchronous and belongs to one event loop.

    Resources are named by their plural: pods, services, endpoints, endpointslices, configmaps, secrets,
    serviceaccounts, namespaces, nodes, events, deployments, customresourcedefinitions, rayservices,
    rayclusters, rayjobs. Answers are copies: change them freely. Errors are `errors.ApiError`.
    """

    def __init__(self, directory: Path | None, *, kuberay_version: str) -> None:
        self.registry = Registry(kuberay_version)
        self._files = ObjectFiles(directory)
        self._objects: dict[str, dict[Key, Object]] = {kind.plural: {} for kind in self.registry.kinds}
        revision = max(self._files.revision(), _FIRST_REVISION)
        for resource, obj in self._files.load():
            self._objects[resource][_key(obj)] = obj
            revision = max(revision, int(obj["metadata"]["resourceVersion"]))
        self.history = History(revision)
        self._subscriptions: dict[Subscription, frozenset[str]] = {}
        self._deletion = Deletion(self)
        # A deletion that a stop interrupted goes on.
        self._deletion.advance()

    # Reading

    def get(self, resource: str, namespace: str | None, name: str) -> Object | None:
        """One object, or None."""
        return copied(self.live(resource, namespace, name))

    def live(self, resource: str, namespace: str | None, name: str) -> Object | None:
        """The stored object itself, not to be changed; for this package's own rules."""
        return self._objects[resource].get((namespace or "", name))

    def everything(self) -> list[tuple[str, Object]]:
        """All (resource, stored object), not to be changed."""
        return [(resource, obj) for resource, found in self._objects.items() for obj in found.values()]

    def list(
        self, resource: str, namespace: str | None = None, *, labels: str = "", fields: str = ""
    ) -> list[Object]:
        """In order of namespace and name; `labels` and `fields` are kubectl's selector syntax."""
        kind = self.registry.kind(resource)
        labelled, fielded = selectors.labels(labels), selectors.fields(fields, kind.fields)
        return [
            copied(obj)
            for key, obj in sorted(self._objects[resource].items())
            if namespace in (None, key[0]) and labelled(obj) and fielded(obj)
        ]

    # Writing

    def create(self, resource: str, obj: Object, *, manager: str, dry_run: bool = False) -> Object:
        """Create; `metadata.generateName` works. 409 AlreadyExists, 404 for a missing namespace,
        403 for a terminating one, 422 for an invalid object. A status is dropped where it's a subresource
        (custom resources, pods, services, nodes, deployments): follow with `update_status`."""
        kind = self.registry.kind(resource)
        obj = copied(obj)
        self._require_namespace(kind, obj)
        fresh = rules.new_object(kind, obj)
        if _key(fresh) in self._objects[resource]:
            raise errors.already_exists(resource, kind.group, fresh["metadata"]["name"])
        self._own(kind, _nothing(kind), fresh, Owner("Update", manager))
        rules.assign(kind, fresh)
        return self._commit(kind, None, fresh, dry_run)

    def update(self, resource: str, obj: Object, *, manager: str, dry_run: bool = False) -> Object:
        """PUT: spec and metadata (finalizers included: removing the last one ends a pending delete).

        With metadata.resourceVersion set the write is optimistic (409 Conflict when stale). A change of
        spec raises metadata.generation. A status that is a subresource is kept."""
        kind = self.registry.kind(resource)
        live = self._current(kind, obj)
        fresh = rules.replacement(kind, live, obj)
        self._own(kind, live, fresh, Owner("Update", manager))
        return self._commit(kind, live, fresh, dry_run)

    def update_status(
        self,
        resource: str,
        namespace: str | None,
        name: str,
        status: Object,
        *,
        manager: str,
        dry_run: bool = False,
        version: str | None = None,
    ) -> Object:
        """Replace the status; an equal status writes nothing. 404 when the object is gone, 409 when
        `version` is given and isn't its resourceVersion."""
        kind = self.registry.kind(resource)
        live = self.live(resource, namespace, name)
        if live is None:
            raise kind.not_found(name)
        if version not in (None, live["metadata"]["resourceVersion"]):
            raise errors.modified(resource, kind.group, name)
        fresh = copied(live) | {"status": schema.pruned(status, kind.schema["properties"]["status"])}
        self._own(kind, live, fresh, Owner("Update", manager, "status"))
        return self._commit(kind, live, fresh, dry_run)

    def apply(
        self,
        resource: str,
        obj: Object,
        *,
        manager: str,
        force: bool = False,
        dry_run: bool = False,
        subresource: str = "",
        sent_as: str | None = None,
    ) -> tuple[Object, bool]:
        """Server-side apply; True when it created the object.

        409 with one cause per field on a conflict, unless `force`; 500 for what the schema doesn't know.
        `sent_as` is the `namespace/name` of the body as a client sent it, which that message repeats."""
        kind = self.registry.kind(resource)
        obj = copied(obj)
        metadata = obj.get("metadata", {})
        if metadata.get("managedFields"):
            raise errors.bad_request("metadata.managedFields must be nil")
        where = sent_as or f"{metadata.get('namespace', '')}/{metadata.get('name', '')}"
        ssa.check_typed(obj, kind.schema, f"{where}; {kind.api_version}, Kind={kind.kind}")
        self._require_namespace(kind, obj, only_existing=True)
        live = self.live(resource, metadata.get("namespace"), metadata["name"])
        if live is None and subresource:
            raise kind.not_found(metadata["name"])
        if live is None:
            self._require_namespace(kind, obj)
        owner = Owner("Apply", manager, subresource)
        fresh = self._applied(kind, live, obj, owner, force)
        return self._commit(kind, live, fresh, dry_run), live is None

    def _applied(self, kind: Kind, live: Object | None, obj: Object, owner: Owner, force: bool) -> Object:
        base = live if live is not None else _nothing(kind)
        config = schema.pruned(obj, kind.schema)
        if live is not None:
            self._check_version(kind, live, config)
        ownership = Ownership.of(base)
        last = ownership.paths(owner)
        mine = fieldset.owned(fieldset.applied(config, kind.schema), status=_scope(kind, owner))
        ownership.settle(owner, mine, lost=fieldset.EMPTY, version=kind.api_version, now=None)
        merged = ssa.merge(base, config, kind.schema)
        merged = ssa.without(merged, kind.schema, ssa.dropped(last, ownership))
        fresh = self._finished(kind, live, merged, owner)
        written, removed = self._changed(kind, base, fresh, owner)
        conflicts = ownership.conflicts(owner, written)
        if conflicts and not force:
            raise ssa.conflict_error(ownership, conflicts)
        same = last == mine and not written and not removed
        now = None if same else rules.now()
        ownership.settle(owner, mine, lost=written | removed, version=kind.api_version, now=now)
        fresh["metadata"]["managedFields"] = ownership.encoded()
        if live is None:
            rules.assign(kind, fresh)
        return fresh

    def _finished(self, kind: Kind, live: Object | None, merged: Object, owner: Owner) -> Object:
        if live is None:
            return rules.new_object(kind, merged)
        if owner.subresource == "status":
            return copied(live) | {"status": merged.get("status", {})}
        return rules.replacement(kind, live, merged)

    def delete(
        self,
        resource: str,
        namespace: str | None,
        name: str,
        *,
        propagation: str = "Background",
        dry_run: bool = False,
    ) -> Object:
        """Delete and collect what it owns (propagation Background | Foreground | Orphan).

        With finalizers the object stays, with metadata.deletionTimestamp, until an update removes them;
        its dependents go when it goes (Background) or before (Foreground). Returns the object as it was
        left, or as it last was. 404 when there's none."""
        kind = self.registry.kind(resource)
        live = self.live(resource, namespace, name)
        if live is None:
            raise kind.not_found(name)
        return self._deletion.start(kind, live, propagation, dry_run)

    def emit_event(
        self, involved: Object, reason: str, message: str, type: str = "Normal", *, component: str
    ) -> None:
        """An Event about `involved`; the same reason and message again raise its count instead."""
        events.emit(self, involved, reason, message, type, component)

    # Following

    def subscribe(self, *resources: str) -> Subscription:
        """Every later change of these resources."""
        subscription = Subscription()
        self._subscriptions[subscription] = frozenset(resources)
        return subscription

    def unsubscribe(self, subscription: Subscription) -> None:
        """No more changes; those already queued stay."""
        self._subscriptions.pop(subscription, None)

    # The rules that writes share

    def _require_namespace(self, kind: Kind, obj: Object, *, only_existing: bool = False) -> None:
        if not kind.namespaced:
            return
        metadata = obj.setdefault("metadata", {})
        name = metadata.setdefault("namespace", "default")
        namespace = self.live("namespaces", None, name)
        if namespace is None:
            raise self.registry.kind("namespaces").not_found(name)
        if namespace["metadata"].get("deletionTimestamp") and not only_existing:
            why = f"unable to create new content in namespace {name} because it is being terminated"
            cause = {
                "reason": "NamespaceTerminating",
                "message": f"namespace {name} is being terminated",
                "field": "metadata.namespace",
            }
            raise errors.forbidden(kind.plural, kind.group, metadata.get("name", ""), why, [cause])

    def _current(self, kind: Kind, obj: Object) -> Object:
        metadata = obj.get("metadata", {})
        namespace = metadata.get("namespace", "default") if kind.namespaced else None
        live = self.live(kind.plural, namespace, metadata.get("name", ""))
        if live is None:
            raise kind.not_found(metadata.get("name", ""))
        self._check_version(kind, live, obj)
        return live

    @staticmethod
    def _check_version(kind: Kind, live: Object, obj: Object) -> None:
        metadata, mine = obj["metadata"], live["metadata"]
        if metadata.get("resourceVersion", mine["resourceVersion"]) != mine["resourceVersion"]:
            raise errors.modified(kind.plural, kind.group, mine["name"])
        if metadata.get("uid", mine["uid"]) != mine["uid"]:
            why = f"Precondition failed: UID in precondition: {metadata['uid']}, "
            why += f"UID in object meta: {mine['uid']}"
            raise errors.conflict(kind.plural, kind.group, mine["name"], why)

    def _changed(
        self, kind: Kind, before: Object, after: Object, owner: Owner
    ) -> tuple[fieldset.FieldSet, fieldset.FieldSet]:
        written, removed = fieldset.compare(before, after, kind.schema)
        scope = _scope(kind, owner)
        return fieldset.owned(written, status=scope), fieldset.owned(removed, status=scope)

    def _own(self, kind: Kind, before: Object, after: Object, owner: Owner) -> None:
        ownership = Ownership.of(before)
        written, removed = self._changed(kind, before, after, owner)
        mine = (ownership.paths(owner) - removed) | written
        # A write that only removes leaves the time as it was (recorded).
        now = rules.now() if written else None
        ownership.settle(owner, mine, lost=written | removed, version=kind.api_version, now=now)
        after["metadata"]["managedFields"] = ownership.encoded()

    def _commit(self, kind: Kind, live: Object | None, fresh: Object, dry_run: bool) -> Object:
        if live is not None:
            fresh["metadata"]["resourceVersion"] = live["metadata"]["resourceVersion"]
        if dry_run or fresh == live:
            return copied(fresh)
        if fresh["metadata"].get("deletionTimestamp") and not fresh["metadata"].get("finalizers"):
            self.remove(kind, fresh)
            return copied(fresh)
        self.write(kind, live, fresh)
        if fresh["metadata"].get("ownerReferences") or fresh["metadata"].get("deletionTimestamp"):
            self._deletion.advance()
        stored = self._objects[kind.plural].get(_key(fresh))
        return copied(stored if stored is not None else fresh)

    def write(self, kind: Kind, live: Object | None, fresh: Object) -> None:
        """Store an object under the next revision and tell everybody; no rule is applied."""
        revision = self.history.next()
        fresh["metadata"]["resourceVersion"] = str(revision)
        self._objects[kind.plural][_key(fresh)] = fresh
        self._files.save(kind.plural, fresh)
        self._tell(Change(revision, kind.plural, "MODIFIED" if live else "ADDED", fresh, live))

    def remove(self, kind: Kind, obj: Object) -> None:
        """Take an object out of the store, tell everybody, and collect what it owned.

        The last event shows the object as it was stored, its last finalizer included (recorded)."""
        before = self._objects[kind.plural].pop(_key(obj))
        revision = self.history.next()
        gone = copied(before)
        gone["metadata"]["resourceVersion"] = str(revision)
        self._files.remove(kind.plural, gone, revision)
        self._tell(Change(revision, kind.plural, "DELETED", gone, before))
        self._deletion.advance()

    def _tell(self, change: Change) -> None:
        self.history.record(change)
        for subscription, resources in self._subscriptions.items():
            if change.resource in resources:
                subscription.put_nowait(shown(change))

    def wipe(self) -> None:
        """Delete the persisted state."""
        self._files.wipe()


def _key(obj: Object) -> Key:
    metadata = obj["metadata"]
    return metadata.get("namespace", ""), metadata["name"]


def _nothing(kind: Kind) -> Object:
    """What a new object is compared with: Go's built-in types always have a spec and a status."""
    return {"metadata": {}, **copied(kind.empty)}


def _scope(kind: Kind, owner: Owner) -> bool | None:
    """Which part of the object a write through this (sub)resource can own."""
    return (owner.subresource == "status") if kind.has_status else None
