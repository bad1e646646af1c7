"""`raynest dev`: Dagster's UI and daemon on the state of this home."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time

from raynest_pipeline.cli.gallery import beside_the_ui
from raynest_pipeline.dagster_home import packaged, prepare_dagster_home
from raynest_pipeline.errors import SettingsError, StorageError
from raynest_pipeline.settings import Settings

GRACE_SECONDS = 30.0
"""For Dagster to end its daemon, web server and code servers."""


def run_dev(settings: Settings, port: int) -> int:
    """Run `dagster dev` until it ends; its exit code.

    Raises:
        SettingsError: The web server isn't installed.
        StorageError: The port is taken.
    """
    if not _installed("dagster_webserver"):
        raise SettingsError(
            "The Dagster UI is not installed.",
            fix="In the checkout: make install   (or: pip install -e '.[local]')",
        )
    _require_free(port)
    home = prepare_dagster_home(settings)
    environment = {
        **os.environ,
        "DAGSTER_HOME": str(home),
        # Whatever folder a child runs in, it is this home.
        "RAYNEST_HOME": str(settings.home_dir),
    }
    command = [sys.executable, "-m", "dagster", "dev", "-w", str(packaged("workspace.yaml"))]
    command += ["-h", "127.0.0.1", "-p", str(port)]
    # `dagster dev` says that `dg dev` is newer; that one needs a project folder, which a wheel hasn't.
    environment["PYTHONWARNINGS"] = "ignore:Function `dev_command` is superseded"
    print(f"Dagster UI: http://127.0.0.1:{port}   (state: {home}; Ctrl-C ends)", flush=True)
    with beside_the_ui(settings, environment) as gallery:
        if gallery:
            print(f"Gallery:    {gallery}", flush=True)
        print(f"Inbox:      {settings.inbox_url}   (prompt files dropped there become batches)", flush=True)
        return run_until_signal(command, environment)


def run_until_signal(command: list[str], environment: dict[str, str]) -> int:
    """Run a command until it ends, or a Ctrl-C or SIGTERM ends it and whatever it started; its exit code.

    It gets a group of its own, since the terminal's Ctrl-C would reach its children, too, and end them in
    the wrong order. It is asked with SIGINT, which Dagster answers by ending its children first.
    """
    asked = 0.0

    def ask(*_: object) -> None:
        nonlocal asked
        asked = asked or time.monotonic()
        process.send_signal(signal.SIGINT)

    # Before the start: a handled signal is back to its default in the child, while one that is ignored
    # (in the background of a shell) would stay ignored there.
    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    process = subprocess.Popen(command, env=environment, start_new_session=True)
    try:
        while True:
            try:
                return process.wait(timeout=0.5)
            except subprocess.TimeoutExpired:
                if asked and time.monotonic() - asked > GRACE_SECONDS:
                    os.killpg(process.pid, signal.SIGKILL)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        for number, handler in before.items():
            signal.signal(number, handler)


def _require_free(port: int) -> None:
    """Dagster's web server would give up on a taken port, and the rest of it run on without."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise StorageError(
                f"Port {port} of 127.0.0.1 cannot be used.", why=str(error), fix="Choose another --port."
            ) from None


def _installed(module: str) -> bool:
    import importlib.util

    return importlib.util.find_spec(module) is not None
