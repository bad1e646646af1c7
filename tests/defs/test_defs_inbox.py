"""The inbox sensor against a real Dagster instance: exactly once, wherever it is killed."""

import json
import os
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from raynest_pipeline.chain.intent import want
from raynest_pipeline.defs.images import inbox as module
from raynest_pipeline.defs.images.inbox import dump, load
from raynest_pipeline.defs.images.tags import BATCH_TAG, CONTENT_TAG
from raynest_pipeline.defs.resources import RaynestResource
from raynest_pipeline.errors import StorageError
from raynest_pipeline.images.inbox import Inbox, Watched
from raynest_pipeline.settings import Settings, load_settings

PROMPTS = "id,prompt\na,a red apple\nb,a blue star\n"


class Daemon:
    """What Dagster's daemon does with a tick, with a real instance; the clock is the test's."""

    def __init__(self, definitions: dg.Definitions, instance: dg.DagsterInstance, home: Path) -> None:
        self.definitions = definitions
        self.instance = instance
        self.home = home
        self.cursor: str | None = None
        self.now = 1_000_000.0

    @property
    def folder(self) -> Path:
        return self.home / "inbox"

    def drop(self, name: str, text: str = PROMPTS) -> Path:
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / name).write_text(text)
        return self.folder / name

    def tick(self, *, launch: bool = True, after: float = 60) -> Any:
        """One look; `launch=False`: killed after the look, before anything of its result was carried out."""
        self.now += after
        context = dg.build_sensor_context(
            instance=self.instance,
            cursor=self.cursor,
            repository_def=self.definitions.get_repository_def(),
            resources={"raynest": RaynestResource()},
        )
        result: Any = self.definitions.resolve_sensor_def("inbox")(context)
        if launch:
            self.carry_out(result)
            self.cursor = result.cursor
        return result

    def carry_out(self, result: Any) -> None:
        for request in result.dynamic_partitions_requests or []:
            self.instance.add_dynamic_partitions(request.partitions_def_name, list(request.partition_keys))
        for request in result.run_requests or []:
            key = {"dagster/run_key": request.run_key}
            if not self.instance.get_runs(dg.RunsFilter(tags=key)):
                job = self.definitions.resolve_job_def("generate_batch")
                self.instance.create_run_for_job(job, tags={**request.tags, **key})

    def runs(self) -> list[str]:
        return sorted(run.tags[BATCH_TAG] for run in self.instance.get_runs() if CONTENT_TAG in run.tags)

    def files(self, folder: str = "") -> list[str]:
        path = self.folder / folder
        return sorted(p.name for p in path.iterdir() if p.is_file()) if path.is_dir() else []


@pytest.fixture
def daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Daemon]:
    from raynest_pipeline.definitions import build_definitions

    monkeypatch.setenv("RAYNEST_HOME", str(tmp_path / "home"))
    settings: Settings = load_settings()
    want(settings, True)
    with dg.DagsterInstance.ephemeral() as instance:
        daemon = Daemon(build_definitions(settings), instance, settings.home_dir)
        monkeypatch.setattr(module.time, "time", lambda: daemon.now)
        yield daemon


