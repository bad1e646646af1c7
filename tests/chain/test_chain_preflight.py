"""Every question before a purchase, with every kind of answer; a reader that is denied is never a refusal."""

from decimal import Decimal
from typing import Any

import pytest
from chain_clock import cloud_error, denied, throttled
from chain_world import World
from hypothesis import given
from hypothesis import strategies as st

from raynest_pipeline.alibaba.computenest import DeployCheck, MissingPermission, Provision, Service
from raynest_pipeline.alibaba.ecs import InstanceType, ZoneStock
from raynest_pipeline.alibaba.price import Price, PriceLine
from raynest_pipeline.alibaba.sts import Caller
from raynest_pipeline.chain.preflight import POLICIES, Check, Report, describe_price, run_preflight
from raynest_pipeline.errors import RefusedError, RemoteError, Verdict
from raynest_pipeline.settings import Alibaba, Profile, RayServiceSettings, Settings

ROOT = Caller("Account", "1234", "acs:ram::1234:root", "root")


def report(world: World, **alibaba: Any) -> Report:
    settings = Settings(profile="alibaba", alibaba=Alibaba(**alibaba))
    return run_preflight(settings, world.cloud)


def check(world: World, name: str, **alibaba: Any) -> Check:
    return next(check for check in report(world, **alibaba).checks if check.name == name)


def price(amount: str, currency: str = "CNY", *, lower_bound: bool = False) -> Price:
    return Price(Decimal(amount), currency, lower_bound)


def with_workers(amount: str) -> Price:
    """A lower bound with the workers in it and the traffic not, as Compute Nest gives it."""
    worker = PriceLine("AckOrAcsClusterModule.EcsInstanceWorker", Decimal(amount), "CNY", "Hour")
    traffic = PriceLine("AckOrAcsClusterModule.Eip", Decimal("0.8"), "CNY", "GB", "priced per GB")
    return Price(Decimal(amount), "CNY", True, (worker, traffic))


class TestReport:
    def test_all_is_well(self, world: World) -> None:
        found = report(world)
        assert [c.outcome for c in found.checks] == ["pass"] * 8
        assert found.refusals == ()
        assert found.zone_id == "ap-southeast-1b"
        found.raise_if_refused()

    def test_it_only_reads(self, world: World) -> None:
        report(world)
        assert world.bought == []
        assert not any("create" in call or "delete" in call for call in world.calls)

    def test_all_refusals_are_told_at_once_with_what_to_do(self, world: World) -> None:
        world.stock, world.missing = [], [MissingPermission("cs", ("cs:CreateCluster", "cs:GetClusters"))]
        with pytest.raises(RefusedError) as caught:
            report(world).raise_if_refused()
        assert "sold out" in caught.value.what
        assert "cs:CreateCluster, cs:GetClusters" in caught.value.what
        assert all(policy in caught.value.fix for policy in POLICIES)
        assert caught.value.exit_code == 4

    @pytest.mark.parametrize("call", ["caller", "resolve_service"])
    def test_without_an_identity_or_a_service_it_fails(self, world: World, call: str) -> None:
        world.faults[call] = [cloud_error(Verdict.PERMANENT, "InvalidAccessKeyId.NotFound", status=404)]
        with pytest.raises(RemoteError):
            report(world)

    @pytest.mark.parametrize(
        ("call", "name"),
        [
            ("instance_type", "worker_spec"),
            ("missing_permissions", "permissions"),
            ("provisions", "activation"),
            ("check_deployable", "balance"),
        ],
    )
    @pytest.mark.parametrize("error", [denied(), throttled()])
    def test_a_reader_that_is_denied_makes_unknown_not_missing(
        self, world: World, call: str, name: str, error: RemoteError
    ) -> None:
        world.faults[call] = [error]
        found = report(world)
        (one,) = [c for c in found.checks if c.name == name]
        assert one.outcome == "unknown"
        assert "could not be checked" in one.message
        found.raise_if_refused()

    def test_an_existing_cluster_needs_no_machines_and_no_price(self, world: World) -> None:
        found = report(world, existing_cluster_id="c0123")
        assert {c.name for c in found.checks} == {"identity", "region", "permissions", "activation"}
        assert found.price is None
        assert not {"zones_in_stock", "estimate_cost", "hourly_price"} & set(world.calls)


