import errno
import os
import resource
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from raynest_pipeline.errors import StorageError
from raynest_pipeline.images.manifest import Manifest, Record, parse_line, read_manifest

RECORD = Record(
    id="cat",
    batch="b",
    status="made",
    key="k",
    prompt="a cat",
    negative_prompt="",
    seed=1,
    size=64,
    steps=10,
    guidance=7.5,
    model="m",
    revision="r",
    made_at="2026-01-01T00:00:00+00:00",
    attempts=1,
    latency_ms=12.5,
    file="images/cat.png",
    sha256="0" * 64,
    size_bytes=100,
    width=64,
    height=64,
    ignored=("seed",),
    extra={"x_tag": ["a", None]},
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "manifest.jsonl"


def test_what_is_written_is_read(path: Path) -> None:
    with Manifest(path) as manifest:
        manifest.append(RECORD)
        assert manifest.latest("cat") == RECORD
        assert manifest.latest("dog") is None
    with Manifest(path) as again:
        assert again.latest("cat") == RECORD and again.damaged == 0
    assert read_manifest(path) == [RECORD]


def test_the_latest_record_counts(path: Path) -> None:
    failed = replace(RECORD, status="failed", file=None, sha256=None, size_bytes=None, error="no")
    with Manifest(path) as manifest:
        manifest.append(failed)
        manifest.append(replace(RECORD, id="dog"))
        manifest.append(RECORD)
        assert manifest.latest("cat") == RECORD
    with Manifest(path) as again:
        assert again.latest("cat") == RECORD
    assert read_manifest(path) == [RECORD, replace(RECORD, id="dog")]
    assert len(path.read_bytes().splitlines()) == 3


def test_a_manifest_may_be_cut_anywhere(path: Path) -> None:
    records = [replace(RECORD, id=f"p{i}", prompt="ü" * i) for i in range(3)]
    with Manifest(path) as manifest:
        for record in records:
            manifest.append(record)
    whole = path.read_bytes()
    ends = [i + 1 for i, byte in enumerate(whole) if byte == 10]
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        kept = sum(end <= cut for end in ends)
        assert read_manifest(path) == records[:kept]
        with Manifest(path) as manifest:
            assert [manifest.latest(r.id) for r in records] == records[:kept] + [None] * (3 - kept)
            manifest.append(records[2])
        assert path.read_bytes() == b"".join(r.line() for r in [*records[:kept], records[2]])


@pytest.mark.parametrize(
    "damage",
    [b"", b"{}", b"null", b"\0" * 50, b'{"schema":99,"id":"x"}', b"\xff\xfe", b"[" * 20_000, b'"text"'],
)
def test_a_damaged_line_in_the_middle_costs_only_itself(path: Path, damage: bytes) -> None:
    path.write_bytes(RECORD.line() + damage + b"\n" + replace(RECORD, id="dog").line())
    with Manifest(path) as manifest:
        assert manifest.damaged == 1
        assert manifest.latest("cat") == RECORD and manifest.latest("dog") is not None
    assert len(read_manifest(path)) == 2


def test_unknown_fields_of_a_later_release_are_tolerated() -> None:
    line = RECORD.line().replace(b'"id":', b'"brand_new":1,"id":')
    assert parse_line(line) == RECORD


text = st.text(st.characters(exclude_categories=["Cs"]))
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=5,
)
any_record = st.builds(
    Record,
    id=text.filter(bool),
    batch=text,
    status=st.sampled_from(["made", "adopted", "failed"]),
    key=text,
    prompt=text,
    negative_prompt=text,
    seed=st.integers(0, 2**63 - 1),
    size=st.none() | st.integers(8, 4096),
    steps=st.none() | st.integers(1, 1000),
    guidance=st.none() | st.floats(0, 100),
    model=text,
    revision=text,
    made_at=text,
    error=st.none() | text,
    ignored=st.lists(text, max_size=2).map(tuple),
    extra=st.dictionaries(text, json_values, max_size=3),
)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(any_record, max_size=6), st.integers(0, 80))
def test_any_records_survive_a_round_trip_and_a_torn_end(path: Path, records: list[Any], torn: int) -> None:
    path.unlink(missing_ok=True)
    with Manifest(path) as manifest:
        for record in records:
            manifest.append(record)
    with path.open("ab") as file:
        file.write(RECORD.line()[:torn])
    expected = {record.id: record for record in records}
    with Manifest(path) as manifest:
        assert {name: manifest.latest(name) for name in expected} == expected
        assert manifest.damaged == 0
    assert {r.id: r for r in read_manifest(path)} == expected


def test_records_longer_than_a_read_come_back_whole(path: Path) -> None:
    long = replace(RECORD, prompt="猫" * 4000)
    with Manifest(path) as manifest:
        manifest.append(RECORD)
        manifest.append(replace(long, id="long"))
        manifest.append(replace(RECORD, id="after"))
        assert manifest.latest("long") == replace(long, id="long")


def test_threads_do_not_mix_their_lines(path: Path) -> None:
    with Manifest(path) as manifest:

        def write(thread: int) -> None:
            for i in range(50):
                manifest.append(replace(RECORD, id=f"{thread}-{i}"))
                assert manifest.latest(f"{thread}-{i}") is not None

        threads = [threading.Thread(target=write, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(read_manifest(path)) == 200


def test_a_full_disk_takes_the_half_line_back(path: Path) -> None:
    with Manifest(path) as manifest:
        manifest.append(RECORD)
        size = path.stat().st_size
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        # Room for half a line: the kernel makes one short write, then refuses.
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 50, before[1]))
        try:
            with pytest.raises(StorageError, match="no space left"):
                manifest.append(replace(RECORD, id="dog"))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert path.stat().st_size == size
        assert manifest.latest("dog") is None
        manifest.append(replace(RECORD, id="dog"))
    assert [r.id for r in read_manifest(path)] == ["cat", "dog"]


def test_lines_are_flushed_to_disk_about_once_a_second(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: (calls.append(handle), real(handle)))
    now = [100.0]
    monkeypatch.setattr("raynest_pipeline.images.manifest.time.monotonic", lambda: now[0])
    with Manifest(path) as manifest:
        for i in range(10):
            manifest.append(replace(RECORD, id=str(i)))
        assert calls == []
        now[0] += 1.5
        manifest.append(RECORD)
        manifest.append(RECORD)
        assert len(calls) == 1
    assert len(calls) == 2


def test_trouble_with_the_file_is_a_storage_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StorageError):
        Manifest(tmp_path / "no" / "such" / "folder")
    with pytest.raises(StorageError):
        Manifest(tmp_path)
    with pytest.raises(StorageError):
        read_manifest(tmp_path / "none")
    victim = tmp_path / "victim"
    (tmp_path / "link").symlink_to(victim)
    with pytest.raises(StorageError):
        Manifest(tmp_path / "link")
    assert not victim.exists()

    def denied(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    (tmp_path / "torn").write_bytes(b"half")
    monkeypatch.setattr(os, "ftruncate", denied)
    with pytest.raises(StorageError, match="cannot be used"):
        Manifest(tmp_path / "torn")
