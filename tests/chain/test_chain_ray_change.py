"""A change is ready when Serve runs it, not when a status says so; and what a change must reach."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from chain_kube import (
    APP,
    FakeKube,
    FakeServe,
    kube_error,
    running,
    served,
    status_of,
    unauthorized,
    unreachable,
)
from chain_world import World

from raynest_pipeline.chain import taken_up
from raynest_pipeline.chain.link import State, Step
from raynest_pipeline.chain.ray_service import RayServiceLink
from raynest_pipeline.errors import NotReadyError, RemoteError, Verdict
from raynest_pipeline.kube.rayservice.serve_config import MANIFEST_VARIABLE, marks_of, nonce_of
from raynest_pipeline.settings import RayServiceSettings
from raynest_pipeline.waiting import Deadline

NAME, NAMESPACE = "stable-diffusion", "raynest"
STOCK = Path(__file__).parent / "data" / "own-rayservice.yaml"

pytestmark = pytest.mark.usefixtures("serve")
MakeLink = Callable[..., RayServiceLink]


def live(kube: FakeKube) -> dict[str, Any]:
    return kube.objects["RayService", NAMESPACE, NAME]


class TestStaleReady:
    """KubeRay has stamped the new generation, and Serve still runs the old application."""

    def test_the_old_application_is_not_taken_for_the_new_one(
        self, deployed: RayServiceLink, make: MakeLink, kube: FakeKube, serve: FakeServe, deadline: Deadline
    ) -> None:
        serve.deployed = running(kube)
        failed = [status_of("DEPLOYING"), status_of("DEPLOY_FAILED", message="no such model")]
        kube.script = [served(), served(), *failed]
        broken = make(ray_service=RayServiceSettings(model="no/such"))
        with pytest.raises(NotReadyError) as caught:
            broken.ensure(deadline)
        assert "no such model" in caught.value.why

    def test_it_is_ready_once_serve_runs_the_new_configuration(
        self, deployed: RayServiceLink, make: MakeLink, kube: FakeKube, serve: FakeServe, deadline: Deadline
    ) -> None:
        serve.deployed = running(kube)

        def switch(step: Step) -> None:
            if "configuration" in step.message:
                serve.deployed = None

        seen = make(ray_service=RayServiceSettings(model="other/model")).ensure(deadline, switch)
        assert seen.ready and seen.facts["confirmed"] is True
        assert 0 < deadline.clock.monotonic() < 10
        assert marks_of(live(kube)) == {APP: {MANIFEST_VARIABLE: seen.facts["manifest_hash"]}}

    def test_a_run_that_was_killed_after_its_apply_is_no_excuse(
        self, deployed: RayServiceLink, make: MakeLink, kube: FakeKube, serve: FakeServe, world: World
    ) -> None:
        serve.deployed = running(kube)
        changed = make(ray_service=RayServiceSettings(model="other/model"))
        with pytest.raises(NotReadyError, match="after 5 s"):
            changed.ensure(Deadline.after(5, world.clock))
        kube.applied.clear()
        with pytest.raises(NotReadyError, match="does not run the RayService's configuration"):
            changed.ensure(Deadline.after(5, world.clock))
        assert kube.applied == []

    @pytest.mark.parametrize("error", [unreachable(), kube_error(Verdict.PERMANENT, 403)])
    def test_without_the_dashboard_the_status_must_have_moved(
        self, deployed: RayServiceLink, make: MakeLink, kube: FakeKube, serve: FakeServe, world: World,
        error: RemoteError,
    ) -> None:  # fmt: skip
        serve.deployed = error
        kube.script = [served(), served(), status_of("DEPLOYING"), served()]
        seen = make(ray_service=RayServiceSettings(model="other/model")).ensure(
            Deadline.after(600, world.clock)
        )
        assert seen.ready and seen.facts["confirmed"] is False
        assert kube.script == []

    def test_a_users_own_manifest_must_have_moved_or_been_there_long_enough(
        self, make: MakeLink, kube: FakeKube, serve: FakeServe, world: World, tmp_path: Path
    ) -> None:
        serve.routes_now = {"/": "stable_diffusion"}
        kube.operator = lambda _: served("stable_diffusion")
        path = tmp_path / "own.yaml"
        path.write_text(STOCK.read_text())
        make(ray_service=RayServiceSettings(manifest=str(path))).ensure(Deadline.after(600, world.clock))
        assert world.clock.seconds == 0
        assert marks_of(live(kube)) == {"stable_diffusion": {}}, "its text is the user's"
        path.write_text(STOCK.read_text().replace("2.9.0", "2.9.1"))
        kube.script = [served("stable_diffusion"), status_of("DEPLOYING", app="stable_diffusion")]
        kube.script.append(served("stable_diffusion"))
        changed = make(ray_service=RayServiceSettings(manifest=str(path)))
        assert changed.ensure(Deadline.after(600, world.clock)).ready
        assert kube.script == [] and world.clock.seconds < 10
        path.write_text(STOCK.read_text())
        before = world.clock.seconds
        make(ray_service=RayServiceSettings(manifest=str(path))).ensure(Deadline.after(600, world.clock))
        assert world.clock.seconds - before >= taken_up.STALE_SECONDS

    def test_another_active_cluster_is_a_move(self) -> None:
        before = {"status": served()}
        applied = taken_up.Applied(before, 0.0)
        applied.saw(before, State.READY, 0.5)
        assert not applied.believes_ready(1.0)
        after = {"status": {**served(), "activeServiceStatus": {"rayClusterName": "sd-fghij"}}}
        applied.saw(after, State.READY, 0.5)
        assert applied.believes_ready(1.0)

    def test_an_old_nonce_does_not_confirm_a_users_changed_manifest(
        self, make: MakeLink, kube: FakeKube, serve: FakeServe, world: World, tmp_path: Path
    ) -> None:
        serve.routes_now = {"/": "stable_diffusion"}
        kube.operator = lambda _: served("stable_diffusion")
        path = tmp_path / "own.yaml"
        path.write_text(STOCK.read_text())
        own = make(ray_service=RayServiceSettings(manifest=str(path)))
        own.ensure(Deadline.after(600, world.clock))
        live(kube)["status"] = status_of("DEPLOY_FAILED", app="stable_diffusion")
        assert own.ensure(Deadline.after(600, world.clock)).facts["confirmed"] is True
        serve.deployed = running(kube)
        path.write_text(STOCK.read_text().replace("2.9.0", "2.9.1"))
        changed = make(ray_service=RayServiceSettings(manifest=str(path)))
        with pytest.raises(NotReadyError, match="does not run the RayService's configuration"):
            changed.ensure(Deadline.after(10, world.clock))

    def test_a_repair_is_ready_once_serve_has_its_nonce(
        self, deployed: RayServiceLink, kube: FakeKube, serve: FakeServe, world: World
    ) -> None:
        serve.deployed = running(kube)
        live(kube)["status"] = status_of("DEPLOY_FAILED", message="boom")

        def switch(step: Step) -> None:
            if "configuration" in step.message:
                serve.deployed = None

        assert deployed.ensure(Deadline.after(600, world.clock), switch).ready
        assert world.clock.seconds > 0


class TestServeThatDoesNotAnswer:
    @pytest.mark.parametrize(
        "error", [unreachable(), kube_error(Verdict.UNKNOWN), kube_error(Verdict.RETRYABLE, 429)]
    )
    def test_a_busy_serve_is_asked_again_and_not_rebuilt(
        self, deployed: RayServiceLink, kube: FakeKube, serve: FakeServe, world: World,
        monkeypatch: pytest.MonkeyPatch, error: RemoteError,
    ) -> None:  # fmt: skip
        answers: list[RemoteError] = [error] * 8
        real = serve.routes

        def routes(target: Any, **options: Any) -> dict[str, str]:
            if answers:
                raise answers.pop()
            return real(target, **options)

        monkeypatch.setattr(serve, "routes", routes)
        assert deployed.ensure(Deadline.after(600, world.clock)).ready
        assert kube.applied == [] and nonce_of(live(kube)) is None

    def test_one_missing_endpoint_is_not_enough(
        self, deployed: RayServiceLink, kube: FakeKube, serve: FakeServe, world: World,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        serve.routes_now = kube_error(Verdict.RETRYABLE, 503)
        clock_sleep = world.clock.sleep

        def sleep(seconds: float) -> None:
            serve.routes_now = {"/": APP}
            clock_sleep(seconds)

        monkeypatch.setattr(world.clock, "sleep", sleep)
        assert deployed.ensure(Deadline.after(600, world.clock)).ready
        assert kube.applied == []

    def test_refused_credentials_are_told_at_once(
        self, deployed: RayServiceLink, kube: FakeKube, serve: FakeServe, world: World
    ) -> None:
        serve.routes_now = unauthorized()
        with pytest.raises(RemoteError):
            deployed.ensure(Deadline.after(600, world.clock))
        assert kube.applied == [] and world.clock.seconds == 0

    def test_a_failure_gives_serves_own_cause(
        self, deployed: RayServiceLink, kube: FakeKube, serve: FakeServe, world: World
    ) -> None:
        serve.routes_now = {"/": "something-else"}
        with pytest.raises(NotReadyError) as caught:
            deployed.ensure(Deadline.after(600, world.clock))
        assert caught.value.why.splitlines()[0] == f"Serve has no route to {APP}"


class TestCredentialThatRunsOut:
    def test_the_wait_goes_on_with_a_new_client(
        self, deployed: RayServiceLink, kube: FakeKube, serve: FakeServe, world: World
    ) -> None:
        live(kube)["status"] = status_of("DEPLOYING")
        kube.script = [*[status_of("DEPLOYING")] * 40, served()]
        opened = kube.clients
        original = kube.watch

        def watch(*args: Any, **options: Any) -> Any:
            for event in original(*args, **options):
                if kube.clients == opened + 2 and world.clock.seconds > 61:
                    raise unauthorized()
                yield event

        kube.watch = watch  # type: ignore[method-assign]
        assert deployed.ensure(Deadline.after(600, world.clock)).ready
        assert kube.clients == kube.closed

    def test_a_first_image_is_asked_for_with_a_new_client(
        self, deployed: RayServiceLink, kube: FakeKube, serve: FakeServe, world: World
    ) -> None:
        serve.image = [*[unreachable()] * 25, unauthorized(), b"image"]
        assert deployed.ensure(Deadline.after(600, world.clock)).facts["first_image_bytes"] == 5

    def test_a_new_credential_that_is_refused_ends_it(
        self, deployed: RayServiceLink, serve: FakeServe, world: World
    ) -> None:
        serve.image = [unauthorized()]
        with pytest.raises(RemoteError) as caught:
            deployed.ensure(Deadline.after(600, world.clock))
        assert caught.value.status == 401 and world.clock.seconds < 60


class TestReplicas:
    def cluster(self, kube: FakeKube) -> dict[str, Any]:
        counts = {"replicas": 1, "minReplicas": 1, "maxReplicas": 1}
        groups = [{"groupName": "gpu-group", **counts, "template": {"t": 1}}]
        spec = {"rayVersion": "2.60.0", "workerGroupSpecs": groups}
        metadata = {"name": "sd-abcde", "namespace": NAMESPACE}
        obj = {"apiVersion": "ray.io/v1", "kind": "RayCluster", "metadata": metadata, "spec": spec}
        return kube.put(obj, manager="kuberay-operator")

    def group(self, kube: FakeKube) -> dict[str, Any]:
        (group,) = kube.objects["RayCluster", NAMESPACE, "sd-abcde"]["spec"]["workerGroupSpecs"]
        found: dict[str, Any] = group
        return found

    def test_another_number_reaches_the_running_cluster(
        self, deployed: RayServiceLink, make: MakeLink, kube: FakeKube, deadline: Deadline
    ) -> None:
        self.cluster(kube)
        assert make(ray_service=RayServiceSettings(replicas=3)).ensure(deadline).ready
        assert self.group(kube) == {
            "groupName": "gpu-group", "replicas": 3, "minReplicas": 3, "maxReplicas": 3, "template": {"t": 1},
        }  # fmt: skip
        assert [obj["kind"] for obj in kube.applied] == ["RayCluster", "ConfigMap", "RayService"]

    def test_also_when_the_change_is_a_repair(
        self, deployed: RayServiceLink, make: MakeLink, kube: FakeKube, deadline: Deadline
    ) -> None:
        self.cluster(kube)
        live(kube)["status"] = status_of("DEPLOY_FAILED", message="boom")
        assert make(ray_service=RayServiceSettings(replicas=3)).ensure(deadline).ready
        assert self.group(kube)["replicas"] == 3 and nonce_of(live(kube))

    def test_what_the_operator_writes_back_is_no_difference(
        self, deployed: RayServiceLink, make: MakeLink, kube: FakeKube, deadline: Deadline
    ) -> None:
        self.cluster(kube)
        config = live(kube)["spec"]["rayClusterConfig"]
        config["headGroupSpec"]["template"]["metadata"] = {}
        config["workerGroupSpecs"][0]["scaleStrategy"] = {}
        make(ray_service=RayServiceSettings(replicas=3)).ensure(deadline)
        assert self.group(kube)["replicas"] == 3

    def test_only_what_has_changed_is_passed_on(
        self, deployed: RayServiceLink, make: MakeLink, kube: FakeKube, deadline: Deadline
    ) -> None:
        self.cluster(kube)
        self.group(kube)["replicas"] = 2  # by hand, or by an autoscaler
        make(ray_service=RayServiceSettings(model="other/model")).ensure(deadline)
        assert self.group(kube)["replicas"] == 2

    def test_the_autoscaler_s_number_is_its_own(
        self, make: MakeLink, kube: FakeKube, deadline: Deadline
    ) -> None:
        make(ray_service=RayServiceSettings(max_replicas=3)).ensure(deadline)
        self.cluster(kube)
        self.group(kube).update(replicas=3, maxReplicas=3)
        make(ray_service=RayServiceSettings(replicas=2, max_replicas=4)).ensure(deadline)
        group = self.group(kube)
        assert (group["replicas"], group["minReplicas"], group["maxReplicas"]) == (3, 2, 4)

    def test_a_cluster_that_is_to_be_replaced_is_not_scaled(
        self, deployed: RayServiceLink, make: MakeLink, kube: FakeKube, deadline: Deadline
    ) -> None:
        self.cluster(kube)
        make(ray_service=RayServiceSettings(replicas=3, worker_cpus=7)).ensure(deadline)
        assert self.group(kube)["replicas"] == 1

    def test_a_kill_between_the_two_applies_is_mended(
        self, deployed: RayServiceLink, make: MakeLink, kube: FakeKube, deadline: Deadline
    ) -> None:
        self.cluster(kube)
        real, killed = kube.apply, make(ray_service=RayServiceSettings(replicas=3))

        def apply(obj: Any, **options: Any) -> Any:
            if obj["kind"] == "ConfigMap":
                raise unreachable()
            return real(obj, **options)

        kube.apply = apply  # type: ignore[method-assign]
        with pytest.raises(RemoteError):
            killed.ensure(deadline)
        kube.apply = real  # type: ignore[method-assign]
        assert killed.ensure(deadline).ready
        assert self.group(kube)["replicas"] == 3
