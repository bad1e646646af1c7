"""The cluster link takes away what is ours, and only that."""

from typing import Any

import pytest
from chain_links import make_links
from chain_world import BoughtInstance, World

from raynest_pipeline.errors import NotReadyError, RefusedError
from raynest_pipeline.settings import Settings

NAME = "raynest"


class TestRemove:
    def test_nothing_there_is_nothing_to_do(self, world: World, settings: Settings) -> None:
        links = make_links(world, settings)
        assert links.cluster.remove(links.deadline()) == []

    def test_deletes_ours_and_waits_until_it_is_gone(self, world: World, settings: Settings) -> None:
        links = make_links(world, settings)
        links.cluster.ensure(links.deadline())
        (change,) = links.cluster.remove(links.deadline())
        assert (change.action, change.what) == ("delete", f"service instance {world.bought[0]}")
        assert world.alive() == [] and links.journal.read("cluster") is None

    def test_deletes_all_of_ours(self, world: World, settings: Settings) -> None:
        world.add_instance(NAME)
        world.add_instance(NAME, fate="DeployedFailed")
        links = make_links(world, settings)
        assert len(links.cluster.remove(links.deadline())) == 2
        assert world.alive() == []

    def test_leaves_somebody_elses_beside_ours_alone(self, world: World, settings: Settings) -> None:
        foreign = world.add_instance(NAME, ours=False)
        world.add_instance(NAME)
        links = make_links(world, settings)
        links.cluster.remove(links.deadline())
        assert world.alive() == [foreign.id]

    def test_refuses_when_only_somebody_elses_is_there(self, world: World, settings: Settings) -> None:
        foreign = world.add_instance(NAME, ours=False)
        links = make_links(world, settings)
        with pytest.raises(RefusedError):
            links.cluster.remove(links.deadline())
        assert world.alive() == [foreign.id]

    def test_a_deletion_that_fails_is_told_with_its_reason(self, world: World, settings: Settings) -> None:
        made = _undeletable(world)
        links = make_links(world, settings)
        with pytest.raises(NotReadyError, match="could not be deleted") as caught:
            links.cluster.remove(links.deadline())
        assert "the cluster is protected" in caught.value.why
        assert "deletion protection" in caught.value.fix
        assert world.alive() == [made.id]

    def test_a_deletion_that_failed_once_is_tried_again(self, world: World, settings: Settings) -> None:
        made = _undeletable(world)
        links = make_links(world, settings)
        with pytest.raises(NotReadyError):
            links.cluster.remove(links.deadline())
        made.undeletable = False  # A person took the protection off.
        made.deleted_at, made.fate = None, "DeletedFailed"
        make_links(world, settings).cluster.remove(links.deadline())
        assert world.alive() == []

    def test_after_removal_the_next_purchase_has_a_new_token(self, world: World, settings: Settings) -> None:
        links = make_links(world, settings)
        links.cluster.ensure(links.deadline())
        links.cluster.remove(links.deadline())
        assert links.cluster.ensure(links.deadline()).ready
        assert len(world.bought) == 2 and world.alive() == world.bought[1:]


def _undeletable(world: World) -> BoughtInstance:
    more: dict[str, Any] = {"undeletable": True, "detail": "the cluster is protected"}
    return world.add_instance(NAME, **more)
