import csv
import io
import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from raynest_pipeline.errors import InputError
from raynest_pipeline.images.names import MAX_NAME
from raynest_pipeline.images.prompt_file import MAX_PROBLEMS, open_prompts
from raynest_pipeline.images.prompts import Prompt, derived_seed, make_prompt, prompts_of_row

EXAMPLES = Path(__file__).parents[2] / "examples" / "prompts.csv"


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def complaint(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        open_prompts(path)
    assert str(path) in str(caught.value)
    assert caught.value.exit_code == 2
    return str(caught.value)


def test_the_examples_are_valid_and_enough() -> None:
    found = list(open_prompts(EXAMPLES))
    assert len(found) >= 12
    assert len({p.prompt for p in found}) == len(found)


def test_a_csv_with_every_column(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "p.csv",
        "id,prompt,negative_prompt,seed,size,steps,guidance,count,x_tag\n"
        'cat,"a cat, sitting",blur,7,64,20,7.5,2,pets\n'
        ",a dog,,,,,,,\n",
    )
    file = open_prompts(path)
    one, two, dog = file
    assert len(file) == 3
    assert one == Prompt("cat-1", "a cat, sitting", 7, "blur", 64, 20, 7.5, {"x_tag": "pets"})
    assert (two.id, two.seed) == ("cat-2", 8)
    assert dog.id.startswith("000002-") and dog.seed == derived_seed("a dog", dog.id)
    assert (dog.size, dog.steps, dog.guidance, dog.extra) == (None, None, None, {})


def test_jsonl_and_text_files(tmp_path: Path) -> None:
    lines = [
        {"prompt": "a cat", "seed": 3, "size": 64.0, "x_any": {"deep": [1, None]}},
        {"prompt": "ein Bär"},
    ]
    text = "\n\n".join(json.dumps(line) for line in lines)
    cat, bear = open_prompts(write(tmp_path, "p.jsonl", text))
    assert (cat.seed, cat.size, cat.extra) == (3, 64, {"x_any": {"deep": [1, None]}})
    assert bear.prompt == "ein Bär"
    plain = list(open_prompts(write(tmp_path, "p.txt", "a cat\r\n\r\n  ein Bär  \n# not a comment")))
    assert [p.prompt for p in plain] == ["a cat", "ein Bär", "# not a comment"]


def test_ids_and_seeds_are_the_same_on_every_reading(tmp_path: Path) -> None:
    path = write(tmp_path, "p.txt", "a cat\na cat\na dog\n")
    first, again = list(open_prompts(path)), list(open_prompts(path))
    assert first == again
    assert len({p.id for p in first}) == 3
    assert len({p.seed for p in first}) == 3


def test_the_seed_formula_is_the_documented_one() -> None:
    import hashlib

    digest = hashlib.sha256(b"a cat\0x1").digest()
    assert derived_seed("a cat", "x1") == int.from_bytes(digest[:4], "big") // 2


def test_a_byte_order_mark_is_no_part_of_the_header(tmp_path: Path) -> None:
    (only,) = open_prompts(write(tmp_path, "p.csv", b"\xef\xbb\xbfprompt\na cat\n"))
    assert only.prompt == "a cat"
    (line,) = open_prompts(write(tmp_path, "p.txt", b"\xef\xbb\xbfa cat\n"))
    assert line.prompt == "a cat"


@pytest.mark.parametrize(
    ("row", "column", "reason"),
    [
        ("../x,a cat,,,,,", "id", "'/'"),
        ("CON,a cat,,,,,", "id", "device"),
        (".x,a cat,,,,,", "id", "starts with"),
        (f"{'x' * 129},a cat,,,,,", "id", "129 characters"),
        ("a,,,,,,", "prompt", "is empty"),
        ("a,   ,,,,,", "prompt", "is empty"),
        (f"a,{'x' * 4001},,,,,", "prompt", "4,001 characters"),
        ("a,nul\0byte,,,,,", "prompt", "control character"),
        ("a,b,-1,,,,", "seed", "0 to"),
        ("a,b,1.5,,,,", "seed", "whole number"),
        ("a,b,1_000,,,,", "seed", "whole number"),
        ("a,b,9223372036854775808,,,,", "seed", "0 to"),
        ("a,b,,63,,,", "size", "multiple of 8, is 63; the nearest is 64"),
        ("a,b,,0,,,", "size", "8 to 4096"),
        ("a,b,,512x512,,,", "size", "whole number"),
        ("a,b,,,0,,", "steps", "1 to 1000"),
        ("a,b,,,,nan,", "guidance", "0 to 100"),
        ("a,b,,,,inf,", "guidance", "0 to 100"),
        ("a,b,,,,-1,", "guidance", "0 to 100"),
        ("a,b,,,,strong,", "guidance", "must be a number"),
        ("a,b,,,,,0", "count", "1 to 10000"),
        ("a,b,9223372036854775807,,,,2", "seed", "plus count"),
        (f"{'x' * 127},b,,,,,10", "id", "made by count"),
        ("a,b,,,,", "", "has 6 cells, the header has 7"),
        ('a,"b,,,,,', "", "not valid CSV"),
    ],
)
def test_a_bad_cell_is_named_by_line_and_column(tmp_path: Path, row: str, column: str, reason: str) -> None:
    path = write(tmp_path, "p.csv", f"id,prompt,seed,size,steps,guidance,count\nok,fine,,,,,\n{row}\n")
    message = complaint(path)
    assert "line 3" in message
    assert reason in message
    if column:
        assert f"column {column}" in message


def test_a_100_kb_prompt_is_refused_without_being_repeated(tmp_path: Path) -> None:
    message = complaint(write(tmp_path, "p.txt", "x" * 100_000))
    assert "line 1, column prompt: has 100,000 characters; at most 4,000" in message
    assert len(message) < 500


def test_duplicate_ids_name_both_lines_and_ignore_case(tmp_path: Path) -> None:
    message = complaint(write(tmp_path, "p.csv", "id,prompt\ncat,a\ndog,b\nCAT,c\n"))
    assert "line 4, column id: 'CAT' is already used on line 2" in message


def test_ids_made_by_count_count_as_used(tmp_path: Path) -> None:
    message = complaint(write(tmp_path, "p.csv", "id,prompt,count\ncat,a,2\ncat-2,b,\n"))
    assert "line 3, column id: 'cat-2' is already used on line 2" in message


def test_the_line_of_a_row_is_where_it_starts(tmp_path: Path) -> None:
    message = complaint(write(tmp_path, "p.csv", 'id,prompt\nx,"two\nlines"\n\n../y,z\n'))
    assert "line 5, column id" in message


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        ("id,prompt,colour", "column 'colour': is not a known column"),
        ("id,prompt,colour", "must start with 'x_'"),
        ("id,text", "column prompt: is missing"),
        ("id,prompt,prompt", "appears twice"),
        ("id;prompt", "something other than commas"),
    ],
)
def test_a_bad_header_is_explained(tmp_path: Path, header: str, reason: str) -> None:
    assert reason in complaint(write(tmp_path, "p.csv", f"{header}\na,b,c\n"))


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"prompt": "a"', "line 2, column"),
        ('["a"]', "not a JSON object"),
        ('{"prompt": "a", "guidance": NaN}', "NaN is not a JSON number"),
        ('{"prompt": "a", "colour": 1}', "column 'colour'"),
        ('{"prompt": 5}', "column prompt: must be text, is '5'"),
        ('{"prompt": "a", "seed": true}', "column seed: must be a whole number"),
        ('{"prompt": "a", "seed": 1, "seed": 2}', "a key appears twice"),
        ('{"prompt": "\\ud800"}', "surrogate"),
        ('{"prompt": "a", "x_half": "\\ud800"}', "column x_half: contains half of a surrogate pair"),
        ('{"prompt": "a", "x_half": ["\\udfff"]}', "column x_half: contains half of a surrogate pair"),
        ('{"prompt": "a", "x_half": {"\\udfff": 1}}', "column x_half: contains half of a surrogate pair"),
        ('{"prompt": "a", "guidance": 1e999}', "column guidance"),
        ('{"prompt": "a", "x_big": 1e999}', "column x_big"),
        ('{"prompt": "a", "x_long": "%s"}' % ("y" * 4000), "column x_long: has 4,002 characters"),
        ("[" * 100_000, "not valid JSON"),
        ('{"id": ["a"], "prompt": "a"}', "column id: must be text"),
    ],
)
def test_a_bad_json_line_is_named(tmp_path: Path, line: str, reason: str) -> None:
    message = complaint(write(tmp_path, "p.jsonl", f'{{"prompt": "fine"}}\n{line}\n'))
    assert reason in message
    assert "line 2" in message


