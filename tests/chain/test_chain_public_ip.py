"""The public address link in every state of the cloud."""

from dataclasses import replace

import pytest
from chain_clock import THE_TASK_FAILED, cloud_error, denied, no_answer, no_balance, throttled
from chain_links import Links, make_links
from chain_world import BoughtInstance, World

from raynest_pipeline.alibaba.egress import Egress
from raynest_pipeline.chain.link import Observation, State, Step
from raynest_pipeline.errors import NotReadyError, RefusedError, RemoteError, Verdict
from raynest_pipeline.settings import Alibaba, Settings


@pytest.fixture
def cluster(world: World) -> BoughtInstance:
    return world.add_instance("raynest")


@pytest.fixture
def links(world: World, settings: Settings) -> Links:
    return make_links(world, settings)


def ensure(links: Links) -> Observation:
    return links.public_ip.ensure(links.deadline())


class TestObserve:
    def test_without_a_cluster_it_is_missing(self, links: Links) -> None:
        seen = links.public_ip.observe()
        assert (seen.state, seen.cause) == (State.MISSING, "there is no cluster")

    def test_an_address_held_without_a_cluster_is_named(self, world: World, links: Links) -> None:
        eip = world.add_eip()
        assert eip.ip in links.public_ip.observe().cause

    @pytest.mark.usefixtures("cluster")
    def test_a_cluster_without_an_address_is_missing_one(self, links: Links) -> None:
        seen = links.public_ip.observe()
        assert seen.state is State.MISSING
        assert seen.facts["worker_egress"] == "yes"

    @pytest.mark.usefixtures("cluster")
    def test_an_address_that_is_not_bound_is_missing(self, world: World, links: Links) -> None:
        eip = world.add_eip()
        seen = links.public_ip.observe()
        assert seen.state is State.MISSING
        assert seen.cause == f"the address {eip.ip} is allocated, not bound"
        assert seen.facts["eip_id"] == eip.id

    def test_bound_is_ready(self, world: World, links: Links, cluster: BoughtInstance) -> None:
        eip = world.add_eip(bound_to=cluster.cluster_id)
        seen = links.public_ip.observe()
        assert seen.ready
        assert seen.facts["api_server"] == f"https://{eip.ip}:6443"
        assert (seen.facts["ip"], seen.facts["eip_status"]) == (eip.ip, "InUse")
        assert links.public_ip.endpoint() == f"https://{eip.ip}:6443"

    @pytest.mark.usefixtures("cluster")
    def test_somebody_elses_address_counts_as_ready_and_adopted(self, world: World, links: Links) -> None:
        world.foreign_endpoint = "47.2.2.2"
        seen = links.public_ip.observe()
        assert seen.ready
        assert "raynest did not allocate" in str(seen.facts["adopted"])
        assert links.public_ip.plan()[0].action == "adopt"

    def test_binding_is_pending(self, world: World, links: Links, cluster: BoughtInstance) -> None:
        eip = world.add_eip()
        world.cloud.clusters.bind_eip(cluster.cluster_id, eip.id, "t")
        seen = links.public_ip.observe()
        assert seen.state is State.PENDING
        assert "Associating" in seen.cause

    def test_addresses_of_others_are_not_seen(self, world: World, links: Links) -> None:
        world.add_instance("raynest")
        world.add_eip(ours=False)
        world.add_eip("another-chain")
        assert "eip_id" not in links.public_ip.observe().facts

    @pytest.mark.usefixtures("cluster")
    @pytest.mark.parametrize("call", ["find_eips", "find_instances"])
    def test_what_cannot_be_looked_up_is_unknown(self, world: World, links: Links, call: str) -> None:
        world.faults[call] = [throttled()]
        assert links.public_ip.observe().state is State.UNKNOWN

    def test_a_cluster_that_is_not_ours_is_broken(self, world: World, links: Links) -> None:
        world.add_instance("raynest", ours=False)
        assert links.public_ip.observe().state is State.BROKEN

    @pytest.mark.usefixtures("cluster")
    @pytest.mark.parametrize(
        ("egress", "words"),
        [
            (Egress(True, "by SNAT"), "yes"),
            (Egress(False, "vpc-1 has no NAT gateway"), "no: vpc-1 has no NAT gateway"),
            (Egress(None, "denied"), "unknown: denied"),
        ],
    )
    def test_the_workers_way_out_is_a_fact(
        self, world: World, links: Links, egress: Egress, words: str
    ) -> None:
        world.egress = egress
        assert links.public_ip.observe().facts["worker_egress"] == words

    @pytest.mark.usefixtures("cluster")
    def test_an_egress_that_cannot_be_read_is_unknown_and_hides_nothing_else(
        self, world: World, links: Links
    ) -> None:
        world.foreign_endpoint = "47.2.2.2"
        world.faults["egress"] = [denied()]
        seen = links.public_ip.observe()
        assert seen.ready
        assert str(seen.facts["worker_egress"]).startswith("unknown: it could not be looked up")


