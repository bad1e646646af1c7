"""The kubeconfig link: fetched privately, verified by a call, renewed in time, never shown."""

import stat
from datetime import timedelta
from pathlib import Path

import pytest
from chain_clock import denied, throttled
from chain_kube import FakeKube, kube_error, unauthorized, unreachable
from chain_links import Links, make_links
from chain_ports import KUBECONFIG, jwt
from chain_world import World

from raynest_pipeline.chain.kubeconfig import given_kubeconfig
from raynest_pipeline.chain.link import State
from raynest_pipeline.errors import InputError, NotReadyError, RemoteError, Verdict
from raynest_pipeline.settings import Settings

MINUTES = 120


@pytest.fixture
def links(world: World, settings: Settings, kube: FakeKube) -> Links:
    """Of a chain whose API server has an address."""
    world.add_eip(bound_to=world.add_instance("raynest").cluster_id)
    return make_links(world, settings)


@pytest.fixture
def fetched(links: Links) -> Links:
    links.kubeconfig.ensure(links.deadline())
    return links


class TestObserve:
    def test_no_file_is_missing(self, links: Links) -> None:
        assert links.kubeconfig.observe().state is State.MISSING

    def test_fetched_and_accepted_is_ready(self, fetched: Links) -> None:
        seen = fetched.kubeconfig.observe()
        assert seen.ready
        assert seen.facts["server"] == "https://47.9.0.1:6443"
        assert seen.facts["kubernetes_version"] == "v1.32.1"
        assert seen.facts["path"] == str(fetched.kubeconfig.path)
        assert seen.facts["expires"] == "2026-01-01T02:00:00+00:00"

    @pytest.mark.parametrize("text", ["", "{", "apiVersion: v1\nkind: Config\n", "just words"])
    def test_a_damaged_file_is_broken(self, fetched: Links, text: str) -> None:
        fetched.kubeconfig.path.write_text(text)
        seen = fetched.kubeconfig.observe()
        assert seen.state is State.BROKEN and "is damaged" in seen.cause

    def test_a_file_that_is_no_text_is_missing(self, fetched: Links) -> None:
        fetched.kubeconfig.path.write_bytes(b"\xff\xfe")
        assert fetched.kubeconfig.observe().state is State.MISSING

    def test_an_expired_credential_is_broken_without_a_call(
        self, world: World, fetched: Links, kube: FakeKube
    ) -> None:
        world.clock.seconds += MINUTES * 60
        kube.clients = 0
        seen = fetched.kubeconfig.observe()
        assert (seen.state, seen.cause) == (State.BROKEN, "its credential has expired")
        assert kube.clients == 0

    def test_another_address_is_broken(self, world: World, fetched: Links) -> None:
        next(iter(world.eips.values())).ip = "47.7.7.7"
        seen = fetched.kubeconfig.observe()
        assert seen.state is State.BROKEN
        assert "https://47.9.0.1:6443" in seen.cause and "https://47.7.7.7:6443 now" in seen.cause

    @pytest.mark.parametrize("verb", ["server_version", "list"])
    def test_a_credential_that_is_refused_is_broken(self, fetched: Links, kube: FakeKube, verb: str) -> None:
        kube.fail[verb] = [unauthorized()]
        assert fetched.kubeconfig.observe().state is State.BROKEN

    @pytest.mark.parametrize("error", [unreachable(), kube_error(Verdict.PERMANENT, 403)])
    def test_what_cannot_be_looked_at_is_unknown(
        self, fetched: Links, kube: FakeKube, error: RemoteError
    ) -> None:
        kube.fail["list"] = [error]
        assert fetched.kubeconfig.observe().state is State.UNKNOWN

    def test_a_cloud_that_does_not_answer_is_unknown(self, world: World, fetched: Links) -> None:
        world.faults["find_instances"] = [throttled()]
        assert fetched.kubeconfig.observe().state is State.UNKNOWN

    def test_a_cluster_that_is_not_ours_is_unknown(self, world: World, fetched: Links) -> None:
        for instance in world.instances.values():
            instance.tags = {}
        assert fetched.kubeconfig.observe().state is State.UNKNOWN

    def test_clients_are_closed_whatever_happens(self, fetched: Links, kube: FakeKube) -> None:
        kube.fail["list"] = [unreachable()]
        fetched.kubeconfig.observe()
        assert kube.clients == kube.closed > 0

    def test_no_secret_is_in_the_observation(self, world: World, fetched: Links, kube: FakeKube) -> None:
        assert world.kubeconfig_token in fetched.kubeconfig.path.read_text()
        kube.fail["list"] = [unauthorized()]
        for _ in range(2):
            assert world.kubeconfig_token not in repr(fetched.kubeconfig.observe())


