"""Jobs in the command line's own process: Dagster's records, killed runs, the demo's verdict, one image."""

import os
import signal
import socket
import stat
import subprocess
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dagster as dg
import psutil
import pytest
from chain_kube import FakeKube
from chain_world import World
from rich.console import Console

from raynest_pipeline.chain.chain import Chain
from raynest_pipeline.cli.demo import require_complete, run_demo
from raynest_pipeline.cli.jobs import run_job
from raynest_pipeline.cli.view import View
from raynest_pipeline.dagster_home import (
    PID_TAG,
    end_dead_runs,
    is_dead,
    packaged,
    pid_tag,
    prepare_dagster_home,
)
from raynest_pipeline.errors import BatchError, NotReadyError, RaynestError, RefusedError, SettingsError
from raynest_pipeline.images.client import Image
from raynest_pipeline.images.prompt_file import open_prompts
from raynest_pipeline.images.summary import Summary
from raynest_pipeline.settings import Profile, Settings, load_settings

Raynest = Callable[..., Any]


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


class TestDagsterHome:
    @pytest.fixture(autouse=True)
    def _no_home(self, monkeypatch: pytest.MonkeyPatch) -> None:
        # Set first: what the code itself sets is then taken back, too.
        monkeypatch.setenv("DAGSTER_HOME", "")

    def test_it_is_in_the_chains_home_with_our_settings(self, settings: Settings) -> None:
        home = prepare_dagster_home(settings)
        assert home == settings.home_dir / "dagster"
        assert os.environ["DAGSTER_HOME"] == str(home)
        assert (home / "dagster.yaml").read_text() == packaged("dagster.yaml").read_text()
        assert (mode(settings.home_dir), mode(home)) == (0o700, 0o700)

    def test_our_settings_are_renewed(self, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
        home = prepare_dagster_home(settings)
        (home / "dagster.yaml").write_text("old: 1\n")
        monkeypatch.setenv("DAGSTER_HOME", "")
        prepare_dagster_home(settings)
        assert (home / "dagster.yaml").read_text() == packaged("dagster.yaml").read_text()

    def test_a_persons_own_home_and_settings_are_kept(
        self, settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        own = tmp_path / "shared" / "own"
        own.mkdir(parents=True)
        (own / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
        monkeypatch.setenv("DAGSTER_HOME", str(own))
        assert prepare_dagster_home(settings) == own
        assert (own / "dagster.yaml").read_text() == "telemetry: {enabled: false}\n"

    def test_the_folder_around_a_persons_own_home_is_not_closed_to_others(
        self, settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        shared = tmp_path / "shared"
        shared.mkdir(mode=0o755)
        shared.chmod(0o755)
        monkeypatch.setenv("DAGSTER_HOME", str(shared / "own"))
        prepare_dagster_home(settings)
        assert mode(shared) == 0o755

    def test_a_relative_one_is_refused(self, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("DAGSTER_HOME", "here")
        with pytest.raises(SettingsError, match="absolute"):
            prepare_dagster_home(settings)

    def test_the_settings_are_ones_that_dagster_takes(self, settings: Settings) -> None:
        prepare_dagster_home(settings)
        with dg.DagsterInstance.get() as instance:
            limits = instance.get_settings("concurrency")["runs"]["tag_concurrency_limits"]
            assert limits == [{"key": "raynest/changes", "limit": 1}]
            assert not instance.telemetry_enabled


def ended_tag() -> dict[str, str]:
    """The tag of a process that has ended."""
    ended = subprocess.Popen(["true"])
    tag = pid_tag(ended.pid)
    ended.wait()
    return tag


class TestDeadRuns:
    @pytest.mark.parametrize("tag", ["", "x", "1", "host:x:1", "{machine}:x:1", "{machine}:1:x"])
    def test_what_is_no_tag_of_ours_is_not_dead(self, tag: str) -> None:
        machine = pid_tag()[PID_TAG].rsplit(":", 2)[0]
        assert is_dead({PID_TAG: tag.format(machine=machine)}) is False
        assert is_dead({}) is False

    def test_a_process_that_ended_is_dead_and_a_living_one_is_not(self) -> None:
        assert is_dead(ended_tag())
        assert not is_dead(pid_tag())

    def test_a_pid_that_is_used_again_is_another_process(self) -> None:
        host, pid, began = pid_tag()[PID_TAG].rsplit(":", 2)
        assert is_dead({PID_TAG: f"{host}:{pid}:{float(began) + 100:.2f}"})

    @pytest.mark.skipif(not psutil.LINUX, reason="creation times move with the clock on Linux only")
    @pytest.mark.parametrize("seconds", [2, -2])
    def test_a_living_process_is_not_dead_when_the_clock_is_set(
        self, monkeypatch: pytest.MonkeyPatch, seconds: float
    ) -> None:
        tag, gone = pid_tag(), ended_tag()
        boot_time, create_time = psutil.boot_time, psutil.Process.create_time
        monkeypatch.setattr(psutil, "boot_time", lambda: boot_time() + seconds)
        monkeypatch.setattr(psutil.Process, "create_time", lambda self: create_time(self) + seconds)
        assert not is_dead(tag)
        assert pid_tag() == tag
        assert is_dead(gone)

    def test_the_machine_is_known_though_its_name_changes(self, monkeypatch: pytest.MonkeyPatch) -> None:
        tag = ended_tag()
        monkeypatch.setattr(uuid, "getnode", lambda: 0x0242AC110002)
        assert not is_dead(tag), "another machine's"
        tag = ended_tag()
        monkeypatch.setattr(socket, "gethostname", lambda: "renamed.local")
        assert is_dead(tag)

    def test_a_machine_without_a_network_card_is_known_by_its_name(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        numbers = iter([0x0100_0000_0001, 0xFF00_0000_0002, 0x0100_0000_0003])
        monkeypatch.setattr(uuid, "getnode", lambda: next(numbers))
        tag = ended_tag()
        assert tag[PID_TAG].startswith(f"{socket.gethostname()}:")
        assert is_dead(tag)

    def test_a_process_of_another_host_cannot_be_judged(self) -> None:
        _, pid, began = ended_tag()[PID_TAG].rsplit(":", 2)
        assert not is_dead({PID_TAG: f"another-host:{pid}:{began}"})

    def test_a_killed_run_is_recorded_as_failed_and_a_living_one_is_not(self) -> None:
        gone = ended_tag()
        with dg.DagsterInstance.ephemeral() as instance:
            runs = [
                instance.add_run(dg.DagsterRun(job_name="redeploy", status=status, tags=tags))
                for status, tags in (
                    (dg.DagsterRunStatus.STARTED, gone),
                    (dg.DagsterRunStatus.CANCELING, gone),
                    (dg.DagsterRunStatus.STARTED, pid_tag()),
                    (dg.DagsterRunStatus.SUCCESS, gone),
                )
            ]
            assert end_dead_runs(instance) == 2
            found = [instance.get_run_by_id(run.run_id) for run in runs]
        assert [run.status.value for run in found if run] == ["FAILURE", "FAILURE", "STARTED", "SUCCESS"]


@pytest.mark.usefixtures("opened")
class TestRunJob:
    def test_the_error_that_the_step_met_is_raised_itself(self, world: World) -> None:
        world.stock = []
        with pytest.raises(RefusedError, match="sold out"):
            run_job(load_settings(), "provision", View(quiet=True))

    def test_another_error_is_told_with_the_run(self, world: World) -> None:
        world.faults["caller"] = [KeyError("a bug")]
        with pytest.raises(RaynestError, match="The job provision failed") as caught:
            run_job(load_settings(), "provision", View(quiet=True))
        assert "a bug" in caught.value.why and "raynest dev" in caught.value.fix

    def test_ctrl_c_is_an_interrupt_and_the_next_run_goes_on(
        self, world: World, chain: Chain, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        network: Any = world.cloud.network
        allocate = network.allocate_eip

        def interrupted(**request: Any) -> Any:
            eip = allocate(**request)
            os.kill(os.getpid(), signal.SIGINT)
            return eip

        with monkeypatch.context() as patch:
            patch.setattr(network, "allocate_eip", interrupted)
            with pytest.raises(KeyboardInterrupt):
                run_job(load_settings(), "provision", View(quiet=True))
        assert len(world.purchases("si-")) == 1
        with dg.DagsterInstance.get() as instance:
            (run,) = instance.get_runs(limit=1)
        assert run.is_finished, "nothing is left half-recorded"
        run_job(load_settings(), "provision", View(quiet=True))
        assert (len(world.purchases("si-")), len(world.purchases("eip-"))) == (1, 1)
        assert all(seen.ready for seen in chain.observe())

    def test_a_run_carries_this_process_and_its_tags(self) -> None:
        run_job(load_settings(), "plan", View(quiet=True), tags={"own": "tag"})
        with dg.DagsterInstance.get() as instance:
            (run,) = instance.get_runs(limit=1)
        assert run.tags[PID_TAG] == pid_tag()[PID_TAG] and run.tags["own"] == "tag"
        assert run.status is dg.DagsterRunStatus.SUCCESS


@dataclass
class FakeFolder:
    path: Path
    batch_id = "b"

    @property
    def sheet_path(self) -> Path:
        return self.path / "sheet.jpg"

    def place(self) -> str:
        return str(self.path)


@dataclass
class FakeResult:
    made: int = 2
    reused: int = 1
    seconds: float = 1.0
    model: str = ""


@dataclass
class FakeOutcome:
    folder: FakeFolder
    summary: Summary
    images: int
    result: FakeResult = field(default_factory=FakeResult)


class TestDemo:
    def outcome(self, tmp_path: Path, summary: Summary, images: int = 2) -> Any:
        return FakeOutcome(FakeFolder(tmp_path), summary, images)

    def test_every_image_must_be_there_and_whole(self, tmp_path: Path) -> None:
        require_complete(self.outcome(tmp_path, Summary(2, 0)))
        with pytest.raises(BatchError, match="1 of 2 images are missing or damaged"):
            require_complete(self.outcome(tmp_path, Summary(2, 0, damaged=1)))
        with pytest.raises(BatchError, match="Damaged: cat"):
            require_complete(self.outcome(tmp_path, Summary(2, 0, damaged=1, damaged_ids=("cat",))))
        with pytest.raises(BatchError, match="1 of 3"):
            require_complete(self.outcome(tmp_path, Summary(2, 0), images=3))

    def test_a_failed_record_is_a_missing_image(self, tmp_path: Path) -> None:
        with pytest.raises(BatchError):
            require_complete(self.outcome(tmp_path, Summary(1, 1)))

    def test_it_never_runs_in_a_cloud_account(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("RAYNEST_PROFILE", "alibaba")
        with pytest.raises(RefusedError, match="would buy a cluster"):
            run_demo(load_settings(), None, None, Console())

    @pytest.mark.usefixtures("opened")
    def test_it_tells_times_folder_sheet_and_what_is_next(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        asked: list[Any] = []

        def generate(_: Settings, prompts: Path, *more: Any) -> Any:
            asked.append(prompts)
            return self.outcome(tmp_path, Summary(2, 0))

        monkeypatch.setattr("raynest_pipeline.cli.app.run_generate", generate)
        chosen = load_settings().model_copy(update={"profile": Profile.SANDBOX})
        run_demo(chosen, None, None, Console(width=200))
        text = capsys.readouterr().out
        for word in (
            "ray_service",
            str(tmp_path / "images"),
            "sheet.jpg",
            "make dev",
            "raynest down",
            "reused",
        ):
            assert word in text
        assert len(open_prompts(asked[0])) >= 12


@pytest.mark.usefixtures("opened", "up")
class TestImagine:
    @pytest.fixture
    def drawn(self, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
        """Prompts that were asked for; every answer is the same image."""
        asked: list[Any] = []
        image = Image.__new__(Image)
        known = {"data": b"png", "width": 64, "height": 64, "seed": 7, "model": "tiny"}
        for name, value in known.items():
            object.__setattr__(image, name, value)

        def ask(_: Any, prompt: Any, __: Any) -> Image:
            asked.append(prompt)
            return image

        monkeypatch.setattr("raynest_pipeline.cli.imagine.ask", ask)
        return asked

    def test_writes_the_image_and_says_what_it_is(
        self, raynest: Raynest, drawn: list[Any], tmp_path: Path
    ) -> None:
        said = raynest("imagine", "a blue star", "-o", "star.png", "--seed", "7", "--size", "64")
        assert said.code == 0
        assert (tmp_path / "star.png").read_bytes() == b"png"
        assert "star.png 64x64 seed 7 by tiny" in said.out
        (prompt,) = drawn
        assert (prompt.prompt, prompt.seed, prompt.size) == ("a blue star", 7, 64)

    def test_an_old_file_survives_a_failure(
        self, raynest: Raynest, kube: FakeKube, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*_: Any) -> Image:
            raise NotReadyError("no image today")

        monkeypatch.setattr("raynest_pipeline.cli.imagine.ask", fail)
        (tmp_path / "output.png").write_bytes(b"old")
        assert raynest("imagine", "a blue star").code == 5
        assert (tmp_path / "output.png").read_bytes() == b"old"
        assert [item.name for item in tmp_path.glob("*.part")] + [
            item.name for item in tmp_path.glob(".*part")
        ] == []
