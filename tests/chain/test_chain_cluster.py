"""The cluster link in every state of the cloud."""

import pytest
from chain_clock import denied, no_balance, throttled
from chain_links import make_links
from chain_world import World

from raynest_pipeline.alibaba.computenest import MissingPermission
from raynest_pipeline.chain.intent import state_dir
from raynest_pipeline.chain.link import Observation, State, Step
from raynest_pipeline.errors import NotReadyError, RefusedError, RemoteError
from raynest_pipeline.settings import Alibaba, Settings

NAME = "raynest"


def observe(world: World, settings: Settings) -> Observation:
    return make_links(world, settings).cluster.observe()


def actions(world: World, settings: Settings) -> list[str]:
    return [change.action for change in make_links(world, settings).cluster.plan()]


class TestObserve:
    def test_nothing_there_is_missing(self, world: World, settings: Settings) -> None:
        seen = observe(world, settings)
        assert (seen.link, seen.state) == ("cluster", State.MISSING)

    def test_ready_names_what_a_person_looks_for(self, world: World, settings: Settings) -> None:
        made = world.add_instance(NAME)
        made.parameters = {"ZoneId": "z-b", "WorkerInstanceType": "ecs.x", "WorkerInstanceCount": 2}
        seen = observe(world, settings)
        assert seen.ready
        assert seen.facts["instance_id"] == made.id
        assert seen.facts["cluster_id"] == made.cluster_id
        assert seen.facts["zone"] == "z-b"
        assert seen.facts["worker_count"] == "2"
        assert seen.facts["ray_dashboard"] == "http://192.168.0.9:8265", "the trailing newline is off"
        assert seen.facts["namespace"] == NAME
        assert "" not in seen.facts.values()

    @pytest.mark.parametrize("way", ["resources", "stack", "name"])
    def test_the_cluster_is_found_in_three_ways(self, world: World, settings: Settings, way: str) -> None:
        made = world.add_instance(NAME)
        world.resources_listed = way == "resources"
        world.stack_listed = way == "stack"
        assert observe(world, settings).facts["cluster_id"] == made.cluster_id

    def test_a_node_pool_is_not_taken_for_the_cluster(self, world: World, settings: Settings) -> None:
        made = world.add_instance(NAME)
        observe(world, settings)
        assert "resources" in world.calls and made.cluster_id.startswith("c")
        assert "stack_resources" not in world.calls, "the first way was enough"

    def test_an_existing_cluster_is_the_one_that_is_named(self, world: World, settings: Settings) -> None:
        made = world.add_instance(NAME)
        other = settings.model_copy(update={"alibaba": Alibaba(existing_cluster_id=made.cluster_id)})
        assert observe(world, other).facts["cluster_id"] == made.cluster_id
        assert "resources" not in world.calls

    def test_deploying_is_pending(self, world: World, settings: Settings) -> None:
        world.add_instance(NAME).made_at = world.clock.seconds
        seen = observe(world, settings)
        assert seen.state is State.PENDING
        assert seen.cause == "Deploying 30%"

    @pytest.mark.parametrize("status", ["Created", "Upgrading", "SomethingNew"])
    def test_unheard_of_states_are_pending(self, world: World, settings: Settings, status: str) -> None:
        world.add_instance(NAME).fate = status
        assert observe(world, settings).state is State.PENDING

    def test_a_failed_deployment_is_broken_and_says_why(self, world: World, settings: Settings) -> None:
        world.add_instance(NAME, fate="DeployedFailed", detail="no vSwitch")
        world.logs = ["ROS: quota of EIPs exceeded", "second", "third", "fourth"]
        seen = observe(world, settings)
        assert seen.state is State.BROKEN
        assert seen.cause == "DeployedFailed: no vSwitch | ROS: quota of EIPs exceeded | second | third"

    def test_a_failure_without_readable_logs_still_tells_the_detail(
        self, world: World, settings: Settings
    ) -> None:
        world.add_instance(NAME, fate="DeployedFailed", detail="no vSwitch")
        world.faults["instance_logs"] = [denied()]
        assert observe(world, settings).cause == "DeployedFailed: no vSwitch"

    def test_a_failure_without_any_word_says_so(self, world: World, settings: Settings) -> None:
        world.add_instance(NAME, fate="DeployedFailed")
        assert observe(world, settings).cause == "DeployedFailed: no reason given"

    @pytest.mark.parametrize("state", ["failed", "inactive", "deleting", "delete_failed", "unavailable"])
    def test_a_dead_cluster_is_broken(self, world: World, settings: Settings, state: str) -> None:
        world.add_instance(NAME)
        world.cluster_state = state
        seen = observe(world, settings)
        assert (seen.state, seen.cause) == (State.BROKEN, f"the ACK cluster is {state}")

    @pytest.mark.parametrize("state", ["running", "updating", "upgrading", "scaling"])
    def test_a_busy_cluster_is_ready(self, world: World, settings: Settings, state: str) -> None:
        world.add_instance(NAME)
        world.cluster_state = state
        assert observe(world, settings).ready

    def test_deployed_without_a_cluster_is_broken(self, world: World, settings: Settings) -> None:
        made = world.add_instance(NAME)
        settings = settings.model_copy(update={"alibaba": Alibaba(existing_cluster_id="c0ther")})
        seen = observe(world, settings)
        assert made.id == seen.facts["instance_id"]
        assert (seen.state, seen.cause) == (State.BROKEN, "its ACK cluster is not to be found")

    def test_somebody_elses_instance_is_broken_and_not_ours(self, world: World, settings: Settings) -> None:
        made = world.add_instance(NAME, ours=False)
        seen = observe(world, settings)
        assert seen.state is State.BROKEN
        assert made.id in seen.cause and "raynest=raynest" in seen.cause

    def test_an_instance_of_another_name_is_not_looked_at(self, world: World, settings: Settings) -> None:
        world.add_instance("another")
        assert observe(world, settings).state is State.MISSING

    @pytest.mark.parametrize("error", [throttled(), denied()])
    def test_what_cannot_be_looked_up_is_unknown(
        self, world: World, settings: Settings, error: RemoteError
    ) -> None:
        world.add_instance(NAME)
        world.faults["find_instances"] = [error]
        seen = observe(world, settings)
        assert seen.state is State.UNKNOWN
        assert error.why in seen.cause

    def test_of_two_the_one_that_works_counts(self, world: World, settings: Settings) -> None:
        works = world.add_instance(NAME)
        world.add_instance(NAME, fate="DeployedFailed")
        world.add_instance(NAME).made_at = world.clock.seconds
        assert observe(world, settings).facts["instance_id"] == works.id

    def test_another_one_of_ours_is_paid_too_and_said(self, world: World, settings: Settings) -> None:
        first, second = world.add_instance(NAME), world.add_instance(NAME)
        ids = {first.id, second.id}
        seen = observe(world, settings)
        assert seen.ready
        other = (ids - {str(seen.facts["instance_id"])}).pop()
        assert seen.facts["also_paid"] == (f"{other} (Deployed)",)
        assert f"also paid: {other}" in seen.cause
        plan = make_links(world, settings).cluster.plan()
        assert any(f"also paid: {other}" in change.what for change in plan)

    @pytest.mark.parametrize("status", ["Stopped", "StartFailed"])
    def test_a_stopped_one_is_broken_and_left_to_a_person(
        self, world: World, settings: Settings, status: str
    ) -> None:
        made = world.add_instance(NAME, fate=status)
        seen = observe(world, settings)
        assert seen.state is State.BROKEN and "start it in the console" in seen.cause
        assert actions(world, settings) == ["none"]
        links = make_links(world, settings)
        with pytest.raises(NotReadyError, match="start it in the console"):
            links.cluster.ensure(links.deadline())
        assert made.deleted_at is None and world.clock.seconds == 0

    def test_one_that_stops_under_way_is_not_waited_for(self, world: World, settings: Settings) -> None:
        world.deploy_fate = "Stopped"
        links = make_links(world, settings)
        with pytest.raises(NotReadyError, match="start it in the console"):
            links.cluster.ensure(links.deadline())
        assert world.clock.seconds < 100

    def test_what_differs_from_the_settings_is_said(self, world: World, settings: Settings) -> None:
        links = make_links(world, settings)
        assert "differs" not in links.cluster.ensure(links.deadline()).facts
        three = settings.model_copy(update={"alibaba": Alibaba(worker_count=3, worker_disk_gib=2048)})
        seen = observe(world, three)
        assert seen.ready
        assert seen.facts["differs"] == (
            "WorkerInstanceCount is 1, the settings say 3; "
            "WorkerSystemDiskSize is 1024, the settings say 2048"
        )
        (change,) = make_links(world, three).cluster.plan()
        assert change.action == "none" and "WorkerInstanceCount is 1, the settings say 3" in change.why


