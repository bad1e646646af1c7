from pathlib import Path

import pytest

from raynest_pipeline.images import preview as module
from raynest_pipeline.images.preview import Repeated, preview
from raynest_pipeline.images.prompt_file import open_prompts


def seen(folder: Path, text: str, count: int = 10, name: str = "p.csv") -> module.Preview:
    (folder / name).write_text(text)
    return preview(open_prompts(folder / name), count)


def test_counts_and_first_prompts(tmp_path: Path) -> None:
    found = seen(tmp_path, "prompt,count\na cat,3\na dog,1\n", count=2)
    assert (found.images, found.examined, found.prompts, found.repeated) == (4, 4, 2, 0)
    assert [p.prompt for p in found.first] == ["a cat", "a cat"]


def test_the_same_image_twice_is_named(tmp_path: Path) -> None:
    found = seen(
        tmp_path, "id,prompt,seed,size\na,cat,1,64\nb,cat,1,64\nc,cat,2,64\nd,cat,1,72\ne,cat,1,64\n"
    )
    assert (found.prompts, found.repeated) == (1, 2)
    assert found.repetitions == (Repeated("b", "a"), Repeated("e", "a"))


def test_a_long_file_is_looked_at_in_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_EXAMINED", 5)
    found = seen(tmp_path, "\n".join(f"cat {n}" for n in range(50)), count=2, name="p.txt")
    assert (found.images, found.examined, found.prompts, len(found.first)) == (50, 5, 5, 2)
    assert len(seen(tmp_path, "\n".join(f"cat {n}" for n in range(50)), count=20, name="p.txt").first) == 20


def test_repetitions_are_counted_beyond_those_named(tmp_path: Path) -> None:
    rows = "".join(f"n{n},cat,1\n" for n in range(100))
    found = seen(tmp_path, f"id,prompt,seed\n{rows}", count=0)
    assert (found.repeated, len(found.repetitions), found.first) == (99, module.MOST_REPEATED, ())
