"""Watches: where they start, what they see, when they end."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from raynest_pipeline.sandbox.kube import watching
from raynest_pipeline.sandbox.kube.history import Change, History

Object = dict[str, Any]

MAPS = "/api/v1/namespaces/default/configmaps"


def config_map(name: str, **labels: str) -> Object:
    return {"metadata": {"name": name, "namespace": "default", "labels": labels}, "data": {}}


class Lines:
    """The events of one watch, read as they come."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    async def next(self) -> tuple[str, Object] | None:
        line = await asyncio.wait_for(self.answer.content.readline(), 10)
        if not line:
            return None
        event = json.loads(line)
        return event["type"], event["object"]

    async def names(self, count: int) -> list[tuple[str, str]]:
        found = []
        for _ in range(count):
            event = await self.next()
            assert event is not None
            found.append((event[0], event[1]["metadata"]["name"]))
        return found


@asynccontextmanager
async def watching_at(bench: Any, path: str, **headers: str) -> AsyncIterator[Lines]:
    async with bench.session.get(path, headers=headers) as answer:
        assert answer.status == 200
        yield Lines(answer)


def test_without_a_version_it_begins_with_what_there_is(serving: Callable[..., Any]) -> None:
    async def run() -> None:
        async with serving() as bench:
            bench.store.create("configmaps", config_map("a"), manager="t")
            async with watching_at(bench, f"{MAPS}?watch=1") as lines:
                assert await lines.names(1) == [("ADDED", "a")]
                bench.store.create("configmaps", config_map("b"), manager="t")
                bench.store.delete("configmaps", "default", "a")
                assert await lines.names(2) == [("ADDED", "b"), ("DELETED", "a")]

    asyncio.run(run())


def test_from_a_version_it_brings_what_came_after(serving: Callable[..., Any]) -> None:
    async def run() -> None:
        async with serving() as bench:
            bench.store.create("configmaps", config_map("a"), manager="t")
            _, listed = await bench.call("GET", MAPS)
            version = listed["metadata"]["resourceVersion"]
            bench.store.create("configmaps", config_map("b"), manager="t")
            bench.store.update("configmaps", config_map("a") | {"data": {"k": "v"}}, manager="t")
            async with watching_at(bench, f"{MAPS}?watch=1&resourceVersion={version}") as lines:
                assert await lines.names(2) == [("ADDED", "b"), ("MODIFIED", "a")]

    asyncio.run(run())


def test_versions_that_were_compacted_are_expired(serving: Callable[..., Any]) -> None:
    async def run() -> None:
        async with serving() as bench:
            version = bench.store.history.revision
            bench.store.create("configmaps", config_map("a"), manager="t")
            bench.store.history.compact()
            async with watching_at(bench, f"{MAPS}?watch=1&resourceVersion={version}") as lines:
                event = await lines.next()
                assert event is not None
                assert (event[0], event[1]["code"], event[1]["reason"]) == ("ERROR", 410, "Expired")
                assert await lines.next() is None

    asyncio.run(run())


def test_a_selector_shows_what_enters_and_leaves_it(serving: Callable[..., Any]) -> None:
    async def run() -> None:
        async with serving() as bench:
            bench.store.create("configmaps", config_map("a"), manager="t")
            version = bench.store.history.revision
            path = f"{MAPS}?watch=1&resourceVersion={version}&labelSelector=on%3Dyes"
            async with watching_at(bench, path) as lines:
                for labels in ({"on": "yes"}, {"on": "yes", "more": "1"}, {"on": "no"}):
                    bench.store.update("configmaps", config_map("a", **labels), manager="t")
                assert await lines.names(3) == [("ADDED", "a"), ("MODIFIED", "a"), ("DELETED", "a")]

    asyncio.run(run())


def test_one_object_in_one_namespace_can_be_watched(serving: Callable[..., Any]) -> None:
    async def run() -> None:
        async with serving() as bench:
            path = f"{MAPS}?watch=true&fieldSelector=metadata.name%3Db"
            async with watching_at(bench, path) as lines:
                bench.store.create("configmaps", config_map("a"), manager="t")
                elsewhere = {"metadata": {"name": "b", "namespace": "kube-system"}}
                bench.store.create("configmaps", elsewhere, manager="t")
                bench.store.create("configmaps", config_map("b"), manager="t")
                event = await lines.next()
                assert event is not None
                assert event[1]["metadata"]["namespace"] == "default"

    asyncio.run(run())


