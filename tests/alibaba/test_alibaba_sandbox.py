"""All of it against the sandbox's cloud API, through the real SDKs, from both sides of Compute Nest."""

import os
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from raynest_pipeline.alibaba.cloud import Cloud
from raynest_pipeline.alibaba.computenest import STATUS_DEPLOYED, STATUS_FAILED, ServiceInstance
from raynest_pipeline.alibaba.errors import CloudError
from raynest_pipeline.alibaba.password import generate_password
from raynest_pipeline.chain.parameters import address_tags, owner_tags, template_parameters
from raynest_pipeline.errors import AccessError, Verdict, exit_code_of
from raynest_pipeline.sandbox import control
from raynest_pipeline.settings import Alibaba, Settings
from raynest_pipeline.waiting import Backoff, Deadline, Done, SystemClock, Waiting, wait_for

DOUBLES = Path(__file__).parents[1] / "sandbox" / "cloud"
TYPE = "ecs.gn7i-c8g1.2xlarge"
REGION = "ap-southeast-1"
SOON = Backoff(first=0.05, most=0.2)


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Iterator[control.SandboxInfo]:
    """A sandbox whose Kubernetes side answers nothing: this room ends at the kubeconfig."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(
            "PYTHONPATH", os.pathsep.join(filter(None, (str(DOUBLES), os.environ.get("PYTHONPATH"))))
        )
        for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy"):
            patch.delenv(name, raising=False)
        state_dir = tmp_path_factory.mktemp("sandbox")
        options = control.SandboxOptions(kube_factory="sandbox_kube_double:KubeDouble", time_scale=0.1)
        try:
            yield control.start(state_dir, options=options)
        finally:
            control.stop(state_dir)


@pytest.fixture(autouse=True)
def _no_faults(sandbox: control.SandboxInfo) -> Iterator[None]:
    yield
    control.clear_faults(sandbox.state_dir)


@pytest.fixture(params=["user", "supplier"])
def cloud(request: pytest.FixtureRequest, sandbox: control.SandboxInfo) -> Cloud:
    return cloud_of(sandbox, sdk=request.param)


def cloud_of(sandbox: control.SandboxInfo, **alibaba: Any) -> Cloud:
    return Cloud.from_settings(
        Settings(alibaba=settings_of(sandbox, **alibaba)), SystemClock(), patience_seconds=10
    )


def settings_of(sandbox: control.SandboxInfo, **alibaba: Any) -> Alibaba:
    return Alibaba(
        **{
            "endpoint": sandbox.cloud_endpoint,
            "access_key_id": sandbox.access_key_id,
            "access_key_secret": SecretStr(sandbox.access_key_secret),
            **alibaba,
        }
    )


def parameters(sandbox: control.SandboxInfo) -> dict[str, Any]:
    return template_parameters(settings_of(sandbox), zone_id=f"{REGION}a", password=generate_password())


def create(cloud: Cloud, sandbox: control.SandboxInfo, name: str) -> str:
    service = cloud.instances.resolve_service()
    return cloud.instances.create_instance(
        name, service, parameters(sandbox), owner_tags(name), f"create-{name}"
    )


def until(probe: Callable[[], Any], what: str) -> Any:
    """Wait until `probe` gives something."""

    def ask() -> Done[Any] | Waiting:
        found = probe()
        return Done(found) if found else Waiting(f"{what}: {found!r}")

    return wait_for(ask, what=what, deadline=Deadline.after(30, SystemClock()), backoff=SOON)


def settled(cloud: Cloud, instance_id: str, status: str = STATUS_DEPLOYED) -> ServiceInstance:
    def probe() -> ServiceInstance | None:
        found = cloud.instances.get_instance(instance_id)
        assert found is not None
        return found if found.status == status else None

    found: ServiceInstance = until(probe, status)
    return found


def delete(cloud: Cloud, instance_id: str) -> None:
    cloud.instances.delete_instance(instance_id, f"delete-{instance_id}")
    until(lambda: cloud.instances.get_instance(instance_id) is None, "deletion")


def task_done(cloud: Cloud, task_id: str) -> None:
    until(lambda: cloud.clusters.task(task_id).state == "success", "task")


class TestPreflight:
    def test_who_and_what(self, cloud: Cloud, sandbox: control.SandboxInfo) -> None:
        caller = cloud.identity.caller()
        assert caller.identity_type == "RAMUser"
        attached = cloud.policies.attached_policies(caller)
        assert attached is not None
        assert {"AliyunCSFullAccess", "AliyunComputeNestUserFullAccess"} <= attached
        service = cloud.instances.resolve_service()
        assert service.template_names == ("容器集群版",)
        assert service.allowed_regions == (REGION,)
        assert cloud.instances.missing_permissions(service, parameters(sandbox)) == []
        provisions = {item.name: item for item in cloud.instances.provisions(service, parameters(sandbox))}
        assert provisions["CS"].enabled is True

    def test_machines_and_prices(self, cloud: Cloud, sandbox: control.SandboxInfo) -> None:
        machine = cloud.machines.instance_type(TYPE)
        assert machine is not None
        assert (machine.vcpus, machine.memory_gib, machine.gpus) == (8, 30.0, 1)
        assert cloud.machines.instance_type("ecs.nothing") is None
        zones = cloud.machines.zones_in_stock(REGION, TYPE, "cloud_essd")
        assert zones[0].available
        floor = cloud.machines.hourly_price(TYPE, count=1, disk_category="cloud_essd", disk_gib=1024)
        whole = cloud.instances.estimate_cost(cloud.instances.resolve_service(), parameters(sandbox))
        assert floor is not None
        assert whole is not None
        assert whole.amount > floor.amount > Decimal(15)
        assert whole.currency == floor.currency == "CNY"
        assert whole.lower_bound, "traffic has no hourly price"

    def test_what_only_the_user_side_has(self, sandbox: control.SandboxInfo) -> None:
        user, supplier = (cloud_of(sandbox, sdk=sdk).instances for sdk in ("user", "supplier"))
        service = user.resolve_service()
        assert user.check_deployable(service, Decimal(19)) == []
        assert supplier.check_deployable(service, Decimal(19)) is None

    def test_a_dry_run_buys_nothing(self, cloud: Cloud, sandbox: control.SandboxInfo) -> None:
        service = cloud.instances.resolve_service()
        before = control.purchases(sandbox.state_dir)
        made = cloud.instances.create_instance("dry", service, parameters(sandbox), {}, "dry-1", dry_run=True)
        assert made == ""
        assert control.purchases(sandbox.state_dir) == before
        assert cloud.instances.find_instances("dry") == []

    def test_a_service_of_another_name_is_gone(self, sandbox: control.SandboxInfo) -> None:
        with pytest.raises(CloudError) as caught:
            cloud_of(sandbox, service_name="nothing").instances.resolve_service()
        assert caught.value.verdict is Verdict.GONE


def test_the_whole_life(cloud: Cloud, sandbox: control.SandboxInfo) -> None:
    name = f"life-{cloud.instances.product}"  # type: ignore[attr-defined]
    instance_id = create(cloud, sandbox, name)
    assert create_again(cloud, sandbox, name, instance_id) == instance_id
    assert [item.id for item in cloud.instances.find_instances(name)] == [instance_id]
    assert cloud.instances.find_instances(name[:-1]) == [], "a part of the name is not the name"

    instance = settled(cloud, instance_id)
    assert instance.tags == owner_tags(name)
    assert "LoginPassword" not in instance.parameters
    assert instance.deploy_region == REGION
    assert instance.outputs["Instruction"].startswith("http")
    assert cloud.instances.instance_logs(instance_id)

    cluster_id = cluster_by_all_ways(cloud, instance)
    cluster = cloud.clusters.get_cluster(cluster_id)
    assert cluster is not None
    assert (cluster.name, cluster.state, cluster.api_server_endpoint) == (name, "running", "")
    assert cloud.network.egress(cluster.vpc_id, cluster.vswitch_ids).ok is True
    assert "ALIYUN::VPC::NatGateway" in {item.type for item in cloud.clusters.resources(cluster_id)}

    eip_id = with_public_address(cloud, cluster_id, name)
    kubeconfig = cloud.clusters.kubeconfig(cluster_id, 60)
    assert "127.0.0.1" in kubeconfig.text.get_secret_value()
    assert kubeconfig.expires_at is not None

    task_done(cloud, cloud.clusters.unbind_eip(cluster_id))
    cloud.network.release_eip(eip_id)
    until(lambda: cloud.network.get_eip(eip_id) is None, "release")
    cloud.network.release_eip(eip_id)
    delete(cloud, instance_id)
    cloud.instances.delete_instance(instance_id, "delete-again")
    assert cloud.clusters.get_cluster(cluster_id) is None
    assert cloud.clusters.find_clusters(name) == []
    assert cloud.clusters.resources(cluster_id) == []
    assert cloud.network.find_eips(owner_tags(name)) == []
    assert [item for item in control.ledger(sandbox.state_dir) if item["name"] == name] == []


def create_again(cloud: Cloud, sandbox: control.SandboxInfo, name: str, instance_id: str) -> str:
    """The same token with the same parameters is the same instance; with others it is refused."""
    found = cloud.instances.get_instance(instance_id)
    assert found is not None
    with pytest.raises(CloudError) as caught:
        create(cloud, sandbox, name)
    assert caught.value.verdict is Verdict.PERMANENT, "the password is another one"
    return found.id


def cluster_by_all_ways(cloud: Cloud, instance: ServiceInstance) -> str:
    """Facts 2.4: by resources, by stack, by name."""
    by_resource = {
        item.id
        for item in cloud.instances.resources(instance.id)
        if (item.product_code, item.type) == ("cs", "cluster")
    }
    by_stack = {
        item.physical_id
        for stack in instance.stack_ids
        for item in cloud.stacks.stack_resources(stack, REGION)
        if item.type == "ALIYUN::CS::ManagedKubernetesCluster"
    }
    by_name = {item.id for item in cloud.clusters.find_clusters(instance.name)}
    assert by_resource == by_stack == by_name
    (cluster_id,) = by_name
    return cluster_id


def with_public_address(cloud: Cloud, cluster_id: str, name: str) -> str:
    ask: dict[str, Any] = {"region": REGION, "bandwidth_mbps": 100, "name": name, "tags": address_tags(name)}
    eip = cloud.network.allocate_eip(**ask, client_token=f"eip-{name}")
    assert cloud.network.allocate_eip(**ask, client_token=f"eip-{name}").id == eip.id
    assert [item.id for item in cloud.network.find_eips(address_tags(name))] == [eip.id]
    task_done(cloud, cloud.clusters.bind_eip(cluster_id, eip.id, f"bind-{name}"))
    until(lambda: (found := cloud.network.get_eip(eip.id)) and found.status == "InUse", "binding")
    cluster = cloud.clusters.get_cluster(cluster_id)
    assert cluster is not None
    assert cluster.api_server_endpoint.startswith("https://")
    return eip.id


class TestFaults:
    def test_throttling_is_ridden_out(self, cloud: Cloud, sandbox: control.SandboxInfo) -> None:
        control.set_fault(sandbox.state_dir, "throttling", count=2, retry_after_ms=20)
        assert cloud.identity.caller().identity_type == "RAMUser"

    def test_so_is_a_gateway_that_is_down(self, cloud: Cloud, sandbox: control.SandboxInfo) -> None:
        control.set_fault(sandbox.state_dir, "unavailable", count=1)
        assert cloud.network.find_eips({"raynest": "nobody"}) == []

    def test_a_lost_answer_buys_nothing_twice(self, cloud: Cloud, sandbox: control.SandboxInfo) -> None:
        name = f"lost-{cloud.instances.product}"  # type: ignore[attr-defined]
        control.set_fault(sandbox.state_dir, "lost_response", count=1, action="CreateServiceInstance")
        control.set_fault(sandbox.state_dir, "lost_response", count=1)
        instance_id = create(cloud, sandbox, name)
        assert [item.id for item in cloud.instances.find_instances(name)] == [instance_id]
        settled(cloud, instance_id)
        delete(cloud, instance_id)

    def test_a_lost_address_is_bought_once(self, cloud: Cloud, sandbox: control.SandboxInfo) -> None:
        name = f"lost-eip-{cloud.instances.product}"  # type: ignore[attr-defined]
        control.set_fault(sandbox.state_dir, "lost_response", count=1, action="AllocateEipAddress")
        eip = cloud.network.allocate_eip(
            region=REGION, bandwidth_mbps=5, name=name, tags=owner_tags(name), client_token=name
        )
        calls = [call for call in control.calls(sandbox.state_dir) if call["action"] == "AllocateEipAddress"]
        assert [bool(call["fault"]) for call in calls[-2:]] == [True, False]
        assert [item.id for item in cloud.network.find_eips(owner_tags(name))] == [eip.id]
        cloud.network.release_eip(eip.id)
        until(lambda: cloud.network.get_eip(eip.id) is None, "release")

    def test_a_missing_permission_is_named(self, cloud: Cloud, sandbox: control.SandboxInfo) -> None:
        control.set_fault(sandbox.state_dir, "denied", action="vpc:AllocateEipAddress")
        with pytest.raises(CloudError) as caught:
            cloud.network.allocate_eip(region=REGION, bandwidth_mbps=5, name="n", tags={}, client_token="t")
        assert caught.value.denied_action == "vpc:AllocateEipAddress"
        assert "remove that Deny" in caught.value.fix, "granting it again would not help"
        assert exit_code_of(caught.value) == AccessError.exit_code

    def test_denied_readers_know_nothing(self, cloud: Cloud, sandbox: control.SandboxInfo) -> None:
        service, caller = cloud.instances.resolve_service(), cloud.identity.caller()
        control.set_fault(sandbox.state_dir, "denied", action="computenest*:GenerateServicePolicy")
        assert cloud.instances.missing_permissions(service, parameters(sandbox)) is None
        control.set_fault(sandbox.state_dir, "denied", action="ram:*")
        assert cloud.policies.attached_policies(caller) is None
        control.set_fault(sandbox.state_dir, "denied", action="vpc:Describe*")
        assert cloud.network.egress("vpc-1", []).ok is None

    def test_a_sold_out_zone(self, cloud: Cloud, sandbox: control.SandboxInfo) -> None:
        control.set_fault(sandbox.state_dir, "sold_out", instance_type=TYPE)
        zones = cloud.machines.zones_in_stock(REGION, TYPE, "cloud_essd")
        assert zones
        assert not any(zone.available for zone in zones)

    def test_a_failed_deployment_says_why(self, cloud: Cloud, sandbox: control.SandboxInfo) -> None:
        name = f"fail-{cloud.instances.product}"  # type: ignore[attr-defined]
        control.set_fault(
            sandbox.state_dir, "failed_deployment", reason="The vCPU quota is used up.", count=1
        )
        instance_id = create(cloud, sandbox, name)
        found = settled(cloud, instance_id, STATUS_FAILED)
        assert "vCPU quota" in found.status_detail
        assert "vCPU quota" in cloud.instances.instance_logs(instance_id)[0]
        delete(cloud, instance_id)


def test_a_wrong_secret_is_bad_credentials(sandbox: control.SandboxInfo) -> None:
    with pytest.raises(CloudError) as caught:
        cloud_of(sandbox, access_key_secret=SecretStr("wrong")).identity.caller()
    assert (caught.value.code, caught.value.access) == ("SignatureDoesNotMatch", True)
    assert exit_code_of(caught.value) == AccessError.exit_code


def test_an_unknown_key_is_bad_credentials(sandbox: control.SandboxInfo) -> None:
    with pytest.raises(CloudError) as caught:
        cloud_of(sandbox, access_key_id="LTAIother").identity.caller()
    assert (caught.value.code, caught.value.access) == ("InvalidAccessKeyId.NotFound", True)


def test_a_proxy_of_the_environment_is_kept_out(
    sandbox: control.SandboxInfo, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    cloud = cloud_of(sandbox)
    assert cloud.identity.caller().identity_type == "RAMUser"
    assert cloud.clusters.find_clusters("nothing") == []
