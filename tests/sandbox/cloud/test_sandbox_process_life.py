"""The sandbox's process: started once, found again, stopped clean, killed hard, and back with its state."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from sandbox_sdk import Sdk, wait

from raynest_pipeline.sandbox import __main__, control, orphans
from raynest_pipeline.sandbox.state import INFO_FILE, PROCESSES_FILE, WORLD_FILE, read_json, write_json

Start = Callable[..., control.SandboxInfo]


def sdk_of(info: control.SandboxInfo) -> Sdk:
    return Sdk(info.cloud_endpoint, info.access_key_id, info.access_key_secret)


def kill(info: control.SandboxInfo) -> None:
    """kill -9, and wait until it is gone."""
    assert orphans.end(info.pid, info.create_time, signal.SIGKILL)
    wait(lambda: control._reap(info.pid) or not orphans.is_alive(info.pid, info.create_time), "killed")


def test_starting_again_finds_the_running_one(start: Start, tmp_path: Path) -> None:
    first = start(tmp_path)
    assert start(tmp_path) == first
    assert control.status(tmp_path) == first
    assert first.region == "ap-southeast-1"
    assert first.cloud_endpoint.startswith("127.0.0.1:")


def test_many_who_start_at_once_get_the_same_one(start: Start, tmp_path: Path) -> None:
    with ThreadPoolExecutor(6) as pool:
        found = set(pool.map(lambda _: start(tmp_path).pid, range(6)))
    assert len(found) == 1


def test_several_processes_that_start_at_once_get_the_same_one(start: Start, tmp_path: Path) -> None:
    code = (
        "import sys, pathlib; from raynest_pipeline.sandbox import control;"
        "options = control.SandboxOptions(kube_factory='sandbox_kube_double:KubeDouble');"
        "print(control.start(pathlib.Path(sys.argv[1]), options=options).pid)"
    )
    root = Path(control.__file__).parents[2]
    command = [sys.executable, "-c", code, str(tmp_path)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root) for _ in range(3)]
    pids = {process.communicate(timeout=60)[0].strip() for process in running}
    assert pids == {str(start(tmp_path).pid)}


def test_it_outlives_the_process_that_started_it(start: Start, tmp_path: Path) -> None:
    info = start(tmp_path)
    process = psutil.Process(info.pid)
    assert os.getsid(info.pid) == info.pid
    assert process.cwd() == str(tmp_path)
    assert set(process.environ()) >= {"PATH"}


def test_what_it_keeps_is_private(start: Start, tmp_path: Path) -> None:
    info = start(tmp_path)
    for name in (INFO_FILE, WORLD_FILE, PROCESSES_FILE):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600
    assert info.access_key_secret not in repr(info)
    assert info.admin_token not in repr(info)
    assert info.access_key_secret not in info.log_path.read_text()


def test_stopping_ends_it_and_says_whether_there_was_one(start: Start, tmp_path: Path) -> None:
    info = start(tmp_path)
    assert control.stop(tmp_path)
    assert not orphans.is_alive(info.pid, info.create_time)
    assert control.status(tmp_path) is None
    assert not (tmp_path / INFO_FILE).exists()
    assert not control.stop(tmp_path)
    assert not control.stop(tmp_path / "never")


@pytest.mark.skipif(not psutil.LINUX, reason="creation times move with the clock on Linux only")
@pytest.mark.parametrize("seconds", [2, -2])
def test_one_is_asked_to_stop_though_the_clock_was_set(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    info = start(tmp_path)
    boot_time, create_time = psutil.boot_time, psutil.Process.create_time
    with monkeypatch.context() as patch:
        patch.setattr(psutil, "boot_time", lambda: boot_time() + seconds)
        patch.setattr(psutil.Process, "create_time", lambda self: create_time(self) + seconds)
        assert control.stop(tmp_path)
    assert not orphans.is_alive(info.pid, info.create_time)
    # Not killed as something that was left behind.
    assert "the sandbox has stopped" in info.log_path.read_text()


def test_one_whose_information_was_lost_is_found_by_its_mark(start: Start, tmp_path: Path) -> None:
    info = start(tmp_path)
    environment = psutil.Process(info.pid).environ()
    assert environment[orphans.MARK_VARIABLE] == orphans.mark_of(tmp_path)
    (tmp_path / INFO_FILE).unlink()
    assert control.stop(tmp_path)
    assert not orphans.is_alive(info.pid, info.create_time)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_a_clean_stop(start: Start, tmp_path: Path, number: signal.Signals) -> None:
    info = start(tmp_path)
    orphans.end(info.pid, info.create_time, number)
    wait(lambda: control._reap(info.pid) or not orphans.is_alive(info.pid, info.create_time), "ended")
    assert not (tmp_path / INFO_FILE).exists()
    assert "the sandbox has stopped" in info.log_path.read_text()


def test_one_that_hangs_is_killed(start: Start, tmp_path: Path) -> None:
    info = start(tmp_path)
    orphans.end(info.pid, info.create_time, signal.SIGSTOP)
    assert control.stop(tmp_path, timeout=0.2)
    assert not orphans.is_alive(info.pid, info.create_time)


def test_one_that_is_busy_is_waited_for_and_not_started_twice(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = start(tmp_path)
    orphans.end(info.pid, info.create_time, signal.SIGSTOP)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(control, "_HEALTH_S", 0.2)
            with pytest.raises(control.SandboxError, match=f"pid {info.pid}.* does not answer"):
                control.start(tmp_path, timeout=0.5)
    finally:
        orphans.end(info.pid, info.create_time, signal.SIGCONT)
    assert start(tmp_path) == info


def test_one_that_is_just_ending_is_waited_for_and_replaced(start: Start, tmp_path: Path) -> None:
    first = start(tmp_path)
    control._ask(first, "POST", "/stop")
    second = start(tmp_path)
    assert second.pid != first.pid
    assert control.status(tmp_path) == second


def test_a_process_that_inherited_the_id_is_left_alone(start: Start, tmp_path: Path) -> None:
    info = start(tmp_path)
    saved = read_json(tmp_path / INFO_FILE)
    kill(info)
    # As if the id had gone to another process, here this very one.
    write_json(tmp_path / INFO_FILE, {**saved, "pid": os.getpid()})
    assert control.status(tmp_path) is None
    assert not control.stop(tmp_path)
    assert not (tmp_path / INFO_FILE).exists()


def test_a_second_server_in_the_same_folder_refuses(start: Start, tmp_path: Path) -> None:
    start(tmp_path)
    command = [sys.executable, "-m", "raynest_pipeline.sandbox", "serve", "--state", str(tmp_path)]
    root = Path(control.__file__).parents[2]
    result = subprocess.run(command, capture_output=True, text=True, cwd=root, timeout=30)
    assert result.returncode == 1
    assert "another sandbox is running" in result.stderr


def test_a_damaged_state_is_told_with_the_end_of_the_log(start: Start, tmp_path: Path) -> None:
    (tmp_path / WORLD_FILE).write_text("{")
    with pytest.raises(control.SandboxError, match=r"ended with status 1(.|\n)*JSONDecodeError"):
        start(tmp_path)


def test_nothing_can_be_asked_where_nothing_runs(tmp_path: Path) -> None:
    for ask in (control.ledger, control.calls, control.faults, control.processes, control.clear_faults):
        with pytest.raises(control.SandboxError, match="no sandbox is running"):
            ask(tmp_path)
    assert control.status(tmp_path) is None


def test_a_damaged_information_file_is_no_sandbox(tmp_path: Path) -> None:
    (tmp_path / INFO_FILE).write_text("{")
    assert control.status(tmp_path) is None
    (tmp_path / INFO_FILE).write_text('{"version": "0"}')
    assert control.status(tmp_path) is None


def test_the_administration_needs_its_token(start: Start, tmp_path: Path) -> None:
    from dataclasses import replace

    info = start(tmp_path)
    with pytest.raises(control.SandboxError, match="token"):
        control._ask(replace(info, admin_token="wrong"), "GET", "/ledger")
    with pytest.raises(control.SandboxError, match="token"):
        control._ask(replace(info, admin_token=""), "POST", "/stop")
    assert control.status(tmp_path) == info


def test_faults_over_the_administration(start: Start, tmp_path: Path) -> None:
    start(tmp_path)
    assert control.set_fault(tmp_path, "throttling", count="4")["count"] == 4
    control.set_fault(tmp_path, "missing_gpu")
    assert set(control.faults(tmp_path)) == {"throttling", "missing_gpu"}
    with pytest.raises(control.SandboxError, match="no fault 'nonsense'"):
        control.set_fault(tmp_path, "nonsense")
    with pytest.raises(control.SandboxError, match="no parameter 'colour'"):
        control.set_fault(tmp_path, "throttling", colour="red")
    with pytest.raises(control.SandboxError, match="no fault 'nonsense'"):
        control.clear_faults(tmp_path, "nonsense")
    control.clear_faults(tmp_path, "throttling")
    assert set(control.faults(tmp_path)) == {"missing_gpu"}
    control.clear_faults(tmp_path)
    assert control.faults(tmp_path) == {}


def deployed(sdk: Sdk) -> tuple[str, str, str]:
    """A deployed instance, its cluster, and the public endpoint that was bound to it."""
    instance_id = sdk.create("ray-life", "order-1")
    sdk.wait_status(instance_id, "Deployed")
    cluster_id = sdk.cluster_id(instance_id)
    sdk.bind(cluster_id, sdk.allocate("eip-1"))
    return instance_id, cluster_id, sdk.endpoint(cluster_id)


@pytest.mark.parametrize("hard", [False, True], ids=["stopped", "killed"])
def test_everything_comes_back_at_the_next_start(start: Start, tmp_path: Path, hard: bool) -> None:
    first = start(tmp_path)
    instance_id, cluster_id, endpoint = deployed(sdk_of(first))
    control.set_fault(tmp_path, "sold_out", zone="ap-southeast-1c")
    ledger = control.ledger(tmp_path)
    (child,) = control.processes(tmp_path)
    if hard:
        kill(first)
        assert orphans.is_alive(child["pid"], child["create_time"])
        assert control.status(tmp_path) is None
    else:
        control.stop(tmp_path)
        assert not orphans.is_alive(child["pid"], child["create_time"])

    second = start(tmp_path)
    assert not orphans.is_alive(child["pid"], child["create_time"])
    assert second.pid != first.pid
    kept = ("cloud_endpoint", "admin_url", "access_key_id", "access_key_secret")
    assert [getattr(second, name) for name in kept] == [getattr(first, name) for name in kept]
    sdk = sdk_of(second)
    assert sdk.instance(instance_id).status == "Deployed"
    assert sdk.endpoint(cluster_id) == endpoint
    assert connects(endpoint)
    assert control.ledger(tmp_path) == ledger
    assert control.faults(tmp_path)["sold_out"]["zone"] == "ap-southeast-1c"
    (again,) = control.processes(tmp_path)
    assert again["pid"] != child["pid"]
    # A token of the first life still means the first order.
    assert sdk.create("ray-life", "order-1") == instance_id


def test_a_deployment_that_was_killed_in_the_middle_goes_on(start: Start, tmp_path: Path) -> None:
    first = start(tmp_path, time_scale=0.5)
    sdk = sdk_of(first)
    instance_id = sdk.create("ray-life")
    wait(lambda: "worker" in [each["kind"] for each in control.ledger(tmp_path)] or None, "workers")
    kill(first)
    sdk = sdk_of(start(tmp_path, time_scale=0.5))
    sdk.wait_status(instance_id, "Deployed")
    bought = [each["kind"] for each in control.purchases(tmp_path)]
    assert sorted(set(bought)) == ["cluster", "eip", "load_balancer", "nat_gateway", "worker"]
    assert bought.count("worker") == bought.count("cluster") == 1


def test_stopping_a_killed_one_ends_what_it_left(start: Start, tmp_path: Path) -> None:
    info = start(tmp_path)
    deployed(sdk_of(info))
    (child,) = control.processes(tmp_path)
    kill(info)
    assert control.stop(tmp_path)
    assert not orphans.is_alive(child["pid"], child["create_time"])


def test_a_port_that_someone_took_is_replaced(start: Start, tmp_path: Path) -> None:
    first = start(tmp_path)
    port = int(first.cloud_endpoint.rpartition(":")[2])
    control.stop(tmp_path)
    with socket.socket() as squatter:
        squatter.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        squatter.bind(("127.0.0.1", port))
        squatter.listen()
        second = start(tmp_path)
    assert second.cloud_endpoint != first.cloud_endpoint
    assert second.admin_url == first.admin_url
    assert sdk_of(second).eips() == {}


def connects(url: str) -> bool:
    host, _, port = url.removeprefix("https://").partition(":")
    with socket.socket() as client:
        return client.connect_ex((host, int(port))) == 0


def test_the_commands(start: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = ["--state", str(tmp_path)]
    assert __main__.main(["status", *state]) == 1
    info = start(tmp_path)
    assert __main__.main(["status", *state]) == 0
    assert __main__.main(["stop", *state]) == 0
    assert __main__.main(["stop", *state]) == 1
    out = capsys.readouterr().out
    assert info.cloud_endpoint in out
    assert info.access_key_secret not in out
    with pytest.raises(SystemExit):
        __main__.main(["dance", *state])


def test_options_travel_as_text() -> None:
    options = control.SandboxOptions(time_scale=2.5, policies=("A", "B"), root=True, kuberay_version="1.7.0")
    assert control.SandboxOptions.from_json(options.to_json()) == options
    assert control.SandboxOptions.from_json("{}") == control.SandboxOptions()
    with pytest.raises(TypeError):
        control.SandboxOptions.from_json('{"colour": "red"}')


def test_importing_the_control_costs_only_the_standard_library() -> None:
    code = "import json, sys, raynest_pipeline.sandbox.control; print(json.dumps(sorted(sys.modules)))"
    root = Path(control.__file__).parents[2]
    result = subprocess.run(
        [sys.executable, "-S", "-c", code], capture_output=True, text=True, cwd=root, check=True
    )
    loaded = {name.partition(".")[0] for name in json.loads(result.stdout)}
    assert loaded <= set(sys.stdlib_module_names) | {"raynest_pipeline", "__main__"}
