"""Progress of image pulls, one-line summaries of pods, times of events, readable messages."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raynest_pipeline.kube.kinds import event_time, moment
from raynest_pipeline.kube.rayservice.pods import pull_progress, summary
from raynest_pipeline.kube.rayservice.wording import last_line, tail

NOW = datetime(2026, 11, 24, 1, 0, 0, tzinfo=UTC)
IMAGE = "rayproject/ray:2.60.0-py311-gpu"


def pod(name: str, node: str = "") -> dict[str, Any]:
    return {"metadata": {"name": name}, "spec": {"nodeName": node} if node else {}, "status": {}}


def event(about: str, reason: str, seconds_ago: float, message: str = "") -> dict[str, Any]:
    at = (NOW - timedelta(seconds=seconds_ago)).isoformat().replace("+00:00", "Z")
    return {"reason": reason, "message": message, "involvedObject": {"name": about}, "lastTimestamp": at}


def pulling(about: str, seconds_ago: float, image: str = IMAGE) -> dict[str, Any]:
    return event(about, "Pulling", seconds_ago, f'Pulling image "{image}"')


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        ([], ""),
        ([pulling("a", 180)], f"pulling image {IMAGE} on node n1 for 3 min"),
        ([pulling("a", 20)], f"pulling image {IMAGE} on node n1 for 20 s"),
        ([pulling("a", -5)], f"pulling image {IMAGE} on node n1 for 0 s"),
        ([pulling("a", 180), event("a", "Pulled", 10)], ""),
        ([pulling("a", 180), event("a", "Failed", 10)], ""),
        ([event("a", "Failed", 100), pulling("a", 50)], f"pulling image {IMAGE} on node n1 for 50 s"),
        ([event("a", "Pulled", 10), pulling("a", 180)], ""),
        ([pulling("a", 60), pulling("b", 840)], f"pulling image {IMAGE} for 14 min (and 1 more)"),
        ([pulling("not-ours", 60)], ""),
        ([event("a", "Scheduled", 60)], ""),
    ],
)
def test_pull_progress(events: list[dict[str, Any]], expected: str) -> None:
    assert pull_progress(events, [pod("a", "n1"), pod("b")], now=NOW) == expected


def test_the_recorded_pod_in_one_line(tools: Any) -> None:
    recorded = tools.data("objects")["pods_head"]["items"][0]
    assert summary(recorded) == "pod s1-58q7q-head-mf7x4 on node-1: Running (ray-head running)"


def test_a_pod_that_says_nothing() -> None:
    assert summary({}) == "pod  on no node: no phase"


@pytest.mark.parametrize(
    "event",
    [
        {"lastTimestamp": "2026-11-24T01:00:00Z", "firstTimestamp": "2026-11-24T00:00:00Z"},
        {"lastTimestamp": None, "eventTime": "2026-11-24T01:00:00.000000Z"},
        {"eventTime": "2026-11-24T00:00:00Z", "series": {"lastObservedTime": "2026-11-24T01:00:00Z"}},
        {"metadata": {"creationTimestamp": "2026-11-24T01:00:00Z"}},
    ],
)
def test_when_an_event_last_happened(event: dict[str, Any]) -> None:
    assert event_time(event) == NOW


def test_an_event_without_a_time_comes_first() -> None:
    assert event_time({}) < NOW


@given(st.none() | st.integers() | st.text(max_size=30))
def test_a_moment_is_in_time_or_none(value: Any) -> None:
    parsed = moment(value)
    assert parsed is None or parsed.tzinfo is not None


@pytest.mark.parametrize(
    ("message", "line"),
    [
        ("", ""),
        ("\n \n", ""),
        ("one", "one"),
        ("\x1b[36mTraceback\x1b[39m\n  File x\nValueError: no\n\n", "ValueError: no"),
        ("x" * 1000, "x" * 299 + "…"),
    ],
)
def test_last_line(message: str, line: str) -> None:
    assert last_line(message) == line


def test_tail() -> None:
    assert tail("a\n\nb\n\x1b[31mc\x1b[0m\n", 2) == ["b", "c"]
