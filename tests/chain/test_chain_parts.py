"""Template parameters, the road to the endpoint, and where a profile's credentials come from."""

from pathlib import Path
from typing import Any

import pytest
from chain_kube import FakeKube

from raynest_pipeline import sandbox
from raynest_pipeline.chain import endpoint
from raynest_pipeline.chain.endpoint import EndpointFinder
from raynest_pipeline.chain.parameters import address_tags, chart_values, owner_tags, template_parameters
from raynest_pipeline.chain.profile import SANDBOX_DEFAULTS, open_chain, with_sandbox
from raynest_pipeline.errors import InputError, NotReadyError, RefusedError, SettingsError
from raynest_pipeline.settings import Alibaba, Endpoint, Settings

EVERY_PARAMETER = {
    "RegionId",
    "ChartValues",
    "CsOptions",
    "PayType",
    "ZoneId",
    "VpcOption",
    "VpcCidrBlock",
    "VSwitchCidrBlock",
    "LoginPassword",
    "WorkerInstanceType",
    "WorkerInstanceCount",
    "WorkerSystemDiskCategory",
    "WorkerSystemDiskSize",
    "AckNetworkPlugin",
    "PodCidr",
    "ServiceCidr",
}
"""Of the template's NewAck form: its own defaults are traps, so each is set."""
INTRANET = "service.beta.kubernetes.io/alibaba-cloud-loadbalancer-address-type"


def parameters(**alibaba: Any) -> dict[str, Any]:
    return template_parameters(Alibaba(**alibaba), zone_id="z-a", password="pass")


class TestParameters:
    def test_every_one_is_set_explicitly(self) -> None:
        found = parameters()
        assert set(found) == EVERY_PARAMETER
        assert found["CsOptions"] == "NewAck"
        assert found["LoginPassword"] != "computenest*12345"
        assert (found["WorkerInstanceCount"], found["WorkerSystemDiskSize"]) == (1, 1024)
        assert found["VpcOption"] == "NewVPC"

    def test_an_existing_cluster(self) -> None:
        found = parameters(existing_cluster_id="c0123")
        assert set(found) == {"RegionId", "ChartValues", "CsOptions", "ClusterId"}
        assert (found["CsOptions"], found["ClusterId"]) == ("ExistCs", "c0123")

    def test_an_existing_network(self) -> None:
        found = parameters(vpc_id="vpc-1", vswitch_id="vsw-1")
        assert (found["VpcOption"], found["VpcId"], found["VSwitchId"]) == ("ExistingVPC", "vpc-1", "vsw-1")
        assert "VpcCidrBlock" not in found

    def test_a_pod_network_only_where_the_plugin_has_one(self) -> None:
        assert "PodCidr" not in parameters(network_plugin="terway-eniip")

    def test_the_dashboard_is_intranet_unless_a_person_says_otherwise(self) -> None:
        annotations = chart_values(Alibaba())["head"]["headService"]["metadata"]["annotations"]
        assert annotations == {INTRANET: "intranet"}
        assert chart_values(Alibaba(dashboard_load_balancer="internet")) == {}

    def test_more_chart_values_are_merged_and_do_not_open_the_dashboard(self) -> None:
        more = {"head": {"resources": {"cpu": 4}, "headService": {"metadata": {"labels": {"a": "b"}}}}}
        found = chart_values(Alibaba(chart_values=more))["head"]
        assert found["resources"] == {"cpu": 4}
        assert found["headService"]["metadata"]["labels"] == {"a": "b"}
        assert found["headService"]["metadata"]["annotations"][INTRANET] == "intranet"

    def test_a_users_value_wins_over_ours(self) -> None:
        more = {"head": {"headService": {"metadata": {"annotations": {INTRANET: "internet"}}}}}
        assert chart_values(Alibaba(chart_values=more)) == more

    def test_our_address_is_told_from_the_stacks_own(self) -> None:
        assert owner_tags("a").items() < address_tags("a").items()


