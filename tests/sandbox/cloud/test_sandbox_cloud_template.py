"""The template's parameters: published defaults are traps that work, everything else is refused by name."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raynest_pipeline.sandbox.cloud import template
from raynest_pipeline.sandbox.cloud.errors import CloudError

GOOD: dict[str, Any] = {
    "RegionId": "ap-southeast-1",
    "CsOptions": "NewAck",
    "ZoneId": "ap-southeast-1a",
    "WorkerInstanceType": "ecs.gn7i-c8g1.2xlarge",
}


def refusal(**changes: Any) -> str:
    given = {key: value for key, value in {**GOOD, **changes}.items() if value is not None}
    with pytest.raises(CloudError) as caught:
        template.complete(given)
    assert (caught.value.status, caught.value.code) == (400, "StackValidationFailed")
    return caught.value.message


def test_the_published_defaults_fill_what_is_missing() -> None:
    values = template.complete(GOOD)
    assert values["WorkerInstanceCount"] == 3
    assert values["WorkerSystemDiskSize"] == 120
    assert values["LoginPassword"] == "computenest*12345"
    assert values["ChartValues"] == {}
    assert set(values) == set(template.PARAMETERS)


def test_the_default_is_an_existing_cluster_that_nobody_named() -> None:
    assert "ClusterId" in refusal(CsOptions=None)


def test_an_existing_cluster_needs_only_its_id() -> None:
    values = template.complete({"RegionId": "ap-southeast-1", "CsOptions": "ExistCs", "ClusterId": "c0"})
    assert values["ClusterId"] == "c0"


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"RegionId": None}, "region"),
        ({"RegionId": "cn-hangzhou"}, "cn-hangzhou"),
        ({"ZoneId": None}, "ZoneId"),
        ({"ZoneId": "ap-southeast-1z"}, "ap-southeast-1z"),
        ({"ZoneId": "cn-hangzhou-h"}, "cn-hangzhou-h"),
        ({"WorkerInstanceType": None}, "WorkerInstanceType"),
        ({"WorkerInstanceType": "ecs.gn99.large"}, "ecs.gn99.large"),
        ({"WorkerInstanceCount": 0}, "WorkerInstanceCount"),
        ({"WorkerInstanceCount": 5001}, "WorkerInstanceCount"),
        ({"WorkerInstanceCount": "two"}, "WorkerInstanceCount"),
        ({"WorkerInstanceCount": True}, "WorkerInstanceCount"),
        ({"WorkerSystemDiskSize": 19}, "WorkerSystemDiskSize"),
        ({"WorkerSystemDiskSize": 4096}, "WorkerSystemDiskSize"),
        ({"WorkerSystemDiskCategory": "cloud"}, "WorkerSystemDiskCategory"),
        ({"CsOptions": "NewEks"}, "CsOptions"),
        ({"CsOptions": 1}, "CsOptions"),
        ({"PayType": "Free"}, "PayType"),
        ({"AckNetworkPlugin": "calico"}, "AckNetworkPlugin"),
        ({"VpcOption": "ExistingVPC"}, "VpcId"),
        ({"VpcOption": "ExistingVPC", "VpcId": "vpc-1"}, "VSwitchId"),
        ({"VpcCidrBlock": "not a block"}, "VpcCidrBlock"),
        ({"VpcCidrBlock": "8.8.0.0/16", "VSwitchCidrBlock": "8.8.0.0/24"}, "8.8.0.0/16"),
        ({"VSwitchCidrBlock": "192.169.0.0/24"}, "vSwitch"),
        ({"PodCidr": "192.168.128.0/20"}, "PodCidr"),
        ({"ServiceCidr": "192.168.128.0/20"}, "ServiceCidr"),
        ({"ServiceCidr": "172.16.0.0/12"}, "ServiceCidr"),
        ({"ChartValues": "{"}, "ChartValues"),
        ({"ChartValues": "[]"}, "ChartValues"),
        ({"ChartValues": 3}, "ChartValues"),
        ({"Colour": "red"}, "Colour"),
        ({"CsOptions": "ExistCs", "ClusterId": "C-1"}, "ClusterId"),
    ],
)
def test_a_wrong_parameter_is_refused_by_name(changes: dict[str, Any], named: str) -> None:
    assert named in refusal(**changes)


@pytest.mark.parametrize("password", ["Ab1*567", "a" * 31, "abcdefgh", "ABCDefgh", "Abc defg1", "Passwörd1*"])
def test_a_password_outside_the_rule_is_refused_without_repeating_it(password: str) -> None:
    message = refusal(LoginPassword=password)
    assert "LoginPassword" in message
    assert password not in message


@given(
    st.text("abcdefgh", min_size=3, max_size=10),
    st.text("ABCDEFGH", min_size=3, max_size=10),
    st.text("0123456789", min_size=2, max_size=5)
    | st.text("()`~!@#$%^&*_-+=|{}[]:;<>,.?/", min_size=2, max_size=5),
)
def test_a_password_of_three_classes_is_accepted(lower: str, upper: str, third: str) -> None:
    values = template.complete({**GOOD, "LoginPassword": lower + upper + third})
    assert values["LoginPassword"] == lower + upper + third


def test_numbers_and_json_may_come_as_text() -> None:
    values = template.complete({**GOOD, "WorkerInstanceCount": "2", "ChartValues": '{"a": 1}'})
    assert values["WorkerInstanceCount"] == 2
    assert values["ChartValues"] == {"a": 1}


def test_terway_has_no_pod_block_to_overlap() -> None:
    template.complete({**GOOD, "AckNetworkPlugin": "terway-eniip", "PodCidr": "192.168.128.0/20"})


def test_the_password_is_masked_afterwards() -> None:
    masked = template.masked(template.complete({**GOOD, "LoginPassword": "Sandbox+12"}))
    assert masked["LoginPassword"] == template.MASK
    assert masked["ZoneId"] == "ap-southeast-1a"
