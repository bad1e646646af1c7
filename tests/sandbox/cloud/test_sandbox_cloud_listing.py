"""Finding instances and what they consist of: fuzzy names, filters, regions, pages."""

from __future__ import annotations

from typing import Any

import pytest
from sandbox_account import REGION, Account, Refused, order


def refusal(call: Any) -> Refused:
    with pytest.raises(Refused) as caught:
        call()
    return caught.value


def test_a_name_search_is_fuzzy_for_one_name_and_exact_for_several(account: Account) -> None:
    for name in ("ray", "ray-one", "my-ray"):
        account.create(name)
        account.pass_time(0.1)

    def names(*values: str, **more: str) -> list[str]:
        given = {f"Filter.1.Value.{number}": value for number, value in enumerate(values, start=1)}
        given = given | {"RegionId": REGION, "Filter.1.Name": "ServiceInstanceName"} | more
        found = account.ask("nest", "ListServiceInstances", **given)["ServiceInstances"]
        return [each["Name"] for each in found]

    assert names("ray") == ["my-ray", "ray-one", "ray"]
    assert names("ray", "ray") == ["ray"]
    assert names("none") == []
    assert names("ray", **{"Tag.1.Key": "raynest", "Tag.1.Value": "ray-one"}) == ["ray-one"]


@pytest.mark.parametrize(
    ("name", "value", "found"),
    [
        ("Status", "Deployed", True),
        ("Status", "Deploying", False),
        ("ServiceInstanceId", "si-0", False),
        ("DeployType", "ros", True),
        ("Name", "*Ray*", True),
        ("Name", "Spark", False),
    ],
)
def test_other_filters(account: Account, name: str, value: str, found: bool) -> None:
    account.deploy()
    given = {"RegionId": REGION, "Filter.1.Name": name, "Filter.1.Value.1": value}
    body = account.ask("nest", "ListServiceInstances", **given)
    assert (body["TotalCount"] == 1) is found


def test_an_unknown_filter_is_refused(account: Account) -> None:
    account.create()
    given = {"RegionId": REGION, "Filter.1.Name": "Colour", "Filter.1.Value.1": "red"}
    assert (
        refusal(lambda: account.ask("nest", "ListServiceInstances", **given)).code
        == "InvalidParameter.Filter"
    )


def test_an_instance_of_the_other_control_plane_is_not_seen_here(account: Account) -> None:
    given = order(account, "ray-one") | {"RegionId": "cn-hangzhou"}
    instance_id = account.ask("nest", "CreateServiceInstance", **given)["ServiceInstanceId"]
    assert account.ask("nest", "ListServiceInstances", RegionId=REGION)["TotalCount"] == 0
    assert refusal(lambda: account.instance(instance_id)).code == "ServiceInstanceNotFound"
    there = {"RegionId": "cn-hangzhou", "ServiceInstanceId": instance_id}
    assert account.ask("nest", "GetServiceInstance", **there)["Name"] == "ray-one"


def test_a_deleted_instance_is_not_listed(account: Account) -> None:
    instance_id, _ = account.deploy()
    account.delete(instance_id)
    account.pass_time(1.1)
    assert account.ask("nest", "ListServiceInstances", RegionId=REGION)["TotalCount"] == 0


def resources(account: Account, instance_id: str, size: int) -> list[list[str]]:
    """The ARNs, page by page."""
    pages, token = [], ""
    while True:
        given = {"RegionId": REGION, "ServiceInstanceId": instance_id, "MaxResults": size, "NextToken": token}
        body = account.ask("nest", "ListServiceInstanceResources", **given)
        pages.append([each["ResourceARN"] for each in body["Resources"]])
        token = body["NextToken"]
        if not token:
            return pages


@pytest.mark.parametrize("size", [1, 4, 100])
def test_the_cluster_is_one_of_two_container_service_resources_and_not_on_the_first_page(
    account: Account, size: int
) -> None:
    instance_id, cluster_id = account.deploy()
    pages = resources(account, instance_id, size)
    arns = [arn for page in pages for arn in page]
    assert len(arns) == len(set(arns)) == 10
    assert [arn.split(":", 5)[5].partition("/")[0] for arn in arns if ":cs:" in arn] == [
        "nodepool",
        "cluster",
    ]
    assert not any(cluster_id in arn for arn in pages[0])
    assert any(arn.endswith(f":cluster/{cluster_id}") for arn in arns)


def test_there_are_no_resources_before_the_stack_has_made_any(account: Account) -> None:
    instance_id = account.create()
    assert resources(account, instance_id, 20) == [[]]


def test_a_name_can_be_checked_beforehand(account: Account) -> None:
    account.create("ray-one")

    def check(name: str) -> Any:
        return account.ask("nest", "ValidateServiceInstanceName", ServiceInstanceName=name)

    assert set(check("ray-two")) == {"RequestId"}
    assert refusal(lambda: check("ray-one")).code == "ServiceInstanceNameAlreadyExists"
    assert refusal(lambda: check("ray one")).code == "InvalidParameter.Name"
