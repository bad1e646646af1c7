"""The registry of faults: names and parameters are checked, counts run out, listeners hear of it."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raynest_pipeline.sandbox.faults import FAULTS, Faults, UnknownFaultError


def test_the_faults_that_were_promised_exist() -> None:
    assert set(FAULTS) == {
        "throttling",
        "unavailable",
        "lost_response",
        "denied",
        "sold_out",
        "failed_deployment",
        "slow_task",
        "lost_endpoint",
        "expired_token",
        "deploy_failed",
        "dead_worker",
        "dead_head",
        "missing_gpu",
        "image_pull_error",
        "unhealthy_app",
    }


@pytest.mark.parametrize("name", sorted(FAULTS))
def test_every_fault_can_be_set_with_its_defaults_and_cleared(name: str) -> None:
    faults = Faults(clock=lambda: 5.0)
    record = faults.set(name)
    assert record == {key: each.default for key, each in FAULTS[name].parameters.items()} | {"since": 5.0}
    assert faults.active(name) == record
    faults.clear(name)
    assert faults.active(name) is None
    assert faults.consume(name) is None


def test_an_unknown_fault_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(UnknownFaultError, match="'nonsense'.*dead_head.*throttling"):
        Faults().set("nonsense")
    with pytest.raises(UnknownFaultError):
        Faults().clear("nonsense")


def test_an_unknown_parameter_is_refused_with_the_parameters_there_are() -> None:
    faults = Faults()
    with pytest.raises(UnknownFaultError, match="no parameter 'zones'.*zone, instance_type"):
        faults.set("sold_out", zones="a")
    with pytest.raises(UnknownFaultError, match="it has: none"):
        faults.set("missing_gpu", count=1)
    assert faults.dump() == {}


@pytest.mark.parametrize("value", ["many", "1.5", True, [1]])
def test_a_parameter_of_the_wrong_type_is_refused(value: object) -> None:
    with pytest.raises(UnknownFaultError, match="count=.*not a valid int"):
        Faults().set("throttling", count=value)


def test_text_from_a_command_line_is_converted() -> None:
    faults = Faults()
    assert faults.set("throttling", count="7")["count"] == 7
    assert faults.set("slow_task", seconds="2.5")["seconds"] == 2.5
    assert faults.set("throttling", count="none")["count"] is None


def test_setting_again_replaces_the_parameters() -> None:
    faults = Faults()
    faults.set("sold_out", zone="a", instance_type="t")
    assert faults.set("sold_out", zone="b")["instance_type"] is None


@given(st.integers(min_value=1, max_value=20))
def test_a_count_runs_out_after_exactly_so_many_uses(count: int) -> None:
    faults = Faults()
    faults.set("throttling", count=count)
    used = [faults.consume("throttling") for _ in range(count + 3)]
    assert [each is not None for each in used] == [True] * count + [False] * 3
    assert [each["count"] for each in used if each] == list(range(count, 0, -1))


def test_without_a_count_a_fault_lasts_until_it_is_cleared() -> None:
    faults = Faults()
    faults.set("throttling", count=None)
    assert all(faults.consume("throttling") for _ in range(50))
    faults.clear()
    assert faults.consume("throttling") is None


def test_a_fault_that_lasts_some_seconds_is_over_by_itself() -> None:
    now = [100.0]
    faults = Faults(clock=lambda: now[0])
    faults.set("image_pull_error", seconds=10)
    now[0] = 109.9
    assert faults.active("image_pull_error") is not None
    now[0] = 110.0
    assert faults.active("image_pull_error") is None
    assert faults.dump() == {}


def test_the_seconds_of_slow_task_are_not_its_end() -> None:
    now = [100.0]
    faults = Faults(clock=lambda: now[0])
    faults.set("slow_task", seconds=1)
    now[0] = 1000.0
    assert faults.active("slow_task") is not None


def test_listeners_hear_of_every_change() -> None:
    faults = Faults()
    heard: list[str] = []
    faults.on_change(heard.append)
    faults.set("throttling", count=2)
    faults.set("denied", action="cs:*")
    faults.consume("throttling")
    faults.consume("throttling")
    faults.consume("throttling")
    faults.consume("denied")
    faults.clear()
    faults.clear("throttling")
    assert heard == ["throttling", "denied", "throttling", "throttling", "denied"]


def test_a_listener_may_ask_and_set_faults_itself() -> None:
    faults = Faults()

    def follow(name: str) -> None:
        if name == "dead_head" and faults.active("dead_head"):
            faults.clear("dead_head")
            faults.set("unhealthy_app")

    faults.on_change(follow)
    faults.set("dead_head")
    assert list(faults.dump()) == ["unhealthy_app"]


def test_what_was_saved_comes_back() -> None:
    first = Faults(clock=lambda: 7.0)
    first.set("sold_out", zone="ap-southeast-1a")
    first.set("throttling", count=2)
    first.consume("throttling")
    second = Faults(json.loads(json.dumps(first.dump())))
    assert second.dump() == first.dump()
    assert second.consume("throttling") is not None
    assert second.active("throttling") is None


def test_a_record_that_was_given_out_is_a_copy() -> None:
    faults = Faults()
    faults.set("denied", action="cs:*")["action"] = "other"
    record = faults.active("denied")
    assert record is not None
    record["action"] = "another"
    assert faults.active("denied") == {**record, "action": "cs:*"}


def test_every_fault_says_what_it_does_and_who_honours_it() -> None:
    for spec in FAULTS.values():
        assert spec.does and spec.honoured_by in ("cloud", "kube", "kuberay")
        for parameter in spec.parameters.values():
            assert parameter.meaning
            assert parameter.default is None or isinstance(parameter.default, parameter.kind)