class TestRegion:
    def test_a_region_that_the_service_does_not_serve_is_refused(self, world: World) -> None:
        one = check(world, "region", region_id="eu-central-1")
        assert one.outcome == "refuse"
        assert "eu-central-1" in one.message and "ap-southeast-1" in one.fix

    def test_a_service_that_names_no_regions_is_believed(self, world: World) -> None:
        world.service = Service("service-1", "3", "Ray", ("t",), ())
        assert check(world, "region", region_id="eu-central-1").outcome == "pass"


class TestWorkerSpec:
    def test_larger_is_enough_whatever_its_name(self, world: World) -> None:
        world.machine = InstanceType("x", 32, 188.0, 1, 24.0, "NVIDIA A10")
        one = check(world, "worker_spec", worker_instance_type="ecs.a-small-name")
        assert one.outcome == "pass"
        assert "ecs.a-small-name: 32 vCPU, 188 GiB, 1x NVIDIA A10, 1024 GiB disk" in one.message

    def test_a_great_name_is_not_enough(self, world: World) -> None:
        world.machine = InstanceType("x", 4, 15.0, 0, 0.0, "")
        one = check(world, "worker_spec", worker_instance_type="ecs.gn7i-c8g1.2xlarge")
        assert one.outcome == "refuse"
        for lack in ("vCPUs 4 < 8", "memory (GiB) 15 < 30", "GPUs 0 < 1", "GPU memory (GiB) 0 < 16"):
            assert lack in one.message

    def test_a_small_disk_is_refused(self, world: World) -> None:
        assert "system disk (GiB) 120 < 1024" in check(world, "worker_spec", worker_disk_gib=120).message

    def test_an_unknown_type_is_refused(self, world: World) -> None:
        world.machine = None
        one = check(world, "worker_spec", worker_instance_type="ecs.nope")
        assert (one.outcome, one.message) == ("refuse", "there is no machine type ecs.nope")

    def test_who_wants_no_gpu_needs_no_gpu_memory(self, world: World) -> None:
        world.machine = InstanceType("x", 8, 32.0, 0, 0.0, "")
        settings = Settings(
            profile=Profile.ALIBABA,
            alibaba=Alibaba(min_gpus=0),
            ray_service=RayServiceSettings(gpus_per_replica=0),
        )
        found = next(c for c in run_preflight(settings, world.cloud).checks if c.name == "worker_spec")
        assert found.outcome == "pass"

    @given(
        vcpus=st.integers(1, 64),
        memory=st.floats(1, 512),
        gpus=st.integers(0, 4),
        gpu_memory=st.floats(0, 80),
        name=st.sampled_from(["ecs.a", "ecs.gn7i-c8g1.2xlarge", "ecs.zzz.32xlarge"]),
    )
    def test_only_the_figures_count(
        self, vcpus: int, memory: float, gpus: int, gpu_memory: float, name: str
    ) -> None:
        world = World()
        world.machine = InstanceType(name, vcpus, memory, gpus, gpu_memory, "GPU")
        enough = vcpus >= 8 and memory >= 30 and gpus >= 1 and gpu_memory >= 16
        one = check(world, "worker_spec", worker_instance_type=name)
        assert one.outcome == ("pass" if enough else "refuse")


class TestStock:
    def test_the_first_zone_in_stock_is_taken(self, world: World) -> None:
        world.stock = [
            ZoneStock("a", False, "WithoutStock"),
            ZoneStock("c", True, "WithStock"),
            ZoneStock("b", True, "ClosedWithStock"),
        ]
        assert report(world).zone_id == "c"

    def test_the_zone_that_is_set_is_kept(self, world: World) -> None:
        world.stock = [ZoneStock("a", True, "WithStock"), ZoneStock("b", True, "WithStock")]
        found = report(world, zone_id="b")
        assert found.zone_id == "b" and found.refusals == ()

    def test_a_set_zone_that_is_sold_out_is_refused_and_others_named(self, world: World) -> None:
        one = check(world, "stock", zone_id="ap-southeast-1a")
        assert one.outcome == "refuse"
        assert "sold out in zone ap-southeast-1a" in one.message and "ap-southeast-1b" in one.fix

    @pytest.mark.parametrize("stock", [[], [ZoneStock("a", False, "WithoutStock")]])
    def test_sold_out_everywhere_is_refused(self, world: World, stock: list[ZoneStock]) -> None:
        world.stock = stock
        one = check(world, "stock")
        assert one.outcome == "refuse" and "sold out in every zone of ap-southeast-1" in one.message

    def test_a_stock_that_cannot_be_read_is_unknown_when_a_zone_is_set(self, world: World) -> None:
        world.faults["zones_in_stock"] = [denied()]
        found = report(world, zone_id="ap-southeast-1a")
        assert [c.outcome for c in found.checks if c.name == "stock"] == ["unknown"]
        assert found.zone_id == "ap-southeast-1a"

    def test_and_without_a_zone_nothing_can_be_bought(self, world: World) -> None:
        world.faults["zones_in_stock"] = [denied()]
        one = check(world, "stock")
        assert (one.outcome, one.fix) == ("refuse", "Set alibaba.zone_id.")


