"""The chain as a whole, over an account and a cluster in memory: plan, ensure, redeploy, teardown, report."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from chain_clock import THE_TASK_FAILED, denied, throttled
from chain_kube import APP, FakeKube, status_of, unreachable
from chain_ports import KUBECONFIG, jwt
from chain_world import World

from raynest_pipeline.alibaba.cs import ClusterResource
from raynest_pipeline.chain.chain import Chain, Teardown, build_chain
from raynest_pipeline.chain.link import Observation, State, Step
from raynest_pipeline.chain.report import StatusReport, plain, status_report
from raynest_pipeline.errors import NotReadyError, RaynestError, RefusedError, RemoteError
from raynest_pipeline.kube.kubeconfig import load
from raynest_pipeline.settings import Settings

LINKS = ["cluster", "public_ip", "kubeconfig", "ray_service"]


def states(chain: Chain) -> list[str]:
    return [str(seen.state) for seen in chain.observe()]


class TestBuilding:
    def test_contacts_nothing(self, chain: Chain, world: World, kube: FakeKube) -> None:
        assert [link.name for link in chain.links] == LINKS
        assert world.calls == [] and kube.clients == 0
        assert not chain.settings.home_dir.exists()

    def test_the_kubeconfig_profile_has_the_last_link_only(self, tmp_path: Path, kube: FakeKube) -> None:
        path = tmp_path / "kc.yaml"
        path.write_text(KUBECONFIG.format(server="https://k:6443", token=jwt(World().clock.now(), "x")))
        settings = Settings(profile="kubeconfig", kubeconfig={"path": path}, home=tmp_path / "h")  # type: ignore[arg-type]
        chain = build_chain(settings)
        assert [link.name for link in chain.links] == ["ray_service"]
        assert chain.preflight() is None and chain.audit() == ()
        assert chain.kubeconfig_path == path

    def test_a_link_that_is_not_there(self, chain: Chain) -> None:
        with pytest.raises(KeyError):
            chain.link("nope")

    def test_secrets_are_not_in_its_repr(self, up: Chain, world: World) -> None:
        assert world.kubeconfig_token not in repr(up)


class TestPlan:
    def test_a_fresh_chain_is_planned_to_its_end_and_nothing_is_bought(
        self, chain: Chain, world: World
    ) -> None:
        changes = chain.plan()
        assert [(change.link, change.action) for change in changes] == [
            ("cluster", "create"),
            ("public_ip", "create"),
            ("public_ip", "update"),
            ("kubeconfig", "create"),
            ("ray_service", "create"),
        ]
        assert world.bought == [] and not chain.wanted

    def test_what_is_up_needs_nothing(self, up: Chain) -> None:
        assert {change.action for change in up.plan()} == {"none"}

    def test_a_link_that_cannot_be_planned_does_not_hide_the_others(self, chain: Chain, world: World) -> None:
        world.faults["caller"] = [denied()]
        changes = chain.plan()
        assert changes[0].what == "cannot be planned"
        assert [change.link for change in changes[1:]] == [
            "public_ip",
            "public_ip",
            "kubeconfig",
            "ray_service",
        ]


class TestEnsure:
    def test_from_nothing_to_served(self, chain: Chain, world: World) -> None:
        assert [chain.ensure(name).state for name in LINKS] == [State.READY] * 4
        assert states(chain) == ["ready"] * 4
        assert len(world.bought) == 2 and chain.wanted

    def test_what_is_ready_is_not_touched(self, up: Chain, kube: FakeKube) -> None:
        applied = len(kube.applied)
        assert all(up.ensure(name).ready for name in LINKS)
        assert len(kube.applied) == applied

    def test_a_link_is_ensured_by_name_within_its_own_deadline(self, chain: Chain, world: World) -> None:
        assert chain.ensure("cluster").ready
        assert chain.wanted
        assert chain.deadline("public_ip").seconds == 900
        assert chain.deadline("ray_service").remaining() == 3600

    def test_only_one_may_write_at_a_time(self, chain: Chain) -> None:
        with chain.writing(), pytest.raises(NotReadyError, match="Another raynest run"):
            chain.ensure("cluster")

    def test_a_refusal_leaves_nothing_bought(self, chain: Chain, world: World) -> None:
        world.stock = []
        with pytest.raises(RefusedError):
            chain.ensure("cluster")
        assert world.bought == []


class TestRepair:
    """`ensure` on the sensor's behalf: only what is still wanted, and nothing that has to be bought."""

    def test_what_was_taken_down_meanwhile_stays_down(self, up: Chain, world: World) -> None:
        up.teardown()
        with pytest.raises(RefusedError, match="taken down meanwhile") as caught:
            up.ensure("cluster", repair=True)
        assert "raynest up" in caught.value.fix
        assert world.alive() == [] and not up.wanted

    def test_is_no_wish(self, chain: Chain) -> None:
        with pytest.raises(RefusedError):
            chain.ensure("ray_service", repair=True)
        assert not chain.wanted

    def test_mends_what_needs_no_purchase(self, up: Chain) -> None:
        up.kubeconfig_path.unlink()
        assert all(up.ensure(name, repair=True).ready for name in LINKS)

    def test_does_not_buy_a_cluster_unless_the_settings_say_so(self, up: Chain, world: World) -> None:
        next(iter(world.instances.values())).deleted_at = -1000.0
        with pytest.raises(RefusedError, match="does not buy") as caught:
            up.ensure("cluster", repair=True)
        assert "health.buy_cluster" in caught.value.fix
        assert len(world.purchases("si-")) == 1
        health = up.settings.health.model_copy(update={"buy_cluster": True})
        allowed = build_chain(up.settings.model_copy(update={"health": health}), world.clock)
        assert allowed.ensure("cluster", repair=True).ready
        assert len(world.purchases("si-")) == 2