class TestEnsure:
    def test_writes_a_private_file_with_context_and_namespace(self, fetched: Links) -> None:
        import yaml

        path = fetched.kubeconfig.path
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        document = yaml.safe_load(path.read_text())
        assert document["current-context"] == "raynest"
        assert document["contexts"][0]["context"]["namespace"] == "raynest"
        assert [entry.name for entry in path.parent.iterdir()] == [path.name], "no copy is left beside it"

    def test_what_works_is_not_fetched_again(self, world: World, fetched: Links) -> None:
        world.calls.clear()
        assert fetched.kubeconfig.ensure(fetched.deadline()).ready
        assert "kubeconfig" not in world.calls

    def test_is_renewed_when_a_quarter_of_its_time_is_left(self, world: World, fetched: Links) -> None:
        world.clock.seconds += 89 * 60
        fetched.kubeconfig.ensure(fetched.deadline())
        assert world.calls.count("kubeconfig") == 1
        world.clock.seconds += 2 * 60
        seen = fetched.kubeconfig.ensure(fetched.deadline())
        assert world.calls.count("kubeconfig") == 2
        assert seen.facts["expires"] == "2026-01-01T03:31:00+00:00"

    def test_a_refused_credential_is_replaced(self, world: World, fetched: Links, kube: FakeKube) -> None:
        kube.fail["server_version"] = [unauthorized()]
        world.kubeconfig_token = "n3w"
        assert fetched.kubeconfig.ensure(fetched.deadline()).ready
        assert "n3w" in fetched.kubeconfig.path.read_text()

    def test_the_servers_restart_is_waited_out(self, links: Links, kube: FakeKube, world: World) -> None:
        kube.fail["server_version"] = [unreachable(), unreachable(), unauthorized()]
        assert links.kubeconfig.ensure(links.deadline()).ready
        assert world.calls.count("kubeconfig") == 1

    def test_a_server_that_stays_silent_times_out_with_the_cause(self, links: Links, kube: FakeKube) -> None:
        kube.fail["server_version"] = [unreachable() for _ in range(500)]
        with pytest.raises(NotReadyError, match="A working kubeconfig") as caught:
            links.kubeconfig.ensure(links.deadline(60))
        assert "Could not read it" in caught.value.why

    def test_without_a_cluster_it_says_what_to_do(
        self, world: World, settings: Settings, kube: FakeKube
    ) -> None:
        links = make_links(world, settings)
        with pytest.raises(NotReadyError, match="no cluster") as caught:
            links.kubeconfig.ensure(links.deadline())
        assert "`cluster`" in caught.value.fix

    def test_without_an_address_it_says_what_to_do(self, world: World, links: Links) -> None:
        world.eips.clear()
        with pytest.raises(NotReadyError, match="no public address") as caught:
            links.kubeconfig.ensure(links.deadline())
        assert "`public_ip`" in caught.value.fix

    def test_a_denied_fetch_passes_through(self, world: World, links: Links) -> None:
        world.faults["kubeconfig"] = [denied()]
        with pytest.raises(RemoteError) as caught:
            links.kubeconfig.ensure(links.deadline())
        assert caught.value.exit_code_for_verdict == 3
        assert not links.kubeconfig.path.exists()

    def test_the_users_own_kubeconfig_is_never_touched(
        self, links: Links, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        home = tmp_path / "somebody"
        (home / ".kube").mkdir(parents=True)
        (home / ".kube" / "config").write_text("mine")
        monkeypatch.setenv("HOME", str(home))
        monkeypatch.setenv("KUBECONFIG", str(home / ".kube" / "config"))
        links.kubeconfig.ensure(links.deadline())
        links.kubeconfig.remove(links.deadline())
        assert (home / ".kube" / "config").read_text() == "mine"


class TestPlanRemoveClient:
    def test_a_plan_for_each_state(self, fetched: Links, kube: FakeKube) -> None:
        assert fetched.kubeconfig.plan()[0].action == "none"
        kube.fail["list"] = [unreachable()]
        assert fetched.kubeconfig.plan()[0].action == "unknown"
        fetched.kubeconfig.path.unlink()
        change = fetched.kubeconfig.plan()[0]
        assert change.action == "create" and "120 minutes" in change.what

    def test_remove_deletes_the_file_once(self, fetched: Links) -> None:
        assert [change.action for change in fetched.kubeconfig.remove(fetched.deadline())] == ["delete"]
        assert not fetched.kubeconfig.path.exists()
        assert fetched.kubeconfig.remove(fetched.deadline()) == []

    def test_remove_deletes_a_damaged_file_too(self, fetched: Links) -> None:
        fetched.kubeconfig.path.write_bytes(b"\xff\xfe not text, but maybe a credential")
        fetched.kubeconfig.remove(fetched.deadline())
        assert not fetched.kubeconfig.path.exists()

    def test_a_client_without_a_file_says_what_to_do(self, links: Links) -> None:
        with pytest.raises(NotReadyError, match="no kubeconfig"):
            links.kubeconfig.client()

    def test_a_client_renews_what_is_due(self, world: World, fetched: Links) -> None:
        fetched.kubeconfig.client()
        assert world.calls.count("kubeconfig") == 1
        world.clock.seconds += timedelta(minutes=110).total_seconds()
        fetched.kubeconfig.client()
        assert world.calls.count("kubeconfig") == 2


class TestGiven:
    def write(self, tmp_path: Path, namespace: str = "") -> Path:
        text = KUBECONFIG.format(server="https://k:6443", token=jwt(World().clock.now(), "x"))
        if namespace:
            text = text.replace("user: u}}]", f"user: u, namespace: {namespace}}}}}]")
        (tmp_path / "kc").write_text(text)
        return tmp_path / "kc"

    def given(self, **more: str | Path) -> Settings:
        return Settings(profile="kubeconfig", name="mine", kubeconfig=more)  # type: ignore[arg-type]

    def test_the_namespace_is_the_set_one_else_the_contexts_else_the_name(self, tmp_path: Path) -> None:
        path = self.write(tmp_path)
        assert given_kubeconfig(self.given(path=path))[2] == "mine"
        assert given_kubeconfig(self.given(path=path, namespace="set"))[2] == "set"
        path = self.write(tmp_path, "of-context")
        assert given_kubeconfig(self.given(path=path))[2] == "of-context"
        assert given_kubeconfig(self.given(path=path, namespace="set"))[2] == "set"

    def test_a_file_that_is_missing_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"nope.yaml cannot be read") as caught:
            given_kubeconfig(self.given(path=tmp_path / "nope.yaml"))
        assert caught.value.fix == "Correct kubeconfig.path."

    def test_a_context_that_is_missing_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="not usable") as caught:
            given_kubeconfig(self.given(path=self.write(tmp_path), context="nope"))
        assert "'nope'" in caught.value.why and "admin" in caught.value.why
