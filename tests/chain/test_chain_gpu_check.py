"""The GPU check: what it says of every answer, and that nothing that hangs can hang us."""

import json
import socket
import sys
import threading
import types
from pathlib import Path
from typing import Any

import pytest

from raynest_pipeline.chain import gpu_check, gpu_probe
from raynest_pipeline.chain.gpu_check import judge, probe
from raynest_pipeline.chain.gpu_probe import cuda_task, refused

HEALTHY = {"ray": "2.60.0", "nodes": 2, "gpus": 1.0, "cuda": True, "device": "NVIDIA A10", "matmul_ms": 1.25}

MISMATCH = """Version mismatch: The cluster was started with:
    Ray: 2.46.0
    Python: 3.9.21
This process on Ray Client was started with:
    Ray: 2.60.0
    Python: 3.11.7
"""


def test_a_gpu_that_works_is_named_with_its_work() -> None:
    check = judge(HEALTHY)
    assert check.ok is True
    assert check.found == "Ray 2.60.0, 2 nodes, 1 GPU: NVIDIA A10, CUDA works (1024x1024 matmul in 1.2 ms)"


def test_a_gpu_whose_replica_is_busy_is_looked_at_beside_it() -> None:
    assert "CUDA works beside a busy replica" in judge({**HEALTHY, "beside": True}).found


def test_without_torch_the_driver_answers() -> None:
    facts = {key: value for key, value in HEALTHY.items() if key != "matmul_ms"}
    assert judge(facts).found.endswith("(driver only)")


def test_a_cluster_without_gpus_is_no_fault() -> None:
    check = judge({"ray": "2.60.0", "nodes": 2, "gpus": 0})
    assert (check.ok, check.found) == (None, "Ray 2.60.0, 2 nodes, no GPU")


def test_a_gpu_that_cuda_does_not_see_is_one() -> None:
    check = judge({**HEALTHY, "cuda": False, "why": "cuInit failed with CUDA error 100"})
    assert check.ok is False
    assert "cuInit failed with CUDA error 100" in check.found
    assert "device plugin" in check.fix


def test_different_versions_are_told_both() -> None:
    facts = refused(MISMATCH)
    assert facts["kind"] == "version"
    assert "Ray 2.46.0, Python 3.9.21, Ray 2.60.0, Python 3.11.7" in facts["error"]
    check = judge(facts)
    assert check.ok is False
    assert "same Ray release and Python on both sides" in check.fix


def test_no_connection_keeps_its_first_line() -> None:
    assert refused("ray client connection timeout\nlong\ntrace") == {
        "error": "no connection: ray client connection timeout",
        "kind": "connection",
    }
    assert refused("")["kind"] == "connection"


