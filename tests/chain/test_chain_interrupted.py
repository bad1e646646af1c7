"""Killed at any remote call, sleep or file write, and run again: nothing is bought twice, nothing is left."""

from collections.abc import Callable
from pathlib import Path

import pytest
from chain_clock import Killed, no_answer, throttled
from chain_links import Links, kill_at_file_writes, make_links
from chain_world import World

from raynest_pipeline.errors import RaynestError
from raynest_pipeline.settings import Settings

MORE_THAN_ENOUGH = 400
"""Points that any of these runs passes; a run that passes more would never end."""

Scene = Callable[[World], None]


def plain(world: World) -> None:
    """Lists show at once what was bought."""


def slow_lists(world: World) -> None:
    """What was bought shows up in lists only seconds later."""
    world.listing_delay = 7.0


def every_interruption(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scene: Scene, work: Callable[[Links], object]
) -> list[tuple[int, World, Settings]]:
    """Do `work` in a new account for every n, killed at its n-th point; the worlds after the kills."""
    killed = []
    for n in range(1, MORE_THAN_ENOUGH):
        world, settings = World(), Settings(profile="alibaba", home=tmp_path / f"home-{n}")
        scene(world)
        with monkeypatch.context() as patch:
            kill_at_file_writes(world, patch)
            world.killer.arm(n)
            try:
                work(make_links(world, settings))
            except Killed:
                world.killer.arm(0)
                killed.append((n, world, settings))
            else:
                return killed
    raise AssertionError("the work never came to its end")


@pytest.mark.parametrize("scene", [plain, slow_lists])
def test_ensure_again_after_any_kill_buys_nothing_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scene: Scene
) -> None:
    worlds = every_interruption(tmp_path, monkeypatch, scene, Links.up)
    assert len(worlds) > 40, "the run passes many points"
    assert {world.killer.points[n - 1].split()[0] for n, world, _ in worlds} == {"before", "after", "sleep"}
    for n, world, settings in worlds:
        at = world.killer.points[n - 1]
        seen = make_links(world, settings).up()
        assert [item.state for item in seen] == ["ready", "ready"], f"killed {at}"
        assert len(world.purchases("si-")) == 1, f"killed {at}: instances {world.bought}"
        assert len(world.purchases("eip-")) == 1, f"killed {at}: addresses {world.bought}"
        assert len(world.alive()) == 2, f"killed {at}"


@pytest.mark.parametrize("scene", [plain, slow_lists])
def test_remove_after_any_kill_of_ensure_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scene: Scene
) -> None:
    leaks = []
    for n, world, settings in every_interruption(tmp_path, monkeypatch, scene, Links.up):
        at = world.killer.points[n - 1]
        try:
            make_links(world, settings).down()
        except RaynestError as error:
            leaks.append(f"killed {at} (point {n}): {error}")
            continue
        world.clock.sleep(60)
        if world.alive():
            leaks.append(f"killed {at} (point {n}): {world.alive()} is left")
    assert leaks == []


def test_remove_again_after_any_kill_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def down(links: Links) -> None:
        links.down()

    def bought(world: World) -> None:
        made = world.add_instance("raynest")
        world.add_eip(bound_to=made.cluster_id)

    worlds = every_interruption(tmp_path, monkeypatch, bought, down)
    assert len(worlds) > 15
    for n, world, settings in worlds:
        make_links(world, settings).down()
        assert world.alive() == [], f"killed {world.killer.points[n - 1]}"


def test_up_again_after_any_kill_of_a_teardown_ends_with_one_of_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def up_and_down(links: Links) -> None:
        links.up()
        links.down()

    for n, world, settings in every_interruption(tmp_path, monkeypatch, plain, up_and_down):
        seen = make_links(world, settings).up()
        at = world.killer.points[n - 1]
        assert [item.state for item in seen] == ["ready", "ready"], f"killed {at}"
        assert sorted(item.split("-")[0] for item in world.alive()) == ["eip", "si"], f"killed {at}"


@pytest.mark.parametrize("call", ["create_instance", "allocate_eip", "bind_eip"])
@pytest.mark.parametrize("scene", [plain, slow_lists])
def test_an_answer_that_is_lost_is_asked_for_again(
    world: World, settings: Settings, call: str, scene: Scene
) -> None:
    scene(world)
    world.lost[call] = [no_answer()]
    for _ in range(3):
        try:
            seen = make_links(world, settings).up()
            break
        except RaynestError:
            continue
    assert [item.state for item in seen] == ["ready", "ready"]
    assert (len(world.purchases("si-")), len(world.purchases("eip-"))) == (1, 1)


@pytest.mark.parametrize("call", ["create_instance", "allocate_eip"])
@pytest.mark.parametrize("scene", [plain, slow_lists])
def test_a_purchase_whose_answer_was_lost_is_found_by_remove(
    world: World, settings: Settings, call: str, scene: Scene
) -> None:
    scene(world)
    links = make_links(world, settings)
    if call == "allocate_eip":
        links.cluster.ensure(links.deadline())
    world.lost[call] = [no_answer()] * 100
    with pytest.raises(RaynestError):
        links.cluster.ensure(links.deadline())
        links.public_ip.ensure(links.deadline(3))
    action = call.split("_")[0]
    assert len([known for known, _ in world.tokens if known == action]) == 1, "one token for every attempt"
    make_links(world, settings).down()
    world.clock.sleep(60)
    assert world.alive() == []


@pytest.mark.parametrize("name", ["find_instances", "find_eips", "task", "get_cluster", "get_instance"])
def test_a_reader_that_fails_for_a_while_does_not_matter(world: World, settings: Settings, name: str) -> None:
    links = make_links(world, settings)
    links.cluster.ensure(links.deadline())
    world.faults[name] = [throttled(), throttled()]
    assert links.public_ip.ensure(links.deadline()).ready
    assert len(world.alive()) == 2
