import random
import tempfile
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raynest_pipeline.errors import StorageError
from raynest_pipeline.images import used_ids
from raynest_pipeline.images.used_ids import UsedIds


def clashes_of(ids: list[str], most: int = 1000) -> tuple[int, list[tuple[int, str]]]:
    with UsedIds() as used:
        for line, name in enumerate(ids, start=1):
            used.add(name, line)
        found, problems = used.clashes(most)
    return found, [(problem.line, problem.message) for problem in problems]


def test_unique_ids_do_not_clash() -> None:
    assert clashes_of([f"id-{n}" for n in range(1000)]) == (0, [])


def test_each_later_use_names_the_first_and_ignores_case() -> None:
    found, told = clashes_of(["cat", "dog", "CAT", "cow", "Cat"])
    assert found == 2
    assert [line for line, _ in told] == [3, 5]
    assert told[0][1] == "'CAT' is already used on line 1 (upper or lower case is the same)"
    assert "'Cat' is already used on line 1" in told[1][1]


def test_only_the_first_are_listed_but_all_are_counted() -> None:
    found, told = clashes_of(["same"] * 50 + ["other"] * 50, most=20)
    assert found == 98
    assert [line for line, _ in told] == list(range(2, 22))


def test_the_unit_is_the_files_own() -> None:
    with UsedIds("row") as used:
        used.add("a", 7)
        used.add("a", 9)
        assert "already used on row 7" in used.clashes(5)[1][0].message


@given(st.lists(st.sampled_from(["a", "A", "b", "c-1", "C-1", "d.e", "f_g"]), max_size=60))
def test_it_agrees_with_a_dictionary_however_small_the_buffer(ids: list[str]) -> None:
    seen: dict[str, int] = {}
    expected = []
    for line, name in enumerate(ids, start=1):
        if seen.setdefault(name.lower(), line) != line:
            expected.append(line)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(used_ids, "BUFFER_IDS", 3)
        found, told = clashes_of(ids)
    assert (found, [line for line, _ in told]) == (len(expected), expected)


def peak_bytes(count: int) -> int:
    numbers = random.Random(5)
    tracemalloc.start()
    try:
        with UsedIds() as used:
            for line in range(count):
                used.add(f"{numbers.getrandbits(100):x}", line)
            assert used.clashes(20)[0] == 0
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_does_not_grow_with_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(used_ids, "BUFFER_IDS", 4000)
    few, many = peak_bytes(4000), peak_bytes(60_000)
    assert many < 2 * few and many < 2_000_000


def test_a_full_disk_is_told_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("needs /dev/full")
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **_: full.open("r+b"))
    with pytest.raises(StorageError, match="temporary file") as caught, UsedIds() as used:
        used.add("a", 1)
        used.clashes(1)
    assert "No space left" in caught.value.why and "TMPDIR" in caught.value.fix


def test_no_folder_for_temporary_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    with pytest.raises(StorageError, match="cannot be kept") as caught:
        UsedIds()
    assert "No such file" in caught.value.why