class TestTeardown:
    def test_last_link_first_and_nothing_is_left(self, up: Chain, world: World, kube: FakeKube) -> None:
        done = up.teardown()
        assert [change.link for change in done.changes] == [
            "ray_service",
            "ray_service",
            "kubeconfig",
            "public_ip",
            "public_ip",
            "cluster",
        ]
        assert done.left == () and world.alive() == []
        assert not up.kubeconfig_path.exists() and not up.wanted
        assert states(up) == ["missing"] * 4

    def test_again_there_is_nothing_to_do(self, up: Chain) -> None:
        up.teardown()
        assert up.teardown() == Teardown(())

    def test_of_nothing(self, chain: Chain) -> None:
        assert chain.teardown() == Teardown(())

    @pytest.mark.parametrize("verb", ["get", "list", "delete"])
    def test_an_api_server_that_is_gone_does_not_stop_it(
        self, up: Chain, world: World, kube: FakeKube, verb: str
    ) -> None:
        kube.fail[verb] = [unreachable()]
        steps: list[Step] = []
        up.teardown(steps.append)
        assert world.alive() == []
        assert any("left until the cluster is deleted" in step.message for step in steps)

    def test_a_stuck_finalizer_does_not_stop_it(self, up: Chain, world: World, kube: FakeKube) -> None:
        kube.stuck = True
        up.teardown()
        assert world.alive() == []

    def test_a_damaged_kubeconfig_does_not_stop_it(
        self, up: Chain, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        up.kubeconfig_path.write_text("clusters: [")
        monkeypatch.setattr("raynest_pipeline.chain.kubeconfig.KubeClient.from_file", load)
        up.teardown()
        assert world.alive() == []

    def test_an_address_that_cannot_be_unbound_does_not_keep_the_cluster(
        self, up: Chain, world: World
    ) -> None:
        world.faults["unbind_eip"] = [denied()] * 9
        steps: list[Step] = []
        assert up.teardown(steps.append).left == ()
        assert world.alive() == [] and not up.wanted
        assert any("left until the cluster is deleted" in step.message for step in steps)

    def test_a_cluster_that_nobody_can_reach_goes_at_once(self, up: Chain, world: World) -> None:
        world.cluster_state = "unavailable"
        started = world.clock.seconds
        assert up.teardown().left == ()
        assert world.alive() == [] and world.clock.seconds - started < 120

    def test_an_unbinding_that_fails_does_not_keep_the_cluster(self, up: Chain, world: World) -> None:
        world.bind_failure = THE_TASK_FAILED
        assert up.teardown().left == ()
        assert world.alive() == []

    def test_an_address_bound_to_something_else_does_not_keep_the_cluster(
        self, up: Chain, world: World
    ) -> None:
        world.eips["eip-1"].bound_to = "i-somebodys-machine"
        started = world.clock.seconds
        up.teardown()
        assert world.alive() == []
        assert world.clock.seconds - started < 600

    def test_a_dead_operator_costs_three_minutes_and_not_the_whole_deadline(
        self, up: Chain, world: World, kube: FakeKube
    ) -> None:
        kube.stuck = True
        started = world.clock.seconds
        up.teardown()
        assert world.alive() == [] and world.clock.seconds - started < 300

    def test_an_address_that_sticks_is_told_after_the_cluster_is_gone(
        self, up: Chain, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(world.cloud.network, "release_eip", lambda _: None)
        with pytest.raises(NotReadyError, match="The release of 47.1.0.1"):
            up.teardown()
        assert world.alive() == ["eip-1"], "the cluster is gone"

    def test_a_cloud_that_refuses_the_deletion_stops_it_and_says_so(self, up: Chain, world: World) -> None:
        world.faults["delete_instance"] = [denied()]
        with pytest.raises(RemoteError):
            up.teardown()
        assert not up.wanted, "it is on its way down: nobody repairs it meanwhile"
        up.teardown()
        assert world.alive() == []

    def test_what_the_cluster_made_and_its_deletion_leaves_is_told(self, up: Chain, world: World) -> None:
        slb = "ALIYUN::SLB::LoadBalancer"
        world.cluster_resources = [
            ClusterResource("ngw-1", "ALIYUN::VPC::NatGateway", "", "system", True),
            ClusterResource("sg-1", "ALIYUN::ECS::SecurityGroup", "", "system", False),
            ClusterResource("lb-stays", slb, "", "addon", False, "Service default/web"),
            ClusterResource("lb-perhaps", slb, "", "addon", None, "Service default/api"),
            ClusterResource(
                "lb-ours", slb, "", "addon", False, "Service raynest/ray-cluster-kuberay-head-svc"
            ),
            ClusterResource("lb-users", slb, "", "user", False),
        ]
        done = up.teardown()
        assert [text.split(" (")[0] for text in done.left] == [
            f"{slb} lb-stays of Service default/web",
            f"{slb} lb-perhaps of Service default/api",
        ]
        (kept,) = [change for change in done.changes if change.action == "keep"]
        assert kept.what == f"{slb} lb-users"

    @pytest.mark.parametrize("error", [denied(), throttled()])
    def test_a_list_of_resources_that_is_denied_does_not_stop_it(
        self, up: Chain, world: World, error: RemoteError
    ) -> None:
        world.faults["cluster_resources"] = [error]
        done = up.teardown()
        assert world.alive() == [] and done.left == ()
        assert any("could not be listed" in change.why for change in done.changes)

    def test_the_audit_finds_what_is_left(self, up: Chain, world: World) -> None:
        left = up.audit()
        assert any("service instance si-" in item for item in left)
        assert any("EIP 47.1.0.1" in item for item in left)
        world.add_instance("raynest", ours=False)
        assert len(up.audit()) == len(left), "what is not ours is not counted"

    def test_an_audit_that_cannot_be_made_is_told(self, up: Chain, world: World) -> None:
        world.faults["find_eips"] = [throttled()]
        with pytest.raises(RemoteError):
            up.audit()


class TestReport:
    def document(self, chain: Chain) -> dict[str, Any]:
        document: dict[str, Any] = status_report(chain, chain.observe()).model_dump(mode="json")
        jsonschema.validate(document, StatusReport.model_json_schema())
        return document

    def test_of_a_chain_that_is_up(self, up: Chain, world: World) -> None:
        document = self.document(up)
        assert document["ready"] and document["wanted"] and document["profile"] == "alibaba"
        assert [link["name"] for link in document["links"]] == LINKS
        assert document["endpoint"].endswith("/services/stable-diffusion-serve-svc:8000/proxy")
        assert document["dashboard"].endswith("/services/stable-diffusion-head-svc:8265/proxy")
        assert document["kubeconfig"] == str(up.kubeconfig_path)
        assert world.kubeconfig_token not in json.dumps(document)

    def test_of_a_chain_that_is_not(self, chain: Chain) -> None:
        document = self.document(chain)
        assert not document["ready"] and not document["wanted"]
        assert document["endpoint"] is None and document["dashboard"] is None
        assert {link["state"] for link in document["links"]} == {"missing"}

    def test_a_broken_link_has_its_cause(self, up: Chain, kube: FakeKube) -> None:
        kube.objects["RayService", "raynest", "stable-diffusion"]["status"] = status_of(
            "DEPLOY_FAILED", message="CUDA out of memory"
        )
        link = self.document(up)["links"][3]
        assert link["state"] == "broken" and "CUDA out of memory" in link["cause"]
        assert APP in link["facts"]["applications"]

    def test_an_endpoint_that_goes_away_meanwhile_is_none(self, up: Chain, kube: FakeKube) -> None:
        seen = up.observe()
        kube.fail["service_proxy"] = [unreachable(), unreachable()]
        report = status_report(up, seen)
        assert report.ready and report.endpoint is None

    @pytest.mark.parametrize(
        ("fact", "value"),
        [(("a", "b"), "a, b"), (None, ""), (True, True), (3, 3), ("x", "x")],
    )
    def test_facts_are_json_scalars(self, fact: Any, value: Any) -> None:
        assert plain(fact) == value

    def test_durations_are_seconds_and_prices_are_numbers(self) -> None:
        from datetime import timedelta
        from decimal import Decimal

        assert plain(timedelta(minutes=2)) == 120.0
        assert plain(Decimal("19.09")) == 19.09


def test_links_are_observed_side_by_side_and_a_late_one_is_unknown() -> None:
    import threading
    import time

    from raynest_pipeline.chain.watch import observe_within

    release = threading.Event()
    together = threading.Barrier(2, timeout=10)

    class Quick:
        name = "cluster"

        def observe(self) -> Observation:
            together.wait()
            return Observation(self.name, State.READY)

    class Slow:
        name = "ray_service"

        def observe(self) -> Observation:
            together.wait()
            release.wait(30)
            return Observation(self.name, State.READY)

    started = time.monotonic()
    links: Any = [Quick(), Slow()]
    seen = observe_within(links, 0.3)
    release.set()
    assert time.monotonic() - started < 10
    assert [item.state for item in seen] == [State.READY, State.UNKNOWN]
    assert "no answer within" in seen[1].cause


def test_the_links_find_the_kubernetes_library_imported(tmp_path: Path) -> None:
    """Threads that import parts of it at once find it half initialized; a process of its own tells."""
    script = """
import sys
from raynest_pipeline.chain.chain import build_chain
from raynest_pipeline.settings import Settings
assert "kubernetes" not in sys.modules
build_chain(Settings(profile="alibaba", alibaba={"access_key_id": "a", "access_key_secret": "b"}))
assert "kubernetes.dynamic.client" in sys.modules
"""
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True, timeout=120)


def test_the_endpoint_is_open_as_long_as_its_context(up: Chain, kube: FakeKube) -> None:
    before = kube.closed
    with up.endpoint() as route:
        assert route.kind == "service-proxy" and kube.closed == before
    assert kube.closed == before + 1


def test_the_endpoint_of_a_chain_that_is_not_up_says_what_to_do(chain: Chain) -> None:
    with pytest.raises(RaynestError, match="no kubeconfig") as caught, chain.endpoint():
        raise AssertionError("there is no endpoint")
    assert "raynest up" in caught.value.fix
