"""What is missing of a batch, and what becomes of the workers' answers: the HTTP engine's own rules."""

from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from raynest_pipeline.errors import BatchError, StorageError
from raynest_pipeline.images.batch_store import BatchStore, open_batch
from raynest_pipeline.images.bulk.keeper import Keeper, request_of, table
from raynest_pipeline.images.bulk.painters import offer_of
from raynest_pipeline.images.bulk.plan import Plan
from raynest_pipeline.images.bulk.todo import Todo, chunks, failure, packed, settled, unpacked
from raynest_pipeline.images.engine import generate
from raynest_pipeline.images.manifest import Manifest
from raynest_pipeline.images.offer import offer_from
from raynest_pipeline.images.result import Tally
from raynest_pipeline.serving.contract import Painting
from raynest_pipeline.settings import Batch

FACTS = {
    "model": "tiny-untrained (random weights)",
    "revision": "r1",
    "native_size": 32,
    "default_steps": 10,
    "default_guidance": 7.5,
    "max_batch_size": 4,
}
OFFER = offer_of(FACTS)


@pytest.fixture
def store(tmp_path: Path) -> BatchStore:
    return open_batch(tmp_path, "b1")


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return Plan(batch_id="b1", root=str(tmp_path), prompts_sha256="0" * 64)


@pytest.fixture
def manifest(store: BatchStore) -> Iterator[Manifest]:
    with store.exclusive(), store.open_manifest() as opened:
        yield opened


def todo(store: BatchStore, manifest: Manifest, **settings: Any) -> Todo:
    return Todo(store, manifest, Batch(**settings), OFFER, Tally())


def painting(kit: Any, row: dict[str, Any], **changes: Any) -> Painting:
    made = Painting(
        data=kit.png(row["prompt"], row["seed"], row["size"]),
        format="png",
        seed=row["seed"],
        size=row["size"],
        steps=row["steps"],
        guidance=row["guidance"],
        model=row["model"],
        revision=row["revision"],
        device="cpu",
        seconds=0.1,
        batch=1,
    )
    return replace(made, **changes)


def test_everything_is_missing_at_first_with_the_model_s_defaults(
    store: BatchStore, manifest: Manifest, kit: Any
) -> None:
    rows = list(todo(store, manifest).missing(kit.prompts(3)))
    assert [row["id"] for row in rows] == ["p0", "p1", "p2"]
    assert (rows[0]["size"], rows[0]["steps"], rows[0]["guidance"]) == (32, 10, 7.5)
    request = request_of(rows[2])
    assert (request.prompt, request.seed, request.size, request.steps) == ("prompt 2", 2, 32, 10)


def test_settings_stand_in_for_prompts_that_say_nothing(
    store: BatchStore, manifest: Manifest, kit: Any
) -> None:
    prompts = [replace(kit.prompts(1)[0], size=64)]
    (row,) = todo(store, manifest, size=128, steps=3).missing(prompts)
    assert (row["size"], row["steps"]) == (64, 3)


def test_a_settled_image_is_not_missing_any_more(
    store: BatchStore, manifest: Manifest, plan: Plan, kit: Any
) -> None:
    first = todo(store, manifest)
    keeper = Keeper(plan)
    for row in first.missing(kit.prompts(2)):
        answer = keeper.settle(row, painting(kit, row), attempts=1, latency_ms=12.34)
        record, fruitless = settled(answer)
        assert (record.status, record.latency_ms, record.width, fruitless) == ("made", 12.3, 32, False)
        manifest.append(record)
    again = todo(store, manifest)
    assert [row["id"] for row in again.missing(kit.prompts(3))] == ["p2"]
    assert again.tally.reused == 2


def test_an_image_without_a_line_is_adopted(
    store: BatchStore, manifest: Manifest, plan: Plan, kit: Any
) -> None:
    (row,) = todo(store, manifest).missing(kit.prompts(1))
    Keeper(plan).settle(row, painting(kit, row), attempts=1, latency_ms=1.0)
    again = todo(store, manifest)
    assert list(again.missing(kit.prompts(1))) == []
    record = manifest.latest("p0")
    assert record is not None
    assert (record.status, record.size_bytes, again.tally.reused) == (
        "adopted",
        len(kit.png("prompt 0", 0)),
        1,
    )


def test_half_a_file_is_made_anew(store: BatchStore, manifest: Manifest, kit: Any) -> None:
    (row,) = todo(store, manifest).missing(kit.prompts(1))
    store.write(row["file"], kit.png("prompt 0", 0)[:100])
    assert [r["id"] for r in todo(store, manifest).missing(kit.prompts(1))] == ["p0"]


def test_the_engines_agree_on_names_and_keys(tmp_path: Path, endpoint: Any, plan: Plan, kit: Any) -> None:
    """Whatever the HTTP engine has made of the same model is nothing to make here."""
    store = open_batch(tmp_path, "b1")
    prompts = [replace(p, negative_prompt="blur", extra={"x_who": "me"}) for p in kit.prompts(4)]
    result = generate(prompts, endpoint.target, store, Batch(steps=7))
    assert result.made == 4
    with store.exclusive(), store.open_manifest() as manifest:
        mine = todo(store, manifest, steps=7)
        assert list(mine.missing(prompts)) == []
        assert mine.tally.reused == 4
        assert len(list(todo(store, manifest, steps=8).missing(prompts))) == 4, "other steps, other images"