@pytest.mark.parametrize("name", ["p.csv", "p.jsonl", "p.txt"])
def test_a_file_without_line_ends_is_not_read_whole(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    with path.open("wb") as file:
        file.write(b"prompt\n" if name == "p.csv" else b'{"prompt": "fine"}\n')
        file.truncate(64_000_000)
    tracemalloc.start()
    try:
        message = complaint(path)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert "line 2" in message and "it has a line of 1,000,000 characters or more" in message
    assert most < 30_000_000


def test_all_problems_come_at_once_up_to_twenty(tmp_path: Path) -> None:
    rows = "".join(f"../{i},p\n" for i in range(50))
    message = complaint(write(tmp_path, "p.csv", f"id,prompt\n{rows}"))
    assert message.count("column id") == MAX_PROBLEMS
    assert "has 50 problems" in message and "and 30 more" in message


def test_a_row_with_another_problem_still_takes_its_id(tmp_path: Path) -> None:
    message = complaint(write(tmp_path, "p.csv", "id,prompt,seed\ncat,a,x\ncat,b,\n"))
    assert "has 2 problems" in message and "already used on line 2" in message


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("p.csv", b"", "contains no prompts"),
        ("p.csv", b"id,prompt\n", "contains no prompts"),
        ("p.txt", b"\n \n", "contains no prompts"),
        ("p.jsonl", b"", "contains no prompts"),
        ("p.xlsx", b"a", "'.xlsx'; known are .csv, .jsonl, .ndjson, .txt, .parquet, .yaml, .yml"),
        ("p.txt", "a\nb\nBär".encode("latin-1"), "line 3, byte 5 is 0xe4"),
        ("p.txt", "a cat".encode("utf-16"), "UTF-16"),
        ("p.txt", b"fine\n\xff", "line 2, byte 5 is 0xff"),
        ("p.txt", b"fine\nend\xe4", "line 2, byte 8 is 0xe4"),
    ],
)
def test_a_file_that_is_no_prompt_file(tmp_path: Path, name: str, content: bytes, reason: str) -> None:
    assert reason in complaint(write(tmp_path, name, content))


