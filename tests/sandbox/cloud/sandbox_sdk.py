"""The official SDKs, pointed at a sandbox: one client per product, and waits for what takes time."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

# Before the import: the credentials package reads the environment once.
os.environ.setdefault("ALIBABA_CLOUD_ECS_METADATA_DISABLED", "true")

import pytest
from Tea.exceptions import TeaException

T = TypeVar("T")

REGION = "ap-southeast-1"
PASSWORD = "Sand.box+12 &=~*"


@contextmanager
def no_proxy() -> Iterator[None]:
    """Without the proxies of the environment, which the SDKs would use even for loopback."""
    names = [name for name in os.environ if name.lower() in ("http_proxy", "https_proxy", "all_proxy")]
    saved = {name: os.environ.pop(name) for name in names}
    try:
        yield
    finally:
        os.environ.update(saved)


def config(endpoint: str, key_id: str, secret: str) -> Any:
    from alibabacloud_tea_openapi.models import Config

    return Config(
        access_key_id=key_id,
        access_key_secret=secret,
        region_id=REGION,
        endpoint=endpoint,
        protocol="HTTP",
    )


class Sdk:
    """Clients that sign with one access key; `nest` is the user side, `supplier` the provider's."""

    def __init__(self, endpoint: str, key_id: str, secret: str) -> None:
        from alibabacloud_computenest20210601.client import Client as Nest
        from alibabacloud_computenestsupplier20210521.client import Client as Supplier
        from alibabacloud_cs20151215.client import Client as Cs
        from alibabacloud_ecs20140526.client import Client as Ecs
        from alibabacloud_ram20150501.client import Client as Ram
        from alibabacloud_ros20190910.client import Client as Ros
        from alibabacloud_sts20150401.client import Client as Sts
        from alibabacloud_vpc20160428.client import Client as Vpc

        def made(client: Callable[[Any], Any]) -> Any:
            return client(config(endpoint, key_id, secret))

        self.nest, self.supplier, self.cs, self.vpc = made(Nest), made(Supplier), made(Cs), made(Vpc)
        self.ecs, self.ram, self.ros, self.sts = made(Ecs), made(Ram), made(Ros), made(Sts)

    def parameters(self, **changes: Any) -> dict[str, Any]:
        """Template parameters that deploy, with changes; a None takes one away."""
        given = {
            "RegionId": REGION,
            "CsOptions": "NewAck",
            "ZoneId": "ap-southeast-1a",
            "WorkerInstanceType": "ecs.gn7i-c8g1.2xlarge",
            "WorkerInstanceCount": 1,
            "WorkerSystemDiskSize": 1024,
            "LoginPassword": PASSWORD.replace(" ", "_"),
            "ChartValues": {},
            **changes,
        }
        return {key: value for key, value in given.items() if value is not None}

    def create(self, name: str, token: str = "", *, dry_run: bool = False, **changes: Any) -> str:
        """Order the service; its instance id."""
        from alibabacloud_computenest20210601 import models

        request = models.CreateServiceInstanceRequest(
            region_id=REGION,
            service_id=self.service_id(),
            name=name,
            template_name="容器集群版",
            client_token=token or None,
            dry_run=dry_run,
            parameters=self.parameters(**changes),
            tag=[models.CreateServiceInstanceRequestTag(key="raynest", value=name)],
        )
        answer = self.nest.create_service_instance(request).body
        assert answer.status == "Created"
        return str(answer.service_instance_id)

    def service_id(self) -> str:
        from alibabacloud_computenest20210601 import models

        request = models.GetServiceRequest(region_id=REGION, service_name="Ray社区版")
        return str(self.nest.get_service(request).body.service_id)

    def instance(self, instance_id: str) -> Any:
        from alibabacloud_computenest20210601 import models

        request = models.GetServiceInstanceRequest(region_id=REGION, service_instance_id=instance_id)
        return self.nest.get_service_instance(request).body

    def wait_status(self, instance_id: str, *wanted: str) -> Any:
        """The instance once it has one of these statuses."""

        def probe() -> Any:
            found = self.instance(instance_id)
            return found if found.status in wanted else None

        return wait(probe, f"{instance_id} {wanted}")

    def delete(self, *instance_ids: str) -> None:
        from alibabacloud_computenest20210601 import models

        self.nest.delete_service_instances(
            models.DeleteServiceInstancesRequest(region_id=REGION, service_instance_id=list(instance_ids))
        )

    def wait_gone(self, instance_id: str) -> None:
        def probe() -> bool | None:
            try:
                self.instance(instance_id)
            except TeaException as error:
                assert error.code == "ServiceInstanceNotFound"
                return True
            return None

        wait(probe, f"{instance_id} gone")

    def arns(self, instance_id: str, page: int = 100) -> list[str]:
        """The ARNs of an instance's resources, over all pages."""
        from alibabacloud_computenest20210601 import models

        token, found = None, []
        while True:
            request = models.ListServiceInstanceResourcesRequest(
                region_id=REGION,
                service_instance_id=instance_id,
                service_instance_resource_type="AliyunResource",
                max_results=page,
                next_token=token,
            )
            body = self.nest.list_service_instance_resources(request).body
            found += [each.resource_arn for each in body.resources]
            token = body.next_token
            if not token:
                return found

    def cluster_id(self, instance_id: str) -> str:
        (arn,) = [each for each in self.arns(instance_id) if ":cluster/" in each]
        return arn.rpartition("/")[2]

    def allocate(self, token: str = "", **changes: Any) -> str:
        from alibabacloud_vpc20160428 import models

        tag = models.AllocateEipAddressRequestTag(key="raynest", value="eip")
        given = {"bandwidth": "100", "internet_charge_type": "PayByTraffic", "name": "raynest", **changes}
        request = models.AllocateEipAddressRequest(
            region_id=REGION, client_token=token or None, tag=[tag], **given
        )
        return str(self.vpc.allocate_eip_address(request).body.allocation_id)

    def eips(self, **filters: Any) -> dict[str, Any]:
        """The addresses that match, by allocation id."""
        from alibabacloud_vpc20160428 import models

        request = models.DescribeEipAddressesRequest(region_id=REGION, page_size=100, **filters)
        found = self.vpc.describe_eip_addresses(request).body.eip_addresses.eip_address
        return {each.allocation_id: each for each in found}

    def release(self, allocation_id: str) -> None:
        from alibabacloud_vpc20160428 import models

        request = models.ReleaseEipAddressRequest(region_id=REGION, allocation_id=allocation_id)
        self.vpc.release_eip_address(request)

    def wait_released(self, allocation_id: str) -> None:
        wait(lambda: allocation_id not in self.eips() or None, f"{allocation_id} released")

    def modify(self, cluster_id: str, **changes: Any) -> str:
        """ModifyCluster; the id of its task."""
        from alibabacloud_cs20151215 import models

        return str(self.cs.modify_cluster(cluster_id, models.ModifyClusterRequest(**changes)).body.task_id)

    def bind(self, cluster_id: str, allocation_id: str) -> None:
        task = self.modify(cluster_id, api_server_eip=True, api_server_eip_id=allocation_id)
        assert self.wait_task(task) == "success"

    def unbind(self, cluster_id: str) -> None:
        assert self.wait_task(self.modify(cluster_id, api_server_eip=False)) == "success"

    def wait_task(self, task_id: str) -> str:
        def probe() -> str | None:
            state = self.cs.describe_task_info(task_id).body.state
            return None if state == "running" else str(state)

        return wait(probe, f"task {task_id}")

    def endpoint(self, cluster_id: str) -> str:
        """The public API server's address, or ""."""
        url = json.loads(self.cs.describe_cluster_detail(cluster_id).body.master_url)
        return str(url.get("api_server_endpoint", ""))

    def kubeconfig(self, cluster_id: str, **given: Any) -> Any:
        from alibabacloud_cs20151215 import models

        request = models.DescribeClusterUserKubeconfigRequest(**given)
        return self.cs.describe_cluster_user_kubeconfig(cluster_id, request).body


def wait(probe: Callable[[], T | None], what: str, timeout: float = 20) -> T:
    """The first true result of a probe; fails the test at the deadline."""
    deadline = time.monotonic() + timeout
    while True:
        result = probe()
        if result:
            return result
        if time.monotonic() > deadline:
            pytest.fail(f"{what}: not within {timeout} s")
        time.sleep(0.02)


def refused(call: Callable[[], Any]) -> Any:
    """The SDK's exception for a call that must fail."""
    with pytest.raises(TeaException) as caught:
        call()
    return caught.value