class TestAFile:
    def test_becomes_a_batch_and_leaves(self, daemon: Daemon) -> None:
        daemon.drop("fruit.csv")
        assert daemon.tick().run_requests == []
        (request,) = daemon.tick().run_requests
        assert request.partition_key.startswith("fruit-") and request.partition_key == request.tags[BATCH_TAG]
        assert daemon.files() == ["fruit.csv"], "until the run is on record the file stays"
        assert daemon.instance.get_dynamic_partitions("batches") == [request.partition_key]
        assert daemon.tick().run_requests == []
        assert daemon.files() == [] and daemon.files("taken") == [f"{request.partition_key}.csv"]
        assert daemon.runs() == [request.partition_key]

    def test_its_prompts_are_the_batchs_own_before_the_run_begins(self, daemon: Daemon) -> None:
        daemon.drop("fruit.csv")
        daemon.tick()
        (request,) = daemon.tick().run_requests
        assert request.run_config == {}, "so that a later run, or a backfill, needs none either"
        own = daemon.home / "images" / request.partition_key / "prompts.csv"
        assert own.read_text() == PROMPTS

    def test_a_half_written_one_waits(self, daemon: Daemon) -> None:
        path = daemon.drop("fruit.csv", "id,prompt\na,a red")
        daemon.tick()
        path.write_text("id,prompt\na,a red apple\nb,a bl")
        daemon.tick(after=30)
        path.write_text(PROMPTS)
        assert daemon.tick(after=30).run_requests == [] and daemon.files("bad") == []
        (request,) = daemon.tick(after=30).run_requests
        own = daemon.home / "images" / request.partition_key / "prompts.csv"
        assert own.read_text() == PROMPTS

    def test_a_bad_one_moves_aside_with_its_error(self, daemon: Daemon) -> None:
        daemon.drop("bad.csv", "id,prompt\na,\n")
        daemon.drop("good.csv")
        daemon.tick()
        (request,) = daemon.tick().run_requests
        assert request.partition_key.startswith("good-")
        assert daemon.files("bad") == ["bad.csv", "bad.csv.error.txt"]
        error = (daemon.folder / "bad" / "bad.csv.error.txt").read_text()
        assert "bad.csv, line 2" in error and "is empty" in error

    def test_the_same_content_is_one_batch_whenever_and_however_it_comes(self, daemon: Daemon) -> None:
        daemon.drop("fruit.csv")
        daemon.drop("fruit (copy).csv")
        for _ in range(4):
            daemon.tick()
        daemon.drop("again.csv")
        for _ in range(4):
            daemon.tick()
        assert len(daemon.runs()) == 1 and daemon.files() == []
        assert len(daemon.files("taken")) == 3

    def test_a_corrected_one_is_another_batch(self, daemon: Daemon) -> None:
        for text in (PROMPTS, PROMPTS + "c,a green tree\n"):
            daemon.drop("fruit.csv", text)
            for _ in range(3):
                daemon.tick()
        assert len(daemon.runs()) == 2 and len(daemon.files("taken")) == 2

    @pytest.mark.parametrize(
        ("name", "text"),
        [
            ("a.jsonl", '{"prompt": "an apple"}\n'),
            ("a.txt", "an apple\n"),
            ("a.yaml", 'templates: ["a {colour} apple"]\nvariables:\n  colour: [red, green]\n'),
        ],
    )
    def test_of_every_kind(self, daemon: Daemon, name: str, text: str) -> None:
        daemon.drop(name, text)
        daemon.tick()
        assert len(daemon.tick().run_requests) == 1, daemon.files("bad")

    def test_a_large_one_is_left_to_its_run(self, daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("RAYNEST_INBOX__CHECK_MB", "0.00001")
        daemon.drop("large.csv", "id,prompt\na,\n")
        daemon.tick()
        (request,) = daemon.tick().run_requests
        assert request.partition_key.startswith("large-") and daemon.files("bad") == []

    def test_one_that_is_written_over_while_it_is_read_never_mixes(
        self, daemon: Daemon, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = daemon.drop("fruit.csv")
        daemon.tick()
        later = PROMPTS + "c,a green tree\n"
        with monkeypatch.context() as patched:
            real = module.keep_prompts

            def written_over(store: Any, source: Path) -> None:
                path.write_text(later)
                real(store, source)

            patched.setattr(module, "keep_prompts", written_over)
            assert daemon.tick().run_requests == [], "what was judged is not what was kept"
        for _ in range(4):
            daemon.tick()
        (batch,) = daemon.runs()
        own = daemon.home / "images" / batch / "prompts.csv"
        assert own.read_text() == later and batch.endswith(sha256(own.read_bytes()).hexdigest()[:8])

    def test_too_large_a_one_is_told_so(self, daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("RAYNEST_INBOX__MAX_MB", "0.00001")
        daemon.drop("huge.csv")
        daemon.tick()
        assert daemon.tick().run_requests == []
        assert daemon.files() == [] and daemon.files("bad") == ["huge.csv", "huge.csv.error.txt"]
        assert "raynest generate" in (daemon.folder / "bad" / "huge.csv.error.txt").read_text()

    @pytest.mark.parametrize("step", ["fetched", "take", "reject"])
    def test_one_that_cannot_be_read_or_moved_keeps_no_other_from_its_batch(
        self, daemon: Daemon, monkeypatch: pytest.MonkeyPatch, step: str
    ) -> None:
        daemon.drop("a.csv", "id,prompt\na,\n" if step == "reject" else "id,prompt\na,an apple\n")
        daemon.drop("b.csv")
        real = getattr(Inbox, step)

        def fail(self: Inbox, file: Any, *more: Any) -> Any:
            if file.name == "a.csv":
                raise StorageError("a.csv cannot be read.")
            return real(self, file, *more)

        monkeypatch.setattr(Inbox, step, fail)
        for _ in range(4):
            result = daemon.tick()
        assert any(batch.startswith("b-") for batch in daemon.runs())
        assert daemon.files() == ["a.csv"] and len(daemon.files("taken")) == 1
        assert load(result.cursor)["a.csv"].looks >= 4, "what is known of it is kept"

    def test_a_name_that_is_no_text_becomes_a_batch(self, daemon: Daemon) -> None:
        try:
            daemon.drop(os.fsdecode(b"caf\xe9.csv"))
        except OSError:
            pytest.skip("this file system only takes text")
        for _ in range(3):
            result = daemon.tick()
            (result.cursor + str(result.skip_reason)).encode()
        (batch,) = daemon.runs()
        assert batch.startswith("caf-") and daemon.files() == []


class TestKilled:
    """Each ends the daemon somewhere; afterwards there is one run, one partition, and the file is taken."""

    def settle(self, daemon: Daemon) -> None:
        for _ in range(4):
            daemon.tick()
        assert len(daemon.runs()) == 1 and len(daemon.instance.get_dynamic_partitions("batches")) == 1
        assert daemon.files() == [] and len(daemon.files("taken")) == 1

    def test_before_the_result_was_carried_out(self, daemon: Daemon) -> None:
        daemon.drop("fruit.csv")
        daemon.tick()
        assert daemon.tick(launch=False).run_requests
        self.settle(daemon)

    def test_after_the_partition_and_before_the_run(self, daemon: Daemon) -> None:
        daemon.drop("fruit.csv")
        daemon.tick()
        (request,) = daemon.tick(launch=False).run_requests
        daemon.instance.add_dynamic_partitions("batches", [request.partition_key])
        self.settle(daemon)

    def test_after_the_run_and_before_the_cursor(self, daemon: Daemon) -> None:
        daemon.drop("fruit.csv")
        daemon.tick()
        daemon.carry_out(daemon.tick(launch=False))
        self.settle(daemon)

    def test_with_the_cursor_lost(self, daemon: Daemon) -> None:
        daemon.drop("fruit.csv")
        daemon.tick()
        daemon.tick()
        daemon.cursor = None
        self.settle(daemon)

    @pytest.mark.parametrize("step", ["keep_prompts", "open_batch"])
    def test_while_the_prompts_are_kept(
        self, daemon: Daemon, monkeypatch: pytest.MonkeyPatch, step: str
    ) -> None:
        daemon.drop("fruit.csv")
        daemon.tick()
        with monkeypatch.context() as patched:
            patched.setattr(module, step, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                daemon.tick()
        assert daemon.runs() == []
        self.settle(daemon)

    @pytest.mark.parametrize("before", [True, False])
    def test_around_the_move(self, daemon: Daemon, monkeypatch: pytest.MonkeyPatch, before: bool) -> None:
        daemon.drop("fruit.csv")
        daemon.tick()
        daemon.tick()
        real = Inbox.take

        def killed(self: Inbox, *args: Any) -> bool:
            if not before:
                real(self, *args)
            raise KeyboardInterrupt

        with monkeypatch.context() as patched:
            patched.setattr(Inbox, "take", killed)
            with pytest.raises(KeyboardInterrupt):
                daemon.tick()
        self.settle(daemon)


class TestWaiting:
    def test_until_the_chain_is_up(self, daemon: Daemon) -> None:
        settings = load_settings()
        want(settings, False)
        daemon.drop("fruit.csv")
        daemon.tick()
        result = daemon.tick()
        assert result.run_requests == [] and "raynest up" in result.skip_reason.skip_message
        want(settings, True)
        assert len(daemon.tick().run_requests) == 1

    def test_an_empty_inbox_is_made_and_idle(self, daemon: Daemon) -> None:
        assert daemon.tick().skip_reason.skip_message.endswith("inbox: empty")
        assert daemon.folder.is_dir()

    def test_what_is_still_written_is_counted(self, daemon: Daemon) -> None:
        daemon.drop("fruit.csv")
        assert "1 still being written" in daemon.tick().skip_reason.skip_message

    def test_only_so_many_in_one_look(self, daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("RAYNEST_INBOX__MAX_FILES", "2")
        for number in range(5):
            daemon.drop(f"{number}.txt", f"apple {number}\n")
        daemon.tick()
        # Files whose run is on record are taken in the same look, so they don't hold the others up for ever.
        counts = [len(daemon.tick().run_requests) for _ in range(6)]
        assert counts == [2, 0, 2, 0, 1, 0]
        assert len(daemon.runs()) == 5 and daemon.files() == []

    def test_time_runs_out_within_a_look(self, daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "TICK_SECONDS", -1.0)
        for number in range(3):
            daemon.drop(f"{number}.txt", f"apple {number}\n")
        daemon.tick()
        assert len(daemon.tick().run_requests) == 1, "one at least, or it would never get on"

    def test_an_inbox_that_cannot_be_used_is_told_and_the_cursor_kept(
        self, daemon: Daemon, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        daemon.drop("fruit.csv")
        daemon.tick()
        before = daemon.cursor
        monkeypatch.setenv("RAYNEST_INBOX__URL", "nosuchstore://bucket")
        result = daemon.tick()
        assert "cannot be used" in result.skip_reason.skip_message and daemon.cursor == before


class TestCursor:
    def test_it_comes_back_as_it_was(self) -> None:
        watched = {"a.csv": Watched(10, "1|x", 5.5, 2)}
        assert load(dump(watched)) == watched

    @pytest.mark.parametrize(
        "cursor",
        [
            None,
            "",
            "junk",
            "[]",
            "{}",
            '{"v": 2, "files": {}}',
            '{"v": 1}',
            '{"v": 1, "files": {"a": {"x": 1}}}',
        ]
        + ['{"v": 1, "files": {"a": 1}}', json.dumps({"v": 1, "files": []})],
    )
    def test_what_is_not_ours_counts_as_none(self, cursor: str | None) -> None:
        assert load(cursor) == {}
