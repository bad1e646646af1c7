"""The inbox: what is whole, what becomes of it, and that nothing is lost or doubled in between."""

import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from raynest_pipeline.errors import StorageError
from raynest_pipeline.images.inbox import Found, Inbox, Judged, Watched, decide, judge, settled

PROMPTS = "id,prompt\na,a red apple\nb,a blue star\n"


def found(name: str, size: int = 10, stamp: str = "1") -> Found:
    return Found(name, size, stamp)


class TestSettled:
    def looks(self, *ticks: tuple[float, list[Found]], settle: float = 20) -> list[list[str]]:
        watched: dict[str, Watched] = {}
        told = []
        for now, files in ticks:
            ready, watched = settled(files, watched, now=now, settle_seconds=settle)
            told.append([file.name for file in ready])
        return told

    def test_a_file_is_ready_when_it_stayed_the_same_for_long_enough(self) -> None:
        a = [found("a.csv")]
        assert self.looks((0, a), (10, a), (20, a), (30, a)) == [[], [], ["a.csv"], ["a.csv"]]

    def test_one_look_is_never_enough(self) -> None:
        a = [found("a.csv")]
        assert self.looks((0, a), (0, a), settle=0) == [[], ["a.csv"]]

    def test_a_file_that_grows_starts_anew(self) -> None:
        small, large = [found("a.csv", 10)], [found("a.csv", 20)]
        assert self.looks((0, small), (30, large), (40, large), (50, large)) == [[], [], [], ["a.csv"]]

    def test_so_does_one_that_is_written_over_with_the_same_length(self) -> None:
        before, after = [found("a.csv", stamp="1")], [found("a.csv", stamp="2")]
        assert self.looks((0, before), (30, after), (40, after)) == [[], [], []]

    def test_one_that_went_and_came_back_is_new(self) -> None:
        a = [found("a.csv")]
        assert self.looks((0, a), (30, []), (60, a)) == [[], [], []]

    def test_the_oldest_comes_first(self) -> None:
        a, z = found("a.csv"), found("z.csv")
        assert self.looks((0, [z]), (5, [a, z]), (60, [a, z]))[-1] == ["z.csv", "a.csv"]

    def test_a_clock_that_was_set_back_holds_nothing_for_ever(self) -> None:
        a = [found("a.csv")]
        assert self.looks((1000, a), (10, a), (40, a)) == [[], [], ["a.csv"]]

    def test_what_is_remembered_has_a_limit(self) -> None:
        many = [found(f"{n:05}.csv") for n in range(1500)]
        ready, watched = settled(many, {}, now=0, settle_seconds=0)
        assert ready == [] and len(watched) == 1000
        ready, _ = settled(many, watched, now=1, settle_seconds=0)
        assert [file.name for file in ready[:2]] == ["00000.csv", "00001.csv"] and len(ready) == 1000


class TestDecide:
    def good(self, name: str, sha256: str) -> Judged:
        return Judged(found(name), sha256, f"batch-{sha256}", 2)

    def test_a_new_file_is_asked_for_and_one_with_a_run_is_taken(self) -> None:
        new, known = self.good("a.csv", "1"), self.good("b.csv", "2")
        actions = decide([new, known], {"2"})
        assert [(action.kind, action.judged.found.name) for action in actions] == [
            ("request", "a.csv"),
            ("take", "b.csv"),
        ]

    def test_the_same_content_under_two_names_is_one_run(self) -> None:
        twice = [self.good("a.csv", "1"), self.good("copy of a.csv", "1")]
        assert [action.kind for action in decide(twice, set())] == ["request", "wait"]
        assert [action.kind for action in decide(twice, {"1"})] == ["take", "take"]

    def test_a_bad_file_is_rejected_whatever_else_is_there(self) -> None:
        bad = Judged(found("x.csv"), "", error="has no prompts")
        assert [action.kind for action in decide([bad, self.good("a.csv", "1")], set())] == [
            "reject",
            "request",
        ]


