"""The quick way through a manifest says the same as the thorough one."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from raynest_pipeline.errors import StorageError
from raynest_pipeline.images.batch_store import Entry, open_batch
from raynest_pipeline.images.index import ROWS_AT_ONCE, Index
from raynest_pipeline.images.manifest import Manifest, latest_records
from raynest_pipeline.images.names import image_name
from raynest_pipeline.images.parquet_copy import schema, write_parquet
from raynest_pipeline.images.record import Head, Record, head_of, parse_head, parse_line
from raynest_pipeline.images.summary import MOST_SHOWN, Summary, even, summarize

KEY = "0123456789abcdef" * 4

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
names = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,20}", fullmatch=True)
any_record = st.builds(
    Record,
    id=names | text.filter(bool),
    batch=text,
    status=st.sampled_from(["made", "adopted", "failed"]),
    key=st.sampled_from([KEY, "k", ""]),
    prompt=text,
    negative_prompt=text,
    seed=st.integers(0, 2**63 - 1),
    size=st.none() | st.integers(8, 4096),
    steps=st.none() | st.integers(1, 1000),
    guidance=st.none() | st.floats(0, 100),
    model=text,
    revision=text,
    made_at=text,
    file=st.none() | text,
    size_bytes=st.none() | st.integers(0, 2**40),
    stamp=st.none() | text,
    error=st.none() | text,
    extra=st.dictionaries(text, text, max_size=2),
)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(any_record, st.booleans())
def test_the_head_of_any_line_is_that_of_its_record(record: Record, ours: bool) -> None:
    if ours:
        record = Record(**(vars(record) | {"file": f"images/{image_name(record.id, record.key)}"}))
    line = record.line()
    assert parse_line(line) == record
    assert parse_head(line) == head_of(record)


def test_a_head_can_be_read_from_a_line_of_an_earlier_release(make_record: Any) -> None:
    record = make_record("cat", stamp=None)
    old = {name: value for name, value in vars(record).items() if name not in ("stamp", "worker", "origin")}
    line = json.dumps(old).encode() + b"\n"
    assert parse_line(line) == record and parse_head(line) == head_of(record)
    assert head_of(record).stamp is None


@pytest.mark.parametrize("cut", [2, 3, 10, 200])
def test_a_line_without_its_end_has_no_head(make_record: Any, cut: int) -> None:
    assert parse_head(make_record("cat").line()[:-cut]) is None
    assert parse_head(b'{"schema":99,"id":"cat"}\n') is None


def test_only_a_file_named_after_id_and_key_is_trusted(make_record: Any) -> None:
    assert parse_head(make_record("cat", stamp="5").line()) == Head("cat", KEY, False, 3, "5")
    assert head_of(make_record("cat", stamp="5", file="images/dog.png")).stamp is None
    head = parse_head(make_record("cat", stamp="5", file="images/dog.png").line())
    assert head is not None and head.stamp is None


def test_more_ids_than_are_read_at_once_come_in_order(tmp_path: Path, make_record: Any) -> None:
    count = 2 * ROWS_AT_ONCE + 1
    with Manifest(tmp_path / "manifest.jsonl") as manifest:
        for i in reversed(range(count)):
            status = "failed" if i % 10 == 0 else "made"
            manifest.append(make_record(f"p{i:05d}", status=status, seed=i))
        assert [record.seed for record in manifest.records()] == list(range(count))
        assert all(record.status == "made" for record in manifest.records(finished=True))
        made = [i for i in range(count) if i % 10]
        assert manifest.counts() == (len(made), count - len(made))
        assert [r.seed for r in manifest.selected([0, 5, len(made) - 1])] == [made[0], made[5], made[-1]]
        summary = summarize(manifest)
        assert (summary.finished, summary.failed) == (len(made), count - len(made))
        assert len(summary.shown) == MOST_SHOWN
        assert (summary.shown[0].seed, summary.shown[-1].seed) == (made[0], made[-1])
    with Manifest(tmp_path / "manifest.jsonl") as again:
        # Nothing has been looked at in this run.
        assert again.counts() == (0, 0) and list(again.records(used=True)) == []
        again.look_at("p00001")
        assert again.counts() == (1, 0) and again.not_there(5) == (1, ["p00001"])


def test_a_survey_matches_name_size_and_stamp() -> None:
    index = Index()
    index.load((Head(name, KEY, False, 3, "s"), at) for at, name in enumerate(["a", "b-c", "d"]))
    names = {name: f"images/{image_name(name, KEY)}" for name in ["a", "b-c", "d", "e"]}
    index.survey(
        [
            Entry(names["a"], 3, "s"),
            Entry(names["b-c"], 4, "s"),
            Entry(names["d"], 3, "t"),
            Entry(names["e"], 3, "s"),
            Entry("images/odd", 3, "s"),
            Entry(f"images/{image_name('a', 'f' * 64)}", 3, "s"),
        ]
    )
    assert [index.reuse(name, KEY) for name in names] == [True, False, False, False]
    assert not index.reuse("a", "f" * 64)
    loose = [names["b-c"], names["d"], names["e"], "images/odd", f"images/{image_name('a', 'f' * 64)}"]
    assert all(index.loose(name) for name in loose) and not index.loose(names["a"])
    index.survey([])
    assert not index.reuse("a", KEY) and not index.loose("images/odd")
    index.close()


def test_a_table_of_any_length_has_the_same_columns(tmp_path: Path, make_record: Any) -> None:
    store = open_batch(tmp_path, "b")
    write_parquet(store, [])
    path = store.local("manifest.parquet")
    assert path is not None and pq.read_table(path).num_rows == 0
    assert pq.read_schema(path).names == schema().names
    assert set(schema().names) == set(vars(make_record())) - {"schema", "stamp"}
    odd = make_record("cat", made_at="yesterday", extra={"x_tag": ["猫", None, 1.5]}, worker="gpu-1")
    write_parquet(store, [odd, make_record("dog", ignored=("seed",))])
    cat, dog = pq.read_table(path).to_pylist()
    assert cat["made_at"] is None and json.loads(cat["extra"]) == {"x_tag": ["猫", None, 1.5]}
    assert cat["worker"] == "gpu-1" and dog["ignored"] == ["seed"]


def test_no_room_for_the_table_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("raynest_pipeline.images.parquet_copy.tempfile.TemporaryDirectory", full)
    with pytest.raises(StorageError, match=r"manifest\.parquet cannot be written") as caught:
        write_parquet(open_batch(tmp_path, "b"), [])
    assert "TMPDIR" in caught.value.fix


def test_a_summary_of_records_in_memory(make_record: Any) -> None:
    records = [make_record("b"), make_record("a"), make_record("c", status="failed", file=None)]
    summary = Summary.of(records)
    assert (summary.finished, summary.failed, summary.whole) == (2, 1, 2)
    assert [record.id for record in summary.shown] == ["a", "b"]


def test_even_positions() -> None:
    assert even(0, 5) == [] and even(3, 5) == [0, 1, 2] and even(9, 1) == [0]
    assert even(1000, 3) == [0, 500, 999] or even(1000, 3) == [0, 499, 999]
    assert len(set(even(1_000_000, 60))) == 60


def test_reading_while_another_writes_sees_whole_lines(tmp_path: Path, make_record: Any) -> None:
    store = open_batch(tmp_path, "b")
    with store.open_manifest() as manifest:
        for i in range(10):
            manifest.append(make_record(f"p{i}"))
            with manifest.path.open("ab") as torn:
                torn.write(b'{"schema":1,"id":"half')
            assert len(list(latest_records(store))) == i + 1
            import os

            os.truncate(manifest.path, manifest._end)