def test_it_ends_when_its_time_is_up(serving: Callable[..., Any]) -> None:
    async def run() -> None:
        path = f"{MAPS}?watch=1&timeoutSeconds=1"
        async with serving() as bench, watching_at(bench, path) as lines:
            assert await lines.next() is None

    asyncio.run(run())


def test_bookmarks_come_early_and_at_the_end(
    serving: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "FIRST_BOOKMARK_S", 0.1)

    async def run() -> None:
        async with serving() as bench:
            path = f"{MAPS}?watch=1&timeoutSeconds=1&allowWatchBookmarks=true"
            async with watching_at(bench, path) as lines:
                for _ in range(2):
                    event = await lines.next()
                    assert event is not None
                    kind, obj = event
                    assert (kind, obj["kind"]) == ("BOOKMARK", "ConfigMap")
                    assert obj["metadata"]["resourceVersion"] == str(bench.store.history.revision)
                    assert "data" not in obj
                assert await lines.next() is None

    asyncio.run(run())


def test_a_streamed_list_ends_in_a_marked_bookmark(serving: Callable[..., Any]) -> None:
    async def run() -> None:
        async with serving() as bench:
            bench.store.create("configmaps", config_map("a"), manager="t")
            path = f"{MAPS}?watch=1&sendInitialEvents=true&allowWatchBookmarks=true"
            async with watching_at(bench, path + "&resourceVersionMatch=NotOlderThan") as lines:
                assert await lines.names(1) == [("ADDED", "a")]
                event = await lines.next()
                assert event is not None
                assert event[1]["metadata"]["annotations"] == {"k8s.io/initial-events-end": "true"}

    asyncio.run(run())


def test_a_table_can_be_watched(serving: Callable[..., Any]) -> None:
    async def run() -> None:
        async with serving() as bench:
            bench.store.create("configmaps", config_map("a"), manager="t")
            accept = "application/json;as=Table;v=v1;g=meta.k8s.io"
            async with watching_at(bench, f"{MAPS}?watch=1", Accept=accept) as lines:
                event = await lines.next()
                assert event is not None
                assert (event[0], event[1]["kind"]) == ("ADDED", "Table")
                assert event[1]["rows"][0]["cells"][0] == "a"

    asyncio.run(run())


def test_it_ends_when_the_server_closes(serving: Callable[..., Any]) -> None:
    async def run() -> None:
        async with serving() as bench, watching_at(bench, f"{MAPS}?watch=1") as lines:
            await asyncio.wait_for(bench.api.close(), 5)
            assert await lines.next() is None

    asyncio.run(run())


def test_a_client_that_leaves_is_forgotten(serving: Callable[..., Any]) -> None:
    async def run() -> None:
        async with serving() as bench:
            followers = bench.store.history._followers
            async with watching_at(bench, f"{MAPS}?watch=1"):
                bench.store.create("configmaps", config_map("a"), manager="t")
                assert len(followers) == 1
            deadline = asyncio.get_running_loop().time() + 5
            while followers and asyncio.get_running_loop().time() < deadline:
                await asyncio.sleep(0)
            assert not followers

    asyncio.run(run())


@pytest.mark.parametrize("query", ["resourceVersion=x", "timeoutSeconds=x", "fieldSelector=spec.x%3D1"])
def test_a_wrong_option_is_400(serving: Callable[..., Any], query: str) -> None:
    async def run() -> None:
        async with serving() as bench:
            status, body = await bench.call("GET", f"{MAPS}?watch=1&{query}")
            assert (status, body["reason"]) == (400, "BadRequest")

    asyncio.run(run())


def test_a_full_history_forgets_the_oldest() -> None:
    history = History(10, length=2)
    for number in range(3):
        obj = {"metadata": {"name": str(number)}}
        history.record(Change(history.next(), "pods", "ADDED", obj, None))
    assert [change.revision for change in history.since(11, "pods")] == [12, 13]
    assert history.since(12, "services") == []
    with pytest.raises(Exception, match=r"too old resource version: 10 \(11\)"):
        history.since(10, "pods")