def test_a_wrong_byte_beyond_the_first_chunk_is_located(tmp_path: Path) -> None:
    # 2-byte letters, so that a letter straddles the chunk's end.
    start = b"x" + "é\n".encode() * 400_000
    message = complaint(write(tmp_path, "p.txt", start + b"\xe4\n"))
    assert f"line 400001, byte {len(start)} is 0xe4" in message


def test_missing_files_folders_and_forbidden_files(tmp_path: Path) -> None:
    assert "does not exist" in complaint(tmp_path / "none.csv")
    folder = tmp_path / "folder.csv"
    folder.mkdir()
    assert "not a regular file" in complaint(folder)


def test_a_file_that_changes_after_the_check_stops_the_batch(tmp_path: Path) -> None:
    path = write(tmp_path, "p.csv", "prompt\na cat\n")
    file = open_prompts(path)
    path.write_text("prompt\na cat\n../\n")
    with pytest.raises(InputError, match="has changed since"):
        list(file)


def test_the_same_content_has_the_same_hash_anywhere(tmp_path: Path) -> None:
    one = open_prompts(write(tmp_path, "a.csv", "prompt\na cat\n"))
    two = open_prompts(write(tmp_path, "b.csv", "prompt\na cat\n"))
    assert one.sha256 == two.sha256 and len(one.sha256) == 64


def test_make_prompt_checks_what_a_file_would() -> None:
    assert make_prompt("a cat", id="x", seed=None).seed == derived_seed("a cat", "x")
    with pytest.raises(InputError, match=r"size: must be a multiple of 8(?s:.)*guidance: must be 0 to 100"):
        make_prompt("a cat", size=65, guidance=float("nan"))
    with pytest.raises(InputError, match="prompt: is empty"):
        make_prompt("  ")


cells = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
columns = st.lists(
    st.sampled_from(["id", "negative_prompt", "seed", "size", "steps", "guidance", "count", "x_note"]),
    unique=True,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_csv_is_either_valid_or_explained(tmp_path: Path, data: st.DataObject) -> None:
    header = ["prompt", *data.draw(columns)]
    numbers = st.one_of(st.integers(-10, 5000).map(str), st.just(""), cells)
    rows = data.draw(st.lists(st.tuples(cells, *[numbers for _ in header[1:]]), max_size=5))
    buffer = io.StringIO(newline="")
    csv.writer(buffer).writerows([header, *rows])
    path = write(tmp_path, "p.csv", buffer.getvalue())
    try:
        file = open_prompts(path)
    except InputError as error:
        assert str(path) in str(error)
        return
    found = list(file)
    assert len(found) == len(file) >= 1
    assert len({p.id.lower() for p in found}) == len(found)
    for prompt in found:
        assert 1 <= len(prompt.id) <= MAX_NAME and prompt.prompt.strip()
        assert 0 <= prompt.seed < 2**63
        assert prompt.size is None or prompt.size % 8 == 0


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=200), st.sampled_from(["p.csv", "p.jsonl", "p.txt"]))
def test_any_bytes_are_either_prompts_or_an_input_error(tmp_path: Path, content: bytes, name: str) -> None:
    path = write(tmp_path, name, content)
    try:
        assert len(list(open_prompts(path))) >= 1
    except InputError as error:
        assert error.what


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(
    st.dictionaries(
        st.sampled_from(["id", "prompt", "seed", "size", "guidance", "count", "x_a"]), json_values
    )
)
def test_any_json_row_gives_prompts_or_problems_never_both(values: dict[str, Any]) -> None:
    found, problems = prompts_of_row(4, 1, values)
    assert bool(found) != bool(problems)
    assert all(p.line == 4 and p.message for p in problems)