# -- the process -----------------------------------------------------------------------------------


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`script(text)`: what runs in place of the probe."""

    def write(text: str) -> None:
        (tmp_path / "stand_in.py").write_text(text)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        monkeypatch.setattr(gpu_check, "PROBE", "stand_in")

    return write


def test_the_last_line_of_json_counts(script: Any) -> None:
    after = ["bye", "{'GPU': 1.0}", "7"]
    script(f"print('a warning')\nprint({json.dumps(json.dumps(HEALTHY))})\nprint(*{after!r}, sep='\\n')")
    assert probe("ray://127.0.0.1:1") == HEALTHY


def test_a_process_that_hangs_is_ended(script: Any) -> None:
    script("import threading; threading.Event().wait()")
    facts = probe("ray://127.0.0.1:1", seconds=1.0)
    assert facts == {"error": "no answer within 1 s", "kind": "deadline"}


def test_a_process_that_crashes_says_how(script: Any) -> None:
    script("import sys; print('Segmentation fault', file=sys.stderr); sys.exit(139)")
    facts = probe("ray://127.0.0.1:1")
    assert facts == {"error": "the probe ended with code 139: Segmentation fault", "kind": "crash"}


def test_it_gets_ray_s_token_and_nothing_of_ours(script: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "ray://elsewhere:1")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "stray")
    names = "('RAY_ADDRESS', 'RAY_AUTH_MODE', 'RAY_AUTH_TOKEN')"
    script(
        "import json, os, sys\n"
        f"print(json.dumps({{'address': sys.argv[1], 'env': [os.environ.get(n) for n in {names}]}}))"
    )
    assert probe("ray://h:1", token="secret") == {
        "address": "ray://h:1",
        "env": [None, "token", "secret"],
    }
    assert probe("ray://h:1")["env"] == [None, None, None]


def test_a_server_that_takes_connections_and_says_nothing_ends_in_time() -> None:
    """The real probe with the real Ray Client, before a port that is no Ray."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        held: list[socket.socket] = []
        ended = threading.Event()

        def accept() -> None:
            listener.settimeout(0.2)
            while not ended.is_set():
                try:
                    held.append(listener.accept()[0])
                except TimeoutError:
                    continue

        thread = threading.Thread(target=accept)
        thread.start()
        try:
            facts = probe(f"ray://127.0.0.1:{listener.getsockname()[1]}", seconds=15.0)
        finally:
            ended.set()
            thread.join()
            for each in held:
                each.close()
    assert facts["kind"] in ("deadline", "connection")


def test_without_ray_client_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_probe.importlib.util, "find_spec", lambda name: None)
    facts = gpu_probe.look("ray://127.0.0.1:1")
    assert facts["kind"] == "package"
    assert judge(facts).fix == "pip install 'ray[client]'"


# -- the task on the worker ------------------------------------------------------------------------


def fake_torch(*, available: bool, total: float | None = None) -> types.ModuleType:
    class Product:
        def sum(self) -> float:
            return float(1024**3) if total is None else total

    class Matrix:
        def __matmul__(self, other: object) -> Product:
            return Product()

    torch = types.ModuleType("torch")
    torch.__version__ = "2.13.0"  # type: ignore[attr-defined]
    torch.ones = lambda *size, device: Matrix()  # type: ignore[attr-defined]
    torch.cuda = types.SimpleNamespace(  # type: ignore[attr-defined]
        is_available=lambda: available, synchronize=lambda: None, get_device_name=lambda n: "NVIDIA A10"
    )
    return torch


def test_the_task_multiplies_and_checks_the_product(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", fake_torch(available=True))
    found = cuda_task()(1024, False)
    assert (found["cuda"], found["device"]) == (True, "NVIDIA A10")
    assert found["matmul_ms"] >= 0


def test_a_device_that_computes_wrongly_does_not_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", fake_torch(available=True, total=7.0))
    found = cuda_task()(1024, False)
    assert found["cuda"] is False
    assert "computes wrongly" in found["why"]


def test_beside_a_replica_the_hidden_devices_are_shown_again(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setitem(sys.modules, "torch", fake_torch(available=False))
    assert cuda_task()(1024, True) == {"cuda": False, "why": "torch 2.13.0 sees no CUDA device"}
    assert "CUDA_VISIBLE_DEVICES" not in os.environ


def test_without_torch_and_driver_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    import ctypes

    def missing(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setattr(ctypes, "CDLL", missing)
    found = cuda_task()(1024, False)
    assert found == {
        "cuda": False,
        "why": "no NVIDIA driver library: libcuda.so.1: cannot open shared object file",
    }


def test_the_task_travels_by_value() -> None:
    import pickle

    from ray import cloudpickle

    data = cloudpickle.dumps(cuda_task())
    with_package = sys.modules.copy()
    for name in [name for name in sys.modules if name.startswith("raynest_pipeline")]:
        del sys.modules[name]
    try:
        task = pickle.loads(data)
        assert not [name for name in sys.modules if name.startswith("raynest_pipeline")]
        assert callable(task)
    finally:
        sys.modules.update(with_package)
