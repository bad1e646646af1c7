"""Fixtures that the tests of chain, defs and cli share; their conftest files import them."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from chain_kube import FakeKube, FakeServe
from chain_world import World

from raynest_pipeline.alibaba.cloud import Cloud
from raynest_pipeline.chain.chain import Chain, build_chain
from raynest_pipeline.chain.endpoint import EndpointFinder
from raynest_pipeline.chain.ray_service import RayServiceLink
from raynest_pipeline.settings import Settings
from raynest_pipeline.waiting import Deadline


@pytest.fixture(autouse=True)
def _own_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("RAYNEST_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def world() -> World:
    """An empty account."""
    return World()


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Of a chain called `raynest` whose home is the test's own folder."""
    return make_settings(tmp_path)


@pytest.fixture
def kube(monkeypatch: pytest.MonkeyPatch) -> FakeKube:
    """The API of whatever cluster a kubeconfig leads to."""
    fake = FakeKube()
    monkeypatch.setattr("raynest_pipeline.chain.kubeconfig.KubeClient.from_file", fake.from_file)
    return fake


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch, kube: FakeKube) -> FakeServe:
    """What Serve answers through any route."""
    fake = FakeServe(kube)
    monkeypatch.setattr("raynest_pipeline.chain.serving.serve", fake)
    return fake


MakeLink = Callable[..., RayServiceLink]


@pytest.fixture
def make(settings: Settings, kube: FakeKube) -> MakeLink:
    def link(**more: Any) -> RayServiceLink:
        chosen = settings.model_copy(update=more)
        return RayServiceLink(chosen, kube.from_file, "raynest", EndpointFinder(chosen))

    return link


@pytest.fixture
def link(make: MakeLink) -> RayServiceLink:
    return make()


@pytest.fixture
def deadline(world: World) -> Deadline:
    return Deadline.after(600, world.clock)


@pytest.fixture
def deployed(link: RayServiceLink, kube: FakeKube, deadline: Deadline) -> RayServiceLink:
    """Applied by us, and serving."""
    link.ensure(deadline)
    kube.applied.clear()
    return link


@pytest.fixture
def chain(
    world: World, settings: Settings, kube: FakeKube, serve: FakeServe, monkeypatch: pytest.MonkeyPatch
) -> Chain:
    """As `raynest` builds it for a cloud account."""
    monkeypatch.setattr(Cloud, "from_settings", lambda *_, **__: world.cloud)
    return build_chain(settings, world.clock)


@pytest.fixture
def up(chain: Chain, world: World) -> Chain:
    for link in chain.links:
        chain.ensure(link.name)
    world.calls.clear()
    return chain


def make_settings(home: Path, **more: Any) -> Settings:
    return Settings(profile="alibaba", home=home / "home", **more)
