"""The public address link takes its address back, in every state of the cloud."""

import pytest
from chain_clock import THE_TASK_FAILED
from chain_links import Links, make_links
from chain_world import BoughtInstance, World

from raynest_pipeline.chain.link import Observation
from raynest_pipeline.errors import NotReadyError
from raynest_pipeline.settings import Settings


@pytest.fixture
def cluster(world: World) -> BoughtInstance:
    return world.add_instance("raynest")


@pytest.fixture
def links(world: World, settings: Settings) -> Links:
    return make_links(world, settings)


def ensure(links: Links) -> Observation:
    return links.public_ip.ensure(links.deadline())


class TestRemove:
    def test_nothing_there_is_nothing_to_do(self, links: Links) -> None:
        assert links.public_ip.remove(links.deadline()) == []

    @pytest.mark.usefixtures("cluster")
    def test_unbinds_waits_and_releases(self, world: World, links: Links) -> None:
        ensure(links)
        changes = links.public_ip.remove(links.deadline())
        assert [change.action for change in changes] == ["update", "delete"]
        assert world.eips == {} and links.journal.read("public_ip") is None
        assert world.calls.index("unbind_eip") < world.calls.index("release_eip")
        assert "unassociate_eip" not in world.calls, "never behind the API server's back"

    @pytest.mark.usefixtures("cluster")
    def test_leaves_what_somebody_else_bound(self, world: World, links: Links) -> None:
        world.foreign_endpoint = "47.2.2.2"
        assert links.public_ip.remove(links.deadline()) == []
        assert "unbind_eip" not in world.calls

    def test_leaves_addresses_without_our_tag(self, world: World, links: Links) -> None:
        foreign = world.add_eip(ours=False)
        mine = world.add_eip()
        links.public_ip.remove(links.deadline())
        assert set(world.eips) == {foreign.id} and mine.id not in world.eips

    def test_takes_its_address_off_a_cluster_that_is_gone(
        self, world: World, links: Links, cluster: BoughtInstance
    ) -> None:
        world.add_eip(bound_to=cluster.cluster_id)
        cluster.deleted_at = -1000.0
        links.public_ip.remove(links.deadline())
        assert world.eips == {} and "unassociate_eip" in world.calls

    def test_removes_one_that_is_still_being_bound(
        self, world: World, links: Links, cluster: BoughtInstance
    ) -> None:
        eip = world.add_eip()
        world.cloud.clusters.bind_eip(cluster.cluster_id, eip.id, "t")
        links.public_ip.remove(links.deadline())
        assert world.eips == {}
        assert "unassociate_eip" not in world.calls, "never behind the API server's back"

    def test_a_release_that_does_not_happen_says_that_it_costs(
        self, world: World, links: Links, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        eip = world.add_eip()
        monkeypatch.setattr(world.cloud.network, "release_eip", lambda _: None)
        with pytest.raises(NotReadyError, match=f"The release of {eip.ip}") as caught:
            links.public_ip.remove(links.deadline(30))
        assert "still costs money" in caught.value.fix

    def test_an_unbinding_that_fails_says_why(
        self, world: World, links: Links, cluster: BoughtInstance
    ) -> None:
        eip = world.add_eip(bound_to=cluster.cluster_id)
        world.bind_failure = THE_TASK_FAILED
        with pytest.raises(NotReadyError, match="Unbinding the address failed"):
            links.public_ip.remove(links.deadline())
        assert set(world.eips) == {eip.id}
        world.bind_failure = ""
        links.public_ip.remove(links.deadline())
        assert world.eips == {}

    @pytest.mark.usefixtures("cluster")
    def test_a_recorded_purchase_that_is_listed_late_is_released(
        self, world: World, settings: Settings, links: Links
    ) -> None:
        ensure(links)
        world.eips["eip-1"].made_at, world.listing_delay = world.clock.seconds, 20.0
        make_links(world, settings).public_ip.remove(links.deadline())
        assert world.eips == {}

    @pytest.mark.usefixtures("cluster")
    def test_afterwards_the_next_purchase_has_a_new_token(self, world: World, links: Links) -> None:
        ensure(links)
        links.public_ip.remove(links.deadline())
        assert ensure(links).facts["eip_id"] == "eip-2"

    @pytest.mark.parametrize("state", ["unavailable", "inactive", "failed", "delete_failed"])
    def test_a_dead_cluster_is_not_waited_for(
        self, world: World, links: Links, cluster: BoughtInstance, state: str
    ) -> None:
        world.add_eip(bound_to=cluster.cluster_id)
        world.cluster_state = state
        with pytest.raises(NotReadyError, match=f"the cluster is {state}"):
            links.public_ip.remove(links.deadline())
        assert world.clock.seconds < 5

    @pytest.mark.usefixtures("cluster")
    @pytest.mark.parametrize("endpoint", ["", "47.2.2.2"])
    def test_an_address_bound_to_something_else_is_named_soon(
        self, world: World, links: Links, endpoint: str
    ) -> None:
        eip = world.add_eip(bound_to="i-somebodys-machine")
        world.foreign_endpoint = endpoint
        with pytest.raises(NotReadyError, match="not by the API server") as caught:
            links.public_ip.remove(links.deadline())
        assert "i-somebodys-machine" in caught.value.why and "VPC console" in caught.value.fix
        assert world.clock.seconds < 300 and set(world.eips) == {eip.id}

    def test_each_removal_takes_it_off_with_a_token_of_its_own(
        self, world: World, links: Links, cluster: BoughtInstance
    ) -> None:
        cluster.deleted_at = -1000.0
        for _ in range(2):
            world.add_eip(bound_to=cluster.cluster_id)
            links.public_ip.remove(links.deadline())
        assert len(world.unassociations) == 2 == len(set(world.unassociations))
