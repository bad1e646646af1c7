"""The process of `gpu_check`: connects by Ray Client, looks at one GPU worker, prints one line of JSON.

`python -m raynest_pipeline.chain.gpu_probe ray://HOST:10001`
"""

import importlib.util
import json
import re
import sys
from typing import Any

SIZE = 1024
"""Rows and columns of the two matrices."""


def main(address: str) -> int:
    """Print what was found; the exit code is 0 whatever that is."""
    print(json.dumps(look(address)), flush=True)
    return 0


def look(address: str) -> dict[str, Any]:
    """What the cluster at a ray:// address says of its GPUs; `error` and `kind` where it says nothing."""
    if importlib.util.find_spec("ray") is None or importlib.util.find_spec("grpc") is None:
        return {"error": "ray[client] is not installed here", "kind": "package"}
    import ray

    try:
        ray.init(address, logging_level="error", log_to_driver=False)
    except (RuntimeError, ConnectionError, ImportError) as error:
        return refused(str(error))
    try:
        return _cluster(ray)
    finally:
        ray.shutdown()


def refused(message: str) -> dict[str, Any]:
    """Why a connection failed: another release on the other side, or none at all."""
    if "Version mismatch" in message or "different version" in message.lower():
        versions = re.findall(r"(Ray|Python): *([\w.+-]+)", message)
        shown = ", ".join(f"{name} {version}" for name, version in versions)
        return {
            "error": f"versions differ (the cluster's first): {shown or message[:300]}",
            "kind": "version",
        }
    lines = message.strip().splitlines() or ["no reason given"]
    return {"error": f"no connection: {lines[0][:300]}", "kind": "connection"}


def _cluster(ray: Any) -> dict[str, Any]:
    alive = [node for node in ray.nodes() if node["Alive"]]
    with_gpu = [node for node in alive if node["Resources"].get("GPU")]
    facts: dict[str, Any] = {
        "ray": ray.__version__,
        "nodes": len(alive),
        "gpus": sum(node["Resources"]["GPU"] for node in with_gpu),
    }
    if not with_gpu:
        return facts
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    # A warm replica holds its GPU for good: then the check runs beside it, in the few hundred MB it leaves.
    free = ray.available_resources().get("GPU", 0.0) >= 1
    strategy = NodeAffinitySchedulingStrategy(with_gpu[0]["NodeID"], soft=free)
    task = ray.remote(num_cpus=0, num_gpus=1 if free else 0, max_retries=0, scheduling_strategy=strategy)(
        cuda_task()
    )
    found: dict[str, Any] = ray.get(task.remote(SIZE, not free))
    return {**facts, **found, "beside": not free}


def cuda_task() -> Any:
    """The function that runs on the worker. Made in here it travels by value: raynest isn't there."""

    def check(size: int, beside: bool) -> dict[str, Any]:
        import ctypes
        import os
        import time

        if beside:
            # Ray hides all devices from a task that asked for none.
            os.environ.pop("CUDA_VISIBLE_DEVICES", None)
        try:
            import torch
        except ImportError:
            # The model's packages may be in the replicas' own environment only: ask the driver itself.
            try:
                driver = ctypes.CDLL("libcuda.so.1")
            except OSError as error:
                return {"cuda": False, "why": f"no NVIDIA driver library: {error}"}
            code, count, name = driver.cuInit(0), ctypes.c_int(), ctypes.create_string_buffer(100)
            if code:
                return {"cuda": False, "why": f"cuInit failed with CUDA error {code}"}
            driver.cuDeviceGetCount(ctypes.byref(count))
            driver.cuDeviceGetName(name, 100, 0)
            return {"cuda": count.value > 0, "device": name.value.decode(errors="replace")}
        if not torch.cuda.is_available():
            return {"cuda": False, "why": f"torch {torch.__version__} sees no CUDA device"}
        try:
            left = torch.ones(size, size, device="cuda")
            torch.cuda.synchronize()
            started = time.perf_counter()
            total = float((left @ left).sum())
            milliseconds = (time.perf_counter() - started) * 1000
        except RuntimeError as error:
            return {"cuda": False, "why": str(error).splitlines()[0]}
        if total != float(size) ** 3:
            return {"cuda": False, "why": f"it computes wrongly: {total} instead of {float(size) ** 3}"}
        return {"cuda": True, "device": torch.cuda.get_device_name(0), "matmul_ms": milliseconds}

    return check


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