class TestPlan:
    def test_nothing_there_plans_a_purchase_with_its_price(self, world: World, settings: Settings) -> None:
        (change,) = make_links(world, settings).cluster.plan()
        assert change.action == "create"
        assert "19.09 CNY per hour" in change.what and "ap-southeast-1b" in change.what
        assert world.bought == []

    def test_a_plan_tells_what_would_be_refused(self, world: World, settings: Settings) -> None:
        world.missing = [MissingPermission("cs", ("cs:CreateCluster",))]
        (change,) = make_links(world, settings).cluster.plan()
        assert "refused: ada lacks the permissions cs:CreateCluster" in change.why

    def test_each_state_has_its_verb(self, world: World, settings: Settings) -> None:
        made = world.add_instance(NAME)
        assert actions(world, settings) == ["none"]
        made.made_at = world.clock.seconds
        assert actions(world, settings) == ["wait"]
        made.made_at, made.fate = -100, "DeployedFailed"
        assert actions(world, settings) == ["recreate"]
        world.faults["find_instances"] = [throttled()]
        assert actions(world, settings) == ["unknown"]
        assert world.bought == [] and made.deleted_at is None


class TestEnsure:
    def test_buys_once_and_waits(self, world: World, settings: Settings) -> None:
        links, steps = make_links(world, settings), list[Step]()
        seen = links.cluster.ensure(links.deadline(), steps.append)
        assert seen.ready
        assert len(world.bought) == 1
        messages = " / ".join(step.message for step in steps)
        assert "buying the cluster: 19.09 CNY per hour" in messages
        assert "Deploying 30%" in messages
        assert 0.3 in [step.fraction for step in steps]
        assert {step.link for step in steps} == {"cluster"}

    def test_ready_needs_no_second_purchase_and_no_preflight(self, world: World, settings: Settings) -> None:
        links = make_links(world, settings)
        links.cluster.ensure(links.deadline())
        world.calls.clear()
        assert make_links(world, settings).cluster.ensure(links.deadline()).ready
        assert len(world.bought) == 1
        assert "resolve_service" not in world.calls

    def test_every_parameter_and_the_tag_are_sent(self, world: World, settings: Settings) -> None:
        links = make_links(world, settings)
        links.cluster.ensure(links.deadline())
        (made,) = world.instances.values()
        assert made.tags == {"raynest": NAME}
        assert made.parameters["CsOptions"] == "NewAck"
        assert made.parameters["ZoneId"] == "ap-southeast-1b"
        assert made.parameters["WorkerInstanceCount"] == 1
        assert made.parameters["WorkerSystemDiskSize"] == 1024

    def test_a_refusal_buys_nothing_and_says_what_to_do(self, world: World, settings: Settings) -> None:
        world.stock = []
        links = make_links(world, settings)
        with pytest.raises(RefusedError, match="sold out") as caught:
            links.cluster.ensure(links.deadline())
        assert "alibaba.region_id" in caught.value.fix
        assert world.bought == [] and links.journal.read("cluster") is None

    def test_a_purchase_that_is_refused_is_forgotten_so_that_the_next_has_a_new_token(
        self, world: World, settings: Settings
    ) -> None:
        links = make_links(world, settings)
        world.faults["create_instance"] = [no_balance()]
        with pytest.raises(RemoteError, match="failed"):
            links.cluster.ensure(links.deadline())
        assert links.journal.read("cluster") is None
        larger = settings.model_copy(update={"alibaba": Alibaba(worker_count=2)})
        assert make_links(world, larger).cluster.ensure(links.deadline()).ready

    def test_a_zone_that_sells_out_in_between_does_not_change_the_repeated_purchase(
        self, world: World, settings: Settings
    ) -> None:
        links = make_links(world, settings)
        world.faults["create_instance"] = [throttled()]
        with pytest.raises(RemoteError):
            links.cluster.ensure(links.deadline())
        world.stock = [type(world.stock[0])("ap-southeast-1c", True, "WithStock"), *world.stock]
        assert make_links(world, settings).cluster.ensure(links.deadline()).ready
        (made,) = world.instances.values()
        assert made.parameters["ZoneId"] == "ap-southeast-1b"

    def test_a_timeout_keeps_what_was_bought(self, world: World, settings: Settings) -> None:
        links = make_links(world, settings)
        with pytest.raises(NotReadyError, match="was not ready after 5 s") as caught:
            links.cluster.ensure(links.deadline(5))
        assert "Deploying" in caught.value.why
        assert make_links(world, settings).cluster.ensure(links.deadline()).ready
        assert len(world.bought) == 1

    def test_adopts_a_tagged_instance_that_is_on_its_way(self, world: World, settings: Settings) -> None:
        world.add_instance(NAME).made_at = world.clock.seconds
        links = make_links(world, settings)
        assert links.cluster.ensure(links.deadline()).ready
        assert world.bought == []

    def test_a_deployment_that_fails_under_way_says_why(self, world: World, settings: Settings) -> None:
        world.deploy_fate = "DeployedFailed"
        links = make_links(world, settings)
        with pytest.raises(NotReadyError, match="deployment of raynest failed") as caught:
            links.cluster.ensure(links.deadline())
        assert "quota of vCPUs exceeded" in caught.value.why
        assert "deletes the failed instance first" in caught.value.fix

    def test_a_failed_deployment_is_deleted_and_bought_anew(self, world: World, settings: Settings) -> None:
        world.deploy_fate = "DeployedFailed"
        links = make_links(world, settings)
        with pytest.raises(NotReadyError):
            links.cluster.ensure(links.deadline())
        world.deploy_fate = "Deployed"
        assert make_links(world, settings).cluster.ensure(links.deadline()).ready
        assert len(world.bought) == 2 and world.alive() == world.bought[1:]

    def test_one_that_is_being_deleted_is_waited_for(self, world: World, settings: Settings) -> None:
        old = world.add_instance(NAME)
        old.deleted_at = world.clock.seconds
        links = make_links(world, settings)
        assert links.cluster.ensure(links.deadline()).ready
        assert world.alive() == world.bought != [old.id]

    def test_one_deleted_behind_our_back_is_bought_with_a_new_token(
        self, world: World, settings: Settings
    ) -> None:
        links = make_links(world, settings)
        links.cluster.ensure(links.deadline())
        next(iter(world.instances.values())).deleted_at = -1000.0
        assert make_links(world, settings).cluster.ensure(links.deadline()).ready
        assert len(world.bought) == 2 and world.alive() == world.bought[1:]

    def test_deployed_with_a_dead_cluster_is_left_to_a_person(self, world: World, settings: Settings) -> None:
        world.add_instance(NAME)
        world.cluster_state = "failed"
        links = make_links(world, settings)
        with pytest.raises(NotReadyError, match="the ACK cluster is failed") as caught:
            links.cluster.ensure(links.deadline())
        assert "raynest down" in caught.value.fix
        assert "delete_instance" not in world.calls

    def test_not_ours_is_refused(self, world: World, settings: Settings) -> None:
        made = world.add_instance(NAME, ours=False)
        links = make_links(world, settings)
        with pytest.raises(RefusedError, match=made.id):
            links.cluster.ensure(links.deadline())
        assert world.bought == []

    def test_the_password_is_generated_private_and_forgotten(self, world: World, settings: Settings) -> None:
        links = make_links(world, settings)
        world.faults["create_instance"] = [throttled()]
        with pytest.raises(RemoteError):
            links.cluster.ensure(links.deadline())
        intent = links.journal.read("cluster")
        assert intent is not None
        password = intent.secret
        assert len(password) >= 8 and password not in repr(intent)
        seen = links.cluster.ensure(links.deadline())
        assert set(world.passwords) == {password} and password not in repr(seen)
        text = (state_dir(settings) / "journal.json").read_text()
        assert world.bought[0] in text and password not in text, "what is bought needs it no more"