class TestJudge:
    def judged(self, path: Path, check_bytes: float = 1e6) -> Judged:
        return judge(path, Found(path.name, path.stat().st_size, "1"), check_bytes=check_bytes)

    def test_a_good_file_is_its_batch(self, tmp_path: Path) -> None:
        path = tmp_path / "fruit.csv"
        path.write_text(PROMPTS)
        file = self.judged(path)
        assert (file.images, file.error) == (2, "")
        assert file.batch == f"fruit-{file.sha256[:8]}"

    @pytest.mark.parametrize(
        ("name", "text", "told"),
        [
            ("a.csv", "id,prompt\na,\n", "prompt"),
            ("a.csv", "", "no prompts"),
            ("notes.docx", "hello", "ending"),
            ("a.jsonl", '{"prompt": "half', "JSON"),
        ],
    )
    def test_a_bad_one_says_why(self, tmp_path: Path, name: str, text: str, told: str) -> None:
        path = tmp_path / name
        path.write_text(text)
        file = self.judged(path)
        assert told in file.error and file.sha256 == ""

    def test_a_large_one_is_left_to_its_run_but_is_the_same_batch(self, tmp_path: Path) -> None:
        path = tmp_path / "fruit.csv"
        path.write_text(PROMPTS)
        checked, large = self.judged(path), self.judged(path, check_bytes=5)
        assert (large.sha256, large.batch) == (checked.sha256, checked.batch)
        assert large.images is None

    def test_parquet_counts_for_more_than_its_size(self, tmp_path: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        path = tmp_path / "fruit.parquet"
        pq.write_table(pa.table({"id": ["a", "b"], "prompt": ["an apple", "a pear"]}), path)
        size = path.stat().st_size
        assert self.judged(path, check_bytes=4 * size).images is None
        assert self.judged(path, check_bytes=8 * size).images == 2

    def test_a_large_one_of_another_kind_is_bad(self, tmp_path: Path) -> None:
        path = tmp_path / "film.mp4"
        path.write_bytes(b"x" * 100)
        assert "known endings are .csv" in self.judged(path, check_bytes=5).error


@pytest.fixture(params=["folder", "memory"])
def inbox(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Inbox]:
    if request.param == "folder":
        yield Inbox(str(tmp_path / "inbox"))
        return
    import fsspec

    url = f"memory://{uuid.uuid4().hex}/inbox"
    yield Inbox(url)
    memory = fsspec.filesystem("memory")
    for path in memory.find(url.removeprefix("memory:/").rsplit("/", 1)[0]):
        memory.rm_file(path)


def put(inbox: Inbox, name: str, text: str = PROMPTS) -> Found:
    import fsspec

    with fsspec.open(f"{inbox.url}/{name}", "w") as file:
        file.write(text)
    return next(file for file in inbox.look() if file.name == name)


def names(inbox: Inbox, folder: str = "") -> list[str]:
    fs = inbox._fs
    path = f"{inbox._root}/{folder}".rstrip("/")
    return sorted(str(n).rsplit("/", 1)[-1] for n in fs.find(path, maxdepth=1)) if fs.exists(path) else []


class TestInbox:
    def test_an_empty_one_is_empty(self, inbox: Inbox) -> None:
        assert inbox.look() == []

    def test_it_lists_files_and_leaves_alone_what_programs_are_still_writing(self, inbox: Inbox) -> None:
        inbox.look()
        for name in ("a.csv", ".hidden.csv", "b.csv.part", "c.jsonl.crdownload", "taken/old.csv"):
            (fs := inbox._fs).makedirs(f"{inbox._root}/taken", exist_ok=True)
            fs.pipe_file(f"{inbox._root}/{name}", b"prompt\nx\n")
        assert [file.name for file in inbox.look()] == ["a.csv"]

    def test_the_stamp_changes_with_the_content(self, inbox: Inbox) -> None:
        inbox.look()
        before = put(inbox, "a.csv", "prompt\nan apple\n")
        if inbox._local:
            os.utime(Path(inbox._root, "a.csv"), ns=(1, 1))
            assert next(iter(inbox.look())).stamp != before.stamp
        else:
            assert put(inbox, "a.csv", "prompt\na pearl\n").stamp != before.stamp

    def test_a_good_file_is_moved_with_its_hash(self, inbox: Inbox) -> None:
        inbox.look()
        file = put(inbox, "a.csv")
        assert inbox.take(file, "0123456789abcdef")
        assert names(inbox) == [] and names(inbox, "taken") == ["a-01234567.csv"]

    def test_the_same_file_twice_leaves_one(self, inbox: Inbox) -> None:
        inbox.look()
        for _ in range(2):
            assert inbox.take(put(inbox, "a.csv"), "0123456789abcdef")
        assert names(inbox, "taken") == ["a-01234567.csv"]

    def test_a_bad_file_lies_beside_its_reason(self, inbox: Inbox) -> None:
        inbox.look()
        assert inbox.reject(put(inbox, "a.csv", "nonsense"), "a.csv has 1 problem")
        assert names(inbox) == [] and names(inbox, "bad") == ["a.csv", "a.csv.error.txt"]
        assert inbox._fs.cat_file(f"{inbox._root}/bad/a.csv.error.txt") == b"a.csv has 1 problem\n"

    def test_a_second_bad_file_of_the_name_does_not_take_the_firsts_place(self, inbox: Inbox) -> None:
        inbox.look()
        for text in ("first", "second"):
            inbox.reject(put(inbox, "a.csv", text), text)
        assert names(inbox, "bad") == ["a-2.csv", "a-2.csv.error.txt", "a.csv", "a.csv.error.txt"]
        assert inbox._fs.cat_file(f"{inbox._root}/bad/a.csv") == b"first"

    def test_killed_between_reason_and_move_it_is_finished_the_next_time(
        self, inbox: Inbox, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        inbox.look()
        file = put(inbox, "a.csv", "nonsense")
        with monkeypatch.context() as patched:
            patched.setattr(inbox, "_move", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                inbox.reject(file, "why")
        assert inbox.reject(file, "why")
        assert names(inbox, "bad") == ["a.csv", "a.csv.error.txt"] and names(inbox) == []

    def test_a_file_that_changed_since_it_was_judged_stays(self, inbox: Inbox) -> None:
        inbox.look()
        file = put(inbox, "a.csv")
        put(inbox, "a.csv", PROMPTS + "c,a green tree\n")
        assert not inbox.take(file, "0123456789abcdef")
        assert names(inbox) == ["a.csv"] and names(inbox, "taken") == []

    def test_a_file_that_has_gone_is_no_error(self, inbox: Inbox) -> None:
        inbox.look()
        file = put(inbox, "a.csv")
        inbox._fs.rm_file(f"{inbox._root}/a.csv")
        assert not inbox.take(file, "0123456789abcdef")
        with inbox.fetched(file) as path:
            assert path is None

    def test_a_name_that_reads_as_a_pattern_is_only_a_name(self, inbox: Inbox) -> None:
        inbox.look()
        for name in ("a1.csv", "b.csv", "c.csv"):
            put(inbox, name)
        for name in ("*.csv", "a[1].csv", "?.csv"):
            assert inbox.take(put(inbox, name, f"id,prompt\n1,{name}\n"), "0123456789abcdef")
        assert names(inbox) == ["a1.csv", "b.csv", "c.csv"]
        assert names(inbox, "taken") == ["*-01234567.csv", "?-01234567.csv", "a[1]-01234567.csv"]
        assert inbox.reject(put(inbox, "*.csv", "nonsense"), "why")
        assert names(inbox) == ["a1.csv", "b.csv", "c.csv"]

    @pytest.mark.parametrize("name", ["n" * 251 + ".csv", "ü" * 125 + ".csv", "a." + "x" * 250])
    def test_the_longest_name_finds_room_for_its_mark(self, inbox: Inbox, name: str) -> None:
        inbox.look()
        assert inbox.take(put(inbox, name), "0123456789abcdef")
        for _ in range(2):
            assert inbox.reject(put(inbox, name, "nonsense"), "why")
        assert len(names(inbox, "taken")) == 1 and len(names(inbox, "bad")) == 4 and names(inbox) == []
        assert all(len(os.fsencode(n)) <= 255 for n in names(inbox, "taken") + names(inbox, "bad"))

    def test_a_file_that_changed_leaves_no_reason_behind(self, inbox: Inbox) -> None:
        inbox.look()
        file = put(inbox, "a.csv", "nonsense")
        put(inbox, "a.csv", PROMPTS)
        assert not inbox.reject(file, "why")
        assert names(inbox, "bad") == [] and names(inbox) == ["a.csv"]

    def test_a_marker_in_the_place_of_the_prefix_is_no_file(self) -> None:
        import fsspec

        url = f"memory://{uuid.uuid4().hex}/inbox"
        inbox, memory = Inbox(url), fsspec.filesystem("memory")
        put(inbox, "a.csv")
        marker = {"name": f"{inbox._root}/", "size": 0, "type": "file"}
        real, ls = inbox._fs, memory.ls

        class WithMarker:
            protocol = real.protocol

            def __getattr__(self, name: str) -> Any:
                return getattr(real, name)

            def ls(self, path: str, detail: bool) -> list[dict[str, Any]]:
                return [marker, *ls(path, detail=detail)]

        inbox._fs = WithMarker()
        assert [file.name for file in inbox.look()] == ["a.csv"]

    def test_a_name_that_is_no_text_is_a_name_all_the_same(self, tmp_path: Path) -> None:
        inbox = Inbox(str(tmp_path / "inbox"))
        inbox.look()
        name = os.fsdecode(b"caf\xe9.csv")
        try:
            (tmp_path / "inbox" / name).write_text("id,prompt\na,\n")
        except OSError:
            pytest.skip("this file system only takes text")
        (file,) = inbox.look()
        assert file.shown == "caf?.csv"
        with inbox.fetched(file) as path:
            assert path is not None
            judged = judge(path, file, check_bytes=1e6)
        assert judged.error.startswith("The prompt file caf?.csv has 1 problem")
        assert inbox.reject(file, judged.error) and len(names(inbox, "bad")) == 2

    def test_it_is_read_under_its_own_name(self, inbox: Inbox) -> None:
        inbox.look()
        with inbox.fetched(put(inbox, "fruit.csv")) as path:
            assert path is not None and path.name == "fruit.csv" and path.read_text() == PROMPTS

    def test_a_link_is_not_followed(self, tmp_path: Path) -> None:
        (tmp_path / "secret.csv").write_text(PROMPTS)
        inbox = Inbox(str(tmp_path / "inbox"))
        inbox.look()
        (tmp_path / "inbox" / "a.csv").symlink_to(tmp_path / "secret.csv")
        assert inbox.look() == []

    def test_a_store_that_is_not_there_is_told(self, tmp_path: Path) -> None:
        with pytest.raises(StorageError, match="cannot be used"):
            Inbox("nosuchstore://bucket/inbox")
        (tmp_path / "file").write_text("")
        with pytest.raises(StorageError, match="cannot be used"):
            Inbox(str(tmp_path / "file" / "inbox")).look()
