"""The RayService link at work: what it applies, when it rebuilds, and when it believes a failure."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from chain_kube import (
    APP,
    FakeKube,
    FakeServe,
    kube_error,
    served,
    status_of,
    unreachable,
)
from chain_world import World

from raynest_pipeline.chain.link import Step
from raynest_pipeline.chain.ray_service import HASH_ANNOTATION, RayServiceLink
from raynest_pipeline.chain.taken_up import GRACE_SECONDS
from raynest_pipeline.errors import NotReadyError, RaynestError, Verdict
from raynest_pipeline.kube.rayservice.serve_config import nonce_of
from raynest_pipeline.settings import RayServiceSettings
from raynest_pipeline.waiting import Deadline

NAME, NAMESPACE = "stable-diffusion", "raynest"
STOCK = Path(__file__).parent / "data" / "own-rayservice.yaml"

pytestmark = pytest.mark.usefixtures("serve")
MakeLink = Callable[..., RayServiceLink]


def live(kube: FakeKube) -> dict[str, Any]:
    return kube.objects["RayService", NAMESPACE, NAME]


def become(kube: FakeKube, status: dict[str, Any]) -> None:
    live(kube)["status"] = status


class TestEnsure:
    def test_applies_namespace_code_and_service_and_draws(
        self, link: RayServiceLink, kube: FakeKube, deadline: Deadline
    ) -> None:
        steps: list[Step] = []
        seen = link.ensure(deadline, steps.append)
        assert seen.ready and seen.facts["first_image_bytes"] == len(b"\x89PNG-a-small-image")
        assert [obj["kind"] for obj in kube.applied] == ["Namespace", "ConfigMap", "RayService"]
        assert live(kube)["metadata"]["annotations"][HASH_ANNOTATION] == seen.facts["manifest_hash"]
        assert any("drew a first image" in step.message for step in steps)

    def test_a_namespace_that_is_there_is_left_alone(
        self, link: RayServiceLink, kube: FakeKube, deadline: Deadline
    ) -> None:
        kube.put({"kind": "Namespace", "metadata": {"name": NAMESPACE}}, manager="helm")
        link.ensure(deadline)
        assert "Namespace" not in [obj["kind"] for obj in kube.applied]

    def test_what_serves_is_not_touched(
        self, deployed: RayServiceLink, kube: FakeKube, deadline: Deadline
    ) -> None:
        generation = live(kube)["metadata"]["generation"]
        assert deployed.ensure(deadline).ready
        assert kube.applied == [] and live(kube)["metadata"]["generation"] == generation

    def test_changed_settings_are_applied(
        self, deployed: RayServiceLink, make: MakeLink, kube: FakeKube, deadline: Deadline
    ) -> None:
        changed = make(ray_service=RayServiceSettings(replicas=2))
        assert changed.ensure(deadline).ready
        assert live(kube)["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]["replicas"] == 2
        assert nonce_of(live(kube)) is None

    def test_a_failed_application_is_rebuilt_by_a_nonce(
        self, deployed: RayServiceLink, kube: FakeKube, deadline: Deadline
    ) -> None:
        before = live(kube)["spec"]["serveConfigV2"]
        become(kube, status_of("DEPLOY_FAILED", message="boom"))
        assert deployed.ensure(deadline).ready
        assert live(kube)["spec"]["serveConfigV2"] != before
        assert nonce_of(live(kube))

    def test_each_rebuild_has_another_nonce(
        self, deployed: RayServiceLink, kube: FakeKube, deadline: Deadline
    ) -> None:
        nonces = set()
        for _ in range(3):
            become(kube, status_of("DEPLOY_FAILED", message="boom"))
            deployed.ensure(deadline)
            nonces.add(nonce_of(live(kube)))
        assert len(nonces) == 3

    def test_a_nonce_is_no_drift_and_survives_a_later_change(
        self, deployed: RayServiceLink, make: MakeLink, kube: FakeKube, deadline: Deadline
    ) -> None:
        become(kube, status_of("DEPLOY_FAILED", message="boom"))
        deployed.ensure(deadline)
        nonce = nonce_of(live(kube))
        kube.applied.clear()
        deployed.ensure(deadline)
        assert kube.applied == []
        assert [change.action for change in deployed.plan()] == ["none"]
        make(ray_service=RayServiceSettings(replicas=2)).ensure(deadline)
        assert nonce_of(live(kube)) == nonce, "a change of settings does not rebuild by itself"

    def test_ready_that_does_not_serve_is_rebuilt(
        self, deployed: RayServiceLink, kube: FakeKube, serve: FakeServe, world: World
    ) -> None:
        serve.routes_now = kube_error(Verdict.RETRYABLE, 503)
        kube.operator = lambda obj: (setattr(serve, "routes_now", {"/": APP}), served())[1]
        assert deployed.ensure(Deadline.after(600, world.clock)).ready
        assert nonce_of(live(kube))

    def test_what_cannot_recover_is_deleted_and_made_anew(
        self, deployed: RayServiceLink, kube: FakeKube, deadline: Deadline
    ) -> None:
        become(kube, status_of("", reason="InitializingTimeout"))
        assert deployed.ensure(deadline).ready
        assert kube.deleted == [f"RayService/{NAME}"]
        assert nonce_of(live(kube)) is None

    def test_one_that_is_being_deleted_is_waited_for(
        self, deployed: RayServiceLink, kube: FakeKube, world: World
    ) -> None:
        live(kube)["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
        assert deployed.ensure(Deadline.after(600, world.clock)).ready
        assert "deletionTimestamp" not in live(kube)["metadata"]

    def test_a_finalizer_that_holds_it_is_told(
        self, deployed: RayServiceLink, kube: FakeKube, world: World
    ) -> None:
        kube.stuck = True
        become(kube, status_of("", reason="InitializingTimeout"))
        with pytest.raises(NotReadyError, match=f"The deletion of RayService {NAME}") as caught:
            deployed.ensure(Deadline.after(60, world.clock))
        assert "KubeRay operator" in caught.value.fix

    def test_somebody_elses_rayservice_is_not_taken_over(
        self, link: RayServiceLink, kube: FakeKube, deadline: Deadline
    ) -> None:
        spec = {"serveConfigV2": "applications: [{name: theirs}]", "rayClusterConfig": {}}
        theirs = {"kind": "RayService", "metadata": {"name": NAME, "namespace": NAMESPACE}, "spec": spec}
        kube.operator = lambda _: served("theirs")
        kube.put(theirs, manager="kubectl-client-side-apply")
        with pytest.raises(RaynestError, match=NAME):
            link.ensure(deadline)
        assert live(kube)["spec"] == spec

    @pytest.mark.parametrize(
        ("declared", "wanted", "there"),
        [(True, "auto", True), (False, "auto", False), (False, "on", True), (True, "off", False)],
    )
    def test_token_authentication_where_the_cluster_offers_it(
        self, make: MakeLink, kube: FakeKube, deadline: Deadline, declared: bool, wanted: str, there: bool
    ) -> None:
        kube.declared = declared
        make(ray_service=RayServiceSettings(token_auth=wanted)).ensure(deadline)  # type: ignore[arg-type]
        assert ("authOptions" in live(kube)["spec"]["rayClusterConfig"]) is there

    def test_a_users_own_manifest_is_applied_as_it_is(
        self, make: MakeLink, kube: FakeKube, serve: FakeServe, deadline: Deadline
    ) -> None:
        serve.routes_now = {"/": "stable_diffusion"}
        kube.operator = lambda _: served("stable_diffusion")
        steps: list[Step] = []
        own = make(ray_service=RayServiceSettings(manifest=str(STOCK)))
        assert own.ensure(deadline, steps.append).ready
        assert live(kube)["spec"]["rayClusterConfig"]["rayVersion"] == "2.9.0"
        assert any("deleted from Hugging Face" in step.message for step in steps)
        assert "ConfigMap" not in [obj["kind"] for obj in kube.applied]


class TestWaiting:
    def test_progress_is_told_until_it_serves(
        self, link: RayServiceLink, kube: FakeKube, deadline: Deadline
    ) -> None:
        kube.script = [status_of("DEPLOYING", message="loading the model"), status_of("DEPLOYING"), served()]
        steps: list[Step] = []
        assert link.ensure(deadline, steps.append).ready
        assert any("loading the model" in step.message or "DEPLOYING" in step.message for step in steps)

    def test_an_old_failure_right_after_a_change_is_not_believed(
        self, deployed: RayServiceLink, kube: FakeKube, world: World
    ) -> None:
        become(kube, status_of("DEPLOY_FAILED", message="old"))
        old = status_of("DEPLOY_FAILED", message="old")
        kube.script = [old, old, old, served()]
        assert deployed.ensure(Deadline.after(600, world.clock)).ready

    def test_a_failure_that_lasts_is_believed(
        self, deployed: RayServiceLink, kube: FakeKube, world: World
    ) -> None:
        failed = status_of("DEPLOY_FAILED", message="CUDA out of memory")
        become(kube, failed)
        kube.operator = lambda _: failed
        with pytest.raises(NotReadyError, match=f"RayService {NAMESPACE}/{NAME} is not ready") as caught:
            deployed.ensure(Deadline.after(600, world.clock))
        assert "memory" in caught.value.why and caught.value.fix
        assert 30 < world.clock.seconds < 120

    def test_a_failure_after_a_fresh_start_is_believed_at_once(
        self, deployed: RayServiceLink, kube: FakeKube, world: World
    ) -> None:
        become(kube, status_of("DEPLOY_FAILED", message="old"))
        kube.script = [status_of("DEPLOYING"), *[status_of("DEPLOY_FAILED", message="new")] * 50]
        with pytest.raises(NotReadyError):
            deployed.ensure(Deadline.after(600, world.clock))
        assert world.clock.seconds < 20

    @pytest.mark.parametrize("app", ["DEPLOYING", "RUNNING", "UNHEALTHY"])
    def test_a_moment_without_endpoints_amid_a_rebuild_is_no_failure(
        self, deployed: RayServiceLink, kube: FakeKube, world: World, app: str
    ) -> None:
        become(kube, status_of("DEPLOY_FAILED", message="old"))
        empty = status_of(app, reason="ZeroServeEndpoints")
        spell = [status_of("DEPLOYING"), *[empty] * 20]
        kube.script = [*spell, *spell, served()]
        assert deployed.ensure(Deadline.after(600, world.clock)).ready
        assert [obj["kind"] for obj in kube.applied] == ["ConfigMap", "RayService"]
        assert world.clock.seconds > GRACE_SECONDS, "each spell is shorter, both together are not"

    @pytest.mark.parametrize(
        "status",
        [
            status_of("RUNNING", reason="ZeroServeEndpoints"),
            status_of("UNHEALTHY", ready="True", reason="NonZeroServeEndpoints"),
        ],
    )
    def test_what_serves_badly_for_long_is_a_failure(
        self, deployed: RayServiceLink, kube: FakeKube, world: World, status: dict[str, Any]
    ) -> None:
        become(kube, status)
        kube.script = [status_of("DEPLOYING"), *[status] * 300]
        with pytest.raises(NotReadyError, match="is not ready"):
            deployed.ensure(Deadline.after(600, world.clock))
        assert GRACE_SECONDS <= world.clock.seconds < GRACE_SECONDS + 10

    def test_a_rebuild_that_is_under_way_is_waited_for_and_not_begun_anew(
        self, deployed: RayServiceLink, kube: FakeKube, deadline: Deadline
    ) -> None:
        become(kube, status_of("DEPLOYING", reason="ZeroServeEndpoints"))
        kube.applied.clear()
        kube.script = [status_of("DEPLOYING", reason="ZeroServeEndpoints")] * 2 + [served()]
        assert deployed.ensure(deadline).ready
        assert kube.applied == []

    def test_a_timeout_says_how_long_and_why(
        self, link: RayServiceLink, kube: FakeKube, world: World
    ) -> None:
        kube.operator = lambda _: status_of("DEPLOYING", message="downloading weights")
        with pytest.raises(NotReadyError, match="after 30 s") as caught:
            link.ensure(Deadline.after(30, world.clock))
        assert "downloading weights" in str(caught.value)

    def test_what_waiting_cannot_mend_ends_it_early(
        self, link: RayServiceLink, kube: FakeKube, world: World
    ) -> None:
        kube.operator = lambda _: status_of("", reason="ValidationFailed")
        with pytest.raises(NotReadyError) as caught:
            link.ensure(Deadline.after(600, world.clock))
        assert "KubeRay gave up" in caught.value.why
        assert world.clock.seconds < 120

    def test_one_that_is_deleted_meanwhile_is_told(
        self, link: RayServiceLink, kube: FakeKube, deadline: Deadline, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        kube.operator = lambda _: status_of("DEPLOYING")
        real = deadline.clock.sleep

        def sleep(seconds: float) -> None:
            kube.objects.pop(("RayService", NAMESPACE, NAME), None)
            real(seconds)

        monkeypatch.setattr(deadline.clock, "sleep", sleep)
        with pytest.raises(NotReadyError, match="was deleted while raynest waited"):
            link.ensure(deadline)

    def test_an_upgrade_in_progress_is_not_ready(
        self, link: RayServiceLink, kube: FakeKube, deadline: Deadline
    ) -> None:
        upgrading = json.loads(json.dumps(served()))
        upgrading["conditions"].append({"type": "UpgradeInProgress", "status": "True", "reason": "x"})
        kube.script = [upgrading, upgrading, served()]
        assert link.ensure(deadline).ready
        assert deadline.clock.monotonic() > 0


class TestFirstImage:
    def test_a_service_that_is_slow_to_draw_is_waited_for(
        self, link: RayServiceLink, serve: FakeServe, deadline: Deadline
    ) -> None:
        serve.image = [unreachable(), kube_error(Verdict.UNKNOWN), b"image"]
        assert link.ensure(deadline).facts["first_image_bytes"] == 5

    def test_a_service_that_draws_nothing_is_not_ready(
        self, link: RayServiceLink, serve: FakeServe, deadline: Deadline
    ) -> None:
        serve.image = [kube_error(Verdict.PERMANENT, 422)]
        with pytest.raises(NotReadyError, match="drew no image"):
            link.ensure(deadline)

    def test_it_gives_up_at_the_deadline(self, link: RayServiceLink, serve: FakeServe, world: World) -> None:
        serve.image = [unreachable()]
        with pytest.raises(NotReadyError, match="A first image was not ready"):
            link.ensure(Deadline.after(20, world.clock))
