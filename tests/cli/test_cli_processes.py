"""Commands that start or end processes: the UI, the forward, the sandbox after a teardown."""

import asyncio
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from raynest_pipeline import sandbox
from raynest_pipeline.chain.chain import Chain
from raynest_pipeline.cli import dev
from raynest_pipeline.cli.teardown import stop_sandbox_if_empty
from raynest_pipeline.errors import SettingsError, StorageError
from raynest_pipeline.settings import Settings

Raynest = Callable[..., Any]


class TestDev:
    @pytest.fixture
    def started(self, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
        """What was started: (command, environment)."""
        calls: list[Any] = []

        class Process:
            def __init__(self, command: list[str], *, env: dict[str, str], start_new_session: bool) -> None:
                calls.append((command, env))
                assert start_new_session, "else the terminal's Ctrl-C reaches Dagster's children twice"

                self.pid = 2**22 + 1  # no process has it

            def wait(self, timeout: float) -> int:
                return 3

        monkeypatch.setenv("DAGSTER_HOME", "")
        monkeypatch.setattr(dev.subprocess, "Popen", Process)
        return calls

    def test_it_runs_dagster_on_the_state_of_this_home(self, settings: Settings, started: list[Any]) -> None:
        assert dev.run_dev(settings, 3456) == 3
        command, environment = started[0]
        assert command[1:4] == ["-m", "dagster", "dev"] and command[-1] == "3456"
        assert command[command.index("-h") + 1] == "127.0.0.1"
        assert environment["DAGSTER_HOME"] == str(settings.home_dir / "dagster")
        assert environment["RAYNEST_HOME"] == str(settings.home_dir)
        assert (settings.home_dir / "dagster" / "dagster.yaml").is_file()

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    @pytest.mark.parametrize("deaf", [False, True])
    def test_a_signal_ends_it_and_its_children(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, deaf: bool
    ) -> None:
        """A real child with a child of its own, which may not listen: nothing outlives `raynest dev`."""
        monkeypatch.setattr(dev, "GRACE_SECONDS", 1.0)
        ready = tmp_path / "ready"
        script = (
            "import signal, subprocess, sys, pathlib\n"
            "grandchild = subprocess.Popen(['sleep', '100'])\n"
            + ("signal.signal(signal.SIGINT, signal.SIG_IGN)\n" if deaf else "")
            + f"pathlib.Path({str(ready)!r}).write_text(str(grandchild.pid))\n"
            "try:\n    signal.pause()\nexcept KeyboardInterrupt:\n    sys.exit(7)\n"
        )

        def kill_me_when_it_is_ready() -> None:
            while not (ready.exists() and ready.read_text()):
                time.sleep(0.01)
            os.kill(os.getpid(), number)

        threading.Thread(target=kill_me_when_it_is_ready, daemon=True).start()
        # As in the background of a shell, where SIGINT is ignored, and that would be inherited.
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            code = dev.run_until_signal([sys.executable, "-c", script], dict(os.environ))
        finally:
            signal.signal(signal.SIGINT, before)
        assert code == (-signal.SIGKILL if deaf else 7)
        grandchild = int(ready.read_text())
        while psutil.pid_exists(grandchild) and psutil.Process(grandchild).status() != "zombie":
            time.sleep(0.01)

    def test_a_port_that_is_taken_is_told_before_anything_starts(
        self, settings: Settings, started: list[Any]
    ) -> None:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            with pytest.raises(StorageError, match="cannot be used"):
                dev.run_dev(settings, taken.getsockname()[1])
        assert started == []

    def test_without_the_web_server_it_says_what_to_install(
        self, settings: Settings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(dev, "_installed", lambda _: False)
        with pytest.raises(SettingsError) as caught:
            dev.run_dev(settings, 3000)
        assert "make install" in caught.value.fix


@pytest.mark.usefixtures("opened", "up")
class TestOpen:
    @pytest.mark.parametrize(
        ("what", "port"), [("dashboard", "head-svc:8265"), ("endpoint", "serve-svc:8000")]
    )
    def test_it_says_where_and_ends_on_ctrl_c(
        self, raynest: Raynest, monkeypatch: pytest.MonkeyPatch, what: str, port: str
    ) -> None:
        async def serve(target: Any, *, port: int, ready: Any) -> None:
            assert wanted in target.base_url
            asyncio.get_running_loop().call_later(0.05, os.kill, os.getpid(), signal.SIGINT)
            await ready("http://127.0.0.1:1234")

        wanted = port
        monkeypatch.setattr("raynest_pipeline.cli.forward.serve_forward", serve)
        said = raynest("open", what)
        assert said.code == 0 and f"{what}: http://127.0.0.1:1234" in said.out

    def test_a_port_that_is_taken_is_exit_code_8(
        self, raynest: Raynest, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def serve(*_: Any, **__: Any) -> None:
            raise OSError("address already in use")

        monkeypatch.setattr("raynest_pipeline.cli.forward.serve_forward", serve)
        said = raynest("open", "endpoint", "--port", "80")
        assert said.code == StorageError.exit_code and "--port" in said.err


class TestAfterTeardown:
    class Control:
        def __init__(self, running: bool, ledger: list[dict[str, Any]]) -> None:
            self.running, self.held, self.stopped = running, ledger, False

        def status(self, _: Path) -> Any:
            return object() if self.running else None

        def ledger(self, _: Path) -> list[dict[str, Any]]:
            return self.held

        def stop(self, _: Path) -> bool:
            self.stopped = True
            return True

    @pytest.mark.parametrize(
        ("profile", "running", "ledger", "stops"),
        [
            ("sandbox", True, [], True),
            ("sandbox", True, [{"id": "eip-1"}], False),
            ("sandbox", False, [], False),
            ("alibaba", True, [], False),
        ],
    )
    def test_only_an_empty_sandbox_of_ours_is_stopped(
        self, monkeypatch: pytest.MonkeyPatch, profile: Any, running: bool, ledger: list[Any], stops: bool
    ) -> None:
        control = self.Control(running, ledger)
        monkeypatch.setattr(sandbox, "control", control, raising=False)
        assert stop_sandbox_if_empty(Settings(profile=profile)) is stops
        assert control.stopped is stops


@pytest.mark.usefixtures("opened")
def test_generate_as_json_names_everything_that_was_made(
    raynest: Raynest, up: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from raynest_pipeline.images.batch import Outcome
    from raynest_pipeline.images.result import BatchResult
    from raynest_pipeline.images.store import BatchFolder

    asked: dict[str, Any] = {}

    def run_job(_: Settings, job: str, view: Any, **more: Any) -> None:
        asked.update(more, job=job)
        folder = BatchFolder(tmp_path / "out", more["partition"])
        view(Outcome(BatchResult(2, 1, 0, 1.234, None, None, model="tiny"), folder, [], 3))

    monkeypatch.setattr("raynest_pipeline.cli.jobs.run_job", run_job)
    (tmp_path / "my prompts.txt").write_text("a\nb\nc\n")
    said = raynest("generate", "--prompts", "my prompts.txt", "--out", "out", "--json")
    assert said.code == 0, said.err
    document = json.loads(said.out)
    assert (document["images"], document["made"], document["reused"], document["failed"]) == (3, 2, 1, 0)
    assert document["batch"].startswith("my-prompts-") and document["model"] == "tiny"
    assert asked["job"] == "generate_batch" and asked["partition"] == document["batch"]
    config = asked["ops"]["batch_images"]["config"]
    assert config == {"prompts": str(tmp_path / "my prompts.txt"), "out": str(tmp_path / "out")}
    said = raynest("generate", "--prompts", "my prompts.txt", "--batch", "named")
    assert said.code == 0 and asked["partition"] == "named"
