"""`raynest dev`: Dagster's UI and daemon on the state of this home."""

import os
import signal
import subprocess
import sys

from raynest_pipeline.dagster_home import packaged, prepare_dagster_home
from raynest_pipeline.errors import SettingsError
from raynest_pipeline.settings import Settings


def run_dev(settings: Settings, port: int) -> int:
    """Run `dagster dev` until it ends; its exit code.

    Raises:
        SettingsError: The web server isn't installed.
    """
    if not _installed("dagster_webserver"):
        raise SettingsError("The Dagster UI is not installed.", fix="pip install 'raynest[local]'")
    home = prepare_dagster_home(settings)
    environment = {
        **os.environ,
        "DAGSTER_HOME": str(home),
        # The children run in other folders; the settings' own relative paths are meant from here.
        "RAYNEST_HOME": str(settings.home_dir),
    }
    command = [sys.executable, "-m", "dagster", "dev", "-w", str(packaged("workspace.yaml"))]
    command += ["-h", "127.0.0.1", "-p", str(port)]
    # `dagster dev` says that `dg dev` is newer; that one needs a project folder, which a wheel hasn't.
    environment["PYTHONWARNINGS"] = "ignore:Function `dev_command` is superseded"
    print(f"Dagster UI: http://127.0.0.1:{port}   (state: {home}; Ctrl-C ends)", flush=True)
    # A group of its own: the terminal's Ctrl-C would reach it and all its children twice otherwise.
    process = subprocess.Popen(command, env=environment, start_new_session=True)
    return _wait(process)


def _wait(process: "subprocess.Popen[bytes]") -> int:
    """Wait for Dagster; Ctrl-C and SIGTERM are passed on to it, which ends its own children."""

    def end(signum: int, _: object) -> None:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGINT if signum == signal.SIGINT else signal.SIGTERM)

    before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        return process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _installed(module: str) -> bool:
    import importlib.util

    return importlib.util.find_spec(module) is not None
