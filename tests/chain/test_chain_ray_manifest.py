"""A user's own manifest: where it leads, what of it is applied, and that `down` takes all of it away."""

from collections.abc import Callable
from pathlib import Path

import pytest
from chain_kube import FakeKube, FakeServe, served
from chain_world import World

from raynest_pipeline.chain.link import State
from raynest_pipeline.chain.ray_service import RayServiceLink
from raynest_pipeline.errors import NotReadyError, RefusedError
from raynest_pipeline.settings import RayServiceSettings
from raynest_pipeline.waiting import Deadline

NAMESPACE = "raynest"
PROXY = "https://47.1.0.1:6443/api/v1/namespaces/prod/services"

pytestmark = pytest.mark.usefixtures("serve")
MakeLink = Callable[..., RayServiceLink]

OWN = """\
apiVersion: v1
kind: Namespace
metadata: {name: prod}
---
apiVersion: v1
kind: Secret
metadata: {name: hf, namespace: prod, labels: {team: a}}
---
apiVersion: v1
kind: Service
metadata: {name: front, namespace: prod}
spec: {type: LoadBalancer}
---
apiVersion: ray.io/v1
kind: RayService
metadata: {name: mine, namespace: prod}
spec:
  serveConfigV2: |
    applications: [{name: a, import_path: "x:y"}]
  rayClusterConfig: {headGroupSpec: {}}
"""


class TestUsersManifest:
    @pytest.fixture
    def own(self, make: MakeLink, kube: FakeKube, serve: FakeServe, tmp_path: Path) -> RayServiceLink:
        path = tmp_path / "mine.yaml"
        path.write_text(OWN)
        serve.routes_now = {"/": "a"}
        kube.operator = lambda _: served("a")
        return make(ray_service=RayServiceSettings(manifest=str(path)))

    def test_it_names_where_to_look(
        self, own: RayServiceLink, kube: FakeKube, serve: FakeServe, deadline: Deadline
    ) -> None:
        assert "mine in prod" in own.observe().cause
        seen = own.ensure(deadline)
        assert seen.ready and (seen.facts["name"], seen.facts["namespace"]) == ("mine", "prod")
        assert set(serve.asked) == {f"{PROXY}/mine-serve-svc:8000/proxy"}
        assert own.observe().ready and (own.service_name, own.namespace) == ("mine", "prod")
        assert [change.action for change in own.plan()] == ["none"]
        assert ("Namespace", "", NAMESPACE) not in kube.objects

    def test_all_its_objects_are_labelled(
        self, own: RayServiceLink, kube: FakeKube, deadline: Deadline
    ) -> None:
        own.ensure(deadline)
        labels = {"app.kubernetes.io/managed-by": "raynest", "raynest/service": "mine"}
        assert kube.objects["Secret", "prod", "hf"]["metadata"]["labels"] == {"team": "a", **labels}
        assert kube.objects["RayService", "prod", "mine"]["metadata"]["labels"] == labels
        assert "labels" not in kube.objects["Namespace", "", "prod"]["metadata"]

    def test_all_its_objects_are_deleted_services_first(
        self, own: RayServiceLink, kube: FakeKube, deadline: Deadline
    ) -> None:
        own.ensure(deadline)
        changes = own.remove(deadline)
        assert kube.deleted == ["Service/front", "RayService/mine", "Secret/hf"]
        assert changes[0].what == "Service prod/front"
        assert list(kube.objects) == [("Namespace", "", "prod")]
        assert own.remove(deadline) == []

    def test_a_service_that_the_manifest_no_longer_has_is_deleted_too(
        self, own: RayServiceLink, make: MakeLink, kube: FakeKube, deadline: Deadline, tmp_path: Path
    ) -> None:
        own.ensure(deadline)
        path = tmp_path / "mine.yaml"
        first, second, _, last = OWN.split("---")
        path.write_text("---".join((first, second, last)))
        make(ray_service=RayServiceSettings(manifest=str(path))).remove(deadline)
        assert list(kube.objects) == [("Namespace", "", "prod")]

    def test_a_load_balancer_that_stays_is_told(
        self, own: RayServiceLink, kube: FakeKube, world: World
    ) -> None:
        own.ensure(Deadline.after(600, world.clock))
        kube.stuck = True
        with pytest.raises(NotReadyError, match="The deletion of Service front"):
            own.remove(Deadline.after(30, world.clock))

    def test_what_another_raynest_applied_there_stays(
        self, own: RayServiceLink, link: RayServiceLink, kube: FakeKube, deadline: Deadline
    ) -> None:
        own.ensure(deadline)
        theirs = {"app.kubernetes.io/managed-by": "raynest", "raynest/service": "another"}
        kube.put({"kind": "Service", "metadata": {"name": "x", "namespace": "prod", "labels": theirs}})
        own.remove(deadline)
        assert ("Service", "prod", "x") in kube.objects

    def test_somebody_elses_object_is_not_taken_over(
        self, own: RayServiceLink, kube: FakeKube, deadline: Deadline
    ) -> None:
        kube.put({"kind": "Secret", "metadata": {"name": "hf", "namespace": "prod"}}, manager="helm")
        with pytest.raises(RefusedError, match="Secret hf"):
            own.ensure(deadline)
        assert own.remove(deadline) == []

    def test_a_manifest_that_is_gone_is_unknown(self, make: MakeLink, tmp_path: Path) -> None:
        link = make(ray_service=RayServiceSettings(manifest=str(tmp_path / "none.yaml")))
        seen = link.observe()
        assert seen.state is State.UNKNOWN and "none.yaml" in seen.cause
