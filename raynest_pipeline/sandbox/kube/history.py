"""The recent changes of a store, in order of revision, and those who follow them."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import Any

from raynest_pipeline.sandbox.kube.errors import expired_version
from raynest_pipeline.sandbox.kube.values import copied

Object = dict[str, Any]


@dataclass(frozen=True)
class Change:
    """ADDED, MODIFIED or DELETED at a revision. `before` lets a selector notice what left its view."""

    revision: int
    resource: str
    type: str
    obj: Object
    before: Object | None


class History:
    """The last `length` changes; older revisions are compacted, as etcd's are."""

    def __init__(self, revision: int, *, length: int = 1000) -> None:
        self.revision = revision
        self._compacted = revision
        self._changes: deque[Change] = deque(maxlen=length)
        self._followers: dict[asyncio.Queue[Change], frozenset[str]] = {}

    def next(self) -> int:
        """Use up the next revision."""
        self.revision += 1
        return self.revision

    def record(self, change: Change) -> None:
        """Remember a change and hand it to everybody who follows its resource."""
        if len(self._changes) == self._changes.maxlen:
            self._compacted = self._changes[0].revision
        self._changes.append(change)
        for queue, resources in self._followers.items():
            if change.resource in resources:
                queue.put_nowait(change)

    def since(self, revision: int, resource: str) -> list[Change]:
        """The later changes of a resource; 410 Expired when they may be incomplete."""
        if revision < self._compacted:
            raise expired_version(revision, self._compacted)
        return [
            change for change in self._changes if change.resource == resource and change.revision > revision
        ]

    def follow(self, *resources: str) -> asyncio.Queue[Change]:
        """A queue of the later changes of these resources."""
        queue: asyncio.Queue[Change] = asyncio.Queue()
        self._followers[queue] = frozenset(resources)
        return queue

    def unfollow(self, queue: asyncio.Queue[Change]) -> None:
        """Put no more changes into this queue."""
        self._followers.pop(queue, None)

    def compact(self) -> None:
        """Forget everything up to now: every earlier resourceVersion is expired."""
        self._changes.clear()
        self._compacted = self.revision


def shown(change: Change) -> tuple[str, Object]:
    """What a subscriber gets: it may change the object freely."""
    return change.type, copied(change.obj)
