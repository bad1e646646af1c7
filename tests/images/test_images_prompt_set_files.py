"""A prompt set as a prompt file: its name, its problems, its batch, and the example that ships."""

import itertools
import re
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from images_prompt_sets import SHAPES, opened, prompts

from raynest_pipeline.errors import InputError
from raynest_pipeline.images.batch import batch_id_for, batch_prompts, run_batch
from raynest_pipeline.images.manifest import latest_records
from raynest_pipeline.images.prompt_file import open_prompts
from raynest_pipeline.images.sets.reading import read_set
from raynest_pipeline.images.store import BatchFolder
from raynest_pipeline.serving.tinymodel.scenes import SMALL, vocabulary
from raynest_pipeline.settings import Batch

EXAMPLE = Path(__file__).parents[2] / "examples" / "prompt-set.yaml"


class TestAsPromptFile:
    def test_a_file_of_any_length_is_refused_without_being_read_whole(self, tmp_path: Path) -> None:
        path = tmp_path / "set.yaml"
        with path.open("wb") as file:
            file.write(b"# \xe7\x8c\xab")
            file.truncate(64_000_000)
        tracemalloc.start()
        try:
            with pytest.raises(InputError, match="too many for a prompt set"):
                open_prompts(path)
            _, most = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert most < 30_000_000

    def test_the_name_and_the_content_name_the_batch(self, tmp_path: Path) -> None:
        one = opened(tmp_path, "name: My-Shapes" + SHAPES, "a.yaml")
        two = opened(tmp_path, "name: My-Shapes" + SHAPES, "b.YML")
        assert batch_id_for(one) == batch_id_for(two) == f"My-Shapes-{one.sha256[:8]}"
        assert batch_id_for(opened(tmp_path, SHAPES, "c.yaml")).startswith("c-")
        assert (len(one), one.combinations) == (12, 12)

    def test_problems_come_as_those_of_any_file(self, tmp_path: Path) -> None:
        with pytest.raises(
            InputError, match=r"has 1 problem; nothing has been sent:(?s:.)*line 1, field colour"
        ):
            opened(tmp_path, "{templates: [a], colour: red}")
        with pytest.raises(InputError, match="is not UTF-8: line 1"):
            (tmp_path / "latin.yaml").write_bytes("templates: [Bär]".encode("latin-1"))
            open_prompts(tmp_path / "latin.yaml")

    def test_only_the_first_problems_are_listed(self, tmp_path: Path) -> None:
        bad = "templates:\n" + "".join(f"- '{n} {{'\n" for n in range(30))
        with pytest.raises(InputError, match=r"has 30 problems(?s:.)*and 10 more"):
            opened(tmp_path, bad)

    def test_a_byte_order_mark_and_windows_line_ends(self, tmp_path: Path) -> None:
        (tmp_path / "w.yaml").write_bytes(b"\xef\xbb\xbf" + SHAPES.strip().replace("\n", "\r\n").encode())
        assert len(open_prompts(tmp_path / "w.yaml")) == 12

    def test_a_set_that_changes_after_the_check_stops_the_batch(self, tmp_path: Path) -> None:
        file = opened(tmp_path, SHAPES)
        opened(tmp_path, SHAPES + "limit: 3")
        with pytest.raises(InputError, match="has changed since"):
            list(file)

    def test_a_batch_and_again_from_its_own_copy(self, tmp_path: Path, endpoint: Any) -> None:
        checked = opened(tmp_path, SHAPES + "limit: 4\nseeds_per_prompt: 2")
        folder = BatchFolder(tmp_path / "out", batch_id_for(checked))
        first = run_batch(folder, checked, endpoint.target, Batch())
        assert (first.result.made, first.images) == (4, 4)
        one = next(r for r in latest_records(folder) if r.id == "small_red_circle-1")
        assert one.extra == {"x_size": "small", "x_colour": "red", "x_shape": "circle"}
        checked.path.unlink()
        own = batch_prompts(folder, None, tmp_path / "no")
        assert own.path == folder.path / "prompts.yaml" and own.sha256 == checked.sha256
        again = run_batch(folder, own, endpoint.target, Batch())
        assert (again.result.made, again.result.reused) == (0, 4)

    def test_the_example_speaks_the_words_of_the_model_that_ships(self) -> None:
        found = list(open_prompts(EXAMPLE))
        assert len({p.prompt for p in found}) == len(found) == 24
        known = set(vocabulary())
        for prompt in found:
            assert set(prompt.prompt.split()) <= known
            assert prompt.extra["x_colour"] in SMALL.colors and prompt.extra["x_shape"] in SMALL.shapes
            assert prompt.extra["x_background"] in SMALL.backgrounds
            assert prompt.extra["x_colour"] != prompt.extra["x_background"]

    def test_the_page_shows_what_is_so(self) -> None:
        page = (EXAMPLE.parents[1] / "docs" / "prompts.md").read_text(encoding="utf-8")
        block = page.partition("```yaml\n")[2].partition("```")[0]
        assert read_set(block).images == 30 == len(prompts(block))
        shown = page.partition("```\nfile:")[2].partition("```")[0]
        file = open_prompts(EXAMPLE)
        assert batch_id_for(file) in shown and f"of {file.combinations} possible" in shown
        for prompt in itertools.islice(file, 3):
            assert re.search(rf"^{prompt.id} +{prompt.seed} +{prompt.prompt}$", shown, re.MULTILINE)