def test_the_http_engine_takes_over_what_workers_made(
    tmp_path: Path, endpoint: Any, plan: Plan, kit: Any
) -> None:
    store, prompts = open_batch(tmp_path, "b1"), kit.prompts(5)
    with store.exclusive(), store.open_manifest() as manifest:
        keeper = Keeper(plan)
        for row in todo(store, manifest).missing(prompts[:3]):
            manifest.append(settled(keeper.settle(row, painting(kit, row), 1, 1.0))[0])
    result = generate(prompts, endpoint.target, store, Batch())
    assert (result.made, result.reused) == (2, 3)


def test_our_offer_is_the_one_that_the_endpoint_describes() -> None:
    parameters = [{"name": name, "in": "query", "schema": {}} for name in sorted(OFFER.parameters)]
    openapi = {"paths": {"/imagine": {"get": {"parameters": parameters}}, "/health": {}}}
    described = offer_from(openapi, FACTS)
    assert described is not None
    for name in ("parameters", "model", "revision", "defaults", "documented"):
        assert getattr(described, name) == getattr(OFFER, name), name


# -- chunks ----------------------------------------------------------------------------------------


def test_chunks_are_alike_whole_and_complete() -> None:
    rows = [{"id": n, "size": 64 if n % 3 else 32, "steps": 5, "guidance": 1.0} for n in range(20)]
    made = list(chunks(rows, 4))
    assert sorted(row["id"] for chunk in made for row in chunk) == list(range(20))
    assert all(len({row["size"] for row in chunk}) == 1 for chunk in made)
    assert sorted(len(chunk) for chunk in made) == [1, 3, 4, 4, 4, 4]


def test_chunks_come_as_soon_as_they_are_full() -> None:
    def rows() -> Iterator[dict[str, Any]]:
        for n in range(4):
            yield {"id": n, "size": 1, "steps": 1, "guidance": 1}
        raise AssertionError("read too far")

    assert [row["id"] for row in next(chunks(rows(), 4))] == [0, 1, 2, 3]


def test_a_chunk_travels_small_and_whole() -> None:
    rows = [
        {"id": f"p{n}", "prompt": "a red circle on a white background", "extra": {"x": [n]}}
        for n in range(64)
    ]
    assert unpacked(packed(rows)) == rows
    assert len(packed(rows)) < len(str(rows)) / 4
    block = table(rows)
    assert block.num_rows == 1
    assert unpacked(block["answers"].to_pylist()[0]) == rows


# -- the keeper ------------------------------------------------------------------------------------


@pytest.fixture
def row(store: BatchStore, manifest: Manifest, kit: Any) -> dict[str, Any]:
    (found,) = todo(store, manifest).missing(kit.prompts(1))
    return found


def test_a_blank_image_is_no_image(store: BatchStore, plan: Plan, row: dict[str, Any], kit: Any) -> None:
    blank = painting(kit, row, data=kit.png("x", 0, 32, blank=True))
    answer = Keeper(plan).settle(row, blank, attempts=3, latency_ms=1.0)
    record, fruitless = settled(answer)
    assert (record.status, record.file, record.attempts, fruitless) == ("failed", None, 3, True)
    assert "blank" in str(record.error)
    assert store.read(row["file"]) is None


def test_what_the_safety_checker_blacked_out_is_the_prompt_s_fault(
    plan: Plan, row: dict[str, Any], kit: Any
) -> None:
    black = painting(kit, row, data=kit.png("x", 0, 32, blank=True), filtered=True)
    record, fruitless = settled(Keeper(plan).settle(row, black, 1, 1.0))
    assert not fruitless
    assert "safety checker" in str(record.error)


@pytest.mark.parametrize("damage", [lambda data: data[:-20], lambda data: b"<html>", lambda data: b""])
def test_damaged_bytes_are_never_stored(
    store: BatchStore, plan: Plan, row: dict[str, Any], kit: Any, damage: Any
) -> None:
    wrong = painting(kit, row, data=damage(kit.png("x", 0, 32)))
    assert settled(Keeper(plan).settle(row, wrong, 1, 1.0))[0].status == "failed"
    assert store.read(row["file"]) is None


def test_another_size_is_not_what_was_asked_for(plan: Plan, row: dict[str, Any], kit: Any) -> None:
    answer = Keeper(plan).settle(row, painting(kit, row, data=kit.png("x", 0, 64)), 1, 1.0)
    assert "is 64x64 pixels, not 32x32" in answer["error"]


def test_another_model_ends_the_batch(plan: Plan, row: dict[str, Any], kit: Any) -> None:
    with pytest.raises(BatchError, match="model changed during the batch"):
        Keeper(plan).settle(row, painting(kit, row, revision="r2"), 1, 1.0)


def test_a_store_that_cannot_be_written_ends_the_batch(tmp_path: Path, plan: Plan) -> None:
    (tmp_path / "in-the-way").write_text("a file")
    with pytest.raises(StorageError):
        Keeper(replace(plan, root=str(tmp_path / "in-the-way")))


def test_a_failure_s_record_keeps_what_was_asked(row: dict[str, Any]) -> None:
    record, fruitless = settled(failure(row, "out of memory", 4, fruitless=True))
    assert (record.prompt, record.key, record.error, fruitless) == (
        "prompt 0",
        row["key"],
        "out of memory",
        True,
    )
    assert "fruitless" not in asdict(record)
