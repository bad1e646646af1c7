"""Following one object: list, then watch, again from a fresh list when the server has forgotten our place."""

import contextlib
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from raynest_pipeline.errors import Verdict
from raynest_pipeline.kube.errors import KubeError, guard, json_answer
from raynest_pipeline.kube.kinds import Kind, Object, mapping, mappings, name_of
from raynest_pipeline.waiting import Backoff, Deadline

_GONE_STATUS = 410


@dataclass(frozen=True)
class WatchEvent:
    """A change of the object, or a tick when nothing changed for a while."""

    type: Literal["ADDED", "MODIFIED", "DELETED", "TICK"]
    object: Object | None
    """The object; for a TICK the last known one, or None when it does not exist."""


def follow(
    resource: Any, kind: Kind, namespace: str | None, name: str, *, deadline: Deadline, tick: float
) -> Iterator[WatchEvent]:
    """Yield the object's state now (ADDED, or TICK with None), then each change, until the deadline.

    After `tick` seconds without a change a TICK is yielded, so that the caller can look at other things
    and give up by its own rules. A 410 makes it list again; a broken connection makes it reconnect.

    Raises:
        KubeError: Permanent failures only (credentials, permission).
    """
    place = _Place(resource, kind, namespace, name)
    pauses = Backoff(first=0.5, most=8.0)
    failures = 0
    while not (place.started and deadline.passed):
        quiet = True
        try:
            for event in place.changes(max(1, int(min(tick, deadline.remaining())))):
                quiet, failures = False, 0
                yield event
            failures = 0
        except KubeError as error:
            if error.status == _GONE_STATUS:
                place.version = None
                continue
            if error.verdict not in (Verdict.RETRYABLE, Verdict.UNKNOWN):
                raise
            if deadline.passed:
                return
            deadline.clock.sleep(min(pauses.pause(failures), deadline.remaining()))
            failures += 1
        if quiet:
            yield WatchEvent("TICK", place.known)


@dataclass
class _Place:
    """How far the following has come."""

    resource: Any
    kind: Kind
    namespace: str | None
    name: str
    known: Object | None = None
    version: str | None = None
    """The resourceVersion to watch from; None: list first."""
    started: bool = False

    def changes(self, seconds: int) -> Iterator[WatchEvent]:
        """Changes until `seconds` have passed; what a fresh list shows, where one is due, comes first."""
        if self.version is None:
            now, self.version = _list(self.resource, self.kind, self.namespace, self.name)
            event = _difference(self.known, now, self.started)
            self.known, self.started = now, True
            if event is not None:
                yield event
        stream = _stream(self.resource, self.kind, self.namespace, self.name, self.version, seconds)
        with contextlib.closing(stream):
            for change, obj in stream:
                self.version = str(mapping(obj.get("metadata")).get("resourceVersion") or self.version)
                if change == "BOOKMARK":
                    continue
                self.known = None if change == "DELETED" else obj
                yield WatchEvent(change, obj)


def _difference(known: Object | None, now: Object | None, started: bool) -> WatchEvent | None:
    """What a fresh list means against what was known before it."""
    if not started:
        return WatchEvent("ADDED", now) if now else WatchEvent("TICK", None)
    if now is None:
        return WatchEvent("DELETED", known) if known else None
    if known is None:
        return WatchEvent("ADDED", now)
    same = mapping(known.get("metadata")).get("resourceVersion") == now["metadata"].get("resourceVersion")
    return None if same else WatchEvent("MODIFIED", now)


def _list(resource: Any, kind: Kind, namespace: str | None, name: str) -> tuple[Object | None, str]:
    operation = f"list {kind.kind} {name}"
    with guard(operation):
        answer = resource.get(namespace=namespace, field_selector=f"metadata.name={name}", serialize=False)
    document = json_answer(operation, answer.data)
    items = [item for item in mappings(document.get("items")) if name_of(item) == name]
    found = {"apiVersion": kind.api_version, "kind": kind.kind, **items[0]} if items else None
    return found, str(mapping(document.get("metadata")).get("resourceVersion", ""))


def _stream(
    resource: Any, kind: Kind, namespace: str | None, name: str, version: str, seconds: int
) -> Generator[tuple[Any, Object], None, None]:
    from kubernetes.watch import Watch

    with guard(f"watch {kind.kind} {name}"):
        # Watch itself, not the dynamic client's wrapper: that one fails on a line cut off in the middle.
        stream = Watch().stream(
            resource.get,
            namespace=namespace,
            field_selector=f"metadata.name={name}",
            resource_version=version,
            timeout_seconds=seconds,
            allow_watch_bookmarks=True,
            serialize=False,
        )
        with contextlib.closing(stream):
            for event in stream:
                if event is not None:
                    yield event["type"], event["raw_object"]
