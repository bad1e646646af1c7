"""Buying a cluster: lost answers, changed settings, other accounts; a repair buys nothing."""

from dataclasses import replace

import pytest
from chain_clock import cloud_error, denied, no_answer, no_balance, throttled
from chain_links import Links, make_links
from chain_world import World

from raynest_pipeline.alibaba.ecs import ZoneStock
from raynest_pipeline.chain.link import Observation, State, Step
from raynest_pipeline.errors import NotReadyError, RefusedError, RemoteError, Verdict
from raynest_pipeline.settings import Alibaba, Settings

NAME = "raynest"
PERMANENT = Verdict.PERMANENT


def observe(world: World, settings: Settings) -> Observation:
    return make_links(world, settings).cluster.observe()


def actions(world: World, settings: Settings) -> list[str]:
    return [change.action for change in make_links(world, settings).cluster.plan()]


class TestPurchase:
    """An answer is lost, or the process dies; then something has changed."""

    @pytest.fixture
    def lost(self, world: World, settings: Settings) -> Links:
        """The first purchase took place, nobody heard of it, and it is not listed for a long time."""
        links = make_links(world, settings)
        world.listing_delay = 300.0
        world.lost["create_instance"] = [no_answer()]
        with pytest.raises(RemoteError):
            links.cluster.ensure(links.deadline())
        return make_links(world, settings)

    @pytest.mark.parametrize("error", [denied(), no_balance(), throttled(), no_answer()])
    def test_a_repetition_that_is_refused_keeps_the_token(
        self, world: World, lost: Links, error: RemoteError
    ) -> None:
        world.faults["create_instance"] = [error]
        with pytest.raises(RemoteError):
            lost.cluster.ensure(lost.deadline())
        assert lost.cluster.ensure(lost.deadline()).ready
        assert len(world.bought) == 1

    def test_other_settings_do_not_buy_a_second_one(
        self, world: World, settings: Settings, lost: Links
    ) -> None:
        two = settings.model_copy(update={"alibaba": Alibaba(worker_count=2)})
        steps: list[Step] = []
        seen = make_links(world, two).cluster.ensure(lost.deadline(), steps.append)
        assert seen.ready and len(world.bought) == 1
        assert any("bought already, with other settings" in step.message for step in steps)
        assert "WorkerInstanceCount is 1, the settings say 2" in str(seen.facts["differs"])

    def test_what_was_never_sold_is_bought_with_the_settings_of_now(
        self, world: World, settings: Settings
    ) -> None:
        many = settings.model_copy(update={"alibaba": Alibaba(worker_count=50)})
        links = make_links(world, many)
        world.faults["create_instance"] = [no_answer()]
        with pytest.raises(RemoteError):
            links.cluster.ensure(links.deadline())
        assert make_links(world, settings).cluster.ensure(links.deadline()).ready
        (made,) = world.instances.values()
        assert made.parameters["WorkerInstanceCount"] == 1

    def test_a_newer_version_of_the_service_does_not_change_the_repetition(
        self, world: World, lost: Links
    ) -> None:
        world.service = replace(world.service, version="4")
        assert lost.cluster.ensure(lost.deadline()).ready
        assert len(world.bought) == 1 and lost.journal.read("cluster") is not None

    def test_the_last_machine_may_be_the_one_that_it_got(self, world: World, lost: Links) -> None:
        world.stock, world.listing_delay = [], 30.0
        assert lost.cluster.ensure(lost.deadline()).ready
        assert len(world.bought) == 1

    def test_a_zone_that_was_refused_is_not_asked_for_again(self, world: World, settings: Settings) -> None:
        links = make_links(world, settings)
        world.faults["create_instance"] = [throttled(), cloud_error(PERMANENT, "OperationDenied.NoStock")]
        for _ in range(2):
            with pytest.raises(RemoteError):
                links.cluster.ensure(links.deadline())
        world.stock = [ZoneStock("ap-southeast-1c", True, "WithStock")]
        assert links.cluster.ensure(links.deadline()).ready
        assert next(iter(world.instances.values())).parameters["ZoneId"] == "ap-southeast-1c"

    def test_an_earlier_attempt_of_the_same_call_may_have_bought(
        self, world: World, settings: Settings
    ) -> None:
        links = make_links(world, settings)
        error = no_balance()
        error.doubtful = True
        world.faults["create_instance"] = [error]
        with pytest.raises(RemoteError):
            links.cluster.ensure(links.deadline())
        assert links.journal.read("cluster") is not None

    def test_an_instance_that_the_cloud_denies_for_a_moment_is_not_bought_again(
        self, world: World, settings: Settings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        links = make_links(world, settings)
        with pytest.raises(NotReadyError):
            links.cluster.ensure(links.deadline(2))
        world.listing_delay = 60.0
        real, denials = world.cloud.instances.get_instance, [1, 1]
        monkeypatch.setattr(
            world.cloud.instances, "get_instance", lambda i: None if denials and denials.pop() else real(i)
        )
        assert links.cluster.ensure(links.deadline()).ready
        assert len(world.bought) == 1


class TestElsewhere:
    """The settings point somewhere else than where the chain on record is."""

    @pytest.fixture
    def moved(self, world: World, settings: Settings) -> Links:
        links = make_links(world, settings)
        links.cluster.ensure(links.deadline())
        world.instances.clear()  # Another region's control plane, or another account, knows none of it.
        return links

    def test_another_account_buys_nothing_and_forgets_nothing(self, world: World, moved: Links) -> None:
        world.caller = replace(world.caller, account_id="99")
        for act in (moved.cluster.ensure, moved.cluster.remove):
            with pytest.raises(RefusedError, match="account 1234, and now it is 99"):
                act(moved.deadline())
        assert len(world.bought) == 1 and moved.journal.read("cluster") is not None

    def test_another_region_buys_nothing_and_forgets_nothing(
        self, world: World, settings: Settings, moved: Links
    ) -> None:
        there = settings.model_copy(update={"alibaba": Alibaba(region_id="eu-central-1")})
        links = make_links(world, there)
        seen = links.cluster.observe()
        assert seen.state is State.BROKEN and "region ap-southeast-1" in seen.cause
        for act in (links.cluster.ensure, links.cluster.remove):
            with pytest.raises(RefusedError, match="made elsewhere"):
                act(links.deadline())
        assert actions(world, there) == ["none"]
        assert len(world.bought) == 1 and links.journal.read("cluster") is not None

    def test_an_interrupted_purchase_of_another_account_is_not_forgotten(
        self, world: World, settings: Settings
    ) -> None:
        links = make_links(world, settings)
        world.faults["create_instance"] = [no_answer()]
        with pytest.raises(RemoteError):
            links.cluster.ensure(links.deadline())
        world.caller = replace(world.caller, account_id="99")
        with pytest.raises(RefusedError, match="made elsewhere"):
            links.cluster.remove(links.deadline())

    def test_one_of_another_region_that_is_listed_here_is_named(
        self, world: World, settings: Settings
    ) -> None:
        made = world.add_instance(NAME, region="us-east-1")
        seen = observe(world, settings)
        assert seen.state is State.BROKEN
        assert f"{made.id} named raynest is in us-east-1, not in ap-southeast-1" in seen.cause

    def test_another_name_or_profile_is_another_chain(self, world: World, settings: Settings) -> None:
        links = make_links(world, settings)
        links.cluster.ensure(links.deadline())
        other = make_links(world, settings.model_copy(update={"name": "other"}))
        assert other.cluster.ensure(other.deadline()).ready
        other.cluster.remove(other.deadline())
        assert world.alive() == world.bought[:1] and links.journal.read("cluster") is not None


class TestAdoptOnly:
    """`may_buy=False`: what a repair may do."""

    def ensure(self, links: Links) -> Observation:
        return links.cluster.ensure(links.deadline(), may_buy=False)

    def test_nothing_is_bought(self, world: World, settings: Settings) -> None:
        with pytest.raises(RefusedError, match="does not buy") as caught:
            self.ensure(make_links(world, settings))
        assert "health.buy_cluster" in caught.value.fix and world.bought == []

    def test_a_failed_deployment_is_not_deleted(self, world: World, settings: Settings) -> None:
        world.add_instance(NAME, fate="DeployedFailed")
        with pytest.raises(RefusedError):
            self.ensure(make_links(world, settings))
        assert "delete_instance" not in world.calls

    def test_one_that_is_being_deleted_is_not_replaced(self, world: World, settings: Settings) -> None:
        world.add_instance(NAME).deleted_at = world.clock.seconds
        with pytest.raises(RefusedError):
            self.ensure(make_links(world, settings))

    def test_what_is_on_its_way_is_waited_for(self, world: World, settings: Settings) -> None:
        world.add_instance(NAME).made_at = world.clock.seconds
        assert self.ensure(make_links(world, settings)).ready

    def test_an_interrupted_purchase_is_adopted(self, world: World, settings: Settings) -> None:
        links = make_links(world, settings)
        world.listing_delay = 30.0
        world.lost["create_instance"] = [no_answer()]
        with pytest.raises(RemoteError):
            links.cluster.ensure(links.deadline())
        assert self.ensure(links).ready
        assert world.calls.count("create_instance") == 1

    def test_and_not_asked_for_again_when_there_is_none(self, world: World, settings: Settings) -> None:
        links = make_links(world, settings)
        world.faults["create_instance"] = [no_answer()]
        with pytest.raises(RemoteError):
            links.cluster.ensure(links.deadline())
        with pytest.raises(RefusedError):
            self.ensure(links)
        assert world.bought == []
