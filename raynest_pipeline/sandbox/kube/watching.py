"""GET …?watch=1: the stream of changes of one resource."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from typing import Any

from aiohttp import web

from raynest_pipeline.sandbox.kube import selectors, tables
from raynest_pipeline.sandbox.kube.access import Target
from raynest_pipeline.sandbox.kube.errors import ApiError, bad_request
from raynest_pipeline.sandbox.kube.history import Change
from raynest_pipeline.sandbox.kube.kinds import Kind
from raynest_pipeline.sandbox.kube.responses import HEADERS, encode
from raynest_pipeline.sandbox.kube.store import Store

Object = dict[str, Any]

# Measured: the first bookmark comes within about a second, then one a minute, and one before the end.
FIRST_BOOKMARK_S = 1.0
BOOKMARK_S = 60.0


class Watch:
    """One client's watch: which objects it sees, and in what form."""

    def __init__(self, store: Store, kind: Kind, target: Target, request: web.Request) -> None:
        query = request.query
        self._store = store
        self._kind = kind
        self._namespace = target.namespace or None
        self._labels = query.get("labelSelector", "")
        self._fields = query.get("fieldSelector", "")
        if target.name:
            self._fields = f"metadata.name={target.name}"
        self._matches = [selectors.labels(self._labels), selectors.fields(self._fields, kind.fields)]
        self._as_table = "as=Table" in request.headers.get("Accept", "")
        self._include = query.get("includeObject", "Metadata")
        self.bookmarks = query.get("allowWatchBookmarks", "") in ("1", "true")
        self.initial = query.get("sendInitialEvents", "") == "true"
        self.version = query.get("resourceVersion", "")
        try:
            seconds = float(query.get("timeoutSeconds") or 0)
            self.start = int(self.version or 0)
        except ValueError as error:
            raise bad_request(f"invalid watch option: {error}") from error
        # Without a limit the server picks one between 30 and 60 minutes, so that clients spread out.
        self.seconds = seconds or random.uniform(1800, 3600)

    def _sees(self, obj: Object | None) -> bool:
        if obj is None or (self._namespace and obj["metadata"].get("namespace") != self._namespace):
            return False
        return all(matches(obj) for matches in self._matches)

    def existing(self) -> Iterator[bytes]:
        """ADDED for everything there is: a watch that starts at no particular revision."""
        for obj in self._store.list(
            self._kind.plural, self._namespace, labels=self._labels, fields=self._fields
        ):
            yield self._line("ADDED", obj)
        if self.initial:
            yield self.bookmark({"k8s.io/initial-events-end": "true"})

    def past(self) -> Iterator[bytes]:
        """What has changed since the client's resourceVersion; 410 Expired if that is too old."""
        for change in self._store.history.since(self.start, self._kind.plural):
            yield from self.line_of(change)

    def line_of(self, change: Change) -> Iterator[bytes]:
        """A change as this client sees it: entering its selection is ADDED, leaving it DELETED."""
        after = self._sees(change.obj)
        if change.type == "DELETED":
            before = self._sees(change.before) or after
            if before:
                yield self._line("DELETED", change.obj)
            return
        before = self._sees(change.before)
        if after:
            yield self._line("MODIFIED" if before else "ADDED", change.obj)
        elif before:
            yield self._line("DELETED", change.obj)

    def _line(self, kind: str, obj: Object) -> bytes:
        shown = obj
        if self._as_table:
            version = obj["metadata"]["resourceVersion"]
            shown = tables.table(self._kind, [obj], version, include=self._include)
        return encode({"type": kind, "object": shown})

    def bookmark(self, annotations: dict[str, str] | None = None) -> bytes:
        """An object with nothing but the revision up to which the client has seen everything."""
        metadata: Object = {"resourceVersion": str(self._store.history.revision), "creationTimestamp": None}
        if annotations:
            metadata["annotations"] = annotations
        obj = {"kind": self._kind.kind, "apiVersion": self._kind.api_version, "metadata": metadata}
        return encode({"type": "BOOKMARK", "object": obj})


async def stream(
    store: Store, kind: Kind, target: Target, request: web.Request, closing: asyncio.Event
) -> web.StreamResponse:
    """Answer a watch until its time is up, the client goes, or the server closes."""
    watch = Watch(store, kind, target, request)
    response = web.StreamResponse(headers=HEADERS)
    response.content_type = "application/json"
    response.enable_chunked_encoding()
    await response.prepare(request)
    # Follow before reading the past, with no await between them: nothing can fall in the gap.
    queue = store.history.follow(kind.plural)
    try:
        from_now = watch.initial or watch.start == 0
        try:
            lines = list(watch.existing() if from_now else watch.past())
        except ApiError as error:
            await response.write(encode({"type": "ERROR", "object": error.status()}))
            return response
        if lines:
            await response.write(b"".join(lines))
        await _follow(watch, queue, response, closing)
        await response.write_eof()
    finally:
        store.history.unfollow(queue)
    return response


async def _follow(
    watch: Watch, queue: asyncio.Queue[Change], response: web.StreamResponse, closing: asyncio.Event
) -> None:
    loop = asyncio.get_running_loop()
    end = loop.time() + watch.seconds
    bookmark = loop.time() + FIRST_BOOKMARK_S
    closed: asyncio.Future[Any] = asyncio.ensure_future(closing.wait())
    try:
        while not closed.done() and loop.time() < end:
            wait = max(0.0, min(end, bookmark if watch.bookmarks else end) - loop.time())
            change = await _next(queue, closed, wait)
            if change is not None:
                await response.write(b"".join(watch.line_of(change)))
            elif watch.bookmarks and loop.time() >= bookmark:
                await response.write(watch.bookmark())
                bookmark = loop.time() + BOOKMARK_S
        if watch.bookmarks and not closed.done():
            await response.write(watch.bookmark())
    finally:
        closed.cancel()


async def _next(queue: asyncio.Queue[Change], closed: asyncio.Future[Any], seconds: float) -> Change | None:
    """The next change, or None when the time is up or the server closes."""
    getting: asyncio.Future[Any] = asyncio.ensure_future(queue.get())
    try:
        await asyncio.wait({getting, closed}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        return getting.result() if getting.done() else None
    finally:
        getting.cancel()