class TestPlan:
    @pytest.mark.usefixtures("cluster")
    def test_allocate_and_bind(self, world: World, links: Links) -> None:
        assert [change.action for change in links.public_ip.plan()] == ["create", "update"]
        world.add_eip()
        assert [change.action for change in links.public_ip.plan()] == ["update"], "only bind what is there"
        assert world.bought == [] and world.tasks == {}

    def test_ready_and_unknown(self, world: World, links: Links, cluster: BoughtInstance) -> None:
        world.add_eip(bound_to=cluster.cluster_id)
        assert [change.action for change in links.public_ip.plan()] == ["none"]
        world.faults["find_eips"] = [throttled()]
        assert [change.action for change in links.public_ip.plan()] == ["unknown"]

    def test_without_a_cluster_both_are_planned(self, links: Links) -> None:
        assert [change.action for change in links.public_ip.plan()] == ["create", "update"]


class TestEnsure:
    @pytest.mark.usefixtures("cluster")
    def test_allocates_binds_and_follows_the_task(self, world: World, links: Links) -> None:
        steps: list[Step] = []
        seen = links.public_ip.ensure(links.deadline(), steps.append)
        assert seen.ready and seen.facts["api_server"] == "https://47.1.0.1:6443"
        assert world.bought == ["eip-1"]
        assert world.eips["eip-1"].tags == {"raynest": "raynest", "raynest-role": "api-server"}
        said = " / ".join(step.message for step in steps)
        assert "allocated 47.1.0.1 (eip-1)" in said
        assert "binding 47.1.0.1" in said
        assert "T-1 is running" in said
        intent = links.journal.read("public_ip")
        assert intent is not None and intent.remote_id == "eip-1"

    def test_without_a_cluster_it_says_what_to_do(self, world: World, links: Links) -> None:
        with pytest.raises(NotReadyError, match="no cluster") as caught:
            ensure(links)
        assert "raynest up" in caught.value.fix
        assert world.bought == []

    def test_what_is_bound_is_kept(self, world: World, links: Links, cluster: BoughtInstance) -> None:
        world.add_eip(bound_to=cluster.cluster_id)
        assert ensure(links).ready
        assert world.bought == [] and world.tasks == {}

    @pytest.mark.usefixtures("cluster")
    def test_somebody_elses_is_adopted_and_nothing_bought(self, world: World, links: Links) -> None:
        world.foreign_endpoint = "47.2.2.2"
        assert ensure(links).facts["adopted"]
        assert world.bought == [] and world.tasks == {}

    @pytest.mark.usefixtures("cluster")
    def test_one_that_is_allocated_is_used(self, world: World, links: Links) -> None:
        eip = world.add_eip()
        assert ensure(links).facts["eip_id"] == eip.id
        assert world.bought == []

    def test_spares_are_released(self, world: World, links: Links, cluster: BoughtInstance) -> None:
        used = world.add_eip(bound_to=cluster.cluster_id)
        world.add_eip()
        foreign = world.add_eip(ours=False)
        assert ensure(links).ready
        assert set(world.eips) == {used.id, foreign.id}

    def test_one_that_is_being_bound_is_waited_for(
        self, world: World, links: Links, cluster: BoughtInstance
    ) -> None:
        eip = world.add_eip()
        world.cloud.clusters.bind_eip(cluster.cluster_id, eip.id, "t")
        assert ensure(links).ready
        assert len(world.tasks) == 1 and world.bought == []

    @pytest.mark.usefixtures("cluster")
    def test_a_busy_cluster_is_waited_for(self, world: World, links: Links) -> None:
        world.cluster_state = "upgrading"
        with pytest.raises(NotReadyError, match="was not ready after 20 s") as caught:
            links.public_ip.ensure(links.deadline(20))
        assert caught.value.why == "the cluster is upgrading"
        assert world.bought == [], "nothing is bought before it can be used"

    @pytest.mark.usefixtures("cluster")
    def test_a_binding_that_fails_says_why_and_keeps_the_address(self, world: World, links: Links) -> None:
        world.bind_failure = THE_TASK_FAILED
        with pytest.raises(NotReadyError, match="Binding the address failed") as caught:
            ensure(links)
        assert caught.value.why == THE_TASK_FAILED
        assert set(world.eips) == {"eip-1"}

    @pytest.mark.usefixtures("cluster")
    def test_after_a_binding_that_failed_the_next_run_binds(
        self, world: World, settings: Settings, links: Links
    ) -> None:
        world.bind_failure = THE_TASK_FAILED
        with pytest.raises(NotReadyError):
            ensure(links)
        world.bind_failure = ""
        assert ensure(make_links(world, settings)).ready
        assert world.bought == ["eip-1"]

    @pytest.mark.usefixtures("cluster")
    def test_an_address_that_was_taken_off_is_bound_again(self, world: World, links: Links) -> None:
        ensure(links)
        world.eips["eip-1"].bound_to = ""
        assert ensure(links).ready
        assert world.bought == ["eip-1"]

    @pytest.mark.usefixtures("cluster")
    def test_an_address_released_behind_our_back_is_bought_anew(self, world: World, links: Links) -> None:
        ensure(links)
        world.eips.clear()
        assert ensure(links).facts["eip_id"] == "eip-2"

    @pytest.mark.usefixtures("cluster")
    def test_a_refused_purchase_is_forgotten(self, world: World, links: Links) -> None:
        world.faults["allocate_eip"] = [no_balance()]
        with pytest.raises(RemoteError):
            ensure(links)
        assert links.journal.read("public_ip") is None

    @pytest.mark.usefixtures("cluster")
    def test_a_conflict_with_another_task_is_waited_out(self, world: World, links: Links) -> None:
        world.faults["bind_eip"] = [cloud_error(Verdict.RETRYABLE, "TaskConflict", status=409)] * 2
        assert ensure(links).ready
        assert world.bought == ["eip-1"]

    def test_a_cluster_that_is_not_ours_is_refused(self, world: World, links: Links) -> None:
        world.add_instance("raynest", ours=False)
        with pytest.raises(RefusedError):
            ensure(links)
        assert world.bought == []