class TestEndpoint:
    def find(self, kube: FakeKube, **endpoint: Any) -> Any:
        finder = EndpointFinder(Settings(endpoint=Endpoint(**endpoint)))
        return finder.find(kube, "ns", "sd")  # type: ignore[arg-type]

    def test_from_outside_it_is_the_api_servers_proxy(self, kube: FakeKube) -> None:
        route = self.find(kube)
        assert route.kind == "service-proxy"
        assert route.target.base_url.endswith("/api/v1/namespaces/ns/services/sd-serve-svc:8000/proxy")
        assert "s3cr3t" not in route.description + repr(route)

    def test_inside_it_is_plain_dns(self, kube: FakeKube, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
        monkeypatch.setattr(endpoint, "resolves", lambda host: host == "sd-serve-svc.ns.svc")
        assert self.find(kube).target.base_url == "http://sd-serve-svc.ns.svc:8000"
        assert self.find(kube, route="service-proxy").kind == "service-proxy"

    def test_in_a_pod_of_another_cluster_it_is_the_proxy(
        self, kube: FakeKube, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
        assert not endpoint.resolves("sd-serve-svc.ns.svc.invalid")
        monkeypatch.setattr(endpoint, "resolves", lambda host: False)
        assert self.find(kube).kind == "service-proxy"

    def test_in_cluster_when_told_so(self, kube: FakeKube) -> None:
        assert self.find(kube, route="in-cluster").kind == "in-cluster"

    def test_an_explicit_url_wins(self, kube: FakeKube, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
        route = self.find(kube, url="http://127.0.0.1:9000/", route="load-balancer")
        assert (route.kind, route.target.base_url) == ("url", "http://127.0.0.1:9000")

    def test_a_url_that_is_none_is_refused(self, kube: FakeKube) -> None:
        with pytest.raises(InputError, match="not an http"):
            self.find(kube, url="ftp://x")

    @pytest.mark.parametrize(("entry", "host"), [({"ip": "1.2.3.4"}, "1.2.3.4"), ({"hostname": "lb"}, "lb")])
    def test_a_load_balancers_address(self, kube: FakeKube, entry: dict[str, str], host: str) -> None:
        service = {"kind": "Service", "metadata": {"name": "sd-serve-svc", "namespace": "ns"}}
        kube.put(service | {"status": {"loadBalancer": {"ingress": [entry]}}})
        assert self.find(kube, route="load-balancer").target.base_url == f"http://{host}:8000"

    @pytest.mark.parametrize("status", [{}, {"loadBalancer": {}}, {"loadBalancer": {"ingress": None}}])
    def test_a_load_balancer_without_one(self, kube: FakeKube, status: dict[str, Any]) -> None:
        service = {"kind": "Service", "metadata": {"name": "sd-serve-svc", "namespace": "ns"}}
        kube.put(service | {"status": status})
        with pytest.raises(RefusedError, match="has no address"):
            self.find(kube, route="load-balancer")

    def test_the_dashboard_is_always_behind_the_proxy(self, kube: FakeKube) -> None:
        finder = EndpointFinder(Settings(endpoint=Endpoint(url="http://x")))
        route = finder.dashboard(kube, "ns", "sd")  # type: ignore[arg-type]
        assert route.kind == "service-proxy"
        assert "/services/sd-head-svc:8265/proxy" in route.target.base_url


class _Control:
    """In place of `sandbox.control`."""

    class SandboxError(Exception):
        pass

    class SandboxOptions:
        def __init__(self, **options: Any) -> None:
            self.options = options

    class Info:
        cloud_endpoint, region = "127.0.0.1:4321", "ap-southeast-1"
        access_key_id, access_key_secret = "key", "secret-of-the-sandbox"

    def __init__(self, *, running: bool = False, broken: bool = False) -> None:
        self.running, self.broken = running, broken
        self.started: list[dict[str, Any]] = []

    def status(self, _: Path) -> Any:
        return self.Info() if self.running else None

    def start(self, _: Path, *, options: Any) -> Any:
        if self.broken:
            raise self.SandboxError("the port is taken")
        self.running = True
        self.started.append(options.options)
        return self.Info()


class TestSandboxProfile:
    @pytest.fixture
    def control(self, monkeypatch: pytest.MonkeyPatch) -> _Control:
        fake = _Control()
        monkeypatch.setattr(sandbox, "control", fake, raising=False)
        return fake

    def test_it_starts_on_demand_with_its_options(self, control: _Control) -> None:
        settings = Settings(sandbox={"time_scale": 0.5, "kuberay_version": "1.7.0"})  # type: ignore[arg-type]
        wired = with_sandbox(settings, start=True)
        assert control.started == [{"time_scale": 0.5, "kuberay_version": "1.7.0"}]
        assert wired.alibaba.endpoint == "127.0.0.1:4321"
        assert wired.alibaba.access_key_id == "key"
        assert "secret-of-the-sandbox" not in repr(wired)

    def test_one_that_runs_is_used(self, control: _Control) -> None:
        control.running = True
        assert with_sandbox(Settings(), start=False).alibaba.endpoint == "127.0.0.1:4321"
        assert control.started == []

    def test_one_that_must_not_be_started_is_told(self, control: _Control) -> None:
        with pytest.raises(NotReadyError, match="not running") as caught:
            open_chain(Settings(), start_sandbox=False)
        assert "raynest up" in caught.value.fix

    def test_one_that_does_not_start_is_told(self, control: _Control) -> None:
        control.broken = True
        with pytest.raises(NotReadyError, match="does not start") as caught:
            with_sandbox(Settings(), start=True)
        assert caught.value.why == "the port is taken"

    def test_only_the_way_there_changes(self, control: _Control) -> None:
        settings = Settings(
            name="mine",
            alibaba={"worker_count": 3, "zone_id": "z"},  # type: ignore[arg-type]
            ray_service={"worker_cpus": 7, "model": "my/model"},  # type: ignore[arg-type]
        )
        wired = with_sandbox(settings, start=True)
        assert (wired.name, wired.alibaba.worker_count, wired.alibaba.zone_id) == ("mine", 3, "z")
        assert (wired.ray_service.worker_cpus, wired.ray_service.model) == (7, "my/model")
        assert wired.ray_service.head_memory == SANDBOX_DEFAULTS["head_memory"]
        assert wired.alibaba.worker_instance_type == settings.alibaba.worker_instance_type
        assert wired.ray_service.gpus_per_replica == settings.ray_service.gpus_per_replica

    def test_options_that_do_not_fit_its_small_batches_are_told(self, control: _Control) -> None:
        settings = Settings(ray_service={"serving": {"bucket_batches": [8]}})  # type: ignore[arg-type]
        with pytest.raises(SettingsError, match="bucket_batches has 8; max_batch_size is 4") as caught:
            with_sandbox(settings, start=True)
        assert "ray_service.max_batch_size" in caught.value.fix

    def test_variables_do_not_come_between(self, control: _Control, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("RAYNEST_ALIBABA__ENDPOINT", "evil:1")
        monkeypatch.setenv("RAYNEST_RAY_SERVICE__MODEL", "from/env")
        wired = with_sandbox(Settings(), start=True)
        assert wired.alibaba.endpoint == "127.0.0.1:4321"
        assert wired.ray_service.model == "from/env", "a person's own setting is kept"