class TestPermissions:
    def test_the_account_itself_may_do_everything(self, world: World) -> None:
        world.caller = ROOT
        assert check(world, "permissions").outcome == "pass"
        assert "missing_permissions" not in world.calls

    @pytest.mark.parametrize(
        ("attached", "outcome"),
        [
            (None, "unknown"),
            (set(), "unknown"),
            ({"AliyunCSFullAccess"}, "unknown"),
            ({"AdministratorAccess"}, "pass"),
            (set(POLICIES), "pass"),
        ],
    )
    def test_names_of_policies_are_a_hint_and_never_a_refusal(
        self, world: World, attached: set[str] | None, outcome: str
    ) -> None:
        world.missing, world.policies = None, attached
        assert check(world, "permissions").outcome == outcome

    def test_absent_policies_are_named(self, world: World) -> None:
        world.missing, world.policies = None, {"AliyunCSFullAccess"}
        one = check(world, "permissions")
        assert "AliyunECSFullAccess" in one.message and "AliyunCSFullAccess" not in one.message


class TestActivation:
    def test_what_is_not_activated_is_refused_with_its_link(self, world: World) -> None:
        world.provisions = [
            Provision("CS", False, enable_url="https://enable"),
            Provision(
                "ROS", True, missing_roles=("AliyunROSDefaultRole",), authorization_url="https://roles"
            ),
        ]
        one = check(world, "activation")
        assert one.outcome == "refuse"
        assert one.message == "CS is not activated; ROS lacks the service roles AliyunROSDefaultRole"
        assert one.fix == "Authorize once in the console: https://enable https://roles"

    def test_a_product_that_cannot_say_is_no_refusal(self, world: World) -> None:
        world.provisions = [Provision("ECS", None, status_reason="unknown")]
        assert check(world, "activation").outcome == "pass"


