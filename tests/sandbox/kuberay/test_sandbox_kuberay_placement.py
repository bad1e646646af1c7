"""Quantities and the scheduler's arithmetic."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raynest_pipeline.sandbox.kuberay import (
    quantities,
    scheduling,
)

GI = 1024**3


# --- quantities


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2", 2),
        ("500m", Decimal("0.5")),
        ("8Gi", 8 * GI),
        ("12G", 12 * 10**9),
        ("1e3", 1000),
        (4, 4),
        ("0.1", Decimal("0.1")),
    ],
)
def test_quantity_is_exact(text: str | int, value: int | Decimal) -> None:
    assert quantities.parse(text) == value


@pytest.mark.parametrize("text", ["", "8Gb", "two", "1.2.3"])
def test_no_quantity(text: str) -> None:
    with pytest.raises(ValueError, match="not a resource quantity"):
        quantities.parse(text)


@given(st.integers(min_value=0, max_value=10**6), st.sampled_from(["", "m", "Ki", "Mi", "Gi"]))
def test_shown_quantity_means_the_same(number: int, unit: str) -> None:
    amount = quantities.parse(f"{number}{unit}")
    assert quantities.parse(quantities.show(amount)) == amount
    assert quantities.parse(quantities.show(amount, binary=True)) == amount


def test_limit_counts_as_request() -> None:
    spec = {
        "containers": [
            {"resources": {"limits": {"cpu": "4", "memory": "16Gi"}, "requests": {"cpu": "3"}}},
            {"resources": {"requests": {"cpu": "500m"}}},
        ],
        "initContainers": [{"resources": {"requests": {"cpu": "200m", "memory": "20Gi"}}}],
    }
    assert quantities.pod_requests(spec) == {"cpu": Decimal("3.5"), "memory": 20 * GI}


# --- placement


def _node(name: str = "n1", **over: Any) -> dict[str, Any]:
    allocatable = {"cpu": "8", "memory": "30Gi", "nvidia.com/gpu": "1", "pods": "110", **over}
    return {"metadata": {"name": name}, "spec": {}, "status": {"allocatable": allocatable}}


def _asking(**requests: str) -> dict[str, Any]:
    wanted = {key.replace("gpu", "nvidia.com/gpu"): value for key, value in requests.items()}
    return {"containers": [{"name": "c", "resources": {"requests": wanted}}]}


def _placed(node: str, phase: str = "Running", **requests: str) -> dict[str, Any]:
    return {"spec": {**_asking(**requests), "nodeName": node}, "status": {"phase": phase}}


def test_room_is_what_the_others_leave() -> None:
    others = [_placed("n1", cpu="6", gpu="1"), _placed("n1", "Failed", cpu="2"), _placed("n2", cpu="8")]
    view = scheduling.view(_node(), others)
    assert view.free["cpu"] == 2
    assert view.free["nvidia.com/gpu"] == 0
    assert view.pods_left == 109
    assert scheduling.place(_asking(cpu="2"), [view]) == ("n1", "")


def test_every_lack_is_named() -> None:
    views = [scheduling.view(_node("n1", cpu="1"), []), scheduling.view(_node("n2"), [], without_gpu=True)]
    node, message = scheduling.place(_asking(cpu="2", gpu="1"), views)
    assert node is None
    assert message == (
        "0/2 nodes are available: 1 Insufficient cpu, 1 Insufficient nvidia.com/gpu. preemption: "
        "0/2 nodes are available: 2 No preemption victims found for incoming pod."
    )


def test_taints_need_tolerations() -> None:
    node = _node()
    node["spec"]["taints"] = [{"key": "nvidia.com/gpu", "value": "true", "effect": "NoSchedule"}]
    view = scheduling.view(node, [])
    spec = _asking(cpu="1")
    assert scheduling.place(spec, [view]) == (
        None,
        "0/1 nodes are available: 1 node(s) had untolerated taint {nvidia.com/gpu: true}. preemption: "
        "0/1 nodes are available: 1 Preemption is not helpful for scheduling.",
    )
    spec["tolerations"] = [{"key": "ray.io/node-type", "operator": "Equal", "value": "worker"}]
    assert scheduling.place(spec, [view])[0] is None
    spec["tolerations"].append({"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"})
    assert scheduling.place(spec, [view])[0] == "n1"


@pytest.mark.parametrize(
    ("toleration", "covers"),
    [
        ({"operator": "Exists"}, True),
        ({"key": "a", "operator": "Exists"}, True),
        ({"key": "a", "value": "1"}, True),
        ({"key": "a", "value": "2"}, False),
        ({"key": "b", "operator": "Exists"}, False),
        ({"key": "a", "operator": "Exists", "effect": "NoExecute"}, False),
        ({}, False),
    ],
)
def test_toleration(toleration: dict[str, str], covers: bool) -> None:
    assert scheduling.tolerated({"key": "a", "value": "1", "effect": "NoSchedule"}, [toleration]) is covers


def test_selector_and_cordon() -> None:
    node = _node()
    node["metadata"]["labels"] = {"zone": "a"}
    view = scheduling.view(node, [])
    assert scheduling.place(_asking(cpu="1") | {"nodeSelector": {"zone": "a"}}, [view])[0] == "n1"
    assert "affinity/selector" in scheduling.place(_asking() | {"nodeSelector": {"zone": "b"}}, [view])[1]
    node["spec"]["unschedulable"] = True
    assert "unschedulable" in scheduling.place(_asking(), [scheduling.view(node, [])])[1]
    assert scheduling.place(_asking(), []) == (None, "no nodes available to schedule pods")


@given(st.lists(st.integers(min_value=1, max_value=4), max_size=8))
def test_nodes_are_never_overbooked(sizes: list[int]) -> None:
    nodes = [_node("n1"), _node("n2")]
    placed: list[dict[str, Any]] = []
    for size in sizes:
        views = [scheduling.view(node, placed) for node in nodes]
        chosen, _ = scheduling.place(_asking(cpu=str(size)), views)
        if chosen is not None:
            placed.append(_placed(chosen, cpu=str(size)))
    for name in ("n1", "n2"):
        used = sum(
            quantities.pod_requests(pod["spec"])["cpu"] for pod in placed if pod["spec"]["nodeName"] == name
        )
        assert used <= 8
