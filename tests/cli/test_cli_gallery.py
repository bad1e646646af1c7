"""`raynest open gallery`, and the gallery beside the UI."""

import os
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from raynest_pipeline.cli.gallery import PORT_VARIABLE, beside_the_ui
from raynest_pipeline.settings import Gallery, Settings, load_settings


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def settings(tmp_path: Path, port: int) -> Settings:
    return load_settings(home=tmp_path / "home", gallery=Gallery(port=port))


def page(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=40) as answer:
        body: bytes = answer.read()
        return body


class TestBesideTheUi:
    def test_at_the_port_of_the_settings(self, tmp_path: Path) -> None:
        port, environment = free_port(), dict[str, str]()
        with beside_the_ui(settings(tmp_path, port), environment) as url:
            assert url == f"http://127.0.0.1:{port}" and b"All batches" in page(url)
            assert environment == {PORT_VARIABLE: str(port)}

    def test_at_a_free_one_when_another_home_has_it_and_the_runs_are_told(self, tmp_path: Path) -> None:
        port = free_port()
        with beside_the_ui(settings(tmp_path / "a", port), {}) as first:
            environment: dict[str, str] = {}
            with beside_the_ui(settings(tmp_path / "b", port), environment) as second:
                assert second is not None and second != first and page(second)
                assert environment == {PORT_VARIABLE: second.rsplit(":", 1)[1]}

    def test_not_at_all_when_it_is_off(self, tmp_path: Path) -> None:
        environment: dict[str, str] = {}
        with beside_the_ui(settings(tmp_path, 0), environment) as url:
            assert url is None and environment == {}

    def test_the_ui_comes_up_without_it(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (tmp_path / "file").write_text("")
        broken = settings(tmp_path, free_port()).model_copy(update={"output": tmp_path / "file" / "images"})
        with beside_the_ui(broken, {}) as url:
            assert url is None
        assert "The gallery is not served" in capsys.readouterr().out


def test_the_command_serves_until_ctrl_c(tmp_path: Path) -> None:
    code = "from raynest_pipeline.cli import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-u", "-c", code, "open", "gallery"],
        cwd=tmp_path,
        env={**os.environ, "RAYNEST_HOME": str(tmp_path / "home")},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert b"All batches" in page(line.split()[1])
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 0
    finally:
        process.kill()
        process.wait()