class TestPrice:
    def test_within_the_cap(self, world: World) -> None:
        one = check(world, "price")
        assert (one.outcome, one.message) == ("pass", "19.09 CNY per hour, the cap is 30 CNY")

    def test_at_the_cap_is_within_it_and_a_cent_more_is_not(self, world: World) -> None:
        world.estimate = price("30.00")
        assert check(world, "price").outcome == "pass"
        world.estimate = price("30.01")
        one = check(world, "price")
        assert one.outcome == "refuse" and "above the cap of 30 CNY per hour" in one.message

    def test_a_lower_bound_is_told_as_one(self, world: World) -> None:
        world.estimate = with_workers("19.09")
        assert "at least 19.09 CNY" in check(world, "price").message

    def test_a_lower_bound_below_the_workers_price_gives_way_to_it(self, world: World) -> None:
        world.estimate, world.workers_price = with_workers("0.64"), price("54.20")
        found = report(world)
        assert found.price is not None
        assert (found.price.amount, found.price.lower_bound) == (Decimal("54.20"), True)
        assert [c.name for c in found.refusals] == ["price"]

    def test_a_lower_bound_without_the_workers_is_added_to_their_price(self, world: World) -> None:
        world.estimate, world.workers_price = price("25", lower_bound=True), price("29")
        found = report(world)
        assert found.price is not None
        assert (found.price.amount, found.price.lower_bound) == (Decimal("54"), True)
        assert [c.name for c in found.refusals] == ["price"]

    @pytest.mark.parametrize("error", [denied(), None])
    def test_a_lower_bound_without_the_workers_and_their_price_means_nothing(
        self, world: World, error: RemoteError | None
    ) -> None:
        world.estimate, world.workers_price = price("0.64", lower_bound=True), None
        world.faults["hourly_price"] = [error] if error else []
        one = check(world, "price", worker_count=50)
        assert (one.outcome, one.message) == ("refuse", "the price could not be found out")
        assert check(world, "price", worker_count=50, allow_unknown_price=True).outcome == "unknown"

    def test_a_workers_line_without_a_price_does_not_count(self, world: World) -> None:
        unpriced = PriceLine("M.EcsInstanceWorker", None, note="the inquiry for it failed")
        world.estimate, world.workers_price = Price(Decimal("0.64"), "CNY", True, (unpriced,)), None
        assert check(world, "price").outcome == "refuse"

    def test_a_lower_bound_with_the_workers_in_it_is_enough(self, world: World) -> None:
        world.estimate, world.workers_price = with_workers("19.09"), None
        assert report(world).price == with_workers("19.09")

    def test_a_full_estimate_is_believed_though_lower(self, world: World) -> None:
        world.estimate, world.workers_price = price("10"), price("12")
        assert report(world).price == price("10")

    def test_other_currencies_are_never_compared(self, world: World) -> None:
        world.estimate, world.workers_price = with_workers("3"), price("54", "USD")
        assert report(world).price == with_workers("3")
        world.estimate = price("3", lower_bound=True)
        assert report(world).price is None

    def test_a_price_in_another_currency_than_the_cap_is_refused(self, world: World) -> None:
        world.estimate = price("2.5", "USD")
        one = check(world, "price")
        assert one.outcome == "refuse" and "in USD, the cap in CNY" in one.message
        assert check(world, "price", price_currency="USD").outcome == "pass"

    @pytest.mark.parametrize("error", [denied(), throttled(), None])
    def test_without_an_estimate_the_workers_price_is_a_lower_bound(
        self, world: World, error: RemoteError | None
    ) -> None:
        world.estimate = None
        world.faults["estimate_cost"] = [error] if error else []
        found = report(world)
        assert found.price == price("18.07", lower_bound=True)

    def test_an_unknown_price_is_refused(self, world: World) -> None:
        world.estimate = world.workers_price = None
        one = check(world, "price")
        assert one.outcome == "refuse"
        assert one.message == "the price could not be found out" and "allow_unknown_price" in one.fix

    def test_unless_the_settings_allow_it(self, world: World) -> None:
        world.estimate = world.workers_price = None
        found = report(world, allow_unknown_price=True)
        assert [c.outcome for c in found.checks if c.name == "price"] == ["unknown"]
        assert found.refusals == ()

    def test_allowing_the_unknown_does_not_lift_the_cap(self, world: World) -> None:
        world.estimate = price("99")
        assert check(world, "price", allow_unknown_price=True).outcome == "refuse"

    def test_in_words(self) -> None:
        assert describe_price(price("1.005", "USD")) in ("1.00 USD per hour", "1.01 USD per hour")
        assert describe_price(price("19.09", lower_bound=True)) == "at least 19.09 CNY per hour"


class TestBalance:
    def test_a_hard_problem_is_refused_and_a_skippable_is_not(self, world: World) -> None:
        world.deployable = [
            DeployCheck("Balance", "the balance is 3 CNY"),
            DeployCheck("Quota", "near the limit", skippable=True),
        ]
        one = check(world, "balance")
        assert (one.outcome, one.message) == ("refuse", "Balance: the balance is 3 CNY")

    def test_a_side_without_such_a_call_is_unknown(self, world: World) -> None:
        world.deployable = None
        assert check(world, "balance").outcome == "unknown"

    def test_without_a_price_there_is_nothing_to_ask(self, world: World) -> None:
        world.estimate = world.workers_price = None
        assert "balance" not in {c.name for c in report(world, allow_unknown_price=True).checks}


class TestRoomForTheReplicas:
    @pytest.mark.parametrize(
        ("service", "alibaba", "refused"),
        [
            ({"replicas": 2}, {}, "ray_service.replicas is 2, with 1 GPUs each, but 1 x "),
            ({"replicas": 2}, {"worker_count": 2}, ""),
            ({"max_replicas": 3}, {"worker_count": 2}, "ray_service.max_replicas is 3"),
            ({"max_replicas": 2}, {"worker_count": 2}, ""),
            ({"gpus_per_replica": 2}, {"worker_count": 5}, "gpus_per_replica is 2, but "),
            ({"gpus_per_replica": 0, "replicas": 4}, {}, ""),
            ({"replicas": 2, "manifest": "own.yaml"}, {}, ""),
        ],
    )
    def test_it_is_there_before_anything_is_bought(
        self, world: World, service: dict[str, Any], alibaba: dict[str, Any], refused: str
    ) -> None:
        settings = Settings(
            profile=Profile.ALIBABA,
            alibaba=Alibaba(**alibaba),
            ray_service=RayServiceSettings(**service),
        )
        found = next(c for c in run_preflight(settings, world.cloud).checks if c.name == "worker_spec")
        assert (found.outcome == "refuse") is bool(refused)
        assert refused in found.message
        assert bool(found.fix) is bool(refused)
