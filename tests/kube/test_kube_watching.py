"""Following one object: order, ticks, a forgotten place, broken connections, the deadline."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from raynest_pipeline.errors import Verdict
from raynest_pipeline.kube.client import RAY_SERVICE, KubeClient
from raynest_pipeline.kube.errors import KubeError
from raynest_pipeline.waiting import Deadline

PATH = "GET /apis/ray.io/v1/namespaces/rec/rayservices"


class TurnedClock:
    """A clock that advances a second per look, so that a deadline passes without waiting."""

    def __init__(self, step: float = 0.0) -> None:
        self.time = 0.0
        self.step = step
        self.slept: list[float] = []

    def monotonic(self) -> float:
        self.time += self.step
        return self.time

    def now(self) -> datetime:
        return datetime.fromtimestamp(self.time, UTC)

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.time += seconds


def item(version: int, **status: Any) -> dict[str, Any]:
    return {"metadata": {"name": "s1", "namespace": "rec", "resourceVersion": str(version)}, "status": status}


def change(kind: str, version: int, **status: Any) -> dict[str, Any]:
    return {"type": kind, "object": item(version, **status)}


class Script:
    """Answers lists and watches of one collection from two lists, the last one of each for ever."""

    def __init__(self, tools: Any, lists: list[Any], watches: list[Any]) -> None:
        self.tools, self.lists, self.watches = tools, lists, watches
        self.watched_from: list[str] = []
        self.timeouts: list[int] = []

    def __call__(self, asked: Any) -> Any:
        if "watch" not in asked.query:
            answer = self.lists.pop(0) if len(self.lists) > 1 else self.lists[0]
            return answer if isinstance(answer, self.tools.Answer) else self.tools.Answer(body=answer)
        assert asked.query["fieldSelector"] == "metadata.name=s1"
        self.watched_from.append(asked.query["resourceVersion"])
        self.timeouts.append(int(asked.query["timeoutSeconds"]))
        answer = self.watches.pop(0) if len(self.watches) > 1 else self.watches[0]
        return answer if isinstance(answer, self.tools.Answer) else self.tools.Answer(lines=answer)


def listing(version: int, *items: Any) -> dict[str, Any]:
    return {"kind": "RayServiceList", "metadata": {"resourceVersion": str(version)}, "items": list(items)}


@pytest.fixture
def client(config_file: Path) -> Any:
    with KubeClient.from_file(config_file) as made:
        yield made


def take(client: KubeClient, count: int, clock: TurnedClock | None = None, seconds: float = 60) -> list[Any]:
    deadline = Deadline.after(seconds, clock or TurnedClock())
    found = []
    for event in client.watch(RAY_SERVICE, "rec", "s1", deadline=deadline):
        found.append(event)
        if len(found) == count:
            break
    return found


def seen(events: list[Any]) -> list[tuple[str, str]]:
    return [
        (event.type, event.object["metadata"]["resourceVersion"] if event.object else "-") for event in events
    ]


def test_the_state_now_comes_first_then_the_changes(client: KubeClient, api: Any, tools: Any) -> None:
    script = Script(tools, [listing(10, item(7))], [[change("MODIFIED", 11), change("DELETED", 12)], []])
    api.on(PATH, script)
    events = take(client, 4)
    assert seen(events) == [("ADDED", "7"), ("MODIFIED", "11"), ("DELETED", "12"), ("TICK", "-")]
    assert events[0].object["kind"] == "RayService"
    assert script.watched_from == ["10", "12"]


def test_an_object_that_does_not_exist_is_a_tick_without_one(
    client: KubeClient, api: Any, tools: Any
) -> None:
    api.on(PATH, Script(tools, [listing(10)], [[change("ADDED", 11)]]))
    assert seen(take(client, 2)) == [("TICK", "-"), ("ADDED", "11")]


def test_a_quiet_watch_ticks_with_the_last_known_object(client: KubeClient, api: Any, tools: Any) -> None:
    script = Script(tools, [listing(10, item(7))], [[]])
    api.on(PATH, script)
    assert seen(take(client, 3)) == [("ADDED", "7"), ("TICK", "7"), ("TICK", "7")]
    assert script.timeouts[0] == 10


def test_bookmarks_move_the_place_and_nothing_else(client: KubeClient, api: Any, tools: Any) -> None:
    bookmark = {"type": "BOOKMARK", "object": {"kind": "RayService", "metadata": {"resourceVersion": "99"}}}
    script = Script(tools, [listing(10, item(7))], [[], [bookmark], [change("MODIFIED", 100)]])
    api.on(PATH, script)
    assert seen(take(client, 3)) == [("ADDED", "7"), ("TICK", "7"), ("MODIFIED", "100")]
    assert script.watched_from == ["10", "10", "99"]


@pytest.mark.parametrize(
    ("relisted", "expected"),
    [
        (listing(300, item(250)), ("MODIFIED", "250")),
        (listing(300, item(7)), ("MODIFIED", "301")),
        (listing(300), ("DELETED", "7")),
    ],
    ids=["changed meanwhile", "unchanged", "deleted meanwhile"],
)
def test_a_forgotten_place_makes_it_list_again(
    client: KubeClient, api: Any, tools: Any, relisted: Any, expected: tuple[str, str]
) -> None:
    expired = tools.data("api_errors")["watch_too_old_rv"]["body"]
    assert expired["object"]["code"] == 410
    script = Script(tools, [listing(10, item(7)), relisted], [[expired], [change("MODIFIED", 301)]])
    api.on(PATH, script)
    assert seen(take(client, 2)) == [("ADDED", "7"), expected]
    assert script.watched_from[0] == "10"


def test_a_410_as_http_status_does_the_same(client: KubeClient, api: Any, tools: Any) -> None:
    gone = tools.Answer(410, tools.status_object(410, "Expired", "too old resource version"))
    api.on(PATH, Script(tools, [listing(10, item(7)), listing(20, item(15))], [gone, []]))
    assert seen(take(client, 2)) == [("ADDED", "7"), ("MODIFIED", "15")]


def test_a_connection_cut_in_the_middle_is_resumed_where_it_was(
    client: KubeClient, api: Any, tools: Any
) -> None:
    cut = tools.Answer(lines=[change("MODIFIED", 11)], cut=True)
    script = Script(tools, [listing(10, item(7))], [cut, [change("MODIFIED", 12)]])
    api.on(PATH, script)
    clock = TurnedClock()
    assert seen(take(client, 3, clock)) == [("ADDED", "7"), ("MODIFIED", "11"), ("MODIFIED", "12")]
    assert script.watched_from == ["10", "11"]
    assert len(clock.slept) == 1


def test_failing_lists_are_tried_again_with_growing_pauses(client: KubeClient, api: Any, tools: Any) -> None:
    busy = tools.Answer(503, tools.status_object(503, "ServiceUnavailable", "starting"))
    api.on(PATH, Script(tools, [busy, busy, busy, listing(10, item(7))], [[]]))
    clock = TurnedClock()
    events = take(client, 4, clock)
    assert seen(events) == [("TICK", "-"), ("TICK", "-"), ("TICK", "-"), ("ADDED", "7")]
    assert len(clock.slept) == 3
    assert clock.slept[2] > clock.slept[0]


def test_lost_permission_ends_it(client: KubeClient, api: Any, tools: Any) -> None:
    recorded = tools.data("api_errors")["forbidden_403_list"]
    api.on(PATH, Script(tools, [tools.Answer(403, recorded["body"])], [[]]))
    with pytest.raises(KubeError) as caught:
        take(client, 1)
    assert caught.value.verdict is Verdict.PERMANENT


def test_it_ends_at_the_deadline(client: KubeClient, api: Any, tools: Any) -> None:
    script = Script(tools, [listing(10, item(7))], [[]])
    api.on(PATH, script)
    events = take(client, 1000, TurnedClock(step=1.0), seconds=12)
    assert events[0].type == "ADDED"
    assert 1 <= len(script.timeouts) <= 6
    assert max(script.timeouts) <= 10 and min(script.timeouts) >= 1


def test_with_no_time_left_it_still_looks_once(client: KubeClient, api: Any, tools: Any) -> None:
    api.on(PATH, Script(tools, [listing(10, item(7))], [[]]))
    assert seen(take(client, 1000, TurnedClock(step=0.1), seconds=0))[0] == ("ADDED", "7")


def test_an_unreachable_server_ends_at_the_deadline_too(client: KubeClient, api: Any, tools: Any) -> None:
    busy = tools.Answer(503, tools.status_object(503, "ServiceUnavailable", "starting"))
    api.on(PATH, Script(tools, [busy], [[]]))
    clock = TurnedClock()
    events = take(client, 1000, clock, seconds=20)
    assert {event.type for event in events} == {"TICK"}
    assert clock.time <= 21


def test_the_recorded_timeline_arrives_complete_and_in_order(
    client: KubeClient, api: Any, tools: Any
) -> None:
    timeline = tools.data("watch_timeline")
    lines = []
    for version, recorded in enumerate(timeline, 100):
        status = recorded["status"]
        obj = item(version, **status) if status else item(version)
        lines.append({"type": recorded["type"], "object": obj})
    api.on(PATH, Script(tools, [listing(10)], [lines, []]))
    changes = [recorded["type"] for recorded in timeline if recorded["type"] != "BOOKMARK"]
    events = take(client, len(changes) + 2)
    assert [event.type for event in events] == ["TICK", *changes, "TICK"]
    assert changes[0] == "ADDED" and changes[-1] == "DELETED"
