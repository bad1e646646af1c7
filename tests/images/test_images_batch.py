from pathlib import Path
from typing import Any

import pytest

from raynest_pipeline.errors import InputError, RefusedError
from raynest_pipeline.images.batch import batch_id_for, batch_prompts, run_batch
from raynest_pipeline.images.batch_store import open_batch
from raynest_pipeline.images.kept import kept_prompts
from raynest_pipeline.images.names import name_problem
from raynest_pipeline.images.prompt_file import open_prompts
from raynest_pipeline.images.store import BatchFolder
from raynest_pipeline.settings import Batch


def test_from_a_prompt_file_to_its_sheet_and_again_without_the_file(tmp_path: Path, endpoint: Any) -> None:
    source = tmp_path / "my prompts.csv"
    source.write_text("id,prompt\ncat,a cat\ndog,a dog\n")
    folder = BatchFolder(tmp_path / "out", batch_id_for(open_prompts(source)))
    first = run_batch(folder, batch_prompts(folder, source, tmp_path / "no"), endpoint.target, Batch())
    assert (first.result.made, first.images, first.summary.whole) == (2, 2, 2)
    assert folder.sheet_path.is_file() and "data:image/jpeg" in first.inline_sheet
    source.unlink()
    own = batch_prompts(folder, None, tmp_path / "no")
    assert own.path.parent == folder.path
    again = run_batch(folder, own, endpoint.target, Batch())
    assert (again.result.made, again.result.reused) == (0, 2)


def test_records_of_prompts_that_left_the_file_are_not_counted(tmp_path: Path, endpoint: Any) -> None:
    folder, source = BatchFolder(tmp_path / "out", "b"), tmp_path / "p.csv"
    source.write_text("id,prompt\ncat,a cat\ndog,a dog\n")
    run_batch(folder, open_prompts(source), endpoint.target, Batch())
    source.write_text("id,prompt\ndog,a dog\n")
    outcome = run_batch(folder, open_prompts(source), endpoint.target, Batch())
    assert [r.id for r in outcome.summary.shown] == ["dog"] and outcome.result.reused == 1
    assert (outcome.summary.finished, outcome.summary.failed) == (1, 0)


class NoRay:
    """Stands where a RayBatch stands in a run that is refused before Ray is asked for anything."""


@pytest.mark.parametrize("on_ray", [None, NoRay()], ids=["http", "ray"])
@pytest.mark.parametrize("place", ["folder", "objects"])
def test_a_run_that_finds_the_batch_held_leaves_its_prompts_as_they_are(
    tmp_path: Path, endpoint: Any, on_ray: Any, place: str
) -> None:
    root = tmp_path / "out" if place == "folder" else f"memory://held-{id(tmp_path)}"
    source = tmp_path / "p.csv"
    source.write_text("prompt\na cat\n")
    run_batch(open_batch(root, "b"), open_prompts(source), endpoint.target, Batch())
    (tmp_path / "p.jsonl").write_text('{"prompt": "a dog"}\n')
    holder, late = open_batch(root, "b"), open_batch(root, "b")
    with holder.exclusive(), pytest.raises(RefusedError):
        run_batch(late, open_prompts(tmp_path / "p.jsonl"), endpoint.target, Batch(), on_ray=on_ray)
    kept = kept_prompts(holder)
    assert kept is not None and kept.read_text() == "prompt\na cat\n" and kept.suffix == ".csv"
    # And with the batch free, they are the new ones.
    run_batch(late, open_prompts(tmp_path / "p.jsonl"), endpoint.target, Batch())
    kept = kept_prompts(open_batch(root, "b") if place == "folder" else late)
    assert kept is not None and kept.suffix == ".jsonl"


@pytest.mark.parametrize("name", ["p.csv", "con.csv", "猫.csv", ".hidden.csv", "--.csv", "x" * 200 + ".csv"])
def test_any_file_name_gives_a_safe_batch_id(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text("prompt\na cat\n")
    assert name_problem(batch_id_for(open_prompts(path))) is None


def test_no_prompts_at_all(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        batch_prompts(BatchFolder(tmp_path, "b"), None, tmp_path / "none.csv")