class TestPurchase:
    @pytest.fixture
    def lost(self, world: World, settings: Settings, cluster: BoughtInstance, links: Links) -> Links:
        """An address was sold, nobody heard of it, and it is not listed for a while."""
        world.clock.seconds += 100
        world.listing_delay = 30.0
        world.lost["allocate_eip"] = [no_answer()] * 9
        with pytest.raises(NotReadyError):
            links.public_ip.ensure(links.deadline(0.1))
        world.lost.clear()
        return make_links(world, settings)

    @pytest.mark.parametrize("error", [denied(), no_balance()])
    def test_a_repetition_that_is_refused_keeps_the_token(
        self, world: World, lost: Links, error: RemoteError
    ) -> None:
        world.faults["allocate_eip"] = [error]
        with pytest.raises(RemoteError):
            ensure(lost)
        assert ensure(lost).ready
        assert world.bought == ["eip-1"]

    def test_another_bandwidth_does_not_buy_a_second_one(
        self, world: World, settings: Settings, lost: Links
    ) -> None:
        slower = settings.model_copy(update={"alibaba": Alibaba(eip_bandwidth_mbps=10)})
        assert ensure(make_links(world, slower)).facts["eip_id"] == "eip-1"
        assert world.bought == ["eip-1"]

    @pytest.mark.usefixtures("cluster")
    def test_one_on_record_that_was_released_is_bought_anew_with_another_bandwidth(
        self, world: World, settings: Settings, links: Links
    ) -> None:
        ensure(links)
        world.eips.clear()
        slower = settings.model_copy(update={"alibaba": Alibaba(eip_bandwidth_mbps=10)})
        assert ensure(make_links(world, slower)).facts["eip_id"] == "eip-2"

    def test_another_account_buys_nothing_and_forgets_nothing(self, world: World, lost: Links) -> None:
        world.eips.clear()
        world.caller = replace(world.caller, account_id="99")
        for act in (lost.public_ip.ensure, lost.public_ip.remove):
            with pytest.raises(RefusedError, match="account 1234, and now it is 99"):
                act(lost.deadline())
        assert lost.journal.read("public_ip") is not None

    @pytest.mark.usefixtures("cluster")
    def test_a_recorded_address_of_another_account_or_region_is_not_forgotten(
        self, world: World, settings: Settings, links: Links
    ) -> None:
        ensure(links)
        world.eips.clear()
        there = settings.model_copy(update={"alibaba": Alibaba(region_id="eu-central-1")})
        elsewhere = make_links(world, there)
        with pytest.raises(RefusedError, match="made elsewhere"):
            elsewhere.public_ip.remove(elsewhere.deadline())
        world.caller = replace(world.caller, account_id="99")
        with pytest.raises(RefusedError, match="made elsewhere"):
            links.public_ip.remove(links.deadline())
        assert links.journal.read("public_ip") is not None


class TestSpares:
    def test_a_second_address_is_paid_too_and_said(
        self, world: World, links: Links, cluster: BoughtInstance
    ) -> None:
        world.add_eip(bound_to=cluster.cluster_id)
        spare = world.add_eip()
        (said,) = links.public_ip.observe().facts["also_paid"]  # type: ignore[misc, union-attr]
        assert said == f"{spare.ip} ({spare.id}, Available)"
        plan = links.public_ip.plan()
        assert [change.what for change in plan[1:]] == [f"also paid: {said}"]

    def test_one_address_is_no_spare(self, world: World, links: Links, cluster: BoughtInstance) -> None:
        world.add_eip(bound_to=cluster.cluster_id)
        assert "also_paid" not in links.public_ip.observe().facts
